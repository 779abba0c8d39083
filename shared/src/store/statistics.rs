//! What workers tell of subscriptions, and what it comes to.
//!
//! A worker counts for itself, and writes what it has counted again and again: a row is its whole count of a subscription and
//! a minute, so that a write may be repeated. Whoever reads adds the workers up.

use std::time::Duration;

use crate::{EventId, SubscriptionId, Timestamp, statistics::Tally};

/// How far the open deliveries of one subscription are counted.
pub const BACKLOG_COUNTED: u32 = 10_000;
/// Over how long [`SubscriptionStats::tally`] goes, and how long what workers count is kept.
pub const COUNTED_FOR: Duration = Duration::from_hours(1);
/// Over how long [`Fleet::by_success`] goes.
pub const FLEET_COUNTED_FOR: Duration = Duration::from_mins(5);
/// How many subscriptions with a backlog are looked at for [`Fleet`].
pub(super) const FLEET_LOOKED_AT: u32 = 10_000;

/// All that a worker has counted of a subscription within one of its minutes.
#[derive(Debug, Clone)]
pub struct Minute {
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// Which minute, by the worker's count. When that was, the store's clock says.
    pub number: i64,
    /// What was counted.
    pub tally: Tally,
    /// How long ago the last success was, if there was one.
    pub success_ago: Option<Duration>,
    /// How long ago the last failure was, if there was one.
    pub failure_ago: Option<Duration>,
}

/// A circuit that a worker has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCircuit {
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// How long ago it opened.
    pub open_for: Duration,
    /// In how long the next probe may be sent; zero while one is under way.
    pub next_probe_in: Duration,
}

/// How a subscription fares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SubscriptionStats {
    /// The attempts of the last hour, over all workers.
    pub tally: Tally,
    /// When an attempt last succeeded.
    pub last_success_at: Option<Timestamp>,
    /// When one last failed.
    pub last_failure_at: Option<Timestamp>,
    /// How many deliveries are open, counted no further than one above [`BACKLOG_COUNTED`].
    pub backlog: u32,
    /// How long the oldest event of those that were counted has waited.
    pub oldest_undelivered: Option<Duration>,
    /// Its circuit, if a living worker has opened it.
    pub circuit: Option<CircuitReport>,
}

/// A circuit that is open, over all workers that live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CircuitReport {
    /// Since when the first of them has had it open.
    pub since: Timestamp,
    /// When the next probe may be sent.
    pub next_probe_at: Timestamp,
    /// Whether that time has come: a probe is under way, or will be once there is something to send.
    pub is_half_open: bool,
    /// How many workers have it open.
    pub workers: u32,
}

/// How subscriptions fare, all together: enabled ones of kind `push`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fleet {
    /// How many there are.
    pub subscriptions: u64,
    /// How many of them have an open circuit and wait for the time of a probe.
    pub open: u64,
    /// How many have an open circuit and may be sent a probe.
    pub half_open: u64,
    /// How many had attempts in the last five minutes, by the share that succeeded, as [`SuccessBand`] orders them.
    pub by_success: [u64; SuccessBand::ALL.len()],
    /// How many have a backlog that is older than this, as [`BacklogAge`] orders them.
    pub backlogged: [u64; BacklogAge::ALL.len()],
    /// How long the oldest delivery has waited, of those that are next in each lane.
    pub oldest_undelivered: Duration,
}

impl Fleet {
    /// A subscription has a backlog of which this event is the one next due.
    pub(super) fn note_next(&mut self, event: EventId, now: Timestamp) {
        let age = event.created_at().map_or(Duration::ZERO, |at| now.since(at));
        self.oldest_undelivered = self.oldest_undelivered.max(age);
        for (count, band) in self.backlogged.iter_mut().zip(BacklogAge::ALL) {
            *count += u64::from(age >= band.at_least());
        }
    }
}

/// What share of the attempts at a subscription succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuccessBand {
    /// All of them.
    All,
    /// Nine of ten, or more.
    Most,
    /// Half, or more.
    Half,
    /// Some.
    Few,
    /// None.
    None,
}

impl SuccessBand {
    /// Every band.
    pub const ALL: [Self; 5] = [Self::All, Self::Most, Self::Half, Self::Few, Self::None];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Most => "most",
            Self::Half => "half",
            Self::Few => "few",
            Self::None => "none",
        }
    }
}

/// How old a backlog is at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BacklogAge {
    /// A minute.
    Minute,
    /// Ten minutes.
    TenMinutes,
    /// An hour.
    Hour,
}

impl BacklogAge {
    /// Every age.
    pub const ALL: [Self; 3] = [Self::Minute, Self::TenMinutes, Self::Hour];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "1m",
            Self::TenMinutes => "10m",
            Self::Hour => "1h",
        }
    }

    /// As a duration.
    pub const fn at_least(self) -> Duration {
        match self {
            Self::Minute => Duration::from_mins(1),
            Self::TenMinutes => Duration::from_mins(10),
            Self::Hour => Duration::from_hours(1),
        }
    }
}
