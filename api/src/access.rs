//! Who may do what: a key with a scope, the deployment's operator, whoever may create an organization.
//!
//! These are extractors, and come before the body: nobody's body is read before it is known that they may send it.

use std::{marker::PhantomData, sync::Arc};

use axum::extract::FromRequestParts;
use http::{HeaderMap, header, request::Parts};
use secrecy::ExposeSecret;
use shared::http::openapi::{Input, Operation, Security};
use shared::{
    Grant, OrganizationId, Scope, Tier,
    audit::{self, Actor},
    http::{ApiError, Code, body::OfOrganization, server::Peer},
};
use subtle::ConstantTimeEq;

use crate::{Api, Control, this_machine::FromThisMachine, weighed};

/// Who may create an organization. Whoever has the admin token always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signup {
    /// The holder of the admin token alone.
    AdminOnly,
    /// Whoever asks from this machine, for any tier: `triggers dev`, on a loopback listener.
    FromThisMachine,
    /// Anybody, for the tier `free`; higher ones need the admin token.
    Open,
}

/// What a route asks of a key: any one of these scopes, or nothing but to be valid if there are none.
pub(crate) trait Access: Send + Sync + 'static {
    const ANY_OF: &'static [Scope];
}

macro_rules! accesses {
    ($($(#[$doc:meta])* $name:ident: $($scope:ident)|*;)*) => {$(
        $(#[$doc])*
        pub(crate) enum $name {}
        impl Access for $name {
            const ANY_OF: &'static [Scope] = &[$(Scope::$scope),*];
        }
    )*};
}

accesses! {
    /// Any valid key.
    AnyKey: ;
    /// Looking events up, the inbox and its acknowledgements.
    Events: EventsRead;
    /// Changing subscriptions.
    Subscriptions: SubscriptionsWrite;
    /// Looking subscriptions up: whoever reads deliveries must be able to tell to whom they went.
    SeeSubscriptions: SubscriptionsWrite | EventsRead;
    /// Opening deliveries again and calling them off, one as well as many: it decides what a subscriber gets, so that whoever may
    /// only read does not.
    Deliveries: SubscriptionsWrite;
    /// Keys and the organization itself, and what cannot be undone.
    Administration: Admin;
}

/// A request with a key that may do what `A` asks.
pub(crate) struct Caller<A> {
    pub(crate) grant: Arc<Grant>,
    access: PhantomData<fn() -> A>,
}

impl<A> Caller<A> {
    pub(crate) fn organization(&self) -> OrganizationId {
        self.grant.organization
    }
}

impl<A: Access> Input for Caller<A> {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs(Security::Key(A::ANY_OF));
    }
}

impl<A: Access> FromRequestParts<Arc<Control>> for Caller<A> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        let grant = control
            .api
            .auth
            .authenticate(&parts.headers, Peer::of(&parts.extensions))
            .await?;
        audit::made_by(Actor::Key(grant.key));
        parts.extensions.insert(OfOrganization(grant.organization));
        weighed::is_of(&parts.extensions, grant.organization);
        if A::ANY_OF.is_empty() || A::ANY_OF.iter().any(|scope| grant.scopes.contains(*scope)) {
            return Ok(Self {
                grant,
                access: PhantomData,
            });
        }
        let scopes: Vec<&str> = A::ANY_OF.iter().map(|scope| scope.as_str()).collect();
        Err(ApiError::new(
            Code::Forbidden,
            format!("the API key needs the scope {}", scopes.join(" or ")),
        ))
    }
}

/// What a request's admin token came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presented {
    /// It is the deployment's.
    Valid,
    /// There is one, or something in its place, and it is not.
    Wrong,
    /// There is none.
    Missing,
}

/// Compares in a time that does not depend on where the token differs.
fn presented(api: &Api, headers: &HeaderMap) -> Presented {
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        return Presented::Missing;
    };
    let given = given.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match (given, &api.admin_token) {
        (Some(given), Some(token))
            if bool::from(given.as_bytes().ct_eq(token.expose_secret().as_bytes())) =>
        {
            Presented::Valid
        }
        _ => Presented::Wrong,
    }
}

const NO_ADMIN_TOKEN: &str =
    "this deployment has no admin token; its operator sets one with TRIGGERS_ADMIN_TOKEN";
const SEND_ADMIN_TOKEN: &str =
    "send the deployment's admin token (TRIGGERS_ADMIN_TOKEN), as Authorization: Bearer <token>";

/// A request with the deployment's admin token.
pub(crate) struct Operator;

impl Input for Operator {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs(Security::AdminToken);
        operation.problem(Code::Unavailable, "the store cannot be reached");
    }
}

impl FromRequestParts<Arc<Control>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        match presented(&control.api, &parts.headers) {
            Presented::Valid => {
                audit::made_by(Actor::AdminToken);
                Ok(Self)
            }
            _ if control.api.admin_token.is_none() => Err(ApiError::new(Code::Forbidden, NO_ADMIN_TOKEN)),
            _ => Err(control.api.auth.stranger(
                &parts.headers,
                Peer::of(&parts.extensions),
                ApiError::unauthorized(SEND_ADMIN_TOKEN),
            )),
        }
    }
}

/// A request with a key that may administer, for its own organization; or with the deployment's admin token.
pub(crate) enum Administrator {
    /// Of this organization.
    Of(OrganizationId),
    /// Of the deployment.
    OfAll,
}

impl Input for Administrator {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs(Security::KeyOrAdminToken(Administration::ANY_OF));
    }
}

impl FromRequestParts<Arc<Control>> for Administrator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        if presented(&control.api, &parts.headers) == Presented::Valid {
            audit::made_by(Actor::AdminToken);
            return Ok(Self::OfAll);
        }
        let caller = Caller::<Administration>::from_request_parts(parts, control).await?;
        Ok(Self::Of(caller.organization()))
    }
}

/// Somebody who may create an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Founder {
    /// Of any tier.
    OfAnyTier,
    /// Of the tier `free`.
    OfTheFreeTier,
}

impl Founder {
    /// Refuses a tier that is not theirs to ask for.
    pub(crate) fn check(self, tier: Tier) -> Result<(), ApiError> {
        match self {
            Self::OfTheFreeTier if tier != Tier::Free => Err(ApiError::new(
                Code::Forbidden,
                "a tier other than free needs the deployment's admin token (TRIGGERS_ADMIN_TOKEN), as Authorization: Bearer <token>",
            )),
            _ => Ok(()),
        }
    }
}

impl Input for Founder {
    fn describe(operation: &mut Operation<'_>) {
        operation.needs(Security::AdminTokenUnlessOpen);
        operation.problem(Code::Unavailable, "the store cannot be reached");
    }
}

impl FromRequestParts<Arc<Control>> for Founder {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, ApiError> {
        let token = presented(&control.api, &parts.headers);
        let local = FromThisMachine::of(&parts.uri, &parts.headers);
        match (token, control.api.signup) {
            (Presented::Valid, _) => {
                audit::made_by(Actor::AdminToken);
                Ok(Self::OfAnyTier)
            }
            (_, Signup::FromThisMachine) if local.0 => Ok(Self::OfAnyTier),
            (_, Signup::Open) => {
                control
                    .api
                    .auth
                    .count_stranger(&parts.headers, Peer::of(&parts.extensions))?;
                Ok(Self::OfTheFreeTier)
            }
            // Existing clients of these routes know of no token that a 401 could ask them for.
            (Presented::Missing, signup) if parts.uri.path().starts_with("/api/") => {
                Err(forbidden(signup, &control.api))
            }
            (Presented::Wrong, _) | (_, Signup::AdminOnly) if control.api.admin_token.is_some() => {
                let refusal = ApiError::unauthorized(SEND_ADMIN_TOKEN);
                Err(control
                    .api
                    .auth
                    .stranger(&parts.headers, Peer::of(&parts.extensions), refusal))
            }
            (_, signup) => Err(forbidden(signup, &control.api)),
        }
    }
}

/// 403, which says who could.
fn forbidden(signup: Signup, api: &Api) -> ApiError {
    let detail = match signup {
        Signup::FromThisMachine => {
            "organizations are created from this machine itself (a loopback Host, not forwarded, not by a page of \
             another origin), or with the admin token that TRIGGERS_ADMIN_TOKEN sets"
        }
        _ if api.admin_token.is_some() => {
            "organizations are created with the deployment's admin token (TRIGGERS_ADMIN_TOKEN), as \
             Authorization: Bearer <token>"
        }
        _ => {
            "nobody can create organizations here: the deployment sets neither TRIGGERS_ADMIN_TOKEN nor \
             TRIGGERS_OPEN_SIGNUP"
        }
    };
    ApiError::new(Code::Forbidden, detail)
}
