//! What nodes tell each other of the limits of organizations, and what organizations used.

use std::time::Duration;

use shared::{
    OrganizationId, Timestamp,
    store::{
        LIMIT_WORD_COUNTS, LimitNode, LimitReport, LimitStanding, LimitsHeard, Store, USAGE_KEPT,
        UsageCounts, UsageReport,
    },
};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::world::organization;

const SECOND: i64 = 1_000_000_000;
/// What the clock may have gone on by between two calls.
const MEANWHILE: i64 = 20 * SECOND;

fn report(organization: OrganizationId, counter: Uuid, spent: i64) -> LimitReport {
    LimitReport {
        organization,
        counter,
        spent,
        within: 0,
        wanted: 0.0,
        took: 0.0,
    }
}

async fn tell(store: &Store, node: Uuid, reports: &[LimitReport]) -> LimitsHeard {
    tell_as(store, LimitNode::new(node), reports).await
}

async fn tell_as(store: &Store, node: LimitNode, reports: &[LimitReport]) -> LimitsHeard {
    let heard = store.limits.share_limits(node, reports).await.expect("an answer");
    assert_eq!(heard.standings.len(), reports.len());
    heard
}

async fn standing(store: &Store, report: LimitReport) -> LimitStanding {
    let heard = tell(store, report.counter, &[report]).await;
    assert_eq!(heard.standings[0].organization, report.organization);
    heard.standings[0]
}

/// In as many seconds it is full again, but for what refilled between two calls.
#[track_caller]
fn assert_used(standing: LimitStanding, seconds: i64) {
    let refilled = seconds * SECOND - standing.used;
    // PostgreSQL has microseconds.
    assert!(
        (-1_000..MEANWHILE).contains(&refilled),
        "{standing:?}, where {seconds} were used"
    );
}

pub(crate) async fn what_was_taken_is_taken_once(store: &Store) {
    let ours = organization(store).await.id;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    assert_used(standing(store, report(ours, one, 30 * SECOND)).await, 30);
    // Told again; and more.
    for _ in 0..3 {
        assert_used(standing(store, report(ours, one, 30 * SECOND)).await, 30);
    }
    assert_used(standing(store, report(ours, one, 50 * SECOND)).await, 50);
    assert_used(standing(store, report(ours, two, 40 * SECOND)).await, 90);
    // Given back.
    assert_used(standing(store, report(ours, two, 20 * SECOND)).await, 70);
    // Another organization's is another bucket.
    let other = organization(store).await.id;
    assert_used(standing(store, report(other, one, 25 * SECOND)).await, 25);
}

pub(crate) async fn what_is_owed_has_an_end(store: &Store) {
    let ours = organization(store).await.id;
    let one = Uuid::new_v4();
    assert_used(standing(store, report(ours, one, 1_000 * SECOND)).await, 120);
    assert_used(standing(store, report(ours, one, 2_000 * SECOND)).await, 120);
}

pub(crate) async fn a_bucket_refills_while_it_is_taken_from(store: &Store) {
    let ours = organization(store).await.id;
    let taken_over = |counter, minutes: i64| LimitReport {
        within: minutes * 60 * SECOND,
        ..report(ours, counter, (minutes * 60 - 30) * SECOND)
    };
    // In ten minutes nine and a half minutes' worth: it is full.
    let standing_now = standing(store, taken_over(Uuid::new_v4(), 10)).await;
    assert!(standing_now.used <= 0, "{standing_now:?}");
    // And another as much, in the same time.
    let standing_now = standing(store, taken_over(Uuid::new_v4(), 10)).await;
    assert_used(standing_now, 120);
    // An empty bucket is not filled by what was taken a long while.
    let other = organization(store).await.id;
    let one = Uuid::new_v4();
    standing(store, report(other, one, 60 * SECOND)).await;
    let slow = LimitReport {
        within: 600 * SECOND,
        ..report(other, one, 80 * SECOND)
    };
    assert_used(standing(store, slow).await, 80);
}

pub(crate) async fn nodes_hear_what_others_want(store: &Store) {
    let (ours, other) = (organization(store).await.id, organization(store).await.id);
    let (one, two, three) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let wants = |counter, wanted, took| LimitReport {
        wanted,
        took,
        ..report(ours, counter, 0)
    };
    let first = standing(store, wants(one, 3.0, 0.5)).await;
    assert_eq!((first.others_wanted, first.others_unreported), (0.0, 0));
    standing(
        store,
        LimitReport {
            wanted: 50.0,
            ..report(other, two, 0)
        },
    )
    .await;
    let second = standing(store, wants(two, 1.5, 0.25)).await;
    assert!((second.others_wanted - 3.0).abs() < 1e-9, "{second:?}");
    let third = standing(store, wants(three, 0.0, 0.0)).await;
    assert!((third.others_wanted - 4.5).abs() < 1e-9, "{third:?}");
    assert!(third.others_unreported < 5 * SECOND, "{third:?}");
    // Whoever says nothing for five seconds wants nothing; until then it takes what it took.
    let (mut unreported, mut last) = (0, third);
    while last.others_wanted > 0.0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        last = standing(store, wants(three, 0.0, 0.0)).await;
        unreported = unreported.max(last.others_unreported);
    }
    assert!((SECOND..5 * SECOND).contains(&unreported), "{unreported}");
}

/// A statement that was given up may run late: after the next one.
pub(crate) async fn what_is_told_late_is_passed_over(store: &Store) {
    let ours = organization(store).await.id;
    let one = Uuid::new_v4();
    let now = tell(store, one, &[]).await.now;
    let node = |at| LimitNode {
        at: Some(at),
        ..LimitNode::new(one)
    };
    let told = async |at, spent, wanted| {
        let report = LimitReport {
            wanted,
            ..report(ours, one, spent)
        };
        tell_as(store, node(at), &[report]).await.standings[0]
    };
    assert_used(told(now, 50 * SECOND, 2.0).await, 50);
    assert_used(
        told(now.minus(Duration::from_secs(3)), 30 * SECOND, 7.0).await,
        50,
    );
    let other = standing(store, report(ours, Uuid::new_v4(), 0)).await;
    assert!((other.others_wanted - 2.0).abs() < 1e-9, "{other:?}");
    // Both at one time, and what is told of a time to come is told now.
    assert_used(told(now, 55 * SECOND, 2.0).await, 55);
    assert_used(
        told(now.plus(Duration::from_hours(1)), 60 * SECOND, 2.0).await,
        60,
    );
    assert_used(told(Timestamp::now(), 65 * SECOND, 2.0).await, 65);
}

/// Statements that were given up run all at once when the store goes on.
pub(crate) async fn a_node_tells_many_times_at_once_and_is_believed_once(store: &Store) {
    for _ in 0..10 {
        let ours = organization(store).await.id;
        let one = Uuid::new_v4();
        let mut tasks = JoinSet::new();
        for more in 1..=8 {
            let store = store.clone();
            tasks.spawn(async move {
                tell(&store, one, &[report(ours, one, (20 + more) * SECOND)]).await;
            });
        }
        tasks.join_all().await;
        assert_used(standing(store, report(ours, one, 30 * SECOND)).await, 30);
    }
}

/// While the store is away nobody can renew a word.
pub(crate) async fn words_from_before_the_store_was_away_count(store: &Store) {
    let ours = organization(store).await.id;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let now = tell(store, two, &[]).await.now;
    let before = now.minus(Duration::from_secs(40));
    let at = |id, at| LimitNode {
        at: Some(at),
        ..LimitNode::new(id)
    };
    let word = |counter, spent, within| LimitReport {
        within,
        wanted: 0.5,
        took: 0.5,
        ..report(ours, counter, spent)
    };
    // An empty bucket, of which each takes half of what it refills.
    tell_as(store, at(one, before), &[word(one, 80 * SECOND, 0)]).await;
    tell_as(store, at(two, before), &[word(two, 20 * SECOND, 0)]).await;
    let come_back = |id, away_since| LimitNode {
        at: Some(now),
        away_since,
        ..LimitNode::new(id)
    };
    let reported = word(one, 100 * SECOND, 40 * SECOND);
    let heard = tell_as(store, come_back(one, None), &[reported]).await.standings[0];
    assert_eq!((heard.others_wanted, heard.others_unreported), (0.0, 0));
    assert!(!heard.others_silent);
    let heard = tell_as(store, come_back(one, Some(before)), &[reported]).await;
    assert_eq!(heard.nodes, 2);
    let heard = heard.standings[0];
    assert!((heard.others_wanted - 0.5).abs() < 1e-9, "{heard:?}");
    assert!(heard.others_silent);
    let whole = heard.used + heard.others_unreported;
    assert!(
        (whole - 100 * SECOND).abs() < MEANWHILE,
        "as it was before, on the whole: {heard:?}"
    );
    // Later still, it is from before.
    let long_before = before.minus(LIMIT_WORD_COUNTS * 2);
    let heard = tell_as(
        store,
        come_back(two, Some(long_before)),
        &[word(two, 20 * SECOND, 0)],
    )
    .await;
    let heard = heard.standings[0];
    assert!(
        heard.others_wanted > 0.0 && !heard.others_silent,
        "the other has told: {heard:?}"
    );
    assert_used(
        tell_as(
            store,
            come_back(two, None),
            &[word(two, 40 * SECOND, 40 * SECOND)],
        )
        .await
        .standings[0],
        100,
    );
}

/// One tells often, the other seldom: what the bucket refilled since its last word is there for what it took.
pub(crate) async fn what_refilled_is_there_for_who_tells_later(store: &Store) {
    let ours = organization(store).await.id;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let now = tell(store, one, &[]).await.now;
    let word = |counter, spent, within| LimitReport {
        within,
        wanted: 0.4,
        took: 0.4,
        ..report(ours, counter, spent)
    };
    let ago = |seconds| now.minus(Duration::from_secs(seconds));
    let told = async |id, at: Timestamp, report| {
        let node = LimitNode {
            id,
            at: Some(at),
            away_since: Some(ago(40)),
        };
        tell_as(store, node, &[report]).await.standings[0]
    };
    told(one, ago(40), word(one, 0, 0)).await;
    told(two, ago(40), word(two, 0, 0)).await;
    // One tells often what it takes: less than refills.
    for second in 1..=40 {
        let spent = i64::try_from(second).expect("small") * SECOND * 4 / 10;
        told(one, ago(40 - second), word(one, spent, SECOND)).await;
    }
    // Together they took less than refilled in that time.
    let heard = told(two, now, word(two, 16 * SECOND, 40 * SECOND)).await;
    assert!(heard.used <= SECOND, "{heard:?}");
    // Who has told nothing for a while, though nothing was away, is not waited for.
    let other = organization(store).await.id;
    let of_other = |counter, spent, within| LimitReport {
        organization: other,
        ..word(counter, spent, within)
    };
    let plainly = async |id, at, report| {
        let node = LimitNode {
            at: Some(at),
            ..LimitNode::new(id)
        };
        tell_as(store, node, &[report]).await.standings[0]
    };
    plainly(two, ago(40), of_other(two, 0, 0)).await;
    plainly(one, now, of_other(one, 20 * SECOND, SECOND)).await;
    let heard = plainly(two, now, of_other(two, 16 * SECOND, 40 * SECOND)).await;
    assert_used(heard, 35);
}

pub(crate) async fn nodes_come_and_go(store: &Store) {
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let before = Timestamp::now();
    let heard = tell(store, one, &[]).await;
    assert_eq!(heard.nodes, 1);
    assert!(
        heard.now.since(before) < Duration::from_mins(1),
        "the store's time"
    );
    assert_eq!(tell(store, two, &[]).await.nodes, 2);
    assert_eq!(tell(store, one, &[]).await.nodes, 2);
    store.limits.leave_limits(two).await.unwrap();
    assert_eq!(tell(store, one, &[]).await.nodes, 1);
}

pub(crate) async fn nodes_tell_at_once_and_nothing_is_lost(store: &Store) {
    let mut organizations = Vec::new();
    for _ in 0..40 {
        organizations.push(organization(store).await.id);
    }
    organizations.sort_unstable();
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let (store, organizations, counter) = (store.clone(), organizations.clone(), Uuid::new_v4());
        tasks.spawn(async move {
            for round in 1..=5 {
                let reports: Vec<LimitReport> = organizations
                    .iter()
                    .map(|organization| report(*organization, counter, round * 4 * SECOND))
                    .collect();
                tell(&store, counter, &reports).await;
            }
        });
    }
    tasks.join_all().await;
    let last: Vec<LimitReport> = organizations
        .iter()
        .map(|organization| report(*organization, Uuid::new_v4(), 0))
        .collect();
    for standing in tell(store, Uuid::new_v4(), &last).await.standings {
        assert_used(standing, 6 * 20);
    }
}

pub(crate) async fn usage_is_added_up(store: &Store) {
    let (ours, other) = (organization(store).await.id, organization(store).await.id);
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let hour = Timestamp::now().seconds() / 3_600;
    let counted = |organization, hour, accepted, refused| UsageReport {
        organization,
        hour,
        counts: UsageCounts { accepted, refused },
    };
    let write = async |node, reports: &[UsageReport]| {
        store.limits.write_usage(node, reports).await.unwrap();
    };
    write(
        one,
        &[
            counted(ours, hour - 1, 7, 0),
            counted(ours, hour, 1, 2),
            counted(other, hour, 100, 0),
        ],
    )
    .await;
    // It goes on counting, and may write the same twice.
    for _ in 0..2 {
        write(one, &[counted(ours, hour, 5, 3)]).await;
    }
    write(two, &[counted(ours, hour, 10, 0)]).await;
    let of = |accepted, refused| UsageCounts { accepted, refused };
    let read = async |first, last| store.limits.usage(ours, first, last).await.unwrap();
    let usage = read(hour - 10, hour).await;
    assert_eq!(usage.hours, [(hour - 1, of(7, 0)), (hour, of(15, 3))]);
    assert_eq!(usage.used, Duration::ZERO);
    assert_eq!(read(hour, hour).await.hours, [(hour, of(15, 3))]);
    assert_eq!(read(hour - 10, hour - 2).await.hours, []);
    standing(store, report(ours, one, 30 * SECOND)).await;
    let used = read(hour, hour).await.used;
    assert!(
        used <= Duration::from_secs(30) && used > Duration::from_secs(10),
        "{used:?}"
    );
    // It is kept for a month.
    let kept = i64::try_from(USAGE_KEPT.as_secs() / 3_600).unwrap();
    write(
        one,
        &[
            counted(ours, hour - kept - 1, 1, 0),
            counted(ours, hour - kept + 1, 2, 0),
        ],
    )
    .await;
    store.keeper.keep(Duration::from_hours(24)).await.unwrap();
    let hours = read(0, hour).await.hours;
    assert_eq!(
        hours,
        [
            (hour - kept + 1, of(2, 0)),
            (hour - 1, of(7, 0)),
            (hour, of(15, 3))
        ]
    );
}
