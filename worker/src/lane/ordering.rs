//! A lane whose order begins or ends while it is busy.

use super::{tests::*, *};

fn unordered(version: i64) -> Terms {
    another(terms(16), version)
}

fn ordered(version: i64) -> Terms {
    Terms {
        in_order: true,
        solo: true,
        version,
        ..terms(1)
    }
}

/// Claims so many in order, as the scheduler does.
fn claim(world: &mut Timed, lane: SubscriptionId, terms: Terms, count: usize) {
    let room = world.lanes.reserve_many(lane, terms, count, world.now);
    assert_eq!(room, count);
    for _ in 0..count {
        let job = Job {
            in_order: true,
            ..job(lane, WorkerId::new())
        };
        world.lanes.push(job, world.now);
    }
}

#[test]
fn a_lane_goes_on_when_its_order_ends_in_the_middle_of_an_attempt() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    claim(&mut world, lane, ordered(1), 3);
    let places = world.send_all();
    assert!(places.len() == 1 && places[0].in_order());
    world.lanes.set_terms(lane, unordered(2), world.now);
    assert!(
        world.send_all().is_empty(),
        "what began in order is waited for to its end"
    );
    world.end(&places[0], Ending::Delivered);
    world.lanes.settled(lane, true, world.now);
    let places = world.send_all();
    assert_eq!(places.len(), 2, "from then on there is no order");
    for place in &places {
        assert!(!place.in_order(), "nobody waits for their outcomes");
        world.end(place, Ending::Delivered);
    }
    assert_ne!(world.lanes.is_quiet(lane, world.now), Some(false));
}

#[test]
fn what_was_taken_before_a_lane_came_to_be_in_order_goes_back() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    world.put(lane, unordered(1), 20);
    let sent = world.send_all();
    assert_eq!(sent.len(), 16);
    assert!(world.lanes.reserve(lane, unordered(1), SMALL, world.now));
    world.lanes.set_terms(lane, ordered(2), world.now);
    world.lanes.push(job(lane, WorkerId::new()), world.now);
    assert_eq!(
        world.lanes.take_strays().len(),
        5,
        "those that waited, and the one on its way"
    );
    assert_eq!(world.lanes.load().held, 0);
    for place in &sent[1..] {
        assert!(!world.end(place, Ending::Delivered).feed);
    }
    let last = world.end(&sent[0], Ending::Delivered);
    assert!(
        last.feed,
        "they are to be claimed again, once nothing is under way"
    );
    claim(&mut world, lane, ordered(2), 3);
    assert_eq!(world.send_all().len(), 1, "one at a time");
}

#[test]
fn what_was_claimed_in_order_is_not_next_any_more_once_the_order_ended() {
    let (lane, mut world) = (SubscriptionId::new(), Timed::new(100, 100, 100));
    let two_at_once = Terms {
        version: 2,
        ..terms(2)
    };
    claim(&mut world, lane, ordered(1), 3);
    world.lanes.set_terms(lane, two_at_once, world.now);
    assert_eq!(world.send_all().len(), 2);
    world.lanes.set_terms(lane, ordered(3), world.now);
    assert_eq!(
        world.lanes.take_strays().len(),
        1,
        "an attempt at either of the others may fail yet: they are before it"
    );
}
