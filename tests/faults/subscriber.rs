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

/// The kinds of failures, one of which must be recorded; none where what arrives is recorded as delivered.
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
        Fault::SubscriberHangs | Fault::SubscriberDrips => "no answer's head within 1000 ms",
        Fault::DnsHangs => "the host's name did not resolve%",
        _ => "%",
    }
}

/// The status that each of those attempts was answered with.
fn status(fault: Fault) -> Option<i32> {
    (fault == Fault::SubscriberRedirects).then_some(307)
}

pub async fn inject(fault: Fault, deployment: &mut Deployment) {
    deployment.marks.target = match fault {
        Fault::SubscriberMoves => deployment.target_links[1].taken(),
        _ => failed(deployment, fault).await,
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
            for worker in &deployment.workers {
                deployment.told.move_host(worker, 2);
            }
            deployment.target_links[0].set(Link::Refusing);
        }
    }
    deployment.marks.target_received = deployment.receiver.count(&path(deployment));
}

/// The fault was one, and is recorded as what it was: an attempt as failed in its way, or as delivered all the same, by the new
/// address where there is one.
pub async fn shows(fault: Fault, deployment: &Deployment) {
    let what = format!("{} shows", fault.name());
    eventually(&what, AGAIN, async || {
        let recorded = match fault {
            Fault::SubscriberMoves => {
                let taken = deployment.target_links[1].taken();
                taken > deployment.marks.target && delivered(deployment).await
            }
            Fault::SubscriberAnswersHugely => delivered(deployment).await,
            _ => failed(deployment, fault).await > deployment.marks.target,
        };
        if recorded {
            Ok(())
        } else {
            Err("no attempt does".into())
        }
    })
    .await;
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
    let subscription = format!("/v1/subscriptions/{}", deployment.target);
    let client = deployment.second().client();
    client
        .patch(&subscription, &json!({"url": url}))
        .await
        .expect(200);
}

/// Whether something that has arrived at the target since the fault began is recorded as delivered.
async fn delivered(deployment: &Deployment) -> bool {
    let received = deployment.receiver.ids(&path(deployment));
    let since = &received[deployment.marks.target_received..];
    let mut database = deployment.sql().await;
    query_scalar(
        "SELECT EXISTS (SELECT FROM deliveries WHERE subscription_id = $1 AND event_id = ANY($2)
             AND state = 'delivered' AND status_code = 200)",
    )
    .bind(uuid_of(&deployment.target))
    .bind(since.iter().map(|id| uuid_of(id)).collect::<Vec<_>>())
    .fetch_one(&mut database)
    .await
    .expect("the table is there")
}

/// How many attempts at the target have failed as the fault lets them, and say so.
async fn failed(deployment: &Deployment, fault: Fault) -> u64 {
    let kinds: Vec<String> = kinds(fault).iter().map(|kind| (*kind).to_owned()).collect();
    let subscription: Uuid = uuid_of(&deployment.target);
    let mut database = deployment.sql().await;
    let count: i64 = query_scalar(
        "SELECT count(*) FROM attempts WHERE subscription_id = $1 AND failure = ANY($2) AND detail LIKE $3
             AND ($4::integer IS NULL OR status_code = $4)",
    )
    .bind(subscription)
    .bind(kinds)
    .bind(detail(fault))
    .bind(status(fault))
    .fetch_one(&mut database)
    .await
    .expect("the table is there");
    u64::try_from(count).expect("a count")
}
