//! Opening deliveries again: one that somebody asks for, or all of a subscription that fit.

use std::time::Duration;

use async_trait::async_trait;

#[cfg(doc)]
use super::Change;
use super::{Result, replay_way::Way};
use crate::{
    DeliveryKey, DeliveryState, EventId, EventPattern, OrganizationId, ReplayId, SubscriptionId, Timestamp,
};

/// What came of asking something of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActedOn {
    /// It is done.
    Done,
    /// There is no such delivery, or it is not in a state for that, or its subscription is deleted, or its event erased.
    Refused,
}

/// Which deliveries of a subscription are to be opened again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplay {
    /// Its id.
    pub id: ReplayId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// Of events accepted from then on.
    pub since: Option<Timestamp>,
    /// Of events accepted before then; unless given, before the replay was made.
    pub until: Option<Timestamp>,
    /// Those that ended so.
    pub statuses: Vec<DeliveryState>,
    /// Of events of these types.
    pub event_types: Vec<EventPattern>,
}

/// How a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayStatus {
    /// Workers are at it.
    Running,
    /// All events have been looked at.
    Done,
    /// Somebody called it off, or the subscription is deleted.
    Cancelled,
}

impl ReplayStatus {
    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for ReplayStatus {
    type Err = crate::Invalid;

    fn from_str(text: &str) -> Result<Self, crate::Invalid> {
        [Self::Running, Self::Done, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| crate::Invalid::new("must be running, done or cancelled"))
    }
}

/// A replay, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// Its id.
    pub id: ReplayId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// Of which subscription.
    pub subscription: SubscriptionId,
    /// Of events accepted from then on.
    pub since: Option<Timestamp>,
    /// Of events accepted before then.
    pub until: Timestamp,
    /// Those that ended so.
    pub statuses: Vec<DeliveryState>,
    /// Of events of these types.
    pub event_types: Vec<EventPattern>,
    /// How it is.
    pub status: ReplayStatus,
    /// Events from this `seq` on were stored after it was made, and are none of its. (Those that an older version makes say nothing.)
    pub before_seq: Option<i64>,
    /// By which way it comes by its events; found out when workers begin with it.
    pub way: Option<Way>,
    /// All events up to this `seq` have been looked at, unless it goes by time.
    pub after_seq: i64,
    /// If it goes by time, all events accepted under ids up to this one have been looked at.
    pub after_id: Option<EventId>,
    /// How many events have been looked at.
    pub looked_at: u64,
    /// How many deliveries were opened.
    pub opened: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last got on.
    pub updated_at: Timestamp,
}

impl Replay {
    /// How far it is, from 0 to 1: in time or in the order of intake, whichever it goes by. It never goes back.
    pub fn progress(&self) -> f64 {
        match (self.status, self.way) {
            (ReplayStatus::Done, _) => 1.0,
            (_, None) => 0.0,
            (_, Some(way)) => way.progress(self.after_seq, self.after_id),
        }
    }
}

/// An event that a replay looks at.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its id.
    pub event: EventId,
    /// Its place in the order of intake.
    pub seq: i64,
    /// Its type.
    pub event_type: String,
    /// When the front took it.
    pub received_at: Timestamp,
}

/// The next events for a replay to look at.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// In the order of its way. There may be none, and yet more to come.
    pub events: Vec<Candidate>,
    /// How far it is by them: what its `after_seq` becomes.
    pub after_seq: i64,
    /// And its `after_id`.
    pub after_id: Option<EventId>,
    /// Whether there are no more.
    pub last: bool,
}

/// How far a replay gets in one step.
#[derive(Debug, Clone)]
pub struct ReplayStep {
    /// The events, of those looked at, whose deliveries are to be opened if they ended as asked.
    pub events: Vec<EventId>,
    /// What its `after_seq` becomes.
    pub after_seq: i64,
    /// And its `after_id`.
    pub after_id: Option<EventId>,
    /// How many were looked at.
    pub looked_at: u64,
    /// Whether it is done by that.
    pub done: bool,
}

/// How long a replay that is over can be looked up.
pub const REPLAY_KEPT: Duration = Duration::from_hours(7 * 24);

/// Opening deliveries again. Whatever is opened is due at once, begins its schedule anew, and is announced as
/// [`Change::Subscription`].
#[async_trait]
pub trait Replays: Send + Sync {
    /// Opens a closed delivery again, or makes an open one due now. Not of a deleted subscription, nor of an erased event.
    async fn retry(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn>;
    /// Closes an open delivery. An attempt that is under way changes nothing more; what waits with a worker is announced as
    /// [`Change::Cancelled`].
    async fn cancel(&self, organization: OrganizationId, delivery: DeliveryKey) -> Result<ActedOn>;
    /// Makes a replay, unless the organization has `most` that run already.
    async fn create_replay(&self, replay: NewReplay, most: u32) -> Result<Option<Replay>>;
    /// Looks one up.
    async fn get_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<Option<Replay>>;
    /// The last replays of a subscription, newest first.
    async fn list_replays(
        &self,
        organization: OrganizationId,
        subscription: SubscriptionId,
        limit: u32,
    ) -> Result<Vec<Replay>>;
    /// Calls one off; what it has opened stays open. `false` if it does not run.
    async fn cancel_replay(&self, organization: OrganizationId, id: ReplayId) -> Result<bool>;
    /// Those that run and are not [put off](Self::put_off_replay), the one first that had its turn least lately; each with whether
    /// its subscription is still there.
    async fn running_replays(&self, limit: u32) -> Result<Vec<(Replay, bool)>>;
    /// Finds out by which way a replay is to go, once nothing is under way any more that was when it was made: what may still be
    /// committed would be left out. `None` as long as there is, or if another was ahead.
    async fn begin_replay(&self, replay: &Replay) -> Result<Option<Replay>>;
    /// The next events for a replay that has its way, at most `limit`; nothing comes before them later. What is read to find them
    /// is bounded as well.
    async fn replay_candidates(&self, replay: &Replay, limit: u32) -> Result<Candidates>;
    /// Gives its turn to others, and has none itself for so long.
    async fn put_off_replay(&self, replay: &Replay, by: Duration) -> Result<()>;
    /// Opens deliveries and gets on, in one transaction; if another was ahead, nothing is done and `None` is the answer.
    async fn replay_step(&self, replay: &Replay, step: &ReplayStep) -> Result<Option<u64>>;
}
