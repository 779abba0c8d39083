//! A subscription that changes while attempts are under way: what was sent to the subscriber of before says nothing of the one
//! that there is now; and a change that leaves the subscriber leaves all that is known of it.

use proptest::prelude::*;

use super::{tests::*, *};

const FAILED: Ending = Ending::Failed { timed_out: false };

fn version(version: i64) -> Terms {
    another(terms(16), version)
}

/// So many are under way by the first version, and the subscription has changed since.
fn changed(under_way: usize) -> (SubscriptionId, Timed, Vec<Place>) {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    world.put(lane, version(1), under_way);
    let sent = world.send_all();
    assert_eq!(sent.len(), under_way);
    world.lanes.set_terms(lane, version(2), world.now);
    (lane, world, sent)
}

/// The lane's circuit opens by what is sent now.
fn open(world: &mut Timed, lane: SubscriptionId, terms: Terms) {
    world.put(lane, terms, 10);
    for place in world.send_all() {
        world.end(&place, FAILED);
    }
    assert_eq!(world.lanes.load().open_circuits, 1);
}

/// The probe of an open circuit, once it is due.
fn probe(world: &mut Timed, lane: SubscriptionId, terms: Terms) -> Place {
    world.now += Duration::from_secs(2);
    world.put(lane, terms, 1);
    let mut probes = world.send_all();
    assert_eq!(probes.len(), 1, "one at a time");
    probes.remove(0)
}

#[test]
fn failures_of_before_open_no_circuit() {
    let (lane, mut world, sent) = changed(16);
    for place in &sent {
        assert_eq!(world.end(place, FAILED).circuit, None);
    }
    world.put(lane, version(2), 16);
    let sent = world.send_all();
    assert!(sent.len() == 16 && sent.iter().all(Place::is_trusted));
}

#[test]
fn time_that_was_asked_for_before_is_not_waited_for() {
    let (lane, mut world, sent) = changed(1);
    world.put(lane, version(2), 3);
    let finished = world.end(&sent[0], Ending::AskedToWait(LONGEST_PAUSE));
    assert!(finished.put_off.is_empty());
    assert_eq!(world.send_all().len(), 3);
}

#[test]
fn time_that_the_new_subscriber_asked_for_is_waited_for_though_the_change_is_heard_of_later() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    world.put(lane, version(1), 20);
    let sent = world.send_all();
    let until = world.now + Duration::from_secs(1);
    world.lanes.pause(lane, Subscriber::numbered(2), until, world.now);
    world.lanes.set_terms(lane, version(2), world.now);
    for place in &sent {
        world.end(place, Ending::Delivered);
    }
    assert!(world.send_all().is_empty());
    world.now = until;
    world.lanes.rouse(world.now);
    assert_eq!(world.send_all().len(), 4);
}

#[test]
fn an_attempt_of_before_that_turns_slow_is_apart_and_its_lane_is_not() {
    let (lane, mut world, mut sent) = changed(1);
    assert!(world.lanes.turned_slow(&mut sent[0]).is_empty());
    assert!(!sent[0].is_trusted());
    world.put(lane, version(2), 1);
    assert!(world.send_all()[0].is_trusted());
}

#[test]
fn a_success_of_before_closes_no_circuit() {
    let (lane, mut world, sent) = changed(1);
    open(&mut world, lane, version(2));
    assert_eq!(world.end(&sent[0], Ending::Delivered).circuit, None);
    assert_eq!(world.lanes.load().open_circuits, 1);
}

#[test]
fn a_probe_of_before_is_not_the_one_that_is_under_way() {
    for ending in [
        Ending::Delivered,
        FAILED,
        Ending::AskedToWait(Duration::from_secs(1)),
        Ending::NotMade,
        Ending::Starved,
    ] {
        let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
        open(&mut world, lane, version(1));
        let of_before = probe(&mut world, lane, version(1));
        world.lanes.set_terms(lane, version(2), world.now);
        open(&mut world, lane, version(2));
        let of_now = probe(&mut world, lane, version(2));
        assert!(of_before.is_probe && of_now.is_probe);
        assert_eq!(world.end(&of_before, ending).circuit, None, "{ending:?}");
        world.now += Duration::from_secs(10);
        world.lanes.rouse(world.now);
        assert!(
            !world.lanes.reserve(lane, version(2), SMALL, world.now) || world.send_all().is_empty(),
            "{ending:?}: one at a time"
        );
        world.end(&of_now, Ending::Delivered);
        assert_eq!(world.lanes.load().open_circuits, 0);
    }
}

#[test]
fn what_this_process_lacks_it_lacks_for_whomever_it_sends_to() {
    let (lane, mut world, sent) = changed(1);
    world.put(lane, version(2), 1);
    world.end(&sent[0], Ending::Starved);
    assert!(world.send_all().is_empty());
    world.now += Duration::from_secs(1);
    world.lanes.rouse(world.now);
    assert_eq!(world.send_all().len(), 1);
}

#[test]
fn an_attempt_of_before_that_began_in_order_is_settled_as_any_is() {
    let ordered = |version| Terms {
        in_order: true,
        solo: true,
        ..another(terms(1), version)
    };
    for goes_on in [true, false] {
        let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
        assert_eq!(world.lanes.reserve_many(lane, ordered(1), 3, world.now), 3);
        for _ in 0..3 {
            let job = Job {
                in_order: true,
                ..job(lane, WorkerId::new())
            };
            world.lanes.push(job, world.now);
        }
        let place = world.send_all().remove(0);
        world.lanes.set_terms(lane, ordered(2), world.now);
        let finished = world.end(&place, FAILED);
        assert!(finished.put_off.is_empty(), "it was sent");
        assert!(
            world.send_all().is_empty(),
            "what came of it is not written down yet"
        );
        let goes_back = world.lanes.settled(lane, goes_on, world.now).put_off;
        assert_eq!(goes_back.len(), if goes_on { 0 } else { 2 });
        assert_eq!(world.send_all().len(), usize::from(goes_on));
    }
}

/// As `terms`, by a later version that changes nothing of who is sent to.
fn described(terms: Terms) -> Terms {
    Terms {
        version: terms.version + 1,
        ..terms
    }
}

#[test]
fn a_change_that_leaves_the_subscriber_leaves_its_circuit_and_its_probe() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    open(&mut world, lane, version(1));
    let probing = probe(&mut world, lane, version(1));
    let later = described(version(1));
    world.lanes.set_terms(lane, later, world.now);
    assert_eq!(world.lanes.load().open_circuits, 1);
    assert!(!world.lanes.reserve(lane, later, SMALL, world.now) || world.send_all().is_empty());
    let closed = world.end(&probing, Ending::Delivered).circuit;
    assert_eq!(closed, Some(CircuitState::Closed), "the probe speaks of it");
}

#[test]
fn a_change_that_leaves_the_subscriber_leaves_what_it_asked_for() {
    // This worker, or another, which tells of it.
    for is_told in [false, true] {
        let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
        if is_told {
            let until = world.now + LONGEST_PAUSE;
            world.lanes.pause(lane, Subscriber::numbered(1), until, world.now);
        } else {
            world.put(lane, version(1), 1);
            let sent = world.send_all();
            world.end(&sent[0], Ending::AskedToWait(LONGEST_PAUSE));
        }
        let later = described(version(1));
        world.lanes.set_terms(lane, later, world.now);
        world.now += Duration::from_mins(11);
        world.lanes.forget_old(world.now);
        assert_eq!(
            world.lanes.reserve_many(lane, later, 1, world.now),
            0,
            "{is_told}"
        );
        assert_eq!(
            world.lanes.reserve_many(lane, another(later, 3), 1, world.now),
            1,
            "{is_told}"
        );
    }
}

#[test]
fn attempts_under_way_through_a_change_that_leaves_the_subscriber_count() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    world.put(lane, version(1), 16);
    let sent = world.send_all();
    world.lanes.set_terms(lane, described(version(1)), world.now);
    let circuits = sent.iter().filter_map(|place| world.end(place, FAILED).circuit);
    assert_eq!(circuits.count(), 1, "it opens");
}

#[test]
fn an_attempt_at_a_subscriber_that_came_back_is_of_before() {
    let (lane, mut world, sent) = changed(16);
    world.lanes.set_terms(
        lane,
        Terms {
            version: 3,
            ..version(1)
        },
        world.now,
    );
    for place in &sent {
        assert_eq!(world.end(place, FAILED).circuit, None);
    }
}

fn any_ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Delivered),
        any::<bool>().prop_map(|timed_out| Ending::Failed { timed_out }),
        (1u64..7_200).prop_map(|seconds| Ending::AskedToWait(Duration::from_secs(seconds))),
        (any::<bool>(), 1u64..7_200).prop_map(|(timed_out, seconds)| Ending::Unavailable {
            timed_out,
            pause: Duration::from_secs(seconds),
        }),
        Just(Ending::NotMade),
    ]
}

proptest! {
    /// However attempts of before go, before and after the change: the lane is one of which nothing is known.
    #[test]
    fn a_subscription_that_changes_begins_anew(
        sooner in prop::collection::vec((any_ending(), any::<bool>()), 0..8),
        later in prop::collection::vec((any_ending(), any::<bool>()), 0..8),
    ) {
        let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
        world.put(lane, version(1), sooner.len() + later.len());
        let mut sent = world.send_all().into_iter();
        let end = |world: &mut Timed, mut place: Place, (ending, is_slow): (Ending, bool)| {
            if is_slow {
                world.lanes.turned_slow(&mut place);
            }
            world.end(&place, ending)
        };
        for how in sooner {
            end(&mut world, sent.next().expect("it is under way"), how);
        }
        world.lanes.set_terms(lane, version(2), world.now);
        for how in later {
            let finished = end(&mut world, sent.next().expect("it is under way"), how);
            prop_assert!(finished.circuit.is_none() && finished.put_off.is_empty());
        }
        prop_assert_eq!(world.lanes.load().open_circuits, 0);
        world.lanes.set_hungry(lane, false);
        world.put(lane, version(2), 20);
        let sent = world.send_all();
        prop_assert!(sent.len() == 16 && sent.iter().all(Place::is_trusted));
    }
}
