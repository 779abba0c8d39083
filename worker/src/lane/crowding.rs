//! Lanes full of what cannot be sent, within the bounds of a real worker: nobody else waits for them, and memory is bounded.

use bytes::Bytes;
use proptest::prelude::*;
use shared::{event::MAX_PAYLOAD_BYTES, store::CLAIM_BYTES};

use super::{tests::*, *};

/// A payload of the largest size.
const LARGE: usize = MAX_PAYLOAD_BYTES;

fn world() -> Timed {
    Timed {
        lanes: Lanes::new(Bounds::default()),
        now: Instant::now(),
    }
}

impl Timed {
    /// Takes so many in, as intake does, until there is no room; gives how many there was room for.
    fn take_in(&mut self, lane: SubscriptionId, terms: Terms, payload: usize, count: usize) -> usize {
        let body = Bytes::from(vec![b'1'; payload]);
        let took = |_: &usize| {
            let has_room = self.lanes.reserve(lane, terms, weight_of(payload), self.now);
            if has_room {
                self.lanes
                    .push(job_of(lane, WorkerId::new(), body.clone()), self.now);
            }
            has_room
        };
        (0..count).take_while(took).count()
    }

    /// Claims, as the scheduler does: at most so many, and at most as many bytes as one claim takes. There are always more.
    fn claim(&mut self, lane: SubscriptionId, terms: Terms, payload: usize, most: usize) -> usize {
        let room = self.lanes.reserve_many(lane, terms, most, self.now);
        let claimed = room.min(CLAIM_BYTES.div_ceil(payload));
        self.lanes.set_hungry(lane, true);
        self.lanes.unreserve(lane, room - claimed);
        let body = Bytes::from(vec![b'1'; payload]);
        for _ in 0..claimed {
            self.lanes
                .push(job_of(lane, WorkerId::new(), body.clone()), self.now);
        }
        claimed
    }

    /// A lane whose first attempt hangs.
    fn hang(&mut self, lane: SubscriptionId, terms: Terms) {
        assert_eq!(self.take_in(lane, terms, 10, 1), 1);
        let mut place = self.send_all().remove(0);
        self.lanes.turned_slow(&mut place);
    }

    /// A lane whose last attempts failed.
    fn fail(&mut self, lane: SubscriptionId, terms: Terms, times: usize) {
        for _ in 0..times {
            assert_eq!(self.take_in(lane, terms, 10, 1), 1);
            let place = self.send_all().remove(0);
            self.end(&place, Ending::Failed { timed_out: false });
        }
    }

    /// Lanes that hang take all that is shared.
    fn crowd(&mut self, payload: usize) {
        while !self.lanes.is_short() {
            let slow = SubscriptionId::new();
            self.hang(slow, terms(1));
            self.take_in(slow, terms(1), payload, 1_000);
        }
    }

    /// One delivery to a lane in which nothing waits: it is taken, and sent at once.
    fn passes(&mut self, lane: SubscriptionId, payload: usize) -> bool {
        if self.take_in(lane, terms(16), payload, 1) == 0 {
            return false;
        }
        let sent = self.send_all();
        let passed = sent.iter().any(|place| place.subscription() == lane);
        for place in sent {
            self.end(&place, Ending::Delivered);
        }
        passed
    }
}

fn at_a_rate(rate: u32) -> Terms {
    Terms {
        rate_per_second: Some(rate),
        ..terms(16)
    }
}

#[test]
fn a_lane_at_a_rate_with_large_payloads_keeps_nobody_waiting() {
    let (slow, other) = (SubscriptionId::new(), SubscriptionId::new());
    let (mut world, rated) = (world(), at_a_rate(1));
    world.take_in(slow, rated, LARGE, 1_000);
    for second in 0..300 {
        for lane in world.lanes.rouse(world.now) {
            world.claim(lane, rated, LARGE, 256);
        }
        let share = world.lanes.by_subscription[&slow].bytes();
        assert!(
            share <= CLAIM_BYTES + weight_of(LARGE),
            "{share} bytes in one lane"
        );
        for place in world.send_all() {
            world.end(&place, Ending::Delivered);
        }
        for payload in [10, LARGE] {
            assert!(world.passes(other, payload), "in second {second}");
        }
        world.now += Duration::from_secs(1);
    }
    let lane = &world.lanes.by_subscription[&slow];
    assert!(!lane.waiting.is_empty(), "it goes on as fast as it may");
}

#[test]
fn many_slow_lanes_leave_room_for_a_backlog_of_another() {
    let mut world = world();
    for _ in 0..20 {
        let slow = SubscriptionId::new();
        world.hang(slow, terms(1));
        let taken = world.take_in(slow, terms(1), 5 * 1_024, 500);
        assert!(taken > 20, "{taken} of one lane");
    }
    let other = SubscriptionId::new();
    let taken = world.take_in(other, terms(16), 5 * 1_024, 500);
    assert!(taken >= 16, "{taken}: no fewer than it may have under way");
}

#[test]
fn however_many_lanes_hang_with_large_payloads_another_gets_through() {
    let mut world = world();
    for _ in 0..1_000 {
        let slow = SubscriptionId::new();
        world.hang(slow, terms(1));
        world.take_in(slow, terms(1), LARGE, 10);
    }
    assert!(world.lanes.is_short());
    assert!(world.lanes.bytes <= world.lanes.bounds.shared_bytes() + weight_of(LARGE));
    let other = SubscriptionId::new();
    for _ in 0..100 {
        assert!(world.passes(other, LARGE));
    }
}

#[test]
fn however_many_lanes_wait_for_their_rate_another_gets_through() {
    let (mut world, rated) = (world(), at_a_rate(1));
    for _ in 0..2_000 {
        let slow = SubscriptionId::new();
        world.take_in(slow, rated, 10, 1);
        for place in world.send_all() {
            world.end(&place, Ending::Delivered);
        }
        world.take_in(slow, rated, 10, 1_000);
    }
    assert_eq!(world.lanes.held, world.lanes.bounds.total, "by their number");
    let other = SubscriptionId::new();
    for _ in 0..100 {
        assert!(world.passes(other, 10));
    }
}

#[test]
fn lanes_that_their_rate_lets_send_take_no_more_than_that() {
    let mut world = world();
    world.crowd(10);
    assert_eq!(world.lanes.held, world.lanes.bounds.total, "by their number");
    for _ in 0..2_000 {
        // It is ready, and has many more that are due.
        assert_eq!(world.claim(SubscriptionId::new(), at_a_rate(1), 10, 256), 1);
    }
    let quick = SubscriptionId::new();
    assert_eq!(world.claim(quick, at_a_rate(200), 10, 256), 16);
    let other = SubscriptionId::new();
    assert_eq!(world.take_in(other, terms(16), 10, 16), 16);
    let mut sent = 0;
    loop {
        let places = world.send_all();
        if places.is_empty() {
            break;
        }
        sent += places.len();
        for place in places {
            world.end(&place, Ending::Delivered);
        }
    }
    // Two of the quick one, whose others are in a moment.
    assert_eq!(sent, 2_000 + 2 + 16, "nothing else stays in what is kept");
    assert!(world.passes(other, 10));
}

#[test]
fn who_failed_is_tried_again_however_full_it_is() {
    for payload in [10, LARGE] {
        let (mut world, once, open) = (world(), SubscriptionId::new(), SubscriptionId::new());
        world.fail(once, terms(16), 1);
        world.fail(open, terms(16), 10);
        assert_eq!(world.lanes.load().open_circuits, 1);
        world.crowd(payload);
        assert_eq!(world.claim(once, terms(16), payload, 256), 1, "one, to see");
        assert_eq!(world.claim(once, terms(16), payload, 256), 0, "and no more");
        assert_eq!(
            world.claim(open, terms(16), payload, 256),
            0,
            "its probe is not due"
        );
        world.now += Duration::from_secs(2);
        assert_eq!(world.claim(open, terms(16), payload, 256), 1, "now it is");
        let places = world.send_all();
        assert_eq!(places.len(), 2);
        for place in places {
            world.end(&place, Ending::Delivered);
        }
        assert_eq!(world.lanes.load().open_circuits, 0);
        for lane in [once, open] {
            world.lanes.set_hungry(lane, false);
            for _ in 0..10 {
                assert!(world.passes(lane, payload), "it is trusted again");
            }
        }
    }
}

#[test]
fn however_many_fail_they_leave_room_to_those_that_answer() {
    for payload in [10, LARGE] {
        let mut world = world();
        let failing: Vec<_> = (0..4_000).map(|_| SubscriptionId::new()).collect();
        for lane in &failing {
            world.fail(*lane, terms(16), 1);
        }
        world.crowd(payload);
        let claimed = failing.iter().map(|lane| {
            // Even if nobody knows how large they are.
            world.lanes.weighs = weight_of(10);
            world.claim(*lane, terms(16), payload, 256)
        });
        let claimed: usize = claimed.sum();
        let bounds = world.lanes.bounds;
        if payload == LARGE {
            let kept = bounds.bytes - bounds.shared_bytes();
            assert!(claimed > 0, "of {}", failing.len());
            assert!(world.lanes.bytes <= bounds.shared_bytes() + kept / 4 + 2 * weight_of(LARGE));
            assert!(
                world.lanes.bytes + CLAIM_BYTES + weight_of(LARGE) < bounds.bytes,
                "a claim that is larger than was thought leaves some"
            );
        } else {
            assert_eq!(claimed, bounds.total / 4);
        }
        let other = SubscriptionId::new();
        for _ in 0..100 {
            assert!(world.passes(other, payload));
        }
    }
}

#[test]
fn what_is_behind_an_attempt_that_turns_slow_goes_back_while_room_is_short() {
    let mut world = world();
    for _ in 0..600 {
        let slow = SubscriptionId::new();
        world.hang(slow, terms(1));
        world.take_in(slow, terms(1), LARGE, 10);
    }
    for ending in [None, Some(Ending::Failed { timed_out: false })] {
        let lane = SubscriptionId::new();
        assert_eq!(world.take_in(lane, terms(2), 10, 1), 1);
        let mut place = world.send_all().remove(0);
        assert_eq!(world.take_in(lane, terms(2), 10, 1), 1);
        // There is another worker: from now on it has to wait for the first.
        world.lanes.set_terms(lane, terms(1), world.now);
        let given_back = match ending {
            None => world.lanes.turned_slow(&mut place),
            Some(ending) => world.end(&place, ending).put_off,
        };
        assert_eq!(given_back.len(), 1);
        assert!(world.lanes.hungry.contains(&lane), "it comes again");
    }
}

#[test]
fn claims_of_what_was_thought_to_be_small_go_over_the_bound_by_one_claim() {
    let mut world = world();
    for _ in 0..2_000 {
        let lane = SubscriptionId::new();
        world.lanes.weighs = weight_of(10);
        world.claim(lane, terms(1), LARGE, 256);
        let most = world.lanes.bounds.bytes + CLAIM_BYTES + weight_of(LARGE);
        assert!(world.lanes.bytes <= most, "{} bytes", world.lanes.bytes);
    }
}

#[test]
fn a_lane_that_is_fed_asks_by_what_its_deliveries_weigh() {
    let (mut world, lane) = (world(), SubscriptionId::new());
    world.take_in(lane, terms(1), LARGE, 1);
    let room = world.lanes.reserve_many(lane, terms(1), 256, world.now);
    assert!(
        (10..40).contains(&room),
        "room for {room} of the largest, in a share of the bytes"
    );
    assert!(
        world.lanes.bytes >= room * LARGE,
        "it is counted before it is there"
    );
    world.lanes.unreserve(lane, room);
    let small = SubscriptionId::new();
    world.take_in(small, terms(1), 10, 1);
    assert_eq!(world.lanes.reserve_many(small, terms(1), 256, world.now), 256);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever waits in however many lanes that hang or wait for their rate, and however it got there: one that can be sent is
    /// sent, and memory is bounded.
    #[test]
    fn who_can_be_sent_to_is_sent_to(
        crowd in prop::collection::vec((any::<bool>(), any::<bool>(), 1usize..LARGE, 1usize..300), 1..200),
        payload in 1usize..LARGE,
    ) {
        let mut world = world();
        for (is_rated, is_claimed, payload, count) in crowd {
            let (lane, terms) = (SubscriptionId::new(), if is_rated { at_a_rate(1) } else { terms(1) });
            if is_rated {
                prop_assert_eq!(world.take_in(lane, terms, 10, 1), 1);
                for place in world.send_all() {
                    world.end(&place, Ending::Delivered);
                }
            } else {
                world.hang(lane, terms);
            }
            if is_claimed {
                world.claim(lane, terms, payload, count);
            } else {
                world.take_in(lane, terms, payload, count);
            }
        }
        let most = world.lanes.bounds.shared_bytes() + CLAIM_BYTES + weight_of(LARGE);
        prop_assert!(world.lanes.bytes <= most);
        let other = SubscriptionId::new();
        for _ in 0..10 {
            prop_assert!(world.passes(other, payload));
        }
    }
}
