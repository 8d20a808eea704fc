//! Passwords: how they are kept and checked, and the login with one.
//!
//! The one rule: a login costs the same whoever it is for. A name that nobody has, and a user without a password, are
//! checked against a hash that no password has; so neither the answer nor its time tells who is here. What that costs is
//! bounded: hashing happens on threads of its own, few at a time, and a queue that is full refuses.

use std::net::IpAddr;
use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use holdfast_model::error::{Code, Error};
use holdfast_store::Store;
use holdfast_store::api_keys::logins_end;
use holdfast_store::passwords::password_set;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::guard::Denied;
use crate::{Clock, Control, Principal};

/// 19 MiB and two passes: what OWASP recommends as the least for argon2id.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// Passwords that are hashed at the same time.
const AT_ONCE: usize = 2;
/// Logins that may wait for their turn.
const QUEUE: usize = 32;
/// Of the same cost as a real one. It is 32 random bytes, so no password is known to have it.
const NOBODYS: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$rYD1bGmF9mWmT3Qk0Zb5xA$Vnm3pUo1v3YkqZ0hC8u2jS5wJ7rX4tB6eL9aD1fG0iM";
/// Lengths that a password may have, in bytes. The upper bound is one of work, not of taste.
const LENGTHS: std::ops::RangeInclusive<usize> = 10..=1024;

/// Who hashes at the moment, and who waits.
pub struct Hashing {
    working: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { working: Arc::new(Semaphore::new(AT_ONCE)), admitted: Arc::new(Semaphore::new(AT_ONCE + QUEUE)) }
    }
}

fn argon2() -> Result<Argon2<'static>, Error> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(Error::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &str) -> Result<String, Error> {
    Ok(argon2()?.hash_password(password.as_bytes()).map_err(Error::internal)?.to_string())
}

fn matches(password: &str, hash: &str) -> Result<bool, Error> {
    let hash = PasswordHash::new(hash).map_err(Error::internal)?;
    Ok(argon2()?.verify_password(password.as_bytes(), &hash).is_ok())
}

impl Hashing {
    /// Whether the password has this hash; `None` costs as much and is false.
    async fn check(&self, password: Zeroizing<String>, hash: Option<String>) -> Result<bool, Error> {
        let busy = |_| Error::new(Code::Unavailable, "Too many logins at once.");
        let _admitted = self.admitted.clone().try_acquire_owned().map_err(busy)?;
        let working = self.working.clone().acquire_owned().await.map_err(Error::internal)?;
        let checked = tokio::task::spawn_blocking(move || {
            // Held by the work itself: whoever hangs up leaves their place free no sooner than it is.
            let _working = working;
            let real = hash.is_some();
            matches(&password, hash.as_deref().unwrap_or(NOBODYS)).map(|fits| fits && real)
        });
        checked.await.map_err(Error::internal)?
    }
}

impl Control {
    /// Whoever has this name or e-mail address and this password, in the workspace that they begin in. They have no
    /// credential yet.
    pub async fn login(
        &self,
        name: &str,
        password: Zeroizing<String>,
        from: Option<IpAddr>,
    ) -> Result<Principal, Denied> {
        self.guard.login(from, name)?;
        let failed = || Denied::Error(Error::new(Code::LoginFailed, "Incorrect username or password."));
        let known = self.store.password_of(name.trim()).await?;
        let (user, hash) = known.map_or((None, None), |(user, hash)| (Some(user), hash));
        let fits = password.len() <= *LENGTHS.end() && self.hashing.check(password, hash).await?;
        let (true, Some(user)) = (fits, user) else {
            // Without the name: people type their password there.
            tracing::info!(?from, "a login failed");
            return Err(failed());
        };
        self.at_home(user).await?.ok_or_else(failed)
    }

    /// A user in the workspace that they begin in, before they have a credential. `None`: they belong to none.
    pub(crate) async fn at_home(&self, user: i64) -> Result<Option<Principal>, Error> {
        match self.store.home_workspace(user).await? {
            Some(workspace) => self.store.principal_of(user, workspace).await,
            None => Ok(None),
        }
    }
}

/// Gives a user a password, and ends what the one before gave: their sessions, and tokens that it was exchanged for. Works
/// beside a running server. False when nobody has this name or address.
pub async fn set(store: &Store, clock: &dyn Clock, name: &str, password: &str) -> Result<bool, Error> {
    if !LENGTHS.contains(&password.len()) {
        let (least, most) = (LENGTHS.start(), LENGTHS.end());
        return Err(Error::field("body", "password", "value_error", format!("must have {least} to {most} bytes")));
    }
    let Some(user) = store.user_of_login(name).await? else { return Ok(false) };
    let hash = hash(password)?;
    let now = clock.now();
    let mut tx = store.begin().await?;
    password_set(&mut tx, user, &hash, now).await?;
    logins_end(&mut tx, user, now).await?;
    holdfast_store::commit(tx).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_fits_its_password_only() {
        let kept = hash("correct horse battery").expect("a hash");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(matches("correct horse battery", &kept).expect("it is checked"));
        assert!(!matches("correct horse batterz", &kept).expect("it is checked"));
        assert_ne!(kept, hash("correct horse battery").expect("a hash"));
    }

    /// The path of a name that nobody has: the same function, with the same parameters, on a hash that is well formed.
    #[test]
    fn nobodys_password_costs_as_much_as_anybodys() {
        let (nobody, real) =
            (PasswordHash::new(NOBODYS).expect("a hash"), hash("correct horse battery").expect("a hash"));
        let real = PasswordHash::new(&real).expect("a hash");
        assert_eq!((nobody.algorithm, nobody.version), (real.algorithm, real.version));
        assert_eq!(nobody.params.to_string(), real.params.to_string());
        let lengths = |hash: &PasswordHash| (hash.salt.as_ref().map(|s| s.len()), hash.hash.as_ref().map(|h| h.len()));
        assert_eq!(lengths(&nobody), lengths(&real));
        assert!(!matches("", NOBODYS).expect("it is checked"));
    }

    #[tokio::test]
    async fn who_is_too_many_is_refused_at_once() {
        let hashing = Hashing::default();
        let _all = hashing.working.clone().acquire_many_owned(AT_ONCE as u32).await.expect("permits");
        let _queue = hashing.admitted.clone().acquire_many_owned((AT_ONCE + QUEUE) as u32).await.expect("permits");
        let error = hashing.check(Zeroizing::new("x".to_owned()), None).await.expect_err("the queue is full");
        assert_eq!(error.code, Code::Unavailable);
    }
}
