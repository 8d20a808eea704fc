//! The projects of a workspace: making, renaming and deleting them, and which one something new goes to.
//!
//! The one rule: a key that is limited to projects learns of no other. It lists, finds and counts its own; only where it
//! names one by itself to put something there is it told that it may not (403), because "not found" would send its holder
//! to look for a mistake in the name.

use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_store::Store;
use holdfast_store::audit::audit_insert;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::projects::{self, By, Project, project_count, project_in, project_insert, project_rename};
use uuid::Uuid;

use crate::cursor::{Bound, Listed};
use crate::people::{entry, names};
use crate::{Control, Principal, RequestInfo, Scope};

/// Projects that a workspace may have.
const MOST: i64 = 1000;

/// A project is named by its UUID or by its name, which is none.
fn project_by<'a>(id: &'a str, uuid: &'a mut String) -> By<'a> {
    match Uuid::try_parse(id) {
        Ok(parsed) => {
            *uuid = parsed.to_string();
            By::Uuid(uuid)
        }
        Err(_) => By::Name(id),
    }
}

/// The project that something is in, which is the one that the request named if it named one.
pub(crate) fn check_project(named: Option<i64>, project: i64) -> Result<i64, Error> {
    match named {
        Some(named) if named != project => {
            Err(Error::new(Code::ProjectMismatch, "The app belongs to another project than the one that is named."))
        }
        _ => Ok(project),
    }
}

pub(crate) fn no_project() -> Error {
    Error::new(Code::ProjectNotFound, "The requested project was not found.")
}

/// The projects of somebody's workspace with these UUIDs or names, for what the operator makes beside a running server.
pub async fn named(store: &Store, who: &Principal, ids: &[String]) -> Result<Vec<i64>, Error> {
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        found.push(project_of(store, &who.scope(), id).await?.id);
    }
    Ok(found)
}

async fn project_of(store: &Store, scope: &Scope, id: &str) -> Result<Project, Error> {
    let mut uuid = String::new();
    store.project(scope, project_by(id, &mut uuid)).await?.ok_or_else(no_project)
}

impl Control {
    /// A page of the projects that the caller sees, the oldest first; of any workspace for whoever runs the installation.
    pub async fn projects(
        &self,
        who: &Principal,
        workspace: Option<&str>,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Project>, Error> {
        let scope = match workspace {
            Some(id) => Scope::whole(self.workspace_any(who, id).await?.id),
            None => who.scope(),
        };
        let sort = projects::order();
        let bound = Bound::to("projects", &scope, &sort);
        let from = self.cursor_open(cursor, &bound, &sort)?;
        let page = self.store.projects(&scope, &from, limit).await?;
        Ok(self.listed(page, &bound, Project::place))
    }

    /// The project that `id` names in what the caller sees: its UUID or its name.
    pub async fn project_find(&self, who: &Principal, id: &str) -> Result<Project, Error> {
        project_of(&self.store, &who.scope(), id).await
    }

    /// Makes a project.
    pub async fn project_create(&self, who: &Principal, info: &RequestInfo, name: &str) -> Result<Project, Error> {
        who.require(Action::ManageProjects)?;
        names::project("name", name)?;
        let (now, workspace) = (self.now(), who.workspace_id);
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, workspace, key, now).await?
        {
            drop(tx);
            return self.project_find(who, name).await;
        }
        if project_count(&mut tx, workspace).await? >= MOST {
            return Err(Error::new(Code::ProjectLimit, format!("A workspace has at most {MOST} projects.")));
        }
        let uuid = project_insert(&mut tx, workspace, name, false, now).await?;
        audit_insert(&mut tx, who, info, entry("project.create", "project", &uuid, 201), now).await?;
        holdfast_store::commit(tx).await?;
        self.project_find(who, &uuid).await
    }

    /// Gives a project another name.
    pub async fn project_rename(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        name: &str,
    ) -> Result<Project, Error> {
        who.require(Action::ManageProjects)?;
        names::project("name", name)?;
        let project = self.project_find(who, id).await?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            drop(tx);
            return self.project_find(who, &project.uuid).await;
        }
        let by = By::Key(project.id);
        project_in(&mut tx, &who.scope(), by).await?.ok_or_else(no_project)?;
        project_rename(&mut tx, project.id, name).await?;
        audit_insert(&mut tx, who, info, entry("project.rename", "project", &project.uuid, 200), now).await?;
        holdfast_store::commit(tx).await?;
        self.project_find(who, &project.uuid).await
    }

    /// Ends a project in which nothing lives. What became of its CVMs stays readable.
    pub async fn project_delete(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<(), Error> {
        who.require(Action::ManageProjects)?;
        let mut uuid = String::new();
        let (now, by) = (self.now(), project_by(id, &mut uuid));
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(());
        }
        let project = project_in(&mut tx, &who.scope(), by).await?.ok_or_else(no_project)?;
        projects::project_delete(&mut tx, &project, now).await?;
        audit_insert(&mut tx, who, info, entry("project.delete", "project", &project.uuid, 204), now).await?;
        holdfast_store::commit(tx).await
    }

    /// A project that the caller's key may put something into. Fails with `ProjectForbidden` for one that it may not.
    pub(crate) async fn project_usable(&self, who: &Principal, id: &str) -> Result<i64, Error> {
        let project = project_of(&self.store, &Scope::whole(who.workspace_id), id).await?;
        if who.limits.admit_project(Some(project.id)) {
            return Ok(project.id);
        }
        Err(Error::new(Code::ProjectForbidden, "This API key is not made for the project that is named."))
    }

    /// The project that a request names, if it names one.
    pub(crate) async fn project_named(&self, who: &Principal, name: Option<&str>) -> Result<Option<i64>, Error> {
        match name {
            Some(name) => self.project_usable(who, name).await.map(Some),
            None => Ok(None),
        }
    }

    /// Where something new goes: to the project that is named, else to the one that the caller's key is limited to, else to
    /// the workspace's default one.
    pub(crate) async fn project_for(&self, who: &Principal, named: Option<i64>) -> Result<i64, Error> {
        if let Some(named) = named {
            return Ok(named);
        }
        if who.limits.projects.is_some()
            && let [only] = self.store.first_projects(&who.scope()).await?[..]
        {
            return Ok(only);
        }
        if who.limits.admit_project(Some(who.project_id)) {
            return Ok(who.project_id);
        }
        let message = "This API key is limited to projects, and the default one is not among them.";
        Err(Error::new(Code::ProjectForbidden, message))
    }
}
