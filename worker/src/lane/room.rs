//! How much room there is for a lane.
//!
//! Two thirds of all bytes are shared by a threshold that moves: a lane may come to hold a quarter of what is free of them
//! (Choudhury and Hahne's dynamic thresholds). One that holds little gets more, one that holds much has to send first, and
//! however many there are, some stays free.
//!
//! The last third of the bytes, and as many deliveries again as all lanes may hold, are kept for what can be sent at once in
//! the trusted pool: no more of a lane than it may have under way, and than its rate lets begin in a moment. Nothing is there for long,
//! since a place in that pool is free again within a second; what a lane has there that turns out to hang or to fail goes back.
//!
//! A quarter of what is kept is open to lanes that are not trusted as well, one delivery each, for else a lane that failed once
//! could not show that it answers again while the others are full. Those may wait for a place in the suspect pool, and take
//! turns; three quarters stay, which they never get any of. So lanes that are slow, failing, put off or at their limit never keep
//! those waiting whose subscribers answer, however many they are and however large what waits in them is. A claim that takes more than
//! it was thought to does not either: what it may take too much is less than is left.

use std::time::Duration;

use tokio::time::Instant;

use super::{Bounds, Lanes, single::Lane};

/// By how much what is free is divided, for the share of one lane.
const SHARES: usize = 4;
/// A lane that holds so many is not nearly empty.
const NEARLY_EMPTY: usize = 16;
/// A lane that holds more than this part of all bytes is not nearly empty, unless that is one delivery.
const NEARLY_EMPTY_OF: usize = 512;
/// What a rate lets begin within this can be sent at once: hungry lanes are looked at no more often.
const AT_ONCE: Duration = Duration::from_millis(100);
/// The part of what is kept that lanes may have some of that are not trusted.
const UNTRUSTED: usize = 4;

impl Bounds {
    /// The bytes that any lane may have some of. The others are for those that can be sent at once.
    pub(super) fn shared_bytes(&self) -> usize {
        self.bytes / 3 * 2
    }

    /// How many deliveries, and bytes, there may be of all lanes before one that holds little gets no more of what is kept.
    fn kept(&self, is_trusted: bool) -> (usize, usize) {
        if is_trusted {
            (self.total.saturating_mul(2), self.bytes)
        } else {
            let shared = self.shared_bytes();
            (
                self.total.saturating_add(self.total / UNTRUSTED),
                shared + (self.bytes - shared) / UNTRUSTED,
            )
        }
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
        let is_trusted = lane.health.is_trusted();
        let (total, bytes) = self.bounds.kept(is_trusted);
        if self.bytes >= bytes || self.held >= total || lane.unsettled || lane.put_off(now).is_some() {
            return 0;
        }
        let sendable = lane
            .health
            .allowed(lane.terms.max_in_flight, lane.in_flight)
            .saturating_sub(lane.in_flight + lane.held());
        let most = if is_trusted { NEARLY_EMPTY } else { 1 };
        let in_time = match lane.terms.rate_per_second {
            Some(rate) => lane.pace.begins_within(AT_ONCE, now, rate, most),
            None => most,
        };
        let by_bytes =
            (self.bounds.bytes / NEARLY_EMPTY_OF).saturating_sub(lane.bytes()) / self.weight_of_one(lane);
        sendable
            .min(in_time.saturating_sub(lane.held()))
            .min(by_bytes.max(usize::from(lane.held() == 0)))
            .min(total - self.held)
    }

    /// What a delivery weighs that is to be claimed for a lane, as far as is known: what a claim takes too much is at most
    /// what one claim may take.
    pub(super) fn weight_of_one(&self, lane: &Lane) -> usize {
        lane.weighs.unwrap_or(self.weighs).max(1)
    }
}
