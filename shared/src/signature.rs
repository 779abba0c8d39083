//! Signing by [Standard Webhooks](https://www.standardwebhooks.com) 1.0: HMAC-SHA256 over `id.timestamp.body`.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use sha2::Sha256;

use crate::{Invalid, Timestamp};

/// A signing secret: 24 to 64 bytes, written `whsec_` and their base64.
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

    /// The value of `webhook-signature` for a message: `v1,` and the base64 of its MAC.
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

impl std::fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn the_published_vector() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let secret = SigningSecret::from_bytes(secret).unwrap();
        let at = Timestamp::from_millis(1_614_265_330_000);
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(secret.to_text(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    proptest! {
        #[test]
        fn another_library_agrees(id in "evt_[a-z0-9]{26}", body: String, seconds in 0i64..4_000_000_000) {
            let secret = SigningSecret::generate();
            let other = standardwebhooks::Webhook::new(&secret.to_text()).unwrap();
            let ours = secret.sign(&id, Timestamp::from_millis(seconds * 1000), body.as_bytes());
            prop_assert_eq!(ours, other.sign(&id, seconds, body.as_bytes()).unwrap());
        }
    }
}
