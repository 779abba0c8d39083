//! Rows, and what they are rows of.

use std::time::Duration;

use sqlx::{
    Decode, Row, Type,
    postgres::{PgRow, Postgres},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Result, StoreError, classify};
use crate::{
    EventPattern, Filter, Id, Key, Organization, RetrySchedule, Scopes, SetAsideId, Subscription,
    SubscriptionUrl, Timestamp,
    id::Kind,
    seal::Sealed,
    signature::SignatureScheme,
    store::SetAside,
    subscription::{
        AttemptTimeout, Format, FormerSecret, HeaderName, MaxInFlight, Metadata, Ordering, Push, RateLimit,
        SealedHeaders, Target,
    },
};

/// A row, read by column.
pub(super) trait Columns {
    fn value<'r, T>(&'r self, column: &str) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>;
    fn id<K: Kind>(&self, column: &str) -> Result<Id<K>>;
    fn optional_id<K: Kind>(&self, column: &str) -> Result<Option<Id<K>>>;
    fn at(&self, column: &str) -> Result<Timestamp>;
    fn optional_at(&self, column: &str) -> Result<Option<Timestamp>>;
    /// A text that reads as `T`.
    fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T>;
    /// A number that is kept in a wider type than it needs.
    fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<T>;
    fn optional_number<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>>;
    /// A number of attempts.
    fn count(&self, column: &str) -> Result<u32>;
    fn status_code(&self, column: &str) -> Result<Option<u16>>;
}

impl Columns for PgRow {
    fn value<'r, T>(&'r self, column: &str) -> Result<T>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        self.try_get(column).map_err(classify)
    }

    fn id<K: Kind>(&self, column: &str) -> Result<Id<K>> {
        self.value::<Uuid>(column).map(Id::from_uuid)
    }

    fn optional_id<K: Kind>(&self, column: &str) -> Result<Option<Id<K>>> {
        Ok(self.value::<Option<Uuid>>(column)?.map(Id::from_uuid))
    }

    fn at(&self, column: &str) -> Result<Timestamp> {
        self.value::<OffsetDateTime>(column).map(Timestamp::from)
    }

    fn optional_at(&self, column: &str) -> Result<Option<Timestamp>> {
        Ok(self.value::<Option<OffsetDateTime>>(column)?.map(Timestamp::from))
    }

    fn parsed<T: std::str::FromStr>(&self, column: &str) -> Result<T> {
        let text: &str = self.value(column)?;
        text.parse().map_err(|_| corrupt(column, text))
    }

    fn number<T: TryFrom<i64>>(&self, column: &str) -> Result<T> {
        let number = self.value::<i64>(column)?;
        T::try_from(number).map_err(|_| corrupt(column, number))
    }

    fn optional_number<T: TryFrom<i64>>(&self, column: &str) -> Result<Option<T>> {
        self.value::<Option<i64>>(column)?
            .map(|number| T::try_from(number).map_err(|_| corrupt(column, number)))
            .transpose()
    }

    fn count(&self, column: &str) -> Result<u32> {
        let number = self.value::<i32>(column)?;
        u32::try_from(number).map_err(|_| corrupt(column, number))
    }

    fn status_code(&self, column: &str) -> Result<Option<u16>> {
        self.value::<Option<i32>>(column)?
            .map(|code| u16::try_from(code).map_err(|_| corrupt(column, code)))
            .transpose()
    }
}

fn corrupt(column: &str, value: impl std::fmt::Debug) -> StoreError {
    StoreError::Corrupt(format!("column {column} holds {value:?}"))
}

/// As the statements take a duration: seconds.
pub(super) fn seconds(duration: Duration) -> f64 {
    // An interval of more than this is not needed and may not fit.
    duration.as_secs_f64().min(1e9)
}

pub(super) fn organization(row: &PgRow) -> Result<Organization> {
    Ok(Organization {
        id: row.id("id")?,
        name: row.value("name")?,
        tier: row.parsed("tier")?,
        retention_days: row
            .value::<Option<i32>>("retention_days")?
            .map(|days| u16::try_from(days).map_err(|_| corrupt("retention_days", days)))
            .transpose()?,
        created_at: row.at("created_at")?,
    })
}

pub(super) fn key(row: &PgRow) -> Result<Key> {
    Ok(Key {
        id: row.id("id")?,
        organization: row.id("organization_id")?,
        name: row.value("name")?,
        hint: row.value("hint")?,
        scopes: Scopes::from_text(row.value("scopes")?),
        created_at: row.at("created_at")?,
        expires_at: row.optional_at("expires_at")?,
        revoked_at: row.optional_at("revoked_at")?,
        replaced_by: row.optional_id("replaced_by")?,
        last_used_at: row.optional_at("last_used_at")?,
    })
}

pub(super) fn subscription(row: &PgRow) -> Result<Subscription> {
    let target = match row.value("kind")? {
        "pull" => Target::Pull,
        "push" => Target::Push(push(row)?),
        kind => return Err(corrupt("kind", kind)),
    };
    let event_types = row
        .value::<Vec<String>>("event_types")?
        .iter()
        .map(|pattern| EventPattern::parse(pattern).map_err(|_| corrupt("event_types", pattern)))
        .collect::<Result<_>>()?;
    Ok(Subscription {
        id: row.id("id")?,
        organization: row.id("organization_id")?,
        builtin: row
            .value::<Option<&str>>("builtin")?
            .map(|name| name.parse().map_err(|_| corrupt("builtin", name)))
            .transpose()?,
        target,
        event_types,
        filter: row.value::<Option<&str>>("filter")?.map(Filter::from_trusted),
        enabled: row.value("enabled")?,
        disabled_reason: row.value("disabled_reason")?,
        description: row.value("description")?,
        metadata: Metadata::from_json(row.value("metadata")?)
            .map_err(|_| corrupt("metadata", "what is not an object of texts"))?,
        version: row.value("version")?,
        created_at: row.at("created_at")?,
        updated_at: row.at("updated_at")?,
        enabled_at: row.optional_at("enabled_at")?,
    })
}

fn push(row: &PgRow) -> Result<Push> {
    let url: &str = row.value("url")?;
    let schedule: Vec<i32> = row.value("retry_schedule_seconds")?;
    let waits = schedule
        .iter()
        .map(|wait| u32::try_from(*wait))
        .collect::<Result<_, _>>()
        .map_err(|_| corrupt("retry_schedule_seconds", &schedule))?;
    let within = |column: &str| -> Result<u64> {
        let number: i32 = row.value(column)?;
        u64::try_from(number).map_err(|_| corrupt(column, number))
    };
    Ok(Push {
        url: SubscriptionUrl::parse(url).map_err(|_| corrupt("url", url))?,
        scheme: scheme(row, "signature_scheme")?,
        secret: Sealed(row.value("secret")?),
        public_key: row.value("public_key")?,
        former: match row.value::<Option<Vec<u8>>>("former_secret")? {
            Some(secret) => Some(FormerSecret {
                scheme: scheme(row, "former_scheme")?,
                secret: Sealed(secret),
                until: row.at("former_until")?,
            }),
            None => None,
        },
        retry_schedule: RetrySchedule::new(waits)
            .map_err(|_| corrupt("retry_schedule_seconds", &schedule))?,
        timeout: AttemptTimeout::new(within("timeout_ms")?)
            .map_err(|_| corrupt("timeout_ms", "a value out of range"))?,
        max_in_flight: MaxInFlight::new(within("max_in_flight")?)
            .map_err(|_| corrupt("max_in_flight", "a value out of range"))?,
        rate_limit: row
            .value::<Option<i32>>("rate_limit_per_second")?
            .map(|rate| u64::try_from(rate).unwrap_or(0))
            .map(RateLimit::new)
            .transpose()
            .map_err(|_| corrupt("rate_limit_per_second", "a value out of range"))?,
        ordering: match row.value::<Option<&str>>("ordering")? {
            Some(name) => name.parse().map_err(|_| corrupt("ordering", name))?,
            None => Ordering::None,
        },
        format: match row.value::<Option<&str>>("format")? {
            Some(name) => name.parse().map_err(|_| corrupt("format", name))?,
            None => Format::Standard,
        },
        headers: headers(row)?,
    })
}

fn headers(row: &PgRow) -> Result<Option<SealedHeaders>> {
    let Some(values) = row.value::<Option<Vec<u8>>>("headers")? else {
        return Ok(None);
    };
    let names: Vec<String> = row.value("header_names")?;
    let read = names.iter().map(|name| HeaderName::parse(name));
    Ok(Some(SealedHeaders {
        names: read
            .collect::<Result<_, _>>()
            .map_err(|_| corrupt("header_names", &names))?,
        values: Sealed(values),
    }))
}

fn scheme(row: &PgRow, column: &str) -> Result<SignatureScheme> {
    match row.value::<Option<&str>>(column)? {
        Some(name) => name.parse().map_err(|_| corrupt(column, name)),
        None => Ok(SignatureScheme::Hmac),
    }
}

pub(super) fn set_aside(row: &PgRow) -> Result<SetAside> {
    Ok(SetAside {
        id: row.id("id").map(|id: SetAsideId| id)?,
        reason: row.value("reason")?,
        detail: row.value("detail")?,
        organization: row.optional_id("organization_id")?,
        event: row.optional_id("event_id")?,
        frame: row.value("frame")?,
        at: row.at("at")?,
        times: row.number("times")?,
    })
}
