//! What of a workspace a caller sees.
//!
//! The one rule: whoever looks for a CVM, an app, an operation or an entry of the audit log brings a scope, and a scope comes
//! from a [`Principal`](crate::tenancy::Principal) ([`Principal::scope`](crate::tenancy::Principal::scope)). What is outside
//! of it is not there, in whatever words it is asked for. What is reached through a row that was found in a scope (the
//! revisions of an app, the events of an operation) is within it, because an app and all that comes of it belong to one
//! project for ever.

use crate::sql::Query;

/// A workspace, or some of its projects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    workspace: i64,
    /// Internal ids; `None`: all of them, also those to come.
    projects: Option<Vec<i64>>,
}

impl Scope {
    /// All of a workspace.
    pub const fn whole(workspace: i64) -> Self {
        Self { workspace, projects: None }
    }

    /// These projects of a workspace; with `None` all of it.
    pub fn of(workspace: i64, projects: Option<&[i64]>) -> Self {
        let projects = projects.map(|projects| {
            let mut projects = projects.to_vec();
            projects.sort_unstable();
            projects.dedup();
            projects
        });
        Self { workspace, projects }
    }

    pub const fn workspace(&self) -> i64 {
        self.workspace
    }

    /// The projects that it is limited to, each once and in order.
    pub(crate) fn projects(&self) -> Option<&[i64]> {
        self.projects.as_deref()
    }

    /// Whether something of this workspace and project is seen.
    pub fn admits(&self, workspace: i64, project: i64) -> bool {
        workspace == self.workspace && self.projects().is_none_or(|projects| projects.contains(&project))
    }

    /// The condition that rows of `table`, which has columns for both, are seen.
    pub(crate) fn push(&self, query: &mut Query, table: &str) {
        query.push(format!("{table}.workspace_id = ")).push_bind(self.workspace);
        self.push_projects(query, &format!(" AND {table}.project_id"));
    }

    /// Of that, what the projects add: nothing for a whole workspace. `column` has the `AND` before it.
    pub(crate) fn push_projects(&self, query: &mut Query, column: &str) {
        match self.projects() {
            None => {}
            // No database knows an empty list.
            Some([]) => {
                query.push(" AND 1 = 0");
            }
            Some([project]) => {
                query.push(column).push(" = ").push_bind(*project);
            }
            Some(projects) => {
                query.push(column).push(" IN (").push_list(projects).push(")");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql;

    fn pushed(scope: &Scope) -> String {
        let mut query = sql::query("");
        scope.push(&mut query, "v");
        query.text().to_owned()
    }

    #[test]
    fn a_whole_workspace_asks_for_nothing_more() {
        let scope = Scope::whole(7);
        assert_eq!(pushed(&scope), "v.workspace_id = ?");
        assert!(scope.admits(7, 1) && !scope.admits(8, 1));
        assert_eq!(Scope::of(7, None), scope);
    }

    #[test]
    fn projects_are_as_many_as_there_are() {
        let scope = Scope::of(7, Some(&[3, 1, 3]));
        assert_eq!(pushed(&scope), "v.workspace_id = ? AND v.project_id IN (?, ?)");
        assert_eq!(scope, Scope::of(7, Some(&[1, 3])));
        assert!(scope.admits(7, 3) && !scope.admits(7, 2) && !scope.admits(8, 3));
        assert_eq!(pushed(&Scope::of(7, Some(&[3]))), "v.workspace_id = ? AND v.project_id = ?");
        let nowhere = Scope::of(7, Some(&[]));
        assert_eq!(pushed(&nowhere), "v.workspace_id = ? AND 1 = 0");
        assert!(!nowhere.admits(7, 1));
    }
}
