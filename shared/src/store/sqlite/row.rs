//! Reading rows, and what errors mean.

use sqlx::{Decode, Row as _, Sqlite, Type, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    Id, Timestamp,
    id::Kind,
    sqlite::{Meaning, meaning},
    store::{Result, StoreError},
};

/// What an error means to the store's caller.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    match meaning(&error) {
        Meaning::Unavailable => StoreError::Unavailable(error),
        Meaning::Refused => StoreError::Refused(error),
        Meaning::Corrupt => StoreError::Corrupt(error.to_string()),
    }
}

/// A value that is there but does not read as what it should be.
pub(super) fn corrupt(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(what.to_string())
}

/// A row's values, by column.
pub(super) trait Columns {
    /// As it is.
    fn value<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, column: usize) -> Result<T>;

    /// An id.
    fn id<K: Kind>(&self, column: usize) -> Result<Id<K>> {
        self.value::<Uuid>(column).map(Id::from_uuid)
    }

    /// A time.
    fn time(&self, column: usize) -> Result<Timestamp> {
        self.value(column).map(Timestamp::from_millis)
    }

    /// A time that may not be there.
    fn time_if_any(&self, column: usize) -> Result<Option<Timestamp>> {
        Ok(self.value::<Option<i64>>(column)?.map(Timestamp::from_millis))
    }

    /// A number that is never negative.
    fn number<N: TryFrom<i64>>(&self, column: usize) -> Result<N> {
        let number: i64 = self.value(column)?;
        N::try_from(number).map_err(|_| corrupt(format!("the number {number} is out of range")))
    }
}

impl Columns for SqliteRow {
    fn value<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(&'r self, column: usize) -> Result<T> {
        self.try_get(column).map_err(failed)
    }
}
