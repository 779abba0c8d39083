//! How much of a list of events is one page of it.
//!
//! Payloads differ in size by five orders of magnitude, so that a number of events says little of what reading them takes.
//! Engines look first which events a page shows and how large they are, then read no more than these.

use super::{Page, Passed};

/// What a delivery weighs in a list, with its last attempt, which has a detail of 1 KiB at most.
const DELIVERY: u64 = 1024 + 512;

/// The most bytes of payloads that one page of [`Events::list`](super::Events::list) has, unless its first event alone has
/// more.
pub const PAGE_BYTES: u64 = 1024 * 1024;

/// An event that a list shows.
pub(super) struct Shown<I> {
    /// What its engine reads it by.
    pub(super) id: I,
    /// Its place in the order of intake.
    pub(super) seq: i64,
    /// How many its payload has.
    pub(super) bytes: u64,
}

/// The page that is the beginning of what was `found`: at most `limit` events, of at most [`PAGE_BYTES`]. What was found
/// has more than `limit` events if the list does.
pub(super) fn page<I>(found: Vec<Shown<I>>, limit: u32) -> Page<Shown<I>, i64> {
    page_within(found, limit, PAGE_BYTES)
}

/// As [`page`], of what a filter has left of the events that were looked at: where that is all of a page, it goes on after the
/// `last` that was looked at, if there may be more.
pub(super) fn page_of<I>(found: Vec<Shown<I>>, limit: u32, last: Option<i64>) -> Page<Shown<I>, i64> {
    let mut page = page(found, limit);
    page.next = page.next.or(last);
    page
}

/// As [`page`], of at most so many bytes.
pub(super) fn page_within<I>(mut found: Vec<Shown<I>>, limit: u32, most: u64) -> Page<Shown<I>, i64> {
    let (mut fitting, mut bytes) = (0, 0);
    for event in found.iter().take(limit as usize) {
        bytes += event.bytes;
        if fitting > 0 && bytes > most {
            break;
        }
        fitting += 1;
    }
    let more = found.len() > fitting;
    found.truncate(fitting);
    let next = found.last().filter(|_| more).map(|last| last.seq);
    Page { items: found, next }
}

/// The beginning of a page whose events have no more deliveries than one page may show, unless its first event alone has more.
pub(super) fn within_deliveries<I>(
    mut page: Page<Shown<I>, i64>,
    deliveries: impl Fn(&Shown<I>) -> u64,
) -> Page<Shown<I>, i64> {
    for event in &mut page.items {
        event.bytes = deliveries(event) * DELIVERY;
    }
    let begin = page_within(page.items, u32::MAX, PAGE_BYTES);
    Page {
        next: begin.next.or(page.next),
        ..begin
    }
}

impl Passed {
    /// Over what was `found` of at most `count`, where all that was looked at ends with `last`, if there may be more.
    pub(super) fn of<I>(found: &[Shown<I>], count: u64, last: Option<i64>) -> Self {
        let passed = found.len() as u64;
        let next = match found.last() {
            Some(found) if passed >= count => Some(found.seq),
            _ => last,
        };
        Self { count: passed, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sizes: &[u64], limit: u32) -> (usize, Option<i64>) {
        let found = sizes
            .iter()
            .zip(1..)
            .map(|(&bytes, seq)| Shown { id: seq, seq, bytes });
        let page = page(found.collect(), limit);
        (page.items.len(), page.next)
    }

    #[test]
    fn a_page_is_bounded_both_ways_and_never_empty() {
        assert_eq!(shown(&[], 10), (0, None));
        assert_eq!(shown(&[1, 1], 2), (2, None));
        assert_eq!(shown(&[1, 1, 1], 2), (2, Some(2)));
        let half = PAGE_BYTES / 2;
        assert_eq!(shown(&[half, half], 10), (2, None));
        assert_eq!(shown(&[half, half, 1], 10), (2, Some(2)));
        assert_eq!(shown(&[half, half + 1], 10), (1, Some(1)));
        assert_eq!(shown(&[PAGE_BYTES + 1, 1], 10), (1, Some(1)));
        assert_eq!(shown(&[PAGE_BYTES + 1], 10), (1, None));
    }

    #[test]
    fn a_page_has_so_many_deliveries_and_no_more() {
        let most = PAGE_BYTES / DELIVERY;
        let of = |deliveries: &[u64], next| {
            let found = (0..).zip(deliveries).map(|(seq, _)| Shown {
                id: (),
                seq,
                bytes: 1,
            });
            let page = Page {
                items: found.collect(),
                next,
            };
            let page = within_deliveries(page, |event| deliveries[usize::try_from(event.seq).unwrap()]);
            (page.items.len(), page.next)
        };
        assert_eq!(of(&[], Some(9)), (0, Some(9)));
        assert_eq!(of(&[most - 1, 1], None), (2, None));
        assert_eq!(of(&[most - 1, 1], Some(9)), (2, Some(9)));
        assert_eq!(of(&[most - 1, 1, 1], Some(9)), (2, Some(1)));
        assert_eq!(of(&[2 * most, 1], None), (1, Some(0)));
    }

    #[test]
    fn a_page_goes_on_after_what_was_looked_at() {
        let next = |count: i64, last| {
            let found = (1..=count).map(|seq| Shown {
                id: (),
                seq,
                bytes: 1,
            });
            page_of(found.collect(), 2, last).next
        };
        assert_eq!(next(0, None), None);
        assert_eq!(next(0, Some(9)), Some(9));
        assert_eq!(next(2, Some(9)), Some(9));
        assert_eq!(next(3, Some(9)), Some(2), "what is shown comes first");
    }
}
