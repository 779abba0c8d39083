//! The network between the roles and a server, as it fails.

use std::time::Duration;

use harness::{Link, Proxy};

/// Late, but not so late that anything is given up: a confirmation takes one way there and one back.
pub const SLOW_BROKER: Link = Link::Slow {
    delay: Duration::from_millis(100),
    jitter: Duration::from_millis(100),
};

/// As [`SLOW_BROKER`]; a transaction takes several ways.
pub const SLOW_DATABASE: Link = Link::Slow {
    delay: Duration::from_millis(20),
    jitter: Duration::from_millis(20),
};

/// Lets a link fail; gives what tells whether that did anything.
pub fn fail(proxy: &Proxy, link: Link) -> u64 {
    let before = proxy.ended();
    proxy.set(link);
    before
}

/// The link has ended connections.
pub fn did_end(proxy: &Proxy, before: u64) {
    assert!(proxy.ended() > before, "no connection was ended");
}
