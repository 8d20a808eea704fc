//! Who belongs to a workspace, and as what.
//!
//! The one rule: what an owner is, only an owner gives and takes. An administrator of the workspace manages everybody
//! else; whoever runs the installation manages all.

use holdfast_model::access::{Action, Role};
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::Tx;
use holdfast_store::audit::audit_insert;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::invitations::invitations_revoke_by;
use holdfast_store::members::{Member, member_put, member_remove, member_role, owner_stays};

use super::{entry, in_workspace, role, user_id};
use crate::{Control, Principal, RequestInfo};

/// In whose name members are seen and changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// A member's own role in the workspace.
    OfMember,
    /// The right to run the installation.
    OfInstallation,
}

/// What becomes of a membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Becomes {
    /// This role, for somebody who is a member or, if `added`, also for somebody who is not yet.
    Role { role: Role, added: bool },
    /// It ends.
    Nothing,
}

fn no_member() -> Error {
    Error::new(Code::MemberNotFound, "There is no such member in the workspace.")
}

impl Control {
    /// A page of the members of a workspace, and how many there are.
    pub async fn members(
        &self,
        who: &Principal,
        right: Right,
        workspace: &str,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<Member>, i64), Error> {
        let workspace = match right {
            Right::OfMember => self.workspace_of(who, workspace).await?.id,
            Right::OfInstallation => self.workspace_any(who, workspace).await?.id,
        };
        self.store.members(workspace, limit, offset).await
    }

    /// Gives a member another role. Whoever runs the installation makes a member of a user who is none yet, too.
    pub async fn member_put(
        &self,
        who: &Principal,
        info: &RequestInfo,
        right: Right,
        (workspace, user): (&str, &str),
        word: &str,
    ) -> Result<Member, Error> {
        let becomes = Becomes::Role { role: role("role", word)?, added: right == Right::OfInstallation };
        let (workspace, user) = self.membership(who, right, workspace, user).await?;
        self.member_becomes(who, info, right, (workspace, user), becomes).await?;
        self.store.member(workspace, user).await?.ok_or_else(no_member)
    }

    /// Takes a user out of a workspace, together with their keys for it.
    pub async fn member_remove(
        &self,
        who: &Principal,
        info: &RequestInfo,
        right: Right,
        (workspace, user): (&str, &str),
    ) -> Result<(), Error> {
        let membership = self.membership(who, right, workspace, user).await?;
        self.member_becomes(who, info, right, membership, Becomes::Nothing).await
    }

    /// Takes the caller out of a workspace that they belong to, whichever their key is of.
    pub async fn workspace_leave(&self, who: &Principal, info: &RequestInfo, workspace: &str) -> Result<(), Error> {
        let workspace = self.workspace_of(who, workspace).await?.id;
        self.member_becomes(who, info, Right::OfMember, (workspace, who.user_id), Becomes::Nothing).await
    }

    /// The workspace and the user that a request names, whether or not the one belongs to the other. A member's right is one
    /// to the workspace of their key, and to users by their `usr_` id alone.
    async fn membership(
        &self,
        who: &Principal,
        right: Right,
        workspace: &str,
        user: &str,
    ) -> Result<(i64, i64), Error> {
        match right {
            Right::OfMember => {
                self.workspace_here(who, workspace).await?;
                Ok((who.workspace_id, hashid::decode(Prefix::User, user).ok_or_else(no_member)?))
            }
            Right::OfInstallation => {
                let workspace = self.workspace_any(who, workspace).await?.id;
                Ok((workspace, self.user_find(who, user).await?.id))
            }
        }
    }

    async fn member_becomes(
        &self,
        who: &Principal,
        info: &RequestInfo,
        right: Right,
        (workspace, user): (i64, i64),
        becomes: Becomes,
    ) -> Result<(), Error> {
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(());
        }
        let was = role_in(&mut tx, workspace, user).await?;
        if was.is_none() && !matches!(becomes, Becomes::Role { added: true, .. }) {
            return Err(no_member());
        }
        if right == Right::OfMember {
            let mine = role_in(&mut tx, workspace, who.user_id).await?;
            check_right(mine, user == who.user_id, was, becomes)?;
        }
        let action = match becomes {
            Becomes::Role { role, .. } => {
                member_put(&mut tx, workspace, user, role.word(), now).await?;
                if was.is_none() { "member.add" } else { "member.update" }
            }
            Becomes::Nothing => {
                member_remove(&mut tx, workspace, user, now).await?;
                if user == who.user_id { "member.leave" } else { "member.remove" }
            }
        };
        if was == Some(Role::Owner) {
            owner_stays(&mut tx, workspace).await?;
        }
        let invites = matches!(becomes, Becomes::Role { role: Role::Admin | Role::Owner, .. });
        if !invites {
            invitations_revoke_by(&mut tx, Some(workspace), user, now).await?;
        }
        let there = in_workspace(who, workspace);
        audit_insert(&mut tx, &there, info, entry(action, "user", &user_id(user), 200), now).await?;
        holdfast_store::commit(tx).await
    }
}

/// A user's role, as this transaction has it.
pub(super) async fn role_in(tx: &mut Tx, workspace: i64, user: i64) -> Result<Option<Role>, Error> {
    let word = member_role(tx, workspace, user).await?;
    Ok(word.and_then(|word| Role::parse(&word)))
}

/// Whether a member in the role `mine` may do this to a membership.
fn check_right(mine: Option<Role>, of_myself: bool, was: Option<Role>, becomes: Becomes) -> Result<(), Error> {
    let refused = |why: &str| Err(Error::new(Code::Forbidden, why));
    if of_myself && becomes == Becomes::Nothing {
        return Ok(());
    }
    let Some(mine) = mine.filter(|mine| holdfast_model::access::allows(*mine, false, Action::ManageMembers)) else {
        return refused(Action::ManageMembers.refusal());
    };
    let of_owner = was == Some(Role::Owner) || matches!(becomes, Becomes::Role { role: Role::Owner, .. });
    if of_owner && mine != Role::Owner {
        return refused("Only an owner of the workspace can do this.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_for_owners() {
        let gives = |role| Becomes::Role { role, added: false };
        let may = |mine, was, becomes| check_right(Some(mine), false, Some(was), becomes).is_ok();
        assert!(may(Role::Admin, Role::Member, gives(Role::Admin)));
        assert!(may(Role::Admin, Role::Admin, Becomes::Nothing));
        assert!(!may(Role::Admin, Role::Member, gives(Role::Owner)));
        assert!(!may(Role::Admin, Role::Owner, gives(Role::Reader)));
        assert!(!may(Role::Admin, Role::Owner, Becomes::Nothing));
        assert!(may(Role::Owner, Role::Owner, Becomes::Nothing));
        assert!(!may(Role::Member, Role::Reader, gives(Role::Member)));
        assert!(check_right(Some(Role::Reader), true, Some(Role::Reader), Becomes::Nothing).is_ok());
        // Whoever was taken out in the meantime.
        assert!(check_right(None, false, Some(Role::Reader), Becomes::Nothing).is_err());
    }
}
