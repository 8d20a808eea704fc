//! The projects of a workspace.
//!
//! The one rule: a project ends with the last CVM in it or not at all, and its row stays: operations, audit entries and
//! apps of that time name it for ever. Its name is free again at once.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use uuid::Uuid;

use crate::page::{From, Page, Place, Sort, Total};
use crate::scope::Scope;
use crate::sql::{self, Query, record};
use crate::{Store, Tx, fault};

/// A group of apps inside a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    pub id: i64,
    pub uuid: String,
    pub name: String,
    /// The one that apps go to when nobody says.
    pub is_default: bool,
    pub created_at: i64,
    /// How many live in it.
    pub cvms: i64,
}

record!(Project { id, uuid, name, is_default, created_at, cvms });

impl Project {
    /// Where the project is in a list that is sorted by [`order`].
    pub fn place(&self) -> Place {
        Place { values: vec![self.created_at], id: self.id }
    }
}

/// How a project is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By<'a> {
    Key(i64),
    Uuid(&'a str),
    Name(&'a str),
}

const PROJECTS: &str = "SELECT p.id, p.uuid, p.name, p.is_default, p.created_at,
        (SELECT COUNT(*) FROM vm v WHERE v.project_id = p.id AND v.deleted_at IS NULL) AS cvms
     FROM project p";

/// The order of lists of projects: the oldest first, which is the default one.
pub fn order() -> Sort {
    Sort::oldest_first("created_at")
}

/// The condition of the projects that there are in a scope.
fn push_seen(query: &mut Query, scope: &Scope) {
    query.push(" WHERE p.deleted_at IS NULL AND p.workspace_id = ").push_bind(scope.workspace());
    scope.push_projects(query, " AND p.id");
}

impl Store {
    /// A page of the projects that a scope has, in the order of [`order`].
    pub async fn projects(&self, scope: &Scope, from: &From, limit: i64) -> Result<Page<Project>, Error> {
        let mut count = sql::query("SELECT COUNT(*) FROM project p");
        push_seen(&mut count, scope);
        let sort = order();
        let (order, place) = from.read(&sort);
        let spell = |column: &str| format!("p.{column}");
        let mut query = sql::query(PROJECTS);
        push_seen(&mut query, scope);
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

    /// A project that a scope has.
    pub async fn project(&self, scope: &Scope, by: By<'_>) -> Result<Option<Project>, Error> {
        let query = project_by(scope, by);
        self.read().here(|db| db.first(&query))
    }

    /// The first projects that a scope has, the oldest first, at most two: enough to know whether there is one.
    pub async fn first_projects(&self, scope: &Scope) -> Result<Vec<i64>, Error> {
        let mut query = sql::query("SELECT p.id FROM project p");
        push_seen(&mut query, scope);
        query.push(" ORDER BY p.id LIMIT 2");
        self.read().here(|db| db.all(&query))
    }

    /// Internal and public ids of all projects that a workspace ever had.
    pub async fn project_ids(&self, workspace: i64) -> Result<Vec<(i64, String)>, Error> {
        sql::query("SELECT id, uuid FROM project WHERE workspace_id = $1 ORDER BY id")
            .bind(workspace)
            .fetch_all(self.read())
            .await
            .map_err(fault)
    }
}

fn project_by(scope: &Scope, by: By<'_>) -> Query {
    let mut query = sql::query(PROJECTS);
    push_seen(&mut query, scope);
    match by {
        By::Key(id) => query.push(" AND p.id = ").push_bind(id),
        By::Uuid(uuid) => query.push(" AND p.uuid = ").push_bind(uuid),
        By::Name(name) => query.push(" AND p.name = ").push_bind(name),
    };
    query
}

/// [`Store::project`], as this transaction has it.
pub async fn project_in(tx: &mut Tx, scope: &Scope, by: By<'_>) -> Result<Option<Project>, Error> {
    project_by(scope, by).fetch_optional(&mut **tx).await.map_err(fault)
}

/// How many projects a workspace has.
pub async fn project_count(tx: &mut Tx, workspace: i64) -> Result<i64, Error> {
    sql::query("SELECT COUNT(*) FROM project WHERE workspace_id = $1 AND deleted_at IS NULL")
        .bind(workspace)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}

/// Makes a project, and refuses a name that is taken. Returns its public id.
pub async fn project_insert(
    tx: &mut Tx,
    workspace: i64,
    name: &str,
    is_default: bool,
    now: Timestamp,
) -> Result<String, Error> {
    let uuid = Uuid::new_v4().to_string();
    let made = sql::query(
        "INSERT INTO project (uuid, workspace_id, name, is_default, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(&uuid)
    .bind(workspace)
    .bind(name)
    .bind(is_default)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    if made == 1 { Ok(uuid) } else { Err(name_taken(name)) }
}

/// Gives a project another name, and refuses one that another project has.
pub async fn project_rename(tx: &mut Tx, project: i64, name: &str) -> Result<(), Error> {
    let named = sql::query("UPDATE project SET name = $2 WHERE id = $1").bind(project).bind(name).execute(tx).await;
    named.map(drop).map_err(|e| if e.is_duplicate() { name_taken(name) } else { fault(e) })
}

/// Ends a project that has no CVM, and with it what was only prepared there.
pub async fn project_delete(tx: &mut Tx, project: &Project, now: Timestamp) -> Result<(), Error> {
    let name = &project.name;
    if project.is_default {
        let message = format!("\"{name}\" is the workspace's default project and stays.");
        return Err(Error::new(Code::ProjectIsDefault, message));
    }
    if project.cvms > 0 {
        let message = format!("\"{name}\" has CVMs that live: {} of them.", project.cvms);
        return Err(Error::new(Code::ProjectInUse, message));
    }
    sql::query("DELETE FROM provision WHERE project_id = $1").bind(project.id).execute(tx).await.map_err(fault)?;
    sql::query("UPDATE project SET deleted_at = $2 WHERE id = $1")
        .bind(project.id)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

fn name_taken(name: &str) -> Error {
    Error::new(Code::ProjectNameTaken, format!("The workspace has a project named \"{name}\" already."))
}
