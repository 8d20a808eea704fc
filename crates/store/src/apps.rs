//! Apps: what a workspace calls a deployment, whatever CVMs it has at the moment.
//!
//! The one rule: an app is listed while it has a living CVM, and a filter holds when one such CVM fulfils all of it.

use holdfast_model::error::Error;

use crate::scope::Scope;
use crate::sql::{self, Query, record};
use crate::{Store, Tx, fault};

/// An app of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub id: i64,
    /// The project that it belongs to for ever, and its CVMs with it.
    pub project_id: i64,
    /// 40 hex digits.
    pub app_id: String,
    pub name: String,
    pub created_at: i64,
}

record!(App { id, project_id, app_id, name, created_at });

const APPS: &str = "SELECT a.id, a.project_id, a.app_id, a.name, a.created_at FROM app a";

/// Which apps a list shows. Everything set must hold of one living CVM.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// How a CVM's name, app id, UUID or instance id begins; lower case.
    pub search: Option<String>,
    pub statuses: Vec<String>,
    pub listed: Option<bool>,
    pub image: Option<String>,
    pub instance_type: Option<String>,
    /// Name of a node.
    pub node: Option<String>,
    pub region: Option<String>,
}

/// What some living CVM is, in the words that [`Filter`] takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterOption {
    pub status: String,
    pub image: String,
    pub instance_type: Option<String>,
    pub node: String,
    pub region: Option<String>,
}

record!(FilterOption { status, image, instance_type, node, region });

impl Filter {
    fn push(&self, query: &mut Query, scope: &Scope) {
        query.push(" WHERE ");
        scope.push(query, "a");
        query.push(" AND EXISTS (SELECT 1 FROM vm v JOIN node n ON n.id = v.node_id");
        query.push(" WHERE v.app_row = a.id AND v.deleted_at IS NULL");
        for (column, value) in [
            (" AND v.image = ", &self.image),
            (" AND v.instance_type = ", &self.instance_type),
            (" AND n.name = ", &self.node),
            (" AND n.region = ", &self.region),
        ] {
            if let Some(value) = value {
                query.push(column).push_bind(value.clone());
            }
        }
        if let Some(listed) = self.listed {
            query.push(" AND v.listed = ").push_bind(listed);
        }
        if !self.statuses.is_empty() {
            query.push(" AND v.status IN (");
            query.push_list(&self.statuses).push(")");
        }
        if let Some(search) = &self.search {
            let pattern = prefix_pattern(search);
            query.push(" AND (");
            for (i, column) in ["LOWER(v.name)", "a.app_id", "v.uuid", "v.instance_id"].into_iter().enumerate() {
                query.push(if i > 0 { " OR " } else { "" }).push(column).push(" LIKE ");
                query.push_bind(pattern.clone()).push(" ESCAPE '!'");
            }
            query.push(")");
        }
        query.push(")");
    }
}

/// Matches what begins with `text`, whose own wildcards mean themselves.
fn prefix_pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        if matches!(c, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}

impl Store {
    /// Apps that a scope has and that have a living CVM, newest first, and how many there are in all.
    pub async fn apps(
        &self,
        scope: &Scope,
        filter: &Filter,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<App>, i64), Error> {
        let mut query = sql::query(APPS);
        filter.push(&mut query, scope);
        query.push(" ORDER BY a.id DESC LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        let apps = query.fetch_all(self.read()).await.map_err(fault)?;
        let mut query = sql::query("SELECT COUNT(*) FROM app a");
        filter.push(&mut query, scope);
        let total = query.fetch_one(self.read()).await.map_err(fault)?;
        Ok((apps, total))
    }

    /// An app by its app id, whether or not it has CVMs.
    pub async fn app(&self, scope: &Scope, app_id: &str) -> Result<Option<App>, Error> {
        app_by(scope, app_id).fetch_optional(self.by_key()).await.map_err(fault)
    }

    /// An app by its internal key.
    pub async fn app_by_row(&self, scope: &Scope, id: i64) -> Result<Option<App>, Error> {
        let mut query = sql::query(APPS);
        query.push(" WHERE ");
        scope.push(&mut query, "a");
        query.push(" AND a.id = ").push_bind(id);
        query.fetch_optional(self.by_key()).await.map_err(fault)
    }

    /// What the living CVMs of a scope are, each combination once.
    pub async fn app_filter_options(&self, scope: &Scope) -> Result<Vec<FilterOption>, Error> {
        let mut query = sql::query(
            "SELECT DISTINCT v.status, v.image, v.instance_type, n.name AS node, n.region FROM vm v
             JOIN node n ON n.id = v.node_id WHERE ",
        );
        scope.push(&mut query, "v");
        query.push(" AND v.deleted_at IS NULL");
        query.fetch_all(self.read()).await.map_err(fault)
    }

    /// The nonce that the workspace's next app gets unless its id is taken.
    pub async fn next_nonce(&self, workspace: i64) -> Result<i64, Error> {
        sql::query("SELECT next_nonce FROM workspace WHERE id = $1")
            .bind(workspace)
            .fetch_one(self.by_key())
            .await
            .map_err(fault)
    }

    /// Those of these app ids that an app has, or that a provision of the workspace waits with.
    pub async fn app_ids_taken(&self, workspace: i64, app_ids: &[&str]) -> Result<Vec<String>, Error> {
        taken(workspace, app_ids).fetch_all(self.read()).await.map_err(fault)
    }
}

fn app_by(scope: &Scope, app_id: &str) -> Query {
    let mut query = sql::query(APPS);
    query.push(" WHERE ");
    scope.push(&mut query, "a");
    query.push(" AND a.app_id = ").push_bind(app_id);
    query
}

/// [`Store::app`], as this transaction has it.
pub async fn app_in(tx: &mut Tx, scope: &Scope, app_id: &str) -> Result<Option<App>, Error> {
    app_by(scope, app_id).fetch_optional(&mut **tx).await.map_err(fault)
}

/// True when an app has this id, or a provision of the workspace waits with it.
pub async fn app_id_is_taken(tx: &mut Tx, workspace: i64, app_id: &str) -> Result<bool, Error> {
    let query = taken(workspace, &[app_id]);
    let found: Option<String> = query.fetch_optional(&mut **tx).await.map_err(fault)?;
    Ok(found.is_some())
}

fn taken(workspace: i64, app_ids: &[&str]) -> Query {
    let mut query = sql::query("SELECT app_id FROM app WHERE app_id IN (");
    query.push_list(app_ids).push(") UNION SELECT app_id FROM provision WHERE workspace_id = ").push_bind(workspace);
    query.push(" AND app_id IN (").push_list(app_ids).push(")");
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_of_a_search_mean_themselves() {
        assert_eq!(prefix_pattern("a_b%c!"), "a!_b!%c!!%");
    }
}
