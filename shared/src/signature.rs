//! Signing by [Standard Webhooks](https://www.standardwebhooks.com) 1.0: of `id.timestamp.body`, with HMAC-SHA256 under a
//! secret that both sides have (`v1`), or with Ed25519 under a key of which the subscriber has the public half (`v1a`).

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::Serialize;
use sha2::Sha256;

use crate::{Invalid, Timestamp};

/// How a webhook is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignatureScheme {
    /// HMAC-SHA256: `v1`.
    #[default]
    Hmac,
    /// Ed25519: `v1a`.
    Ed25519,
}

impl SignatureScheme {
    /// Its name in the API and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hmac => "hmac",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl FromStr for SignatureScheme {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "hmac" => Ok(Self::Hmac),
            "ed25519" => Ok(Self::Ed25519),
            _ => Err(Invalid::new("must be hmac or ed25519")),
        }
    }
}

/// What a subscription's webhooks are signed with.
#[derive(Debug, Clone)]
pub enum SigningKey {
    /// A secret that the subscriber has, too.
    Hmac(SigningSecret),
    /// A key of which the subscriber has the public half.
    Ed25519(Ed25519Key),
}

impl SigningKey {
    /// A new one.
    pub fn generate(scheme: SignatureScheme) -> Self {
        match scheme {
            SignatureScheme::Hmac => Self::Hmac(SigningSecret::generate()),
            SignatureScheme::Ed25519 => Self::Ed25519(Ed25519Key::generate()),
        }
    }

    /// From its own bytes, as they are sealed at rest.
    pub fn from_bytes(scheme: SignatureScheme, bytes: Vec<u8>) -> Result<Self, Invalid> {
        match scheme {
            SignatureScheme::Hmac => SigningSecret::from_bytes(bytes).map(Self::Hmac),
            SignatureScheme::Ed25519 => Ed25519Key::from_seed(&bytes).map(Self::Ed25519),
        }
    }

    /// Which scheme it is for.
    pub const fn scheme(&self) -> SignatureScheme {
        match self {
            Self::Hmac(_) => SignatureScheme::Hmac,
            Self::Ed25519(_) => SignatureScheme::Ed25519,
        }
    }

    /// The bytes to seal.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Hmac(secret) => secret.as_bytes(),
            Self::Ed25519(key) => &key.seed,
        }
    }

    /// `whsec_…`, to hand out once; nobody but us needs the private half of a pair.
    pub fn secret_text(&self) -> Option<String> {
        match self {
            Self::Hmac(secret) => Some(secret.to_text()),
            Self::Ed25519(_) => None,
        }
    }

    /// `whpk_…`, to verify by, where there is one.
    pub fn public_text(&self) -> Option<String> {
        match self {
            Self::Hmac(_) => None,
            Self::Ed25519(key) => Some(key.public_text()),
        }
    }

    /// A signature of a message, as `webhook-signature` has them: the version, a comma, base64.
    pub fn sign(&self, message_id: &str, at: Timestamp, body: &[u8]) -> String {
        match self {
            Self::Hmac(secret) => secret.sign(message_id, at, body),
            Self::Ed25519(key) => key.sign(message_id, at, body),
        }
    }
}

/// The secret of HMAC: 24 to 64 bytes, written `whsec_` and their base64.
#[derive(Clone)]
pub struct SigningSecret {
    bytes: Vec<u8>,
    keyed: Hmac<Sha256>,
}

impl SigningSecret {
    /// A new secret of 32 random bytes.
    pub fn generate() -> Self {
        let mut bytes = vec![0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self::keyed(bytes)
    }

    /// From the secret's own bytes, as they are sealed at rest.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Invalid> {
        if (24..=64).contains(&bytes.len()) {
            Ok(Self::keyed(bytes))
        } else {
            Err(Invalid::new("must be 24 to 64 bytes"))
        }
    }

    /// From `whsec_…`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let rule = || Invalid::new("must be whsec_ and the base64 of 24 to 64 bytes");
        let text = text.strip_prefix("whsec_").ok_or_else(rule)?;
        Self::from_bytes(STANDARD.decode(text).map_err(|_| rule())?).map_err(|_| rule())
    }

    fn keyed(bytes: Vec<u8>) -> Self {
        let keyed =
            Hmac::new_from_slice(&bytes).unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
        Self { bytes, keyed }
    }

    /// The bytes to seal.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// `whsec_…`, to hand out once.
    pub fn to_text(&self) -> String {
        format!("whsec_{}", STANDARD.encode(&self.bytes))
    }

    /// `v1,` and the base64 of the message's MAC.
    pub fn sign(&self, message_id: &str, at: Timestamp, body: &[u8]) -> String {
        let mut mac = self.keyed.clone();
        mac.update(message_id.as_bytes());
        mac.update(b".");
        mac.update(at.seconds().to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        let mut text = String::with_capacity(48);
        text.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut text);
        text
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// A key pair of Ed25519 (RFC 8032), by its seed of 32 bytes.
#[derive(Clone)]
pub struct Ed25519Key {
    seed: [u8; 32],
    pair: std::sync::Arc<Ed25519KeyPair>,
}

impl Ed25519Key {
    /// A new one.
    pub fn generate() -> Self {
        let mut seed = [0; 32];
        rand::rng().fill_bytes(&mut seed);
        Self::from_seed(&seed).unwrap_or_else(|_| unreachable!("every 32 bytes are a seed"))
    }

    /// From its seed, as it is sealed at rest.
    pub fn from_seed(seed: &[u8]) -> Result<Self, Invalid> {
        let rule = || Invalid::new("must be 32 bytes");
        let seed: [u8; 32] = seed.try_into().map_err(|_| rule())?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| rule())?;
        Ok(Self {
            seed,
            pair: std::sync::Arc::new(pair),
        })
    }

    /// `whpk_…`.
    pub fn public_text(&self) -> String {
        format!("whpk_{}", STANDARD.encode(self.pair.public_key()))
    }

    /// `v1a,` and the base64 of the message's signature.
    pub fn sign(&self, message_id: &str, at: Timestamp, body: &[u8]) -> String {
        let seconds = at.seconds().to_string();
        let mut message = Vec::with_capacity(message_id.len() + seconds.len() + body.len() + 2);
        for part in [message_id.as_bytes(), b".", seconds.as_bytes(), b".", body] {
            message.extend_from_slice(part);
        }
        let mut text = String::with_capacity(96);
        text.push_str("v1a,");
        STANDARD.encode_string(self.pair.sign(&message), &mut text);
        text
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ed25519Key({})", self.public_text())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use ed25519_dalek::{Signature, Verifier, VerifyingKey};
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn the_published_vector() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let at = Timestamp::from_millis(1_614_265_330_000);
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(secret.to_text(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    /// RFC 8032, section 7.1, test 1: the key; the message is signed in its frame of id and time.
    #[test]
    fn the_public_key_of_the_rfc() {
        let seed: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&RFC_8032_SEED[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let key = Ed25519Key::from_seed(&seed).unwrap();
        let public = hex(key.pair.public_key().as_ref());
        assert_eq!(
            public,
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        let signed = hex(key.pair.sign(b"").as_ref());
        assert!(signed.starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    const RFC_8032_SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";

    #[test]
    fn what_is_no_secret_is_refused() {
        for bad in [
            "",
            "whsec_",
            "whsec_####",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whsec_AAAA",
            "whsk_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            assert!(SigningSecret::parse(bad).is_err(), "{bad}");
        }
        assert!(Ed25519Key::from_seed(&[0; 31]).is_err());
        assert!(!format!("{:?}", SigningKey::generate(SignatureScheme::Hmac)).contains("whsec"));
    }

    proptest! {
        #[test]
        fn another_library_agrees(id in "evt_[a-z0-9]{26}", body: String, seconds in 0i64..4_000_000_000) {
            let secret = SigningSecret::generate();
            let other = standardwebhooks::Webhook::new(&secret.to_text()).unwrap();
            let ours = secret.sign(&id, Timestamp::from_millis(seconds * 1000), body.as_bytes());
            prop_assert_eq!(ours, other.sign(&id, seconds, body.as_bytes()).unwrap());
        }

        #[test]
        fn another_library_verifies(id in "evt_[a-z0-9]{26}", body: Vec<u8>, seconds in 0i64..4_000_000_000, seed: [u8; 32]) {
            let key = Ed25519Key::from_seed(&seed).unwrap();
            let signed = key.sign(&id, Timestamp::from_millis(seconds * 1000), &body);
            let signature = STANDARD.decode(signed.strip_prefix("v1a,").unwrap()).unwrap();
            let public = STANDARD.decode(key.public_text().strip_prefix("whpk_").unwrap()).unwrap();
            let public = VerifyingKey::from_bytes(public[..].try_into().unwrap()).unwrap();
            let mut message = format!("{id}.{seconds}.").into_bytes();
            message.extend_from_slice(&body);
            let signature = Signature::from_slice(&signature).unwrap();
            prop_assert!(public.verify(&message, &signature).is_ok());
            message.push(b'x');
            prop_assert!(public.verify(&message, &signature).is_err());
        }
    }
}
