//! A database with many CVMs: copies of one that a server made, in many workspaces with a user and a key each.
//!
//! The one rule: a row is copied whole and only what it is, whose it is and where it lies is changed, so that the server
//! reads what it would have written. What neither route reads, an operation's events and audit row, is not copied.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use holdfast_harness::client::provision_body;
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::bench::ops::Bench;
use crate::bench::ops::cloud::{Cloud, create};
use crate::bench::ops::feed::Ends;
use crate::bench::ops::history::{Copies, fill, forget_others, mix, schema_of, uuid};
use crate::bench::ops::http;
use crate::{root, ui};

/// What the template is called; no other text of its rows holds this word.
const NAME: &str = "bench-api-template";
const NODE_PORTS: i64 = 20_000;

/// How many CVMs there are, and where.
#[derive(Debug, Clone, Copy)]
pub struct Many {
    pub workspaces: i64,
    /// CVMs of each workspace, and of each node.
    pub of_each: i64,
}

impl Many {
    pub fn count(self) -> i64 {
        self.workspaces * self.of_each
    }

    /// As many as workspaces; each workspace's CVMs are on as many nodes as it has CVMs, or on all.
    pub fn nodes(self) -> i64 {
        self.workspaces
    }

    pub fn workspace_of(self, number: i64) -> i64 {
        number / self.of_each
    }

    fn node_of(self, number: i64) -> i64 {
        number % self.nodes()
    }

    /// A CVM's UUID.
    pub fn uuid(self, number: i64) -> String {
        uuid(number | 1 << 40)
    }

    /// A workspace's API key.
    pub fn key(self, workspace: i64) -> String {
        format!("bench-{:016x}", mix((workspace | 2 << 40) as u64))
    }

    /// Its sha256, as the database keeps it.
    pub fn key_hash(self, workspace: i64) -> String {
        hex(&Sha256::digest(self.key(workspace).as_bytes()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 40 hex digits.
fn hex40(number: i64) -> String {
    format!("{:016x}{:016x}{:08x}", mix(number as u64), mix(!number as u64), number as u32)
}

/// A data folder with that many CVMs; made once and kept in the build folder.
pub fn kept(bench: &Bench, many: Many) -> Result<PathBuf> {
    let template = template(bench)?;
    let schema = schema_of(&template)?;
    forget_others(bench, schema)?;
    let folder = bench.cache.join(format!("schema-{schema}-cvms-{}", many.count()));
    if is_whole(&folder, many) {
        return Ok(folder);
    }
    let start = Instant::now();
    let unfinished = folder.with_extension("unfinished");
    fill(&template, &unfinished, |db| Filler::new(db, many)?.run())?;
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&unfinished, &folder)?;
    ui::say(format!("  made   {} CVMs ({})", many.count(), ui::seconds(start.elapsed())));
    Ok(folder)
}

fn is_whole(folder: &Path, many: Many) -> bool {
    let count = || -> rusqlite::Result<i64> {
        let db = Connection::open_with_flags(folder.join("holdfast.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        // One of them is the template.
        db.query_row("SELECT COUNT(*) FROM vm WHERE deleted_at IS NULL", [], |row| row.get(0))
    };
    count().is_ok_and(|count| count == many.count() + 1)
}

/// The folder of a server that made one CVM, which publishes a port, and ended.
fn template(bench: &Bench) -> Result<PathBuf> {
    let folder = bench.scratch("template")?;
    let compose = fs::read_to_string(root().join("examples/hello/docker-compose.yml"))?;
    let mut cloud = Cloud::start(&bench.binary, &folder)?;
    bench.runtime.block_on(async {
        let ends = Ends::follow(&cloud.target).await?;
        let mut connection = http::Connection::open(&cloud.target).await?;
        let body = provision_body(NAME, &compose, &json!({}));
        let answer = connection.post("/api/v1/cvms/provision", &body).await?;
        let commit = json!({"app_id": answer["app_id"], "compose_hash": answer["compose_hash"]});
        let cvm = create(&mut connection, &commit).await?;
        ends.wait(&cvm).await
    })?;
    cloud.server.stop()?;
    Ok(folder)
}

/// Tables whose rows are a workspace, in the order in which they refer to each other.
const OF_WORKSPACE: [&str; 5] = ["user_account", "workspace", "workspace_member", "project", "api_key"];
const OF_NODE: [&str; 2] = ["node_token", "node"];
const OF_VM: [&str; 12] = [
    "app",
    "app_compose",
    "app_compose_project",
    "vm",
    "vm_name",
    "vm_port",
    "vm_desired",
    "vm_observed",
    "vm_revision",
    "vm_usage",
    "operation",
    "operation_resource",
];

/// A column's name and what stands there instead.
type Changes = Vec<(&'static str, Value)>;

struct Filler<'a> {
    db: &'a Connection,
    many: Many,
    workspaces: Vec<Table>,
    nodes: Vec<Table>,
    vms: Vec<Table>,
    /// The template's keys; the copies' follow.
    first: First,
}

struct Table {
    name: &'static str,
    copies: Copies,
}

struct First {
    workspace: i64,
    user: i64,
    project: i64,
    api_key: i64,
    node: i64,
    token: i64,
    app: i64,
    vm: i64,
    operation: i64,
    usage: i64,
}

impl<'a> Filler<'a> {
    fn new(db: &'a Connection, many: Many) -> Result<Self> {
        let tables = |names: &[&'static str]| -> Result<Vec<Table>> {
            names.iter().map(|name| Ok(Table { name, copies: Copies::of(db, name, "")? })).collect()
        };
        let largest = |table: &str| -> Result<i64> {
            let largest: Option<i64> = db.query_row(&format!("SELECT MAX(id) FROM {table}"), [], |row| row.get(0))?;
            largest.with_context(|| format!("the template has no {table}"))
        };
        let first = First {
            workspace: largest("workspace")?,
            user: largest("user_account")?,
            project: largest("project")?,
            api_key: largest("api_key")?,
            node: largest("node")?,
            token: largest("node_token")?,
            app: largest("app")?,
            vm: largest("vm")?,
            operation: largest("operation")?,
            usage: largest("vm_usage")?,
        };
        Ok(Self { db, many, workspaces: tables(&OF_WORKSPACE)?, nodes: tables(&OF_NODE)?, vms: tables(&OF_VM)?, first })
    }

    fn run(&self) -> Result<()> {
        for number in 0..self.many.workspaces {
            self.workspace(number)?;
        }
        for number in 0..self.many.nodes() {
            self.node(number)?;
        }
        for number in 0..self.many.count() {
            self.vm(number)?;
        }
        // Every VM is as large as the first one, for which the first node's row was written.
        let many = "used_slots = used_slots * n, used_vcpu = used_vcpu * n, used_memory_mb = used_memory_mb * n,
            used_disk_gb = used_disk_gb * n";
        let of_each = "(SELECT node_id, COUNT(*) AS n FROM vm GROUP BY node_id) AS counted";
        let sql = format!("UPDATE node SET {many} FROM {of_each} WHERE id = node_id");
        self.db.execute(&sql, []).map(drop)?;
        Ok(())
    }

    fn workspace(&self, number: i64) -> Result<()> {
        let (first, name) = (&self.first, format!("team-{number}"));
        let (user, workspace) = (first.user + 1 + number, first.workspace + 1 + number);
        for (kind, table) in self.workspaces.iter().enumerate() {
            let id = match table.name {
                "user_account" => user,
                "workspace" => workspace,
                "project" => first.project + 1 + number,
                _ => first.api_key + 1 + number,
            };
            let mut changes = vec![
                ("id", Value::Integer(id)),
                ("uuid", Value::Text(uuid(number | (3 + kind as i64) << 40))),
                ("user_id", Value::Integer(user)),
                ("workspace_id", Value::Integer(workspace)),
                ("username", Value::Text(name.clone())),
                ("email", Value::Text(format!("{name}@localhost"))),
                ("slug", Value::Text(name.clone())),
                ("address", Value::Text(hex40(number | 10 << 40))),
                ("hash", Value::Text(self.many.key_hash(number))),
            ];
            if table.name == "workspace" {
                changes.push(("name", Value::Text(name.clone())));
            }
            self.copy(table, &changes, 0)?;
        }
        Ok(())
    }

    fn node(&self, number: i64) -> Result<()> {
        let (token, node) = (self.first.token + 1 + number, self.first.node + 1 + number);
        for table in &self.nodes {
            let changes = [
                ("id", Value::Integer(if table.name == "node" { node } else { token })),
                ("uuid", Value::Text(uuid(number | 11 << 40))),
                ("token_id", Value::Integer(token)),
                ("hash", Value::Text(hex40(number | 12 << 40))),
                ("name", Value::Text(format!("node-{number}"))),
                ("session", Value::Text(uuid(number | 13 << 40))),
            ];
            self.copy(table, &changes, 0)?;
        }
        Ok(())
    }

    fn vm(&self, number: i64) -> Result<()> {
        let (first, many) = (&self.first, self.many);
        let (name, operation) = (format!("cvm-{number}"), first.operation + 1 + number);
        let (workspace, node) = (many.workspace_of(number), first.node + 1 + many.node_of(number));
        let (vm, app) = (first.vm + 1 + number, first.app + 1 + number);
        let user = Value::Integer(first.user + 1 + workspace);
        let mut changes: Changes = vec![
            ("workspace_id", Value::Integer(first.workspace + 1 + workspace)),
            ("project_id", Value::Integer(first.project + 1 + workspace)),
            ("api_key_id", Value::Integer(first.api_key + 1 + workspace)),
            ("created_by", user.clone()),
            ("user_id", user),
            ("username", Value::Text(format!("team-{workspace}"))),
            ("email", Value::Text(format!("team-{workspace}@localhost"))),
            ("node_id", Value::Integer(node)),
            ("app_row", Value::Integer(app)),
            ("app_id", Value::Text(hex40(number | 20 << 40))),
            ("instance_id", Value::Text(hex40(number | 21 << 40))),
            ("vm_id", Value::Integer(vm)),
            ("resource_uuid", Value::Text(many.uuid(number))),
            ("resource_name", Value::Text(name.clone())),
            ("name", Value::Text(name.clone())),
            ("compose_hash", Value::Text(format!("{}{:024x}", hex40(number | 22 << 40), number))),
            ("operation_id", Value::Integer(operation)),
            ("host_port", Value::Integer(NODE_PORTS + number / many.nodes())),
        ];
        let shared = changes.len();
        // The newest was made last, one a second.
        let later = (number - many.count()) * 1_000_000;
        for table in &self.vms {
            changes.truncate(shared);
            let text = |column: &str| table.copies.text(column);
            match table.name {
                "app" => changes.extend(identity(app, uuid(number | 23 << 40))),
                "vm" => changes.extend(identity(vm, many.uuid(number))),
                "operation" => {
                    changes.extend(identity(operation, uuid(number | 24 << 40)));
                    changes.push(("resource_id", Value::Integer(vm)));
                }
                "vm_usage" => changes.extend(identity(first.usage + 1 + number, String::new())),
                "app_compose" => changes.push(("content", Value::Text(text("content")?.replace(NAME, &name)))),
                "vm_observed" => {
                    let mut report: serde_json::Value = serde_json::from_str(text("report")?)?;
                    report["uuid"] = many.uuid(number).into();
                    changes.push(("report", Value::Text(report.to_string())));
                }
                _ => {}
            }
            if table.name == "operation_resource" {
                for row in &table.copies.rows {
                    let on_node = row.contains(&Value::Text("node".to_owned()));
                    let resource = ("resource_id", Value::Integer(if on_node { node } else { vm }));
                    let changes = [&changes[..], &[resource]].concat();
                    table.copies.insert(self.db, &table.copies.changed(row, later, &changes))?;
                }
                continue;
            }
            self.copy(table, &changes, later)?;
        }
        Ok(())
    }

    /// Inserts a copy of the table's newest row: of the template's rows of a kind there is one that counts.
    fn copy(&self, table: &Table, changes: &[(&str, Value)], later: i64) -> Result<()> {
        let row = table.copies.rows.last().with_context(|| format!("the template has no {}", table.name))?;
        table.copies.insert(self.db, &table.copies.changed(row, later, changes))
    }
}

fn identity(id: i64, uuid: String) -> [(&'static str, Value); 2] {
    [("id", Value::Integer(id)), ("uuid", Value::Text(uuid))]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_port_of_a_node_is_given_once() {
        let many = Many { workspaces: 20, of_each: 100 };
        let places: HashSet<_> = (0..many.count()).map(|n| (many.node_of(n), n / many.nodes())).collect();
        assert_eq!(places.len(), 2000);
        assert!(places.iter().all(|(_, port)| (0..many.of_each).contains(port)));
    }

    #[test]
    fn what_must_be_unique_is() {
        let many = Many { workspaces: 1000, of_each: 100 };
        let uuids: HashSet<_> = (0..many.count()).map(|n| many.uuid(n)).collect();
        let ids: HashSet<_> = (0..many.count()).map(|n| hex40(n | 20 << 40)).collect();
        let keys: HashSet<_> = (0..many.workspaces).map(|n| many.key_hash(n)).collect();
        assert_eq!((uuids.len(), ids.len(), keys.len()), (100_000, 100_000, 1000));
        assert!(ids.iter().all(|id| id.len() == 40) && keys.iter().all(|hash| hash.len() == 64));
    }
}
