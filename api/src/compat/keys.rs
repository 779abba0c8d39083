//! `/api/keys`: an organization and its key, in one.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Organization, Subscription, Tier, Timestamp,
    http::{ApiError, Code, JsonBody, Unknown, fields, openapi::NameText},
    organization::Name,
    store::Rotated,
};
use uuid::Uuid;

use crate::{
    Control,
    access::{Administration, AnyKey, Caller, Founder},
    answer::{Answer, Made},
    keys, organizations,
};

const WARNING: &str = "store this key now: it is not shown again";

/// An organization to create.
#[derive(JsonSchema)]
#[schemars(rename = "CompatNewOrganization")]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(super) struct NewOrganization {
    #[schemars(with = "NameText")]
    organization_name: String,
    /// `free` unless given.
    tier: Option<Tier>,
}

/// A key that was made.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatKey")]
pub(super) struct KeyView {
    api_key: String,
    organization_id: Uuid,
    organization_name: String,
    tier: Tier,
    /// `null` is no limit.
    rate_limit_per_minute: Option<u32>,
    /// The key's.
    created_at: Timestamp,
    warning: &'static str,
}

impl KeyView {
    fn of(organization: Organization, api_key: &str, created_at: Timestamp) -> Self {
        Self {
            api_key: api_key.to_owned(),
            organization_id: organization.id.uuid(),
            organization_name: organization.name,
            tier: organization.tier,
            rate_limit_per_minute: organization.tier.events_per_minute(),
            created_at,
            warning: WARNING,
        }
    }
}

/// `POST /api/keys/generate`: by the rules of `POST /v1/organizations`.
pub(super) async fn generate(
    State(control): State<Arc<Control>>,
    founder: Founder,
    body: JsonBody<NewOrganization>,
) -> Result<Made<KeyView>, ApiError> {
    let mut fields = body.fields(Unknown::Ignore)?;
    let name = fields.required("organization_name", fields::string(Name::parse));
    let tier = fields.optional("tier", fields::string(str::parse::<Tier>));
    let name = fields.finish(name)?.into_string();
    let created =
        organizations::create_with_key(&control, founder, &name, tier.unwrap_or(Tier::Free)).await?;
    let created_at = created.organization.created_at;
    let view = KeyView::of(created.organization, created.text.expose(), created_at);
    Ok(Made::created(view).secret())
}

/// An organization.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatOrganization")]
pub(super) struct OrganizationView {
    organization_id: Uuid,
    organization_name: String,
    tier: Tier,
    /// `null` is no limit.
    rate_limit_per_minute: Option<u32>,
    /// `null` until one is set.
    webhook_url: Option<String>,
    created_at: Timestamp,
}

async fn own_organization<A>(control: &Control, caller: &Caller<A>) -> Result<Organization, ApiError> {
    let found = control.api.store.organizations.get(caller.organization()).await?;
    found.ok_or_else(|| ApiError::not_found("organization"))
}

/// `GET /api/keys`: the organization of the key.
pub(super) async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<AnyKey>,
) -> Result<Answer<OrganizationView>, ApiError> {
    let organization = own_organization(&control, &caller).await?;
    let webhook = control.api.store.subscriptions.webhook(organization.id).await?;
    let push = webhook.as_ref().and_then(Subscription::push);
    Ok(Answer::ok(OrganizationView {
        organization_id: organization.id.uuid(),
        organization_name: organization.name,
        tier: organization.tier,
        rate_limit_per_minute: organization.tier.events_per_minute(),
        webhook_url: push.map(|push| push.url.as_str().to_owned()),
        created_at: organization.created_at,
    }))
}

/// `POST /api/keys/rotate`: another key that may do the same and ends when the old one would have; the old one ends now.
pub(super) async fn rotate(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
) -> Result<Answer<KeyView>, ApiError> {
    let organization = own_organization(&control, &caller).await?;
    let old = caller.grant.key;
    let (text, rotated) = keys::replace(&control, &caller.grant, old, Duration::ZERO).await?;
    match rotated {
        Rotated::Done { new, .. } => {
            Ok(Answer::ok(KeyView::of(organization, text.expose(), new.created_at)).secret())
        }
        Rotated::Replaced(_) => Err(ApiError::new(
            Code::Conflict,
            "another key has taken this one's place already: rotate that one",
        )),
        // A key is never beyond itself.
        Rotated::Ended | Rotated::Beyond | Rotated::NotFound => Err(ApiError::unauthorized(
            "the API key was revoked or rotated by another request just now",
        )),
    }
}
