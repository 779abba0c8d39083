//! `/v1/subscriptions`: who wants which events, and where they are sent.
//!
//! A push subscription's signing secret is answered once, when it is made, and sealed for its row before it is stored.
//! Where a URL may point is checked here early and again at each attempt. Changes that meet are tried again on what
//! the other made of it, so that neither is lost. The built-in inbox can be looked at and not be touched.

mod replays;
mod request;
mod rotation;
mod stats;
mod test;
mod view;

use std::sync::Arc;

use axum::extract::State;
use shared::{
    Builtin, EventPattern, OrganizationId, Subscription, SubscriptionId, SubscriptionUrl, Timestamp,
    filter::FiltersFull,
    http::{
        ApiError, Code, FieldError, JsonBody, Query,
        openapi::{Header, Routes, doc, get, post},
    },
    id::SubscriptionKind,
    signature::{SignatureScheme, SigningKey},
    store::{PageRequest, PatchOutcome, SubscriptionPatch},
    subscription::{Full, Push, Target},
};

pub(crate) use self::{
    request::TargetUrl,
    rotation::{OVERLAP, overlap},
    test::Tests,
};
use self::{
    request::{Kind, NewSubscription, Row, Settings, SubscriptionChange},
    view::SubscriptionView,
};
use crate::{
    Control,
    access::{Caller, SeeSubscriptions, Subscriptions},
    answer::{Answer, Listing, Made, NoContent, Paged},
    cursor::List,
    path::PathId,
    this_machine::FromThisMachine,
    weighed::{RoomToTake, Roomed},
};

/// How often a change is tried that others keep getting ahead of.
const MAX_TRIES: usize = 5;

/// The replay that was made.
const THE_REPLAY: &[(&str, &str)] = &[("id", "$request.path.id"), ("replay", "$response.body#/id")];

pub(crate) fn routes() -> Routes<Arc<Control>> {
    let refused = "it is the built-in inbox, or others are changing it at the same time";
    Routes::of("Subscriptions")
        .at(
            "/v1/subscriptions",
            post(
                create,
                doc("createSubscription", "Create a subscription")
                    .text("Its signing secret is answered here and never again.")
                    .header(201, Header::Location)
                    .header(201, Header::NoStore)
                    .problem(Code::Conflict, "the organization has 1,000 subscriptions")
                    .link(201, "pullEvents", &[("id", "$response.body#/id")]),
            )
            .and_get(list, doc("listSubscriptions", "List subscriptions")),
        )
        .at(
            "/v1/subscriptions/{id}",
            get(show, doc("getSubscription", "Get a subscription"))
                .and_patch(
                    change,
                    doc("updateSubscription", "Change a subscription")
                        .text("What is not given stays. Members of `headers` and `metadata` are set one by one; `null` removes one.")
                        .problem(Code::Conflict, refused),
                )
                .and_delete(
                    delete,
                    doc("deleteSubscription", "Delete a subscription")
                        .text("Nothing more is sent to it; its deliveries can still be looked at.")
                        .problem(Code::Conflict, "it is the built-in inbox"),
                ),
        )
        .at(
            "/v1/subscriptions/{id}/rotate-secret",
            post(
                rotation::rotate,
                doc("rotateSecret", "Rotate the signing secret")
                    .text("Both secrets sign until the old one ends.")
                    .header(200, Header::NoStore)
                    .problem(Code::Conflict, "the subscription is of kind pull, or others are changing it at the same time"),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/test",
            post(
                test::test,
                doc("testSubscription", "Send a test push")
                    .text("Sends an event of type `triggers.test` now, once, and answers with what came back; 202 where that is not known in time.")
                    .answers::<test::TestView>(200)
                    .answers::<test::TestView>(202)
                    .problem(Code::Conflict, "the subscription is disabled, or of kind pull")
                    .problem(Code::RateLimited, "four tests of the organization are under way, or sixty began within a minute")
                    .problem(Code::Unavailable, "no worker took the test: nothing was sent"),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/stats",
            get(
                stats::show,
                doc("getSubscriptionStats", "Get a subscription's statistics")
                    .text("Over all workers, and some seconds old."),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/enable",
            post(
                enable,
                doc("enableSubscription", "Enable a subscription")
                    .text("What was parked is sent, in order, at the subscription's own pace.")
                    .problem(Code::Conflict, refused),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/disable",
            post(
                disable,
                doc("disableSubscription", "Disable a subscription")
                    .text("Its deliveries are parked; nothing is dropped.")
                    .problem(Code::Conflict, refused),
            ),
        )
        .merge(replay_routes())
}

fn replay_routes() -> Routes<Arc<Control>> {
    Routes::of("Subscriptions")
        .at(
            "/v1/subscriptions/{id}/replay",
            post(
                replays::create,
                doc("createReplay", "Replay deliveries")
                    .text("Opens deliveries again that have ended, in the background.")
                    .header(202, Header::Location)
                    .link(202, "getReplay", THE_REPLAY)
                    .link(202, "cancelReplay", THE_REPLAY)
                    .problem(Code::Conflict, "ten replays of the organization are running"),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/replays",
            get(
                replays::list,
                doc("listReplays", "List replays").text("The last hundred."),
            ),
        )
        .at(
            "/v1/subscriptions/{id}/replays/{replay}",
            get(replays::show, doc("getReplay", "Get a replay"))
                .and_delete(replays::cancel, doc("cancelReplay", "Cancel a replay")),
        )
}

/// A subscription that is to be created, with push settings as they are unless set, and its secret.
pub(crate) fn new_push(
    control: &Control,
    organization: OrganizationId,
    url: SubscriptionUrl,
    scheme: SignatureScheme,
) -> (Subscription, SigningKey) {
    let id = SubscriptionId::new();
    let secret = SigningKey::generate(scheme);
    let push = Push {
        url,
        scheme,
        public_key: secret.public_text(),
        former: None,
        secret: control
            .api
            .sealer
            .seal(organization, id.uuid(), secret.as_bytes()),
        retry_schedule: shared::RetrySchedule::default(),
        timeout: shared::subscription::AttemptTimeout::default(),
        max_in_flight: shared::subscription::MaxInFlight::default(),
        rate_limit: None,
        ordering: shared::subscription::Ordering::None,
        format: shared::subscription::Format::Standard,
        headers: None,
    };
    (new(id, organization, Target::Push(push)), secret)
}

fn new(id: SubscriptionId, organization: OrganizationId, target: Target) -> Subscription {
    let now = Timestamp::now();
    Subscription {
        id,
        organization,
        builtin: None,
        target,
        event_types: vec![EventPattern::all()],
        enabled: true,
        disabled_reason: None,
        description: None,
        filter: None,
        metadata: shared::subscription::Metadata::default(),
        version: 1,
        created_at: now,
        updated_at: now,
        enabled_at: None,
    }
}

/// Refuses a URL that must not be reached.
pub(crate) async fn check_target(
    control: &Control,
    organization: OrganizationId,
    field: &str,
    url: &SubscriptionUrl,
    local: FromThisMachine,
) -> Result<(), ApiError> {
    let checked = control.api.targets.check(url, organization, local).await;
    checked.map_err(|blocked| ApiError::invalid(vec![FieldError::at(&[field], blocked.to_string())]))
}

/// 422: the organization has no room for the filter.
pub(crate) fn filters_full(full: FiltersFull) -> ApiError {
    ApiError::invalid(vec![FieldError::at(&["filter"], full.to_string())])
}

/// The organization has no room for the subscription: 409 if that is so whatever it is, and 422 if it is for its filter.
pub(crate) fn full(full: Full) -> ApiError {
    match full {
        Full::Subscriptions => ApiError::new(Code::Conflict, full.to_string()),
        Full::Filters(filters) => filters_full(filters),
    }
}

async fn create(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    room: RoomToTake,
    local: FromThisMachine,
    body: JsonBody<NewSubscription>,
) -> Result<Made<SubscriptionView>, ApiError> {
    let settings = Settings::read(body.bytes).await?;
    let kind = settings.kind.unwrap_or_default();
    settings.check(kind)?;
    let organization = caller.organization();
    let scheme = settings.signature_scheme.unwrap_or_default();
    let (mut subscription, secret) = match (kind, &settings.url) {
        (Kind::Pull, _) => (new(SubscriptionId::new(), organization, Target::Pull), None),
        (Kind::Push, Some(url)) => {
            check_target(&control, organization, "url", url, local).await?;
            let (subscription, secret) = new_push(&control, organization, url.clone(), scheme);
            (subscription, Some(secret))
        }
        (Kind::Push, None) => {
            let rule = "is required for a subscription of kind push";
            return Err(ApiError::invalid(vec![FieldError::at(&["url"], rule)]));
        }
    };
    let row = row(&control, &subscription);
    if let Target::Push(push) = &mut subscription.target
        && let Some(merged) = settings.merged(push, &row)?
    {
        *push = merged;
    }
    if let Some(metadata) = settings.metadata(&subscription.metadata)? {
        subscription.metadata = metadata;
    }
    if let Some(event_types) = settings.event_types {
        subscription.event_types = event_types;
    }
    subscription.filter = settings.filter.flatten();
    subscription.enabled = settings.enabled.unwrap_or(true);
    subscription.description = settings.description.flatten();
    room.take(&control).await?;
    let created = control.api.store.subscriptions.create(subscription).await?;
    let subscription = created.map_err(full)?;
    let path = format!("/v1/subscriptions/{}", subscription.id);
    let view = SubscriptionView::of(subscription, secret.as_ref());
    Ok(Made::created(view).at(&path).secret())
}

/// What the headers of a subscription are sealed by, and for.
fn row<'a>(control: &'a Control, subscription: &Subscription) -> Row<'a> {
    Row {
        sealer: &control.api.sealer,
        organization: subscription.organization,
        id: subscription.id,
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    caller: Caller<SeeSubscriptions>,
    mut query: Query<Paged>,
) -> Result<Answer<Listing<SubscriptionView>>, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Subscriptions.place(cursor));
    query.finish()?;
    let organization = caller.organization();
    let held = control.room.take(organization).await?;
    let subscriptions = &control.api.store.subscriptions;
    let page = subscriptions
        .list(organization, PageRequest { after, limit })
        .await?;
    let views = page
        .items
        .into_iter()
        .map(|subscription| SubscriptionView::of(subscription, None));
    Ok(Answer::ok(Listing {
        data: views.collect(),
        next_cursor: page.next.map(|place| List::Subscriptions.cursor(&place)),
    })
    .keeping(held))
}

pub(crate) async fn found(
    control: &Control,
    organization: OrganizationId,
    id: SubscriptionId,
) -> Result<Subscription, ApiError> {
    let found = control.api.store.subscriptions.get(organization, id).await?;
    found.ok_or_else(|| ApiError::not_found("subscription"))
}

async fn show(
    State(control): State<Arc<Control>>,
    caller: Caller<SeeSubscriptions>,
    PathId(id): PathId<SubscriptionKind>,
) -> Result<Answer<SubscriptionView>, ApiError> {
    let subscription = found(&control, caller.organization(), id).await?;
    Ok(Answer::ok(SubscriptionView::of(subscription, None)))
}

async fn change(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    room: RoomToTake,
    PathId(id): PathId<SubscriptionKind>,
    local: FromThisMachine,
    body: JsonBody<SubscriptionChange>,
) -> Result<Answer<SubscriptionView>, ApiError> {
    let organization = caller.organization();
    let mut current = found(&control, organization, id).await?;
    refuse_inbox(&current)?;
    let settings = Settings::read(body.bytes).await?;
    settings.check(Kind::of(&current.target))?;
    if settings
        .signature_scheme
        .is_some_and(|scheme| current.push().is_some_and(|push| push.scheme != scheme))
    {
        let rule = "cannot change by itself: rotate the secret, and say which scheme the new one is for";
        return Err(ApiError::invalid(vec![FieldError::at(
            &["signature_scheme"],
            rule,
        )]));
    }
    if settings.is_empty() {
        return Ok(Answer::ok(SubscriptionView::of(current, None)));
    }
    if let Some(url) = &settings.url {
        check_target(&control, organization, "url", url, local).await?;
    }
    room.take(&control).await?;
    for _ in 0..MAX_TRIES {
        let patch = SubscriptionPatch {
            target: match current.push() {
                Some(push) => settings.merged(push, &row(&control, &current))?.map(Target::Push),
                None => None,
            },
            event_types: settings.event_types.clone(),
            filter: settings.filter.clone(),
            enabled: settings.enabled,
            description: settings.description.clone(),
            metadata: settings.metadata(&current.metadata)?,
        };
        let subscriptions = &control.api.store.subscriptions;
        match subscriptions
            .patch(organization, id, current.version, patch)
            .await?
        {
            PatchOutcome::Changed(changed) => {
                return Ok(Answer::ok(SubscriptionView::of(*changed, None)));
            }
            PatchOutcome::Conflict => current = found(&control, organization, id).await?,
            PatchOutcome::NotFound => return Err(ApiError::not_found("subscription")),
            PatchOutcome::FiltersFull(full) => return Err(filters_full(full)),
        }
    }
    Err(busy())
}

/// Serves it again; what was parked is sent, in the order of its events, at the subscription's own pace.
async fn enable(
    control: State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    _: Roomed,
    id: PathId<SubscriptionKind>,
) -> Result<Answer<SubscriptionView>, ApiError> {
    set_enabled(control, caller, id, true).await
}

/// Parks its deliveries, however many they are: nothing is written to them.
async fn disable(
    control: State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    _: Roomed,
    id: PathId<SubscriptionKind>,
) -> Result<Answer<SubscriptionView>, ApiError> {
    set_enabled(control, caller, id, false).await
}

async fn set_enabled(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    PathId(id): PathId<SubscriptionKind>,
    enabled: bool,
) -> Result<Answer<SubscriptionView>, ApiError> {
    let organization = caller.organization();
    for _ in 0..MAX_TRIES {
        let current = found(&control, organization, id).await?;
        refuse_inbox(&current)?;
        if current.enabled == enabled {
            return Ok(Answer::ok(SubscriptionView::of(current, None)));
        }
        let patch = SubscriptionPatch {
            enabled: Some(enabled),
            ..SubscriptionPatch::default()
        };
        let subscriptions = &control.api.store.subscriptions;
        match subscriptions
            .patch(organization, id, current.version, patch)
            .await?
        {
            PatchOutcome::Changed(changed) => return Ok(Answer::ok(SubscriptionView::of(*changed, None))),
            PatchOutcome::Conflict => {}
            PatchOutcome::NotFound => return Err(ApiError::not_found("subscription")),
            PatchOutcome::FiltersFull(full) => return Err(filters_full(full)),
        }
    }
    Err(busy())
}

/// 409: others keep changing the same subscription.
pub(crate) fn busy() -> ApiError {
    ApiError::new(
        Code::Conflict,
        "others are changing this subscription at the same time; try again",
    )
}

fn refuse_inbox(subscription: &Subscription) -> Result<(), ApiError> {
    match subscription.builtin {
        Some(Builtin::Inbox) => Err(ApiError::new(
            Code::Conflict,
            "the built-in inbox cannot be changed or deleted: it keeps what no other subscription wants",
        )),
        _ => Ok(()),
    }
}

async fn delete(
    State(control): State<Arc<Control>>,
    caller: Caller<Subscriptions>,
    PathId(id): PathId<SubscriptionKind>,
) -> Result<NoContent, ApiError> {
    refuse_inbox(&found(&control, caller.organization(), id).await?)?;
    if control
        .api
        .store
        .subscriptions
        .delete(caller.organization(), id)
        .await?
    {
        Ok(NoContent)
    } else {
        Err(ApiError::not_found("subscription"))
    }
}
