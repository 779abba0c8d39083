//! What lanes do whatever happens.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use shared::{OrganizationId, Timestamp};

use super::{health::REMEMBERED, *};
use crate::lease::Holding;

pub(super) fn job(subscription: SubscriptionId, worker: WorkerId) -> Job {
    job_of(subscription, worker, Bytes::from_static(b"{}"))
}

/// What a small delivery weighs.
pub(super) const SMALL: usize = 1_024;

pub(super) fn job_of(subscription: SubscriptionId, worker: WorkerId, payload: Bytes) -> Job {
    let event = EventBody {
        id: EventId::new(),
        event_type: "a".into(),
        received_at: Timestamp::now(),
        occurred_at: None,
        source: None,
        trace: None,
        payload,
    };
    Job {
        key: DeliveryKey {
            event: event.id,
            subscription,
        },
        organization: OrganizationId::new(),
        attempts: 0,
        attempts_before: 0,
        in_order: false,
        event: Arc::new(event),
        holding: Holding::new(worker, Instant::now()),
        since: Instant::now(),
    }
}

pub(super) fn terms(max_in_flight: usize) -> Terms {
    Terms {
        organization: OrganizationId::from_uuid(uuid::Uuid::nil()),
        max_in_flight,
        rate_per_second: None,
        in_order: false,
        solo: false,
        version: 1,
        subscriber: Subscriber::numbered(1),
    }
}

/// By that version it is another who is sent to.
pub(super) fn another(terms: Terms, version: i64) -> Terms {
    Terms {
        version,
        subscriber: Subscriber::numbered(version),
        ..terms
    }
}

const FAILED: Ending = Ending::Failed { timed_out: false };

/// The lanes with a clock that moves only when it is told to.
pub(super) struct Timed {
    pub(super) lanes: Lanes,
    pub(super) now: Instant,
}

impl Timed {
    pub(super) fn new(in_flight: usize, lane: usize, total: usize) -> Self {
        Self {
            lanes: lanes(in_flight, lane, total),
            now: Instant::now(),
        }
    }

    pub(super) fn put(&mut self, subscription: SubscriptionId, terms: Terms, count: usize) {
        for _ in 0..count {
            assert!(self.lanes.reserve(subscription, terms, SMALL, self.now));
            self.lanes.push(job(subscription, WorkerId::new()), self.now);
        }
    }

    pub(super) fn send_all(&mut self) -> Vec<Place> {
        std::iter::from_fn(|| self.lanes.next(self.now))
            .map(|(_, place)| place)
            .collect()
    }

    pub(super) fn end(&mut self, place: &Place, ending: Ending) -> Finished {
        self.lanes.finished(place, ending, self.now, 0.5)
    }
}

fn lanes(in_flight: usize, lane: usize, total: usize) -> Lanes {
    Lanes::new(Bounds {
        in_flight,
        in_flight_bytes: usize::MAX,
        lane,
        total,
        bytes: usize::MAX,
    })
}

#[test]
fn lanes_take_turns_within_their_limits() {
    let (slow, other) = (SubscriptionId::new(), SubscriptionId::new());
    let mut world = Timed::new(3, 100, 100);
    for subscription in [slow, slow, slow, slow, other] {
        world.put(subscription, terms(2), 1);
    }
    let sent = world.send_all();
    let order: Vec<_> = sent.iter().map(Place::subscription).collect();
    assert_eq!(
        order,
        [slow, other, slow],
        "the pool holds three, and the slow lane two"
    );
    world.end(&sent[1], Ending::Delivered);
    assert!(world.send_all().is_empty(), "the slow lane is at its limit");
    world.end(&sent[0], Ending::Delivered);
    assert_eq!(world.send_all()[0].subscription(), slow);
}

#[test]
fn what_finds_no_room_makes_the_lane_hungry_until_it_is_fed() {
    let subscription = SubscriptionId::new();
    let mut world = Timed::new(10, 2, 100);
    world.put(subscription, terms(1), 2);
    assert!(!world.lanes.reserve(subscription, terms(1), SMALL, world.now));
    let sent = world.send_all();
    assert_eq!(sent.len(), 1, "one at a time");
    assert!(
        !world.lanes.reserve(subscription, terms(1), SMALL, world.now),
        "what waits in the store goes first"
    );
    assert!(
        world.end(&sent[0], Ending::Delivered).feed,
        "half is free: feed it"
    );
    assert_eq!(world.lanes.reserve_many(subscription, terms(1), 50, world.now), 1);
    world.lanes.unreserve(subscription, 1);
    world.lanes.set_hungry(subscription, false);
    assert!(world.lanes.reserve(subscription, terms(1), SMALL, world.now));
}

#[test]
fn once_closed_all_that_waits_and_all_that_comes_goes_back() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    world.put(lane, terms(2), 5);
    let sent = world.send_all();
    assert_eq!(world.lanes.reserve_many(lane, terms(2), 2, world.now), 2);
    assert_eq!(world.lanes.close().len(), 3);
    assert!(!world.lanes.reserve(lane, terms(2), SMALL, world.now));
    assert_eq!(world.lanes.reserve_many(lane, terms(2), 2, world.now), 0);
    for _ in 0..2 {
        world.lanes.push(job(lane, WorkerId::new()), world.now);
    }
    assert_eq!(world.lanes.take_strays().len(), 2, "those on their way, too");
    assert_eq!(world.lanes.is_quiet(lane, world.now), Some(false));
    for place in sent {
        assert!(!world.end(&place, Ending::Delivered).feed);
    }
    assert_ne!(world.lanes.is_quiet(lane, world.now), Some(false));
    assert_eq!((world.lanes.held, world.lanes.bytes), (0, 0));
}

#[test]
fn a_lane_is_not_quiet_before_its_rate_lets_another_worker_send() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    let rated = Terms {
        rate_per_second: Some(1),
        ..terms(16)
    };
    world.put(lane, rated, 1);
    let place = world.send_all().remove(0);
    world.end(&place, Ending::Delivered);
    assert_eq!(world.lanes.is_quiet(lane, world.now), Some(false));
    world.now += Duration::from_secs(1);
    assert_eq!(world.lanes.is_quiet(lane, world.now), Some(true));
}

#[test]
fn attempts_under_way_are_bounded_by_bytes() {
    let (large, small, me) = (SubscriptionId::new(), SubscriptionId::new(), WorkerId::new());
    let mut world = Timed::new(100, 100, 100);
    world.lanes.bounds.in_flight_bytes = 2_000;
    for _ in 0..3 {
        assert!(world.lanes.reserve(large, terms(50), SMALL, world.now));
        world
            .lanes
            .push(job_of(large, me, Bytes::from(vec![b'1'; 2_000])), world.now);
        world.put(small, terms(50), 1);
    }
    let first = world.send_all();
    assert_eq!(
        first.len(),
        1,
        "one that is larger than the bound can be sent, and nothing beside it"
    );
    assert_eq!(first[0].subscription(), large);
    world.end(&first[0], Ending::Delivered);
    let sent = world.send_all();
    let order: Vec<_> = sent.iter().map(Place::subscription).collect();
    assert_eq!(order, [small, large], "a small one leaves room for one more");
    for place in sent {
        world.end(&place, Ending::Delivered);
    }
    let mut left = 0;
    while let Some((_, place)) = world.lanes.next(world.now) {
        world.end(&place, Ending::Delivered);
        left += 1;
    }
    assert_eq!(left, 3, "what had to wait is sent");
    assert_eq!(
        (world.lanes.load(), world.lanes.trusted),
        (Load::default(), Pool::default())
    );
}

#[test]
fn however_many_hang_the_others_have_their_pool() {
    let hanging: Vec<_> = (0..16).map(|_| SubscriptionId::new()).collect();
    let healthy = SubscriptionId::new();
    let mut world = Timed::new(4, 100, 100);
    for subscription in &hanging {
        world.put(*subscription, terms(2), 2);
    }
    let mut slow = Vec::new();
    for second in 0..4 {
        let mut sent = world.send_all();
        assert_eq!(
            sent.len(),
            4,
            "in second {second} those are tried that have not been slow yet"
        );
        for place in &mut sent {
            world.lanes.turned_slow(place);
        }
        slow.extend(sent);
    }
    assert!(
        world.send_all().is_empty(),
        "all were slow: they wait for places among the suspect"
    );
    world.put(healthy, terms(10), 4);
    let sent = world.send_all();
    assert_eq!(sent.len(), 4, "all of the trusted pool is there for it");
    assert_eq!(
        (world.lanes.load().trusted, world.lanes.load().suspect),
        (4, 16),
        "what turned slow may bring the suspect pool to four times its size, and no further"
    );
    for mut place in sent {
        world.lanes.turned_slow(&mut place);
        assert_eq!(place.pool, In::Trusted);
        world.end(&place, Ending::Delivered);
    }
    for place in &slow {
        world.end(place, Ending::Failed { timed_out: true });
    }
    let left = world.send_all();
    assert!(left.iter().all(|place| place.pool == In::Suspect) && left.len() == 4);
}

#[test]
fn a_lane_that_answers_quickly_again_is_trusted_again() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(4, 100, 100);
    world.put(lane, terms(1), 3);
    let mut place = world.send_all().remove(0);
    world.lanes.turned_slow(&mut place);
    world.end(&place, Ending::Delivered);
    let place = world.send_all().remove(0);
    assert_eq!(place.pool, In::Suspect);
    world.end(&place, Ending::Delivered);
    assert_eq!(world.send_all()[0].pool, In::Trusted);
}

#[test]
fn an_open_circuit_holds_nothing_but_its_probe() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(16), 50);
    let mut given_back = 0;
    for place in &world.send_all() {
        given_back += world.end(place, FAILED).put_off.len();
    }
    assert_eq!(
        (given_back, world.lanes.load().open_circuits),
        (0, 1),
        "a second is soon over"
    );
    // A probe that fails puts it off for longer than is worth waiting for.
    world.now += Duration::from_secs(1);
    assert!(world.lanes.rouse(world.now).is_empty());
    let probe = world.send_all();
    assert_eq!(probe.len(), 1);
    assert_eq!(world.end(&probe[0], FAILED).put_off.len(), 33);
    assert!(
        !world.lanes.reserve(lane, terms(16), SMALL, world.now),
        "what comes meanwhile stays in the store"
    );
    assert_eq!(world.lanes.reserve_many(lane, terms(16), 100, world.now), 0);
    assert!(world.lanes.rouse(world.now).is_empty(), "nor is it fed");
    world.now += Duration::from_secs(2);
    assert_eq!(
        world.lanes.rouse(world.now),
        [lane],
        "until its next probe is due"
    );
    assert_eq!(world.lanes.reserve_many(lane, terms(16), 100, world.now), 1);
    world.lanes.push(job(lane, WorkerId::new()), world.now);
    let probe = world.send_all();
    let finished = world.end(&probe[0], Ending::Delivered);
    assert_eq!(finished.circuit, Some(CircuitState::Closed));
    assert!(finished.feed, "and then it is fed");
    assert_eq!(world.lanes.reserve_many(lane, terms(16), 80, world.now), 80);
    for _ in 0..80 {
        world.lanes.push(job(lane, WorkerId::new()), world.now);
    }
    assert_eq!(world.send_all().len(), 2, "it starts slowly");
}

#[test]
fn a_subscription_that_has_changed_is_tried_at_once() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(16), 30);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    assert!(world.send_all().is_empty());
    world.lanes.set_terms(lane, terms(16), world.now);
    assert!(world.send_all().is_empty(), "it is the same subscriber");
    let changed = another(terms(16), 2);
    world.lanes.set_terms(lane, changed, world.now);
    assert_eq!(
        (world.send_all().len(), world.lanes.load().open_circuits),
        (14, 0)
    );
}

#[test]
fn a_subscriber_that_asks_for_time_is_left_alone_for_that_long() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(1), 5);
    let place = world.send_all().remove(0);
    let finished = world.end(&place, Ending::AskedToWait(Duration::from_secs(30)));
    assert_eq!(finished.put_off.len(), 4, "the lane, not just the delivery");
    world.now += Duration::from_millis(28_499);
    assert!(world.lanes.rouse(world.now).is_empty());
    world.now += Duration::from_millis(1);
    assert_eq!(world.lanes.rouse(world.now), [lane], "it is fed a moment before");
    assert_eq!(world.lanes.reserve_many(lane, terms(1), 1, world.now), 1);
    world.lanes.push(job(lane, WorkerId::new()), world.now);
    assert!(world.send_all().is_empty());
    world.now = world.lanes.next_alarm().expect("it has a time");
    world.lanes.rouse(world.now);
    assert_eq!(world.send_all().len(), 1);
}

#[test]
fn a_subscriber_that_is_never_available_is_only_probed_whatever_time_it_asks_for() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    let (end, mut attempts) = (world.now + Duration::from_hours(1), 0);
    let unavailable = Ending::Unavailable {
        timed_out: false,
        pause: Duration::from_secs(1),
    };
    while world.now < end {
        let room = world.lanes.reserve_many(lane, terms(16), 16, world.now);
        world.lanes.set_hungry(lane, true);
        for _ in 0..room {
            world.lanes.push(job(lane, WorkerId::new()), world.now);
        }
        for place in world.send_all() {
            attempts += 1;
            world.end(&place, unavailable);
        }
        world.now += Duration::from_millis(500);
        world.lanes.rouse(world.now);
    }
    assert!(attempts < 50, "{attempts} attempts in an hour");
}

#[test]
fn a_lane_keeps_to_its_rate_also_when_it_was_empty_meanwhile() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    let terms = Terms {
        rate_per_second: Some(2),
        ..terms(16)
    };
    world.put(lane, terms, 1);
    let place = world.send_all().remove(0);
    world.end(&place, Ending::Delivered);
    world.lanes.forget_old(world.now);
    world.put(lane, terms, 3);
    assert!(world.send_all().is_empty());
    assert_eq!(
        world.lanes.next_alarm(),
        Some(world.now + Duration::from_millis(500))
    );
    for _ in 0..3 {
        world.now = world.lanes.next_alarm().unwrap();
        world.lanes.rouse(world.now);
        assert_eq!(world.send_all().len(), 1);
    }
}

#[test]
fn what_is_forgotten_was_of_no_use() {
    let (lane, spotless) = (SubscriptionId::new(), SubscriptionId::new());
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(16), 10);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    world.put(spotless, terms(16), 1);
    let place = world.send_all().remove(0);
    world.end(&place, Ending::Delivered);
    world.now += Duration::from_mins(1);
    world.lanes.forget_old(world.now);
    assert_eq!(
        world.lanes.load(),
        Load {
            open_circuits: 1,
            ..Load::default()
        },
        "an open circuit is remembered for a while, and is no lane that has something to send"
    );
    let opened = world.lanes.opened_circuits();
    assert!(opened.len() == 1 && opened[0].subscription == lane);
    assert_eq!(
        world.lanes.reserve_many(lane, terms(16), 10, world.now),
        1,
        "a probe"
    );
    world.lanes.unreserve(lane, 1);
    world.now += REMEMBERED;
    world.lanes.forget_old(world.now);
    assert_eq!(world.lanes.load(), Load::default());
}

/// The scheduler looks over the lanes while time goes by.
fn pass(world: &mut Timed, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        world.now += Duration::from_secs(3);
        world.lanes.forget_old(world.now);
    }
}

#[test]
fn a_subscriber_that_hangs_at_one_event_a_minute_opens_its_circuit_all_the_same() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    for event in 0..3 {
        assert_eq!(world.lanes.load().open_circuits, 0);
        world.put(lane, terms(16), 1);
        let mut place = world.send_all().remove(0);
        assert_eq!(place.is_trusted(), event == 0, "it is trusted once");
        world.now += SLOW;
        world.lanes.turned_slow(&mut place);
        world.now += Duration::from_secs(14);
        world.end(&place, Ending::Failed { timed_out: true });
        pass(&mut world, Duration::from_secs(45));
    }
    assert_eq!(world.lanes.load().open_circuits, 1);
}

#[test]
fn failures_that_are_minutes_apart_are_in_a_row() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    for _ in 0..10 {
        assert_eq!(world.lanes.load().open_circuits, 0);
        world.put(lane, terms(16), 1);
        let place = world.send_all().remove(0);
        world.end(&place, FAILED);
        pass(&mut world, Duration::from_mins(5));
    }
    assert_eq!(world.lanes.load().open_circuits, 1);
}

#[test]
fn a_lane_that_starts_slowly_goes_on_so_after_a_moment_with_nothing_to_send() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(16), 10);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    world.now += Duration::from_secs(2);
    world.put(lane, terms(16), 1);
    let probe = world.send_all().remove(0);
    assert_eq!(
        world.end(&probe, Ending::Delivered).circuit,
        Some(CircuitState::Closed)
    );
    pass(&mut world, Duration::from_mins(1));
    world.put(lane, terms(16), 10);
    assert_eq!(world.send_all().len(), 2);
}

#[test]
fn a_change_makes_forgotten_what_was_known_of_a_subscriber_without_a_lane() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    world.put(lane, terms(16), 10);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    world.lanes.set_terms(lane, terms(16), world.now);
    assert_eq!(world.lanes.load().open_circuits, 1, "nothing has changed");
    let changed = another(terms(16), 2);
    world.lanes.set_terms(lane, changed, world.now);
    assert_eq!(world.lanes.load(), Load::default());
    world.put(lane, changed, 10);
    let sent = world.send_all();
    assert!(sent.len() == 10 && sent.iter().all(Place::is_trusted));
}

/// A plan may be by an earlier version than the one that is known, as after secrets were sealed anew.
#[test]
fn a_plan_by_an_earlier_version_makes_nothing_forgotten() {
    let lane = SubscriptionId::new();
    let mut world = Timed::new(100, 100, 100);
    let changed = another(terms(16), 2);
    world.put(lane, changed, 10);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    world.now += Duration::from_secs(2);
    world.put(lane, terms(16), 1);
    world.lanes.set_terms(lane, changed, world.now);
    assert_eq!(world.lanes.load().open_circuits, 1);
}

proptest! {
    /// Whatever happens in whatever order, the counts are those of what is there, the bounds hold, all room that was
    /// promised is given back, and no lane that can send is forgotten.
    #[test]
    fn counts_add_up(steps in prop::collection::vec((0usize..17, 0usize..4, 0u64..3_000), 1..400)) {
        let subscriptions: Vec<_> = (0..4).map(|_| SubscriptionId::new()).collect();
        let (me, old) = (WorkerId::new(), WorkerId::new());
        let one = job(subscriptions[0], me).weight();
        let mut world = Timed::new(5, 6, 12);
        world.lanes.bounds.bytes = 20 * 1_024;
        world.lanes.weighs = one;
        world.lanes.bounds.in_flight_bytes = 3 * one + 1;
        let mut reserved: Vec<SubscriptionId> = Vec::new();
        let mut sending: Vec<Place> = Vec::new();
        let mut versions = [1; 4];
        for (step, which, millis) in steps {
            let subscription = subscriptions[which];
            let rate_per_second = (which == 3).then_some(5);
            let terms = another(Terms { rate_per_second, ..terms(2) }, versions[which]);
            let (lanes, now) = (&mut world.lanes, world.now);
            match step {
                0 | 1 => if lanes.reserve(subscription, terms, SMALL, now) { reserved.push(subscription) },
                2 | 3 => if let Some(subscription) = reserved.pop() {
                    lanes.push(job(subscription, if which == 0 { old } else { me }), now);
                },
                4 | 5 => if let Some((_, place)) = lanes.next(now) { sending.push(place) },
                6..=9 => if let Some(place) = (which < sending.len()).then(|| sending.swap_remove(which)) {
                    let ending = match step {
                        6 => Ending::Delivered,
                        7 => Ending::Failed { timed_out: which % 2 == 0 },
                        8 if which % 2 == 0 => Ending::AskedToWait(Duration::from_millis(millis)),
                        8 => Ending::Unavailable { timed_out: false, pause: Duration::from_millis(millis) },
                        _ => Ending::NotMade,
                    };
                    lanes.finished(&place, ending, now, 0.5);
                },
                10 => if let Some(subscription) = reserved.pop() { lanes.unreserve(subscription, 1) },
                11 => { lanes.drain(subscription); lanes.set_hungry(subscription, false); }
                12 => {
                    let most = which * 3;
                    let room = lanes.reserve_many(subscription, terms, most, now);
                    prop_assert!(room <= most);
                    reserved.extend(std::iter::repeat_n(subscription, room));
                }
                13 => if let Some(place) = sending.last_mut() { drop(lanes.turned_slow(place)) },
                14 => {
                    world.now += Duration::from_millis(millis);
                    world.lanes.rouse(world.now);
                    world.lanes.forget_old(world.now);
                }
                15 => {
                    versions[which] += 1;
                    lanes.set_terms(subscription, another(terms, versions[which]), now);
                }
                _ => drop(lanes.keep_held_by(me)),
            }
            let (lanes, now) = (&world.lanes, world.now);
            let waiting: usize = lanes.by_subscription.values().map(|lane| lane.waiting.len()).sum();
            let weight: usize = lanes.by_subscription.values().flat_map(|lane| &lane.waiting).map(Job::weight).sum();
            let of = |pool: In| sending.iter().filter(move |place| place.pool == pool);
            let summed = |pool| Pool { in_flight: of(pool).count(), bytes: of(pool).map(|place| place.weight).sum() };
            prop_assert_eq!(lanes.held, waiting + reserved.len());
            let promised: usize = lanes.by_subscription.values().map(Lane::bytes).sum::<usize>() - weight;
            prop_assert_eq!(lanes.bytes, weight + promised);
            prop_assert!(promised == 0 || !reserved.is_empty(), "nothing is left of what was promised");
            prop_assert_eq!((lanes.trusted, lanes.suspect), (summed(In::Trusted), summed(In::Suspect)));
            prop_assert!(lanes.trusted.in_flight <= 4 && lanes.suspect.in_flight <= 20 && lanes.held <= 24);
            let open = lanes.by_subscription.values().filter(|lane| lane.health.is_open()).count();
            prop_assert_eq!(lanes.open_circuits, open);
            for (id, lane) in &lanes.by_subscription {
                prop_assert!(lane.in_flight <= 3, "its limit, and a probe");
                prop_assert!(lane.held() <= 6);
                prop_assert_eq!(lane.reserved, reserved.iter().filter(|of| *of == id).count());
                let of_lane = sending.iter().filter(|place| place.subscription == *id);
                prop_assert_eq!(lane.in_flight, of_lane.clone().count());
                let probes = of_lane.filter(|place| place.is_probe && lane.is_spoken_of_by(place));
                prop_assert!(probes.count() <= 1, "one at a time");
                let is_looked_at = lane.queued.is_some() || lane.alarm.is_some();
                if lane.can_send(now) {
                    prop_assert!(is_looked_at, "a lane that can send is never forgotten");
                }
                if lane.put_off(now).is_some() && !lane.waiting.is_empty() {
                    prop_assert!(is_looked_at, "nor one that waits for its time");
                }
            }
        }
        // Once all subscribers answer, everything is sent.
        while let Some(subscription) = reserved.pop() { world.lanes.unreserve(subscription, 1) }
        for _ in 0..100 {
            sending.extend(world.send_all());
            for place in sending.drain(..) { world.lanes.finished(&place, Ending::Delivered, world.now, 0.5); }
            world.now += Duration::from_secs(1);
            world.lanes.rouse(world.now);
        }
        world.lanes.forget_old(world.now + REMEMBERED);
        let load = world.lanes.load();
        prop_assert_eq!((load.held, load.trusted, load.suspect), (0, 0, 0));
        prop_assert_eq!(load.busy, world.lanes.hungry.len());
        prop_assert_eq!((world.lanes.bytes, world.lanes.trusted.bytes, world.lanes.suspect.bytes), (0, 0, 0));
    }
}

#[test]
fn what_another_worker_was_told_puts_a_lane_off() {
    let subscription = SubscriptionId::new();
    let mut world = Timed::new(10, 100, 100);
    world.put(subscription, terms(1), 3);
    let sent = world.send_all();
    assert_eq!(sent.len(), 1);
    let until = world.now + Duration::from_secs(5);
    let given_back = world
        .lanes
        .pause(subscription, Subscriber::numbered(1), until, world.now);
    assert_eq!(given_back.len(), 2, "what waits goes back");
    assert!(
        !world.end(&sent[0], Ending::Delivered).feed,
        "it asked for time all the same"
    );
    assert!(!world.lanes.reserve(subscription, terms(1), SMALL, world.now));
    assert_eq!(world.lanes.reserve_many(subscription, terms(1), 10, world.now), 0);
    // A shorter one changes nothing.
    let sooner = world.now + Duration::from_secs(2);
    world
        .lanes
        .pause(subscription, Subscriber::numbered(1), sooner, world.now);
    world.now = sooner;
    assert_eq!(world.lanes.rouse(world.now), []);
    world.now = until;
    assert_eq!(world.lanes.rouse(world.now), [subscription]);
    assert_eq!(
        world.lanes.reserve_many(subscription, terms(1), 10, world.now),
        10
    );
}

#[test]
fn a_lane_that_is_made_later_keeps_to_it_too() {
    let (brief, long, changed) = (
        SubscriptionId::new(),
        SubscriptionId::new(),
        SubscriptionId::new(),
    );
    let mut world = Timed::new(10, 100, 100);
    let (soon, late) = (
        world.now + Duration::from_secs(1),
        world.now + Duration::from_mins(1),
    );
    for (subscription, until) in [(brief, soon), (long, late), (changed, late)] {
        assert!(
            world
                .lanes
                .pause(subscription, Subscriber::numbered(1), until, world.now)
                .is_empty()
        );
    }
    assert!(!world.lanes.reserve(long, terms(1), SMALL, world.now));
    world.put(brief, terms(1), 1);
    assert!(world.send_all().is_empty());
    // Another subscriber has asked for nothing.
    world.put(changed, another(terms(1), 2), 1);
    assert_eq!(world.send_all()[0].subscription(), changed);
    world
        .lanes
        .pause(changed, Subscriber::numbered(1), late, world.now);
    world.put(changed, another(terms(2), 2), 1);
    assert_eq!(world.send_all().len(), 1);
    world.now = soon;
    world.lanes.rouse(world.now);
    assert_eq!(world.send_all()[0].subscription(), brief);
    world.now = late;
    world.lanes.forget_old(world.now);
    assert!(world.lanes.pauses.is_empty());
}
