//! Whether a request is from this very machine, as far as it can tell of itself.
//!
//! Conveniences of `triggers dev` ask for it, on a listener that is on loopback: the `Host` names a loopback (a page
//! that had its name rebound to 127.0.0.1 sends its own), nobody forwarded the request, and no browser says that
//! a page of another origin made it. Where in doubt the answer is no.

use std::{convert::Infallible, net::Ipv4Addr};

use axum::extract::FromRequestParts;
use http::{HeaderMap, Uri, header, request::Parts};
use shared::http::openapi::{Input, Operation};

/// Headers that proxies, tunnels and content networks add, besides all that begin with one of [`FORWARDING_PREFIXES`].
const FORWARDING: [&str; 12] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-envoy-external-address",
    "x-proxyuser-ip",
    "true-client-ip",
    "fastly-client-ip",
    "cdn-loop",
];
const FORWARDING_PREFIXES: [&str; 4] = ["x-forwarded", "cf-", "x-vercel-", "tailscale-"];

/// Whether the request is from this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FromThisMachine(pub(crate) bool);

impl Input for FromThisMachine {
    fn describe(_: &mut Operation<'_>) {}
}

impl<S: Sync> FromRequestParts<S> for FromThisMachine {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.uri, &parts.headers))
    }
}

impl FromThisMachine {
    /// By the request's target and its headers.
    pub(crate) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Self(false);
        };
        let Ok(host) = host.to_str() else {
            return Self(false);
        };
        // A target in absolute form counts for more than the header (RFC 9112, section 3.2.2).
        let addressed = uri
            .authority()
            .is_none_or(|authority| is_loopback(authority.as_str()));
        Self(addressed && is_loopback(host) && !is_forwarded(headers) && !is_of_another_origin(host, headers))
    }
}

/// Whether `host`, with or without a port, is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, "")) => (name, None),
        Some((name, rest)) => match rest.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let bracketed = host.starts_with('[');
    let loopback = if bracketed {
        name == "::1"
    } else {
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
    };
    loopback
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().map(http::HeaderName::as_str).any(|name| {
        FORWARDING.contains(&name) || FORWARDING_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// Whether a browser says that a page of another origin, be it of this machine, made the request.
fn is_of_another_origin(host: &str, headers: &HeaderMap) -> bool {
    let same_origin = |origin: &str| {
        origin
            .split_once("://")
            .is_some_and(|(scheme, of)| matches!(scheme, "http" | "https") && of.eq_ignore_ascii_case(host))
    };
    let origins = headers.get_all(header::ORIGIN).iter();
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let foreign_origin = |value: &http::HeaderValue| !value.to_str().is_ok_and(same_origin);
    let foreign_site = |value: &http::HeaderValue| !matches!(value.as_bytes(), b"same-origin" | b"none");
    origins.into_iter().any(foreign_origin) || sites.any(foreign_site)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(uri: &str, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value);
        }
        FromThisMachine::of(&uri.parse().unwrap(), &map).0
    }

    #[test]
    fn hosts_of_this_machine() {
        for host in [
            "localhost",
            "localhost:8080",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.8.9.10:80",
            "[::1]",
            "[::1]:8080",
        ] {
            assert!(local("/v1/organizations", &[("host", host)]), "{host}");
        }
    }

    #[test]
    fn other_hosts() {
        for host in [
            "",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com",
            "example.com:127",
            "localhost:",
            "localhost:99999",
            "localhost:80:80",
            "localhost:80@example.com",
            "user@localhost",
            "localhost.",
            "128.0.0.1",
            "0.0.0.0",
            "127.1",
            "0x7f.0.0.1",
            "::1",
            "[::1",
            "[::1]x",
            "[::2]",
            "[localhost]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(!local("/", &[("host", host)]), "{host}");
        }
        assert!(!local("/", &[]));
        assert!(!local("/", &[("host", "localhost"), ("host", "localhost")]));
        assert!(!local("http://example.com/", &[("host", "localhost")]));
        assert!(local("http://127.0.0.1:80/", &[("host", "localhost")]));
    }

    #[test]
    fn whatever_was_forwarded_is_not_from_here() {
        for header in [
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-forwarded",
            "x-real-ip",
            "via",
            "cf-connecting-ip",
            "cf-ray",
            "true-client-ip",
        ] {
            assert!(
                !local("/", &[("host", "localhost"), (header, "127.0.0.1")]),
                "{header}"
            );
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let with = |name, value| local("/", &[("host", "localhost:8080"), (name, value)]);
        for origin in [
            "https://example.com",
            "http://localhost:3000",
            "http://localhost",
            "null",
            "",
            "localhost:8080",
        ] {
            assert!(!with("origin", origin), "{origin}");
        }
        assert!(with("origin", "http://localhost:8080"));
        for site in ["cross-site", "same-site", "", "anything"] {
            assert!(!with("sec-fetch-site", site), "{site}");
        }
        assert!(with("sec-fetch-site", "same-origin"));
        assert!(with("sec-fetch-site", "none"));
    }
}
