//! Accounts, for whoever runs the installation.

use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::audit::audit_insert;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::invitations::invitations_revoke_by;
use holdfast_store::members::member_put;
use holdfast_store::users::{self, User, admins_left, user_set_disabled, user_set_role};

use super::{entry, in_workspace, names, no_workspace, role, user_id, workspace_by};
use crate::cursor::{Bound, Listed};
use crate::{Control, Principal, RequestInfo};

/// What a new account is to be.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    pub username: String,
    pub email: String,
    /// True: they run the installation.
    pub is_admin: bool,
    /// Slug or id of a workspace to make them a member of, and their role there.
    pub workspace: Option<(String, String)>,
}

/// What is to change of an account; `None`: nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserChange {
    pub is_admin: Option<bool>,
    pub disabled: Option<bool>,
}

fn no_user() -> Error {
    Error::new(Code::UserNotFound, "There is no such user.")
}

impl Control {
    /// A page of everybody.
    pub async fn users(&self, who: &Principal, cursor: Option<&str>, limit: i64) -> Result<Listed<User>, Error> {
        who.require(Action::RunInstallation)?;
        let sort = users::order();
        let bound = Bound::to("users", &(), &sort);
        let from = self.cursor_open(cursor, &bound, &sort)?;
        let page = self.store.users(&from, limit).await?;
        Ok(self.listed(page, &bound, User::place))
    }

    /// Whoever has this `usr_` id or username.
    pub async fn user_find(&self, who: &Principal, id: &str) -> Result<User, Error> {
        who.require(Action::RunInstallation)?;
        let found = match hashid::decode(Prefix::User, id) {
            Some(key) => self.store.user(key).await?,
            None => self.store.user_named(id).await?,
        };
        found.ok_or_else(no_user)
    }

    /// Makes an account. Nobody can sign in with it until they get a key or a password.
    pub async fn user_create(&self, who: &Principal, info: &RequestInfo, new: &NewUser) -> Result<User, Error> {
        who.require(Action::RunInstallation)?;
        names::username("username", &new.username)?;
        let email = names::email("email", &new.email)?;
        let joins = match &new.workspace {
            None => None,
            Some((workspace, word)) => {
                let found = self.store.workspace(None, workspace_by(workspace)).await?;
                Some((found.ok_or_else(no_workspace)?.id, role("workspace_role", word)?))
            }
        };
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            drop(tx);
            return self.user_find(who, &new.username).await;
        }
        let user = users::user_create(&mut tx, &new.username, &email, word(new.is_admin), now).await?;
        let id = user_id(user);
        audit_insert(&mut tx, who, info, entry("user.create", "user", &id, 201), now).await?;
        if let Some((workspace, role)) = joins {
            member_put(&mut tx, workspace, user, role.word(), now).await?;
            let there = in_workspace(who, workspace);
            audit_insert(&mut tx, &there, info, entry("member.add", "user", &id, 201), now).await?;
        }
        holdfast_store::commit(tx).await?;
        self.user_find(who, &id).await
    }

    /// Changes what an account may do. Administrators cannot take the right to run the installation from themselves.
    pub async fn user_change(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        change: UserChange,
    ) -> Result<User, Error> {
        let user = self.user_find(who, id).await?;
        let loses = change.is_admin == Some(false) || change.disabled == Some(true);
        if loses && user.id == who.user_id {
            return Err(Error::new(Code::LocksOut, "You would shut yourself out; another administrator can do this."));
        }
        let (now, public) = (self.now(), user_id(user.id));
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            drop(tx);
            return self.user_find(who, &public).await;
        }
        if let Some(is_admin) = change.is_admin {
            user_set_role(&mut tx, user.id, word(is_admin)).await?;
        }
        if let Some(disabled) = change.disabled {
            user_set_disabled(&mut tx, user.id, disabled.then_some(now)).await?;
            if disabled {
                invitations_revoke_by(&mut tx, None, user.id, now).await?;
            }
        }
        if loses && admins_left(&mut tx).await? == 0 {
            return Err(Error::new(Code::LocksOut, "Nobody would be left to run the installation."));
        }
        let action = match change.disabled {
            Some(true) => "user.disable",
            Some(false) => "user.enable",
            None => "user.update",
        };
        audit_insert(&mut tx, who, info, entry(action, "user", &public, 200), now).await?;
        holdfast_store::commit(tx).await?;
        self.user_find(who, &public).await
    }
}

fn word(is_admin: bool) -> &'static str {
    if is_admin { "admin" } else { "user" }
}
