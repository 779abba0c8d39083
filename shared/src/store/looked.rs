//! How a list of deliveries is read: engines look at so many in order, by the index that fits best, and what of that the
//! filter shows is told here, for all of them alike.
//!
//! A filter may fit one delivery in a million. So that no page takes longer than another, a page ends with what was looked
//! at, however little of it is shown, and says where the next goes on.

use std::time::Duration;

use uuid::Uuid;

use super::{DeliveryFilter, DeliveryPlace, ListedDelivery, MAX_AHEAD, Page};
use crate::{EventId, SubscriptionId, Timestamp, delivery::Status};

/// How many deliveries are looked at for a page, where a filter may leave some of them out.
const LOOKED_AT: u32 = 2_000;
/// How much later than its event's acceptance a delivery may be taken in and still be found by `since`.
const BELATED: Duration = MAX_AHEAD;

/// Where deliveries are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    /// Among the open ones.
    Open,
    /// Among the dead letters.
    Dead,
    /// Among all, event by event.
    Everywhere,
}

impl Where {
    pub(super) const fn of(filter: &DeliveryFilter) -> Self {
        match filter.status {
            Some(Status::Pending | Status::InFlight | Status::Retrying | Status::Parked) => Self::Open,
            Some(Status::DeadLetter) => Self::Dead,
            Some(Status::Delivered | Status::Acknowledged | Status::Cancelled | Status::Expired) | None => {
                Self::Everywhere
            }
        }
    }
}

/// How many deliveries are to be looked at for a page.
pub(super) fn window(filter: &DeliveryFilter, limit: u32) -> u32 {
    if *filter == DeliveryFilter::default() {
        limit + 1
    } else {
        LOOKED_AT.max(limit + 1)
    }
}

/// What was looked at: a delivery, or an event without one that could be shown.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) event: EventId,
    pub(super) seq: i64,
    pub(super) event_type: String,
    pub(super) received_at: Timestamp,
    pub(super) delivery: Option<Found>,
}

/// A delivery, but for what is its event's.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) subscription: SubscriptionId,
    pub(super) status: Status,
    pub(super) attempts: u32,
    pub(super) lease_until: Option<Timestamp>,
    pub(super) next_attempt_at: Option<Timestamp>,
    pub(super) updated_at: Timestamp,
}

impl Looked {
    fn place(&self) -> DeliveryPlace {
        let last = || SubscriptionId::from_uuid(Uuid::max());
        DeliveryPlace {
            seq: self.seq,
            subscription: self
                .delivery
                .as_ref()
                .map_or_else(last, |found| found.subscription),
        }
    }

    fn shown(self, filter: &DeliveryFilter) -> Option<ListedDelivery> {
        let found = self.delivery?;
        let fits = filter
            .subscription
            .is_none_or(|wanted| found.subscription == wanted)
            && filter.status.is_none_or(|wanted| found.status == wanted)
            && filter.since.is_none_or(|since| self.received_at >= since);
        fits.then(|| ListedDelivery {
            event: self.event,
            seq: self.seq,
            event_type: self.event_type,
            received_at: self.received_at,
            subscription: found.subscription,
            status: found.status,
            attempts: found.attempts,
            lease_until: found.lease_until.filter(|_| found.status.is_open()),
            next_attempt_at: found.next_attempt_at.filter(|_| found.status.is_open()),
            updated_at: found.updated_at,
        })
    }
}

/// The page that what was looked at comes to. Fewer than `window` says that there is no more.
///
/// With `since`, a list ends once all of a page's events were accepted a day before that, or earlier: order is that of intake,
/// and only what waited in the queue for longer than that could still come.
pub(super) fn page(
    looked: Vec<Looked>,
    window: u32,
    filter: &DeliveryFilter,
    limit: u32,
) -> Page<ListedDelivery, DeliveryPlace> {
    let limit = limit as usize;
    let oldest = filter.since.map(|since| since.minus(BELATED));
    let all_too_old = oldest.is_some_and(|oldest| looked.iter().all(|one| one.received_at < oldest));
    let further = (looked.len() >= window as usize && !all_too_old)
        .then(|| looked.last().map(Looked::place))
        .flatten();
    let mut items: Vec<ListedDelivery> = looked.into_iter().filter_map(|one| one.shown(filter)).collect();
    let next = if items.len() > limit {
        items.truncate(limit);
        items.last().map(|last| DeliveryPlace {
            seq: last.seq,
            subscription: last.subscription,
        })
    } else {
        further
    };
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(seq: i64, received_at: i64, status: Option<Status>) -> Looked {
        Looked {
            event: EventId::new(),
            seq,
            event_type: "a.b".to_owned(),
            received_at: Timestamp::from_millis(received_at),
            delivery: status.map(|status| Found {
                subscription: SubscriptionId::from_uuid(Uuid::from_u128(7)),
                status,
                attempts: 0,
                lease_until: None,
                next_attempt_at: Some(Timestamp::from_millis(1)),
                updated_at: Timestamp::from_millis(2),
            }),
        }
    }

    fn shown(looked: Vec<Looked>, window: u32, filter: &DeliveryFilter) -> (Vec<i64>, Option<i64>) {
        let page = page(looked, window, filter, 2);
        let seqs = page.items.iter().map(|item| item.seq).collect();
        (seqs, page.next.map(|next| next.seq))
    }

    #[test]
    fn a_page_goes_on_from_what_was_shown_or_looked_at() {
        let all = DeliveryFilter::default();
        let dead = |seq| looked(seq, 0, Some(Status::DeadLetter));
        let none = |seq| looked(seq, 0, None);
        assert_eq!(shown(vec![dead(3), dead(2)], 3, &all), (vec![3, 2], None));
        assert_eq!(
            shown(vec![dead(3), dead(2), dead(1)], 3, &all),
            (vec![3, 2], Some(2))
        );
        assert_eq!(
            shown(vec![dead(3), none(2), none(1)], 3, &all),
            (vec![3], Some(1))
        );
        let delivered = DeliveryFilter {
            status: Some(Status::Delivered),
            ..all
        };
        assert_eq!(
            shown(vec![dead(3), dead(2), dead(1)], 3, &delivered),
            (vec![], Some(1))
        );
        assert_eq!(
            shown(vec![dead(3), dead(2), dead(1)], 4, &delivered),
            (vec![], None)
        );
    }

    #[test]
    fn since_ends_a_list_once_nothing_can_follow() {
        const DAY: i64 = 24 * 3_600_000;
        let since = DeliveryFilter {
            since: Some(Timestamp::from_millis(10 * DAY)),
            ..DeliveryFilter::default()
        };
        let dead = |seq, received_at| looked(seq, received_at, Some(Status::DeadLetter));
        let belated = vec![dead(3, 8 * DAY), dead(2, 9 * DAY), dead(1, 10 * DAY)];
        assert_eq!(shown(belated, 3, &since), (vec![1], Some(1)));
        assert_eq!(
            shown(vec![dead(3, 9 * DAY), dead(2, 8 * DAY)], 2, &since),
            (vec![], Some(2))
        );
        assert_eq!(
            shown(vec![dead(3, 9 * DAY - 1), dead(2, 8 * DAY)], 2, &since),
            (vec![], None)
        );
    }

    #[test]
    fn what_has_ended_has_no_next_attempt() {
        let next = |status| {
            let page = page(vec![looked(1, 0, Some(status))], 9, &DeliveryFilter::default(), 1);
            page.items[0].next_attempt_at
        };
        assert!(next(Status::Retrying).is_some());
        assert_eq!(next(Status::Cancelled), None);
    }
}
