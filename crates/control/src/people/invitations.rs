//! Invitations: a code that makes a member of whoever brings it.
//!
//! The one rule: the code is in the answer that made it and in no other, and the permission of whoever gave it out counts
//! when it is used too: their open codes are worthless from the moment they may not invite any more.

use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::access::{Action, Role};
use holdfast_model::error::{Code, Error};
use holdfast_store::audit::audit_insert;
use holdfast_store::idempotency::{idempotency_created, idempotency_take};
use holdfast_store::invitations::{
    self, Invitation, invitation_create, invitation_of, invitation_revoke, invitation_use, invitation_with,
};
use holdfast_store::members::member_put;
use holdfast_store::workspaces::{By, Workspace};
use zeroize::Zeroizing;

use super::members::role_in;
use super::{entry, in_workspace, names, no_workspace, role};
use crate::identity::secret_hash;
use crate::{Control, Principal, RequestInfo};

/// How long a code works.
pub const INVITATION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

const PREFIX: &str = "hfinv_";
/// Characters of the code that a list shows behind the prefix.
const SHOWN: usize = 4;

/// An invitation that was just made.
pub struct NewInvitation {
    pub id: i64,
    /// Shown once.
    pub code: Zeroizing<String>,
    pub role: Role,
    pub email: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

impl Control {
    /// A page of the invitations to the caller's workspace, the newest first, and how many there are.
    pub async fn invitations(
        &self,
        who: &Principal,
        workspace: &str,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<Invitation>, i64), Error> {
        who.require(Action::ManageMembers)?;
        self.workspace_here(who, workspace).await?;
        self.store.invitations(who.workspace_id, limit, offset).await
    }

    /// Makes a code: with an address for one person, without one for as many as get to know it before it expires. The
    /// server sends no mail; whoever invites passes the code on.
    pub async fn invitation_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        workspace: &str,
        email: Option<&str>,
        word: &str,
    ) -> Result<NewInvitation, Error> {
        who.require(Action::ManageMembers)?;
        self.workspace_here(who, workspace).await?;
        let role = role("role", word)?;
        let email = email.map(|text| names::email("email", text)).transpose()?;
        let random = Zeroizing::new(holdfast_trust::random::<32>().map_err(Error::internal)?);
        let code = Zeroizing::new(format!("{PREFIX}{}", hex::encode(random.as_slice())));
        let (now, workspace) = (self.now(), who.workspace_id);
        let expires_at = now.plus(INVITATION_LIFETIME);
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            // Never false: a key that was taken by this request names what it made, and that is refused.
            idempotency_take(&mut tx, workspace, key, now).await?;
        }
        let mine = role_in(&mut tx, workspace, who.user_id).await?;
        if role == Role::Owner && mine != Some(Role::Owner) {
            return Err(Error::new(Code::Forbidden, "Only an owner of the workspace can invite another owner."));
        }
        let new = invitations::NewInvitation {
            workspace,
            email: email.as_deref(),
            role: role.word(),
            hash: &secret_hash(&code),
            prefix: &code[..PREFIX.len() + SHOWN],
            invited_by: who.user_id,
            expires_at,
        };
        let id = invitation_create(&mut tx, new, now).await?;
        let public = id.to_string();
        if let Some(key) = &info.idempotency {
            idempotency_created(&mut tx, workspace, key, &format!("invitation {public}")).await?;
        }
        audit_insert(&mut tx, who, info, entry("invitation.create", "invitation", &public, 200), now).await?;
        holdfast_store::commit(tx).await?;
        Ok(NewInvitation { id, code, role, email, created_at: now, expires_at })
    }

    /// Makes the code of an open invitation worthless.
    pub async fn invitation_revoke(
        &self,
        who: &Principal,
        info: &RequestInfo,
        workspace: &str,
        id: i64,
    ) -> Result<(), Error> {
        who.require(Action::ManageMembers)?;
        self.workspace_here(who, workspace).await?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(());
        }
        let found = invitation_of(&mut tx, who.workspace_id, id).await?.ok_or_else(no_invitation)?;
        check_open(&found, now)?;
        invitation_revoke(&mut tx, id, now).await?;
        let public = id.to_string();
        audit_insert(&mut tx, who, info, entry("invitation.revoke", "invitation", &public, 200), now).await?;
        holdfast_store::commit(tx).await
    }

    /// Makes the caller a member of the workspace that a code invites to. Answers that workspace with their role in it.
    pub async fn invitation_accept(&self, who: &Principal, info: &RequestInfo, code: &str) -> Result<Workspace, Error> {
        let now = self.now();
        let mut tx = self.store.begin().await?;
        let found = invitation_with(&mut tx, &secret_hash(code)).await?.ok_or_else(no_invitation)?;
        let fresh = match &info.idempotency {
            Some(key) => idempotency_take(&mut tx, who.workspace_id, key, now).await?,
            None => true,
        };
        if fresh {
            check_open(&found, now)?;
            if role_in(&mut tx, found.workspace_id, who.user_id).await?.is_some() {
                return Err(Error::new(Code::AlreadyMember, "You are a member of this workspace already."));
            }
            invitation_use(&mut tx, found.id, who.user_id, now).await?;
            member_put(&mut tx, found.workspace_id, who.user_id, &found.role, now).await?;
            let (there, public) = (in_workspace(who, found.workspace_id), found.id.to_string());
            audit_insert(&mut tx, &there, info, entry("invitation.accept", "invitation", &public, 200), now).await?;
            holdfast_store::commit(tx).await?;
        } else {
            drop(tx);
        }
        let joined = self.store.workspace(Some(who.user_id), By::Key(found.workspace_id)).await?;
        joined.ok_or_else(no_workspace)
    }
}

fn no_invitation() -> Error {
    Error::new(Code::InvitationNotFound, "There is no such invitation.")
}

/// Refuses an invitation that is over.
fn check_open(invitation: &Invitation, now: Timestamp) -> Result<(), Error> {
    match invitation.status(now) {
        "pending" => Ok(()),
        "expired" => Err(Error::new(Code::InvitationOver, "The invitation has expired.")),
        how => Err(Error::new(Code::InvitationOver, format!("The invitation was {how} already."))),
    }
}
