//! What is answered takes [room](crate::room) until it is sent, whatever the route.
//!
//! An answer is made in a moment, and sent at the pace of whoever reads it. What writes itself while it is read, as lists do,
//! has its room already. Any other is weighed here, once it is made and before anything of it is sent: one of more than
//! [`LITTLE`] takes room for what it weighs, or becomes a 503. That is for requests that change nothing. One that
//! changes something must be heard when it has: where its answer may be large, it [takes room first](Roomed).

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    body::{HttpBody as _, to_bytes},
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{Extensions, request::Parts};
use shared::{
    OrganizationId,
    http::{
        ApiError,
        openapi::{Input, Operation},
    },
};

use crate::{
    Control, listing,
    room::{Held, LITTLE, Whose},
};

/// What a request's handler says of its answer, among the request's extensions.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    whose: Whose,
    held: Option<Held>,
}

impl Slot {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whose the answer is to a request with these extensions.
pub(crate) fn is_of(extensions: &Extensions, organization: OrganizationId) {
    if let Some(slot) = extensions.get::<Slot>() {
        slot.said().whose = Some(organization);
    }
}

/// Room for the answer of a request that changes something: taken before it does. Comes after what says whose it is.
pub(crate) struct Roomed;

impl Input for Roomed {
    fn describe(_: &mut Operation<'_>) {}
}

/// The same, for a request that has to wait for something first: it holds no room meanwhile.
pub(crate) struct RoomToTake(Slot);

impl RoomToTake {
    /// Takes it: before anything is changed.
    pub(crate) async fn take(&self, control: &Control) -> Result<(), ApiError> {
        let whose = self.0.said().whose;
        let held = control.room.take_single(whose).await?;
        self.0.said().held = Some(held);
        Ok(())
    }
}

impl Input for RoomToTake {
    fn describe(_: &mut Operation<'_>) {}
}

impl FromRequestParts<Arc<Control>> for RoomToTake {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Control>) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Slot>().cloned().unwrap_or_default()))
    }
}

impl FromRequestParts<Arc<Control>> for Roomed {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        if let Some(slot) = parts.extensions.get::<Slot>() {
            RoomToTake(slot.clone()).take(control).await?;
        }
        Ok(Self)
    }
}

/// Weighs each answer, and lets it take room.
pub(crate) async fn weighed(
    State(control): State<Arc<Control>>,
    mut request: Request,
    next: Next,
) -> Response {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let changes_nothing = request.method().is_safe();
    let response = next.run(request).await;
    let weight = response.body().size_hint().exact();
    let weight = weight
        .and_then(|weight| usize::try_from(weight).ok())
        .unwrap_or(0);
    if weight <= LITTLE || response.extensions().get::<listing::HasRoom>().is_some() {
        return response;
    }
    let (whose, held) = {
        let mut said = slot.said();
        (said.whose, said.held.take())
    };
    let held = match held {
        Some(held) => held,
        None => match control.room.take_for(whose, weight).await {
            Ok(held) => held,
            Err(refused) if changes_nothing => return refused.into_response(),
            Err(_) => return response,
        },
    };
    let (parts, body) = response.into_parts();
    match to_bytes(body, weight).await {
        Ok(text) => Response::from_parts(parts, listing::kept(text, held)),
        Err(error) => ApiError::internal(&error).into_response(),
    }
}
