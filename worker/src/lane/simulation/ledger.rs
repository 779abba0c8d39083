//! What subscribers have seen, and whether it may be so.

use std::collections::HashMap;

use super::{model::Model, *};

/// An attempt that is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) event: EventId,
    /// How many there were before.
    pub(super) attempts: u32,
    /// By whose lease.
    pub(super) holder: WorkerId,
    /// When it was taken.
    pub(super) since: Instant,
    pub(super) in_order: bool,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    arrivals: HashMap<EventId, Vec<Sent>>,
    /// By lane, in their order.
    first_arrivals: HashMap<SubscriptionId, Vec<i64>>,
    /// Sent, and not answered. What a worker that crashed had sent stays here.
    under_way: Vec<Sent>,
    pub(super) sent: usize,
    /// The same attempt, made again.
    pub(super) again: usize,
    /// Sent by a lease that was over by then.
    pub(super) overdue: usize,
}

impl Ledger {
    /// An attempt gets to its subscriber.
    pub(super) fn arrives(&mut self, store: &mut Model, sent: Sent, now: Instant) {
        let Sent {
            event,
            attempts,
            holder,
            since,
            in_order,
        } = sent;
        let ((lane, seq), is_live) = (store.place(event), store.lives(holder, now));
        let rows = &store.lane(lane).rows;
        // What is opened again is next from then on.
        let was_open = |row: &model::Row| row.open && row.opened_again.is_none_or(|at| at < since);
        let earlier = rows.range(..seq).find(|(_, row)| was_open(row));
        let passes = earlier
            .filter(|_| in_order)
            .map(|earlier| format!("{seq} is sent while {earlier:?} is open"));
        let arrivals = self.arrivals.entry(event).or_default();
        let mut is_repeated = false;
        for before in arrivals.iter().filter(|before| before.attempts == attempts) {
            // Then a worker may hold it twice, and give it back for the one while it sends the other.
            let was_opened = store.row(event).opened_again.is_some();
            is_repeated |= is_live && store.lives(before.holder, now) && !was_opened;
            self.again += 1;
        }
        if arrivals.is_empty() {
            self.first_arrivals.entry(lane).or_default().push(seq);
            self.sent += 1;
        }
        arrivals.push(sent);
        self.overdue += usize::from(!is_live);
        self.under_way.push(sent);
        let is_held = |sent: &&Sent| {
            sent.in_order && store.place(sent.event).0 == lane && store.holds(sent.holder, sent.event, now)
        };
        let held = self.under_way.iter().filter(is_held).count();
        store.check(passes.is_none(), || passes.unwrap_or_default());
        store.check(!is_repeated, || {
            format!("{seq} is sent twice by leases that live")
        });
        store.check(held <= 1, || {
            format!("{held} are sent at once in a lane in order")
        });
    }

    /// The subscriber has answered.
    pub(super) fn is_answered(&mut self, event: EventId, holder: WorkerId) {
        self.under_way
            .retain(|sent| (sent.event, sent.holder) != (event, holder));
    }

    /// What must be so in the end, with these in order from the beginning.
    pub(super) fn look_over(&self, store: &mut Model, always_in_order: &[SubscriptionId]) {
        let mut wrong = Vec::new();
        for (id, lane) in &store.lanes {
            for (seq, row) in &lane.rows {
                if !row.acknowledged && !self.arrivals.contains_key(&row.event) {
                    wrong.push(format!("{seq} never arrived"));
                }
                if row.closed != row.opened {
                    wrong.push(format!("{seq} was closed more than once"));
                }
            }
            let mut first = self.first_arrivals.get(id).cloned().unwrap_or_default();
            first.retain(|seq| !lane.rows[seq].acknowledged && lane.rows[seq].opened_again.is_none());
            if always_in_order.contains(id) && !first.is_sorted() {
                wrong.push(format!("they came as {first:?}"));
            }
        }
        store.check(wrong.is_empty(), || wrong.join(", "));
    }
}
