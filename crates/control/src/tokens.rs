//! Credentials that this server gives out: API tokens, tokens of logins, and sessions.
//!
//! The one rule: a secret is in the answer that made it and in no other, and whoever makes a credential gives no more than
//! they have: its limits are theirs and what they asked for ([`Limits::narrowed`]).

use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::limits::{Limits, SourceRule};
use holdfast_store::api_keys::{ApiKey, Kind, NewKey, api_key_get, api_key_insert, api_key_replace, api_key_revoke};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::{idempotency_created, idempotency_take};
use holdfast_store::{Store, Tx};
use holdfast_trust::token::{API_KEY_PREFIX, api_key};
use zeroize::Zeroizing;

use crate::identity::secret_hash;
use crate::{Control, Principal, RequestInfo};

/// The newest schema version that there is.
pub const NEWEST_VERSION: &str = "2026-06-23";
/// What a password is exchanged for lives this long.
pub const PASSWORD_TOKEN: Duration = Duration::from_secs(24 * 3600);
/// A browser's session lives this long.
pub const SESSION: Duration = Duration::from_secs(12 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Tokens that one user may have in a workspace.
const MOST: usize = 200;

/// What a token is to be.
#[derive(Debug, Default)]
pub struct TokenRequest {
    pub name: String,
    pub expires_in_days: Option<u32>,
    pub scopes: Option<Vec<holdfast_model::access::Action>>,
    /// Public ids, or names.
    pub project_ids: Option<Vec<String>>,
    pub source: Option<SourceRule>,
    pub default_version: Option<String>,
}

/// A token as its holder sees it.
#[derive(Debug)]
pub struct Token {
    pub row: ApiKey,
    /// Public ids of the projects that it is limited to.
    pub projects: Option<Vec<String>>,
    pub is_active: bool,
    /// Set in the answer that made it.
    pub secret: Option<Zeroizing<String>>,
}

/// A new secret, and what a list shows of it.
pub(crate) struct Fresh {
    pub secret: Zeroizing<String>,
    pub prefix: String,
    pub hash: String,
}

impl Fresh {
    pub(crate) fn new() -> Result<Self, Error> {
        let secret = api_key().map_err(Error::internal)?;
        let prefix = secret.chars().take(API_KEY_PREFIX.len() + 4).collect();
        let hash = secret_hash(&secret);
        Ok(Self { secret, prefix, hash })
    }
}

impl Control {
    /// The caller's tokens: those of this workspace, or of all that they belong to. Oldest first.
    pub async fn tokens(&self, who: &Principal, all_workspaces: bool) -> Result<Vec<Token>, Error> {
        let rows = self.store.api_keys(who.user_id, (!all_workspaces).then_some(who.workspace_id)).await?;
        let mut tokens = Vec::with_capacity(rows.len());
        for row in rows.into_iter().filter(|row| is_seen(who, row)) {
            tokens.push(self.token(row).await?);
        }
        Ok(tokens)
    }

    async fn token(&self, mut row: ApiKey) -> Result<Token, Error> {
        row.last_used_at = row.last_used_at.max(self.uses.of(row.id));
        let projects = match &row.limits.projects {
            Some(limited) => {
                let all = self.store.project_ids(row.workspace_id).await?;
                Some(all.into_iter().filter(|(id, _)| limited.contains(id)).map(|(_, uuid)| uuid).collect())
            }
            None => None,
        };
        let now = self.now().micros();
        let is_active = row.expires_at.is_none_or(|end| end > now) && row.starts_at.is_none_or(|start| start <= now);
        Ok(Token { row, projects, is_active, secret: None })
    }

    /// Makes a token. A repetition under the same idempotency key is refused, because the secret is not here any more.
    pub async fn token_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        request: TokenRequest,
    ) -> Result<Token, Error> {
        let name = checked_name(&request.name)?;
        let limits = self.limits_of(who, &request).await?;
        let (fresh, now) = (Fresh::new()?, self.now());
        if self.store.api_keys(who.user_id, Some(who.workspace_id)).await?.len() >= MOST {
            return Err(Error::new(Code::Forbidden, format!("You have {MOST} tokens in this workspace: delete one.")));
        }
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            // Never false: a key that was taken by this request names what it made, and that is refused.
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let version = request.default_version.unwrap_or_else(|| NEWEST_VERSION.to_owned());
        let new = NewKey {
            user: who.user_id,
            workspace: who.workspace_id,
            kind: Kind::Token,
            name,
            prefix: &fresh.prefix,
            hash: &fresh.hash,
            limits: &limits,
            default_version: &version,
            expires_at: request.expires_in_days.map(|days| now.plus(DAY * days)),
            parent_hash: None,
        };
        let id = api_key_insert(&mut tx, &new, now).await?;
        if let Some(key) = &info.idempotency {
            idempotency_created(&mut tx, who.workspace_id, key, &format!("token {id}")).await?;
        }
        audit_insert(&mut tx, who, info, entry("token.create", &id.to_string(), 200), now).await?;
        let row = api_key_get(&mut tx, id).await?.ok_or_else(|| Error::internal("a new token is gone"))?;
        holdfast_store::commit(tx).await?;
        Ok(Token { secret: Some(fresh.secret), ..self.token(row).await? })
    }

    /// What was asked for, within what the caller has. More than that is refused rather than left out.
    async fn limits_of(&self, who: &Principal, request: &TokenRequest) -> Result<Limits, Error> {
        let projects = match &request.project_ids {
            None => None,
            Some(ids) if ids.is_empty() => {
                return Err(Error::field("body", "project_ids", "too_short", "must name a project"));
            }
            Some(ids) => {
                let mut found = Vec::with_capacity(ids.len());
                for id in ids {
                    found.push(self.project_usable(who, id).await.map_err(|error| match error.code {
                        Code::ProjectNotFound => {
                            Error::field("body", "project_ids", "value_error", "names a project that is not here")
                        }
                        _ => error,
                    })?);
                }
                Some(found)
            }
        };
        if request.scopes.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::field("body", "scopes", "too_short", "must name a scope"));
        }
        let wanted =
            Limits { scopes: request.scopes.clone(), projects, sources: request.source.clone().into_iter().collect() };
        let given = who.limits.narrowed(&wanted);
        let lengths = |limits: &Limits| limits.scopes.as_ref().map(Vec::len);
        if wanted.scopes.is_some() && lengths(&given) < lengths(&wanted) {
            return Err(Error::new(Code::Forbidden, "A token gives no more than the key that makes it."));
        }
        Ok(given)
    }

    /// Makes a token worthless: any of the caller's own, whatever workspace it is for.
    pub async fn token_delete(&self, who: &Principal, info: &RequestInfo, id: i64) -> Result<(), Error> {
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(());
        }
        let own = |row: &ApiKey| row.user_id == who.user_id && is_seen(who, row);
        let row = api_key_get(&mut tx, id).await?.filter(own).ok_or_else(unknown)?;
        if !api_key_revoke(&mut tx, row.id, now).await? {
            return Err(unknown());
        }
        audit_insert(&mut tx, who, info, entry("token.delete", &id.to_string(), 204), now).await?;
        holdfast_store::commit(tx).await
    }

    /// Puts another secret in the place of a token's: the old one is worthless when this is answered. Only the caller's own
    /// of this workspace, and none that may more than the key that asks. It lives as long again as it was to live, unless
    /// told.
    pub async fn token_refresh(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: i64,
        expires_in_days: Option<u32>,
        upgrade_version: bool,
    ) -> Result<Token, Error> {
        let (fresh, now) = (Fresh::new()?, self.now());
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
            idempotency_created(&mut tx, who.workspace_id, key, &format!("another secret of token {id}")).await?;
        }
        let own =
            |row: &ApiKey| row.user_id == who.user_id && row.workspace_id == who.workspace_id && is_seen(who, row);
        let row = api_key_get(&mut tx, id).await?.filter(own).ok_or_else(unknown)?;
        if !who.limits.cover(&row.limits) {
            return Err(Error::new(Code::Forbidden, "The token may do more than the key that asks for its secret."));
        }
        let lifetime = match expires_in_days {
            Some(days) => Some(DAY * days),
            None => row.expires_at.map(|end| Timestamp(end).since(Timestamp(row.since()))),
        };
        let version = if upgrade_version { NEWEST_VERSION } else { row.default_version.as_str() };
        let expires_at = lifetime.map(|lifetime| now.plus(lifetime));
        api_key_replace(&mut tx, id, (&fresh.prefix, &fresh.hash), version, expires_at, now).await?;
        audit_insert(&mut tx, who, info, entry("token.refresh", &id.to_string(), 200), now).await?;
        let row = api_key_get(&mut tx, id).await?.ok_or_else(unknown)?;
        holdfast_store::commit(tx).await?;
        self.uses.forget(id);
        Ok(Token { secret: Some(fresh.secret), ..self.token(row).await? })
    }

    /// A session or a bearer token for somebody who has just shown who they are. Its limits are those of `who`, and if they
    /// showed a key, it ends with that at the latest.
    pub async fn login_issue(
        &self,
        who: &Principal,
        info: &RequestInfo,
        kind: Kind,
        shown: Option<&str>,
    ) -> Result<(Zeroizing<String>, Duration), Error> {
        let (name, lifetime) = match kind {
            Kind::Session => ("Session", SESSION),
            _ => ("Password login", PASSWORD_TOKEN),
        };
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let parent = shown.map(secret_hash);
        let made = Login { kind, name, limits: &who.limits, lifetime: Some(lifetime), parent_hash: parent.as_deref() };
        let (id, secret) = issue(&mut tx, who, info, made, now).await?;
        if let Some(key) = &info.idempotency {
            idempotency_created(&mut tx, who.workspace_id, key, &format!("token {id}")).await?;
        }
        holdfast_store::commit(tx).await?;
        Ok((secret, lifetime))
    }

    /// Ends the login that a request was made with. An API token is none: whoever uses it elsewhere would be surprised.
    pub async fn logout(&self, who: &Principal, info: &RequestInfo) -> Result<(), Error> {
        if who.key_kind == Kind::Token.word() {
            return Err(Error::new(Code::NotALogin, "This is an API token, which no login gave."));
        }
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        api_key_revoke(&mut tx, who.api_key_id, now).await?;
        audit_insert(&mut tx, who, info, entry("session.end", &who.api_key_id.to_string(), 200), now).await?;
        holdfast_store::commit(tx).await
    }
}

/// What a login gives.
pub(crate) struct Login<'a> {
    pub kind: Kind,
    pub name: &'a str,
    pub limits: &'a Limits,
    /// `None`: it does not expire.
    pub lifetime: Option<Duration>,
    pub parent_hash: Option<&'a str>,
}

/// Makes a credential of a login, with its row in the audit log.
pub(crate) async fn issue(
    tx: &mut Tx,
    who: &Principal,
    info: &RequestInfo,
    made: Login<'_>,
    now: Timestamp,
) -> Result<(i64, Zeroizing<String>), Error> {
    let fresh = Fresh::new()?;
    let new = NewKey {
        user: who.user_id,
        workspace: who.workspace_id,
        kind: made.kind,
        name: made.name,
        prefix: &fresh.prefix,
        hash: &fresh.hash,
        limits: made.limits,
        default_version: &who.default_version,
        expires_at: made.lifetime.map(|lifetime| now.plus(lifetime)),
        parent_hash: made.parent_hash,
    };
    let id = api_key_insert(tx, &new, now).await?;
    let action = if made.kind == Kind::Session { "session.begin" } else { "token.create" };
    audit_insert(tx, who, info, entry(action, &id.to_string(), 200), now).await?;
    Ok((id, fresh.secret))
}

/// What the operator does beside the database, as the audit log is told of it. `command` is what they typed.
pub fn by_operator(command: &str) -> RequestInfo {
    RequestInfo {
        request_id: format!("cli-{}", uuid::Uuid::new_v4()),
        trace_id: None,
        client_address: None,
        user_agent: format!("holdfast/{}", holdfast_model::VERSION),
        method: "CLI".to_owned(),
        path: command.to_owned(),
        idempotency: None,
        rehearsal: None,
    }
}

/// A member of a workspace, by names: what the operator does is done in somebody's name. Without a user the first
/// administrator, without a workspace the first that the user belongs to.
pub async fn named(store: &Store, user: Option<&str>, workspace: Option<&str>) -> Result<Principal, Error> {
    let nobody = || Error::new(Code::InvalidRequest, "There is no such user, or they do not belong to that workspace.");
    let user = match user {
        Some(name) => store.user_of_login(name).await?.ok_or_else(nobody)?,
        None => store.first_admin().await?.ok_or_else(nobody)?.0,
    };
    let workspace = match workspace {
        Some(slug) => store.workspace_slugged(slug).await?.ok_or_else(nobody)?,
        None => store.home_workspace(user).await?.ok_or_else(nobody)?,
    };
    store.principal_of(user, workspace).await?.ok_or_else(nobody)
}

/// A token that the operator makes for somebody. Works beside a running server.
pub async fn make(
    store: &Store,
    who: &Principal,
    name: &str,
    limits: &Limits,
    lifetime: Option<Duration>,
    now: Timestamp,
) -> Result<Zeroizing<String>, Error> {
    let name = checked_name(name)?;
    let mut tx = store.begin().await?;
    let made = Login { kind: Kind::Token, name, limits, lifetime, parent_hash: None };
    let (_, secret) = issue(&mut tx, who, &by_operator("holdfast admin tokens create"), made, now).await?;
    holdfast_store::commit(tx).await?;
    Ok(secret)
}

/// A token that the operator makes worthless, whosever it is. False when there is none of this number.
pub async fn revoke(store: &Store, id: i64, now: Timestamp) -> Result<bool, Error> {
    let mut tx = store.begin().await?;
    let Some(row) = api_key_get(&mut tx, id).await? else { return Ok(false) };
    api_key_revoke(&mut tx, id, now).await?;
    if let Some(who) = store.principal_of(row.user_id, row.workspace_id).await? {
        let (id, info) = (id.to_string(), by_operator("holdfast admin tokens revoke"));
        audit_insert(&mut tx, &who, &info, entry("token.delete", &id, 204), now).await?;
    }
    holdfast_store::commit(tx).await?;
    Ok(true)
}

/// Whether there is such a token for the caller. For a key that is limited to projects there are those that may do nothing
/// anywhere else.
fn is_seen(who: &Principal, token: &ApiKey) -> bool {
    let Some(projects) = &who.limits.projects else { return true };
    let within = |limited: &Vec<i64>| limited.iter().all(|project| projects.contains(project));
    token.workspace_id == who.workspace_id && token.limits.projects.as_ref().is_some_and(within)
}

fn unknown() -> Error {
    Error::new(Code::TokenNotFound, "There is no such token.")
}

pub(crate) fn entry<'a>(action: &'a str, id: &'a str, status_code: u16) -> audit::Entry<'a> {
    let target_type = action.split('.').next().unwrap_or_default();
    audit::Entry { action, target_type, target_id: id, operation_id: None, status_code }
}

/// A name for people: 1 to 100 characters, none of which moves the cursor.
pub(crate) fn checked_name(name: &str) -> Result<&str, Error> {
    let name = name.trim();
    if (1..=100).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(name);
    }
    Err(Error::field("body", "name", "string_length", "must have 1 to 100 characters that can be seen"))
}
