//! Workspaces.
//!
//! The one rule: a slug names one workspace for ever. It is taken by the insert that makes the workspace, so of those who
//! ask for it at once one gets it.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use uuid::Uuid;

use crate::page::{From, Page, Place, Total};
use crate::projects::project_insert;
use crate::sql::{self, Query, record};
use crate::users::order;
use crate::{Store, Tx, fault};

/// A workspace, for one of its members or for whoever runs the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub id: i64,
    pub uuid: String,
    pub slug: String,
    pub name: String,
    /// A word such as `PRO`; nothing depends on it here.
    pub tier: String,
    pub created_at: i64,
    /// Since when no key of it works; `None`: they do.
    pub disabled_at: Option<i64>,
    /// Role of the member who asks; empty for others.
    pub role: String,
    /// How many belong to it.
    pub members: i64,
}

record!(Workspace { id, uuid, slug, name, tier, created_at, disabled_at, members, role });

impl Workspace {
    /// Where the workspace is in a list that is sorted by [`order`].
    pub fn place(&self) -> Place {
        Place { values: vec![self.created_at], id: self.id }
    }
}

/// How a workspace is named: by its key or by its slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    Key(i64),
    Slug(&'a str),
}

/// A workspace with `$role` of one user, or without any.
fn columns(user: Option<i64>) -> Query {
    let mut query = sql::query(
        "SELECT w.id, w.uuid, w.slug, w.name, w.tier, w.created_at, w.disabled_at,
            (SELECT COUNT(*) FROM workspace_member c WHERE c.workspace_id = w.id) AS members, ",
    );
    match user {
        Some(user) => {
            query.push("m.role FROM workspace_member m JOIN workspace w ON w.id = m.workspace_id");
            query.push(" WHERE w.disabled_at IS NULL AND m.user_id = ").push_bind(user);
        }
        None => {
            query.push("'' AS role FROM workspace w WHERE 1 = 1");
        }
    }
    query
}

impl Store {
    /// A page of the workspaces that a user belongs to, or of all with `None`; in the order of [`order`].
    pub async fn workspaces(&self, user: Option<i64>, from: &From, limit: i64) -> Result<Page<Workspace>, Error> {
        let count = match user {
            Some(user) => {
                let mut count =
                    sql::query("SELECT COUNT(*) FROM workspace_member m JOIN workspace w ON w.id = m.workspace_id");
                count.push(" WHERE w.disabled_at IS NULL AND m.user_id = ").push_bind(user);
                count
            }
            None => sql::query("SELECT COUNT(*) FROM workspace"),
        };
        let sort = order();
        let (order, place) = from.read(&sort);
        let spell = |column: &str| format!("w.{column}");
        let mut query = columns(user);
        if let Some(place) = place {
            order.push_after(&mut query, spell, place);
        }
        query.push(" ORDER BY ").push(order.order_by(spell)).push(" LIMIT ").push_bind(limit + 1);
        let reading = self.read().aside(move |db| {
            let (total,) = db.one(&count)?;
            Ok((db.all(&query)?, total))
        });
        let (rows, total) = reading.await?;
        Ok(Page::of(rows, from, limit, Total::exact(total)))
    }

    /// One workspace: with `user`, only if they belong to it.
    pub async fn workspace(&self, user: Option<i64>, by: By<'_>) -> Result<Option<Workspace>, Error> {
        let mut query = columns(user);
        match by {
            By::Key(id) => query.push(" AND w.id = ").push_bind(id),
            By::Slug(slug) => query.push(" AND w.slug = ").push_bind(slug.to_owned()),
        };
        self.read().here(|db| db.first(&query))
    }
}

/// What a new workspace is to be.
#[derive(Debug, Clone, Copy)]
pub struct NewWorkspace<'a> {
    pub slug: &'a str,
    pub name: &'a str,
    pub tier: &'a str,
    /// 40 hex digits that app ids derive from.
    pub address: &'a str,
    pub owner: i64,
}

/// Makes a workspace with its first owner and its default project, and refuses a slug that is taken.
pub async fn workspace_insert(tx: &mut Tx, new: NewWorkspace<'_>, now: Timestamp) -> Result<i64, Error> {
    let made: Option<i64> = sql::query(
        "INSERT INTO workspace (uuid, slug, name, tier, address, next_nonce, created_at, created_by)
         VALUES ($1, $2, $3, $4, $5, 1, $6, $7) ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(new.slug)
    .bind(new.name)
    .bind(new.tier)
    .bind(new.address)
    .bind(now.micros())
    .bind(new.owner)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let id = made.ok_or_else(|| slug_taken(new.slug))?;
    crate::members::member_put(tx, id, new.owner, "owner", now).await?;
    project_insert(tx, id, "default", true, now).await?;
    Ok(id)
}

/// The refusal of a slug that another workspace has.
pub fn slug_taken(slug: &str) -> Error {
    Error::new(Code::SlugTaken, format!("A workspace has the slug \"{slug}\" already."))
}

/// Changes a workspace's name and tier, where they are given.
pub async fn workspace_rename(
    tx: &mut Tx,
    workspace: i64,
    name: Option<&str>,
    tier: Option<&str>,
) -> Result<(), Error> {
    sql::query("UPDATE workspace SET name = COALESCE($2, name), tier = COALESCE($3, tier) WHERE id = $1")
        .bind(workspace)
        .bind(name)
        .bind(tier)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Disables a workspace since a moment, or enables it again with `None`.
pub async fn workspace_set_disabled(tx: &mut Tx, workspace: i64, since: Option<Timestamp>) -> Result<(), Error> {
    sql::query("UPDATE workspace SET disabled_at = $2 WHERE id = $1")
        .bind(workspace)
        .bind(since.map(Timestamp::micros))
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}
