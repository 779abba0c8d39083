//! The outbound guard: whoever can set a URL must not reach inside.
//!
//! An address that is not globally routable is refused unless the deployment opens its network. Ports other than 80
//! and 443, and plain `http`, are refused likewise; in an opened network both are allowed. The same policy is asked
//! when a URL is saved (an early 422) and, what counts, for every connection, of the very address that is connected to.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

use crate::{Invalid, OrganizationId, SubscriptionUrl, lookup::Lookups};

/// How long the early check waits for a host's addresses.
const EARLY: Duration = Duration::from_secs(2);

/// What a deployment lets pushes reach.
#[derive(Debug, Clone, Default)]
pub struct TargetPolicy {
    /// Networks that are open though they are not globally routable.
    pub private: Vec<IpNet>,
    /// Whether loopback is open to URLs that say so: an address in it, `localhost`, or a name under `.localhost`. Any other
    /// name may be somebody else's to point there.
    pub this_machine: bool,
    /// Ports that are open besides 80 and 443.
    pub ports: Vec<u16>,
    /// Whether plain `http` is open everywhere.
    pub http: bool,
}

/// Why a target is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// The address.
    #[error(
        "must not resolve to {0}, which is not a public address; a deployment opens networks of its own with TRIGGERS_ALLOW_PRIVATE_TARGETS"
    )]
    Address(IpAddr),
    /// The port.
    #[error("must use port 80 or 443, not {0}; a deployment opens others with TRIGGERS_ALLOW_TARGET_PORTS")]
    Port(u16),
    /// The scheme.
    #[error("must begin with https://; a deployment opens plain http with TRIGGERS_ALLOW_HTTP_TARGETS")]
    Http,
}

impl From<Blocked> for Invalid {
    fn from(blocked: Blocked) -> Self {
        Self::new(blocked.to_string())
    }
}

impl TargetPolicy {
    /// Parses `TRIGGERS_ALLOW_PRIVATE_TARGETS`: networks, or single addresses, separated by commas.
    pub fn parse_networks(text: &str) -> Result<Vec<IpNet>, Invalid> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                part.parse::<IpNet>()
                    .or_else(|_| part.parse::<IpAddr>().map(IpNet::from))
                    .map_err(|_| {
                        Invalid::new(format!(
                            "{part:?} is not a network; use for example 127.0.0.0/8,::1/128"
                        ))
                    })
            })
            .collect()
    }

    /// Whether a connection for `url` may be made to `address`.
    pub fn check(&self, url: &SubscriptionUrl, address: IpAddr) -> Result<(), Blocked> {
        let address = canonical(address);
        if self.private.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        if self.this_machine && address.is_loopback() && names_this_machine(url) {
            return Ok(());
        }
        if !globally_routable(address) {
            return Err(Blocked::Address(address));
        }
        self.check_url(url)
    }

    /// What can be said of a URL in the open, whatever it resolves to.
    pub fn check_url(&self, url: &SubscriptionUrl) -> Result<(), Blocked> {
        let port = url.url().port_or_known_default().unwrap_or_default();
        if !matches!(port, 80 | 443) && !self.ports.contains(&port) {
            return Err(Blocked::Port(port));
        }
        if url.url().scheme() == "http" && !self.http {
            return Err(Blocked::Http);
        }
        Ok(())
    }

    /// The early check: the host is resolved and each address checked. A name that does not resolve now is judged by the
    /// URL alone, since it may resolve at the attempt, where it is checked again. `whose` it is bounds what it takes of the
    /// look-ups.
    pub async fn check_early(
        &self,
        url: &SubscriptionUrl,
        lookups: &Lookups,
        whose: Option<OrganizationId>,
    ) -> Result<(), Blocked> {
        let addresses: Vec<IpAddr> = match url.url().host() {
            Some(url::Host::Ipv4(address)) => vec![address.into()],
            Some(url::Host::Ipv6(address)) => vec![address.into()],
            Some(url::Host::Domain(name)) => {
                match tokio::time::timeout(EARLY, lookups.addresses(whose, name)).await {
                    Ok(Ok(found)) => found.to_vec(),
                    _ => Vec::new(),
                }
            }
            None => Vec::new(),
        };
        if addresses.is_empty() {
            return self.check_url(url);
        }
        addresses
            .into_iter()
            .try_for_each(|address| self.check(url, address))
    }
}

/// Whether a URL's host is an address, or a name that stands for loopback and nothing else
/// ([RFC 6761, section 6.3](https://www.rfc-editor.org/rfc/rfc6761#section-6.3)).
fn names_this_machine(url: &SubscriptionUrl) -> bool {
    match url.url().host() {
        Some(url::Host::Ipv4(_) | url::Host::Ipv6(_)) => true,
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

/// The IPv4 address that an IPv4-mapped IPv6 address stands for.
fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// Whether an address is globally routable unicast, by the IANA special-purpose registries
/// ([IPv4](https://www.iana.org/assignments/iana-ipv4-special-registry),
/// [IPv6](https://www.iana.org/assignments/iana-ipv6-special-registry)). IPv6 addresses that carry an IPv4 address
/// (mapped, NAT64, 6to4, Teredo) are refused as a whole, but for the mapped, which count as what they carry.
pub fn globally_routable(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(address) => v4_routable(address),
        IpAddr::V6(address) => v6_routable(address),
    }
}

fn v4_routable(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0 // this network
        || a == 10 // private
        || a == 127 // loopback
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 169 && b == 254) // link-local, cloud metadata
        || (a == 172 && (16..32).contains(&b)) // private
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 192 && b == 0 && c == 2) // documentation
        || (a == 192 && b == 31 && c == 196) // AS112
        || (a == 192 && b == 52 && c == 193) // AMT
        || (a == 192 && b == 88 && c == 99) // 6to4 relay
        || (a == 192 && b == 168) // private
        || (a == 192 && b == 175 && c == 48) // AS112
        || (a == 198 && (b == 18 || b == 19)) // benchmarking
        || (a == 198 && b == 51 && c == 100) // documentation
        || (a == 203 && b == 0 && c == 113) // documentation
        || a >= 224) // multicast, reserved, broadcast
}

fn v6_routable(address: Ipv6Addr) -> bool {
    let [a, b, c, ..] = address.segments();
    let special = (a == 0x2001 && (b < 0x0200 || b == 0x0db8)) // protocol assignments: Teredo, benchmarking, ORCHID, AMT, AS112; documentation
        || a == 0x2002 // 6to4
        || (a == 0x2620 && b == 0x004f && c == 0x8000) // AS112
        || (a == 0x3fff && b < 0x1000); // documentation
    // Only 2000::/3 is global unicast.
    (a & 0xe000) == 0x2000 && !special
}

#[cfg(test)]
mod registry_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_refused() {
        for inside in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "5f00::1",
        ] {
            assert!(!globally_routable(inside.parse().unwrap()), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "8.8.8.8",
            "100.128.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450::1",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
        ] {
            assert!(globally_routable(outside.parse().unwrap()), "{outside}");
        }
    }

    #[tokio::test]
    async fn a_policy_opens_what_it_names() {
        async fn early(policy: &TargetPolicy, url: &SubscriptionUrl) -> Result<(), Blocked> {
            policy.check_early(url, &Lookups::default(), None).await
        }
        let url = |text: &str| SubscriptionUrl::parse(text).unwrap();
        let closed = TargetPolicy::default();
        let loopback = "http://127.0.0.1:9/x";
        assert_eq!(
            early(&closed, &url(loopback)).await,
            Err(Blocked::Address([127, 0, 0, 1].into()))
        );
        assert!(early(&closed, &url("http://[::ffff:7f00:1]/")).await.is_err());
        assert!(
            early(&closed, &url("http://2130706433/")).await.is_err(),
            "decimal forms are read as addresses"
        );
        assert!(early(&closed, &url("https://0x7f.1/")).await.is_err());
        assert_eq!(
            early(&closed, &url("https://8.8.8.8:8443/")).await,
            Err(Blocked::Port(8443))
        );
        assert_eq!(early(&closed, &url("http://8.8.8.8/")).await, Err(Blocked::Http));
        assert_eq!(early(&closed, &url("https://8.8.8.8/")).await, Ok(()));
        let networks = TargetPolicy::parse_networks("127.0.0.0/8, ::1").unwrap();
        let open = TargetPolicy {
            private: networks,
            ..TargetPolicy::default()
        };
        assert_eq!(early(&open, &url(loopback)).await, Ok(()));
        assert_eq!(
            early(&open, &url("http://[::ffff:127.0.0.1]:8000/")).await,
            Ok(())
        );
        assert!(early(&open, &url("http://10.0.0.1/")).await.is_err());
        assert!(TargetPolicy::parse_networks("localhost").is_err());
    }

    #[test]
    fn this_machine_is_reached_by_its_own_names_alone() {
        let dev = TargetPolicy {
            this_machine: true,
            ..TargetPolicy::default()
        };
        let check = |text: &str, address: &str| {
            let url = SubscriptionUrl::parse(text).unwrap();
            dev.check(&url, address.parse().unwrap())
        };
        for (url, address) in [
            ("http://localhost:9/x", "127.0.0.1"),
            ("http://localhost:9/x", "::1"),
            ("http://LocalHost/", "127.0.0.1"),
            ("http://app.localhost:3000/", "127.0.0.1"),
            ("http://127.0.0.1:9/x", "127.0.0.1"),
            ("http://127.8.9.10/", "127.8.9.10"),
            ("http://[::1]:9/", "::1"),
            ("http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1"),
        ] {
            assert_eq!(check(url, address), Ok(()), "{url} at {address}");
        }
        // A public name that points here is not this machine's word for itself.
        for (url, address) in [
            ("https://example.com/", "127.0.0.1"),
            ("https://example.com/", "::1"),
            ("https://example.com/", "::ffff:127.0.0.1"),
            ("https://localhost.example.com/", "127.0.0.1"),
            ("https://notlocalhost/", "127.0.0.1"),
            ("https://localhost.localdomain/", "127.0.0.1"),
            ("https://localhost/", "10.0.0.1"),
            ("https://localhost/", "169.254.169.254"),
            ("https://10.0.0.1/", "10.0.0.1"),
            ("https://[fe80::1]/", "fe80::1"),
        ] {
            let blocked = check(url, address);
            assert!(
                matches!(blocked, Err(Blocked::Address(_))),
                "{url} at {address}: {blocked:?}"
            );
        }
        assert_eq!(
            check("http://localhost/", "8.8.8.8"),
            Err(Blocked::Http),
            "elsewhere the usual rules hold, whatever the name"
        );
        let serve = TargetPolicy::default();
        let url = SubscriptionUrl::parse("http://localhost/").unwrap();
        assert!(serve.check(&url, [127, 0, 0, 1].into()).is_err());
    }
}
