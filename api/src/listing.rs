//! Lists of events, written as they are read.
//!
//! A list may show 1,000 events of 256 KiB. It is read from the store page by page, each bounded in bytes, and a page is read
//! only once the client has taken most of the one before: so a list takes the memory of a page, however large it is and
//! however slow its reader, and no connection to the store while it waits.
//!
//! How it fails: by a problem, as long as nothing is written; after that by breaking the connection off, so that nobody
//! takes half a list for a whole one.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
    vec,
};

use axum::{
    body::{Body, HttpBody},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use shared::{
    OrganizationId,
    http::{ApiError, FieldError},
    store::{EventFilter, EventQuery, EventRecord, Order, PageRequest, Store},
};

use crate::room::{Held, LITTLE};

/// The most events that are read at once.
const PAGE: u32 = 100;
/// How many pages that show less than they might a list reads: what it asks for is rare there, and each has looked at 2,000
/// events.
const LOOKS: u32 = 16;
/// How many bytes are handed on at once, about.
const PIECE: usize = 64 * 1024;
/// How long an answer may take to be read to its end, a list from its first page on: its reader's time, for the most part.
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

/// The header of every answer that is JSON.
pub(crate) const JSON: [(HeaderName, HeaderValue); 1] =
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];

/// The answer that is this text, which holds the room that it takes until it is sent.
pub(crate) fn whole(text: Bytes, held: Held) -> Response {
    let mut response = (JSON, kept(text, held)).into_response();
    response.extensions_mut().insert(HasRoom);
    response
}

/// An answer whose body holds its room, among its extensions.
#[derive(Clone, Copy)]
pub(crate) struct HasRoom;

/// The body that is this text, which holds the room that it takes until it is sent.
pub(crate) fn kept(text: Bytes, mut held: Held) -> Body {
    if text.len() <= LITTLE {
        return Body::from(text);
    }
    held.shrink_to(text.len());
    Body::new(Text {
        rest: Bytes::from_owner(Kept { text, _room: held }),
        deadline: Instant::now() + DEADLINE,
    })
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

/// A text on its way to the client. Once its time is over, what is left of it is not sent, and the connection is broken off.
struct Text {
    rest: Bytes,
    deadline: Instant,
}

impl HttpBody for Text {
    type Data = Bytes;
    type Error = ApiError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ApiError>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if Instant::now() > self.deadline {
            tracing::warn!("an answer was broken off: it was not read to its end in time");
            return Poll::Ready(Some(Err(not_read())));
        }
        let size = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

fn not_read() -> ApiError {
    ApiError::unavailable(
        "the answer was not read to its end in time",
        Duration::from_secs(1),
    )
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
            return Err(not_read());
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
        let request_limit = request.limit;
        let (events, organization) = (&self.store.events, wanted.organization);
        let (read, exhausted) = match &mut wanted.source {
            Source::List {
                filter,
                order,
                offset,
            } => {
                let offset = std::mem::take(offset);
                let read = events.list(organization, filter, *order, request, offset).await?;
                // A page that goes on and has fewer than it might is one that has looked for them.
                let is_full = read.items.len() as u64 >= u64::from(request_limit);
                let looked = filter.is_looked_for() && read.next.is_some() && !is_full;
                // Passing over what came before may have used them up: this one it has all the same, and no other.
                self.looks = self.looks.saturating_sub(u32::from(looked));
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

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use shared::OrganizationId;

    use super::*;
    use crate::room::Room;

    fn text(size: usize, deadline: Instant) -> Text {
        Text {
            rest: vec![b'.'; size].into(),
            deadline,
        }
    }

    #[tokio::test]
    async fn a_text_is_sent_in_pieces_until_its_time_is_over() {
        let later = Instant::now() + DEADLINE;
        let mut sent = text(2 * PIECE + 1, later);
        assert_eq!(sent.size_hint().exact(), Some(2 * PIECE as u64 + 1));
        let mut sizes = Vec::new();
        while let Some(frame) = sent.frame().await {
            sizes.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(sizes, [PIECE, PIECE, 1]);
        assert!(sent.is_end_stream());

        let mut late = text(2 * PIECE, later);
        assert!(late.frame().await.unwrap().is_ok());
        late.deadline = Instant::now();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(late.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn room_is_held_until_the_last_piece_is_gone() {
        let room = Room::new();
        let whose = OrganizationId::new();
        let held = async || room.take_for(Some(whose), usize::MAX).await;
        let mut body = kept(vec![b'.'; PIECE + LITTLE].into(), held().await.unwrap());
        let pieces = [body.frame().await.unwrap(), body.frame().await.unwrap()];
        assert!(body.frame().await.is_none());
        drop(body);
        assert!(held().await.is_err());
        drop(pieces);
        let held = held().await.unwrap();
        // What is little takes none.
        let little = kept(vec![b'.'; LITTLE].into(), held);
        assert!(room.take_for(Some(whose), usize::MAX).await.is_ok());
        drop(little);
    }
}
