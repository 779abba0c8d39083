//! How much room there is for a lane.
//!
//! Two thirds of all bytes are shared by a threshold that moves: a lane may come to hold a quarter of what is free of them
//! (Choudhury and Hahne's dynamic thresholds). One that holds little gets more, one that holds much has to send first, and
//! however many there are, some stays free.
//!
//! The last third of the bytes, and as many deliveries again as all lanes may hold, are kept for what can be sent at once in
//! the trusted pool. Nothing is there for long, since a place in that pool is free again within a second; what a lane has
//! there that turns out to hang or to fail goes back. So lanes that are slow, put off or at their limit never keep those
//! waiting whose subscribers answer, however many they are and however large what waits in them is.

use tokio::time::Instant;

use super::{Bounds, Lanes, single::Lane};

/// By how much what is free is divided, for the share of one lane.
const SHARES: usize = 4;
/// A lane that holds so many is not nearly empty.
const NEARLY_EMPTY: usize = 16;
/// A lane that holds more than this part of all bytes is not nearly empty, unless that is one delivery.
const NEARLY_EMPTY_OF: usize = 512;

impl Bounds {
    /// The bytes that any lane may have some of. The others are for those that can be sent at once.
    pub(super) fn shared_bytes(&self) -> usize {
        self.bytes / 3 * 2
    }
}

impl Lanes {
    /// How many more deliveries there is room for in a lane now.
    pub(super) fn room(&self, lane: &Lane, now: Instant) -> usize {
        let of_lane = lane
            .health
            .worth_holding(self.bounds.lane)
            .saturating_sub(lane.held());
        self.shared_room(lane)
            .max(self.room_at_once(lane, now))
            .min(of_lane)
    }

    /// Whether all that is shared is in use.
    pub(super) fn is_short(&self) -> bool {
        self.held >= self.bounds.total || self.bytes >= self.bounds.shared_bytes()
    }

    /// Whether a lane holds so little that it may be of what is kept for those that can be sent at once.
    pub(super) fn is_nearly_empty(lane: &Lane) -> bool {
        lane.held() <= NEARLY_EMPTY
    }

    fn shared_room(&self, lane: &Lane) -> usize {
        let share = self.bounds.shared_bytes().saturating_sub(self.bytes) / SHARES;
        let by_bytes = match share.checked_sub(lane.bytes()) {
            None | Some(0) => 0,
            Some(left) => (left / self.weight_of_one(lane)).max(1),
        };
        by_bytes.min(self.bounds.total.saturating_sub(self.held))
    }

    fn room_at_once(&self, lane: &Lane, now: Instant) -> usize {
        let may_send = lane.health.is_trusted() && lane.put_off(now).is_none() && !lane.unsettled;
        if !may_send || self.bytes >= self.bounds.bytes {
            return 0;
        }
        let sendable = lane
            .health
            .allowed(lane.terms.max_in_flight, lane.in_flight)
            .saturating_sub(lane.in_flight + lane.held());
        let by_bytes =
            (self.bounds.bytes / NEARLY_EMPTY_OF).saturating_sub(lane.bytes()) / self.weight_of_one(lane);
        sendable
            .min(NEARLY_EMPTY.saturating_sub(lane.held()))
            .min(by_bytes.max(usize::from(lane.held() == 0)))
            .min((2 * self.bounds.total).saturating_sub(self.held))
    }

    /// What a delivery weighs that is to be claimed for a lane, as far as is known: what a claim takes too much is at most
    /// what one claim may take.
    pub(super) fn weight_of_one(&self, lane: &Lane) -> usize {
        lane.weighs.unwrap_or(self.weighs).max(1)
    }
}
