//! The two pools of attempts, and places in them.

use shared::SubscriptionId;

use super::Bounds;

/// Where an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum In {
    Trusted,
    Suspect,
}

/// An attempt's place in its lane and in a pool. To be given back, once.
#[derive(Debug)]
pub struct Place {
    pub(super) subscription: SubscriptionId,
    /// Of which of the lane's subscribers it is.
    pub(super) of: u64,
    pub(super) pool: In,
    pub(super) weight: usize,
    pub(super) in_order: bool,
    pub(super) is_probe: bool,
    pub(super) is_slow: bool,
}

impl Place {
    /// Whose lane it is in.
    pub fn subscription(&self) -> SubscriptionId {
        self.subscription
    }

    /// Whether the lane was in order when the attempt began: it goes on once it is told what came of it, whatever its terms
    /// are by then.
    pub fn in_order(&self) -> bool {
        self.in_order
    }

    /// Whether it is among those of subscribers that answer quickly.
    pub fn is_trusted(&self) -> bool {
        self.pool == In::Trusted
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pool {
    pub(super) in_flight: usize,
    pub(super) bytes: usize,
}

impl Pool {
    pub(super) fn has_room(self, bounds: &Bounds) -> bool {
        self.in_flight < bounds.in_flight && self.bytes < bounds.in_flight_bytes
    }

    pub(super) fn add(&mut self, weight: usize) {
        self.in_flight += 1;
        self.bytes += weight;
    }

    pub(super) fn remove(&mut self, weight: usize) {
        self.in_flight -= 1;
        self.bytes -= weight;
    }
}
