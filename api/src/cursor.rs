//! Where a page ended, as clients carry it: opaque to them, and good for the list alone that gave it.
//!
//! Base64url of a letter that names the list and the place in it, big endian. A cursor promises nothing but a place in
//! an order: it holds no filter, grants nothing, and never runs out.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use shared::{
    Id, Invalid, Timestamp,
    id::Kind,
    store::{AuditPlace, DeliveryPlace, SetAsidePlace},
};
use uuid::Uuid;

/// Which list a cursor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum List {
    Keys = b'k',
    Organizations = b'o',
    Subscriptions = b's',
    Inbox = b'i',
    Events = b'e',
    SetAside = b'a',
    Deliveries = b'd',
    AuditLog = b'l',
    /// `GET /api/inbox`, which runs the other way.
    CompatInbox = b'z',
}

/// A place in a list's order.
pub(crate) trait Place: Sized {
    fn bytes(&self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Place for i64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_be_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

impl<K: Kind> Place for Id<K> {
    fn bytes(&self) -> Vec<u8> {
        self.uuid().as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self::from_uuid)
    }
}

impl Place for SetAsidePlace {
    fn bytes(&self) -> Vec<u8> {
        [self.at.millis().bytes(), self.id.bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at, id) = bytes.split_at_checked(8)?;
        Some(Self {
            at: Timestamp::from_millis(i64::from_bytes(at)?),
            id: Id::from_bytes(id)?,
        })
    }
}

impl Place for AuditPlace {
    fn bytes(&self) -> Vec<u8> {
        [self.at.millis().bytes(), self.id.bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at, id) = bytes.split_at_checked(8)?;
        Some(Self {
            at: Timestamp::from_millis(i64::from_bytes(at)?),
            id: Id::from_bytes(id)?,
        })
    }
}

impl Place for DeliveryPlace {
    fn bytes(&self) -> Vec<u8> {
        [self.seq.bytes(), self.subscription.bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (seq, subscription) = bytes.split_at_checked(8)?;
        Some(Self {
            seq: i64::from_bytes(seq)?,
            subscription: Id::from_bytes(subscription)?,
        })
    }
}

impl List {
    /// The cursor of a place in this list.
    pub(crate) fn cursor<P: Place>(self, place: &P) -> String {
        let mut bytes = vec![self as u8];
        bytes.extend(place.bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place that a cursor of this list names.
    pub(crate) fn place<P: Place>(self, cursor: &str) -> Result<P, Invalid> {
        URL_SAFE_NO_PAD
            .decode(cursor)
            .ok()
            .and_then(|bytes| match bytes.split_first() {
                Some((list, place)) if *list == self as u8 => P::from_bytes(place),
                _ => None,
            })
            .ok_or_else(|| Invalid::new("must be a next_cursor that this same list has answered"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared::{AuditEntryId, KeyId, OrganizationId, SetAsideId, SubscriptionId};

    use super::*;

    proptest! {
        #[test]
        fn written_and_read_back(seq: i64, bits: u128) {
            prop_assert_eq!(List::Inbox.place::<i64>(&List::Inbox.cursor(&seq)), Ok(seq));
            let id = KeyId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(List::Keys.place::<KeyId>(&List::Keys.cursor(&id)), Ok(id));
            let place = SetAsidePlace {
                at: Timestamp::from_millis(seq),
                id: SetAsideId::from_uuid(Uuid::from_u128(bits)),
            };
            prop_assert_eq!(List::SetAside.place(&List::SetAside.cursor(&place)), Ok(place));
            let place = DeliveryPlace { seq, subscription: SubscriptionId::from_uuid(Uuid::from_u128(bits)) };
            prop_assert_eq!(List::Deliveries.place(&List::Deliveries.cursor(&place)), Ok(place));
            let id = OrganizationId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(List::Organizations.place(&List::Organizations.cursor(&id)), Ok(id));
            let place = AuditPlace {
                at: Timestamp::from_millis(seq),
                id: AuditEntryId::from_uuid(Uuid::from_u128(bits)),
            };
            prop_assert_eq!(List::AuditLog.place(&List::AuditLog.cursor(&place)), Ok(place));
        }

        #[test]
        fn what_is_read_is_what_was_written(text in prop_oneof![any::<String>(), "[a-zA-Z0-9_=-]{0,40}", "[YZabce]([A-Za-z0-9_-]{11}|[A-Za-z0-9_-]{22}|[A-Za-z0-9_-]{33})"]) {
            if let Ok(place) = List::Keys.place::<KeyId>(&text) {
                prop_assert_eq!(List::Keys.cursor(&place), text.clone());
            }
            if let Ok(place) = List::Deliveries.place::<DeliveryPlace>(&text) {
                prop_assert_eq!(List::Deliveries.cursor(&place), text.clone());
            }
            if let Ok(place) = List::SetAside.place::<SetAsidePlace>(&text) {
                prop_assert_eq!(List::SetAside.cursor(&place), text.clone());
            }
            if let Ok(place) = List::Organizations.place::<OrganizationId>(&text) {
                prop_assert_eq!(List::Organizations.cursor(&place), text.clone());
            }
            if let Ok(place) = List::AuditLog.place::<AuditPlace>(&text) {
                prop_assert_eq!(List::AuditLog.cursor(&place), text.clone());
            }
            if let Ok(place) = List::Inbox.place::<i64>(&text) {
                prop_assert_eq!(List::Inbox.cursor(&place), text);
            }
        }

        #[test]
        fn whatever_follows_a_lists_letter_is_a_place_or_refused(
            list in prop::sample::select(b"koiseadlz".to_vec()),
            place in prop::sample::select(vec![0, 7, 8, 9, 15, 16, 17, 23, 24, 25, 100])
                .prop_flat_map(|length| prop::collection::vec(any::<u8>(), length)),
        ) {
            let text = URL_SAFE_NO_PAD.encode([vec![list], place.clone()].concat());
            let has = |length| place.len() == length;
            prop_assert_eq!(List::Keys.place::<KeyId>(&text).is_ok(), list == b'k' && has(16));
            prop_assert_eq!(List::Events.place::<i64>(&text).is_ok(), list == b'e' && has(8));
            prop_assert_eq!(List::Deliveries.place::<DeliveryPlace>(&text).is_ok(), list == b'd' && has(24));
            prop_assert_eq!(List::SetAside.place::<SetAsidePlace>(&text).is_ok(), list == b'a' && has(24));
            prop_assert_eq!(List::Organizations.place::<OrganizationId>(&text).is_ok(), list == b'o' && has(16));
            prop_assert_eq!(List::AuditLog.place::<AuditPlace>(&text).is_ok(), list == b'l' && has(24));
        }

        #[test]
        fn a_cursor_of_another_list_is_refused(seq: i64, bits: u128) {
            prop_assert!(List::CompatInbox.place::<i64>(&List::Inbox.cursor(&seq)).is_err());
            let key = List::Keys.cursor(&KeyId::from_uuid(Uuid::from_u128(bits)));
            prop_assert!(List::SetAside.place::<SetAsidePlace>(&key).is_err());
            prop_assert!(List::Keys.place::<i64>(&key).is_err());
            prop_assert!(List::Organizations.place::<OrganizationId>(&key).is_err());
            let place = SetAsidePlace {
                at: Timestamp::from_millis(seq),
                id: SetAsideId::from_uuid(Uuid::from_u128(bits)),
            };
            prop_assert!(List::AuditLog.place::<AuditPlace>(&List::SetAside.cursor(&place)).is_err());
        }
    }
}
