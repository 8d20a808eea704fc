//! A login that is on its way, as the browser keeps it.
//!
//! The one rule: state, nonce and verifier follow from the cookie's 32 bytes and from nothing else, each by a purpose of its
//! own; so what travels through the provider (state, nonce) says nothing of the verifier or of the cookie.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_trust::token;
use zeroize::Zeroizing;

use super::LIFETIME;

const PURPOSE: &str = "oidc login";
/// Longer pages to come back to are not kept: a cookie has room for 4,096 bytes.
const LONGEST_NEXT: usize = 1024;
const TIME: usize = 8;
const SECRET: usize = 32;

/// A login between its two halves.
pub struct Pending {
    since: Timestamp,
    secret: Zeroizing<[u8; SECRET]>,
    /// Path to go to afterwards.
    pub next: String,
}

/// The answer belongs to no login of this browser. One error for all reasons.
pub(super) fn foreign() -> Error {
    Error::new(Code::OidcState, "This browser has begun no such login, or it was used up.")
}

impl Pending {
    pub fn new(next: &str, now: Timestamp) -> Result<Self, Error> {
        let secret = Zeroizing::new(holdfast_trust::random::<SECRET>().map_err(Error::internal)?);
        let next = if next.len() <= LONGEST_NEXT { next } else { "/" };
        Ok(Self { since: now, secret, next: next.to_owned() })
    }

    /// For the cookie.
    pub fn sealed(&self, key: &[u8; 32]) -> Zeroizing<String> {
        let time = self.since.micros().to_be_bytes();
        let payload = Zeroizing::new([&time[..], self.secret.as_slice(), self.next.as_bytes()].concat());
        Zeroizing::new(token::sign(key, PURPOSE, &payload))
    }

    /// The login of a cookie that [`Self::sealed`] made with this key, if it is not over.
    pub fn open(key: &[u8; 32], sealed: &str, now: Timestamp) -> Result<Self, Error> {
        let payload = Zeroizing::new(token::verify(key, PURPOSE, sealed).map_err(|_| foreign())?);
        let (time, rest) = payload.split_first_chunk::<TIME>().ok_or_else(foreign)?;
        let (secret, next) = rest.split_first_chunk::<SECRET>().ok_or_else(foreign)?;
        let next = std::str::from_utf8(next).map_err(|_| foreign())?.to_owned();
        let pending = Self { since: Timestamp(i64::from_be_bytes(*time)), secret: Zeroizing::new(*secret), next };
        if pending.ends() <= now {
            return Err(Error::new(Code::OidcExpired, "The login has taken longer than ten minutes."));
        }
        Ok(pending)
    }

    pub fn ends(&self) -> Timestamp {
        self.since.plus(LIFETIME)
    }

    /// 43 characters that only whoever has the cookie can know.
    fn made(&self, purpose: &str) -> String {
        token::sign(&self.secret, purpose, &[])
    }

    pub fn state(&self) -> String {
        self.made("state")
    }

    pub fn nonce(&self) -> String {
        self.made("nonce")
    }

    /// Of PKCE.
    pub fn verifier(&self) -> String {
        self.made("verifier")
    }

    pub fn has_state(&self, state: &str) -> bool {
        token::equal(self.state().as_bytes(), state.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn a_login_comes_back_out_of_its_cookie() {
        let begun = Pending::new("/device?user_code=BCDF-GHJK", Timestamp(1)).expect("a login");
        let cookie = begun.sealed(&KEY);
        let opened = Pending::open(&KEY, &cookie, Timestamp(2)).expect("the same");
        assert_eq!(
            (opened.state(), opened.nonce(), opened.verifier()),
            (begun.state(), begun.nonce(), begun.verifier())
        );
        assert_eq!((opened.next.as_str(), opened.ends()), (begun.next.as_str(), begun.ends()));
        assert!(opened.has_state(&begun.state()) && !opened.has_state(&begun.nonce()) && !opened.has_state(""));
        // RFC 7636 wants 43 to 128 characters.
        assert_eq!(begun.verifier().len(), 43);
        let code = |cookie: &str, key, now| Pending::open(key, cookie, now).err().map(|error| error.code);
        assert_eq!(code(&cookie, &[8; 32], Timestamp(2)), Some(Code::OidcState));
        assert_eq!(code("", &KEY, Timestamp(2)), Some(Code::OidcState));
        assert_eq!(code(&token::sign(&KEY, PURPOSE, b"short"), &KEY, Timestamp(2)), Some(Code::OidcState));
        let late = Timestamp(1).plus(LIFETIME);
        assert_eq!(code(&cookie, &KEY, late), Some(Code::OidcExpired));
        assert_eq!(code(&cookie, &KEY, Timestamp(late.micros() - 1)), None);
    }

    #[test]
    fn no_two_logins_are_alike_and_what_travels_tells_nothing() {
        let (one, two) =
            (Pending::new("/", Timestamp(1)).expect("a login"), Pending::new("/", Timestamp(1)).expect("a login"));
        let all = [&one, &two].map(|p| [p.state(), p.nonce(), p.verifier()]).concat();
        let unique: std::collections::BTreeSet<&String> = all.iter().collect();
        assert_eq!(unique.len(), 6);
    }

    #[test]
    fn a_page_that_is_too_long_for_a_cookie_is_not_kept() {
        let begun = Pending::new(&format!("/{}", "x".repeat(LONGEST_NEXT)), Timestamp(1)).expect("a login");
        assert_eq!(begun.next, "/");
        assert!(begun.sealed(&KEY).len() < 200);
        assert_eq!(LIFETIME, Duration::from_secs(600));
    }
}
