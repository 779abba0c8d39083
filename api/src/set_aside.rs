//! `/v1/set-aside`: what could not be taken in, for the deployment's operator to look at, put back or forget.

use std::sync::Arc;

use axum::extract::State;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    Entry, EventId, OrganizationId, SetAsideId, Timestamp,
    http::{
        ApiError, Code, Query,
        openapi::{Routes, doc, get, post},
    },
    id::SetAsideKind,
    queue::frame,
    store::{ID_OUT_OF_RANGE, PageRequest, SetAside},
};

use crate::{
    Control,
    access::Operator,
    answer::{Answer, Listing, NoContent, Paged, Taken},
    cursor::List,
    path::PathId,
};

/// How many are read at once: their frames are large, and a list leaves them out.
const PIECE: u32 = 16;

pub(crate) fn routes() -> Routes<Arc<Control>> {
    Routes::of("Set aside")
        .at(
            "/v1/set-aside",
            get(
                list,
                doc("listSetAside", "List what was set aside").link(
                    200,
                    "getSetAside",
                    &[("id", "$response.body#/data/0/id")],
                ),
            ),
        )
        .at(
            "/v1/set-aside/{id}",
            get(
                show,
                doc("getSetAside", "Get what was set aside").text("With its frame."),
            )
            .and_delete(forget, doc("forgetSetAside", "Forget what was set aside")),
        )
        .at(
            "/v1/set-aside/{id}/put-back",
            post(
                put_back,
                doc("putBackSetAside", "Put what was set aside back into the queue")
                    .problem(Code::Conflict, "the frame cannot be read"),
            ),
        )
}

/// A frame, or an event of one, that could not be taken in.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SetAside")]
struct SetAsideView {
    id: SetAsideId,
    reason: String,
    detail: String,
    organization: Option<OrganizationId>,
    event: Option<EventId>,
    /// Of the frame.
    size_bytes: usize,
    at: Timestamp,
    times: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    frame: Option<FrameView>,
}

/// A frame, for people and for programs.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Frame")]
struct FrameView {
    /// What is not UTF-8 in it is replaced.
    text: String,
    base64: String,
}

impl SetAsideView {
    fn of(item: SetAside) -> Self {
        Self {
            id: item.id,
            reason: item.reason,
            detail: item.detail,
            organization: item.organization,
            event: item.event,
            size_bytes: item.frame.len(),
            at: item.at,
            times: item.times,
            frame: None,
        }
    }

    fn with_frame(item: SetAside) -> Self {
        let frame = FrameView {
            text: String::from_utf8_lossy(&item.frame).into_owned(),
            base64: STANDARD.encode(&item.frame),
        };
        Self {
            frame: Some(frame),
            ..Self::of(item)
        }
    }
}

async fn list(
    State(control): State<Arc<Control>>,
    _: Operator,
    mut query: Query<Paged>,
) -> Result<Answer<Listing<SetAsideView>>, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::SetAside.place(cursor));
    query.finish()?;
    let (mut after, mut left, mut data) = (after, limit, Vec::new());
    loop {
        let piece = PageRequest {
            after,
            limit: left.min(PIECE),
        };
        left -= piece.limit;
        let read = control.api.store.events.list_set_aside(piece).await?;
        data.extend(read.items.into_iter().map(SetAsideView::of));
        after = read.next;
        if after.is_none() || left == 0 {
            let next_cursor = after.map(|place| List::SetAside.cursor(&place));
            return Ok(Answer::ok(Listing { data, next_cursor }));
        }
    }
}

async fn found(control: &Control, id: SetAsideId) -> Result<SetAside, ApiError> {
    let found = control.api.store.events.get_set_aside(id).await?;
    found.ok_or_else(|| ApiError::not_found("thing set aside"))
}

async fn show(
    State(control): State<Arc<Control>>,
    _: Operator,
    PathId(id): PathId<SetAsideKind>,
) -> Result<Answer<SetAsideView>, ApiError> {
    Ok(Answer::ok(SetAsideView::with_frame(found(&control, id).await?)))
}

/// What was put back.
#[derive(Serialize, JsonSchema)]
struct PutBack {
    id: SetAsideId,
    status: &'static str,
    /// Under which id the event will be, if it is one event.
    event: Option<EventId>,
}

/// Puts a frame back into the queue, and forgets it once the queue has confirmed. Whatever breaks between leaves it
/// here, and taking the same events in twice changes nothing. What a worker has set aside again by then stays.
async fn put_back(
    State(control): State<Arc<Control>>,
    _: Operator,
    PathId(id): PathId<SetAsideKind>,
) -> Result<Taken<PutBack>, ApiError> {
    let item = found(&control, id).await?;
    let mut bytes = Bytes::from(item.frame);
    // It would travel with others in one frame, and make all of them unreadable.
    let mut entries = frame::decode(&bytes).map_err(|unreadable| {
        let detail = format!("the frame cannot be read, so it would only be set aside again: {unreadable}");
        ApiError::new(Code::Conflict, detail)
    })?;
    if item.reason == ID_OUT_OF_RANGE {
        bytes = with_new_ids(&mut entries);
    }
    let event = match entries.as_slice() {
        [Entry::Event(event)] => Some(event.id),
        _ => None,
    };
    // Where it holds events of several organizations, they came by one queue, and go by one again.
    let organization = match entries.first() {
        Some(Entry::Event(event)) => event.organization,
        Some(Entry::Repeat(repeat)) => repeat.organization,
        None => OrganizationId::new(),
    };
    let frame = frame::Encoded {
        organization,
        bytes,
        entries: entries.len(),
    };
    control.api.publisher.publish(frame).await?;
    control
        .api
        .store
        .events
        .forget_set_aside(id, Some(item.times))
        .await?;
    tracing::info!(set_aside.id = %id, event.id = ?event, "what was set aside was put back into the queue");
    let status = "put_back";
    Ok(Taken::accepted(PutBack { id, status, event }))
}

/// The frame with events that have an id of now. Put back twice, it is stored once: the former id says so.
fn with_new_ids(entries: &mut [Entry]) -> Bytes {
    let mut frame = Vec::new();
    for entry in entries {
        if let Entry::Event(event) = entry {
            event.former_ids.push(event.id);
            event.id = EventId::new();
        }
        frame::encode_into(&mut frame, entry);
    }
    frame.into()
}

async fn forget(
    State(control): State<Arc<Control>>,
    _: Operator,
    PathId(id): PathId<SetAsideKind>,
) -> Result<NoContent, ApiError> {
    if control.api.store.events.forget_set_aside(id, None).await? {
        tracing::info!(set_aside.id = %id, "what was set aside was forgotten");
        Ok(NoContent)
    } else {
        Err(ApiError::not_found("thing set aside"))
    }
}
