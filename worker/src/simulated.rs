//! For tests: attempts at subscribers that are part of the test, and of whatever else goes by this thread.

use std::{cell::RefCell, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    attempt::{self, Attempted, Lack},
    lane::Job,
    outbound::{Outbound, Way},
    registry::Route,
};

/// What comes of an attempt.
pub type Subscribers = Arc<dyn Fn(Job) -> BoxFuture<'static, Result<Attempted, Lack>>>;

thread_local! {
    static SUBSCRIBERS: RefCell<Option<Subscribers>> = const { RefCell::new(None) };
}

/// From now on attempts that are made on this thread go to these.
pub fn stand_in(subscribers: Subscribers) {
    SUBSCRIBERS.set(Some(subscribers));
}

/// Makes an attempt at those, or a real one where there are none.
pub async fn attempt(client: &Outbound, way: Way, route: &Route, job: Job) -> Result<Attempted, Lack> {
    let attempt = SUBSCRIBERS.with_borrow(|subscribers| match subscribers {
        Some(subscribers) => Ok(subscribers(job)),
        None => Err(job),
    });
    match attempt {
        Ok(attempt) => attempt.await,
        Err(job) => attempt::attempt(client, way, route, job).await,
    }
}
