//! Opaque signed tokens (cursors, log URLs) and API keys.
//!
//! The one rule: everything secret is compared in constant time, and a token of one purpose is no token of another: the
//! purpose is signed but not carried.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Starts every API key, as clients' users know it.
pub const API_KEY_PREFIX: &str = "phak_";

const TAG: usize = 32;

/// The token was changed, made with another key or for another purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is not valid")]
pub struct InvalidToken;

/// `payload` and its signature, in base64url. The payload can be read by whoever holds the token.
pub fn sign(key: &[u8; 32], purpose: &str, payload: &[u8]) -> String {
    let tag = mac(key, purpose, payload).finalize().into_bytes();
    URL_SAFE_NO_PAD.encode([payload, &tag[..]].concat())
}

/// The payload of a token that [`sign`] made with the same key for the same purpose.
pub fn verify(key: &[u8; 32], purpose: &str, token: &str) -> Result<Vec<u8>, InvalidToken> {
    let mut bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidToken)?;
    let length = bytes.len().checked_sub(TAG).ok_or(InvalidToken)?;
    let (payload, tag) = bytes.split_at(length);
    mac(key, purpose, payload).verify_slice(tag).map_err(|_| InvalidToken)?;
    bytes.truncate(length);
    Ok(bytes)
}

fn mac(key: &[u8; 32], purpose: &str, payload: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    // The length keeps ("a", "bc") and ("ab", "c") apart.
    mac.update(&(purpose.len() as u64).to_be_bytes());
    mac.update(purpose.as_bytes());
    mac.update(payload);
    mac
}

/// What the database keeps of an API key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyHash(pub [u8; 32]);

impl ApiKeyHash {
    /// 256 random bits need no slow hash.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    pub fn matches(&self, key: &str) -> bool {
        equal(&self.0, &Self::of(key).0)
    }
}

impl fmt::Debug for ApiKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeyHash(..)")
    }
}

/// A new API key: the prefix and 256 random bits.
pub fn api_key() -> Result<Zeroizing<String>, crate::NoEntropy> {
    let bits = Zeroizing::new(crate::random::<32>()?);
    Ok(Zeroizing::new(format!("{API_KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(bits.as_ref()))))
}

/// Whether two secrets are the same; takes as long when they differ early as when they differ late.
pub fn equal(one: &[u8], two: &[u8]) -> bool {
    one.ct_eq(two).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; 32] = [1; 32];

    #[test]
    fn a_token_is_bound_to_key_and_purpose() {
        let token = sign(&KEY, "cursor", b"page 2");
        assert_eq!(verify(&KEY, "cursor", &token).as_deref(), Ok(&b"page 2"[..]));
        assert_eq!(verify(&KEY, "log", &token), Err(InvalidToken));
        assert_eq!(verify(&[2; 32], "cursor", &token), Err(InvalidToken));
        assert_ne!(sign(&KEY, "ab", b"c"), sign(&KEY, "a", b"bc"));
        for text in ["", "!", "AAAA", &format!("{token}A"), &token[1..]] {
            assert_eq!(verify(&KEY, "cursor", text), Err(InvalidToken), "{text}");
        }
    }

    #[test]
    fn api_keys_are_unlike_and_recognised() {
        let (one, two) = (api_key().unwrap(), api_key().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 5 + 43);
        assert!(one.starts_with(API_KEY_PREFIX));
        assert!(ApiKeyHash::of(&one).matches(&one));
        assert!(!ApiKeyHash::of(&one).matches(&two));
    }

    proptest! {
        #[test]
        fn no_character_can_be_changed(payload in prop::collection::vec(any::<u8>(), 0..60), at in any::<prop::sample::Index>()) {
            let token = sign(&KEY, "t", &payload);
            prop_assert_eq!(verify(&KEY, "t", &token), Ok(payload));
            let at = at.index(token.len());
            let mut changed = token.into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(verify(&KEY, "t", &changed), Err(InvalidToken));
        }
    }
}
