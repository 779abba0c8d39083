//! Lists of events, written as they are read.
//!
//! A list may show 1,000 events of 256 KiB. It is read from the store page by page, each bounded in bytes, and a page is read
//! only once the client has taken most of the one before: so a list takes the memory of a page, however large it is and
//! however slow its reader, and no connection to the store while it waits.
//!
//! How it fails: by a problem, as long as nothing is written; after that by breaking the connection off, so that nobody
//! takes half a list for a whole one.

use std::{
    time::{Duration, Instant},
    vec,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;
use shared::{
    OrganizationId,
    http::{ApiError, FieldError},
    store::{EventFilter, EventQuery, EventRecord, Order, PageRequest, Store},
};

use crate::room::Held;

/// The most events that are read at once.
const PAGE: u32 = 100;
/// How many pages that show less than they might a list reads: what it asks for is rare there, and each has looked at 2,000
/// events.
const LOOKS: u32 = 16;
/// How many bytes are handed on at once, about.
const PIECE: usize = 64 * 1024;
/// How long a list may take to be read to its end, from its first page on: its reader's time, for the most part.
const DEADLINE: Duration = Duration::from_mins(5);

/// Which events a list shows.
pub(crate) struct Wanted {
    pub(crate) organization: OrganizationId,
    pub(crate) source: Source,
    pub(crate) page: PageRequest<i64>,
    /// How many bytes of payloads are enough, though there be fewer events than asked for.
    pub(crate) enough: usize,
}

/// Where its events come from.
pub(crate) enum Source {
    /// Those that the filter shows, in this order, but for so many before the first.
    List {
        filter: EventFilter,
        order: Order,
        offset: u64,
    },
    /// Those that a search shows, which reads so many pages at most: each may show none.
    Search { wanted: EventQuery, pages: u32 },
}

/// How a list is written: an object whose first member holds the events.
pub(crate) trait Form: Send + 'static {
    /// The name of that member.
    const EVENTS: &'static str;
    /// An event as it is shown.
    type Event: TryFrom<EventRecord, Error = ApiError> + Serialize;
    /// The other members, of which there is at least one.
    type Rest: Serialize;
    /// What they are, behind so many events; `next` is where another list would go on, if there is more.
    fn rest(&self, shown: u64, next: Option<i64>) -> Self::Rest;
}

/// The answer that is this list. Its first page has been read by then.
pub(crate) async fn answer<F: Form>(
    store: &Store,
    wanted: Wanted,
    form: F,
    held: Held,
) -> Result<Response, ApiError> {
    let mut list = List {
        store: store.clone(),
        wanted,
        form,
        page: Vec::new().into_iter(),
        shown: 0,
        more: true,
        looks: LOOKS,
        place: Place::Opening,
        deadline: Instant::now() + DEADLINE,
    };
    list.read().await?;
    let body = if list.more {
        Body::from_stream(stream::try_unfold(
            (list, held),
            async |(mut list, held)| match list.piece(PIECE).await {
                Ok(piece) => Ok(piece.map(|piece| (piece, (list, held)))),
                Err(error) => {
                    tracing::warn!(%error, "a list was broken off");
                    Err(error)
                }
            },
        ))
    } else {
        // The whole of it is here: its length can be told, and it needs no more room than that.
        let text = list.piece(usize::MAX).await?.unwrap_or_default();
        return Ok(whole(text, held));
    };
    Ok((JSON, body).into_response())
}

const JSON: [(HeaderName, HeaderValue); 1] =
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];

/// The answer that is this text, which holds the room that it takes until it is sent.
pub(crate) fn whole(text: Bytes, mut held: Held) -> Response {
    held.shrink_to(text.len());
    let body = Body::from(Bytes::from_owner(Kept { text, _room: held }));
    (JSON, body).into_response()
}

/// A text with the room that it takes.
struct Kept {
    text: Bytes,
    _room: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// A list on its way from the store to the client.
struct List<F> {
    store: Store,
    /// What is still to be read.
    wanted: Wanted,
    form: F,
    /// What was read and is not written yet.
    page: vec::IntoIter<EventRecord>,
    /// How many were read.
    shown: u64,
    /// Whether another page is to be read.
    more: bool,
    /// How many pages more it may read in which what it asks for is rare.
    looks: u32,
    place: Place,
    deadline: Instant,
}

/// What is to be written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Opening,
    FirstEvent,
    NextEvent,
    Nothing,
}

impl<F: Form> List<F> {
    /// Passes over what comes before the first event, if that is looked for: whether there may be more behind it. What is not looked
    /// for is passed over as it is read.
    async fn pass_over(&mut self) -> Result<bool, ApiError> {
        let Source::List {
            filter,
            order,
            offset,
        } = &mut self.wanted.source
        else {
            return Ok(true);
        };
        let events = &self.store.events;
        while *offset > 0 && filter.is_looked_for() {
            if self.looks == 0 {
                let rule = "leads further than a request looks that gives a status: use cursor";
                return Err(ApiError::invalid(vec![FieldError::parameter("offset", rule)]));
            }
            self.looks -= 1;
            let (organization, after) = (self.wanted.organization, self.wanted.page.after);
            let passed = events
                .pass_over(organization, filter, *order, after, *offset)
                .await?;
            *offset -= passed.count;
            if passed.next.is_none() {
                return Ok(false);
            }
            self.wanted.page.after = passed.next;
        }
        Ok(true)
    }

    /// Reads the next page.
    async fn read(&mut self) -> Result<(), ApiError> {
        if Instant::now() > self.deadline {
            return Err(ApiError::unavailable(
                "the list was not read to its end in time",
                Duration::from_secs(1),
            ));
        }
        if !self.pass_over().await? {
            self.wanted.page.after = None;
            self.more = false;
            return Ok(());
        }
        let wanted = &mut self.wanted;
        let request = PageRequest {
            after: wanted.page.after,
            limit: wanted.page.limit.min(PAGE),
        };
        let (events, organization) = (&self.store.events, wanted.organization);
        let (read, exhausted) = match &mut wanted.source {
            Source::List {
                filter,
                order,
                offset,
            } => {
                let offset = std::mem::take(offset);
                let read = events.list(organization, filter, *order, request, offset).await?;
                // A page that has all it may have goes on after the last that it shows, not after one that it looked at.
                let last = read.items.last().map(|event| event.seq);
                self.looks -= u32::from(read.next.is_some() && read.next != last);
                (read, self.looks == 0)
            }
            Source::Search { wanted, pages } => {
                *pages = pages.saturating_sub(1);
                let read = events.browse(organization, wanted, request).await?;
                (read, *pages == 0)
            }
        };
        let bytes = read.items.iter().map(|event| event.payload.len()).sum();
        let events = u32::try_from(read.items.len()).unwrap_or(u32::MAX);
        self.shown += u64::from(events);
        wanted.page.limit = wanted.page.limit.saturating_sub(events);
        wanted.page.after = read.next;
        wanted.enough = wanted.enough.saturating_sub(bytes);
        self.more = read.next.is_some() && wanted.page.limit > 0 && wanted.enough > 0 && !exhausted;
        self.page = read.items.into_iter();
        Ok(())
    }

    /// The next piece of the text, of about `size` bytes; `None` after the last.
    async fn piece(&mut self, size: usize) -> Result<Option<Bytes>, ApiError> {
        let mut text = Vec::new();
        if self.place == Place::Nothing {
            return Ok(None);
        }
        if self.place == Place::Opening {
            text.extend([b"{\"", F::EVENTS.as_bytes(), b"\":["].concat());
            self.place = Place::FirstEvent;
        }
        while text.len() < size {
            if let Some(event) = self.page.next() {
                if self.place == Place::NextEvent {
                    text.push(b',');
                }
                self.place = Place::NextEvent;
                write(&mut text, &F::Event::try_from(event)?)?;
            } else if self.more {
                self.read().await?;
            } else {
                text.extend(b"],");
                let rest = text.len();
                write(&mut text, &self.form.rest(self.shown, self.wanted.page.after))?;
                // Its members go on where those of the list itself are.
                debug_assert!(text[rest..].starts_with(b"{\""));
                text.remove(rest);
                self.place = Place::Nothing;
                break;
            }
        }
        Ok(Some(text.into()))
    }
}

fn write(text: &mut Vec<u8>, value: &impl Serialize) -> Result<(), ApiError> {
    serde_json::to_writer(text, value).map_err(|error| ApiError::internal(&error))
}
