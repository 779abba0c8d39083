//! `DELETE /v1/events/{id}`: what the producer sent is erased, and nothing more is sent.
//!
//! It takes the scope `admin`: it cannot be undone, and takes from subscribers what a producer's key has promised them. An
//! id that is not stored yet is as good as any: what comes under it is stored erased.

use std::sync::Arc;

use axum::extract::State;
use shared::{
    http::{ApiError, Code},
    id::EventKind,
    store::Erased,
};

use super::not_found;
use crate::{
    Control,
    access::{Administration, Caller},
    answer::NoContent,
    path::PathId,
};

pub(super) async fn erase(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    PathId(id): PathId<EventKind>,
) -> Result<NoContent, ApiError> {
    let organization = caller.organization();
    let erased = control.api.store.erasures.erase(organization, id).await?;
    match erased {
        Erased::Done { event } => {
            tracing::info!(organization.id = %organization, event.id = %event, "an event was erased");
            Ok(NoContent)
        }
        Erased::Marked => {
            tracing::info!(
                organization.id = %organization, event.id = %id,
                "an event that is not stored is to be erased"
            );
            Ok(NoContent)
        }
        Erased::NotFound => Err(not_found(false)),
        Erased::TooMany => Err(ApiError::new(
            Code::Conflict,
            "10,000 ids that are not stored are to be erased already: erase what is stored",
        )),
    }
}
