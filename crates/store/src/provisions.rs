//! Apps that were prepared and wait for their commit.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use uuid::Uuid;

use crate::scope::Scope;
use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// A prepared app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provision {
    /// Where the app is to go unless its commit says otherwise.
    pub project_id: i64,
    pub app_id: String,
    pub nonce: i64,
    pub compose_hash: String,
    /// JSON of the request that the commit carries out.
    pub request: String,
}

impl Store {
    /// A prepared app that has not expired, and the bytes of its app-compose.json. Of several projects it may have been
    /// prepared for: the last.
    pub async fn provision(
        &self,
        scope: &Scope,
        app_id: &str,
        compose_hash: &str,
        now: Timestamp,
    ) -> Result<Option<(Provision, String)>, Error> {
        let mut query = sql::query(
            "SELECT p.project_id, p.app_id, p.nonce, p.compose_hash, p.request, c.content FROM provision p
             JOIN app_compose c ON c.workspace_id = p.workspace_id AND c.compose_hash = p.compose_hash WHERE ",
        );
        scope.push(&mut query, "p");
        query.push(" AND p.app_id = ").push_bind(app_id).push(" AND p.compose_hash = ").push_bind(compose_hash);
        query
            .push(" AND p.expires_at > ")
            .push_bind(now.micros())
            .push(" ORDER BY p.expires_at DESC, p.id DESC LIMIT 1");
        let row: Option<(i64, String, i64, String, String, String)> =
            query.fetch_optional(self.by_key()).await.map_err(fault)?;
        Ok(row.map(|(project_id, app_id, nonce, compose_hash, request, content)| {
            (Provision { project_id, app_id, nonce, compose_hash, request }, content)
        }))
    }

    /// The bytes of app-compose.json with this hash, if they were brought to what the scope has.
    pub async fn app_compose(&self, scope: &Scope, compose_hash: &str) -> Result<Option<String>, Error> {
        let mut query = sql::query("SELECT c.content FROM app_compose c WHERE c.workspace_id = ");
        query.push_bind(scope.workspace()).push(" AND c.compose_hash = ").push_bind(compose_hash);
        if scope.projects().is_some() {
            query.push(" AND EXISTS (SELECT 1 FROM app_compose_project p WHERE p.compose_hash = c.compose_hash");
            scope.push_projects(&mut query, " AND p.project_id");
            query.push(")");
        }
        query.fetch_optional(self.by_key()).await.map_err(fault)
    }

    /// The name that lives in this workspace already: the app it belongs to.
    pub async fn name_holder(&self, workspace: i64, name: &str) -> Result<Option<String>, Error> {
        sql::query(
            "SELECT a.app_id FROM vm_name n JOIN app a ON a.id = n.app_row WHERE n.workspace_id = $1 AND n.name = $2",
        )
        .bind(workspace)
        .bind(name)
        .fetch_optional(self.by_key())
        .await
        .map_err(fault)
    }
}

/// The next unused nonce of a workspace's address.
pub async fn nonce_take(tx: &mut Tx, workspace: i64) -> Result<i64, Error> {
    sql::query("UPDATE workspace SET next_nonce = next_nonce + 1 WHERE id = $1 RETURNING next_nonce - 1")
        .bind(workspace)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}

/// Keeps the bytes of an app-compose.json, which a project has from now on; the same bytes are kept once.
pub async fn app_compose_insert(
    tx: &mut Tx,
    (workspace, project): (i64, i64),
    compose_hash: &str,
    content: &str,
    now: Timestamp,
) -> Result<(), Error> {
    sql::query(
        "INSERT INTO app_compose (workspace_id, compose_hash, content, created_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (workspace_id, compose_hash) DO NOTHING",
    )
    .bind(workspace)
    .bind(compose_hash)
    .bind(content)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    sql::query("INSERT INTO app_compose_project (project_id, compose_hash) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(project)
        .bind(compose_hash)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Keeps a provision until `expires_at`, and drops those that expired.
pub async fn provision_insert(
    tx: &mut Tx,
    workspace: i64,
    provision: &Provision,
    now: Timestamp,
    expires_at: Timestamp,
) -> Result<(), Error> {
    sql::query("DELETE FROM provision WHERE expires_at <= $1").bind(now.micros()).execute(tx).await.map_err(fault)?;
    sql::query(
        "INSERT INTO provision (workspace_id, project_id, app_id, nonce, compose_hash, request, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (workspace_id, app_id, compose_hash, project_id)
         DO UPDATE SET request = excluded.request, expires_at = excluded.expires_at",
    )
    .bind(workspace)
    .bind(provision.project_id)
    .bind(&provision.app_id)
    .bind(provision.nonce)
    .bind(&provision.compose_hash)
    .bind(&provision.request)
    .bind(now.micros())
    .bind(expires_at.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// An app that was looked for or made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ensured {
    pub id: i64,
    pub workspace_id: i64,
    pub project_id: i64,
    /// There was none.
    pub made: bool,
}

record!(Ensured { id, workspace_id, project_id, made });

/// The app with this id. Made now, in this project, if it is new. The caller checks workspace and project.
pub async fn app_ensure(
    tx: &mut Tx,
    (workspace, project): (i64, i64),
    app_id: &str,
    nonce: i64,
    name: &str,
    now: Timestamp,
) -> Result<Ensured, Error> {
    let made: Option<Ensured> = sql::query(
        "INSERT INTO app (uuid, workspace_id, project_id, app_id, nonce, name, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (app_id) DO NOTHING RETURNING id, workspace_id, project_id, TRUE AS made",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(workspace)
    .bind(project)
    .bind(app_id)
    .bind(nonce)
    .bind(name)
    .bind(now.micros())
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    if let Some(made) = made {
        return Ok(made);
    }
    sql::query("SELECT id, workspace_id, project_id, FALSE AS made FROM app WHERE app_id = $1")
        .bind(app_id)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}
