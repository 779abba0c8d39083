//! A thousand subscribers, of whom one is dead, or all but one.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use harness::{Client, Link, Proxy, Receiver, Reply, World, eventually};
use serde_json::json;

use crate::deployment::{Deployment, RECOVERY};

const SUBSCRIBERS: usize = 1_000;
/// How many of them an event goes to.
const GROUP: usize = 10;
/// How long the healthy may wait for theirs.
const HEALTHY_WITHIN: Duration = Duration::from_secs(15);
/// How long all may take once the dead are alive again: each was found failing, and is probed with pauses.
const AFTERWARDS: Duration = Duration::from_secs(75);

/// The organization that has them.
pub struct Crowd {
    client: Client,
    /// The way to all but the last.
    link: Proxy,
    /// How many events each has been sent.
    rounds: usize,
}

impl Crowd {
    pub async fn subscribe(world: &World, receiver: &Receiver) -> Self {
        let client = world.organization().await;
        let link = Proxy::start(receiver.address()).await;
        let through = link.address();
        stream::iter(0..SUBSCRIBERS)
            .map(Ok::<_, ()>)
            .try_for_each_concurrent(16, async |number| {
                let url = if number + 1 == SUBSCRIBERS {
                    receiver.url(&path(number))
                } else {
                    format!("http://{through}{}", path(number))
                };
                let group = format!("crowd.{}", number / GROUP);
                client
                    .subscribe(&json!({
                        "url": url,
                        "event_types": [group],
                        "timeout_ms": 1_000,
                        "retry_schedule_seconds": [1, 1, 2, 2, 5, 5, 5, 5, 10, 10, 10, 10, 10, 10],
                    }))
                    .await;
                Ok(())
            })
            .await
            .expect("nothing fails but by panicking");
        Self {
            client,
            link,
            rounds: 0,
        }
    }

    /// Posts an event for each of them.
    async fn post(&mut self) {
        stream::iter(0..SUBSCRIBERS / GROUP)
            .for_each_concurrent(8, async |group| {
                self.client.event(&format!("crowd.{group}")).await;
            })
            .await;
        self.rounds += 1;
    }

    /// How many of these have all that they were sent.
    fn served(&self, receiver: &Receiver, which: std::ops::Range<usize>) -> usize {
        which
            .filter(|number| receiver.count(&path(*number)) >= self.rounds)
            .count()
    }

    async fn all_served(&self, receiver: &Receiver, which: std::ops::Range<usize>, within: Duration) {
        let wanted = which.len();
        eventually("they are served", within, async || {
            let served = self.served(receiver, which.clone());
            if served == wanted {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            Err(format!("{served} of {wanted} are"))
        })
        .await;
    }
}

fn path(number: usize) -> String {
    format!("/crowd/{number}")
}

/// The first never answers: all others get theirs.
pub async fn one_dead(deployment: &mut Deployment) {
    let mut crowd = gather(deployment).await;
    deployment.receiver.always(&path(0), Reply::Hang);
    crowd.post().await;
    crowd
        .all_served(&deployment.receiver, 1..SUBSCRIBERS, HEALTHY_WITHIN)
        .await;
    deployment.crowd = Some(crowd);
}

/// All but the last are dead: by the seed their connections are refused, reset, or never answered.
pub async fn all_dead_but_one(deployment: &mut Deployment) {
    let mut crowd = gather(deployment).await;
    let how = [Link::Refusing, Link::Reset, Link::Silent];
    crowd
        .link
        .set(how[rand::RngExt::random_range(&mut deployment.rng, 0..how.len())]);
    crowd.post().await;
    crowd
        .all_served(&deployment.receiver, SUBSCRIBERS - 1..SUBSCRIBERS, HEALTHY_WITHIN)
        .await;
    deployment.crowd = Some(crowd);
}

pub fn revive(deployment: &Deployment) {
    deployment.receiver.always(&path(0), Reply::Status(200));
    if let Some(crowd) = &deployment.crowd {
        crowd.link.set(Link::Open);
    }
}

/// Everybody has everything.
pub async fn has_all(deployment: &Deployment) {
    let crowd = deployment.crowd.as_ref().expect("there is a crowd");
    crowd
        .all_served(&deployment.receiver, 0..SUBSCRIBERS, AFTERWARDS)
        .await;
}

async fn gather(deployment: &mut Deployment) -> Crowd {
    match deployment.crowd.take() {
        Some(crowd) => crowd,
        None => tokio::time::timeout(
            RECOVERY,
            Crowd::subscribe(&deployment.world, &deployment.receiver),
        )
        .await
        .expect("a thousand subscriptions are made within a minute"),
    }
}
