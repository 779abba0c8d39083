//! A subscriber that misbehaves: its lane alone suffers, and each attempt is recorded with what was wrong.

use std::time::Duration;

use harness::{Link, MOVING_HOST, Reply, eventually};
use serde_json::json;
use sqlx::query_scalar;
use uuid::Uuid;

use crate::{catalogue::Fault, deployment::Deployment, invariants::uuid_of};

/// How long it may take until an attempt is made again: probes are a few seconds apart by the end of a fault.
const AGAIN: Duration = Duration::from_secs(45);
const HUGE: usize = 100_000_000;

/// The kinds of failures, one of which must be recorded; none where the attempts succeed.
fn kinds(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::SubscriberRefuses => &["connect"],
        Fault::SubscriberResets => &["connect", "body"],
        Fault::SubscriberHangs | Fault::SubscriberDrips | Fault::DnsHangs => &["timeout"],
        Fault::SubscriberRedirects => &["status"],
        Fault::SubscriberWithBadTls => &["tls"],
        _ => &[],
    }
}

/// What each of those failures says of itself, as SQL's LIKE has it.
fn detail(fault: Fault) -> &'static str {
    match fault {
        Fault::DnsHangs => "the host's name did not resolve%",
        _ => "%",
    }
}

pub async fn inject(fault: Fault, deployment: &mut Deployment) {
    deployment.marks.target = match kinds(fault) {
        [] => deployment.receiver.count(&path(deployment)) as u64,
        kinds => recorded(deployment, kinds, detail(fault)).await,
    };
    let always = |reply| deployment.receiver.always(&path(deployment), reply);
    match fault {
        Fault::SubscriberRefuses => deployment.target_links[0].set(Link::Refusing),
        Fault::SubscriberResets => deployment.target_links[0].set(Link::Reset),
        Fault::SubscriberHangs => deployment.target_links[0].set(Link::Silent),
        Fault::SubscriberDrips => deployment.target_links[0].set(Link::Drip(Duration::from_secs(1))),
        Fault::SubscriberAnswersHugely => always(Reply::Huge(HUGE)),
        Fault::SubscriberRedirects => {
            let elsewhere = deployment.receiver.url("/elsewhere");
            always(Reply::Full(307, vec![("location", elsewhere)], String::new()));
        }
        // What answers there speaks no TLS.
        Fault::SubscriberWithBadTls => point(deployment, "https").await,
        Fault::DnsHangs => {
            look_up_hangs(deployment, true);
            // A connection that there is needs no look-up.
            deployment.target_links[0].set(Link::Cut);
        }
        _ => {
            deployment.marks.target = deployment.target_links[1].taken();
            for worker in &deployment.workers {
                deployment.told.move_host(worker, 2);
            }
            deployment.target_links[0].set(Link::Refusing);
        }
    }
}

/// The fault was one: an attempt was recorded with its kind, or succeeded all the same, or went to the new address.
pub async fn shows(fault: Fault, deployment: &Deployment) {
    let what = format!("{} shows", fault.name());
    eventually(&what, AGAIN, async || {
        let now = match (fault, kinds(fault)) {
            (Fault::SubscriberMoves, _) => deployment.target_links[1].taken(),
            (_, []) => deployment.receiver.count(&path(deployment)) as u64,
            (_, kinds) => recorded(deployment, kinds, detail(fault)).await,
        };
        if now > deployment.marks.target {
            Ok(())
        } else {
            Err("no attempt does".into())
        }
    })
    .await;
}

/// Whoever else subscribes gets events meanwhile, at once: the organization's own lane, and another's.
pub async fn others_get_theirs(deployment: &Deployment) {
    for tenant in &deployment.tenants {
        let took = deployment.flows(tenant, tenant.client()).await;
        assert!(
            took < Duration::from_secs(5),
            "an event took {took:?} to somebody whom nothing holds up"
        );
    }
}

pub async fn heal(fault: Fault, deployment: &Deployment) {
    match fault {
        Fault::SubscriberAnswersHugely | Fault::SubscriberRedirects => {
            deployment.receiver.always(&path(deployment), Reply::Status(200));
        }
        Fault::SubscriberWithBadTls => point(deployment, "http").await,
        Fault::DnsHangs => {
            deployment.target_links[0].set(Link::Open);
            look_up_hangs(deployment, false);
        }
        Fault::SubscriberMoves => {
            deployment.target_links[0].set(Link::Open);
            for worker in &deployment.workers {
                deployment.told.move_host(worker, 1);
            }
        }
        _ => deployment.target_links[0].set(Link::Open),
    }
}

fn look_up_hangs(deployment: &Deployment, hangs: bool) {
    for worker in &deployment.workers {
        deployment.told.let_lookups_hang(worker, hangs);
    }
}

/// Attempts succeed again, and no redirect was followed.
pub async fn is_served_again(deployment: &Deployment) {
    let before = deployment.receiver.count(&path(deployment));
    eventually("the subscriber is served again", AGAIN, async || {
        if deployment.receiver.count(&path(deployment)) > before {
            Ok(())
        } else {
            Err("nothing arrives".into())
        }
    })
    .await;
    assert_eq!(
        deployment.receiver.count("/elsewhere"),
        0,
        "a redirect was followed"
    );
}

fn path(deployment: &Deployment) -> String {
    deployment.second().path("target")
}

/// Points the subscription at the same place by another scheme.
async fn point(deployment: &Deployment, scheme: &str) {
    let port = deployment.target_links[0].address().port();
    let url = format!("{scheme}://{MOVING_HOST}:{port}{}", path(deployment));
    let subscription = format!("/v1/subscriptions/{}", deployment.target.id);
    let client = deployment.second().client();
    client
        .patch(&subscription, &json!({"url": url}))
        .await
        .expect(200);
}

/// How many attempts at the target have failed in one of these ways, and say so.
async fn recorded(deployment: &Deployment, kinds: &[&str], detail: &str) -> u64 {
    let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    let subscription: Uuid = uuid_of(&deployment.target.id);
    let mut database = deployment.sql().await;
    let count: i64 = query_scalar(
        "SELECT count(*) FROM attempts WHERE subscription_id = $1 AND failure = ANY($2) AND detail LIKE $3",
    )
    .bind(subscription)
    .bind(kinds)
    .bind(detail)
    .fetch_one(&mut database)
    .await
    .expect("the table is there");
    u64::try_from(count).expect("a count")
}
