//! `POST /v1/subscriptions/{id}/rotate-secret`: another signing secret, with an overlap in which both sign.

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use shared::{
    Invalid,
    http::{ApiError, Code, FieldError, JsonBody, Unknown, fields, openapi::Overlap},
    id::SubscriptionKind,
    signature::{SignatureScheme, SigningKey, SigningSecret},
    store::{NewSecret, PatchOutcome},
};

use super::{MAX_TRIES, busy, filters_full, found, view::SubscriptionView};
use crate::{
    Control,
    access::{Caller, Subscriptions},
    answer::Answer,
    path::PathId,
    weighed::Roomed,
};

/// How long what was replaced is good beside the new one, unless the caller says.
pub(crate) const OVERLAP: Duration = Duration::from_hours(24);
/// How long it may.
const MAX_OVERLAP: u64 = 7 * 24 * 3600;

/// How a secret is to be rotated.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, transform = made_by_us)]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(super) struct SecretRotation {
    /// How long the old secret signs beside the new one; a day unless given.
    overlap_seconds: Option<Overlap>,
    /// What the new one is for; as before unless given.
    signature_scheme: Option<SignatureScheme>,
    /// The new secret, `whsec_` and base64 of 24 to 64 bytes, for the scheme `hmac`; one is made unless given.
    #[schemars(regex(pattern = "^whsec_([A-Za-z0-9+/]{4}){8,21}$"))]
    secret: Option<String>,
}

/// A secret cannot be given for the scheme whose private half is ours alone.
fn made_by_us(schema: &mut schemars::Schema) {
    let given = serde_json::json!({
        "required": ["secret", "signature_scheme"],
        "properties": {"secret": {"type": "string"}, "signature_scheme": {"const": SignatureScheme::Ed25519}},
    });
    schema.insert("not".into(), given);
}

pub(super) async fn rotate(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    _: Roomed,
    PathId(id): PathId<SubscriptionKind>,
    body: JsonBody<SecretRotation>,
) -> Result<Answer<SubscriptionView>, ApiError> {
    let mut fields = body.fields(Unknown::Refuse)?;
    let overlap = fields.optional("overlap_seconds", fields::number(overlap));
    let scheme: Option<SignatureScheme> = fields.optional("signature_scheme", fields::string(str::parse));
    let secret = fields.optional("secret", fields::string(SigningSecret::parse));
    fields.finish(Some(()))?;
    let organization = caller.organization();
    for _ in 0..MAX_TRIES {
        let current = found(&control, organization, id).await?;
        let Some(push) = current.push() else {
            let detail = "nothing is sent to a subscription of kind pull, so it has no secret";
            return Err(ApiError::new(Code::Conflict, detail));
        };
        let key = match (scheme.unwrap_or(push.scheme), &secret) {
            (SignatureScheme::Hmac, Some(secret)) => SigningKey::Hmac(secret.clone()),
            (SignatureScheme::Ed25519, Some(_)) => {
                let rule = "is for the scheme hmac: the private half of an ed25519 key is nobody's but ours";
                return Err(ApiError::invalid(vec![FieldError::at(&["secret"], rule)]));
            }
            (scheme, None) => SigningKey::generate(scheme),
        };
        let new = NewSecret {
            scheme: key.scheme(),
            secret: control.api.sealer.seal(organization, id.uuid(), key.as_bytes()),
            public_key: key.public_text(),
        };
        let rotated = control.api.store.subscriptions.rotate(
            organization,
            id,
            current.version,
            new,
            overlap.unwrap_or(OVERLAP),
        );
        match rotated.await? {
            PatchOutcome::Changed(changed) => {
                return Ok(Answer::ok(SubscriptionView::of(*changed, Some(&key))).secret());
            }
            PatchOutcome::Conflict => {}
            PatchOutcome::NotFound => return Err(ApiError::not_found("subscription")),
            PatchOutcome::FiltersFull(full) => return Err(filters_full(full)),
        }
    }
    Err(busy())
}

pub(crate) fn overlap(seconds: u64) -> Result<Duration, Invalid> {
    if seconds > MAX_OVERLAP {
        return Err(Invalid::new("must be a whole number from 0 to 604800"));
    }
    Ok(Duration::from_secs(seconds))
}
