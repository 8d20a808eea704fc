//! Login of a device that has no browser (RFC 8628): it shows a code, somebody who is signed in types it, and the device is
//! given a token in their name.
//!
//! The one rule: a code works once, for a short time, and what it gives is never more than the credential of whoever let it
//! in; and of neither code more than its sha256 is kept, so nobody who reads the database gets in.
//!
//! ```text
//!              approve                 asked for by the device
//!  pending ---------------> approved ---------------> done
//!     |        deny
//!     +-------------------> denied            all of them: forgotten when their time is over
//! ```

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::limits::Limits;
use holdfast_store::Store;
use holdfast_store::api_keys::Kind;
use holdfast_store::audit::audit_insert;
use holdfast_store::device_logins::{self as rows, DeviceLogin};
use zeroize::Zeroizing;

use crate::guard::Denied;
use crate::identity::secret_hash;
use crate::tokens::{Login, entry, issue};
use crate::{Control, Principal, RequestInfo};

/// How long a code works.
pub const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// How long the device's token works.
pub const TOKEN: Duration = Duration::from_secs(7_776_000);
/// Seconds between two questions of a device.
const INTERVAL: i64 = 5;
/// A device that asks this much too early is forgiven: clocks and networks are not exact.
const TOLERANCE: Duration = Duration::from_secs(1);
/// Devices that may wait at a time.
const MOST: i64 = 5000;
/// Letters of a user's code: no vowels, so no words, and none that looks like another.
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// What a device was told.
pub struct Begun {
    pub device_code: Zeroizing<String>,
    /// `BCDF-GHJK`
    pub user_code: String,
    pub expires_in: Duration,
    pub interval: i64,
}

/// What a device that asks is told.
pub enum Asked {
    Pending,
    SlowDown,
    Expired,
    Denied,
    /// No device has this code, or it was used.
    Unknown,
    Token(Zeroizing<String>),
}

/// A device that waits, as whoever is to let it in sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting {
    pub client: String,
    pub client_address: Option<String>,
    pub since: Timestamp,
}

/// The code as it was shown: people leave out the dash and type small letters. `None`: it cannot be one.
pub fn user_code(typed: &str) -> Option<String> {
    let letters: String =
        typed.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_uppercase()).collect();
    let fits = letters.len() == 8 && letters.bytes().all(|b| LETTERS.contains(&b));
    fits.then(|| format!("{}-{}", &letters[..4], &letters[4..]))
}

fn random_user_code() -> Result<String, Error> {
    let random = holdfast_trust::random::<64>().map_err(Error::internal)?;
    // Of the 256 values of a byte the last 16 would make some letters likelier.
    let letters: Vec<u8> = random.iter().filter(|b| **b < 240).map(|b| LETTERS[usize::from(b % 20)]).take(8).collect();
    user_code(&String::from_utf8_lossy(&letters)).ok_or_else(|| Error::internal("no code came of 64 random bytes"))
}

/// What a device may do in somebody's name: everything but to run the installation.
fn limits_of_devices() -> Limits {
    Limits::to(Action::ALL.into_iter().filter(|action| *action != Action::RunInstallation))
}

fn unknown() -> Error {
    Error::new(Code::DeviceCodeUnknown, "No device waits with this code.")
}

impl Control {
    /// A device wants to be let in. `client` is what it calls itself.
    pub async fn device_begin(&self, client: &str, from: Option<IpAddr>) -> Result<Begun, Denied> {
        self.guard.device(from)?;
        let client = client.trim();
        if client.is_empty() || client.len() > 100 || client.chars().any(char::is_control) {
            return Err(Error::field("body", "client_id", "value_error", "must have 1 to 100 characters").into());
        }
        let now = self.now();
        let random = Zeroizing::new(holdfast_trust::random::<32>().map_err(Error::internal)?);
        let device_code = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_slice()));
        let mut tx = self.store.begin().await?;
        // Kept for as long again as they worked, so that a device that is late hears why.
        rows::device_logins_forget(&mut tx, Timestamp(now.micros() - i64::try_from(LIFETIME.as_micros()).unwrap_or(0)))
            .await?;
        if rows::device_logins_count(&mut tx, now).await? >= MOST {
            return Err(Denied::Wait(Duration::from_secs(60)));
        }
        for _ in 0..5 {
            let code = random_user_code()?;
            let hashes = (&*secret_hash(&device_code), &*secret_hash(&code));
            let address = from.map(|address| address.to_string());
            let times = (now, now.plus(LIFETIME));
            if rows::device_login_insert(&mut tx, hashes, client, address.as_deref(), INTERVAL, times).await? {
                holdfast_store::commit(tx).await?;
                return Ok(Begun { device_code, user_code: code, expires_in: LIFETIME, interval: INTERVAL });
            }
        }
        Err(Error::internal("five user codes were taken").into())
    }

    /// A device asks whether it was let in; if so this is its token, and the last time that it is told.
    pub async fn device_ask(&self, device_code: &str, info: &RequestInfo) -> Result<Asked, Error> {
        let hash = secret_hash(device_code);
        if !self.store.device_login_exists(&hash).await? {
            return Ok(Asked::Unknown);
        }
        let now = self.now();
        let mut tx = self.store.begin().await?;
        let Some(device) = rows::device_login_get(&mut tx, &hash).await? else { return Ok(Asked::Unknown) };
        let over = device.expires_at <= now.micros();
        match device.state.as_str() {
            "pending" | "approved" if over => Ok(Asked::Expired),
            "pending" => {
                let early = asks_too_early(&device, now);
                // RFC 8628, 3.5: five seconds more, from now on.
                let interval = if early { (device.interval_s + 5).min(60) } else { device.interval_s };
                rows::device_login_asked(&mut tx, device.id, interval, now).await?;
                holdfast_store::commit(tx).await?;
                Ok(if early { Asked::SlowDown } else { Asked::Pending })
            }
            "denied" => Ok(Asked::Denied),
            "approved" => {
                let ids = device.user_id.zip(device.workspace_id);
                let (user, workspace) = ids.ok_or_else(|| Error::internal("an approval without a user"))?;
                // They may have left meanwhile.
                let Some(who) = self.store.principal_of(user, workspace).await? else { return Ok(Asked::Denied) };
                if !rows::device_login_done(&mut tx, device.id).await? {
                    return Ok(Asked::Unknown);
                }
                let name = format!("Device login: {}", device.client);
                let name: String = name.chars().take(100).collect();
                let (kind, limits) = (Kind::Device, &device.limits);
                let made = Login { kind, name: &name, limits, lifetime: Some(TOKEN), parent_hash: None };
                let (_, secret) = issue(&mut tx, &who, info, made, now).await?;
                holdfast_store::commit(tx).await?;
                Ok(Asked::Token(secret))
            }
            _ => Ok(Asked::Unknown),
        }
    }

    /// The device that waits with the code that somebody typed.
    pub async fn device_waiting(&self, typed: &str, from: Option<IpAddr>) -> Result<Waiting, Denied> {
        self.guard.code(from)?;
        let device = waiting(&self.store, typed, self.now()).await?;
        let DeviceLogin { client, client_address, created_at, .. } = device;
        Ok(Waiting { client, client_address, since: Timestamp(created_at) })
    }

    /// Before a key that was typed into a page is looked at.
    pub fn page_attempt(&self, from: Option<IpAddr>) -> Result<(), Denied> {
        self.guard.code(from)
    }

    /// Lets the device in, in the caller's name and within the limits of their credential, or turns it away.
    pub async fn device_decide(
        &self,
        who: &Principal,
        info: &RequestInfo,
        typed: &str,
        approve: bool,
        from: Option<IpAddr>,
    ) -> Result<(), Denied> {
        who.require(Action::Own)?;
        self.guard.code(from)?;
        Ok(decide(&self.store, who, info, typed, approve, self.now()).await?)
    }
}

async fn waiting(store: &Store, typed: &str, now: Timestamp) -> Result<DeviceLogin, Error> {
    let code = user_code(typed).ok_or_else(unknown)?;
    let device = store.device_login_of_user_code(&secret_hash(&code), now).await?;
    device.filter(|device| device.state == "pending").ok_or_else(unknown)
}

/// The decision itself. Works beside a running server.
pub async fn decide(
    store: &Store,
    who: &Principal,
    info: &RequestInfo,
    typed: &str,
    approve: bool,
    now: Timestamp,
) -> Result<(), Error> {
    let device = waiting(store, typed, now).await?;
    let mut tx = store.begin().await?;
    let decided = if approve {
        let limits = who.limits.narrowed(&limits_of_devices());
        rows::device_login_approve(&mut tx, device.id, (who.user_id, who.workspace_id), &limits, now).await?
    } else {
        rows::device_login_deny(&mut tx, device.id, now).await?
    };
    if !decided {
        return Err(unknown());
    }
    let action = if approve { "device.approve" } else { "device.deny" };
    audit_insert(&mut tx, who, info, entry(action, &device.id.to_string(), 200), now).await?;
    holdfast_store::commit(tx).await
}

fn asks_too_early(device: &DeviceLogin, now: Timestamp) -> bool {
    let least = Duration::from_secs(device.interval_s.unsigned_abs()).saturating_sub(TOLERANCE);
    device.asked_at.is_some_and(|last| now.since(Timestamp(last)) < least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_easy_to_type() {
        for _ in 0..100 {
            let code = random_user_code().expect("a code");
            assert_eq!(user_code(&code), Some(code.clone()));
            let typed = format!(" {} ", code.replace('-', "").to_lowercase());
            assert_eq!(user_code(&typed), Some(code));
        }
        for text in ["", "BCDF", "BCDF-GHJA", "BCDF-GHJ1", "BCDF-GHJKL", "ÄÄÄÄ"] {
            assert_eq!(user_code(text), None, "{text}");
        }
    }

    #[test]
    fn a_device_does_not_run_the_installation() {
        let limits = limits_of_devices();
        assert!(!limits.allow(Action::RunInstallation));
        assert!(limits.allow(Action::WriteVms) && limits.allow(Action::Own));
    }
}
