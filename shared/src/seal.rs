//! Secrets at rest: sealed with XChaCha20-Poly1305 under a key from the environment.
//!
//! The organization and the row are associated data, so that a sealed secret moved to another row does not open. A
//! key id leads each box, so that keys can be rotated. Layout: key id (4 bytes), nonce (24 bytes), ciphertext and tag.
//!
//! A nonce is drawn when something is sealed for the first time, and kept when it is sealed anew under another key: so it tells what
//! is sealed from what else might be, without a key. Under each key a nonce is still used for one text only.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use rand::Rng;
use secrecy::{ExposeSecret, SecretBox};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Invalid, OrganizationId};

const KEY_ID: usize = 4;
const NONCE: usize = 24;
/// What a check value holds, and what it is sealed for: no row, whose associated data have another length.
const CHECK: &[u8] = b"triggers: the secret key of this deployment";

/// A sealed secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl Sealed {
    /// What it was sealed with at first: it stays when the same is sealed anew, and is another when something else is.
    pub fn nonce(&self) -> &[u8] {
        self.0.get(KEY_ID..KEY_ID + NONCE).unwrap_or_default()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The key that seals and opens, and those that still open what they sealed.
pub struct Sealer {
    current: Key,
    former: Vec<Key>,
}

struct Key {
    cipher: XChaCha20Poly1305,
    id: KeyId,
}

/// What a sealed secret begins with: which key it was sealed under.
pub type KeyId = [u8; KEY_ID];

/// Why a secret does not open.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// It was sealed under another key.
    #[error(
        "the secret was sealed under another TRIGGERS_SECRET_KEY, which is not among TRIGGERS_FORMER_SECRET_KEYS"
    )]
    OtherKey,
    /// It was changed, or belongs to another row.
    #[error("the sealed secret is damaged or belongs to another row")]
    Damaged,
}

impl Key {
    fn from_base64(text: &str) -> Result<Self, Invalid> {
        let key: [u8; 32] = STANDARD
            .decode(text.trim())
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| {
                Invalid::new("must be the base64 of 32 bytes; make one with: openssl rand -base64 32")
            })?;
        let key = SecretBox::new(Box::new(key));
        let mut id = [0; KEY_ID];
        id.copy_from_slice(&Sha256::digest(key.expose_secret())[..KEY_ID]);
        Ok(Self {
            cipher: XChaCha20Poly1305::new(key.expose_secret().into()),
            id,
        })
    }
}

impl Sealer {
    /// From the base64 of 32 bytes, as `TRIGGERS_SECRET_KEY` has it.
    pub fn from_base64(text: &str) -> Result<Self, Invalid> {
        Ok(Self {
            current: Key::from_base64(text)?,
            former: Vec::new(),
        })
    }

    /// Opens, too, what was sealed under any of these, as `TRIGGERS_FORMER_SECRET_KEYS` has them: with commas between.
    pub fn and_former(mut self, texts: &str) -> Result<Self, Invalid> {
        for text in texts.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            self.former.push(Key::from_base64(text)?);
        }
        Ok(self)
    }

    /// Which key it seals with.
    pub const fn key_id(&self) -> KeyId {
        self.current.id
    }

    /// Seals anew, under the current key, what was sealed for the same row under any.
    pub fn reseal(
        &self,
        organization: OrganizationId,
        row: Uuid,
        sealed: &Sealed,
    ) -> Result<Sealed, OpenError> {
        let opened = self.open(organization, row, sealed)?;
        let mut nonce = [0; NONCE];
        nonce.copy_from_slice(sealed.nonce());
        Ok(self.seal_with(&associated(organization, row), &opened, nonce))
    }

    /// A new key, as base64.
    pub fn generate_base64() -> String {
        let mut key = [0u8; 32];
        rand::rng().fill_bytes(&mut key);
        STANDARD.encode(key)
    }

    /// Seals `secret` for one row of one organization.
    pub fn seal(&self, organization: OrganizationId, row: Uuid, secret: &[u8]) -> Sealed {
        self.seal_with(&associated(organization, row), secret, new_nonce())
    }

    /// A value that opens under this key alone, for a deployment to keep and know its key by.
    pub fn check_value(&self) -> Sealed {
        self.seal_with(CHECK, CHECK, new_nonce())
    }

    /// Whether this is the key that a [`Sealer::check_value`] was made by.
    pub fn check(&self, value: &Sealed) -> Result<(), OpenError> {
        self.open_with(CHECK, value).map(drop)
    }

    fn seal_with(&self, associated: &[u8], secret: &[u8], nonce: [u8; NONCE]) -> Sealed {
        let payload = Payload {
            msg: secret,
            aad: associated,
        };
        let sealed = self
            .current
            .cipher
            .encrypt((&nonce).into(), payload)
            .unwrap_or_else(|_| unreachable!("XChaCha20-Poly1305 seals any text shorter than 256 GiB"));
        Sealed([&self.current.id[..], &nonce[..], &sealed[..]].concat())
    }

    /// Opens what [`Sealer::seal`] made for the same row.
    pub fn open(
        &self,
        organization: OrganizationId,
        row: Uuid,
        sealed: &Sealed,
    ) -> Result<Vec<u8>, OpenError> {
        self.open_with(&associated(organization, row), sealed)
    }

    fn open_with(&self, associated: &[u8], sealed: &Sealed) -> Result<Vec<u8>, OpenError> {
        let (key_id, rest) = sealed.0.split_at_checked(KEY_ID).ok_or(OpenError::Damaged)?;
        let mut keys = std::iter::once(&self.current).chain(&self.former);
        let key = keys.find(|key| key.id == key_id).ok_or(OpenError::OtherKey)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>().ok_or(OpenError::Damaged)?;
        let payload = Payload {
            msg: ciphertext,
            aad: associated,
        };
        key.cipher
            .decrypt(nonce.into(), payload)
            .map_err(|_| OpenError::Damaged)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(…)")
    }
}

fn new_nonce() -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    rand::rng().fill_bytes(&mut nonce);
    nonce
}

fn associated(organization: OrganizationId, row: Uuid) -> [u8; 32] {
    let mut data = [0; 32];
    data[..16].copy_from_slice(organization.uuid().as_bytes());
    data[16..].copy_from_slice(row.as_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_where_it_was_sealed_for() {
        let sealer = Sealer::from_base64(&Sealer::generate_base64()).unwrap();
        let (org, row) = (OrganizationId::new(), Uuid::now_v7());
        let boxed = sealer.seal(org, row, b"whsec");
        assert_eq!(sealer.open(org, row, &boxed).unwrap(), b"whsec");
        assert_eq!(
            sealer.open(OrganizationId::new(), row, &boxed),
            Err(OpenError::Damaged)
        );
        assert_eq!(sealer.open(org, Uuid::now_v7(), &boxed), Err(OpenError::Damaged));
        let other = Sealer::from_base64(&Sealer::generate_base64()).unwrap();
        assert_eq!(other.open(org, row, &boxed), Err(OpenError::OtherKey));
        for cut in 0..boxed.0.len() {
            assert!(sealer.open(org, row, &Sealed(boxed.0[..cut].to_vec())).is_err());
        }
        assert_ne!(sealer.seal(org, row, b"whsec"), boxed, "a nonce is used once");
        assert!(Sealer::from_base64("c2hvcnQ=").is_err());
    }

    #[test]
    fn former_keys_open_and_do_not_seal() {
        let [old, new] = [(); 2].map(|()| Sealer::generate_base64());
        let before = Sealer::from_base64(&old).unwrap();
        let both = Sealer::from_base64(&new)
            .unwrap()
            .and_former(&format!(" {old} ,"))
            .unwrap();
        let after = Sealer::from_base64(&new).unwrap();
        let (org, row) = (OrganizationId::new(), Uuid::now_v7());
        let sealed = before.seal(org, row, b"whsec");
        assert_eq!(both.open(org, row, &sealed).unwrap(), b"whsec");
        assert_eq!(both.check(&before.check_value()), Ok(()));
        let again = both.reseal(org, row, &sealed).unwrap();
        assert_eq!(after.open(org, row, &again).unwrap(), b"whsec");
        assert_eq!(before.open(org, row, &again), Err(OpenError::OtherKey));
        assert_eq!(
            again.nonce(),
            sealed.nonce(),
            "by it one knows that it is the same"
        );
        assert!(Sealer::from_base64(&new).unwrap().and_former("c2hvcnQ=").is_err());
    }

    #[test]
    fn a_check_value_knows_its_key() {
        let [sealer, other] = [(); 2].map(|()| Sealer::from_base64(&Sealer::generate_base64()).unwrap());
        let value = sealer.check_value();
        assert_eq!(sealer.check(&value), Ok(()));
        assert_eq!(other.check(&value), Err(OpenError::OtherKey));
        // The same key id, by chance or by design, is not enough.
        let mut forged = value.clone();
        forged.0[..KEY_ID].copy_from_slice(&other.key_id());
        assert_eq!(other.check(&forged), Err(OpenError::Damaged));
        let of_a_row = sealer.seal(OrganizationId::new(), Uuid::now_v7(), CHECK);
        assert_eq!(sealer.check(&of_a_row), Err(OpenError::Damaged));
    }
}
