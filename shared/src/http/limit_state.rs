//! How a limit stands, and the headers that show it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

/// How a limit stands, as the `RateLimit-*` headers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitState {
    /// So many a minute.
    pub limit: u32,
    /// So many at once, now.
    pub remaining: u32,
    /// How long until the bucket is full.
    pub reset: Duration,
}

static NAMES: [[HeaderName; 2]; 3] = [
    [
        HeaderName::from_static("ratelimit-limit"),
        HeaderName::from_static("x-ratelimit-limit"),
    ],
    [
        HeaderName::from_static("ratelimit-remaining"),
        HeaderName::from_static("x-ratelimit-remaining"),
    ],
    [
        HeaderName::from_static("ratelimit-reset"),
        HeaderName::from_static("x-ratelimit-reset"),
    ],
];

impl LimitState {
    /// Adds the headers: `RateLimit-Limit`, `-Remaining` and `-Reset` (whole seconds), and the same with `X-`.
    pub fn show(self, headers: &mut HeaderMap) {
        let reset = self.reset.as_secs() + u64::from(self.reset.subsec_nanos() > 0);
        for (names, value) in NAMES
            .iter()
            .zip([u64::from(self.limit), u64::from(self.remaining), reset])
        {
            for name in names {
                headers.insert(name.clone(), HeaderValue::from(value));
            }
        }
    }
}
