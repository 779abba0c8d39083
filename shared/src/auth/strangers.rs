//! How many requests without a valid key an address may make in a minute: a bucket for each, refilled evenly.
//!
//! It keeps guessing, and look-ups of keys that nobody has, from costing the store anything. Whoever has a key that this
//! process knows is not concerned, whatever others at the same address do; one whose key has to be looked up first may have
//! to compete with them, for a few look-ups that are left for that. Addresses are remembered up to a number; one that is
//! forgotten may begin anew. What is counted is counted by each process for itself.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::HeaderMap;
use ipnet::IpNet;
use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use crate::http::{
    ApiError, Code, LimitState,
    origin::Origin,
    server::{Bounds, Peer},
};

/// How much a bucket holds.
const WINDOW: Duration = Duration::from_mins(1);
/// The most addresses that are remembered: a few megabytes.
const MAX_ADDRESSES: usize = 50_000;
/// The most look-ups at once for addresses that have used up what they have.
const MAX_SUSPECTS: usize = 2;
/// The most hops of a forwarded request that are looked at.
const MAX_HOPS: usize = 32;

/// What addresses may do, and whose word on them is taken.
#[derive(Debug, Clone, Default)]
pub struct AddressRules {
    /// How many requests without a valid key an address may make in a minute; `None` is no limit.
    pub per_minute: Option<u32>,
    /// How many connections an address may have at once; `None` is no limit but that of all.
    pub connections: Option<usize>,
    /// Proxies that say truly, in `X-Forwarded-For`, from whom they have a request.
    pub trusted_proxies: Vec<IpNet>,
}

/// Addresses, and what each has left.
pub(super) struct Strangers {
    rules: AddressRules,
    /// Nanoseconds after the start at which each bucket is full again.
    buckets: Cache<Origin, Arc<AtomicU64>>,
    suspects: Semaphore,
    started: Instant,
}

impl Strangers {
    pub(super) fn new(rules: AddressRules) -> Self {
        Self {
            rules,
            buckets: Cache::new(MAX_ADDRESSES),
            suspects: Semaphore::new(MAX_SUSPECTS),
            started: Instant::now(),
        }
    }

    /// Counts a request that has no valid key; an error if its address has made too many.
    pub(super) fn count(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<(), ApiError> {
        match self.origin(headers, peer) {
            Some((origin, limit)) => self.take(origin, limit),
            None => Ok(()),
        }
    }

    /// Looks the key of a request up, which is counted unless it is found to be valid. An address that has made too many is
    /// left a few look-ups at once.
    pub(super) async fn prove<T>(
        &self,
        headers: &HeaderMap,
        peer: Option<Peer>,
        look_up: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        let Some((origin, limit)) = self.origin(headers, peer) else {
            return look_up.await;
        };
        match self.take(origin, limit) {
            Ok(()) => {
                let looked_up = look_up.await;
                if !is_unauthorized(&looked_up) {
                    self.give_back(origin, limit);
                }
                looked_up
            }
            Err(refusal) => {
                let Ok(_permit) = self.suspects.try_acquire() else {
                    return Err(refusal);
                };
                let looked_up = look_up.await;
                if is_unauthorized(&looked_up) {
                    return Err(refusal);
                }
                looked_up
            }
        }
    }

    /// Whom a request is from, and how many such may make; `None` if that is not limited, or nobody knows.
    fn origin(&self, headers: &HeaderMap, peer: Option<Peer>) -> Option<(Origin, u32)> {
        let limit = self.rules.per_minute?;
        Some((Origin::of(self.rules.client(headers, peer?.0)), limit))
    }

    fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    fn take(&self, origin: Origin, limit: u32) -> Result<(), ApiError> {
        let (now, cost, window) = (self.now(), cost(limit), nanos(WINDOW));
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU64::new(now)));
        let Ok(bucket) = self.buckets.get_or_insert_with(&origin, fresh);
        let take = |full_at: u64| {
            let taken = full_at.max(now) + cost;
            // With a grain of slack, since a minute seldom parts evenly.
            (taken <= now + window + cost / 2).then_some(taken)
        };
        bucket
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map(drop)
            .map_err(|full_at| refusal(limit, full_at.saturating_sub(now)))
    }

    fn give_back(&self, origin: Origin, limit: u32) {
        if let Some(bucket) = self.buckets.get(&origin) {
            let give_back = |full_at: u64| Some(full_at.saturating_sub(cost(limit)));
            let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give_back);
        }
    }
}

impl AddressRules {
    /// What a server bounds its clients by under these rules.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            of_one_address: self.connections,
            trusted_proxies: self.trusted_proxies.clone(),
            ..Bounds::default()
        }
    }

    /// Whom a request is from. A trusted proxy names in `X-Forwarded-For` from whom it has it, behind those that were there
    /// already: so from the end on, as long as trusted proxies speak, the one before is known. Nobody else is believed.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines = headers.get_all("x-forwarded-for").into_iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        for hop in hops.take(MAX_HOPS) {
            if !self
                .trusted_proxies
                .iter()
                .any(|network| network.contains(&client))
            {
                break;
            }
            let Some(address) = address_of(hop.trim()) else {
                break;
            };
            client = address.to_canonical();
        }
        client
    }
}

/// The address of a hop, which some proxies write with a port.
fn address_of(hop: &str) -> Option<IpAddr> {
    let with_port = || hop.parse().ok().map(|address: SocketAddr| address.ip());
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    hop.parse().ok().or_else(with_port).or_else(in_brackets)
}

fn is_unauthorized<T>(result: &Result<T, ApiError>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.code() == Code::Unauthorized)
}

/// 429, of a bucket that is full again after `used` nanoseconds.
fn refusal(limit: u32, used: u64) -> ApiError {
    let detail = format!(
        "too many requests without a valid API key came from this address: {limit} a minute may, and those with a key may go on"
    );
    let wait = (used + cost(limit)).saturating_sub(nanos(WINDOW));
    let mut headers = HeaderMap::new();
    let state = LimitState {
        limit,
        remaining: 0,
        reset: Duration::from_nanos(used),
    };
    state.show(&mut headers);
    ApiError::rate_limited(detail, Duration::from_nanos(wait)).with_headers(headers)
}

/// What one request costs, in time.
fn cost(limit: u32) -> u64 {
    nanos(WINDOW) / u64::from(limit.max(1))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(per_minute: u32, proxies: &[&str]) -> AddressRules {
        AddressRules {
            per_minute: Some(per_minute),
            connections: None,
            trusted_proxies: proxies.iter().map(|network| network.parse().unwrap()).collect(),
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a request has it")]
    fn peer(address: &str) -> Option<Peer> {
        Some(Peer(address.parse().unwrap()))
    }

    fn forwarded(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        headers
    }

    #[test]
    fn an_address_has_so_many_a_minute() {
        let strangers = Strangers::new(rules(3, &[]));
        let count = |address| strangers.count(&HeaderMap::new(), peer(address));
        for _ in 0..3 {
            count("192.0.2.1").unwrap();
        }
        let refused = count("192.0.2.1").unwrap_err();
        assert_eq!(refused.code(), Code::RateLimited);
        // The same, as a socket for both versions has it.
        count("::ffff:192.0.2.1").unwrap_err();
        count("192.0.2.2").unwrap();
        // One customer's network counts as one.
        for host in ["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3"] {
            count(host).unwrap();
        }
        count("2001:db8::4").unwrap_err();
        count("2001:db8:0:1::1").unwrap();
        let free = Strangers::new(AddressRules::default());
        for _ in 0..1_000 {
            free.count(&HeaderMap::new(), peer("192.0.2.1")).unwrap();
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let rules = rules(1, &["10.0.0.0/8", "fd00::/8"]);
        let client =
            |peer: &str, lines: &[&str]| rules.client(&forwarded(lines), peer.parse().unwrap()).to_string();
        assert_eq!(
            client("192.0.2.1", &["198.51.100.7"]),
            "192.0.2.1",
            "nobody's proxy"
        );
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        // What a client says of itself comes before what proxies add.
        assert_eq!(client("10.0.0.1", &["203.0.113.9, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(
            client("10.0.0.1", &["203.0.113.9", "198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(
            client("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.2.0.1"]),
            "198.51.100.7"
        );
        assert_eq!(
            client("fd00::1", &["[2001:db8::1]:443,10.0.0.9:80"]),
            "2001:db8::1"
        );
        assert_eq!(client("10.0.0.1", &["198.51.100.7, unknown"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7, , "]), "10.0.0.1");
        let long = vec!["10.0.0.2"; 100].join(",");
        assert_eq!(client("10.0.0.1", &[&format!("198.51.100.7,{long}")]), "10.0.0.2");
    }

    #[test]
    fn addresses_are_remembered_up_to_a_number() {
        let strangers = Strangers::new(rules(1, &[]));
        for number in 0..4 * u32::try_from(MAX_ADDRESSES).unwrap() {
            let peer = Peer(IpAddr::V4(number.into()));
            strangers.count(&HeaderMap::new(), Some(peer)).unwrap();
        }
        assert!(strangers.buckets.len() <= MAX_ADDRESSES);
        strangers.count(&HeaderMap::new(), peer("192.0.2.1")).unwrap();
        strangers.count(&HeaderMap::new(), peer("192.0.2.1")).unwrap_err();
    }

    #[tokio::test]
    async fn a_valid_key_costs_nothing_and_gets_through() {
        let strangers = Strangers::new(rules(2, &[]));
        let (headers, peer) = (HeaderMap::new(), peer("192.0.2.1"));
        let wrong = || async { Err::<(), _>(ApiError::unauthorized("no")) };
        for _ in 0..10 {
            strangers.prove(&headers, peer, async { Ok(()) }).await.unwrap();
        }
        for _ in 0..2 {
            let refused = strangers.prove(&headers, peer, wrong()).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthorized);
        }
        let refused = strangers.prove(&headers, peer, wrong()).await.unwrap_err();
        assert_eq!(refused.code(), Code::RateLimited);
        strangers.prove(&headers, peer, async { Ok(()) }).await.unwrap();
        // Only so many look-ups at once, now.
        let _busy = strangers.suspects.acquire_many(2).await.unwrap();
        let refused = strangers
            .prove(&headers, peer, async { Ok(()) })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::RateLimited);
    }
}
