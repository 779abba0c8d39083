//! The guard against IANA's registries, written as data: every IPv4 address, and IPv6 by the edges of every block and at
//! random.
//!
//! The guard is stricter than the registries: what is special is refused even where it is globally reachable, for no
//! subscriber lives at an anycast address of a protocol. IPv4-mapped addresses (`::ffff:0:0/96`) count as what they carry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::globally_routable;

fn blocks() -> Vec<IpNet> {
    let lines = include_str!("special-purpose.csv").lines();
    lines
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split(',');
            assert_eq!(fields.clone().count(), 5, "{line}");
            let block = fields.nth(1).expect("a block");
            block.parse().unwrap_or_else(|error| panic!("{block}: {error}"))
        })
        .collect()
}

fn v4_blocks() -> Vec<Ipv4Net> {
    let blocks = blocks().into_iter();
    blocks
        .filter_map(|block| match block {
            IpNet::V4(block) => Some(block),
            IpNet::V6(_) => None,
        })
        .collect()
}

fn v6_blocks() -> Vec<Ipv6Net> {
    let blocks = blocks().into_iter();
    blocks
        .filter_map(|block| match block {
            IpNet::V6(block) => Some(block),
            IpNet::V4(_) => None,
        })
        .collect()
}

/// All of IPv4, cut where a block begins or ends, with whether what is between is public.
fn v4_stretches() -> Vec<(u32, u32, bool)> {
    let mut special: Vec<(u32, u32)> = v4_blocks()
        .iter()
        .map(|block| (block.network().into(), block.broadcast().into()))
        .collect();
    special.sort_unstable();
    let (mut stretches, mut next) = (Vec::new(), 0_u64);
    for (first, last) in special {
        if u64::from(first) > next {
            let begin = u32::try_from(next).expect("an address");
            stretches.push((begin, first - 1, true));
        }
        if u64::from(last) >= next {
            let begin = first.max(u32::try_from(next).expect("an address"));
            stretches.push((begin, last, false));
            next = u64::from(last) + 1;
        }
    }
    assert_eq!(next, 1 << 32, "the last block ends where the addresses do");
    stretches
}

fn check_v4(address: u32, public: bool) {
    let address = Ipv4Addr::from(address);
    assert_eq!(globally_routable(IpAddr::V4(address)), public, "{address}");
}

/// Every 251st address (a prime: all values of the last byte, and every block of 256), and all near an edge.
#[test]
fn ipv4_is_as_the_registries_have_it() {
    for (first, last, public) in v4_stretches() {
        (first..=last)
            .step_by(251)
            .for_each(|address| check_v4(address, public));
        let near = 1_000.min(last - first);
        (first..=first + near)
            .chain(last - near..=last)
            .for_each(|address| check_v4(address, public));
    }
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "4,294,967,296 addresses are seconds with --release, minutes without"
)]
fn every_ipv4_address_is_as_the_registries_have_it() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for (first, last, public) in v4_stretches() {
                    (first..=last)
                        .skip(thread)
                        .step_by(threads)
                        .for_each(|address| check_v4(address, public));
                }
            });
        }
    });
}

/// By the registries: global unicast (`2000::/3`), and in no special block.
fn public_v6(address: Ipv6Addr, blocks: &[Ipv6Net]) -> bool {
    let unicast: Ipv6Net = "2000::/3".parse().expect("a block");
    unicast.contains(&address) && !blocks.iter().any(|block| block.contains(&address))
}

fn check_v6(address: u128, blocks: &[Ipv6Net]) {
    let address = Ipv6Addr::from(address);
    if address.to_ipv4_mapped().is_some() {
        return;
    }
    assert_eq!(
        globally_routable(IpAddr::V6(address)),
        public_v6(address, blocks),
        "{address}"
    );
}

#[test]
fn ipv6_is_as_the_registries_have_it_at_every_edge() {
    let blocks = v6_blocks();
    let unicast = ["2000::/3".parse().expect("a block")];
    for block in blocks.iter().chain(&unicast) {
        let (first, last) = (u128::from(block.network()), u128::from(block.broadcast()));
        for near in 0..64 {
            for address in [
                first.wrapping_sub(near),
                first.saturating_add(near),
                last.saturating_sub(near),
                last.wrapping_add(near),
            ] {
                check_v6(address, &blocks);
            }
        }
        // Each bit of a block's first address turned alone: its neighbours at every length of prefix.
        for bit in 0..128 {
            check_v6(first ^ (1 << bit), &blocks);
            check_v6(last ^ (1 << bit), &blocks);
        }
    }
}

/// The ways in which an IPv6 address carries an IPv4 one, but for the mapped.
fn carriers(v4: u32) -> [u128; 5] {
    let v4 = u128::from(v4);
    [
        v4,                                                              // IPv4-compatible
        (0x0064_ff9b << 96) | v4,                                        // NAT64
        (0x0064_ff9b_0001 << 80) | v4,                                   // NAT64, local use
        (0x2002 << 112) | (v4 << 80) | 1,                                // 6to4
        (0x2001_0000 << 96) | (0x0808_0808 << 64) | (!v4 & 0xffff_ffff), // Teredo, its client
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn ipv6_is_as_the_registries_have_it(high in any::<u64>(), low in any::<u64>(), block in any::<prop::sample::Index>(),
                                         how in 0..3) {
        let blocks = v6_blocks();
        let address = (u128::from(high) << 64) | u128::from(low);
        let block = block.get(&blocks);
        let unicast = (address >> 3) | (1 << 125);
        check_v6(match how {
            0 => unicast,
            1 => address,
            // Somewhere in a block.
            _ => u128::from(block.network()) | (address & u128::from(block.hostmask())),
        }, &blocks);
    }

    #[test]
    fn ipv6_does_not_carry_ipv4_past_the_guard(v4 in any::<u32>()) {
        let plain = globally_routable(IpAddr::V4(v4.into()));
        let mapped = Ipv4Addr::from(v4).to_ipv6_mapped();
        prop_assert_eq!(globally_routable(IpAddr::V6(mapped)), plain, "{}", mapped);
        for carrier in carriers(v4) {
            let carrier = Ipv6Addr::from(carrier);
            prop_assert!(!globally_routable(IpAddr::V6(carrier)), "{}", carrier);
        }
    }
}
