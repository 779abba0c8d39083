//! `POST /api/webhook/config`: the organization's default push subscription.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Builtin, OrganizationId, Subscription, SubscriptionUrl, Timestamp,
    http::{ApiError, JsonBody, Unknown, fields},
    signature::{SignatureScheme, SigningKey},
    store::{PatchOutcome, StoreError, SubscriptionPatch},
    subscription::{Push, Target},
};

use crate::{
    Control,
    access::{Caller, Subscriptions},
    answer::Answer,
    subscriptions::{self, TargetUrl},
    this_machine::FromThisMachine,
};

/// How often it is tried while others make or change the same subscription.
const MAX_TRIES: usize = 5;

/// Where events are to be pushed.
#[derive(JsonSchema)]
#[schemars(rename = "CompatNewWebhook")]
#[expect(dead_code, reason = "it is the shape of a body, which is read field by field")]
pub(super) struct NewWebhook {
    webhook_url: TargetUrl,
}

/// Where events are pushed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "CompatWebhook")]
pub(super) struct WebhookView {
    success: bool,
    webhook_url: String,
    updated_at: Timestamp,
    /// Shown when the webhook is first set and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

/// Makes the subscription, or points it elsewhere; either way it is enabled then.
pub(super) async fn configure(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    local: FromThisMachine,
    body: JsonBody<NewWebhook>,
) -> Result<Answer<WebhookView>, ApiError> {
    let mut fields = body.fields(Unknown::Ignore)?;
    let url = fields.required("webhook_url", fields::string(SubscriptionUrl::parse));
    let url = fields.finish(url)?;
    let organization = caller.organization();
    subscriptions::check_target(&control, organization, "webhook_url", &url, local).await?;
    for _ in 0..MAX_TRIES {
        if let Some((subscription, secret)) = set(&control, organization, &url).await? {
            return Ok(Answer::ok(WebhookView {
                success: true,
                webhook_url: url.as_str().to_owned(),
                updated_at: subscription.updated_at,
                secret: secret.as_ref().and_then(SigningKey::secret_text),
            })
            .secret());
        }
    }
    Err(subscriptions::busy())
}

/// One try; `None` if somebody else was ahead. The secret comes with a subscription that is new.
async fn set(
    control: &Control,
    organization: OrganizationId,
    url: &SubscriptionUrl,
) -> Result<Option<(Subscription, Option<SigningKey>)>, ApiError> {
    let store = &control.api.store.subscriptions;
    let Some(current) = store.webhook(organization).await? else {
        let (subscription, secret) =
            subscriptions::new_push(control, organization, url.clone(), SignatureScheme::Hmac);
        let subscription = Subscription {
            builtin: Some(Builtin::Webhook),
            ..subscription
        };
        return match store.create(subscription).await {
            Ok(Ok(subscription)) => Ok(Some((subscription, Some(secret)))),
            Ok(Err(full)) => Err(subscriptions::full(full)),
            // There is one an organization: another request made it meanwhile.
            Err(StoreError::Refused(_)) if store.webhook(organization).await?.is_some() => Ok(None),
            Err(error) => Err(error.into()),
        };
    };
    let target = current.push().map(|push| {
        Target::Push(Push {
            url: url.clone(),
            ..push.clone()
        })
    });
    let patch = SubscriptionPatch {
        target,
        enabled: Some(true),
        ..SubscriptionPatch::default()
    };
    match store
        .patch(organization, current.id, current.version, patch)
        .await?
    {
        PatchOutcome::Changed(subscription) => Ok(Some((*subscription, None))),
        PatchOutcome::Conflict | PatchOutcome::NotFound => Ok(None),
        PatchOutcome::FiltersFull(full) => Err(subscriptions::filters_full(full)),
    }
}
