//! Who posts, and what they may.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use shared::{
    Grant, Scope,
    auth::LOOK_UP_TIMEOUT,
    http::{ApiError, Code, server::Peer},
};
use tokio::time::Instant;

use crate::{
    Ingest,
    limit::{Room, Taken},
};

/// How long a producer waits for what we wait for, in all: it is to see a 202 or a 503 within two seconds of the head of
/// its request. How long its body takes is its own time.
const PATIENCE: Duration = Duration::from_millis(1_900);
// Whatever a look-up takes, the queue has time to confirm.
const _: () = assert!(LOOK_UP_TIMEOUT.as_millis() + 500 <= PATIENCE.as_millis());

/// Whoever has a valid key. Every answer from here on shows how the limit stands.
pub(crate) struct Poster<'a> {
    pub(crate) ingest: &'a Ingest,
    pub(crate) grant: Arc<Grant>,
    /// How long that took.
    looked_up: Duration,
}

impl<'a> Poster<'a> {
    /// By the key in the head of a request.
    pub(crate) async fn of(
        ingest: &'a Ingest,
        headers: &HeaderMap,
        peer: Option<Peer>,
    ) -> Result<Self, ApiError> {
        let asked = Instant::now();
        let grant = ingest.auth.authenticate(headers, peer).await?;
        Ok(Self {
            looked_up: asked.elapsed(),
            ..Self::known(ingest, grant)
        })
    }

    /// Whoever has this grant.
    pub(crate) fn known(ingest: &'a Ingest, grant: Arc<Grant>) -> Self {
        Self {
            ingest,
            grant,
            looked_up: Duration::ZERO,
        }
    }

    /// Whether the key is for posting.
    pub(crate) fn may_post(&self) -> Result<(), ApiError> {
        if self.grant.scopes.contains(Scope::EventsWrite) {
            Ok(())
        } else {
            Err(ApiError::missing_scope(Scope::EventsWrite))
        }
    }

    /// Until when the poster may be kept waiting. To be asked once the body is here.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + PATIENCE.saturating_sub(self.looked_up)
    }

    /// Takes one event's worth from the limit; with it, how that stands.
    pub(crate) fn take_room(&self) -> Result<(Taken, HeaderMap), ApiError> {
        let mut headers = HeaderMap::new();
        match self.ingest.limits.take(&self.grant) {
            Room::Unlimited => {}
            Room::Taken(state) => state.show(&mut headers),
            Room::Full { retry_after, state } => {
                state.show(&mut headers);
                let tier = self.grant.tier.as_str();
                let limit = self.grant.tier.events_per_minute().unwrap_or_default();
                let detail = format!("the limit of the tier {tier} is {limit} events a minute");
                return Err(ApiError::rate_limited(detail, retry_after).with_headers(headers));
            }
        }
        Ok((self.taken(1), headers))
    }

    /// So many events' worth that were taken.
    pub(crate) fn taken(&self, events: usize) -> Taken {
        self.ingest.limits.taken(&self.grant, events)
    }

    /// Counts events that the limit refused, for the organization's usage.
    pub(crate) fn count_refused(&self, events: usize) {
        self.ingest.limits.count_refused(&self.grant, events);
    }

    /// How the limit stands.
    pub(crate) fn limit(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(state) = self.ingest.limits.state(&self.grant) {
            state.show(&mut headers);
        }
        headers
    }

    /// A refusal, which shows how the limit stands.
    pub(crate) fn refusal(&self, error: ApiError) -> ApiError {
        // A 429 has shown it already, as it was when there was no room.
        if error.code() == Code::RateLimited {
            error
        } else {
            error.with_headers(self.limit())
        }
    }
}
