//! Which user an identity of the provider is.
//!
//! The one rule: issuer and subject say who somebody is, and no other claim does. Names and addresses change hands at
//! providers; an address counts for a first meeting only, only if the provider says that it was verified, and only if the
//! operator wants it so.
//!
//! ```text
//!  the identity is linked                         -> its user
//!  else: link_email, and a user has the verified address -> linked to that user
//!  else: newcomers are let in                     -> a new user, a member of the operator's workspace
//!  else                                           -> refused, with the subject to tell the operator
//! ```

use std::net::IpAddr;

use holdfast_model::error::{Code, Error};
use holdfast_store::api_keys::logins_end;
use holdfast_store::audit::audit_insert;
use holdfast_store::identities::{identities_remove, identity_holder_in, identity_insert, identity_used};
use holdfast_store::members::member_put;
use holdfast_store::tenancy::principal_in;
use holdfast_store::users::{user_create, user_with_email_in};
use holdfast_store::workspaces::By;
use holdfast_store::{Store, Tx};

use super::Newcomers;
use super::provider::{Identified, Profile, Provider};
use crate::people::{entry, names, user_id};
use crate::tokens::{by_operator, named};
use crate::{Clock, Control, Principal, RequestInfo};

/// Names that are tried for a new user beside the one that the provider says.
const TRIES: u32 = 20;

impl Control {
    /// The user who has this identity, or gets it now, in the workspace that they begin in.
    pub(super) async fn oidc_user(
        &self,
        provider: &Provider,
        who: &Identified,
        info: &RequestInfo,
        from: Option<IpAddr>,
    ) -> Result<Principal, Error> {
        let issuer = &provider.options().issuer;
        let refused = |why: &str| {
            tracing::info!(
                ?from,
                issuer,
                subject = who.subject,
                why,
                "a login through the identity provider was refused"
            );
            no_account(&who.subject)
        };
        let user = match self.store.identity_holder(issuer, &who.subject).await? {
            Some(user) => {
                let mut tx = self.store.begin().await?;
                identity_used(&mut tx, issuer, &who.subject, self.now()).await?;
                holdfast_store::commit(tx).await?;
                user
            }
            None => match self.oidc_meet(provider, who, info).await? {
                Ok(user) => user,
                Err(why) => return Err(refused(why)),
            },
        };
        let at_home = self.at_home(user).await?;
        at_home.ok_or_else(|| refused("the account is disabled, or belongs to no workspace"))
    }

    /// Gives an identity that nobody has to somebody, or says why not.
    async fn oidc_meet(
        &self,
        provider: &Provider,
        who: &Identified,
        info: &RequestInfo,
    ) -> Result<Result<i64, &'static str>, Error> {
        let options = provider.options();
        if !options.link_email && options.newcomers.is_none() {
            return Ok(Err("no account is linked to it"));
        }
        // Before the transaction, which holds nothing up.
        let profile = provider.profile(who).await?;
        let address = profile.email.as_deref().filter(|_| profile.email_verified);
        let address = address.and_then(|email| names::email("email", email).ok());
        let home = match &options.newcomers {
            Some(newcomers) => self.store.workspace(None, By::Slug(&newcomers.workspace)).await?.map(|found| found.id),
            None => None,
        };
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(user) = identity_holder_in(&mut tx, &options.issuer, &who.subject).await? {
            return Ok(Ok(user));
        }
        let known = match &address {
            Some(email) => user_with_email_in(&mut tx, email).await?,
            None => None,
        };
        let user = match (known, &options.newcomers) {
            (Some(known), _) if options.link_email => {
                let Some(home) = self.store.home_workspace(known.id).await? else {
                    return Ok(Err("the account with its address belongs to no workspace"));
                };
                let Some(known) = principal_in(&mut tx, known.id, home).await? else {
                    return Ok(Err("the account with its address is disabled"));
                };
                known
            }
            (Some(_), _) => return Ok(Err("an account has its address, and oidc_link_email is not set")),
            (None, None) => return Ok(Err("no account has its address")),
            (None, Some(newcomers)) => {
                let Some(home) = home else { return Ok(Err("the workspace of oidc_workspace is not there")) };
                let user = newcomer(&mut tx, &profile, address.as_deref(), now).await?;
                member_put(&mut tx, home, user, newcomers.role.word(), now).await?;
                let Some(made) = principal_in(&mut tx, user, home).await? else {
                    return Ok(Err("the workspace of oidc_workspace is disabled"));
                };
                for action in ["user.create", "member.add"] {
                    audit_insert(&mut tx, &made, info, entry(action, "user", &user_id(user), 303), now).await?;
                }
                made
            }
        };
        link_in(&mut tx, &user, info, (&options.issuer, &who.subject), 303, now).await?;
        identity_used(&mut tx, &options.issuer, &who.subject, now).await?;
        holdfast_store::commit(tx).await?;
        Ok(Ok(user.user_id))
    }
}

fn no_account(subject: &str) -> Error {
    Error::new(Code::OidcNoAccount, format!("Nobody here is linked to your identity. Your subject is \"{subject}\"."))
}

/// Gives a user the identity, for a request that is answered with this status. False when somebody has it.
async fn link_in(
    tx: &mut Tx,
    user: &Principal,
    info: &RequestInfo,
    (issuer, subject): (&str, &str),
    status: u16,
    now: holdfast_model::Timestamp,
) -> Result<bool, Error> {
    if !identity_insert(tx, user.user_id, issuer, subject, now).await? {
        return Ok(false);
    }
    audit_insert(tx, user, info, entry("identity.link", "user", &user_id(user.user_id), status), now).await?;
    Ok(true)
}

/// An account for somebody new, under their name at the provider or one that is like it. An address that nobody vouches for
/// is not kept: whoever has it may come later, and must not find a stranger in their place.
async fn newcomer(
    tx: &mut Tx,
    profile: &Profile,
    email: Option<&str>,
    now: holdfast_model::Timestamp,
) -> Result<i64, Error> {
    let said = [profile.username.as_deref(), profile.email.as_deref()];
    let base = said.into_iter().flatten().find_map(username).unwrap_or_else(|| "user".to_owned());
    for number in 1..=TRIES {
        let name = if number == 1 { base.clone() } else { format!("{base}-{number}") };
        let address = email.map_or_else(|| format!("{name}@unverified.invalid"), str::to_owned);
        match user_create(tx, &name, &address, "user", now).await {
            Err(error) if error.code == Code::UserExists => {}
            made => return made,
        }
    }
    let name = format!("{base}-{}", uuid::Uuid::new_v4().simple());
    let address = email.map_or_else(|| format!("{name}@unverified.invalid"), str::to_owned);
    user_create(tx, &name, &address, "user", now).await
}

/// A username made of what the provider says: of an address what stands before the @, and nothing that a username cannot
/// have. Short enough to be made unique.
fn username(said: &str) -> Option<String> {
    let before = said.split('@').next().unwrap_or_default();
    let kept = before.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' });
    let name: String = kept.take(30).collect();
    let name = name.trim_matches('-').to_owned();
    let telling = name.bytes().any(|b| b.is_ascii_alphanumeric());
    (telling && names::username("username", &name).is_ok()).then_some(name)
}

/// Links an identity to a user, for the operator. Works beside a running server.
pub async fn link(store: &Store, clock: &dyn Clock, user: &str, issuer: &str, subject: &str) -> Result<(), Error> {
    let who = named(store, Some(user), None).await?;
    if subject.is_empty() || subject.len() > 255 || subject.chars().any(char::is_control) {
        return Err(Error::field("body", "subject", "value_error", "must have 1 to 255 characters"));
    }
    let info = by_operator("holdfast admin users link");
    let mut tx = store.begin().await?;
    if !link_in(&mut tx, &who, &info, (issuer, subject), 200, clock.now()).await? {
        return Err(Error::new(Code::UserExists, "Somebody has this identity; unlink it there first."));
    }
    holdfast_store::commit(tx).await
}

/// Takes the identities away that a user has at a provider, or with `None` all, and ends the sessions that they gave. Works
/// beside a running server. Answers how many that were.
pub async fn unlink(store: &Store, clock: &dyn Clock, user: &str, issuer: Option<&str>) -> Result<u64, Error> {
    let Some(id) = store.user_of_login(user).await? else {
        return Err(Error::new(Code::UserNotFound, "There is no such user."));
    };
    let now = clock.now();
    let mut tx = store.begin().await?;
    let removed = identities_remove(&mut tx, id, issuer).await?;
    if removed > 0 {
        logins_end(&mut tx, id, now).await?;
        // Somebody who is disabled, or in no workspace, has no audit log to be named in.
        if let Some(home) = store.home_workspace(id).await?
            && let Some(who) = principal_in(&mut tx, id, home).await?
        {
            let info = by_operator("holdfast admin users unlink");
            audit_insert(&mut tx, &who, &info, entry("identity.unlink", "user", &user_id(id), 204), now).await?;
        }
    }
    holdfast_store::commit(tx).await?;
    Ok(removed)
}

/// Whether the workspace for newcomers is there. For a warning at the start: it may be made later.
pub async fn has_home(store: &Store, newcomers: &Newcomers) -> Result<bool, Error> {
    Ok(store.workspace(None, By::Slug(&newcomers.workspace)).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_are_made_of_what_the_provider_says() {
        for (said, name) in [
            ("ada", "ada"),
            ("Ada.Lovelace@example.com", "Ada.Lovelace"),
            ("ada lovelace", "ada-lovelace"),
            ("-ada-", "ada"),
            ("zoë", "zo"),
            (&"x".repeat(99), &"x".repeat(30)),
        ] {
            assert_eq!(username(said).as_deref(), Some(name), "{said}");
        }
        for said in ["", "@example.com", "---", "éé", "usr_k3jq7ZpX", "..."] {
            assert_eq!(username(said), None, "{said}");
        }
    }
}
