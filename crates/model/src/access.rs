//! Who may do what: one table of roles and actions.
//!
//! The one rule: nothing else decides. A handler names its action as a type (`Caller<WriteVms>`), the extractor asks this
//! table, and a test walks every route of every document through every role; so a permission is read here and nowhere else.
//!
//! ```text
//!                 reader  member  admin  owner      installation's admin                     reach
//!  read             x       x       x      x        x   in workspaces they belong to        projects
//!  own              x       x       x      x        x   (their own keys, sessions, tokens)  projects
//!  vms.write                x       x      x        .                                       projects
//!  audit.read                       x      x        x                                       projects
//!  projects.manage                  x      x        .                                       workspace
//!  webhooks.manage                  x      x        .                                       workspace
//!  members.manage                   x      x        .                                       workspace
//!  admin                                            x                                       workspace
//! ```
//!
//! What an action reaches says whether a credential that is limited to projects has it: what is about projects it has in
//! its own, what is about the workspace as a whole it does not. A route whose action is about projects can itself be about
//! the workspace, as one that adds an SSH key is; it says so with `Caller<Whole<Own>>`.

use serde::{Deserialize, Serialize};

/// What a member may do in a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Sees what there is.
    Reader,
    /// Makes, changes and deletes CVMs too.
    Member,
    /// Runs the workspace too: members, invitations, webhooks, the audit log.
    Admin,
    /// An administrator whom only another owner can remove. A workspace always has one.
    Owner,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Reader, Self::Member, Self::Admin, Self::Owner];

    /// The word in the database and in answers.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role of this word. `read-only` and `viewer` are other words for a reader.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "reader" | "read-only" | "viewer" => Some(Self::Reader),
            "member" => Some(Self::Member),
            "admin" => Some(Self::Admin),
            "owner" => Some(Self::Owner),
            _ => None,
        }
    }
}

/// Gives the names of all actions to a macro, so that what is made for each of them is made for every one.
#[macro_export]
macro_rules! each_action {
    ($make:ident) => {
        $make! { Read, Own, WriteVms, ReadAudit, ManageProjects, ManageWebhooks, ManageMembers, RunInstallation }
    };
}

macro_rules! count {
    ($($name:ident),*) => { [$(Action::$name),*].len() };
}

macro_rules! all {
    ($($name:ident),*) => { [$(Action::$name),*] };
}

/// What a request wants to do. Every route has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Action {
    /// To see what the workspace has.
    Read,
    /// To manage what is the caller's own: SSH keys, API tokens, sessions, leaving a workspace.
    Own,
    /// To make, change and delete CVMs, and to intervene in their operations.
    WriteVms,
    /// To read who asked for what in the workspace.
    ReadAudit,
    /// To make, rename and delete the workspace's projects.
    ManageProjects,
    /// To manage the workspace's webhooks and see their secrets.
    ManageWebhooks,
    /// To invite, to change roles, to remove members.
    ManageMembers,
    /// To see and run the whole installation.
    RunInstallation,
}

impl Action {
    pub const ALL: [Self; each_action!(count)] = each_action!(all);

    /// The word in documents, in the scopes of a token and in the engine's plans.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Own => "own",
            Self::WriteVms => "vms.write",
            Self::ReadAudit => "audit.read",
            Self::ManageProjects => "projects.manage",
            Self::ManageWebhooks => "webhooks.manage",
            Self::ManageMembers => "members.manage",
            Self::RunInstallation => "admin",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.word() == word)
    }

    /// What it is about, unless its route says that it is about more.
    pub const fn reach(self) -> Reach {
        match self {
            Self::Read | Self::Own | Self::WriteVms | Self::ReadAudit => Reach::Projects,
            Self::ManageProjects | Self::ManageWebhooks | Self::ManageMembers | Self::RunInstallation => {
                Reach::Workspace
            }
        }
    }

    /// Why somebody without the permission is refused.
    pub const fn refusal(self) -> &'static str {
        match self {
            Self::Read | Self::Own => "Your role in this workspace does not allow this.",
            Self::WriteVms => "Your role in this workspace can only read.",
            Self::ReadAudit => "Your role in this workspace cannot read the audit log.",
            Self::ManageProjects => "Your role in this workspace cannot manage its projects.",
            Self::ManageWebhooks => "Your role in this workspace cannot manage webhooks.",
            Self::ManageMembers => "Your role in this workspace cannot manage its members.",
            Self::RunInstallation => "This is for administrators of the installation.",
        }
    }
}

/// How far a request reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// What is in projects, or the same for everybody. Whoever is limited to some of them sees those and no others.
    Projects,
    /// The workspace as a whole, or its caller beyond it.
    Workspace,
}

impl TryFrom<String> for Action {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        Self::parse(&word).ok_or_else(|| format!("no action is called \"{word}\""))
    }
}

impl From<Action> for &'static str {
    fn from(action: Action) -> Self {
        action.word()
    }
}

/// The table. `installation_admin` is a right of the user, beside their role in the workspace.
pub const fn allows(role: Role, installation_admin: bool, action: Action) -> bool {
    match action {
        Action::Read | Action::Own => true,
        Action::WriteVms => matches!(role, Role::Member | Role::Admin | Role::Owner),
        Action::ReadAudit => installation_admin || matches!(role, Role::Admin | Role::Owner),
        Action::ManageProjects | Action::ManageWebhooks | Action::ManageMembers => {
            matches!(role, Role::Admin | Role::Owner)
        }
        Action::RunInstallation => installation_admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.word()), Some(role));
        }
        for action in Action::ALL {
            assert_eq!(Action::parse(action.word()), Some(action));
        }
        assert_eq!(Role::parse("root"), None);
        assert_eq!(Action::parse(""), None);
    }

    #[test]
    fn a_higher_role_may_do_what_a_lower_one_may() {
        for action in Action::ALL {
            for pair in Role::ALL.windows(2) {
                assert!(!allows(pair[0], false, action) || allows(pair[1], false, action), "{pair:?} {action:?}");
            }
        }
    }

    #[test]
    fn no_role_in_a_workspace_runs_the_installation() {
        assert!(Role::ALL.into_iter().all(|role| !allows(role, false, Action::RunInstallation)));
        assert!(allows(Role::Reader, true, Action::RunInstallation));
        assert!(!allows(Role::Reader, true, Action::WriteVms));
    }
}
