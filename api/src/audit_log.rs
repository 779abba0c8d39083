//! `GET /v1/audit-log`: who has changed what, newest first; and on whose behalf requests change things.
//!
//! A key that may administer reads its own organization's; the deployment's admin token reads all, what belongs to no
//! organization included.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    AuditEntryId, KeyId, OrganizationId, SubscriptionId, Timestamp,
    audit::{self, Action, Actor, AuditEntry, Origin},
    http::{
        ApiError, Query,
        openapi::{Parameter, Parameters, Routes, doc, get},
        server::{Peer, RequestId},
    },
    store::{AuditFilter, PageRequest},
};

use crate::{
    Control,
    access::Administrator,
    answer::{Answer, CURSOR, LIMIT, Listing},
    cursor::List,
};

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Audit log").at(
        "/v1/audit-log",
        get(
            list,
            doc("listAuditLog", "List changes")
                .text("Who has changed what of the organization, its keys and its subscriptions, and what cannot be undone; newest first. With the admin token: of all organizations, and of the deployment itself."),
        ),
    )
}

/// Lets a request change things on its own behalf; its extractors say whose that is.
pub(crate) async fn attributed(request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>().and_then(|id| id.0.to_str().ok());
    let address = extensions.get::<Peer>().map(|peer| peer.0);
    let origin = Origin::request(id.map(str::to_owned), address);
    audit::on_behalf(origin, next.run(request)).await
}

/// The parameters of the list.
struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        LIMIT,
        CURSOR,
        Parameter::of::<ActionText>("action", "Those of this action alone."),
        Parameter::of::<Timestamp>("since", "Those from then on."),
        Parameter::of::<Timestamp>("until", "Those before then."),
        Parameter::of::<OrganizationId>(
            "organization",
            "With the admin token: those of this organization alone.",
        ),
    ];
}

/// One of the actions there are.
struct ActionText;

impl JsonSchema for ActionText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Action".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let all: Vec<&str> = Action::ALL.iter().map(|action| action.as_str()).collect();
        schemars::json_schema!({"type": "string", "enum": all})
    }
}

/// A change, and who has made it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AuditEntry")]
struct EntryView {
    id: AuditEntryId,
    /// When it was.
    at: Timestamp,
    /// What has happened, as `subscription.updated`. There may come to be others.
    action: String,
    actor: ActorView,
    /// The id of what has changed; of a delivery, its event's.
    target: String,
    /// Of a delivery or a replay: its subscription.
    subscription: Option<SubscriptionId>,
    /// The fields that are other than before; never what they are or were.
    changed: Vec<String>,
    /// Why, where it was the system's doing.
    reason: Option<String>,
    /// The `x-request-id` of the request.
    request_id: Option<String>,
    /// From where the request's connection came.
    #[schemars(with = "Option<String>")]
    address: Option<IpAddr>,
    /// Whose log it is in; `null` is the deployment's own.
    organization: Option<OrganizationId>,
}

/// Who has made a change.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Actor")]
struct ActorView {
    /// `key`, `admin_token`, `anyone` (without either, where that is open), `command` (on a machine of the deployment), or `system`.
    kind: &'static str,
    /// The key, if it was one.
    key: Option<KeyId>,
}

impl From<Actor> for ActorView {
    fn from(actor: Actor) -> Self {
        Self {
            kind: actor.kind(),
            key: actor.key(),
        }
    }
}

impl From<AuditEntry> for EntryView {
    fn from(entry: AuditEntry) -> Self {
        Self {
            id: entry.id,
            at: entry.at,
            action: entry.action,
            actor: entry.actor.into(),
            target: entry.target,
            subscription: entry.subscription,
            changed: entry.changed,
            reason: entry.reason,
            request_id: entry.request_id,
            address: entry.address,
            organization: entry.organization,
        }
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    administrator: Administrator,
    mut query: Query<Filters>,
) -> Result<Answer<Listing<EntryView>>, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::AuditLog.place(cursor));
    let asked: Option<OrganizationId> = query.optional("organization", str::parse);
    let filter = AuditFilter {
        organization: match administrator {
            Administrator::Of(own) => Some(own),
            Administrator::OfAll => asked,
        },
        action: query.optional("action", str::parse),
        since: query.optional("since", str::parse),
        until: query.optional("until", str::parse),
    };
    query.finish()?;
    if asked.is_some_and(|asked| Some(asked) != filter.organization) {
        return Err(ApiError::not_found("organization"));
    }
    let page = PageRequest { after, limit };
    let found = control.api.store.audit_log.audit_entries(&filter, page).await?;
    Ok(Answer::ok(Listing {
        data: found.items.into_iter().map(EntryView::from).collect(),
        next_cursor: found.next.map(|place| List::AuditLog.cursor(&place)),
    }))
}
