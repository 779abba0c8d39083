//! Telling every process of the deployment which keys have ended, and hearing it: the way that goes while the store is away.
//!
//! A notice is JSON, which a person can read: `{"version":1,"keys":[{"id":"key_…"}]}`, with an `ends_at` where a key ends
//! later. It is told again until the broker has taken it, for as long as a look-up from before may be served; what is not told
//! in time is left to the store, which every process asks all the while. Whoever may have missed one, because it was cut off from the
//! broker or cannot read it, asks the store for every key that it knows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Auth, Ending, MAX_STALE};
use crate::queue::{DynQueue, NoticeSink, NoticeSource, QueueError};

/// The most endings that wait to be told; for those past it there is the store.
pub(super) const MAX_UNTOLD: usize = 1_024;
/// The most of one notice.
const MAX_TOGETHER: usize = 100;
/// How long a process that stops goes on trying to tell.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What this version writes, and the only one that it reads.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Notice {
    version: u32,
    keys: Vec<Ending>,
}

fn written(endings: &[Ending]) -> anyhow::Result<Bytes> {
    let notice = Notice {
        version: VERSION,
        keys: endings.to_vec(),
    };
    Ok(serde_json::to_vec(&notice)?.into())
}

/// `None` if it cannot be read: it is of another version, or of somebody else.
fn read(notice: &[u8]) -> Option<Vec<Ending>> {
    let notice: Notice = serde_json::from_slice(notice).ok()?;
    (notice.version == VERSION).then_some(notice.keys)
}

/// Hears what others tell, until the soft signal.
pub(super) async fn hear(auth: Arc<Auth>, queue: DynQueue, soft: CancellationToken) -> anyhow::Result<()> {
    soft.run_until_cancelled(async {
        let mut pauses = backoff();
        loop {
            let error = match queue.notice_source().await {
                Ok(None) => return,
                Ok(Some(mut source)) => {
                    pauses = backoff();
                    // From here on what is told waits until it is heard; what was told before, nobody kept.
                    auth.missed_notices();
                    tracing::info!(
                        "revocations of keys are heard; keys that were known before are looked up again"
                    );
                    hear_from(&auth, &mut *source).await
                }
                Err(error) => error,
            };
            tracing::warn!(%error, "revocations of keys are not heard; the store tells them meanwhile");
            pause(&mut pauses).await;
        }
    })
    .await;
    Ok(())
}

async fn hear_from(auth: &Auth, source: &mut dyn NoticeSource) -> QueueError {
    loop {
        match source.receive().await {
            Ok(notice) => {
                if let Some(endings) = read(&notice) {
                    for ending in endings {
                        auth.apply(ending);
                    }
                } else {
                    auth.missed_notices();
                    tracing::warn!(
                        "a notice of revocations is of another version; keys are looked up again instead"
                    );
                }
            }
            Err(error) => return error,
        }
    }
}

/// Tells what comes, until the soft signal; then what is there already.
pub(super) async fn tell(
    mut untold: mpsc::Receiver<Ending>,
    queue: DynQueue,
    soft: CancellationToken,
) -> anyhow::Result<()> {
    let mut sink = None;
    let mut together = Vec::new();
    loop {
        let count = tokio::select! {
            biased;
            count = untold.recv_many(&mut together, MAX_TOGETHER) => count,
            () = soft.cancelled() => return Ok(()),
        };
        if count == 0 {
            return Ok(());
        }
        let notice = written(&together)?;
        together.clear();
        let telling = tell_one(&mut sink, &notice, &queue);
        tokio::select! {
            () = telling => {}
            () = async {
                soft.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            } => return Ok(()),
        }
    }
}

async fn tell_one(sink: &mut Option<Box<dyn NoticeSink>>, notice: &Bytes, queue: &DynQueue) {
    let (begun, mut pauses) = (Instant::now(), backoff());
    while begun.elapsed() < MAX_STALE {
        let told = match sink {
            Some(sink) => sink.send(notice.clone()).await,
            None => match queue.notice_sink().await {
                Ok(None) => return,
                Ok(made) => {
                    *sink = made;
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let Err(error) = told else { return };
        *sink = None;
        tracing::warn!(%error, "a revocation is not told yet; trying again, and the store tells it meanwhile");
        pause(&mut pauses).await;
    }
}

fn backoff() -> backon::ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
        .build()
}

async fn pause(pauses: &mut backon::ExponentialBackoff) {
    tokio::time::sleep(pauses.next().unwrap_or(Duration::from_secs(2))).await;
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{KeyId, Timestamp};

    #[test]
    fn a_notice_is_for_people_to_read() {
        let key = KeyId::from_uuid(Uuid::from_u128(7));
        let endings = [
            Ending { key, ends_at: None },
            Ending {
                key,
                ends_at: Some(Timestamp::from_millis(1_000)),
            },
        ];
        let notice = written(&endings).unwrap();
        insta::assert_snapshot!(std::str::from_utf8(&notice).unwrap());
        assert_eq!(read(&notice).unwrap(), endings);
        for other in [
            &b""[..],
            b"nonsense",
            br#"{"version":2,"keys":[]}"#,
            br#"{"version":1,"keys":[{"id":"evt_0000000000000000000000000a"}]}"#,
        ] {
            assert!(read(other).is_none());
        }
    }
}
