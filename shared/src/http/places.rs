//! Places for connections: so many in all, and so many for one address.
//!
//! Who connects is always taken: one for whom there is no place is told so, by a problem, and closed, so that nobody is left
//! waiting for a server that does not listen. Telling is bounded as well, in time and number: past that the connection is
//! closed without a word. An address that is trusted to be a proxy has as many as it likes, for it is many clients.
//!
//! `/health` and `/health/live` are answered all the same: the process is up, and whoever starts processes anew by what they
//! say would only make it worse.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;

use super::{
    ApiError,
    linger::Lingering,
    origin::Origin,
    server::{Bounds, MAX_HEAD_BYTES, MAX_HEADERS, Peer, envelope},
};
use crate::telemetry;

/// How many are told at once that there is no place, for each reason that there may be.
const TOLD_AT_ONCE: usize = 128;
/// How long one who is told may take, request and answer together.
const PATIENCE: Duration = Duration::from_secs(2);
/// When a client is to try again.
const LATER: Duration = Duration::from_secs(1);

/// The places of a server.
pub(super) struct Places {
    all: Arc<Semaphore>,
    /// How many one address may have.
    each: Option<usize>,
    trusted_proxies: Vec<IpNet>,
    taken: Mutex<HashMap<Origin, usize>>,
    /// What those are told for whom there is none.
    in_all: Telling,
    of_one: Telling,
}

/// What is told for one reason, and room to tell it.
struct Telling {
    room: Arc<Semaphore>,
    router: Router,
}

impl Telling {
    fn of(error: ApiError) -> Self {
        Self {
            room: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
            router: Router::new().fallback(move || std::future::ready(error.clone())),
        }
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    InAll,
    /// All that one address may have are.
    OfOne,
}

/// A place, until it is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    counted: Option<(Arc<Places>, Origin)>,
}

impl Places {
    pub(super) fn of(bounds: &Bounds) -> Arc<Self> {
        let most = bounds.of_one_address.unwrap_or_default();
        let of_one = format!(
            "too many connections from this address: {most} at once may, so use again those that are open"
        );
        Arc::new(Self {
            all: Arc::new(Semaphore::new(bounds.connections)),
            each: bounds.of_one_address,
            trusted_proxies: bounds.trusted_proxies.clone(),
            taken: Mutex::default(),
            in_all: Telling::of(ApiError::unavailable(
                "there are as many connections as this node serves; try again",
                LATER,
            )),
            of_one: Telling::of(ApiError::rate_limited(of_one, LATER)),
        })
    }

    /// A place for somebody who has connected from there.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let counted = self.each.filter(|_| {
            let mut proxies = self.trusted_proxies.iter();
            !proxies.any(|network| network.contains(&address))
        });
        let origin = Origin::of(address);
        let mut taken = self.taken();
        let has = taken.get(&origin).copied().unwrap_or_default();
        if counted.is_some_and(|most| has >= most) {
            return Err(Full::OfOne);
        }
        let permit = Arc::clone(&self.all)
            .try_acquire_owned()
            .map_err(|_| Full::InAll)?;
        if counted.is_some() {
            taken.insert(origin, has + 1);
        }
        drop(taken);
        Ok(Place {
            _permit: permit,
            counted: counted.map(|_| (Arc::clone(self), origin)),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Origin, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells somebody why there is no place, in a task of `tasks`, and closes the connection.
    pub(super) fn turn_away(
        &self,
        why: Full,
        stream: TcpStream,
        peer: Peer,
        router: &Router,
        tasks: &TaskTracker,
    ) {
        telemetry::turned_away().increment(1);
        let telling = match why {
            Full::InAll => &self.in_all,
            Full::OfOne => &self.of_one,
        };
        let Ok(permit) = Arc::clone(&telling.room).try_acquire_owned() else {
            return;
        };
        let (alive, told, lingering) = (router.clone(), telling.router.clone(), tasks.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let router = match request.uri().path() {
                "/health" | "/health/live" => alive.clone(),
                _ => told.clone(),
            };
            envelope(router, peer, Lingering::of(request, &lingering))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES)
            .keep_alive(false)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service);
        tasks.spawn(async move {
            let _permit = permit;
            let _ = tokio::time::timeout(PATIENCE, connection).await;
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((places, origin)) = &self.counted else {
            return;
        };
        let mut taken = places.taken();
        if let Some(has) = taken.get_mut(origin) {
            *has -= 1;
            if *has == 0 {
                taken.remove(origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(connections: usize, of_one_address: Option<usize>) -> Arc<Places> {
        Places::of(&Bounds {
            connections,
            of_one_address,
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
            ..Bounds::default()
        })
    }

    fn take(places: &Arc<Places>, address: &str) -> Result<Place, Full> {
        places.take(address.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_part_and_gives_it_back() {
        let places = places(8, Some(2));
        let one = take(&places, "192.0.2.1").unwrap();
        let two = take(&places, "::ffff:192.0.2.1").unwrap();
        assert_eq!(take(&places, "192.0.2.1").err(), Some(Full::OfOne));
        let _another = take(&places, "192.0.2.2").unwrap();
        // An IPv6 address counts as its network.
        let _six = take(&places, "2001:db8::1").unwrap();
        let _seven = take(&places, "2001:db8::2:1").unwrap();
        assert_eq!(take(&places, "2001:db8::3").err(), Some(Full::OfOne));
        let _eight = take(&places, "2001:db8:0:1::1").unwrap();
        drop(one);
        let again = take(&places, "192.0.2.1").unwrap();
        drop((two, again));
        assert_eq!(places.taken().len(), 3, "nothing is kept of who has gone");
    }

    #[test]
    fn all_have_the_whole_and_trusted_proxies_no_part() {
        let places = places(4, Some(1));
        let held: Vec<_> = (0..3).map(|_| take(&places, "10.1.2.3").unwrap()).collect();
        let _one = take(&places, "192.0.2.1").unwrap();
        assert_eq!(take(&places, "192.0.2.2").err(), Some(Full::InAll));
        assert_eq!(take(&places, "10.1.2.3").err(), Some(Full::InAll));
        drop(held);
        assert_eq!(take(&places, "192.0.2.1").err(), Some(Full::OfOne));
        let _two = take(&places, "192.0.2.2").unwrap();
    }

    #[test]
    fn without_a_part_there_is_the_whole() {
        let places = places(3, None);
        let _held: Vec<_> = (0..3).map(|_| take(&places, "192.0.2.1").unwrap()).collect();
        assert_eq!(take(&places, "192.0.2.1").err(), Some(Full::InAll));
        assert!(places.taken().is_empty());
    }
}
