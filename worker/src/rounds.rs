//! Work that is looked for now and then, and goes on without haste while there is some.

use std::{fmt::Display, time::Duration};

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Looks every `look`, until the soft signal; while a round says that there may be more, the next follows after `pause`.
/// What fails is looked at again with the next look; `what` names it.
pub async fn rounds<E: Display, R: Future<Output = Result<bool, E>>>(
    what: &'static str,
    (look, pause): (Duration, Duration),
    soft: CancellationToken,
    round: impl Fn() -> R,
) {
    let mut every = tokio::time::interval(look);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = soft.cancelled() => return,
            _ = every.tick() => {}
        }
        while !soft.is_cancelled() {
            match round().await {
                Ok(true) => tokio::time::sleep(pause).await,
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%error, what, "work has to wait");
                    break;
                }
            }
        }
    }
}
