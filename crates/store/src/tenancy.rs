//! Who is asking, and the API keys that say so. People are in `users`, where they work in `workspaces` and `members`.

use holdfast_model::Timestamp;
use holdfast_model::access::{self, Action, Reach, Role};
use holdfast_model::error::{Code, Error};
use holdfast_model::limits::Limits;
use uuid::Uuid;

use crate::scope::Scope;
use crate::sql::{self, record};
use crate::users::user_create;
use crate::workspaces::{NewWorkspace, workspace_insert};
use crate::{Store, Tx, fault};

/// Who is asking, in which workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    pub user_id: i64,
    pub username: String,
    pub email: String,
    /// `admin` sees the whole installation, `user` only workspaces they belong to.
    pub user_role: String,
    pub workspace_id: i64,
    pub workspace_uuid: String,
    pub workspace_slug: String,
    pub workspace_name: String,
    pub workspace_tier: String,
    /// 40 hex digits that app ids derive from.
    pub workspace_address: String,
    pub member_role: String,
    /// The workspace's default project.
    pub project_id: i64,
    pub project_uuid: String,
    pub api_key_id: i64,
    /// Schema version for requests that name none.
    pub default_version: String,
    /// What the credential is: `token`, `device`, `password` or `session`.
    pub key_kind: String,
    /// What the credential was made for.
    pub limits: Limits,
}

record!(Principal {
    user_id, username, email, user_role, workspace_id, workspace_uuid, workspace_slug, workspace_name, workspace_tier,
    workspace_address, member_role, project_id, project_uuid, api_key_id, default_version, key_kind, limits from String,
});

impl Principal {
    /// What they see: their workspace, or what their key is limited to in it.
    pub fn scope(&self) -> Scope {
        Scope::of(self.workspace_id, self.limits.projects.as_deref())
    }

    /// An administrator of the installation, with a credential that was made for that too.
    pub fn is_admin(&self) -> bool {
        self.user_role == "admin" && self.limits.allow(Action::RunInstallation)
    }

    /// Whether the caller may do this, by their role and by what their key was made for.
    pub fn may(&self, action: Action) -> bool {
        let role = Role::parse(&self.member_role);
        self.limits.allow(action) && role.is_some_and(|role| access::allows(role, self.is_admin(), action))
    }

    /// Refuses whoever may not do this.
    pub fn require(&self, action: Action) -> Result<(), Error> {
        if self.may(action) {
            return Ok(());
        }
        self.require_reach(action.reach())?;
        if self.limits.allow(action) {
            return Err(Error::new(Code::Forbidden, action.refusal()));
        }
        let message = format!("This API key was not made for this: it lacks the scope {}.", action.word());
        Err(Error::new(Code::Forbidden, message))
    }

    /// Refuses a key that is limited to projects what reaches beyond them.
    pub fn require_reach(&self, reach: Reach) -> Result<(), Error> {
        if self.limits.reach(reach) {
            return Ok(());
        }
        let message = "This API key is limited to projects, and this is about more than those.";
        Err(Error::new(Code::ProjectLimited, message))
    }
}

/// The holder of a credential, by its sha256 and the time.
const HOLDER: &str = "SELECT u.id AS user_id, u.username, u.email, u.role AS user_role, w.id AS workspace_id,
        w.uuid AS workspace_uuid, w.slug AS workspace_slug, w.name AS workspace_name,
        w.tier AS workspace_tier, w.address AS workspace_address, m.role AS member_role,
        p.id AS project_id, p.uuid AS project_uuid, k.id AS api_key_id, k.default_version,
        k.kind AS key_kind, k.limits
     FROM api_key k
     JOIN user_account u ON u.id = k.user_id
     JOIN workspace w ON w.id = k.workspace_id
     JOIN workspace_member m ON m.workspace_id = w.id AND m.user_id = u.id
     JOIN project p ON p.workspace_id = w.id AND p.is_default
     WHERE k.hash = $1 AND k.revoked_at IS NULL AND u.disabled_at IS NULL AND w.disabled_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > $2)
        AND (k.starts_at IS NULL OR k.starts_at <= $2)
        AND (k.parent_hash IS NULL OR EXISTS (SELECT 1 FROM api_key q WHERE q.hash = k.parent_hash
            AND q.revoked_at IS NULL AND (q.expires_at IS NULL OR q.expires_at > $2)))";

/// A member of a workspace as a principal that has shown nothing.
const MEMBER: &str = "SELECT u.id AS user_id, u.username, u.email, u.role AS user_role, w.id AS workspace_id,
        w.uuid AS workspace_uuid, w.slug AS workspace_slug, w.name AS workspace_name,
        w.tier AS workspace_tier, w.address AS workspace_address, m.role AS member_role,
        p.id AS project_id, p.uuid AS project_uuid, 0 AS api_key_id, '2025-10-28' AS default_version,
        'token' AS key_kind, '{}' AS limits
     FROM workspace_member m
     JOIN user_account u ON u.id = m.user_id
     JOIN workspace w ON w.id = m.workspace_id
     JOIN project p ON p.workspace_id = w.id AND p.is_default
     WHERE m.user_id = $1 AND m.workspace_id = $2 AND u.disabled_at IS NULL AND w.disabled_at IS NULL";

impl Store {
    /// The holder of the credential with this sha256, unless it was revoked, has expired or is not valid yet.
    pub async fn principal(&self, key_hash: &str, now: Timestamp) -> Result<Option<Principal>, Error> {
        let holder = sql::query(HOLDER).bind(key_hash).bind(now.micros());
        self.read().here(|db| db.first(&holder))
    }

    /// A member of a workspace, without any credential: for what somebody else does in their name (the operator beside
    /// the database) or before they have one (a login). `None` when they do not belong to it.
    pub async fn principal_of(&self, user: i64, workspace: i64) -> Result<Option<Principal>, Error> {
        sql::query(MEMBER).bind(user).bind(workspace).fetch_optional(self.by_key()).await.map_err(fault)
    }

    /// The workspace that somebody works in who names none: the first that they belong to.
    pub async fn home_workspace(&self, user: i64) -> Result<Option<i64>, Error> {
        sql::query(
            "SELECT m.workspace_id FROM workspace_member m JOIN workspace w ON w.id = m.workspace_id
             WHERE m.user_id = $1 AND w.disabled_at IS NULL ORDER BY m.workspace_id LIMIT 1",
        )
        .bind(user)
        .fetch_optional(self.by_key())
        .await
        .map_err(fault)
    }

    /// The user of this name or e-mail address.
    pub async fn user_of_login(&self, name: &str) -> Result<Option<i64>, Error> {
        sql::query("SELECT id FROM user_account WHERE username = $1 OR email = $1 ORDER BY username = $1 DESC LIMIT 1")
            .bind(name)
            .fetch_optional(self.read())
            .await
            .map_err(fault)
    }

    /// The workspace with this slug.
    pub async fn workspace_slugged(&self, slug: &str) -> Result<Option<i64>, Error> {
        sql::query("SELECT id FROM workspace WHERE slug = $1")
            .bind(slug)
            .fetch_optional(self.by_key())
            .await
            .map_err(fault)
    }

    /// The installation's first administrator and their workspace, if it was set up: (user, workspace).
    pub async fn first_admin(&self) -> Result<Option<(i64, i64)>, Error> {
        sql::query(
            "SELECT u.id, m.workspace_id FROM user_account u JOIN workspace_member m ON m.user_id = u.id
             WHERE u.role = 'admin' ORDER BY u.id, m.workspace_id LIMIT 1",
        )
        .fetch_optional(self.read())
        .await
        .map_err(fault)
    }
}

/// [`Store::principal_of`], as this transaction has it.
pub async fn principal_in(tx: &mut Tx, user: i64, workspace: i64) -> Result<Option<Principal>, Error> {
    sql::query(MEMBER).bind(user).bind(workspace).fetch_optional(&mut **tx).await.map_err(fault)
}

/// A user, a workspace they own, and its default project. Returns (user, workspace).
pub async fn workspace_create(
    tx: &mut Tx,
    username: &str,
    role: &str,
    slug: &str,
    address: &str,
    now: Timestamp,
) -> Result<(i64, i64), Error> {
    let user = user_create(tx, username, &format!("{username}@localhost"), role, now).await?;
    let new = NewWorkspace { slug, name: slug, tier: "ENTERPRISE", address, owner: user };
    let workspace = workspace_insert(tx, new, now).await?;
    Ok((user, workspace))
}

/// Keeps the hash of a new API key. `prefix` is what a list may show of it.
pub async fn api_key_create(
    tx: &mut Tx,
    (user, workspace): (i64, i64),
    name: &str,
    prefix: &str,
    hash: &str,
    default_version: &str,
    now: Timestamp,
) -> Result<i64, Error> {
    sql::query(
        "INSERT INTO api_key (uuid, workspace_id, user_id, name, prefix, hash, default_version, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(workspace)
    .bind(user)
    .bind(name)
    .bind(prefix)
    .bind(hash)
    .bind(default_version)
    .bind(now.micros())
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}
