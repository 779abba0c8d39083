//! `GET /v1/events`: events, newest first, by type, time and status.
//!
//! However few of many events a search shows, a request looks at so many and no more; its answer may have fewer than its
//! limit, or none, and a `next_cursor` to look further by.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use schemars::JsonSchema;
use serde::Serialize;
use shared::{
    EventPattern, EventStatus, Timestamp,
    http::{
        ApiError, Query,
        openapi::{Parameter, Parameters},
    },
    store::{EventQuery, PageRequest},
};

use super::EventView;
use crate::{
    Control,
    access::{Caller, Events},
    answer::{CURSOR, LIMIT},
    cursor::List,
    listing,
};

/// How many bytes of payloads make an answer long enough.
const ENOUGH: usize = 8 * 1024 * 1024;
/// How many pages one request reads. Each looks at 2,000 events at most.
const PAGES: u32 = 16;

/// The parameters of a search.
pub(super) struct Filters;

impl Parameters for Filters {
    const ALL: &'static [Parameter] = &[
        LIMIT,
        CURSOR,
        Parameter::of::<EventPattern>("type", "Those whose type this pattern matches alone."),
        Parameter::of::<Timestamp>("since", "Those accepted then or later."),
        Parameter::of::<Timestamp>("until", "Those accepted before."),
        Parameter::of::<EventStatus>("status", "Those that are so alone."),
    ];
}

/// A search as it is answered.
struct SearchForm;

#[derive(Serialize, JsonSchema)]
struct Rest {
    next_cursor: Option<String>,
}

impl listing::Form for SearchForm {
    const EVENTS: &'static str = "data";
    type Event = EventView;
    type Rest = Rest;

    fn rest(&self, _: u64, next: Option<i64>) -> Rest {
        Rest {
            next_cursor: next.map(|place| List::Events.cursor(&place)),
        }
    }
}

pub(super) async fn search(
    State(control): State<Arc<Control>>,
    caller: Caller<Events>,
    mut query: Query<Filters>,
) -> Result<Response, ApiError> {
    let limit = query.limit();
    let after = query.optional("cursor", |cursor| List::Events.place(cursor));
    let wanted = EventQuery {
        event_type: query.optional("type", EventPattern::parse),
        since: query.optional("since", str::parse::<Timestamp>),
        until: query.optional("until", str::parse::<Timestamp>),
        status: query.optional("status", str::parse::<EventStatus>),
    };
    query.finish()?;
    let wanted = listing::Wanted {
        organization: caller.organization(),
        source: listing::Source::Search { wanted, pages: PAGES },
        page: PageRequest { after, limit },
        enough: ENOUGH,
    };
    let held = control.room.take(wanted.organization).await?;
    listing::answer(&control.api.store, wanted, SearchForm, held).await
}
