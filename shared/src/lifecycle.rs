//! How a process lives and ends.
//!
//! The first signal (SIGTERM or SIGINT) is soft: sources stop (listeners, consumers, schedulers), and what is under way
//! drains, each stage ending when the one before it has. The second signal, or the deadline, is hard: everything ends.
//! A critical task that fails or panics is a soft signal too, and the process exits non-zero: no limping on.
//!
//! Signals are heeded from the very start: process 1 of a container ignores what it has no handler for, and a process that
//! still waits for its servers must end when it is told to.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::config::SettingError;

/// A process's two stop signals and its tasks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Sources stop, what is under way drains.
    pub soft: CancellationToken,
    /// Everything ends.
    pub hard: CancellationToken,
    /// Every task of the process; it is awaited before the process exits.
    pub tasks: TaskTracker,
    failure: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Lifecycle {
    /// A new one, with nothing running.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task that the process cannot do without. It may end by itself only once the soft signal is given, or with
    /// `Ok`; if it fails or panics, the process stops.
    pub fn critical(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let lifecycle = self.clone();
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = AssertUnwindSafe(task).catch_unwind() => ended,
                () = lifecycle.hard.cancelled() => return,
            };
            match ended {
                Ok(Ok(())) => tracing::debug!(task = name, "a task ended"),
                Ok(Err(error)) if error.is::<SettingError>() => lifecycle.fail(error),
                Ok(Err(error)) => lifecycle.fail(error.context(name)),
                Err(_) => lifecycle.fail(anyhow::anyhow!("{name} panicked")),
            }
        });
    }

    /// Stops the process with an error.
    pub fn fail(&self, why: anyhow::Error) {
        tracing::error!(
            why = format!("{why:#}"),
            "stopping, because a critical task failed"
        );
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(why);
        self.soft.cancel();
    }

    /// Heeds the process's signals from now on: the first is the soft one, the second the hard one.
    pub fn heed_signals(&self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (soft, hard) = (self.soft.clone(), self.hard.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("stopping: finishing what is under way (SIGTERM)"),
                _ = interrupt.recv() => tracing::info!("stopping: finishing what is under way (SIGINT); again to stop at once"),
            }
            soft.cancel();
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("a second signal: stopping at once");
            hard.cancel();
        });
        Ok(())
    }

    /// Waits for the soft signal or a failure, then for the tasks to drain, `deadline` at most.
    pub async fn run(self, deadline: Duration) -> anyhow::Result<()> {
        self.soft.cancelled().await;
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep(deadline) => tracing::warn!(?deadline, "the deadline for stopping has passed"),
            () = self.hard.cancelled() => {}
        }
        self.hard.cancel();
        // Tasks see the hard signal at their next wait.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await;
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(why) = failure {
            Err(why)
        } else {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_stops_the_process_with_an_error() {
        let lifecycle = Lifecycle::new();
        let drained = lifecycle.soft.clone();
        lifecycle.critical("drains", async move {
            drained.cancelled().await;
            Ok(())
        });
        lifecycle.critical("panics", async { panic!("on purpose") });
        let error = lifecycle.run(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.to_string(), "panics panicked");
    }

    #[tokio::test]
    async fn a_task_that_does_not_drain_is_ended() {
        let lifecycle = Lifecycle::new();
        lifecycle.critical("hangs", std::future::pending());
        lifecycle.soft.cancel();
        lifecycle.run(Duration::from_millis(10)).await.unwrap();
    }
}
