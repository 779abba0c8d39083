//! How a limit stands, and the headers that show it.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::bucket::{WINDOW, cost};

/// How an organization's limit stands, over all nodes, as the `RateLimit-*` headers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub(super) limit: u32,
    pub(super) remaining: u32,
    /// How long until the bucket is full.
    pub(super) reset: Duration,
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

impl State {
    /// Of a bucket that is full again in `used` nanoseconds.
    pub(super) fn of(used: i64, limit: u32) -> Self {
        let (cost, used) = (cost(limit), used.max(0));
        let remaining = u32::try_from((WINDOW + cost / 2).saturating_sub(used).max(0) / cost);
        Self {
            limit,
            remaining: remaining.unwrap_or(u32::MAX).min(limit),
            reset: Duration::from_nanos(used.min(WINDOW).unsigned_abs()),
        }
    }

    /// Of a limit that has no room here, whatever may be left elsewhere.
    pub(super) const fn without_room(mut self) -> Self {
        self.remaining = 0;
        self
    }

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
