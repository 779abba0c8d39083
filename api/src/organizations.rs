//! `/v1/organizations` and `/v1/organization`: creating, listing and removing them, and what a key's own is.
//!
//! Removing one is the operator's to ask, and the workers' to do: the answer is 202, and the organization shows how far that is
//! until it is gone. Its keys are good for nothing from then on, here at once and elsewhere within seconds.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Invalid, KeyText, Organization, OrganizationId, Scopes, Tier, Timestamp,
    auth::Ending,
    http::openapi::NameText,
    http::{
        ApiError, Code, JsonBody, Query, Unknown, fields,
        openapi::{Header, Routes, doc, get, post},
    },
    id::OrganizationKind,
    organization::Name,
    store::{NewKey, OrganizationPatch, OrganizationStanding, PageRequest, Removal},
};

use crate::{
    Control,
    access::{Administration, AnyKey, Caller, Founder, Operator},
    answer::{Answer, Listing, Made, Paged, Taken},
    cursor::List,
    keys,
    path::PathId,
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
            )
            .and_get(
                list,
                doc("listOrganizations", "List organizations")
                    .text("Newest first, those included that are being removed."),
            ),
        )
        .at(
            "/v1/organizations/{id}",
            get(
                show_standing,
                doc("getOrganizationById", "Get any organization")
                    .text("With how far removing it is. One that was removed is shown as that for 90 days."),
            )
            .and_delete(
                remove,
                doc("removeOrganization", "Remove an organization")
                    .text("With everything of it, in the background. Its keys end at once here, and within five seconds everywhere. Again changes nothing."),
            ),
        )
        .at(
            "/v1/organization",
            get(show, doc("getOrganization", "Get the key's organization").problem(Code::NotFound, GONE)).and_patch(
                change,
                doc("updateOrganization", "Change the organization")
                    .text("Its name, and for how long it keeps its events.")
                    .problem(Code::NotFound, GONE),
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
    /// `free` unless given.
    tier: Option<Tier>,
}

/// What is to change.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct OrganizationChange {
    #[schemars(with = "Option<NameText>")]
    name: Option<String>,
    /// How many days it keeps its events: no more than the deployment; `null` is as many as that.
    #[schemars(range(min = 1, max = 3650))]
    retention_days: Option<u16>,
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
    /// How many days it keeps its events; `null` is as many as the deployment.
    retention_days: Option<u16>,
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
            retention_days: organization.retention_days,
            created_at: organization.created_at,
            key,
        }
    }
}

/// An organization as the operator sees it. What is `null` of one that was removed is not known any more.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OrganizationStanding")]
struct StandingView {
    id: OrganizationId,
    name: Option<String>,
    tier: Option<Tier>,
    /// Accepted events a minute; `null` is no limit.
    events_per_minute: Option<u32>,
    /// How many days it keeps its events; `null` is as many as the deployment.
    retention_days: Option<u16>,
    created_at: Option<Timestamp>,
    /// How far removing it is; `null` is that nobody has asked for that.
    removal: Option<RemovalView>,
}

/// How far removing an organization is.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Removal")]
struct RemovalView {
    status: RemovalStatus,
    started_at: Timestamp,
    /// When nothing was left.
    finished_at: Option<Timestamp>,
    events_removed: u64,
    /// Counted no further than 10,000.
    events_remaining: u32,
    /// Rows of whatever kind, events included.
    rows_removed: u64,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum RemovalStatus {
    Removing,
    Removed,
}

impl StandingView {
    fn of(standing: OrganizationStanding) -> Self {
        let organization = standing.organization;
        let tier = organization.as_ref().map(|organization| organization.tier);
        Self {
            id: standing.id,
            tier,
            events_per_minute: tier.and_then(Tier::events_per_minute),
            retention_days: organization
                .as_ref()
                .and_then(|organization| organization.retention_days),
            created_at: organization.as_ref().map(|organization| organization.created_at),
            name: organization.map(|organization| organization.name),
            removal: standing.removal.map(RemovalView::of),
        }
    }
}

impl RemovalView {
    fn of(removal: Removal) -> Self {
        Self {
            status: match removal.finished_at {
                Some(_) => RemovalStatus::Removed,
                None => RemovalStatus::Removing,
            },
            started_at: removal.requested_at,
            finished_at: removal.finished_at,
            events_removed: removal.events,
            events_remaining: removal.remaining,
            rows_removed: removal.rows,
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

async fn change(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    body: JsonBody<OrganizationChange>,
) -> Result<Answer<OrganizationView>, ApiError> {
    let most = control.api.retention_days;
    let mut fields = body.fields(Unknown::Refuse)?;
    let name = fields.optional("name", fields::string(Name::parse));
    let retention_days = fields.nullable("retention_days", fields::number(|days| retention(days, most)));
    fields.finish(Some(()))?;
    let patch = OrganizationPatch {
        name: name.map(Name::into_string),
        retention_days,
    };
    let organizations = &control.api.store.organizations;
    let changed = organizations.change(caller.organization(), patch).await?;
    let organization = changed.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(Answer::ok(OrganizationView::of(organization, None)))
}

fn retention(days: u64, most: u16) -> Result<u16, Invalid> {
    match u16::try_from(days) {
        Ok(days) if (1..=most).contains(&days) => Ok(days),
        _ => Err(Invalid::new(format!(
            "must be a whole number from 1 to {most}, for which the deployment keeps events"
        ))),
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    _: Operator,
    mut query: Query<Paged>,
) -> Result<Answer<Listing<StandingView>>, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Organizations.place(cursor));
    query.finish()?;
    let page = PageRequest { after, limit };
    let found = control.api.store.removals.organizations(page).await?;
    Ok(Answer::ok(Listing {
        data: found.items.into_iter().map(StandingView::of).collect(),
        next_cursor: found.next.map(|place| List::Organizations.cursor(&place)),
    }))
}

async fn standing(control: &Control, id: OrganizationId) -> Result<StandingView, ApiError> {
    let found = control.api.store.removals.standing(id).await?;
    let standing = found.ok_or_else(|| ApiError::not_found("organization"))?;
    Ok(StandingView::of(standing))
}

async fn show_standing(
    State(control): State<Arc<Control>>,
    _: Operator,
    PathId(id): PathId<OrganizationKind>,
) -> Result<Answer<StandingView>, ApiError> {
    Ok(Answer::ok(standing(&control, id).await?))
}

/// Begins to remove an organization with everything of it. Asked once more, it tells of the keys that have ended once more: whoever
/// was to tell may have died before.
async fn remove(
    State(control): State<Arc<Control>>,
    _: Operator,
    PathId(id): PathId<OrganizationKind>,
) -> Result<Taken<StandingView>, ApiError> {
    let ended = control.api.store.removals.begin_removal(id).await?;
    let ended = ended.ok_or_else(|| ApiError::not_found("organization"))?;
    for key in ended {
        control.api.auth.end(Ending { key, ends_at: None });
    }
    tracing::info!(organization.id = %id, "an organization is to be removed");
    Ok(Taken::accepted(standing(&control, id).await?))
}
