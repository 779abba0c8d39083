//! What the store is told of subscriptions that fail, in a real store.

use shared::{announcement, store::SubscriptionPatch};

use super::*;
use crate::real_store::RealStore;

const FIVE_DAYS: Duration = Duration::from_hours(5 * 24);

struct World {
    real: RealStore,
    of: shared::Subscription,
}

impl World {
    async fn new() -> Self {
        let real = RealStore::open().await;
        let of = real.subscription().await;
        Self { real, of }
    }

    fn went(&self, well: bool) -> Went {
        Went {
            organization: self.of.organization,
            subscription: self.of.id,
            version: self.of.version,
            well,
            begets: true,
        }
    }

    async fn note(&self, failing: &mut Failing, wells: &[bool]) {
        let went: Vec<Went> = wells.iter().map(|well| self.went(*well)).collect();
        failing.note(&self.real.store, &went).await;
    }

    fn attempt(&self, at: At) -> Went {
        Went {
            begets: at.begets,
            ..self.went(at.well)
        }
    }

    async fn note_attempt(&self, failing: &mut Failing, at: At) {
        failing.note(&self.real.store, &[self.attempt(at)]).await;
    }

    /// The types of what is announced.
    async fn announced(&self) -> Vec<String> {
        let waiting = self.real.store.announcements.announcements(10).await.unwrap();
        waiting.into_iter().map(|one| one.event_type).collect()
    }

    /// Whether the subscription counts as failing; asking ends that.
    async fn fails(&self) -> bool {
        let ended = self.real.store.announcements.succeeded(&[self.of.id]).await;
        !ended.unwrap().is_empty()
    }

    async fn enabled(&self) -> bool {
        let subscriptions = &self.real.store.subscriptions;
        let read = subscriptions.get(self.of.organization, self.of.id).await;
        read.unwrap().unwrap().enabled
    }
}

#[tokio::test]
async fn failing_begins_and_ends() {
    let world = World::new().await;
    let mut failing = Failing::new(FIVE_DAYS);
    world.note(&mut failing, &[false]).await;
    assert!(world.fails().await);
    world.note(&mut failing, &[false]).await;
    assert!(!world.fails().await, "the store was told a moment ago");
    let mut failing = Failing::new(FIVE_DAYS);
    world.note(&mut failing, &[false]).await;
    world.note(&mut failing, &[true]).await;
    assert!(!world.fails().await);
    world.note(&mut failing, &[false]).await;
    assert!(world.fails().await);
}

/// What has failed for long enough, and then succeeds once among failures, has not failed for so long.
#[tokio::test]
async fn a_success_among_failures_counts() {
    for batches in [
        &[&[true, false][..]][..],
        &[&[true], &[false]],
        &[&[false, true, false]],
    ] {
        let world = World::new().await;
        let after = Duration::from_millis(200);
        let mut failing = Failing::new(after);
        world.note(&mut failing, &[false]).await;
        tokio::time::sleep(after).await;
        for batch in batches {
            world.note(&mut failing, batch).await;
        }
        assert!(world.enabled().await, "{batches:?}");
        assert!(world.fails().await, "{batches:?}");
    }
}

/// Two workers: what one writes while the other remembers a success, the other's next success ends, if a little later.
#[tokio::test]
async fn a_success_in_another_worker_is_not_lost() {
    let world = World::new().await;
    let store = &world.real.store;
    let (mut one, mut other) = (Failing::new(FIVE_DAYS), Failing::new(FIVE_DAYS));
    world.note(&mut one, &[true]).await;
    world.note(&mut other, &[false]).await;
    world.note(&mut one, &[true]).await;
    one.settle(store, Duration::ZERO).await;
    assert!(!world.fails().await);

    // And at once where a failure follows: it fails since then.
    let mut third = Failing::new(FIVE_DAYS);
    world.note(&mut third, &[false]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.note(&mut one, &[true]).await;
    world.note(&mut one, &[false]).await;
    let ages = store.announcements.failed(&[world.went(false).failed()]).await;
    assert!(ages.unwrap()[0].1 < Duration::from_millis(800));
}

/// What was sent to a URL that the subscription has no more says nothing of the one that it has now.
#[tokio::test]
async fn an_attempt_at_what_was_is_not_counted() {
    let world = World::new().await;
    let patch = SubscriptionPatch {
        description: Some(None),
        ..SubscriptionPatch::default()
    };
    let subscriptions = &world.real.store.subscriptions;
    subscriptions
        .patch(world.of.organization, world.of.id, world.of.version, patch)
        .await
        .unwrap();
    world.note(&mut Failing::new(FIVE_DAYS), &[false]).await;
    assert!(!world.fails().await);
}

/// How an attempt at an event of the system's own went, if it `begets` none, or at another.
#[derive(Clone, Copy)]
struct At {
    well: bool,
    begets: bool,
}

const fn at(well: bool, begets: bool) -> At {
    At { well, begets }
}

/// What only the system's own events tell begets no other; and one event among many is enough.
#[tokio::test]
async fn what_the_systems_own_events_tell_is_not_announced() {
    let (disabled, recovered) = (announcement::DISABLED, announcement::RECOVERED);
    for (first, then, expected) in [
        (at(false, false), at(false, false), None),
        (at(false, true), at(false, false), Some(disabled)),
        (at(false, false), at(false, true), Some(disabled)),
        (at(false, false), at(true, false), None),
        (at(false, true), at(true, false), Some(recovered)),
        (at(false, false), at(true, true), Some(recovered)),
    ] {
        // In one worker; and where another goes on, or the same once it was restarted.
        for others in [false, true] {
            let world = World::new().await;
            world.real.listener().await;
            let after = Duration::from_millis(200);
            let mut failing = Failing::new(after);
            world.note_attempt(&mut failing, first).await;
            tokio::time::sleep(after).await;
            if others {
                failing = Failing::new(after);
            }
            world.note_attempt(&mut failing, then).await;
            assert_eq!(world.announced().await, Vec::from_iter(expected), "{others}");
        }
    }
}

/// What one worker tells of an ordinary event holds for what another does with those of the system's own; also if it has just told
/// of one of those itself.
#[tokio::test]
async fn what_begets_is_known_to_all_workers() {
    for (well, expected) in [(false, announcement::DISABLED), (true, announcement::RECOVERED)] {
        let world = World::new().await;
        world.real.listener().await;
        let after = Duration::from_secs(1);
        let (mut one, mut other) = (Failing::new(after), Failing::new(after));
        world.note_attempt(&mut one, at(false, false)).await;
        world.note_attempt(&mut other, at(false, false)).await;
        world.note_attempt(&mut one, at(false, true)).await;
        tokio::time::sleep(after).await;
        world.note_attempt(&mut other, at(well, false)).await;
        assert_eq!(world.announced().await, [expected]);
    }
}

/// An ordinary event that fails just before one of the system's own succeeds is not forgotten either.
#[tokio::test]
async fn what_recovers_has_failed_before() {
    let world = World::new().await;
    world.real.listener().await;
    let after = Duration::from_millis(200);
    let mut failing = Failing::new(after);
    world.note_attempt(&mut failing, at(false, false)).await;
    tokio::time::sleep(after).await;
    let went = [at(false, true), at(true, false)].map(|attempt| world.attempt(attempt));
    failing.note(&world.real.store, &went).await;
    assert_eq!(world.announced().await, [announcement::RECOVERED]);
}
