//! Typed identifiers: a UUIDv7 shown as a TypeID (`evt_01h455vb4pex5vsknk084sn02q`).
//!
//! The prefix tells a reader (and the parser) what an id is of; the 26 base32 characters sort as the UUID does.
//! A plain UUID is accepted wherever an id is. The format is the [TypeID specification 0.3](https://github.com/jetify-com/typeid).

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use type_safe_id::{StaticType, TypeSafeId};
use uuid::Uuid;

use crate::{Invalid, Timestamp};

/// What an [`Id`] is of.
pub trait Kind: StaticType + Copy + Send + Sync + 'static {}

/// A UUID that knows what it is the id of.
pub struct Id<K>(Uuid, PhantomData<K>);

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $prefix:literal as $alias:ident;)*) => {$(
        #[doc = concat!("The kind whose ids begin with `", $prefix, "_`.")]
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $kind;
        impl StaticType for $kind {
            const TYPE: &'static str = $prefix;
        }
        impl Kind for $kind {}
        $(#[$doc])*
        pub type $alias = Id<$kind>;
    )*};
}

kinds! {
    /// An organization: the tenant, to which everything else belongs.
    OrganizationKind = "org" as OrganizationId;
    /// An API key.
    KeyKind = "key" as KeyId;
    /// An event, from the moment it is accepted.
    EventKind = "evt" as EventId;
    /// A subscription.
    SubscriptionKind = "sub" as SubscriptionId;
    /// A replay of deliveries.
    ReplayKind = "rpl" as ReplayId;
    /// A frame or an event that was set aside.
    SetAsideKind = "aside" as SetAsideId;
    /// An entry of the audit log.
    AuditEntryKind = "aud" as AuditEntryId;
    /// A running worker: the owner of leases. A worker that lost its lease takes a new one.
    WorkerKind = "wrk" as WorkerId;
}

impl<K: Kind> Id<K> {
    /// A new id; within one process ids only grow (RFC 9562, section 6.2, method 1).
    pub fn new() -> Self {
        Self::from_uuid(Uuid::now_v7())
    }

    /// The id that a UUID is.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The UUID behind it, as the store keeps it.
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// When it was made, by the clock of who made it; `None` if the UUID is not a version 7.
    pub fn created_at(self) -> Option<Timestamp> {
        let (seconds, nanos) = self
            .0
            .get_timestamp()
            .filter(|_| self.0.get_version_num() == 7)?
            .to_unix();
        Some(Timestamp::from_millis(
            i64::try_from(seconds).ok()?.checked_mul(1000)? + i64::from(nanos / 1_000_000),
        ))
    }
}

impl WorkerId {
    /// A new id of the same worker, which goes on under it. All of its ids end in the same 64 bits, by which whoever counts workers
    /// knows it for one.
    #[must_use]
    pub fn successor(self) -> Self {
        let (own, new) = (self.0.as_u128(), Self::new().0.as_u128());
        // Later than its own, whatever the clock says: it is never the same.
        let millis = (new >> 80).max((own >> 80) + 1);
        let rest = (new >> 64) & 0xffff;
        Self::from_uuid(Uuid::from_u128(
            (millis << 80) | (rest << 64) | (own & u128::from(u64::MAX)),
        ))
    }
}

impl<K: Kind> Default for Id<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> std::hash::Hash for Id<K> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&TypeSafeId::<K>::from_uuid(self.0), f)
    }
}
impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<K: Kind> FromStr for Id<K> {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() == 36
            && let Ok(uuid) = Uuid::try_parse(text)
        {
            return Ok(Self::from_uuid(uuid));
        }
        text.parse::<TypeSafeId<K>>()
            .map(|id| Self::from_uuid(id.uuid()))
            .map_err(|_| {
                Invalid::new(format!(
                    "must be an id that begins with `{}_`, or a UUID",
                    K::TYPE
                ))
            })
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_worker_has_ids_that_are_new_and_known_for_its_own() {
        let (first, other) = (WorkerId::new(), WorkerId::new());
        let end = |id: WorkerId| id.uuid().as_u64_pair().1;
        let mut last = first;
        for _ in 0..1_000 {
            let next = last.successor();
            assert!(next > last && end(next) == end(first), "{next}");
            assert!(next.created_at().is_some(), "{next} is of version 7");
            last = next;
        }
        assert_ne!(end(first), end(other));
    }

    proptest! {
        #[test]
        fn shown_and_read_back(bits: u128) {
            let id = EventId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
            prop_assert_eq!(id.uuid().to_string().parse::<EventId>().unwrap(), id);
            prop_assert!(id.to_string().parse::<SubscriptionId>().is_err());
        }

        #[test]
        fn what_is_read_is_what_was_written(
            text in prop_oneof![
                any::<String>(),
                "(evt|sub|EVT|)_?[0-9a-tv-zA-Z]{24,28}",
                "evt_[0-7][0-9a-hjkmnp-tv-z]{25}",
                "[0-9a-fA-F]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-fA-F]{12}",
                "(\\{|urn:uuid:)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\\}?",
            ]
        ) {
            match text.parse::<EventId>() {
                Ok(id) => {
                    let uuid = id.uuid().hyphenated().to_string();
                    prop_assert!(text == id.to_string() || text.eq_ignore_ascii_case(&uuid), "{text} is read as {id}");
                }
                Err(invalid) => prop_assert!(invalid.rule().contains("`evt_`")),
            }
        }
    }

    #[test]
    fn ids_grow_and_know_their_time() {
        let (first, second) = (EventId::new(), EventId::new());
        assert!(first < second);
        let age = Timestamp::now().millis() - first.created_at().expect("a version 7").millis();
        assert!((0..60_000).contains(&age), "{age}");
        assert_eq!(EventId::from_uuid(Uuid::new_v4()).created_at(), None);
    }
}
