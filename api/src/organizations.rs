//! `/v1/organizations` and `/v1/organization`: creating one, and what a key's own is.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::IntoResponse,
    routing::{get, post},
};
use serde::Serialize;
use shared::{
    KeyId, KeyText, Organization, OrganizationId, Scopes, Tier, Timestamp,
    http::{ApiError, Fields, JsonBody, Unknown, fields},
    organization::Name,
};

use crate::{
    Control,
    access::{Administration, AnyKey, Caller, Founder},
    answer::Answer,
    keys,
};

pub(crate) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/v1/organizations", post(create))
        .route("/v1/organization", get(show).patch(rename))
}

#[derive(Serialize)]
struct OrganizationView {
    id: OrganizationId,
    name: String,
    tier: Tier,
    /// Accepted events a minute; `null` is no limit.
    events_per_minute: Option<u32>,
    created_at: Timestamp,
    #[serde(flatten)]
    first_key: Option<FirstKeyView>,
}

/// The key that an organization begins with, which may do everything: its text is shown here and never again.
#[derive(Serialize)]
struct FirstKeyView {
    api_key: String,
    api_key_id: KeyId,
}

impl OrganizationView {
    fn of(organization: Organization, first_key: Option<FirstKeyView>) -> Self {
        Self {
            id: organization.id,
            name: organization.name,
            tier: organization.tier,
            events_per_minute: organization.tier.events_per_minute(),
            created_at: organization.created_at,
            first_key,
        }
    }
}

/// An organization that was created just now, and its first key.
pub(crate) struct Created {
    pub(crate) organization: Organization,
    pub(crate) key: KeyText,
    key_id: KeyId,
}

/// Creates an organization with a key that may do everything.
pub(crate) async fn create_with_key(
    control: &Control,
    founder: Founder,
    name: &str,
    tier: Tier,
) -> Result<Created, ApiError> {
    founder.check(tier)?;
    let id = OrganizationId::new();
    let (text, key) = keys::mint(id, "first key".to_owned(), Scopes::all(), None);
    let organizations = &control.api.store.organizations;
    let key_id = key.id;
    let organization = organizations.create(id, name, tier, key).await?;
    tracing::info!(organization.id = %id, tier = tier.as_str(), "an organization was created");
    Ok(Created {
        organization,
        key: text,
        key_id,
    })
}

async fn create(
    State(control): State<Arc<Control>>,
    founder: Founder,
    JsonBody(body): JsonBody,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = Fields::parse(&body, Unknown::Refuse)?;
    let name = fields.required("name", fields::string(Name::parse));
    let tier = fields.optional("tier", fields::string(str::parse::<Tier>));
    let name = fields.finish(name)?.into_string();
    let created = create_with_key(&control, founder, &name, tier.unwrap_or(Tier::Free)).await?;
    let first_key = FirstKeyView {
        api_key: created.key.expose().to_owned(),
        api_key_id: created.key_id,
    };
    let view = OrganizationView::of(created.organization, Some(first_key));
    Ok(Answer::created(view).at("/v1/organization").secret())
}

async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<AnyKey>,
) -> Result<impl IntoResponse, ApiError> {
    let found = control.api.store.organizations.get(caller.organization()).await?;
    let organization = found.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(Answer::ok(OrganizationView::of(organization, None)))
}

async fn rename(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    JsonBody(body): JsonBody,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = Fields::parse(&body, Unknown::Refuse)?;
    let name = fields.required("name", fields::string(Name::parse));
    let name = fields.finish(name)?.into_string();
    let organizations = &control.api.store.organizations;
    let renamed = organizations.rename(caller.organization(), &name).await?;
    let organization = renamed.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(Answer::ok(OrganizationView::of(organization, None)))
}
