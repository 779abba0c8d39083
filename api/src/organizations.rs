//! `/v1/organizations` and `/v1/organization`: creating one, and what a key's own is.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    KeyText, Organization, OrganizationId, Scopes, Tier, Timestamp,
    http::openapi::NameText,
    http::{
        ApiError, Code, JsonBody, Unknown, fields,
        openapi::{Header, Routes, doc, get, post},
    },
    organization::Name,
    store::NewKey,
};

use crate::{
    Control,
    access::{Administration, AnyKey, Caller, Founder},
    answer::{Answer, Made},
    keys,
};

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Organizations")
        .at(
            "/v1/organizations",
            post(
                create,
                doc("createOrganization", "Create an organization")
                    .text("With its first key, which may do everything. Where the deployment is open, anybody may create one of the tier `free`.")
                    .header(201, Header::Location)
                    .header(201, Header::NoStore),
            ),
        )
        .at(
            "/v1/organization",
            get(show, doc("getOrganization", "Get the key's organization").problem(Code::NotFound, GONE)).and_patch(
                rename,
                doc("updateOrganization", "Rename the organization").problem(Code::NotFound, GONE),
            ),
        )
}

const GONE: &str = "the organization is gone";

/// An organization to create.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct NewOrganization {
    #[schemars(with = "NameText")]
    name: String,
    #[schemars(default = "free")]
    tier: Tier,
}

fn free() -> Tier {
    Tier::Free
}

/// What is to change.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct OrganizationChange {
    #[schemars(with = "NameText")]
    name: String,
}

/// An organization.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Organization")]
struct OrganizationView {
    id: OrganizationId,
    name: String,
    tier: Tier,
    /// Accepted events a minute; `null` is no limit.
    events_per_minute: Option<u32>,
    created_at: Timestamp,
    /// The first key, which may do everything: its text is shown here and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<keys::KeyView>,
}

impl OrganizationView {
    fn of(organization: Organization, key: Option<keys::KeyView>) -> Self {
        Self {
            id: organization.id,
            name: organization.name,
            tier: organization.tier,
            events_per_minute: organization.tier.events_per_minute(),
            created_at: organization.created_at,
            key,
        }
    }
}

/// An organization that was created just now, and its first key.
pub(crate) struct Created {
    pub(crate) organization: Organization,
    pub(crate) key: NewKey,
    pub(crate) text: KeyText,
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
    let organization = organizations.create(id, name, tier, key.clone()).await?;
    tracing::info!(organization.id = %id, tier = tier.as_str(), "an organization was created");
    Ok(Created {
        organization,
        key,
        text,
    })
}

async fn create(
    State(control): State<Arc<Control>>,
    founder: Founder,
    body: JsonBody<NewOrganization>,
) -> Result<Made<OrganizationView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let name = fields.required("name", fields::string(Name::parse));
    let tier = fields.optional("tier", fields::string(str::parse::<Tier>));
    let name = fields.finish(name)?.into_string();
    let created = create_with_key(&control, founder, &name, tier.unwrap_or(Tier::Free)).await?;
    let key = keys::KeyView::first(&created);
    let view = OrganizationView::of(created.organization, Some(key));
    Ok(Made::created(view).at("/v1/organization").secret())
}

async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<AnyKey>,
) -> Result<Answer<OrganizationView>, ApiError> {
    let found = control.api.store.organizations.get(caller.organization()).await?;
    let organization = found.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(Answer::ok(OrganizationView::of(organization, None)))
}

async fn rename(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    body: JsonBody<OrganizationChange>,
) -> Result<Answer<OrganizationView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let name = fields.required("name", fields::string(Name::parse));
    let name = fields.finish(name)?.into_string();
    let organizations = &control.api.store.organizations;
    let renamed = organizations.rename(caller.organization(), &name).await?;
    let organization = renamed.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(Answer::ok(OrganizationView::of(organization, None)))
}
