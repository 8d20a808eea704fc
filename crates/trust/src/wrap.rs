//! Secrets of the installation, wrapped by the master key so that a copy of the database alone is worth nothing.
//!
//! The one rule: a wrapped secret is bound to its name, so no row can be put in the place of another. The check value,
//! stored beside the secrets, tells "this is another installation's master key" from "this row is damaged".

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const NONCE: usize = 12;
/// First byte of a wrapped secret, so that the scheme can change one day.
const FORMAT: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    #[error("the master key is not 64 hex digits")]
    NotAKey,
    #[error("the master key belongs to another installation")]
    WrongKey,
    #[error("the wrapped secret \"{0}\" is damaged")]
    Damaged(String),
    #[error(transparent)]
    NoEntropy(#[from] crate::NoEntropy),
}

/// The key of keys. Its file holds 64 hex digits.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; 32]);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

impl MasterKey {
    pub fn generate() -> Result<Self, WrapError> {
        Ok(Self(crate::random()?))
    }

    /// Reads the text of a master key file.
    pub fn parse(text: &str) -> Result<Self, WrapError> {
        let mut key = Self([0; 32]);
        hex::decode_to_slice(text.trim(), &mut key.0).map_err(|_| WrapError::NotAKey)?;
        Ok(key)
    }

    /// The text of a master key file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(hex::encode(self.0));
        text.push('\n');
        text
    }

    /// Stored in the clear beside the secrets; says nothing about the key.
    pub fn check_value(&self) -> [u8; 16] {
        let mut value = [0; 16];
        value.copy_from_slice(&self.derive(b"check value")[..16]);
        value
    }

    /// Fails when `check_value` was made by another master key.
    pub fn verify(&self, check_value: &[u8]) -> Result<(), WrapError> {
        let same: bool = self.check_value().ct_eq(check_value).into();
        if same { Ok(()) } else { Err(WrapError::WrongKey) }
    }

    pub fn wrap(&self, name: &str, secret: &[u8]) -> Result<Vec<u8>, WrapError> {
        let nonce = crate::random::<NONCE>()?;
        let sealed = self
            .cipher()
            .encrypt(&Nonce::from(nonce), Payload { msg: secret, aad: name.as_bytes() })
            .map_err(|_| WrapError::Damaged(name.to_owned()))?;
        Ok([&[FORMAT][..], &nonce, &sealed].concat())
    }

    pub fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, WrapError> {
        let damaged = || WrapError::Damaged(name.to_owned());
        let rest = wrapped.strip_prefix(&[FORMAT]).ok_or_else(damaged)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE).ok_or_else(damaged)?;
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| damaged())?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        self.cipher().decrypt(&Nonce::from(nonce), payload).map(Zeroizing::new).map_err(|_| damaged())
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&Key::<Aes256Gcm>::from(*self.derive(b"wrap")))
    }

    /// A key for one use: the master key itself encrypts nothing.
    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(b"holdfast-master-key"), &self.0)
            .expand(purpose, key.as_mut())
            .expect("32 bytes are within HKDF's limit of 8160");
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_and_unwraps() {
        let key = MasterKey::generate().unwrap();
        let wrapped = key.wrap("kms_root", b"secret").unwrap();
        assert_ne!(wrapped, key.wrap("kms_root", b"secret").unwrap());
        assert_eq!(key.unwrap("kms_root", &wrapped).unwrap().as_slice(), b"secret");
        assert_eq!(key.unwrap("cursor_key", &wrapped), Err(WrapError::Damaged("cursor_key".into())));
        for i in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[i] ^= 1;
            assert!(key.unwrap("kms_root", &changed).is_err(), "byte {i}");
            assert!(key.unwrap("kms_root", &wrapped[..i]).is_err(), "length {i}");
        }
    }

    #[test]
    fn a_wrong_key_is_told_from_damage() {
        let (one, two) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        assert_eq!(one.verify(&one.check_value()), Ok(()));
        assert_eq!(two.verify(&one.check_value()), Err(WrapError::WrongKey));
        assert_eq!(one.verify(b"short"), Err(WrapError::WrongKey));
    }

    #[test]
    fn the_key_file_round_trips() {
        let key = MasterKey::generate().unwrap();
        let text = key.to_text();
        assert_eq!(text.len(), 65);
        assert_eq!(MasterKey::parse(&text).unwrap().check_value(), key.check_value());
        for text in ["", "00", &"g".repeat(64), &"0".repeat(66)] {
            assert_eq!(MasterKey::parse(text).err(), Some(WrapError::NotAKey), "{text}");
        }
        assert_eq!(format!("{key:?}"), "MasterKey(..)");
    }
}
