//! Ids in paths. One that cannot be read is of nothing: 404, with a word on what an id looks like.

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use shared::{
    Id,
    http::{
        ApiError, Code,
        openapi::{Input, Operation},
    },
    id::Kind,
};

/// The id in a route's path.
pub(crate) struct PathId<K>(pub(crate) Id<K>);

/// The two ids in a route's path.
pub(crate) struct PathIds<A, B>(pub(crate) Id<A>, pub(crate) Id<B>);

impl<K: Kind> Input for PathId<K> {
    fn describe(operation: &mut Operation<'_>) {
        operation.path_id(K::TYPE);
    }
}

impl<A: Kind, B: Kind> Input for PathIds<A, B> {
    fn describe(operation: &mut Operation<'_>) {
        operation.path_id(A::TYPE);
        operation.path_id(B::TYPE);
    }
}

impl<K: Kind, S: Send + Sync> FromRequestParts<S> for PathId<K> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(id)) => read(&id).map(Self),
            Err(_) => Err(unreadable::<K>()),
        }
    }
}

impl<A: Kind, B: Kind, S: Send + Sync> FromRequestParts<S> for PathIds<A, B> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<(String, String)>::from_request_parts(parts, state).await {
            Ok(Path((one, other))) => Ok(Self(read(&one)?, read(&other)?)),
            Err(_) => Err(unreadable::<A>()),
        }
    }
}

fn read<K: Kind>(text: &str) -> Result<Id<K>, ApiError> {
    text.parse().map_err(|_| unreadable::<K>())
}

fn unreadable<K: Kind>() -> ApiError {
    let detail = format!(
        "there is nothing under this id: an id here is `{}_` and 26 characters, or a UUID",
        K::TYPE
    );
    ApiError::new(Code::NotFound, detail)
}
