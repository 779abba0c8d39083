//! `/v1/keys`: making, listing, rotating and revoking an organization's keys.
//!
//! A key's text is answered once, when it is made; only its hash is kept. A revoked key ends at once in this process
//! and within seconds in others. Revoking the last key that may administer is allowed: a leaked key must go at once, and
//! an organization left without one keeps working until its operator steps in. Rotating it is never so: the new key, with the
//! same scopes, is there before the old one ends. Nobody gets a scope by rotating that the key that asks does not have.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Grant, Invalid, Key, KeyId, KeyText, OrganizationId, Scope, Scopes, Timestamp,
    auth::Ending,
    http::{
        ApiError, Code, FieldError, JsonBody, Query, Unknown, fields,
        openapi::{Header, NameText, Overlap, Routes, delete, doc, post},
    },
    id::KeyKind,
    organization::Name,
    store::{NewKey, PageRequest, Rotated, Rotation},
};

use crate::{
    Control,
    access::{Administration, Caller},
    answer::{Answer, Listing, Made, NoContent, Paged},
    cursor::List,
    organizations::Created,
    path::PathId,
    subscriptions::{OVERLAP, overlap},
};

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Keys")
        .at(
            "/v1/keys",
            post(
                create,
                doc("createKey", "Make a key")
                    .text("It may do what the key that asks may, or less. Its text is answered here and never again.")
                    .header(201, Header::NoStore),
            )
            .and_get(list, doc("listKeys", "List keys").text("In the order in which they were made.")),
        )
        .at(
            "/v1/keys/{id}",
            delete(
                revoke,
                doc("revokeKey", "Revoke a key").text("It ends at once here, and within five seconds everywhere."),
            ),
        )
        .at(
            "/v1/keys/{id}/rotate",
            post(
                rotate,
                doc("rotateKey", "Rotate a key")
                    .text("A new key that may do the same; the old one is good for `overlap_seconds` more. A key that may do more than the one that asks is 403.")
                    .header(201, Header::NoStore)
                    .problem(Code::Conflict, "the key has ended, or was rotated before"),
            ),
        )
}

/// A key to make.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct NewKeyBody {
    #[schemars(with = "NameText")]
    name: String,
    /// Scopes that the key making the request has itself: all of them, unless given.
    #[schemars(length(min = 1, max = 4))]
    scopes: Option<Vec<Scope>>,
    /// In the future; never, unless given.
    expires_at: Option<Timestamp>,
}

/// How a key is to be rotated.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
struct KeyRotation {
    /// How long the old key is good beside the new one; a day unless given.
    overlap_seconds: Option<Overlap>,
}

/// A key as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Key")]
pub(crate) struct KeyView {
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
    /// The key that took its place.
    replaced_by: Option<KeyId>,
    /// To within five minutes.
    last_used_at: Option<Timestamp>,
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
            replaced_by: key.replaced_by,
            last_used_at: key.last_used_at,
        }
    }

    /// The key that an organization begins with.
    pub(crate) fn first(created: &Created) -> Self {
        let Created {
            organization,
            key,
            text,
        } = created;
        Self {
            id: key.id,
            name: key.name.clone(),
            key: Some(text.expose().to_owned()),
            hint: key.hint.clone(),
            scopes: key.scopes,
            created_at: organization.created_at,
            expires_at: key.expires_at,
            revoked_at: None,
            replaced_by: None,
            last_used_at: None,
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
    body: JsonBody<NewKeyBody>,
) -> Result<Made<KeyView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
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
    Ok(Made::created(KeyView::of(key, Some(&text))).secret())
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
    mut query: Query<Paged>,
) -> Result<Answer<Listing<KeyView>>, ApiError> {
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

/// A rotation, as it is answered: the new key, and until when the old one is good.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RotatedKey")]
struct RotatedView {
    #[serde(flatten)]
    new: KeyView,
    replaces: KeyId,
    /// `null` is that it has ended.
    replaced_until: Option<Timestamp>,
}

async fn rotate(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    PathId(key): PathId<KeyKind>,
    body: JsonBody<KeyRotation>,
) -> Result<Made<RotatedView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let overlap = fields.optional("overlap_seconds", fields::number(overlap));
    fields.finish(Some(()))?;
    let rotated = replace(&control, &caller.grant, key, overlap.unwrap_or(OVERLAP));
    let (text, replacement) = rotated.await?;
    match replacement {
        Rotated::Done { new, old_until } => Ok(Made::created(RotatedView {
            new: KeyView::of(new, Some(&text)),
            replaces: key,
            replaced_until: old_until,
        })
        .secret()),
        Rotated::Ended => Err(ApiError::new(
            Code::Conflict,
            "the key was revoked or has expired: make a new one instead",
        )),
        Rotated::Replaced(by) => Err(ApiError::new(
            Code::Conflict,
            format!("the key was rotated before: rotate {by}, which took its place"),
        )),
        Rotated::Beyond => Err(ApiError::new(
            Code::Forbidden,
            "the key may do more than the key making the request, which would have its successor's text: rotate it with a \
             key that has all of its scopes, or revoke it",
        )),
        Rotated::NotFound => Err(ApiError::not_found("key")),
    }
}

/// Puts a new key in another's place, here and wherever the old one is known. Whoever asks gets no scope by it that they do not
/// have.
pub(crate) async fn replace(
    control: &Control,
    asking: &Grant,
    old: KeyId,
    overlap: Duration,
) -> Result<(KeyText, Rotated), ApiError> {
    let organization = asking.organization;
    let text = KeyText::generate();
    let rotation = Rotation {
        old,
        organization,
        id: KeyId::new(),
        hint: text.hint(),
        hash: text.hash(),
        overlap,
        within: (old != asking.key).then_some(asking.scopes),
    };
    let rotated = control.api.store.organizations.rotate_key(rotation).await?;
    match &rotated {
        Rotated::Done { new, old_until } => {
            control.api.auth.end(Ending {
                key: old,
                ends_at: *old_until,
            });
            tracing::info!(organization.id = %organization, key.id = %new.id, key.replaces = %old, "a key was rotated");
        }
        // This process may not have noticed yet.
        Rotated::Ended => control.api.auth.end(Ending {
            key: old,
            ends_at: None,
        }),
        Rotated::Replaced(_) | Rotated::Beyond | Rotated::NotFound => {}
    }
    Ok((text, rotated))
}

async fn revoke(
    State(control): State<Arc<Control>>,
    caller: Caller<Administration>,
    PathId(key): PathId<KeyKind>,
) -> Result<NoContent, ApiError> {
    if !control
        .api
        .store
        .organizations
        .revoke_key(caller.organization(), key)
        .await?
    {
        return Err(ApiError::not_found("key"));
    }
    control.api.auth.end(Ending { key, ends_at: None });
    tracing::info!(organization.id = %caller.organization(), key.id = %key, "a key was revoked");
    Ok(NoContent)
}
