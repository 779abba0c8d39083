//! Organizations, the tenants, and their API keys.

use std::{fmt, str::FromStr};

use rand::RngExt;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Invalid, KeyId, OrganizationId, Timestamp, invalid};

/// What an organization may post: accepted events a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// 100 events a minute.
    Free,
    /// 1,000 events a minute.
    Pro,
    /// 10,000 events a minute.
    Business,
    /// 100,000 events a minute.
    Enterprise,
    /// No limit.
    Unlimited,
}

impl Tier {
    /// Every tier, from the smallest.
    pub const ALL: [Self; 5] = [
        Self::Free,
        Self::Pro,
        Self::Business,
        Self::Enterprise,
        Self::Unlimited,
    ];

    /// Accepted events a minute; `None` is no limit.
    pub const fn events_per_minute(self) -> Option<u32> {
        match self {
            Self::Free => Some(100),
            Self::Pro => Some(1_000),
            Self::Business => Some(10_000),
            Self::Enterprise => Some(100_000),
            Self::Unlimited => None,
        }
    }

    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Pro => "pro",
            Self::Business => "business",
            Self::Enterprise => "enterprise",
            Self::Unlimited => "unlimited",
        }
    }
}

impl FromStr for Tier {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.as_str() == text)
            .ok_or_else(|| Invalid::new("must be one of free, pro, business, enterprise, unlimited"))
    }
}

/// An organization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// Its name: 1 to 256 characters.
    pub name: String,
    /// What it may post.
    pub tier: Tier,
    /// How many days it keeps its events, if that is its own to say; where the deployment keeps them for less, that counts.
    pub retention_days: Option<u16>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// A name for a person to read: 1 to 256 characters, no control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Checks the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.trim().is_empty() {
            return Err(Invalid::new("must not be empty"));
        }
        invalid::text(text, 1, 256).map(|text| Self(text.to_owned()))
    }

    /// The text.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Scope {
    /// Post events.
    #[serde(rename = "events:write")]
    EventsWrite,
    /// Read events, the inbox and deliveries, and acknowledge.
    #[serde(rename = "events:read")]
    EventsRead,
    /// Manage subscriptions.
    #[serde(rename = "subscriptions:write")]
    SubscriptionsWrite,
    /// Manage keys and the organization.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [
        Self::EventsWrite,
        Self::EventsRead,
        Self::SubscriptionsWrite,
        Self::Admin,
    ];

    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventsWrite => "events:write",
            Self::EventsRead => "events:read",
            Self::SubscriptionsWrite => "subscriptions:write",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| {
                Invalid::new("must be one of events:write, events:read, subscriptions:write, admin")
            })
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// All there are.
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether `scope` is in it.
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    /// Whether all of `others` are in it.
    pub const fn contains_all(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether there is none in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in it, in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }

    /// Separated by spaces, as the store keeps them.
    pub fn to_text(self) -> String {
        self.iter().map(Scope::as_str).collect::<Vec<_>>().join(" ")
    }

    /// From [`Scopes::to_text`]; a scope that this version does not know is left out.
    pub fn from_text(text: &str) -> Self {
        text.split(' ').filter_map(|scope| scope.parse().ok()).collect()
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |set, scope| set | 1 << scope as u8))
    }
}

impl Serialize for Scopes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// SHA-256 of a key's text: all that is kept of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// The text of an API key: `trg_live_` (or `trg_test_`), 32 random base62 characters (190 bits) and 6 of checksum,
/// the CRC-32 of all before it, so that a mistyped key is refused without a look-up and a scanner can tell a real one.
pub struct KeyText(SecretString);

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const KEY_RANDOM: usize = 32;
const KEY_CHECKSUM: usize = 6;

impl KeyText {
    /// A new live key.
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let mut text = String::from("trg_live_");
        text.extend((0..KEY_RANDOM).map(|_| char::from(BASE62[rng.random_range(0..BASE62.len())])));
        text.push_str(&checksum(&text));
        Self(text.into())
    }

    /// The key to hand out, once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What is kept of it.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.expose().as_bytes()).into())
    }

    /// What people may see of it later, to tell keys apart: the prefix and four characters.
    pub fn hint(&self) -> String {
        self.expose()[.."trg_live_".len() + 4].to_owned()
    }

    /// The hash to look a presented key up by; `None` if no key of ours reads so.
    pub fn hash_of(presented: &str) -> Option<KeyHash> {
        let random = presented
            .strip_prefix("trg_live_")
            .or_else(|| presented.strip_prefix("trg_test_"))?;
        if random.len() != KEY_RANDOM + KEY_CHECKSUM || !random.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return None;
        }
        let (body, sum) = presented.split_at(presented.len() - KEY_CHECKSUM);
        (checksum(body) == sum).then(|| KeyHash(Sha256::digest(presented.as_bytes()).into()))
    }
}

/// CRC-32 (IEEE) in base62, most significant digit first, padded with zeros.
fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [b'0'; KEY_CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % 62];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// A key as it is listed; its text is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// A name for people.
    pub name: String,
    /// The first characters of its text.
    pub hint: String,
    /// What it may do.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The key that took its place.
    pub replaced_by: Option<KeyId>,
    /// When it was last used: minutes ago may show as earlier, never as later.
    pub last_used_at: Option<Timestamp>,
}

/// What a valid key grants: the answer to a look-up by hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The key.
    pub key: KeyId,
    /// Whose it is.
    pub organization: OrganizationId,
    /// What the organization may post.
    pub tier: Tier,
    /// What the key may do.
    pub scopes: Scopes,
    /// When the key ends by itself.
    pub expires_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_passes_and_a_mistyped_one_does_not() {
        let key = KeyText::generate();
        assert_eq!(KeyText::hash_of(key.expose()), Some(key.hash()));
        for at in "trg_live_".len()..key.expose().len() {
            let mut typo = key.expose().to_owned().into_bytes();
            typo[at] = if typo[at] == b'a' { b'b' } else { b'a' };
            assert_eq!(KeyText::hash_of(std::str::from_utf8(&typo).unwrap()), None);
        }
        assert_eq!(KeyText::hash_of(&key.expose().replace("live", "test")), None);
    }

    proptest! {
        #[test]
        fn any_text_is_refused(text in "(trg_(live|test)_)?.*") {
            prop_assert_eq!(KeyText::hash_of(&text), None);
        }

        #[test]
        fn any_text_of_a_keys_shape_is_refused(text in "trg_(live|test)_[0-9A-Za-z]{38}") {
            let (body, _) = text.split_at(text.len() - KEY_CHECKSUM);
            let right = format!("{body}{}", checksum(body));
            prop_assert!(KeyText::hash_of(&right).is_some());
            prop_assert_eq!(KeyText::hash_of(&text).is_some(), text == right);
        }

        #[test]
        fn a_key_with_something_more_or_less_is_refused(at in 0..47_usize, other in any::<char>()) {
            let key = KeyText::generate();
            let mut more = key.expose().to_owned();
            more.insert(at, other);
            prop_assert_eq!(KeyText::hash_of(&more), None);
            let mut less = key.expose().to_owned();
            less.remove(at);
            prop_assert_eq!(KeyText::hash_of(&less), None);
        }
    }

    #[test]
    fn scopes_are_written_and_read() {
        for bits in 0..16u8 {
            let scopes = Scopes(bits);
            assert_eq!(Scopes::from_text(&scopes.to_text()), scopes);
        }
    }
}
