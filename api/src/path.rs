//! Ids in paths. One that cannot be read is of nothing: 404, with a word on what an id looks like.

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use shared::{
    Id,
    http::{ApiError, Code},
    id::Kind,
};

/// The id in a route's path.
pub(crate) struct PathId<K>(pub(crate) Id<K>);

impl<K: Kind, S: Send + Sync> FromRequestParts<S> for PathId<K> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        text.ok()
            .and_then(|Path(text)| text.parse().ok())
            .map(Self)
            .ok_or_else(|| {
                let detail = format!(
                    "there is nothing under this id: an id here is `{}_` and 26 characters, or a UUID",
                    K::TYPE
                );
                ApiError::new(Code::NotFound, detail)
            })
    }
}
