//! Static headers: what a subscriber wants to find in each webhook, such as a token of its own.
//!
//! Their values are secrets: they are sealed at rest as one, and never shown again. Their names lie beside the seal, so
//! that a subscription can be shown without opening it. What the system says by headers of its own, what frames a
//! message, and what is meant for the next hop alone cannot be set.

use std::{collections::BTreeMap, fmt};

use crate::{Invalid, OrganizationId, SubscriptionId, seal::OpenError, seal::Sealed, seal::Sealer};

/// The most headers of a subscription.
pub const MAX_HEADERS: usize = 20;
/// The most characters of a name.
const MAX_NAME: usize = 64;
/// The most characters of a value.
const MAX_VALUE: usize = 1_024;
/// The most characters of all names and values together.
const MAX_TOTAL: usize = 4_096;

/// What is shown in place of a value, and is therefore none.
pub const MASK: &str = "********";

/// Names that cannot be set, beside those that begin with one of [`RESERVED_PREFIXES`]: what frames the message, what is
/// between two hops (RFC 9110, section 7.6.1), and what the system says itself.
const RESERVED: [&str; 19] = [
    "connection",
    "date",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-event-id",
    "x-event-type",
];
const RESERVED_PREFIXES: [&str; 2] = ["content-", "webhook-"];

/// A header's name (RFC 9110, section 5.1), in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderName(Box<str>);

impl HeaderName {
    /// Checks the rule; names are the same whatever their case.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(Invalid::new("must have a name of 1 to 64 characters"));
        }
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if !text.bytes().all(token) {
            return Err(Invalid::new("must have a name of letters, digits and hyphens"));
        }
        let name = text.to_ascii_lowercase();
        if RESERVED.contains(&&*name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Invalid::new("is a header that cannot be set"));
        }
        Ok(Self(name.into()))
    }

    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A header's value, which is nobody's business.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderValue(Box<str>);

impl HeaderValue {
    /// Checks the rule.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() || text.len() > MAX_VALUE {
            return Err(Invalid::new("must be 1 to 1024 characters"));
        }
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(Invalid::new(
                "must hold visible ASCII characters and spaces alone",
            ));
        }
        if text.starts_with(' ') || text.ends_with(' ') {
            return Err(Invalid::new("must not begin or end with a space"));
        }
        if text == MASK {
            return Err(Invalid::new(
                "is what is shown in place of a value: leave the header out, and it stays",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// The static headers of a subscription, opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StaticHeaders(BTreeMap<HeaderName, HeaderValue>);

impl StaticHeaders {
    /// Sets those that have a value, removes those that have none, and leaves the rest.
    pub fn merge(
        &mut self,
        changes: impl IntoIterator<Item = (HeaderName, Option<HeaderValue>)>,
    ) -> Result<(), Invalid> {
        for (name, value) in changes {
            match value {
                Some(value) => drop(self.0.insert(name, value)),
                None => drop(self.0.remove(&name)),
            }
        }
        if self.0.len() > MAX_HEADERS {
            return Err(Invalid::new("must come to at most 20 headers"));
        }
        let total: usize = self.iter().map(|(name, value)| name.len() + value.len()).sum();
        if total > MAX_TOTAL {
            return Err(Invalid::new(
                "must come to at most 4096 characters of names and values",
            ));
        }
        Ok(())
    }

    /// Names and values, in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// Sealed for a subscription; `None` if there are none.
    pub fn seal(
        &self,
        sealer: &Sealer,
        organization: OrganizationId,
        subscription: SubscriptionId,
    ) -> Option<SealedHeaders> {
        // Neither a name nor a value holds a line feed, and no name a colon.
        let lines: Vec<String> = self
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect();
        (!lines.is_empty()).then(|| SealedHeaders {
            names: self.0.keys().cloned().collect(),
            values: sealer.seal(organization, subscription.uuid(), lines.join("\n").as_bytes()),
        })
    }
}

/// The static headers of a subscription as the store keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedHeaders {
    /// Their names, in order.
    pub names: Vec<HeaderName>,
    /// All of them, sealed for their subscription.
    pub values: Sealed,
}

impl SealedHeaders {
    /// Opens them.
    pub fn open(
        &self,
        sealer: &Sealer,
        organization: OrganizationId,
        subscription: SubscriptionId,
    ) -> Result<StaticHeaders, OpenError> {
        let opened = sealer.open(organization, subscription.uuid(), &self.values)?;
        let text = String::from_utf8(opened).map_err(|_| OpenError::Damaged)?;
        let headers = text.lines().map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((HeaderName::parse(name).ok()?, HeaderValue::parse(value).ok()?))
        });
        let headers: Option<BTreeMap<_, _>> = headers.collect();
        headers.map(StaticHeaders).ok_or(OpenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(name: &str, value: &str) -> (HeaderName, Option<HeaderValue>) {
        (
            HeaderName::parse(name).unwrap(),
            Some(HeaderValue::parse(value).unwrap()),
        )
    }

    #[test]
    fn what_cannot_be_set() {
        for name in [
            "Host",
            "content-type",
            "Content-Length",
            "webhook-id",
            "Webhook-Anything",
            "TE",
            "Transfer-Encoding",
            "connection",
            "User-Agent",
            "traceparent",
            "",
            "a b",
            "a:b",
            "ä",
            "a\n",
            &"x".repeat(65),
        ] {
            assert!(HeaderName::parse(name).is_err(), "{name:?}");
        }
        for value in [
            "",
            " a",
            "a ",
            "a\r\nb",
            "ü",
            "\0",
            "\t",
            MASK,
            &"x".repeat(1_025),
        ] {
            assert!(HeaderValue::parse(value).is_err(), "{value:?}");
        }
        assert_eq!(HeaderName::parse("X-Token").unwrap().as_str(), "x-token");
    }

    #[test]
    fn merging_sets_and_removes_and_leaves() {
        let mut headers = StaticHeaders::default();
        headers.merge([header("a", "1"), header("b", "2")]).unwrap();
        let removed = (HeaderName::parse("A").unwrap(), None);
        headers.merge([removed, header("c", "3")]).unwrap();
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "2"), ("c", "3")]);
        let many = (0..19).map(|at| header(&format!("x{at}"), "y"));
        assert!(headers.clone().merge(many).is_err());
        let large = (0..4).map(|at| header(&format!("x{at}"), &"y".repeat(1_024)));
        assert!(headers.merge(large).is_err());
    }

    #[test]
    fn none_are_sealed_as_none_and_no_value_is_printed() {
        let key = Sealer::from_base64(&Sealer::generate_base64()).unwrap();
        let (organization, subscription) = (OrganizationId::new(), SubscriptionId::new());
        let mut headers = StaticHeaders::default();
        assert_eq!(headers.seal(&key, organization, subscription), None);
        headers.merge([header("authorization", "Bearer geheim")]).unwrap();
        let sealed = headers.seal(&key, organization, subscription).unwrap();
        assert!(!format!("{headers:?} {sealed:?}").contains("geheim"));
        let other = sealed.open(&key, organization, SubscriptionId::new());
        assert_eq!(other, Err(OpenError::Damaged), "it belongs to its row");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(given in prop::collection::btree_map("x-[a-z0-9_.|~!#-]{1,20}", "[!-~]([ -~]{0,60}[!-~])?", 1..12)) {
            let key = Sealer::from_base64(&Sealer::generate_base64()).unwrap();
            let (organization, subscription) = (OrganizationId::new(), SubscriptionId::new());
            let mut headers = StaticHeaders::default();
            headers.merge(given.iter().map(|(name, value)| header(name, value))).unwrap();
            let sealed = headers.seal(&key, organization, subscription).unwrap();
            prop_assert_eq!(sealed.names.len(), given.len());
            prop_assert_eq!(sealed.open(&key, organization, subscription), Ok(headers));
        }
    }
}
