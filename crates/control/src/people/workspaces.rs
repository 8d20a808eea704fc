//! Workspaces: which ones a caller belongs to, and making and changing them.
//!
//! The one rule: a key acts in the workspace that it belongs to. Its holder may see of the others that they are in them;
//! to do something there they use a key of that workspace. Any other workspace does not exist for them.

use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_store::audit::audit_insert;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::users;
use holdfast_store::workspaces::{self, By, Workspace, workspace_insert, workspace_rename, workspace_set_disabled};
use holdfast_trust::address;

use super::{entry, in_workspace, names, no_workspace, workspace_by, workspace_id};
use crate::cursor::{Bound, Listed};
use crate::{Control, Principal, RequestInfo};

/// What a new workspace is to be.
#[derive(Debug, Clone, Default)]
pub struct NewWorkspace {
    pub slug: String,
    /// The slug when absent.
    pub name: Option<String>,
    /// `PRO` when absent.
    pub tier: Option<String>,
    /// `usr_` id or username of its first owner.
    pub owner: String,
}

/// What is to change of a workspace; `None`: nothing.
#[derive(Debug, Clone, Default)]
pub struct WorkspaceChange {
    pub name: Option<String>,
    pub tier: Option<String>,
    pub disabled: Option<bool>,
}

/// Why a slug cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlugFault {
    /// `slug_invalid` or `slug_taken`.
    pub code: &'static str,
    pub message: &'static str,
}

impl Control {
    /// A page of the workspaces that the caller belongs to.
    pub async fn workspaces(
        &self,
        who: &Principal,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Workspace>, Error> {
        self.workspaces_listed("workspaces", Some(who.user_id), cursor, limit).await
    }

    async fn workspaces_listed(
        &self,
        audience: &str,
        user: Option<i64>,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Workspace>, Error> {
        let sort = users::order();
        let bound = Bound::to(audience, &user, &sort);
        let from = self.cursor_open(cursor, &bound, &sort)?;
        let page = self.store.workspaces(user, &from, limit).await?;
        Ok(self.listed(page, &bound, Workspace::place))
    }

    /// A workspace that the caller belongs to, by slug or `wks_` id.
    pub async fn workspace_of(&self, who: &Principal, id: &str) -> Result<Workspace, Error> {
        self.store.workspace(Some(who.user_id), workspace_by(id)).await?.ok_or_else(no_workspace)
    }

    /// Checks that `id` names the workspace that the caller's key belongs to. Another one of theirs is refused by its
    /// name, any other is not found.
    pub async fn workspace_here(&self, who: &Principal, id: &str) -> Result<(), Error> {
        let here = match workspace_by(id) {
            By::Key(key) => key == who.workspace_id,
            By::Slug(slug) => slug == who.workspace_slug,
        };
        if here {
            return Ok(());
        }
        let other = self.workspace_of(who, id).await?;
        let message =
            format!("This key belongs to the workspace \"{}\"; use one of \"{}\".", who.workspace_slug, other.slug);
        Err(Error::new(Code::Forbidden, message))
    }

    /// Whether a new workspace could have this slug.
    pub async fn slug_fault(&self, slug: &str) -> Result<Option<SlugFault>, Error> {
        if let Some(message) = names::slug_fault(slug) {
            return Ok(Some(SlugFault { code: "slug_invalid", message }));
        }
        let taken = self.store.workspace(None, By::Slug(slug)).await?.is_some();
        Ok(taken.then_some(SlugFault { code: "slug_taken", message: "A workspace has this slug already." }))
    }

    /// A page of all workspaces, for whoever runs the installation.
    pub async fn workspaces_all(
        &self,
        who: &Principal,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Workspace>, Error> {
        who.require(Action::RunInstallation)?;
        self.workspaces_listed("workspaces/all", None, cursor, limit).await
    }

    /// Any workspace, for whoever runs the installation.
    pub async fn workspace_any(&self, who: &Principal, id: &str) -> Result<Workspace, Error> {
        who.require(Action::RunInstallation)?;
        self.store.workspace(None, workspace_by(id)).await?.ok_or_else(no_workspace)
    }

    /// Makes a workspace with its first owner.
    pub async fn workspace_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        new: &NewWorkspace,
    ) -> Result<Workspace, Error> {
        names::slug("slug", &new.slug)?;
        let (name, tier) = (new.name.as_deref().unwrap_or(&new.slug), new.tier.as_deref().unwrap_or("PRO"));
        names::title("name", name)?;
        names::title("tier", tier)?;
        let owner = self.user_find(who, &new.owner).await?.id;
        let wallet = holdfast_trust::random::<32>().map_err(Error::internal)?;
        let address = hex::encode(address::wallet(&wallet));
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            drop(tx);
            return self.workspace_any(who, &new.slug).await;
        }
        let made = workspaces::NewWorkspace { slug: &new.slug, name, tier, address: &address, owner };
        let id = workspace_id(workspace_insert(&mut tx, made, now).await?);
        audit_insert(&mut tx, who, info, entry("workspace.create", "workspace", &id, 201), now).await?;
        holdfast_store::commit(tx).await?;
        self.workspace_any(who, &id).await
    }

    /// Changes a workspace. One that is disabled has no callers any more; its CVMs stay as they are.
    pub async fn workspace_change(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        change: &WorkspaceChange,
    ) -> Result<Workspace, Error> {
        let workspace = self.workspace_any(who, id).await?;
        change.name.as_deref().map_or(Ok(()), |name| names::title("name", name))?;
        change.tier.as_deref().map_or(Ok(()), |tier| names::title("tier", tier))?;
        if change.disabled == Some(true) && workspace.id == who.workspace_id {
            let message = "You would shut yourself out: your key belongs to this workspace.";
            return Err(Error::new(Code::LocksOut, message));
        }
        let (now, public) = (self.now(), workspace_id(workspace.id));
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            drop(tx);
            return self.workspace_any(who, &public).await;
        }
        workspace_rename(&mut tx, workspace.id, change.name.as_deref(), change.tier.as_deref()).await?;
        if let Some(disabled) = change.disabled {
            workspace_set_disabled(&mut tx, workspace.id, disabled.then_some(now)).await?;
        }
        let action = match change.disabled {
            Some(true) => "workspace.disable",
            Some(false) => "workspace.enable",
            None => "workspace.update",
        };
        let there = in_workspace(who, workspace.id);
        audit_insert(&mut tx, &there, info, entry(action, "workspace", &public, 200), now).await?;
        holdfast_store::commit(tx).await?;
        self.workspace_any(who, &public).await
    }
}
