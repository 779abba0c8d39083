//! Who is sent to, in the course of a subscription's changes.
//!
//! What is known of a subscriber (that it fails, that it asked for time) holds for as long as it is the same, and most changes leave it
//! the same. Whoever changes what is sent, where to, or for how long an answer is waited for, expects it to be tried; and so does
//! whoever enables a subscription.

use sha2::{Digest, Sha256};

use super::{Push, Subscription};

/// Tells one subscriber from another, of one subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscriber(i64);

impl Subscriber {
    /// Of a subscription. Each member is named here: whoever adds one says whether it makes another subscriber.
    ///
    /// A secret and headers are told apart by what they were sealed with, which they keep when the deployment's key is changed.
    pub fn of(subscription: &Subscription, push: &Push) -> Self {
        let Push {
            url,
            scheme,
            secret,
            public_key: _,
            // It signs beside the other for a while, and ends without a change.
            former: _,
            retry_schedule: _,
            timeout,
            max_in_flight: _,
            rate_limit: _,
            ordering: _,
            format,
            headers,
        } = push;
        let mut digest = Sha256::new();
        let mut add = |part: &[u8]| {
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        };
        add(url.as_str().as_bytes());
        add(scheme.as_str().as_bytes());
        add(secret.nonce());
        add(&timeout.get().to_be_bytes());
        add(format.as_str().as_bytes());
        add(headers.as_ref().map_or(&[], |headers| headers.values.nonce()));
        let enabled_at = subscription.enabled_at.map(|at| at.millis().to_be_bytes());
        add(enabled_at.as_ref().map_or(&[], |at| at.as_slice()));
        let mut first = [0; 8];
        first.copy_from_slice(&digest.finalize()[..8]);
        // Positive: workers from before take it for a version that they have yet to hear of.
        Self(i64::from_be_bytes(first) & i64::MAX)
    }

    /// That is kept as this number.
    pub const fn numbered(number: i64) -> Self {
        Self(number)
    }

    /// As which number it is kept.
    pub const fn number(self) -> i64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        EventPattern, EventType, Filter, OrganizationId, RetrySchedule, SubscriptionId, SubscriptionUrl,
        Timestamp,
        seal::{Sealed, Sealer},
        signature::SignatureScheme,
        subscription::{
            AttemptTimeout, Format, FormerSecret, MaxInFlight, Metadata, Ordering, RateLimit, SealedHeaders,
            Target,
        },
    };

    fn subscription() -> Subscription {
        Subscription {
            id: SubscriptionId::new(),
            organization: OrganizationId::new(),
            builtin: None,
            target: Target::Push(Push {
                url: SubscriptionUrl::parse("https://example.com/hook").unwrap(),
                scheme: SignatureScheme::Hmac,
                secret: Sealed(vec![1; 60]),
                public_key: None,
                former: None,
                retry_schedule: RetrySchedule::default(),
                timeout: AttemptTimeout::default(),
                max_in_flight: MaxInFlight::default(),
                rate_limit: None,
                ordering: Ordering::None,
                format: Format::Standard,
                headers: Some(SealedHeaders {
                    names: Vec::new(),
                    values: Sealed(vec![2; 60]),
                }),
            }),
            event_types: vec![EventPattern::all()],
            filter: None,
            enabled: true,
            disabled_reason: None,
            description: None,
            metadata: Metadata::default(),
            version: 1,
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
            enabled_at: None,
        }
    }

    fn subscriber(subscription: &Subscription) -> Subscriber {
        Subscriber::of(subscription, subscription.push().unwrap())
    }

    fn pushing(subscription: &mut Subscription) -> &mut Push {
        match &mut subscription.target {
            Target::Push(push) => push,
            Target::Pull => unreachable!("it is pushed to"),
        }
    }

    /// How a change is made, and what it is called.
    type Change = (&'static str, fn(&mut Subscription));

    #[test]
    fn most_changes_leave_it_the_same() {
        let those: [Change; 9] = [
            ("a version", |one| one.version += 1),
            ("a description", |one| one.description = Some("of it".to_owned())),
            ("metadata", |one| {
                one.metadata = Metadata::from_json(Some(r#"{"a":"b"}"#)).unwrap();
            }),
            ("event types", |one| {
                one.event_types = vec![EventPattern::parse("order.*").unwrap()];
            }),
            ("a filter", |one| one.filter = Some(Filter::from_trusted("true"))),
            ("a schedule", |one| {
                pushing(one).retry_schedule = RetrySchedule::new(vec![1]).unwrap();
            }),
            ("a limit", |one| {
                pushing(one).max_in_flight = MaxInFlight::new(1).unwrap();
            }),
            ("a rate", |one| {
                pushing(one).rate_limit = Some(RateLimit::new(1).unwrap());
            }),
            ("an order", |one| pushing(one).ordering = Ordering::Fifo),
        ];
        let before = subscription();
        for (what, change) in those {
            let mut changed = before.clone();
            change(&mut changed);
            assert_eq!(subscriber(&changed), subscriber(&before), "{what}");
            assert_ne!(changed, before, "{what}");
        }
        assert!(EventType::parse("order.placed").is_ok() && subscriber(&before).number() >= 0);
    }

    #[test]
    fn what_is_sent_where_and_since_when_makes_it_another() {
        let those: [Change; 8] = [
            ("a URL", |one| {
                pushing(one).url = SubscriptionUrl::parse("https://example.com/other").unwrap();
            }),
            ("a secret", |one| pushing(one).secret = Sealed(vec![3; 60])),
            ("a scheme", |one| pushing(one).scheme = SignatureScheme::Ed25519),
            ("a timeout", |one| {
                pushing(one).timeout = AttemptTimeout::new(1_234).unwrap();
            }),
            ("a format", |one| pushing(one).format = Format::CloudEvents),
            ("headers", |one| {
                let names = Vec::new();
                let values = Sealed(vec![4; 60]);
                pushing(one).headers = Some(SealedHeaders { names, values });
            }),
            ("no headers", |one| pushing(one).headers = None),
            ("to be enabled", |one| one.enabled_at = Some(Timestamp::now())),
        ];
        let before = subscription();
        for (what, change) in those {
            let mut changed = before.clone();
            change(&mut changed);
            assert_ne!(subscriber(&changed), subscriber(&before), "{what}");
        }
    }

    #[test]
    fn it_is_the_same_by_another_key_of_the_deployment() {
        let [old, new] = [(); 2].map(|()| Sealer::generate_base64());
        let before = Sealer::from_base64(&old).unwrap();
        let both = Sealer::from_base64(&new).unwrap().and_former(&old).unwrap();
        let mut one = subscription();
        let (organization, row) = (one.organization, one.id.uuid());
        let [secret, headers] = [b"secret", b"header"].map(|text| before.seal(organization, row, text));
        pushing(&mut one).secret = secret.clone();
        pushing(&mut one).headers = Some(SealedHeaders {
            names: Vec::new(),
            values: headers.clone(),
        });
        let sealed_before = subscriber(&one);
        let [secret, headers] =
            [secret, headers].map(|sealed| both.reseal(organization, row, &sealed).unwrap());
        pushing(&mut one).secret = secret;
        pushing(&mut one).headers = Some(SealedHeaders {
            names: Vec::new(),
            values: headers,
        });
        assert_eq!(subscriber(&one), sealed_before);
        // Nor by the end of a rotation's overlap.
        let former = FormerSecret {
            scheme: SignatureScheme::Hmac,
            secret: before.seal(organization, row, b"former"),
            until: Timestamp::now(),
        };
        pushing(&mut one).former = Some(former);
        assert_eq!(subscriber(&one), sealed_before);
        pushing(&mut one).secret = both.seal(organization, row, b"secret");
        assert_ne!(subscriber(&one), sealed_before, "it was set anew");
    }
}
