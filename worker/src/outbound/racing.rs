//! Which of a host's addresses to use: the one that answers.
//!
//! A host with IPv6 and IPv4 may answer at one of them alone, and a network between may swallow what goes to the other without
//! a word. So an address that does not answer in a moment is not waited for alone: the next is tried beside it, of the other family
//! if there is one, and whichever is connected first is used
//! ([RFC 8305](https://www.rfc-editor.org/rfc/rfc8305), sections 4 and 5). A name may have any number of addresses, and connections
//! cost file descriptors: there are two at once, and the first of many are given up in time for the last.

use std::{future::Future, io, net::IpAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

use super::failure::is_out_of_files;

/// How many addresses are tried at once.
const AT_ONCE: usize = 2;

/// When to try another.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long one may take before the next is tried beside it.
    pub next_after: Duration,
    /// How long one may take while another waits for its place.
    pub given_up_after: Duration,
}

impl Pace {
    /// As the RFC recommends; and long enough for a packet that is lost on the way to be sent again.
    pub const USUAL: Self = Self {
        next_after: Duration::from_millis(250),
        given_up_after: Duration::from_secs(2),
    };
}

/// What a failure to connect is of. Of a host's addresses it is told what is the most of these: what is ours first, since then nobody
/// knows how the host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Of {
    /// There is no way there, as where IPv6 is not spoken: one of the other family may say more.
    TheWay,
    /// It refused, broke off, or did not answer.
    TheHost,
    /// This process has no file descriptor left.
    Ours,
}

impl Of {
    fn error(error: &io::Error) -> Self {
        match error.kind() {
            _ if is_out_of_files(error) => Self::Ours,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::TimedOut => Self::TheHost,
            _ => Self::TheWay,
        }
    }
}

/// The first connection that is made to any of these addresses; or why there is none: the last failure of those that say the most.
/// To be given a time: the last ones are waited for.
pub async fn first<T, C>(addresses: &[IpAddr], pace: Pace, connect: impl Fn(IpAddr) -> C) -> io::Result<T>
where
    C: Future<Output = io::Result<T>>,
{
    let mut left = in_turns(addresses).into_iter();
    let mut trying = FuturesUnordered::new();
    let mut why = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        if trying.len() < AT_ONCE
            && let Some(address) = left.next()
        {
            // Those that have a place until the end need not leave it to another.
            let leaves_it = left.len() >= AT_ONCE;
            let connecting = connect(address);
            trying.push(async move {
                if leaves_it {
                    timeout(pace.given_up_after, connecting).await?
                } else {
                    connecting.await
                }
            });
        }
        let goes_on = left.len() > 0 && trying.len() < AT_ONCE;
        tokio::select! {
            Some(ended) = trying.next() => match ended {
                Ok(connected) => return Ok(connected),
                Err(error) if Of::error(&error) >= Of::error(&why) => why = error,
                Err(_) => {}
            },
            () = sleep(pace.next_after), if goes_on => {}
            else => return Err(why),
        }
    }
}

/// The two families by turns, the first address first; of each in the order in which the resolver has them.
fn in_turns(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_of_first = |address: &IpAddr| {
        addresses
            .first()
            .is_some_and(|first| first.is_ipv6() == address.is_ipv6())
    };
    let (mut ones, others): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().copied().partition(is_of_first);
    let rest = ones.split_off(others.len().min(ones.len()));
    let mut turns = Vec::with_capacity(addresses.len());
    let mut others = others.into_iter();
    for one in ones {
        turns.push(one);
        turns.extend(others.next());
    }
    turns.extend(others);
    turns.extend(rest);
    turns
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        net::{Ipv4Addr, Ipv6Addr},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use proptest::prelude::*;

    use super::*;

    /// What becomes of a connection to an address.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Answers,
        AnswersLate,
        Refuses,
        FailsLate,
        Swallows,
        Unreachable,
        Starved,
    }
    use Fate::{Answers, AnswersLate, FailsLate, Refuses, Starved, Swallows, Unreachable};

    const QUICK: Pace = Pace {
        next_after: Duration::from_millis(5),
        given_up_after: Duration::from_millis(20),
    };
    const LATE: Duration = Duration::from_millis(60);

    fn v4(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn v6(last: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
    }

    struct Net {
        fates: HashMap<IpAddr, Fate>,
        under_way: AtomicUsize,
        most: AtomicUsize,
        begun: AtomicUsize,
    }

    impl Net {
        async fn connect(&self, address: IpAddr) -> io::Result<IpAddr> {
            struct Leaves<'a>(&'a AtomicUsize);
            impl Drop for Leaves<'_> {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Ordering::Relaxed);
                }
            }
            let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
            let _leaves = Leaves(&self.under_way);
            self.most.fetch_max(under_way, Ordering::Relaxed);
            self.begun.fetch_add(1, Ordering::Relaxed);
            match self.fates[&address] {
                Answers => Ok(address),
                AnswersLate => {
                    sleep(LATE).await;
                    Ok(address)
                }
                Refuses => Err(io::ErrorKind::ConnectionRefused.into()),
                FailsLate => {
                    sleep(LATE).await;
                    Err(io::ErrorKind::TimedOut.into())
                }
                Swallows => std::future::pending().await,
                Unreachable => Err(io::ErrorKind::NetworkUnreachable.into()),
                // EMFILE.
                Starved => Err(io::Error::from_raw_os_error(24)),
            }
        }
    }

    /// Which address is connected to, after how many were tried; `None` if the time ends first.
    async fn race_within(
        time: Duration,
        fates: &[(IpAddr, Fate)],
        pace: Pace,
    ) -> (Option<io::Result<IpAddr>>, usize) {
        let net = Net {
            fates: fates.iter().copied().collect(),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            begun: AtomicUsize::new(0),
        };
        let addresses: Vec<IpAddr> = fates.iter().map(|(address, _)| *address).collect();
        let racing = first(&addresses, pace, |address| net.connect(address));
        let won = timeout(time, racing).await.ok();
        assert!(net.most.into_inner() <= AT_ONCE);
        assert_eq!(net.under_way.into_inner(), 0, "what lost is let go of");
        (won, net.begun.into_inner())
    }

    async fn race(fates: &[(IpAddr, Fate)], pace: Pace) -> (Option<io::Result<IpAddr>>, usize) {
        race_within(Duration::from_secs(30), fates, pace).await
    }

    #[tokio::test]
    async fn one_family_that_swallows_everything_costs_a_moment() {
        let fates = [
            (v6(1), Swallows),
            (v6(2), Swallows),
            (v6(3), Swallows),
            (v4(1), Answers),
        ];
        let (won, begun) = race(&fates, QUICK).await;
        assert_eq!((won.unwrap().unwrap(), begun), (v4(1), 2));
    }

    #[tokio::test]
    async fn one_that_refuses_costs_nothing_and_one_that_answers_is_alone() {
        let never = Pace {
            next_after: Duration::from_hours(1),
            given_up_after: Duration::from_hours(1),
        };
        let fates = [
            (v6(1), Refuses),
            (v6(2), Refuses),
            (v4(1), Refuses),
            (v4(2), Answers),
            (v4(3), Answers),
        ];
        let (won, begun) = race(&fates, never).await;
        assert_eq!((won.unwrap().unwrap(), begun), (v4(2), 4));
    }

    #[tokio::test]
    async fn the_only_one_has_all_the_time_that_there_is() {
        let (won, _) = race(&[(v4(1), AnswersLate)], QUICK).await;
        assert_eq!(won.unwrap().unwrap(), v4(1));
        let (won, _) = race(&[(v4(1), AnswersLate), (v4(2), Swallows)], QUICK).await;
        assert_eq!(won.unwrap().unwrap(), v4(1));
    }

    #[tokio::test]
    async fn why_the_last_one_failed_is_said() {
        let (none, _) = race(&[], QUICK).await;
        assert_eq!(none.unwrap().unwrap_err().kind(), io::ErrorKind::NotFound);
        let (refused, begun) = race(&[(v4(1), Refuses), (v6(1), Refuses)], QUICK).await;
        let refused = refused.unwrap().unwrap_err();
        assert_eq!((refused.kind(), begun), (io::ErrorKind::ConnectionRefused, 2));
        let swallow = [(v4(1), Swallows), (v6(1), Swallows)];
        let (nothing, begun) = race_within(Duration::from_millis(500), &swallow, QUICK).await;
        assert!(nothing.is_none() && begun == 2);
    }

    #[tokio::test]
    async fn what_says_the_most_is_told() {
        let (refused, unreachable) = (
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::NetworkUnreachable,
        );
        let late = io::ErrorKind::TimedOut;
        for (fates, expected) in [
            (&[Refuses, Unreachable][..], refused),
            (&[Unreachable, Refuses], refused),
            (&[FailsLate, Unreachable], late),
            (&[Refuses, FailsLate], late),
            (&[Unreachable, Unreachable], unreachable),
        ] {
            let of = [v4(1), v6(1)].into_iter().zip(fates.iter().copied());
            let (none, _) = race(&of.collect::<Vec<_>>(), QUICK).await;
            assert_eq!(none.unwrap().unwrap_err().kind(), expected, "{fates:?}");
        }
        for fates in [[Starved, Refuses], [Unreachable, Starved], [Starved, FailsLate]] {
            let of = [v4(1), v6(1)].into_iter().zip(fates);
            let (none, _) = race(&of.collect::<Vec<_>>(), QUICK).await;
            assert!(is_out_of_files(&none.unwrap().unwrap_err()), "{fates:?}");
        }
    }

    #[test]
    fn families_take_turns() {
        let (mixed, expected) = (
            [v6(1), v6(2), v6(3), v4(1), v4(2)],
            [v6(1), v4(1), v6(2), v4(2), v6(3)],
        );
        assert_eq!(in_turns(&mixed), expected);
        assert_eq!(in_turns(&[v4(1), v6(1), v6(2)]), [v4(1), v6(1), v6(2)]);
        assert_eq!(in_turns(&[v4(2), v4(1)]), [v4(2), v4(1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// However many there are and whatever becomes of them: one that answers is found, two are tried at once at most, and none
        /// is left out before all have failed.
        #[test]
        fn one_that_answers_is_found(
            of in prop::collection::vec((any::<bool>(), prop::sample::select(vec![Answers, Refuses, FailsLate])), 0..8)
        ) {
            let numbered = (1u8..).zip(&of);
            let fates: Vec<_> = numbered
                .map(|(at, (is_v6, fate))| (if *is_v6 { v6(at.into()) } else { v4(at) }, *fate))
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (won, begun) = runtime.block_on(race(&fates, QUICK));
            let answers = of.iter().any(|(_, fate)| *fate == Answers);
            match won.expect("each ends") {
                Ok(address) => prop_assert!(fates.contains(&(address, Answers))),
                Err(_) => prop_assert!(!answers && begun == of.len()),
            }
        }
    }
}
