//! Which events a search shows, however few of many they are, in pages of bounded work.
//!
//! Engines look at events in order, a bounded number at a time, and read no payload meanwhile; what fits is decided here,
//! for all of them alike. Whoever wants more goes on after the last that was looked at.

use std::time::Duration;

use super::{
    Page,
    page::{self, Shown},
};
use crate::{EventPattern, EventStatus, EventType, Timestamp};

/// The most events that one page looks at.
pub(super) const MAX_LOOKED_AT: usize = 2_000;

/// Further than any clock is from the time in an event's id.
pub(super) const CLOCKS_APART: Duration = Duration::from_hours(4 * 24);

/// Which events a search shows.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// Only of these types.
    pub event_type: Option<EventPattern>,
    /// Only those accepted from then on.
    pub since: Option<Timestamp>,
    /// Only those accepted before then. (One that was set aside and put back days later has an id of that later time, and
    /// is found without this.)
    pub until: Option<Timestamp>,
    /// Only of this status.
    pub status: Option<EventStatus>,
}

impl EventQuery {
    /// How many events a page of `limit` has to look at, at most.
    pub(super) fn look_at(&self, limit: u32) -> usize {
        let all = self.event_type.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.status.is_none();
        if all {
            (limit as usize + 1).min(MAX_LOOKED_AT)
        } else {
            MAX_LOOKED_AT
        }
    }

    /// Those of what was seen that it shows.
    pub(super) fn shown<I>(&self, seen: Vec<Seen<I>>) -> Vec<Shown<I>> {
        let shown = seen.into_iter().filter(|seen| self.shows(seen));
        let shown = shown.map(|seen| Shown {
            id: seen.id,
            seq: seen.seq,
            bytes: seen.bytes,
        });
        shown.collect()
    }

    fn shows<I>(&self, seen: &Seen<I>) -> bool {
        self.since.is_none_or(|since| seen.received_at >= since)
            && self.until.is_none_or(|until| seen.received_at < until)
            && self.status.is_none_or(|status| seen.rank == Some(status as i64))
            && fits(self.event_type.as_ref(), &seen.event_type)
    }
}

/// Whether a stored type is one of those wanted.
fn fits(wanted: Option<&EventPattern>, event_type: &str) -> bool {
    wanted.is_none_or(|wanted| {
        EventType::parse_any(event_type).is_ok_and(|event_type| wanted.matches(&event_type))
    })
}

/// An event that was looked at.
pub(super) struct Seen<I> {
    /// What its engine reads it by.
    pub(super) id: I,
    pub(super) seq: i64,
    pub(super) event_type: String,
    pub(super) received_at: Timestamp,
    /// How many its payload has.
    pub(super) bytes: u64,
    /// Its status, as [`EventStatus`] orders them, where that is asked for.
    pub(super) rank: Option<i64>,
}

/// The page that comes of what was seen, which is all that there is if it is fewer than were to be looked at.
pub(super) fn page<I>(wanted: &EventQuery, seen: Vec<Seen<I>>, limit: u32) -> Page<Shown<I>, i64> {
    let last = seen.last().map(|last| last.seq);
    let more = seen.len() >= wanted.look_at(limit);
    let mut page = page::page(wanted.shown(seen), limit);
    if page.next.is_none() && more {
        page.next = last;
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(seq: i64, event_type: &str) -> Seen<()> {
        Seen {
            id: (),
            seq,
            event_type: event_type.to_owned(),
            received_at: Timestamp::from_millis(seq),
            bytes: 1,
            rank: Some(EventStatus::Delivered as i64),
        }
    }

    fn of(wanted: &EventQuery, seen: Vec<Seen<()>>, limit: u32) -> (Vec<i64>, Option<i64>) {
        let page = page(wanted, seen, limit);
        (page.items.iter().map(|event| event.seq).collect(), page.next)
    }

    #[test]
    fn a_page_may_show_nothing_and_say_that_there_is_more() {
        let wanted = EventQuery {
            event_type: Some(EventPattern::parse("rare.*").unwrap()),
            ..EventQuery::default()
        };
        let many = |rare: i64| {
            (0..i64::try_from(MAX_LOOKED_AT).unwrap())
                .map(|seq| seen(seq, if seq == rare { "rare.one" } else { "usual" }))
                .collect::<Vec<_>>()
        };
        let last = i64::try_from(MAX_LOOKED_AT).unwrap() - 1;
        assert_eq!(of(&wanted, many(-1), 10), (vec![], Some(last)));
        assert_eq!(of(&wanted, many(7), 10), (vec![7], Some(last)));
        let mut few = many(7);
        few.pop();
        assert_eq!(of(&wanted, few, 10), (vec![7], None), "there was no more");
        let all = (0..4).map(|seq| seen(seq, "rare.one")).collect();
        assert_eq!(
            of(&wanted, all, 2),
            (vec![0, 1], Some(1)),
            "the limit comes first"
        );
    }

    #[test]
    fn times_and_status_count_too() {
        let three = || (1..4).map(|seq| seen(seq, "x")).collect::<Vec<_>>();
        let within = EventQuery {
            since: Some(Timestamp::from_millis(2)),
            until: Some(Timestamp::from_millis(3)),
            ..EventQuery::default()
        };
        assert_eq!(of(&within, three(), 10), (vec![2], None));
        let dead = EventQuery {
            status: Some(EventStatus::DeadLetter),
            ..EventQuery::default()
        };
        assert_eq!(of(&dead, three(), 10), (vec![], None));
        let plain = EventQuery::default();
        assert_eq!(of(&plain, three(), 2), (vec![1, 2], Some(2)));
        assert_eq!(of(&plain, three(), 3), (vec![1, 2, 3], None));
    }
}
