//! Login through an identity provider: OpenID Connect's authorization code flow, with PKCE.
//!
//! The one rule: a login ends in the browser that began it, once and soon. All that is secret of it (state, nonce, the
//! verifier of PKCE) is made of 32 random bytes that only this browser's cookie has ([`pending`]); the database learns no
//! more than that a login is used up.
//!
//! ```text
//!  browser                      server                                    provider
//!   /auth/oidc/login ---------> seals 32 bytes, the time and the page
//!   cookie, redirect <--------- that asked
//!   ---------------- state, nonce, hash of the verifier ----------------> who are you?
//!   <------------------------- code, state -----------------------------
//!   /auth/oidc/callback ------> cookie ours? in time? its state? the first time?
//!                               code and verifier ----------------------> (no redirects, 10 s)
//!                               <---------------------- signed ID token
//!                               signature, issuer, audience, nonce: who it is ([`provider`])
//!                               which user that is ([`people`])
//!   session, back to the page <
//! ```
//!
//! The provider is asked for its description when somebody wants to sign in and not before: one that is down keeps neither
//! this server from starting nor anybody else from signing in.

pub mod pending;
pub mod people;
pub mod provider;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_model::access::Role;
use holdfast_model::error::{Code, Error};
use holdfast_store::api_keys::Kind;
use holdfast_store::identities::oidc_login_take;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::guard::Denied;
use crate::identity::secret_hash;
use crate::{Control, RequestInfo};
use pending::Pending;
use provider::Provider;

/// A login has to be over within this time.
pub const LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Below the server's public URL: where the provider sends people back to. It has to know this address.
pub const CALLBACK: &str = "/auth/oidc/callback";

/// A secret of the configuration. Never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What the operator says of the identity provider.
#[derive(Debug, Clone)]
pub struct Options {
    /// URL, exactly as its tokens and its description have it.
    pub issuer: String,
    pub client_id: String,
    /// `None`: a public client, which PKCE alone protects.
    pub client_secret: Option<Secret>,
    /// Who may sign its certificate, beside those that the host trusts.
    pub authorities: Vec<reqwest::Certificate>,
    /// What pages call it.
    pub name: String,
    /// Asked for beside `openid`.
    pub scopes: Vec<String>,
    pub claims: Claims,
    /// A verified address links an identity to the user who has it.
    pub link_email: bool,
    /// What becomes of people whom nobody here knows. `None`: they are refused.
    pub newcomers: Option<Newcomers>,
    /// For one request to the provider, as a whole.
    pub patience: Duration,
}

/// Names of claims.
#[derive(Debug, Clone)]
pub struct Claims {
    pub username: String,
    pub email: String,
    /// Says whether the address was verified. `None`: the operator vouches for all of them.
    pub email_verified: Option<String>,
}

/// Where those go who have no account yet.
#[derive(Debug, Clone)]
pub struct Newcomers {
    /// Slug.
    pub workspace: String,
    pub role: Role,
}

/// A login that was begun.
pub struct Begun {
    /// Where to send the browser.
    pub url: String,
    /// For the browser's cookie; it is worth nothing without the provider's answer.
    pub cookie: Zeroizing<String>,
}

/// What came back from the provider through the browser.
#[derive(Debug, Default)]
pub struct Answer<'a> {
    pub code: Option<&'a str>,
    pub state: Option<&'a str>,
    /// The provider's word for why not.
    pub error: Option<&'a str>,
    /// RFC 9207: the provider that answers.
    pub issuer: Option<&'a str>,
}

/// A login that succeeded.
pub struct Ended {
    /// Of the session.
    pub secret: Zeroizing<String>,
    pub lifetime: Duration,
    /// Path of the page that asked.
    pub next: String,
}

impl Control {
    /// What pages call the identity provider; `None`: there is none.
    pub fn oidc_name(&self) -> Option<&str> {
        self.oidc.as_ref().map(|provider| provider.options().name.as_str())
    }

    fn oidc_provider(&self) -> Result<&Provider, Error> {
        // As of any path that there is not.
        let none = || Error::new(Code::RouteNotFound, "There is nothing at this path.");
        self.oidc.as_deref().ok_or_else(none)
    }

    /// Begins a login. `next` is the path to go to afterwards, which the caller has checked.
    pub async fn oidc_begin(&self, next: &str, from: Option<IpAddr>) -> Result<Begun, Denied> {
        let provider = self.oidc_provider()?;
        self.guard.oidc(from)?;
        let pending = Pending::new(next, self.now())?;
        let url = provider.login_url(&pending).await?;
        Ok(Begun { url, cookie: pending.sealed(&self.keys.oidc) })
    }

    /// Ends a login: checks that this browser began it, asks the provider who it is, and gives them a session.
    pub async fn oidc_end(
        &self,
        cookie: Option<&str>,
        answer: &Answer<'_>,
        info: &RequestInfo,
        from: Option<IpAddr>,
    ) -> Result<Ended, Denied> {
        let provider = self.oidc_provider()?;
        self.guard.oidc(from)?;
        let now = self.now();
        let pending = Pending::open(&self.keys.oidc, cookie.unwrap_or_default(), now)?;
        if !answer.state.is_some_and(|state| pending.has_state(state)) {
            return Err(pending::foreign().into());
        }
        // Before anything is asked of the provider: whatever comes of it, this login is over.
        let mut tx = self.store.begin().await?;
        let first = oidc_login_take(&mut tx, &secret_hash(&pending.state()), pending.ends(), now).await?;
        holdfast_store::commit(tx).await?;
        if !first {
            return Err(pending::foreign().into());
        }
        if let Some(word) = answer.error {
            tracing::info!(?from, word, "the identity provider let somebody not in");
            return Err(Error::new(Code::OidcDenied, refusal(word)).into());
        }
        if answer.issuer.is_some_and(|issuer| issuer != provider.options().issuer) {
            return Err(Error::new(Code::OidcToken, "Another provider than the configured one answered.").into());
        }
        let code = answer.code.ok_or_else(pending::foreign)?;
        let identified = provider.identify(code, &pending).await.inspect_err(|error| {
            tracing::info!(?from, code = error.code.id(), "a login through the identity provider failed");
        })?;
        let who = self.oidc_user(provider, &identified, info, from).await?;
        let (secret, lifetime) = self.login_issue(&who, info, Kind::Session, None).await?;
        Ok(Ended { secret, lifetime, next: pending.next })
    }
}

/// The provider's word, as far as it is one.
fn refusal(word: &str) -> String {
    let is_word = (1..=60).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if is_word {
        format!("The identity provider answered \"{word}\".")
    } else {
        "The identity provider refused the login.".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::from("hush".to_owned());
        assert!(!format!("{secret:?}").contains("hush"));
        assert_eq!(secret.expose(), "hush");
    }

    #[test]
    fn only_a_word_of_the_provider_is_repeated() {
        assert!(refusal("access_denied").contains("\"access_denied\""));
        for word in ["", "<script>", "Access Denied", &"x".repeat(61)] {
            assert_eq!(refusal(word), "The identity provider refused the login.", "{word}");
        }
    }
}
