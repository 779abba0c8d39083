//! The clock, chance, and the way to the store.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::EventId;
use tokio::time::Instant;
use uuid::Uuid;

use super::{ledger::Ledger, model::Model};

/// What the store is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Enlist,
    Renew,
    Resign,
    Own,
    HandOver,
    Disown,
    Claim,
    ClaimInOrder,
    Insert,
    Release,
    Record,
    /// What is only read.
    Ask,
    /// What nobody waits for.
    Tell,
}

impl Call {
    pub(super) const ALL: [Self; 13] = [
        Self::Enlist,
        Self::Renew,
        Self::Resign,
        Self::Own,
        Self::HandOver,
        Self::Disown,
        Self::Claim,
        Self::ClaimInOrder,
        Self::Insert,
        Self::Release,
        Self::Record,
        Self::Ask,
        Self::Tell,
    ];
}

type Late = Box<dyn FnOnce(&mut Model, Instant)>;

pub(super) struct World {
    pub(super) random: StdRng,
    pub(super) now: Instant,
    pub(super) store: Model,
    pub(super) ledger: Ledger,
    /// Whether anything goes wrong.
    pub(super) faults: bool,
    /// Which calls do, if not all: what one doubt mends hides what another would not.
    fails: Option<Call>,
    /// Calls that were given up, and may be committed yet.
    late: Vec<Late>,
    events: u128,
    /// How many calls were committed whose answers nobody got, at once and later.
    pub(super) lost: u32,
    pub(super) committed_late: u32,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let which = random.random_range(0..2 * Call::ALL.len());
        Self {
            random,
            fails: Call::ALL.get(which).copied(),
            now: Instant::now(),
            store: Model::default(),
            ledger: Ledger::default(),
            faults: true,
            late: Vec::new(),
            events: 0,
            lost: 0,
            committed_late: 0,
        }
    }

    pub(super) fn new_event(&mut self) -> EventId {
        self.events += 1;
        EventId::from_uuid(Uuid::from_u128(self.events))
    }

    /// Asks the store. There may be no answer, whether the call is committed, will be, or never.
    pub(super) fn ask<T>(
        &mut self,
        what: Call,
        call: impl FnOnce(&mut Model, Instant) -> T + 'static,
    ) -> Option<T> {
        let one_in = if self.fails == Some(what) { 3 } else { 12 };
        let is_lost = self.goes_wrong(what) && self.random.random_range(0..one_in) == 0;
        if !is_lost {
            return Some(call(&mut self.store, self.now));
        }
        if self.random.random() {
            call(&mut self.store, self.now);
            self.lost += 1;
        } else {
            self.late.push(Box::new(|store, now| drop(call(store, now))));
        }
        None
    }

    /// Whether the store refuses an outcome for good.
    pub(super) fn refuses(&mut self) -> bool {
        let one_in = if self.fails == Some(Call::Record) { 4 } else { 50 };
        self.goes_wrong(Call::Record) && self.random.random_range(0..one_in) == 0
    }

    fn goes_wrong(&self, what: Call) -> bool {
        self.faults && self.fails.is_none_or(|fails| fails == what)
    }

    /// What was given up is committed, or ends.
    pub(super) fn commit_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let call = self
            .late
            .swap_remove(self.random.random_range(0..self.late.len()));
        if self.random.random_range(0..3) > 0 {
            call(&mut self.store, self.now);
            self.committed_late += 1;
        }
    }
}
