//! Lists, over as many pages as are asked for.

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure, Output,
    output::Column,
    request::{Client, To, object},
};

/// The API's largest page.
const PAGE: u64 = 1000;

/// How much of a list.
#[derive(Debug, Clone, Copy, Args)]
pub struct Paging {
    /// How many to show at most.
    #[arg(long, default_value_t = 50, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Shows all, however many there are.
    #[arg(long, conflicts_with = "limit")]
    all: bool,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// Shows a list: for people a table a page, for programs a line an item. A page may be short, or empty, before the end.
pub async fn show(
    client: &Client,
    output: &mut Output,
    list: To,
    paging: Paging,
    columns: &[Column],
) -> Result<(), Failure> {
    let mut left = if paging.all { u64::MAX } else { paging.limit };
    let mut cursor: Option<String> = None;
    let mut none_yet = true;
    while left > 0 {
        let page = list.clone().with("limit", Some(left.min(PAGE)));
        let page: Page = client.get(page.with("cursor", cursor.take())).await?.read()?;
        left = left.saturating_sub(page.data.len() as u64);
        if output.is_json() {
            for item in &page.data {
                output.json(item.get())?;
            }
        } else if !page.data.is_empty() {
            let items: Result<Vec<_>, _> = page.data.iter().map(|item| object(item.get())).collect();
            output.table(columns, &items?)?;
        }
        none_yet &= page.data.is_empty();
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    if !output.is_json() {
        if none_yet {
            output.note("there are none");
        } else if cursor.is_some() {
            output.note("there are more: say --limit or --all");
        }
    }
    Ok(())
}
