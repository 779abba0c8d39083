//! By which way a replay comes by its events.
//!
//! There are three, each by an index that is there anyhow: all events of the organization in order of intake, its dead letters in
//! that order, or the events of all organizations by the time that their ids begin with. No one of them is always short. In order
//! of intake, what was accepted at some time may be anywhere after it (it waited in a queue, or was set aside), so that
//! there is no end to look to but that of the whole; dead letters are few or many; and by time a small organization would read what
//! is others'. So it is asked once how much there is, with a bound to the asking, and the replay keeps to what is found then.

use std::time::Duration;

use uuid::Uuid;

use super::{Candidate, Candidates, MAX_AHEAD, Replay};
use crate::{DeliveryState, EventId, Timestamp};

/// The most rows that one statement reads to find a replay's next events: more than an event has deliveries.
pub(super) const READ: u32 = 4_000;
/// So few dead letters are looked at all, whenever their events were accepted.
pub(super) const FEW: u32 = 10_000;
/// How many events are asked whose they are.
pub(super) const SAMPLE: u32 = 1_000;

/// How much earlier than an event's acceptance its id may be: both are had at once.
const EARLIER: Duration = Duration::from_mins(1);
/// How much later: a clock that was set back makes no id that is less than the last.
const LATER: Duration = Duration::from_hours(1);

/// What a replay looks at, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// All events of the organization, in order of intake.
    Order,
    /// The organization's dead letters, in order of intake.
    DeadLetters,
    /// Events by the time in the id that they were accepted under.
    Time,
}

impl Walk {
    /// Its name in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::DeadLetters => "dead_letters",
            Self::Time => "time",
        }
    }
}

impl std::str::FromStr for Walk {
    type Err = crate::Invalid;

    fn from_str(text: &str) -> Result<Self, crate::Invalid> {
        [Self::Order, Self::DeadLetters, Self::Time]
            .into_iter()
            .find(|walk| walk.as_str() == text)
            .ok_or_else(|| crate::Invalid::new("must be order, dead_letters or time"))
    }
}

/// A walk, and between which places: of the order of intake, or milliseconds of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// What is looked at.
    pub walk: Walk,
    /// The first place.
    pub first: i64,
    /// The last. What is in order of intake is not looked at beyond.
    pub last: i64,
}

impl Way {
    /// How far along it that is.
    pub(super) fn progress(self, after_seq: i64, after_id: Option<EventId>) -> f64 {
        let before = i128::from(self.first) - 1;
        let at = match self.walk {
            Walk::Order | Walk::DeadLetters => i128::from(after_seq),
            Walk::Time => after_id.map_or(before, |id| i128::from(millis(id.uuid()))),
        };
        let (gone, all) = (at - before, i128::from(self.last) - before);
        if gone <= 0 || all <= 0 {
            return 0.0;
        }
        let millionths = u32::try_from(gone.min(all) * 1_000_000 / all).unwrap_or(1_000_000);
        f64::from(millionths) / 1e6
    }
}

/// The time that an id begins with.
pub(super) fn millis(id: Uuid) -> i64 {
    i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX)
}

/// The least id of a moment.
fn first_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.millis()).unwrap_or(0);
    Uuid::from_u128(millis.min((1 << 48) - 1) << 80)
}

/// The ids under which events are accepted that a replay asks for, those who bound them left out.
pub(super) fn ids(replay: &Replay) -> (Uuid, Uuid) {
    let first = replay
        .since
        .map_or(Uuid::nil(), |since| first_id(since.minus(EARLIER)));
    let until = replay.until.min(replay.created_at.plus(MAX_AHEAD));
    let after = Uuid::from_u128(first.as_u128().saturating_sub(1));
    (after, first_id(until.plus(LATER)))
}

/// The ids that a replay by time has still to look at, those who bound them left out.
pub(super) fn ids_left(replay: &Replay) -> (Uuid, Uuid) {
    let (after, before) = ids(replay);
    (replay.after_id.map_or(after, EventId::uuid), before)
}

/// Whether an index knows what a replay asks for.
pub(super) fn is_of_dead_letters(replay: &Replay) -> bool {
    replay
        .statuses
        .iter()
        .all(|status| *status == DeliveryState::DeadLetter)
}

/// Whether it may go by time: it has a beginning, and none of it is done by an older version, in order of intake.
pub(super) fn may_go_by_time(replay: &Replay) -> bool {
    replay.since.is_some() && replay.looked_at == 0
}

/// What there is of events by time: of the first so many that a replay asks for, and between which times all of them are.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) events: u64,
    pub(super) ours: u64,
    /// Of the first.
    pub(super) first: Option<Uuid>,
    /// The oldest that there is at all.
    pub(super) oldest: Option<Uuid>,
}

/// Which walk is the shortest. In order of intake as much would be looked at as is between `from` and `to`, ids both; of dead letters
/// `dead`, counted no further than [`FEW`], if those are asked for; without a sample it cannot go by time.
pub(super) fn shortest(
    replay: &Replay,
    (from, to): (Uuid, Uuid),
    dead: Option<u64>,
    sample: Option<&Sample>,
) -> Walk {
    let by_order = match dead {
        Some(few) if few < u64::from(FEW) => return Walk::DeadLetters,
        Some(_) => Walk::DeadLetters,
        None => Walk::Order,
    };
    let Some(sample) = sample else {
        return by_order;
    };
    let oldest = sample.oldest.map_or(i64::MAX, millis);
    let now = replay.created_at.plus(LATER).millis();
    let long = |(from, to): (Uuid, Uuid)| {
        let long = millis(to).min(now).saturating_sub(millis(from).max(oldest));
        u128::try_from(long).unwrap_or(0)
    };
    // Of so many events ours are some: of those in order of intake as many, and by time it is all of them.
    let in_order = u128::from(sample.ours) * long((from, to));
    let by_time = u128::from(sample.events) * long(ids(replay));
    if sample.events < u64::from(SAMPLE) || by_time < in_order {
        Walk::Time
    } else {
        by_order
    }
}

/// The way by time.
pub(super) fn by_time(replay: &Replay, sample: &Sample) -> Way {
    let last = replay.until.min(replay.created_at).plus(LATER).millis();
    Way {
        walk: Walk::Time,
        first: sample.first.map_or(last, millis),
        last,
    }
}

/// The way in order of intake, between what is first and last of what there is.
pub(super) fn in_order(walk: Walk, ends: Option<(i64, i64)>) -> Way {
    let (first, last) = ends.unwrap_or((1, 0));
    Way { walk, first, last }
}

/// What a statement found: where that is, and the event, if it is one to look at.
#[derive(Debug)]
pub(super) struct Found<P> {
    pub(super) place: P,
    pub(super) event: Option<Candidate>,
}

/// Whether it is better to read [`READ`] rows than as many as events are wanted: hardly any of these is one.
pub(super) fn is_thin<P>(found: &[Found<P>], limit: u32) -> bool {
    let events = found.iter().filter(|one| one.event.is_some()).count();
    found.len() >= limit as usize && events * 2 < limit as usize
}

/// Of what was found, no more events than `limit`; and whether that is all. The place is the last that was looked at.
fn portion<P: Copy>(found: Vec<Found<P>>, most: u32, limit: u32) -> (Vec<Candidate>, Option<P>, bool) {
    let is_full = found.len() >= most as usize;
    let mut events = Vec::with_capacity(limit as usize);
    let mut place = None;
    let mut rest = found.into_iter();
    while events.len() < limit as usize {
        let Some(next) = rest.next() else {
            return (events, place, !is_full);
        };
        place = Some(next.place);
        events.extend(next.event);
    }
    let last = !is_full && rest.next().is_none();
    (events, place, last)
}

/// What was found in order of intake, by a statement that reads `most` rows. An event may have several of them: where the last are cut
/// off, and ours was not there, it is looked at once more.
pub(super) fn next_in_order(replay: &Replay, found: Vec<Found<i64>>, most: u32, limit: u32) -> Candidates {
    let cut_at = (found.len() >= most as usize)
        .then(|| found.last().map(|last| last.place))
        .flatten();
    let (events, place, last) = portion(found, most, limit);
    let mut after_seq = place.unwrap_or(replay.after_seq);
    if cut_at == Some(after_seq) && events.last().is_none_or(|event| event.seq < after_seq) {
        after_seq -= 1;
    }
    Candidates {
        events,
        after_seq,
        after_id: replay.after_id,
        last,
    }
}

/// What was found by time, of as many rows. What has another id than it was accepted under is found by that one, unless by its own already.
pub(super) fn next_in_time(
    replay: &Replay,
    mut found: Vec<Found<EventId>>,
    most: u32,
    limit: u32,
) -> Candidates {
    let (after, before) = ids(replay);
    let is_one = |under: EventId, event: &Candidate| {
        let (own, at) = (event.event.uuid(), Timestamp::from_millis(millis(under.uuid())));
        let is_found_by_its_own = own > after && own < before;
        let is_accepted_under = at >= event.received_at.minus(EARLIER) && at <= event.received_at.plus(LATER);
        replay.before_seq.is_none_or(|seq| event.seq < seq)
            && (own == under.uuid() || (is_accepted_under && !is_found_by_its_own))
    };
    for one in &mut found {
        let under = one.place;
        one.event = one.event.take().filter(|event| is_one(under, event));
    }
    let (events, place, last) = portion(found, most, limit);
    Candidates {
        events,
        after_seq: replay.after_seq,
        after_id: place.or(replay.after_id),
        last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventPattern, OrganizationId, ReplayId, SubscriptionId, store::ReplayStatus};

    const HOUR: Duration = Duration::from_hours(1);

    /// Of ten minutes, a week ago.
    fn of_ten_minutes(statuses: Vec<DeliveryState>) -> Replay {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let since = now.minus(7 * 24 * HOUR);
        Replay {
            id: ReplayId::new(),
            organization: OrganizationId::new(),
            subscription: SubscriptionId::new(),
            since: Some(since),
            until: since.plus(Duration::from_mins(10)),
            statuses,
            event_types: vec![EventPattern::all()],
            status: ReplayStatus::Running,
            before_seq: None,
            way: None,
            after_seq: 0,
            after_id: None,
            looked_at: 0,
            opened: 0,
            created_at: now,
            updated_at: now,
        }
    }

    fn sample(events: u64, ours: u64, replay: &Replay) -> Sample {
        Sample {
            events,
            ours,
            first: Some(first_id(replay.since.unwrap())),
            oldest: Some(first_id(replay.created_at.minus(30 * 24 * HOUR))),
        }
    }

    #[test]
    fn the_shortest_way_is_by_how_much_there_is() {
        let (delivered, dead) = (DeliveryState::Delivered, DeliveryState::DeadLetter);
        let few = Some(u64::from(FEW) - 1);
        let many = Some(u64::from(FEW));
        for (statuses, dead, (events, ours), walk) in [
            // As good as all of the deployment's are ours, or some, or hardly any.
            (vec![delivered], None, (1_000, 1_000), Walk::Time),
            (vec![delivered], None, (1_000, 100), Walk::Time),
            (vec![delivered], None, (1_000, 10), Walk::Order),
            (vec![delivered], None, (1_000, 0), Walk::Order),
            // There are so few in the window that it is looked through at once.
            (vec![delivered], None, (999, 0), Walk::Time),
            (vec![delivered], None, (0, 0), Walk::Time),
            (vec![dead], few, (1_000, 1_000), Walk::DeadLetters),
            (vec![dead], many, (1_000, 1_000), Walk::Time),
            (vec![dead], many, (1_000, 0), Walk::DeadLetters),
        ] {
            let replay = of_ten_minutes(statuses);
            let day = |at: Timestamp| first_id(Timestamp::from_millis(at.millis() / 86_400_000 * 86_400_000));
            let days = (day(replay.since.unwrap()), day(replay.until.plus(24 * HOUR)));
            let sample = sample(events, ours, &replay);
            let found = shortest(&replay, days, dead, Some(&sample));
            assert_eq!(found, walk, "{dead:?} {events} {ours}");
            // It is no shorter than the whole.
            let whole = Replay {
                since: Some(replay.created_at.minus(60 * 24 * HOUR)),
                until: replay.created_at,
                ..replay
            };
            let all = (Uuid::nil(), Uuid::max());
            let found = shortest(&whole, all, many.filter(|_| dead.is_some()), Some(&sample));
            assert_eq!(found == Walk::Time, events < 1_000, "{dead:?} {events} {ours}");
        }
        let replay = of_ten_minutes(vec![delivered]);
        assert_eq!(
            shortest(&replay, (Uuid::nil(), Uuid::max()), None, None),
            Walk::Order
        );
    }

    #[test]
    fn how_far_it_is_lies_between_nothing_and_all() {
        let in_order = Way {
            walk: Walk::Order,
            first: (7 << 40) + 1,
            last: (7 << 40) + 4,
        };
        let at = |seq| in_order.progress(seq, None);
        let found = [i64::MIN, 0, 7 << 40, (7 << 40) + 1, (7 << 40) + 4, i64::MAX].map(at);
        assert_eq!(format!("{found:?}"), "[0.0, 0.0, 0.0, 0.25, 1.0, 1.0]");
        let none = super::in_order(Walk::Order, None);
        let found = [i64::MIN, 0, i64::MAX].map(|seq| none.progress(seq, None));
        assert_eq!(format!("{found:?}"), "[0.0, 0.0, 0.0]");
        let replay = of_ten_minutes(vec![DeliveryState::Delivered]);
        let in_time = by_time(&replay, &sample(1_000, 1_000, &replay));
        let at = |at: Option<Timestamp>| {
            let id = at.map(|at| EventId::from_uuid(first_id(at)));
            in_time.progress(i64::MAX, id)
        };
        let since = replay.since.unwrap();
        let half = since.plus((HOUR + Duration::from_mins(10)) / 2);
        let found = [
            None,
            Some(since.minus(HOUR)),
            Some(half),
            Some(since.plus(3 * HOUR)),
        ]
        .map(at);
        assert_eq!(format!("{found:?}"), "[0.0, 0.0, 0.5, 1.0]");
    }
}
