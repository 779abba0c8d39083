//! What fails: held while the store is away, parted while it is not, until what is at fault is alone.
//!
//! After a failure the store is asked to rehearse. If it cannot, that is an outage: everything is held, nothing counts as a
//! try, and no frame goes back to the queue, where each return would count towards the dead queue. If it can, the failure
//! is the portion's own: it is parted, and its parts are tried at once. What is alone is tried a few times, with a pause,
//! and then set aside, so that it never holds up what is behind it for longer than that. Tries are counted here, in memory:
//! a worker that starts again begins anew. What the worker itself lacks, a thread to read filters on, is no failure of the portion
//! either: it waits for that as for the store.

use std::time::Duration;

use shared::{
    AcceptedEvent, EventId, Repeat, Timestamp,
    store::{self, SetAside, StoreError},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    BATCH_EVENTS, Intake, IntakeError,
    aside::{Reason, event_aside},
    pauses, traced,
};

/// How often something alone may fail, while the store takes others, before it is set aside.
const TRIES: u32 = 5;
/// How long after a failure it is tried again.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// How long frames are held while the store is away. RabbitMQ takes back what is not acknowledged after half an hour: they
/// are let go of sooner, once, and the next are taken when the store is back.
const HOLD: Duration = Duration::from_mins(15);

/// Events and notes of repeats that are stored together.
#[derive(Debug, Default)]
struct Portion {
    events: Vec<AcceptedEvent>,
    repeats: Vec<Repeat>,
    /// How often it has failed, being alone.
    failures: u32,
}

impl Portion {
    fn is_alone(&self) -> bool {
        self.events.len() + self.repeats.len() == 1
    }

    /// Two halves, of which neither is empty if it is not alone. A single event and a single repeat part between the two.
    fn part(mut self) -> [Self; 2] {
        let events = self.events.split_off(self.events.len() / 2);
        let repeats = self.repeats.split_off(self.repeats.len().div_ceil(2));
        let other = Self {
            events,
            repeats,
            failures: 0,
        };
        [self, other]
    }

    fn ids(&self) -> Vec<EventId> {
        let repeats = self.repeats.iter().map(|repeat| repeat.id);
        self.events.iter().map(|event| event.id).chain(repeats).collect()
    }
}

/// Portions of a batch each; by id, so that two workers cannot wait for each other, and a frame that came twice is seen
/// once.
fn portions(mut events: Vec<AcceptedEvent>, mut repeats: Vec<Repeat>) -> Vec<Portion> {
    events.sort_unstable_by_key(|event| event.id);
    events.dedup_by_key(|event| event.id);
    repeats.sort_unstable_by_key(|repeat| repeat.id);
    repeats.dedup_by_key(|repeat| repeat.id);
    let mut portions: Vec<Portion> = Vec::with_capacity(events.len() / BATCH_EVENTS + 1);
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() || !repeats.is_empty() {
        portions.push(Portion {
            events: events.by_ref().take(BATCH_EVENTS).collect(),
            repeats: std::mem::take(&mut repeats),
            ..Portion::default()
        });
    }
    portions
}

impl Intake {
    /// Stores all of it, or sets aside what cannot be stored. Fails once it has held on for too long, or is to stop.
    pub(super) async fn settle(
        &self,
        events: Vec<AcceptedEvent>,
        repeats: Vec<Repeat>,
        soft: &CancellationToken,
    ) -> Result<(), IntakeError> {
        let mut round = portions(events, repeats);
        let since = Instant::now();
        loop {
            let again = self.try_each(round, since, soft).await?;
            if again.is_empty() {
                return Ok(());
            }
            pause(BETWEEN_TRIES, soft).await?;
            round = again;
        }
    }

    /// Sets frames aside, however long that takes.
    pub(super) async fn settle_aside(
        &self,
        items: &[SetAside],
        soft: &CancellationToken,
    ) -> Result<(), IntakeError> {
        let since = Instant::now();
        while let Err(error) = self.set_aside(items).await {
            if !self.outlast(&error, since, soft).await? {
                pause(BETWEEN_TRIES, soft).await?;
            }
        }
        Ok(())
    }

    /// Tries each portion, and its parts if it fails; gives what is alone and to be tried again.
    async fn try_each(
        &self,
        portions: Vec<Portion>,
        since: Instant,
        soft: &CancellationToken,
    ) -> Result<Vec<Portion>, IntakeError> {
        let mut again = Vec::new();
        let mut left: Vec<Portion> = portions.into_iter().rev().collect();
        while let Some(mut portion) = left.pop() {
            if soft.is_cancelled() {
                return Err(IntakeError::Stopped);
            }
            let Err(error) = self.try_one(&mut portion, since).await else {
                continue;
            };
            if error.is_own() {
                if since.elapsed() > HOLD {
                    return Err(error);
                }
                tracing::warn!(%error, "events wait for their filters; frames are held");
                pause(BETWEEN_TRIES, soft).await?;
                left.push(portion);
            } else if !error.is_refusal() && self.outlast(&error, since, soft).await? {
                left.push(portion);
            } else if portion.is_alone() {
                portion.failures += 1;
                if !self.give_up(&portion, &error, since).await {
                    again.push(portion);
                }
            } else {
                tracing::warn!(%error, events = portion.events.len(), "a batch fails; parting it");
                left.extend(portion.part().into_iter().rev());
            }
        }
        Ok(again)
    }

    /// Stores a portion. What is out of range leaves it, and is set aside.
    async fn try_one(&self, portion: &mut Portion, since: Instant) -> Result<(), IntakeError> {
        // The store's clock counts: it is asked about those alone that are far from now by this worker's.
        let now = Timestamp::now();
        let ids = portion.events.iter().map(|event| event.id);
        let far: Vec<EventId> = ids
            .filter(|id| !store::is_in_range(*id, now, self.retention))
            .collect();
        if !far.is_empty() {
            self.admit(portion, &far, since).await?;
        }
        match self.store_portion(portion, since).await {
            Err(IntakeError::Store(StoreError::Refused(error))) if store::is_missing_partition(&error) => {
                let ids = portion.ids();
                self.admit(portion, &ids, since).await?;
                self.store_portion(portion, since).await
            }
            stored => stored,
        }
    }

    async fn store_portion(&self, portion: &Portion, since: Instant) -> Result<(), IntakeError> {
        if portion.events.is_empty() && portion.repeats.is_empty() {
            return Ok(());
        }
        self.store_batch(&portion.events, &portion.repeats, since).await
    }

    /// Has room made for these ids of a portion; what will have none is set aside and leaves it.
    async fn admit(&self, portion: &mut Portion, ids: &[EventId], since: Instant) -> Result<(), IntakeError> {
        let out = self.store.events.admit(ids, self.retention).await?;
        let why = "the time of its id is further back than events are kept, or more than a day ahead";
        let items: Vec<SetAside> = portion
            .events
            .iter()
            .filter(|event| out.contains(&event.id))
            .map(|event| event_aside(Reason::IdOutOfRange, &why, event))
            .collect();
        self.set_aside(&items).await?;
        let out_of_range = portion.events.extract_if(.., |event| out.contains(&event.id));
        let out_of_range: Vec<AcceptedEvent> = out_of_range.collect();
        traced::not_stored(&out_of_range, Reason::IdOutOfRange, since);
        portion.repeats.retain(|repeat| !out.contains(&repeat.id));
        Ok(())
    }

    /// Whether something alone that has failed is done with: set aside, or, a mere note of a repeat, dropped.
    async fn give_up(&self, portion: &Portion, error: &IntakeError, since: Instant) -> bool {
        let reason = if error.is_refusal() {
            Reason::Refused
        } else if portion.failures >= TRIES {
            Reason::RepeatedlyFailing
        } else {
            tracing::warn!(%error, event.ids = ?portion.ids(), "it fails alone, and is tried again");
            return false;
        };
        let Some(event) = portion.events.first() else {
            tracing::warn!(%error, "a note of a repeat cannot be taken in, and is dropped");
            return true;
        };
        match self.set_aside(&[event_aside(reason, error, event)]).await {
            Ok(()) => {
                traced::not_stored(&portion.events, reason, since);
                true
            }
            Err(error) => {
                tracing::warn!(%error, event.id = %event.id, "it cannot be set aside either, and is tried again");
                false
            }
        }
    }

    /// Waits until the store takes events in. `false` if it does at once: what failed did so by itself.
    async fn outlast(
        &self,
        error: &IntakeError,
        since: Instant,
        soft: &CancellationToken,
    ) -> Result<bool, IntakeError> {
        let mut outage = false;
        let mut pauses = pauses();
        loop {
            let rehearsed = tokio::select! {
                () = soft.cancelled() => return Err(IntakeError::Stopped),
                rehearsed = self.store.events.rehearse() => rehearsed,
            };
            let Err(rehearsal) = rehearsed else {
                if outage {
                    tracing::info!("the store takes events in again");
                }
                return Ok(outage);
            };
            if !outage {
                tracing::warn!(%error, %rehearsal, "the store takes nothing in; frames are held");
                outage = true;
            }
            if since.elapsed() > HOLD {
                return Err(rehearsal.into());
            }
            pause(pauses.next().unwrap_or(BETWEEN_TRIES), soft).await?;
        }
    }
}

/// Waits, unless it is to stop.
async fn pause(time: Duration, soft: &CancellationToken) -> Result<(), IntakeError> {
    tokio::select! {
        () = soft.cancelled() => Err(IntakeError::Stopped),
        () = tokio::time::sleep(time) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::OrganizationId;

    use super::*;
    use crate::real_store::accepted;

    fn repeat() -> Repeat {
        Repeat {
            id: EventId::new(),
            organization: OrganizationId::new(),
            first: EventId::new(),
            differs: false,
        }
    }

    proptest! {
        #[test]
        fn parting_ends_with_each_alone(events in 0..40usize, repeats in 0..20usize) {
            let events: Vec<_> = (0..events).map(|_| accepted(OrganizationId::new(), "order.placed")).collect();
            let repeats: Vec<_> = (0..repeats).map(|_| repeat()).collect();
            let mut expected: Vec<EventId> = events.iter().map(|event| event.id).collect();
            expected.extend(repeats.iter().map(|repeat| repeat.id));
            expected.sort_unstable();
            let (mut left, mut alone) = (portions(events, repeats), Vec::new());
            while let Some(portion) = left.pop() {
                let size = portion.ids().len();
                if portion.is_alone() {
                    alone.extend(portion.ids());
                } else {
                    let parts = portion.part();
                    prop_assert!(parts.iter().all(|part| (1..size).contains(&part.ids().len())));
                    left.extend(parts);
                }
            }
            alone.sort_unstable();
            prop_assert_eq!(alone, expected);
        }
    }
}
