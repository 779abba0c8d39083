use serde_json::json;
use shared::{
    OrganizationId, Timestamp,
    store::{LimitNode, LimitReport, UsageCounts, UsageReport},
};
use uuid::Uuid;

use crate::harness::{ADMIN_TOKEN, Desk, Tenant};

const SECOND: i64 = 1_000_000_000;

/// An organization of the tier `pro`.
async fn limited(desk: &Desk) -> Tenant {
    let body = json!({"name": "Acme", "tier": "pro"});
    let created = desk.post("/v1/organizations", ADMIN_TOKEN, &body).await;
    Tenant {
        id: created.body["id"].as_str().unwrap().parse().unwrap(),
        key: created.body["key"]["key"].as_str().unwrap().to_owned(),
    }
}

/// The hour of 2026-01-31T12:00:00Z.
const NOON: i64 = 1_769_860_800 / 3_600;

async fn used(desk: &Desk, organization: OrganizationId, hour: i64, accepted: u64, refused: u64) {
    let report = UsageReport {
        organization,
        hour,
        counts: UsageCounts { accepted, refused },
    };
    let limits = &desk.engine.store.limits;
    limits.write_usage(Uuid::new_v4(), &[report]).await.unwrap();
}

#[tokio::test]
async fn usage_is_shown_by_the_hour() {
    let desk = Desk::open().await;
    let (ours, other) = (limited(&desk).await, limited(&desk).await);
    for (hour, accepted, refused) in [(-2, 5, 0), (0, 10, 1), (0, 7, 0), (1, 3, 2), (3, 100, 100)] {
        used(&desk, ours.id, NOON + hour, accepted, refused).await;
    }
    used(&desk, other.id, NOON, 1_000, 0).await;
    let path = "/v1/usage?since=2026-01-31T12:59:59Z&until=2026-01-31T13:00:00Z";
    let shown = desk.get(path, &ours.key).await;
    assert_eq!(shown.status, 200, "{}", shown.text);
    // The times are the test's own.
    insta::assert_snapshot!(serde_json::to_string_pretty(&shown.body).unwrap());
    let all = desk.get("/v1/usage?since=2026-01-01T00:00:00Z", &ours.key).await;
    assert_eq!(
        (&all.body["accepted"], &all.body["rate_limited"]),
        (&json!(125), &json!(103))
    );
    // Whoever asks for nothing sees the last day.
    let now = Timestamp::now().seconds() / 3_600;
    used(&desk, ours.id, now, 8, 0).await;
    used(&desk, ours.id, now - 30, 9, 0).await;
    let day = desk.get("/v1/usage", &ours.key).await;
    assert_eq!(day.body["accepted"], 8, "{}", day.text);
}

#[tokio::test]
async fn it_shows_how_the_limit_stands() {
    let desk = Desk::open().await;
    let ours = limited(&desk).await;
    let report = LimitReport {
        organization: ours.id,
        counter: Uuid::new_v4(),
        spent: 50 * SECOND,
        within: 0,
        wanted: 1.0,
        took: 1.0,
    };
    let limits = &desk.engine.store.limits;
    let node = LimitNode::new(report.counter);
    limits.share_limits(node, &[report]).await.unwrap();
    let shown = desk.get("/v1/usage", &ours.key).await;
    let limit = &shown.body["limit"];
    let remaining = limit["remaining"].as_u64().unwrap();
    // 166 are left, and it refills.
    assert!((166..600).contains(&remaining), "{limit}");
    assert!(limit["reset_seconds"].as_u64().unwrap() <= 50, "{limit}");
    let endless = desk.tenant().await;
    let shown = desk.get("/v1/usage", &endless.key).await;
    assert_eq!(
        (&shown.body["limit"], &shown.body["tier"]),
        (&json!(null), &json!("unlimited"))
    );
}

#[tokio::test]
async fn who_may_see_it_and_what_may_be_asked() {
    let desk = Desk::open().await;
    let tenant = desk.tenant().await;
    let narrow = desk.key(&tenant, &["events:write"]).await;
    assert_eq!(
        desk.get("/v1/usage", &narrow).await.status,
        200,
        "any key of its own"
    );
    assert_eq!(desk.get("/v1/usage", "trg_live_nobody").await.status, 401);
    let mut problems = Vec::new();
    for query in [
        "since=yesterday",
        "until=1",
        "since=2026-01-31T13:00:00Z&until=2026-01-31T12:59:59Z",
    ] {
        let refused = desk.get(&format!("/v1/usage?{query}"), &tenant.key).await;
        problems.push(refused.problem());
    }
    insta::assert_snapshot!(problems.join("\n"));
}
