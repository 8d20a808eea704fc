//! Who is asking.
//!
//! The one rule: a secret is looked up by its sha256, whole. What differs between a wrong key and a right one is an index
//! look-up of a hash that nobody can steer, so the time taken says nothing of how wrong a key is; and every reason not to
//! let somebody in (unknown, revoked, expired, not valid yet, from a wrong address, shown the wrong way) has one answer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_store::api_keys::{Kind, api_keys_used};
use holdfast_store::tenancy::Principal;
use sha2::{Digest, Sha256};

use crate::Control;

/// sha256 of a random secret, as the database keeps it. No salt and no stretching: the secret has 256 random bits.
pub fn secret_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// A credential as a request showed it.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    pub secret: &'a str,
    /// It came as a cookie: browsers send those by themselves, so only a session may.
    pub is_cookie: bool,
    /// The other end of the connection.
    pub from: Option<IpAddr>,
}

/// When credentials were used last, until that is written. May vanish: then it was a little earlier.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<i64, i64>>);

impl Uses {
    fn note(&self, key: i64, now: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, now.micros());
    }

    /// Microseconds, if it was used since that was last written.
    pub(crate) fn of(&self, key: i64) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied()
    }

    /// What is to be written for a credential whose secret was replaced: nothing.
    pub(crate) fn forget(&self, key: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    fn take(&self) -> Vec<(i64, i64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

impl Control {
    /// The holder of an API key that came in a header, from an address that is not known.
    pub async fn authenticate(&self, key: &str) -> Result<Principal, Error> {
        self.authenticate_shown(Presented { secret: key, is_cookie: false, from: None }).await
    }

    /// The holder of a credential, if it may be used like this.
    pub async fn authenticate_shown(&self, shown: Presented<'_>) -> Result<Principal, Error> {
        let now = self.now();
        let found = self.store.principal(&secret_hash(shown.secret), now).await?;
        let found = found.filter(|who| (who.key_kind == Kind::Session.word()) == shown.is_cookie);
        let who = found.ok_or_else(|| Error::new(Code::Unauthenticated, "The API key is not valid."))?;
        if !who.limits.admit(shown.from) {
            tracing::warn!(key = who.api_key_id, from = ?shown.from, "a credential was used from an address that it is not for");
            return Err(Error::new(Code::Unauthenticated, "The API key is not valid."));
        }
        self.uses.note(who.api_key_id, now);
        Ok(who)
    }

    /// Writes down when credentials were used last.
    pub async fn uses_write(&self) -> Result<(), Error> {
        let used = self.uses.take();
        if used.is_empty() {
            return Ok(());
        }
        let mut tx = self.store.begin().await?;
        api_keys_used(&mut tx, &used).await?;
        holdfast_store::commit(tx).await
    }

    /// The token row behind a node token.
    pub async fn authenticate_node(&self, token: &str) -> Result<i64, Error> {
        self.store
            .node_token(&secret_hash(token))
            .await?
            .ok_or_else(|| Error::new(Code::Unauthenticated, "The node token is not valid."))
    }
}
