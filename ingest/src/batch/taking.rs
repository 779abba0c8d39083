//! From well-formed events to their outcomes: limit, keys, frames.
//!
//! Entries are gathered into parts of a frame's size, and a part is published only once the one before it is confirmed. If
//! one is not, those after it are not tried: what gets into the queue is always the beginning of the batch, in order.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use shared::{
    DedupId, Entry, EventId, EventType, Timestamp,
    event::Digest16,
    http::{ApiError, Code},
    queue::{MAX_FRAME_BYTES, PublishError, frame},
};
use tokio::time::{Instant, timeout_at};

use super::MAX_EVENTS;
use crate::{
    accepted::Accepted,
    limit::Taken,
    posted::Posted,
    poster::Poster,
    recent::{Claim, First, Pending},
    sending::Sending,
};

/// What came of an event.
type Outcome = Result<Accepted, ApiError>;

// The notes of a batch fit into one frame.
const _: () = assert!(MAX_EVENTS * 200 <= MAX_FRAME_BYTES);

/// Puts what is well formed into the queue, and gives what came of each, in their order.
pub(super) async fn take(
    poster: &Poster<'_>,
    events: Vec<Result<Posted, ApiError>>,
    deadline: Instant,
) -> Vec<Outcome> {
    let (outcomes, events, taken) = within_limit(poster, events);
    let limited = |outcome: &&Outcome| {
        let error = outcome.as_ref().err();
        error.is_some_and(|error| error.code() == Code::RateLimited)
    };
    poster.count_refused(outcomes.iter().filter(limited).count());
    let mut batch = Batch {
        poster,
        deadline,
        received_at: Timestamp::now(),
        taken,
        claims: HashMap::new(),
        firsts: HashMap::new(),
        part: Part::default(),
        notes: Part::default(),
        stopped: false,
        outcomes,
    };
    batch.claim(&events).await;
    let mut later = Vec::new();
    for (place, event) in events {
        later.extend(batch.put(place, event).await);
    }
    batch.flush().await;
    for event in later {
        batch.settle(event);
    }
    batch.send_notes();
    batch.outcomes
}

/// Takes each event's worth from the limit. Past the first for which there is none, none is taken: a later one that got
/// in would come before it. What may be tried is refused until it is.
fn within_limit(
    poster: &Poster<'_>,
    events: Vec<Result<Posted, ApiError>>,
) -> (Vec<Outcome>, Vec<(usize, Posted)>, Taken) {
    let mut within = Vec::with_capacity(events.len());
    let mut taken = poster.taken(0);
    let mut full: Option<ApiError> = None;
    let outcomes = events.into_iter().enumerate().map(|(place, event)| {
        let event = event?;
        if full.is_none() {
            match poster.take_room() {
                Ok((one, _)) => taken.add(one),
                Err(error) => full = Some(error),
            }
        }
        if let Some(error) = &full {
            return Err(error.clone());
        }
        within.push((place, event));
        Err(ApiError::unavailable(
            "another event of the batch did not get in, so this one was not tried; try again",
            Duration::from_secs(1),
        ))
    });
    let outcomes = outcomes.collect();
    (outcomes, within, taken)
}

/// A batch on its way.
struct Batch<'a> {
    poster: &'a Poster<'a>,
    deadline: Instant,
    received_at: Timestamp,
    /// What was taken from the limit for events of which it is not known what becomes of them.
    taken: Taken,
    /// What is known of the keys of the batch. A new one is here until its first event comes.
    claims: HashMap<DedupId, Claim<'a>>,
    /// Where the first event of each new key is, and once it is confirmed, what a repeat needs to know of it.
    firsts: HashMap<DedupId, (usize, Option<First>)>,
    /// Events that are not published yet.
    part: Part<'a>,
    /// Notes of repeats.
    notes: Part<'a>,
    /// Whether nothing more is tried.
    stopped: bool,
    outcomes: Vec<Outcome>,
}

/// Entries that go together into one frame.
#[derive(Default)]
struct Part<'a> {
    bytes: Vec<u8>,
    entries: usize,
    events: Vec<Written<'a>>,
}

/// An event that is written into a part.
struct Written<'a> {
    place: usize,
    id: EventId,
    event_type: EventType,
    key: Option<NewKey<'a>>,
    sending: Sending,
}

/// A key that the batch is the first to have.
struct NewKey<'a> {
    key: DedupId,
    pending: Pending<'a>,
    digest: Digest16,
}

/// An event whose key an earlier one of the batch has.
struct Later {
    place: usize,
    event: Posted,
}

impl<'a> Batch<'a> {
    /// Asks for all keys, in an order of theirs, so that two batches never wait for each other.
    async fn claim(&mut self, events: &[(usize, Posted)]) {
        let keys = |(place, event): &'_ (usize, Posted)| Some((event.dedup_id.clone()?, *place));
        let keys: BTreeMap<DedupId, usize> = events.iter().rev().filter_map(keys).collect();
        let Poster { ingest, grant, .. } = self.poster;
        for (key, place) in keys {
            let claim = ingest.recent.claim(grant.organization, &key);
            let Ok(claim) = timeout_at(self.deadline, claim).await else {
                self.outcomes[place] = Err(PublishError::TimedOut.into());
                self.stopped = true;
                return;
            };
            self.claims.insert(key, claim);
        }
    }

    /// Writes an event into a part, unless it is a repeat. One whose first is in this batch has to wait for what becomes of
    /// that.
    async fn put(&mut self, place: usize, event: Posted) -> Option<Later> {
        let mut new = None;
        if let Some(key) = &event.dedup_id {
            match self.claims.remove(key) {
                Some(Claim::Known(first)) => {
                    self.claims.insert(key.clone(), Claim::Known(first));
                    self.repeat(place, &first, event);
                    return None;
                }
                Some(Claim::New(pending)) => new = Some((key.clone(), pending)),
                None if self.firsts.contains_key(key) => return Some(Later { place, event }),
                None => {}
            }
        }
        if self.stopped {
            return None;
        }
        let key = new.map(|(key, pending)| {
            self.firsts.insert(key.clone(), (place, None));
            let digest = Digest16::of(&event.event_type, &event.payload);
            NewKey { key, pending, digest }
        });
        let id = EventId::new();
        let mut event = event.under(id, self.poster.grant.organization, self.received_at);
        let written = Written {
            place,
            id,
            event_type: event.event_type.clone(),
            key,
            sending: Sending::begin(&mut event),
        };
        self.write(written, &Entry::Event(event)).await;
        None
    }

    /// Writes an entry behind those of its part; if it does not fit there, they go first.
    async fn write(&mut self, written: Written<'a>, entry: &Entry) {
        let before = self.part.bytes.len();
        frame::encode_into(&mut self.part.bytes, entry);
        if before > 0 && self.part.bytes.len() > MAX_FRAME_BYTES {
            let bytes = self.part.bytes.split_off(before);
            self.flush().await;
            if self.stopped {
                written.sending.not_tried();
                return;
            }
            self.part.bytes = bytes;
        }
        self.part.entries += 1;
        self.part.events.push(written);
    }

    /// Publishes the part, and waits until it is confirmed. If it is not, nothing more is tried.
    async fn flush(&mut self) {
        let mut part = std::mem::take(&mut self.part);
        if part.entries == 0 {
            return;
        }
        let events = std::mem::take(&mut part.events);
        let taken = Box::new(self.taken.part(part.entries));
        let entries = part.into_entries(self.poster);
        let published = self
            .poster
            .ingest
            .publisher
            .publish_for(entries, taken, self.deadline)
            .await;
        self.stopped |= published.is_err();
        for mut written in events {
            let place = written.place;
            written.sending.ended(published.as_ref());
            self.outcomes[place] = match published {
                Ok(()) => Ok(self.confirm(written)),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// An event is on disk.
    fn confirm(&mut self, written: Written<'a>) -> Accepted {
        let Written { id, event_type, .. } = written;
        if let Some(NewKey { key, pending, digest }) = written.key {
            let first = First::new(id, self.received_at, digest);
            pending.confirm(first);
            self.firsts.insert(key, (written.place, Some(first)));
        }
        Accepted {
            id,
            event_type,
            received_at: self.received_at,
            repeat: None,
        }
    }

    /// What became of the first event of a key became of a later one.
    fn settle(&mut self, Later { place, event }: Later) {
        let first = event
            .dedup_id
            .as_ref()
            .and_then(|key| self.firsts.get(key))
            .copied();
        match first {
            Some((_, Some(first))) => self.repeat(place, &first, event),
            Some((of, None)) => {
                let outcome = self.outcomes[of].clone();
                self.outcomes[place] = outcome;
            }
            None => {}
        }
    }

    /// Answers a repeat, and notes it.
    fn repeat(&mut self, place: usize, first: &First, event: Posted) {
        let organization = self.poster.grant.organization;
        let (accepted, note) = Accepted::again(first, organization, event.event_type, &event.payload);
        frame::encode_into(&mut self.notes.bytes, &note);
        self.notes.entries += 1;
        self.taken.accept(1);
        self.outcomes[place] = Ok(accepted);
    }

    fn send_notes(&mut self) {
        let notes = std::mem::take(&mut self.notes);
        if notes.entries > 0 {
            let notes = notes.into_entries(self.poster);
            self.poster.ingest.publisher.publish_unconfirmed(notes);
        }
    }
}

impl Part<'_> {
    fn into_entries(self, poster: &Poster<'_>) -> frame::Encoded {
        frame::Encoded {
            organization: poster.grant.organization,
            bytes: self.bytes.into(),
            entries: self.entries,
        }
    }
}
