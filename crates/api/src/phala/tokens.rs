//! API tokens of the caller.
//!
//! The one rule: the secret is in the answer that made it and in no other. A repetition of that request under its
//! `Idempotency-Key` says 409 and names what was made.
//!
//! Beside what the Phala pages have, a token can be made for less than its holder may do: `scopes`, `project_ids` and
//! `source_ip_rule`.

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use holdfast_control::tokens::{Token, TokenRequest};
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::error::Error;
use holdfast_model::limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::version::Version;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Own, Params};
use crate::json::Json;

/// A token, with its secret in the answer that made it.
#[derive(Serialize, ToSchema)]
pub struct ApiToken {
    pub id: i64,
    pub name: String,
    /// The secret; null but in the answer that made it.
    pub token: Option<String>,
    /// The first characters of the secret.
    pub token_prefix: Option<String>,
    /// False: it has expired.
    pub is_active: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// Schema version for requests that name none.
    pub default_version: Option<String>,
    pub team_id: Option<i64>,
    pub team_name: Option<String>,
    pub team_slug: Option<String>,
    /// What it may be used for; null: whatever its holder may do.
    pub scopes: Option<Vec<String>>,
    /// Where it may be used; null: in all projects of the workspace.
    pub project_ids: Option<Vec<String>>,
    /// Addresses that it may be used from; each rule has to admit the address of the connection.
    pub source_ip_rules: Vec<SourceIpRule>,
}

/// Addresses in CIDR notation.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SourceIpRule {
    /// Empty: from everywhere that is not blocked.
    #[serde(default)]
    pub allowed: Vec<String>,
    #[serde(default)]
    pub blocked: Vec<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ApiTokenCreate {
    /// For people: 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// 1 to 365; null: it does not expire.
    #[schema(minimum = 1, maximum = 365)]
    expires_in_days: Option<u32>,
    /// `read`, `own`, `vms.write`, `audit.read`, `projects.manage`, `webhooks.manage`, `members.manage`, `admin`; null:
    /// whatever its holder may do.
    scopes: Option<Vec<String>>,
    /// UUIDs or names of projects of the workspace; null: all that the key that asks is for.
    project_ids: Option<Vec<String>>,
    /// Addresses that it may be used from.
    source_ip_rule: Option<SourceIpRule>,
    /// Schema version for requests that name none; null: the newest.
    default_version: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct ApiTokenRefresh {
    /// 1 to 365; null: as long again as the token was to live.
    #[schema(minimum = 1, maximum = 365)]
    expires_in_days: Option<u32>,
    /// Whether requests that name no schema version get the newest from now on.
    #[serde(default = "yes")]
    upgrade_version: bool,
}

const fn yes() -> bool {
    true
}

/// An answer with a secret is for its reader alone.
type Secret = ([(HeaderName, HeaderValue); 1], Json<ApiToken>);

fn secret(token: Token) -> Secret {
    ([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(shown(token)))
}

fn shown(token: Token) -> ApiToken {
    let row = token.row;
    let words = |actions: Vec<Action>| actions.into_iter().map(|action| action.word().to_owned()).collect();
    let rules = row.limits.sources.iter().map(|rule| {
        let texts = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect();
        SourceIpRule { allowed: texts(&rule.allowed), blocked: texts(&rule.blocked) }
    });
    ApiToken {
        id: row.id,
        name: row.name,
        token: token.secret.map(|secret| secret.to_string()),
        token_prefix: Some(row.prefix),
        is_active: token.is_active,
        created_at: Timestamp(row.created_at),
        last_used_at: row.last_used_at.map(Timestamp),
        expires_at: row.expires_at.map(Timestamp),
        default_version: Some(row.default_version).filter(|version| !version.is_empty()),
        team_id: Some(row.workspace_id),
        team_name: Some(row.workspace_name),
        team_slug: Some(row.workspace_slug),
        source_ip_rules: rules.collect(),
        scopes: row.limits.scopes.map(words),
        project_ids: token.projects,
    }
}

fn days(days: Option<u32>) -> Result<Option<u32>, Error> {
    let wrong = || Error::field("body", "expires_in_days", "value_error", "must be 1 to 365");
    days.map(|days| (1..=365).contains(&days).then_some(days).ok_or_else(wrong)).transpose()
}

impl ApiTokenCreate {
    fn parsed(self) -> Result<TokenRequest, Error> {
        let scope = |word: String| {
            let wrong = || Error::field("body", "scopes", "enum", format!("\"{word}\" is not one of the known scopes"));
            Action::parse(&word).ok_or_else(wrong)
        };
        let rule = self.source_ip_rule.map(|rule| {
            Ok::<_, Error>(limits::SourceRule {
                allowed: nets("allowed", &rule.allowed)?,
                blocked: nets("blocked", &rule.blocked)?,
            })
        });
        if let Some(version) = &self.default_version
            && Version::parse(version).is_none()
        {
            let why = "must be a date, like 2026-01-21, or LATEST";
            return Err(Error::field("body", "default_version", "value_error", why));
        }
        Ok(TokenRequest {
            name: self.name,
            expires_in_days: days(self.expires_in_days)?,
            scopes: self.scopes.map(|scopes| scopes.into_iter().map(scope).collect()).transpose()?,
            project_ids: self.project_ids,
            source: rule.transpose()?,
            default_version: self.default_version,
        })
    }
}

/// Networks, also written as single addresses. Bits behind the mask are a slip that would mean something else.
fn nets(field: &str, texts: &[String]) -> Result<Vec<ipnet::IpNet>, Error> {
    let wrong = |text: &str| {
        let why = format!("\"{text}\" is no address and no network in CIDR notation");
        Error::field("body", &format!("source_ip_rule.{field}"), "value_error", why)
    };
    let net = |text: &String| {
        let alone = || text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
        let net = text.parse::<ipnet::IpNet>().or_else(|_| alone()).map_err(|_| wrong(text))?;
        if net == net.trunc() { Ok(net) } else { Err(wrong(text)) }
    };
    if texts.len() > 64 {
        return Err(Error::field(
            "body",
            &format!("source_ip_rule.{field}"),
            "too_long",
            "must have at most 64 entries",
        ));
    }
    texts.iter().map(net).collect()
}

/// A token's number in a path. One that is none names nothing.
pub(super) fn number(id: &str) -> Result<i64, Error> {
    let wrong = || Error::field("path", "token_id", "int_parsing", "must be a whole number");
    id.parse::<i64>().ok().filter(|id| *id >= 0).ok_or_else(wrong)
}

/// List the caller's API tokens
///
/// Expired ones too, deleted ones not. The secrets are kept nowhere.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "Tokens", operation_id = "tokens_list",
    params(("all_workspaces" = Option<bool>, Query, description = "Those for other workspaces too")),
    responses((status = 200, body = Vec<ApiToken>), (status = 422, description = "Validation error")))]
pub async fn list(State(app): State<App>, caller: Caller<Own>, params: Params) -> Result<Json<Vec<ApiToken>>, Failure> {
    let tokens = app.control.tokens(&caller.who, params.flag("all_workspaces")).await?;
    Ok(Json(tokens.into_iter().map(shown).collect()))
}

/// Make an API token
///
/// The secret is shown once. A repetition under the same `Idempotency-Key` is answered 409 and names the token.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "Tokens", operation_id = "tokens_create", request_body = ApiTokenCreate,
    responses((status = 200, body = ApiToken),
        (status = 403, description = "It would give more than the key that makes it"),
        (status = 409, description = "Already created under this idempotency key"),
        (status = 422, description = "Validation error")))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<Own>,
    Info(info): Info,
    Body(request): Body<ApiTokenCreate>,
) -> Result<Secret, Failure> {
    Ok(secret(app.control.token_create(&caller.who, &info, request.parsed()?).await?))
}

/// Delete an API token
///
/// It is worthless at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{token_id}", tag = "Tokens", operation_id = "tokens_delete",
    params(("token_id" = i64, Path, description = "Number of the token")),
    responses((status = 204, description = "Deleted"), (status = 404, description = "The caller has no such token")))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller<Own>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.token_delete(&caller.who, &info, number(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give an API token another secret
///
/// The old one is worthless at once. Shown once, as when it was made.
#[utoipa::path(post, path = "/api/v1/tokens/{token_id}/refresh", tag = "Tokens", operation_id = "tokens_refresh",
    params(("token_id" = i64, Path, description = "Number of the token")), request_body = ApiTokenRefresh,
    responses((status = 200, body = ApiToken),
        (status = 403, description = "The token may do more than the key that asks"),
        (status = 404, description = "The caller has no such token in this workspace"),
        (status = 409, description = "Already refreshed under this idempotency key"),
        (status = 422, description = "Validation error")))]
pub async fn refresh(
    State(app): State<App>,
    caller: Caller<Own>,
    Info(info): Info,
    Path(id): Path<String>,
    Body(request): Body<ApiTokenRefresh>,
) -> Result<Secret, Failure> {
    let (id, lifetime) = (number(&id)?, days(request.expires_in_days)?);
    let token = app.control.token_refresh(&caller.who, &info, id, lifetime, request.upgrade_version).await?;
    Ok(secret(token))
}
