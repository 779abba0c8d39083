//! What was taken from a limit, until it is known what becomes of it.

use std::sync::Arc;

use shared::{Grant, queue::Stake};

use super::{Account, Limits};

/// So many events' worth of an organization's limit. What was accepted of it is counted as used; the rest is given back when
/// this is dropped. On its way to the queue it goes with the events, so that it is settled by what becomes of them there,
/// whoever has hung up meanwhile.
pub(crate) struct Taken {
    limits: Arc<Limits>,
    account: Arc<Account>,
    events: usize,
}

impl Taken {
    /// So many events' worth that were taken for whoever has this grant.
    pub(super) fn of(limits: &Arc<Limits>, grant: &Grant, events: usize) -> Self {
        Self {
            limits: Arc::clone(limits),
            account: limits.account(grant),
            events,
        }
    }

    /// As many as another more, of the same organization.
    pub(crate) fn add(&mut self, mut other: Self) {
        self.events += std::mem::take(&mut other.events);
    }

    /// So many of it, which are settled by themselves.
    pub(crate) fn part(&mut self, events: usize) -> Self {
        self.events -= events;
        Self {
            limits: Arc::clone(&self.limits),
            account: Arc::clone(&self.account),
            events,
        }
    }

    /// So many of it were accepted.
    pub(crate) fn accept(&mut self, events: usize) {
        self.events -= events;
        self.limits.count_for(&self.account, events, 0);
    }
}

impl Stake for Taken {
    fn confirmed(mut self: Box<Self>) {
        let events = self.events;
        self.accept(events);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.events > 0
            && let Some(mut bucket) = self.account.bucket()
        {
            bucket.give_back(i64::try_from(self.events).unwrap_or(i64::MAX));
        }
    }
}
