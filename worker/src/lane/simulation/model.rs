//! What the store's traits promise of lanes, deliveries and leases, with nothing behind it.

use std::collections::{BTreeMap, HashMap};

use shared::{EventId, WorkerId};
use tokio::time::Instant;

use super::{Duration, LEASE};

#[derive(Debug)]
pub(super) struct Row {
    pub(super) event: EventId,
    pub(super) open: bool,
    pub(super) due_at: Instant,
    pub(super) attempts: u32,
    pub(super) owner: Option<WorkerId>,
    pub(super) acknowledged: bool,
    /// When it was opened again, if it was.
    pub(super) opened_again: Option<Instant>,
}

/// An attempt's outcome, to be written down.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) worker: WorkerId,
    pub(super) event: EventId,
    pub(super) attempts: u32,
    /// When the next attempt is due, if the subscriber refused and there is to be another.
    pub(super) next: Option<Duration>,
    /// Its lane waits for it.
    pub(super) in_order: bool,
}

/// What was taken: its `seq`, its event, and the attempts so far.
pub(super) type Taken = (i64, EventId, u32);

/// One lane in the store.
#[derive(Default)]
pub(super) struct Model {
    /// By `seq`.
    pub(super) rows: BTreeMap<i64, Row>,
    pub(super) seqs: HashMap<EventId, i64>,
    leases: HashMap<WorkerId, Instant>,
    lane_owner: Option<WorkerId>,
    pub(super) handed_over: u32,
}

impl Model {
    pub(super) fn lives(&self, worker: WorkerId, now: Instant) -> bool {
        self.leases.get(&worker).is_some_and(|until| *until > now)
    }

    /// Whether the lease lives, and by this for longer.
    pub(super) fn renew(&mut self, worker: WorkerId, now: Instant) -> bool {
        let lives = self.lives(worker, now);
        if lives {
            self.leases.insert(worker, now + LEASE);
        }
        lives
    }

    pub(super) fn enlist(&mut self, now: Instant) -> WorkerId {
        let worker = WorkerId::new();
        self.leases.insert(worker, now + LEASE);
        worker
    }

    pub(super) fn resign(&mut self, worker: WorkerId) {
        self.leases.remove(&worker);
    }

    pub(super) fn insert(&mut self, seq: i64, owner: Option<WorkerId>, now: Instant) -> EventId {
        let event = EventId::new();
        let row = Row {
            event,
            open: true,
            due_at: now,
            attempts: 0,
            owner,
            acknowledged: false,
            opened_again: None,
        };
        self.rows.insert(seq, row);
        self.seqs.insert(event, seq);
        event
    }

    pub(super) fn own(&mut self, worker: WorkerId, now: Instant) -> bool {
        if !self.lives(worker, now) {
            return false;
        }
        if self.lane_owner.is_none_or(|owner| !self.lives(owner, now)) {
            self.lane_owner = Some(worker);
        }
        self.lane_owner == Some(worker)
    }

    pub(super) fn hand_over(&mut self, from: WorkerId, to: WorkerId, now: Instant) {
        if self.lane_owner == Some(from) && self.lives(to, now) {
            self.lane_owner = Some(to);
            self.handed_over += 1;
        }
    }

    pub(super) fn disown(&mut self, worker: WorkerId) {
        if self.lane_owner == Some(worker) {
            self.lane_owner = None;
        }
    }

    /// The beginning of the lane, as far as nothing in it keeps the rest waiting.
    pub(super) fn claim_in_order(&mut self, worker: WorkerId, most: usize, now: Instant) -> Vec<Taken> {
        if self.lane_owner != Some(worker) || !self.lives(worker, now) {
            return Vec::new();
        }
        let mut claimed = Vec::new();
        let leases = &self.leases;
        for (seq, row) in self.rows.iter_mut().filter(|(_, row)| row.open).take(most) {
            if is_held(row, leases, now) || row.due_at > now {
                break;
            }
            row.owner = Some(worker);
            claimed.push((*seq, row.event, row.attempts));
        }
        claimed
    }

    /// What has been due for longest, unless the lane is another's.
    pub(super) fn claim(&mut self, worker: WorkerId, most: usize, now: Instant) -> Vec<Taken> {
        let anothers = |owner: WorkerId| owner != worker && self.lives(owner, now);
        if !self.lives(worker, now) || self.lane_owner.is_some_and(anothers) {
            return Vec::new();
        }
        let leases = &self.leases;
        let due = |row: &Row| row.open && row.due_at <= now && !is_held(row, leases, now);
        let mut due: Vec<_> = self.rows.iter_mut().filter(|(_, row)| due(row)).collect();
        due.sort_by_key(|(_, row)| row.due_at);
        let take = |(seq, row): (&i64, &mut Row)| {
            row.owner = Some(worker);
            (*seq, row.event, row.attempts)
        };
        due.into_iter().take(most).map(take).collect()
    }

    pub(super) fn holds(&self, worker: WorkerId, event: EventId, now: Instant) -> bool {
        let row = &self.rows[&self.seqs[&event]];
        row.open && row.owner == Some(worker) && self.lives(worker, now)
    }

    pub(super) fn release(&mut self, worker: WorkerId, event: EventId) {
        let seq = self.seqs[&event];
        if let Some(row) = self.rows.get_mut(&seq)
            && row.open
            && row.owner == Some(worker)
        {
            row.owner = None;
        }
    }

    /// Whether the outcome applies.
    pub(super) fn record(&mut self, outcome: &Outcome, now: Instant) -> bool {
        if !self.holds(outcome.worker, outcome.event, now) {
            return false;
        }
        let seq = self.seqs[&outcome.event];
        let Some(row) = self.rows.get_mut(&seq) else {
            return false;
        };
        if row.attempts != outcome.attempts {
            return false;
        }
        row.attempts += 1;
        row.owner = None;
        match outcome.next {
            Some(after) => row.due_at = now + after,
            None => row.open = false,
        }
        true
    }

    /// Closes what is open, and opens what is closed.
    pub(super) fn turn(&mut self, seq: i64, now: Instant) -> Option<EventId> {
        let row = self.rows.get_mut(&seq)?;
        if row.open {
            row.open = false;
            row.acknowledged = true;
        } else {
            row.open = true;
            row.acknowledged = false;
            row.due_at = now;
            row.owner = None;
            row.opened_again = Some(now);
        }
        Some(row.event)
    }

    pub(super) fn open(&self) -> Vec<i64> {
        let open = self.rows.iter().filter(|(_, row)| row.open);
        open.map(|(seq, _)| *seq).collect()
    }
}

fn is_held(row: &Row, leases: &HashMap<WorkerId, Instant>, now: Instant) -> bool {
    row.owner
        .is_some_and(|owner| leases.get(&owner).is_some_and(|until| *until > now))
}
