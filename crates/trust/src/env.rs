//! Env values, encrypted by the client to the app's key and opened inside the guest alone.
//!
//! The one rule: what is decrypted here is wiped when dropped, and an error never quotes it. The scheme (X25519, the raw
//! shared secret as AES-256-GCM key, `ephemeral public key | nonce | ciphertext and tag`) is fixed by the official clients.

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, Zeroizing};

/// Longest blob that is accepted, in bytes.
pub const MAX_BLOB: usize = 256 * 1024;

const PUBLIC: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("the encrypted env is longer than {MAX_BLOB} bytes")]
    TooLong,
    #[error("the encrypted env is too short to be one")]
    TooShort,
    #[error("the encrypted env was not made for this app, or was changed on the way")]
    NotForThisKey,
    #[error("the encrypted env holds no list of names and values")]
    Malformed,
    #[error(transparent)]
    NoEntropy(#[from] crate::NoEntropy),
}

#[derive(Serialize, Deserialize)]
struct Document {
    env: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: String,
    value: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

/// Opens what a client made for the key. Names come in the client's order; where one repeats, the last one counts.
pub fn decrypt(env_key: &[u8; 32], blob: &[u8]) -> Result<Vec<(String, String)>, EnvError> {
    if blob.len() > MAX_BLOB {
        return Err(EnvError::TooLong);
    }
    let (public, rest) = blob.split_at_checked(PUBLIC).ok_or(EnvError::TooShort)?;
    let (nonce, ciphertext) = rest.split_at_checked(NONCE).ok_or(EnvError::TooShort)?;
    if ciphertext.len() < TAG {
        return Err(EnvError::TooShort);
    }
    let public: [u8; PUBLIC] = public.try_into().map_err(|_| EnvError::TooShort)?;
    let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| EnvError::TooShort)?;
    let cipher = cipher(&StaticSecret::from(*env_key), &public)?;
    let plain =
        cipher.decrypt(&Nonce::from(nonce), ciphertext).map(Zeroizing::new).map_err(|_| EnvError::NotForThisKey)?;
    let document: Document = serde_json::from_slice(&plain).map_err(|_| EnvError::Malformed)?;
    Ok(document
        .env
        .into_iter()
        .map(|mut entry| (std::mem::take(&mut entry.key), std::mem::take(&mut entry.value)))
        .collect())
}

/// What a client does; here for tests and for our own command line.
pub fn encrypt(env_public_key: &[u8; 32], pairs: &[(String, String)]) -> Result<Vec<u8>, EnvError> {
    let document =
        Document { env: pairs.iter().map(|(key, value)| Entry { key: key.clone(), value: value.clone() }).collect() };
    let plain = Zeroizing::new(serde_json::to_vec(&document).map_err(|_| EnvError::Malformed)?);
    if plain.len() + PUBLIC + NONCE + TAG > MAX_BLOB {
        return Err(EnvError::TooLong);
    }
    let ephemeral = StaticSecret::from(crate::random::<32>()?);
    let nonce = crate::random::<NONCE>()?;
    let ciphertext = cipher(&ephemeral, env_public_key)?
        .encrypt(&Nonce::from(nonce), plain.as_slice())
        .map_err(|_| EnvError::TooLong)?;
    Ok([PublicKey::from(&ephemeral).as_bytes(), &nonce[..], &ciphertext].concat())
}

fn cipher(secret: &StaticSecret, public: &[u8; 32]) -> Result<Aes256Gcm, EnvError> {
    let shared = secret.diffie_hellman(&PublicKey::from(*public));
    // A point of small order gives the same secret whatever our key is.
    if !shared.was_contributory() {
        return Err(EnvError::NotForThisKey);
    }
    Ok(Aes256Gcm::new(&Key::<Aes256Gcm>::from(*shared.as_bytes())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> ([u8; 32], [u8; 32]) {
        let key = crate::kms::Root::from_seed(&[5; 32]).env_key(&[6; 20]);
        (key.secret, key.public)
    }

    fn pairs() -> Vec<(String, String)> {
        vec![("GREETING".into(), "hé \"llo\"\n".into()), ("EMPTY".into(), String::new())]
    }

    #[test]
    fn only_the_app_reads_it() {
        let (secret, public) = key();
        let blob = encrypt(&public, &pairs()).unwrap();
        assert_eq!(decrypt(&secret, &blob), Ok(pairs()));
        assert_eq!(decrypt(&[1; 32], &blob), Err(EnvError::NotForThisKey));
        assert_ne!(blob, encrypt(&public, &pairs()).unwrap());
    }

    #[test]
    fn no_byte_can_be_changed() {
        let (secret, public) = key();
        let blob = encrypt(&public, &pairs()).unwrap();
        for i in 0..blob.len() {
            let mut changed = blob.clone();
            changed[i] ^= 1;
            assert_eq!(decrypt(&secret, &changed), Err(EnvError::NotForThisKey), "byte {i}");
        }
    }

    #[test]
    fn refuses_what_is_no_env() {
        let (secret, public) = key();
        assert_eq!(decrypt(&secret, &[0; 59]), Err(EnvError::TooShort));
        assert_eq!(decrypt(&secret, &vec![0; MAX_BLOB + 1]), Err(EnvError::TooLong));
        assert_eq!(decrypt(&secret, &[0; 60]), Err(EnvError::NotForThisKey));
        let long = [("A".to_owned(), "x".repeat(MAX_BLOB))];
        assert_eq!(encrypt(&public, &long), Err(EnvError::TooLong));
        for plain in ["", "[]", r#"{"env":[{"key":"A"}]}"#, r#"{"env":{"A":"1"}}"#] {
            let ephemeral = StaticSecret::from([9; 32]);
            let sealed = cipher(&ephemeral, &public).unwrap().encrypt(&Nonce::from([0; 12]), plain.as_bytes()).unwrap();
            let blob = [PublicKey::from(&ephemeral).as_bytes(), &[0; 12][..], &sealed].concat();
            assert_eq!(decrypt(&secret, &blob), Err(EnvError::Malformed), "{plain}");
        }
    }

    proptest! {
        #[test]
        fn any_env_comes_back(env in prop::collection::vec(("[A-Za-z_][A-Za-z0-9_]{0,20}", ".{0,200}"), 0..20)) {
            let (secret, public) = key();
            prop_assert_eq!(decrypt(&secret, &encrypt(&public, &env).unwrap()), Ok(env));
        }

        #[test]
        fn any_bytes_are_refused(blob in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decrypt(&key().0, &blob).is_err());
        }
    }
}
