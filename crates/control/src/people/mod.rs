//! People, the workspaces they belong to, and how they come and go.
//!
//! The one rule: whoever changes something is looked at again inside the transaction that changes it. What the caller was
//! when they were authenticated may be over by then, and two who would each leave one owner behind must not leave none.

mod invitations;
mod members;
pub(crate) mod names;
mod users;
mod workspaces;

use holdfast_model::access::Role;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::audit;
use holdfast_store::workspaces::By;

pub use invitations::{INVITATION_LIFETIME, NewInvitation};
pub use members::Right;
pub use users::{NewUser, UserChange};
pub use workspaces::{NewWorkspace, SlugFault, WorkspaceChange};

use crate::Principal;

/// The public id of a user.
pub fn user_id(user: i64) -> String {
    hashid::encode(Prefix::User, user)
}

/// The public id of a workspace.
pub fn workspace_id(workspace: i64) -> String {
    hashid::encode(Prefix::Workspace, workspace)
}

/// A slug or a `wks_` id.
fn workspace_by(text: &str) -> By<'_> {
    hashid::decode(Prefix::Workspace, text).map_or(By::Slug(text), By::Key)
}

/// The same for a workspace that there is not, or not for the caller.
fn no_workspace() -> Error {
    Error::new(Code::WorkspaceNotFound, "The requested workspace was not found.")
}

/// The caller as the audit log of another workspace names them.
fn in_workspace(who: &Principal, workspace: i64) -> Principal {
    Principal { workspace_id: workspace, ..who.clone() }
}

pub(crate) fn entry<'a>(action: &'a str, kind: &'a str, id: &'a str, status_code: u16) -> audit::Entry<'a> {
    audit::Entry { action, target_type: kind, target_id: id, operation_id: None, status_code }
}

/// A role word of a request.
fn role(field: &str, word: &str) -> Result<Role, Error> {
    Role::parse(word).ok_or_else(|| Error::field("body", field, "enum", "must be owner, admin, member or reader"))
}
