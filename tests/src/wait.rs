//! Waiting for a condition, with an end.

use std::time::{Duration, Instant};

/// Looks again and again until `look` gives a value; fails the test with what it said last if that takes longer than
/// `within`.
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + within;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) => assert!(Instant::now() < end, "not within {within:?}: {what}; {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}
