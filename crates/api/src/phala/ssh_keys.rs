//! `/user/ssh-keys`: the caller's SSH keys.
//!
//! The one rule: these are the caller's own, in whatever workspace they ask from; a key of anybody else is not found.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use holdfast_control::ssh_keys::public_id;
use holdfast_model::Timestamp;
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::ssh_keys::SshKey;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, Own, Whole};
use crate::json::Json;

#[derive(Debug, Deserialize, ToSchema)]
pub struct SshKeyCreateRequest {
    /// For people. Need not be unique.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// One line, as in a `.pub` file: ed25519, RSA of 2048 bits or more, ECDSA, or a security token's.
    public_key: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct GithubProfileImportRequest {
    #[schema(min_length = 1, max_length = 39)]
    github_username: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SshKeyResponse {
    /// `sshkey_...`
    pub id: String,
    pub user_id: String,
    pub name: String,
    pub public_key: String,
    /// `SHA256:...`, as `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// As the key's line begins: `ssh-ed25519`, `ssh-rsa`, ...
    pub key_type: String,
    /// `manual` or `github`.
    pub source: &'static str,
    /// `bits` of an RSA key; `github_username` of one that was imported.
    #[schema(value_type = Option<Object>)]
    pub key_metadata: Option<Map<String, Value>>,
    /// When its profile was last seen to have it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_synced_at: Option<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct GithubProfileImportResponse {
    pub github_username: String,
    pub keys_added: usize,
    /// Those that were there already.
    pub keys_skipped: usize,
    /// Why the others were not taken.
    pub errors: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct GithubSyncResponse {
    /// Profiles that were looked at.
    pub synced_count: usize,
    pub keys_added: usize,
    /// Those that their profile still has.
    pub keys_updated: usize,
    /// Those that their profile does not have any more.
    pub keys_removed: usize,
    pub errors: Vec<String>,
}

/// List SSH keys
///
/// The caller's, oldest first. They are put into the CVMs that the caller makes.
#[utoipa::path(get, path = "/api/v1/user/ssh-keys", tag = "SSH keys", operation_id = "ssh_keys_list",
    responses((status = 200, body = Vec<SshKeyResponse>), (status = 401, description = "Authentication required")))]
pub async fn list(State(app): State<App>, caller: Caller<Own>) -> Result<Json<Vec<SshKeyResponse>>, Failure> {
    Ok(Json(app.control.ssh_keys(&caller.who).await?.into_iter().map(view).collect()))
}

/// Add an SSH key
#[utoipa::path(post, path = "/api/v1/user/ssh-keys", tag = "SSH keys", operation_id = "ssh_keys_create",
    request_body = SshKeyCreateRequest,
    responses((status = 201, body = SshKeyResponse), (status = 401, description = "Authentication required"),
        (status = 400, description = "The caller has this key, or as many as there may be"),
        (status = 422, description = "The name or the key is not valid")))]
pub async fn create(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
    Body(request): Body<SshKeyCreateRequest>,
) -> Result<(StatusCode, Json<SshKeyResponse>), Failure> {
    let made = app.control.ssh_key_create(&caller.who, &info, &request.name, &request.public_key).await?;
    Ok((StatusCode::CREATED, Json(view(made))))
}

/// Delete an SSH key
///
/// CVMs that have it keep it.
#[utoipa::path(delete, path = "/api/v1/user/ssh-keys/{key_id}", tag = "SSH keys", operation_id = "ssh_keys_delete",
    params(("key_id" = String, Path, description = "`sshkey_` id")),
    responses((status = 204, description = "Deleted"), (status = 401, description = "Authentication required"),
        (status = 404, description = "The caller has no such key")))]
pub async fn delete(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    app.control.ssh_key_delete(&caller.who, &info, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Import the SSH keys of a GitHub profile
///
/// Only adds. Keys that are not taken are told of one by one.
#[utoipa::path(post, path = "/api/v1/user/ssh-keys/github-profile", tag = "SSH keys",
    operation_id = "ssh_keys_github_profile", request_body = GithubProfileImportRequest,
    responses((status = 200, body = GithubProfileImportResponse),
        (status = 400, description = "GitHub cannot be reached, or knows no such user"),
        (status = 401, description = "Authentication required"), (status = 422, description = "Validation error")))]
pub async fn import(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
    Body(request): Body<GithubProfileImportRequest>,
) -> Result<Json<GithubProfileImportResponse>, Failure> {
    let imported = app.control.ssh_keys_import(&caller.who, &info, &request.github_username).await?;
    Ok(Json(GithubProfileImportResponse {
        github_username: request.github_username,
        keys_added: imported.added,
        keys_skipped: imported.skipped,
        errors: imported.errors,
    }))
}

/// Bring imported SSH keys up to date
///
/// Asks every profile that keys were imported from. Keys that were added by hand stay as they are.
#[utoipa::path(post, path = "/api/v1/user/ssh-keys/github-sync", tag = "SSH keys",
    operation_id = "ssh_keys_github_sync",
    responses((status = 200, body = GithubSyncResponse), (status = 400, description = "The request is not valid"),
        (status = 401, description = "Authentication required")))]
pub async fn sync(
    State(app): State<App>,
    caller: Caller<Whole<Own>>,
    Info(info): Info,
) -> Result<Json<GithubSyncResponse>, Failure> {
    let synced = app.control.ssh_keys_sync(&caller.who, &info).await?;
    Ok(Json(GithubSyncResponse {
        synced_count: synced.profiles,
        keys_added: synced.added,
        keys_updated: synced.updated,
        keys_removed: synced.removed,
        errors: synced.errors,
    }))
}

fn view(key: SshKey) -> SshKeyResponse {
    let source = if key.github_username.is_some() { "github" } else { "manual" };
    let bits = key.bits.map(|bits| ("bits".to_owned(), bits.into()));
    let profile = key.github_username.map(|name| ("github_username".to_owned(), name.into()));
    let metadata: Map<String, Value> = bits.into_iter().chain(profile).collect();
    SshKeyResponse {
        id: public_id(key.id),
        user_id: hashid::encode(Prefix::User, key.user_id),
        name: key.name,
        public_key: key.public_key,
        fingerprint: key.fingerprint,
        key_type: key.key_type,
        source,
        key_metadata: (!metadata.is_empty()).then_some(metadata),
        last_synced_at: key.last_synced_at.map(Timestamp),
        created_at: Timestamp(key.created_at),
        updated_at: Timestamp(key.updated_at),
    }
}
