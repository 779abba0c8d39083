//! How far a request has come: so that one that runs out of time says in what.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use shared::OrganizationId;

tokio::task_local! {
    /// The request that this task makes. A connection that goes on after its request found another has none.
    static CURRENT: Current;
}

/// What the connection that a request waits for is told of it, and tells it.
#[derive(Debug, Clone)]
struct Current {
    whose: OrganizationId,
    reached: Arc<AtomicU8>,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// A connection, its own or one that is being made for others.
    Connecting,
    /// The host's addresses.
    Resolving,
    /// The TLS handshake.
    Securing,
    /// The answer's status and headers.
    Head,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Connecting, Self::Resolving, Self::Securing, Self::Head];

    /// What to say of a request whose time ended in it.
    pub fn overdue(self, deadline: Duration) -> String {
        let what = match self {
            Self::Connecting => "no connection within",
            Self::Resolving => "the host's name did not resolve within",
            Self::Securing => "the TLS handshake did not end within",
            Self::Head => "no answer's head within",
        };
        format!("{what} {} ms", deadline.as_millis())
    }
}

/// How far a request has come.
#[derive(Debug)]
pub struct Progress {
    current: Current,
    connection: CaptureConnection,
}

impl Progress {
    /// Of a request that is to be sent on behalf of an organization.
    pub fn of(request: &mut Request<Full<Bytes>>, whose: OrganizationId) -> Self {
        Self {
            current: Current {
                whose,
                reached: Arc::default(),
            },
            connection: capture_connection(request),
        }
    }

    /// Follows the request, which `sending` sends.
    pub async fn follow<T>(&self, sending: impl Future<Output = T>) -> T {
        CURRENT.scope(self.current.clone(), sending).await
    }

    /// The request of this task has come so far.
    pub fn reached(phase: Phase) {
        // Outside of a request there is nobody to be told.
        let _ = CURRENT.try_with(|current| current.reached.store(phase as u8, Ordering::Relaxed));
    }

    /// On whose behalf the request of this task is made.
    pub fn whose() -> Option<OrganizationId> {
        CURRENT.try_with(|current| current.whose).ok()
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        let reached = self.current.reached.load(Ordering::Relaxed);
        let phase = Phase::ALL.into_iter().find(|phase| *phase as u8 == reached);
        // Which connection it has, its own or another, only the client says.
        if self.connection.connection_metadata().is_some() {
            Phase::Head
        } else {
            phase.unwrap_or(Phase::Connecting)
        }
    }
}
