//! Reading a page of events without holding more of it than there must be.
//!
//! A page may have 1,000 events of 256 KiB. It is read in pieces, and ends early once it is large: the next page's
//! cursor says where.

use shared::{
    OrganizationId,
    http::ApiError,
    store::{EventFilter, EventRecord, Order, Page, PageRequest, Store},
};

/// How many events are read at once.
const PIECE: u32 = 100;
/// How many bytes of payloads make a page large enough.
pub(crate) const LARGE: usize = 8 * 1024 * 1024;

/// A page of events: as many as asked for, or fewer once their payloads have `large` bytes together.
pub(crate) async fn events(
    store: &Store,
    organization: OrganizationId,
    filter: &EventFilter,
    order: Order,
    page: PageRequest<i64>,
    mut offset: u64,
    large: usize,
) -> Result<Page<EventRecord, i64>, ApiError> {
    let mut items: Vec<EventRecord> = Vec::new();
    let (mut after, mut left, mut bytes) = (page.after, page.limit, 0);
    loop {
        let piece = PageRequest {
            after,
            limit: left.min(PIECE),
        };
        left -= piece.limit;
        let read = store
            .events
            .list(organization, filter, order, piece, offset)
            .await?;
        offset = 0;
        after = read.next;
        bytes += read.items.iter().map(|event| event.payload.len()).sum::<usize>();
        items.extend(read.items);
        if after.is_none() || left == 0 || bytes >= large {
            return Ok(Page { items, next: after });
        }
    }
}
