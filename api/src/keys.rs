//! `/v1/keys`: making, listing and revoking an organization's keys.
//!
//! A key's text is answered once, when it is made; only its hash is kept. A revoked key ends at once in this process
//! and within seconds in others. Revoking the last key that may administer is allowed: a leaked key must go at once, and
//! an organization left without one keeps working until its operator steps in.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::IntoResponse,
    routing::{delete, post},
};
use http::StatusCode;
use serde::Serialize;
use shared::{
    Invalid, Key, KeyId, KeyText, OrganizationId, Scope, Scopes, Timestamp,
    http::{ApiError, FieldError, Fields, JsonBody, Query, Unknown, fields},
    id::KeyKind,
    organization::Name,
    store::{NewKey, PageRequest},
};

use crate::{
    Control,
    access::{Administration, Caller},
    answer::{Answer, Listing, NO_CONTENT},
    cursor::List,
    path::PathId,
};

pub(crate) fn routes() -> Router<Arc<Control>> {
    Router::new()
        .route("/v1/keys", post(create).get(list))
        .route("/v1/keys/{id}", delete(revoke))
}

/// A key as it is shown.
#[derive(Serialize)]
struct KeyView {
    id: KeyId,
    name: String,
    /// Its text: shown when it is made and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The text's first characters, to tell keys apart.
    hint: String,
    scopes: Scopes,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

impl KeyView {
    fn of(key: Key, text: Option<&KeyText>) -> Self {
        Self {
            id: key.id,
            name: key.name,
            key: text.map(|text| text.expose().to_owned()),
            hint: key.hint,
            scopes: key.scopes,
            created_at: key.created_at,
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
        }
    }
}

/// A new key: its text, for the answer alone, and what is kept of it.
pub(crate) fn mint(
    organization: OrganizationId,
    name: String,
    scopes: Scopes,
    expires_at: Option<Timestamp>,
) -> (KeyText, NewKey) {
    let text = KeyText::generate();
    let key = NewKey {
        id: KeyId::new(),
        organization,
        name,
        hint: text.hint(),
        hash: text.hash(),
        scopes,
        expires_at,
    };
    (text, key)
}

async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    JsonBody(body): JsonBody,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = Fields::parse(&body, Unknown::Refuse)?;
    let name = fields.required("name", fields::string(Name::parse));
    let scopes = fields.optional("scopes", fields::strings(Scope::ALL.len(), str::parse::<Scope>));
    let expires_at = fields.optional("expires_at", fields::string(in_the_future));
    for refused in scopes
        .iter()
        .flat_map(|scopes| unfounded(scopes, caller.grant.scopes))
    {
        fields.refuse(refused);
    }
    let name = fields.finish(name)?.into_string();
    let scopes = scopes.map_or(caller.grant.scopes, Scopes::from_iter);
    let (text, key) = mint(caller.organization(), name, scopes, expires_at);
    let key = control.api.store.organizations.create_key(key).await?;
    tracing::info!(organization.id = %key.organization, key.id = %key.id, "a key was created");
    Ok(Answer::created(KeyView::of(key, Some(&text))).secret())
}

fn in_the_future(text: &str) -> Result<Timestamp, Invalid> {
    match text.parse::<Timestamp>()? {
        at if at > Timestamp::now() => Ok(at),
        _ => Err(Invalid::new("must be in the future")),
    }
}

/// A key cannot give what it does not have, nor nothing.
fn unfounded(asked: &[Scope], held: Scopes) -> Vec<FieldError> {
    if asked.is_empty() {
        return vec![FieldError::at(&["scopes"], "must have at least one entry")];
    }
    let lacking = asked
        .iter()
        .enumerate()
        .filter(|(_, scope)| !held.contains(**scope));
    lacking
        .map(|(at, _)| {
            let rule = "must be a scope that the key making the request has itself";
            FieldError::at(&["scopes", &at.to_string()], rule)
        })
        .collect()
}

async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    mut query: Query,
) -> Result<impl IntoResponse, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Keys.place(cursor));
    query.finish()?;
    let organizations = &control.api.store.organizations;
    let page = organizations
        .keys(caller.organization(), PageRequest { after, limit })
        .await?;
    Ok(Answer::ok(Listing {
        data: page.items.into_iter().map(|key| KeyView::of(key, None)).collect(),
        next_cursor: page.next.map(|place| List::Keys.cursor(&place)),
    }))
}

async fn revoke(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    PathId(key): PathId<KeyKind>,
) -> Result<StatusCode, ApiError> {
    if !control
        .api
        .store
        .organizations
        .revoke_key(caller.organization(), key)
        .await?
    {
        return Err(ApiError::not_found("key"));
    }
    control.api.auth.forget(key);
    tracing::info!(organization.id = %caller.organization(), key.id = %key, "a key was revoked");
    Ok(NO_CONTENT)
}
