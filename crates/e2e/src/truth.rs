//! What must be true of a server's data after any crash: the database, the node's records and the API say the same.
//!
//! The one rule: it is read from the files themselves, and a disagreement is a panic that names both sides.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use tokio::runtime::{Builder, Runtime};

use crate::cloud::Cloud;
use crate::leftovers;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Asks the database, which a server may be using. The connection is closed at the end: a server that is started again must
/// find the files as the one that was killed left them.
pub(crate) fn ask<T>(database: &Path, ask: impl AsyncFnOnce(&mut SqliteConnection) -> T) -> T {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(database).read_only(true);
            let mut connection = SqliteConnection::connect_with(&options).await.expect("the database opens");
            let answer = ask(&mut connection).await;
            connection.close().await.expect("it closes");
            answer
        })
    })
}

/// Rows of a query with at most one text parameter.
pub fn rows(database: &Path, sql: &'static str, parameter: &str) -> Vec<SqliteRow> {
    ask(database, async |connection| {
        let query = sqlx::query(sql);
        let query = if sql.contains("$1") { query.bind(parameter) } else { query };
        query.fetch_all(connection).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    })
}

fn database(cloud: &Cloud) -> PathBuf {
    cloud.data_dir().join("holdfast.db")
}

/// Counts of what must not be there, whatever happened and however far it is.
const NEVER: [(&str, &str); 15] = [
    (
        "nodes that count other reservations than their VMs have",
        "SELECT count(*) FROM node n LEFT JOIN (SELECT node_id, COUNT(*) AS slots, SUM(MAX(held_vcpu, vcpu)) AS vcpu,
                SUM(MAX(held_memory_mb, memory_mb)) AS memory_mb, SUM(MAX(held_disk_gb, disk_gb)) AS disk_gb
            FROM vm WHERE deleted_at IS NULL GROUP BY node_id) v ON v.node_id = n.id
            WHERE n.used_slots <> COALESCE(v.slots, 0) OR n.used_vcpu <> COALESCE(v.vcpu, 0)
                OR n.used_memory_mb <> COALESCE(v.memory_mb, 0) OR n.used_disk_gb <> COALESCE(v.disk_gb, 0)",
    ),
    (
        "operations without exactly one audit row of their request",
        "SELECT count(*) FROM operation o WHERE (SELECT count(*) FROM audit_log a WHERE a.operation_id = o.id
            AND a.action = o.kind || '.' || o.operation_type) <> 1",
    ),
    (
        "audit rows of operations that are not there",
        "SELECT count(*) FROM audit_log
            WHERE operation_id IS NOT NULL AND operation_id NOT IN (SELECT id FROM operation)",
    ),
    (
        "operations that were not cancelled exactly once as often as the audit log says",
        "SELECT count(*) FROM operation o WHERE (o.cancelled_by IS NOT NULL) <> (SELECT count(*) FROM audit_log a
            WHERE a.operation_id = o.id AND a.action = 'operation.cancel')",
    ),
    ("gaps in the positions of events", "SELECT COALESCE(MAX(position), 0) - count(*) FROM event_position"),
    (
        "events without a position",
        "SELECT count(*) FROM operation_event WHERE id NOT IN (SELECT event_id FROM event_position)",
    ),
    (
        "VMs without exactly one create",
        "SELECT count(*) FROM vm v WHERE (SELECT count(*) FROM operation o WHERE o.resource_id = v.id
            AND o.operation_type IN ('create', 'replicate')) <> 1",
    ),
    (
        "claims of operations that are over",
        "SELECT count(*) FROM operation_resource r JOIN operation o ON o.id = r.operation_id
            WHERE r.held AND o.status IN ('done', 'failed', 'cancelled')",
    ),
    (
        "places in line of operations that are not pending, or hold their claim",
        "SELECT count(*) FROM operation_resource r JOIN operation o ON o.id = r.operation_id
            WHERE r.waiting AND (o.status <> 'pending' OR o.wake_at IS NOT NULL OR r.held)",
    ),
    (
        "operations that wait for a claim that is free",
        "SELECT count(*) FROM operation_resource r WHERE r.waiting AND NOT EXISTS (SELECT 1 FROM operation_resource h
            WHERE h.kind = r.kind AND h.resource_id = r.resource_id AND h.held)",
    ),
    (
        "leases of operations that are over",
        "SELECT count(*) FROM operation WHERE status IN ('done', 'failed', 'cancelled')
            AND (wake_at IS NOT NULL OR lease_until IS NOT NULL OR completed_at IS NULL)",
    ),
    (
        "rows that a deleted VM left",
        "SELECT (SELECT count(*) FROM vm_desired WHERE vm_id IN (SELECT id FROM vm WHERE deleted_at IS NOT NULL))
            + (SELECT count(*) FROM vm_observed WHERE vm_id IN (SELECT id FROM vm WHERE deleted_at IS NOT NULL))
            + (SELECT count(*) FROM vm_port WHERE vm_id IN (SELECT id FROM vm WHERE deleted_at IS NOT NULL))",
    ),
    (
        "room, ports and names of updates that are over",
        "SELECT (SELECT count(*) FROM vm WHERE held_vcpu + held_memory_mb + held_disk_gb > 0 AND deleted_at IS NULL)
            + (SELECT count(*) FROM vm_port WHERE NOT active)
            + (SELECT count(*) FROM vm_name n WHERE NOT EXISTS (SELECT 1 FROM vm v WHERE v.app_row = n.app_row
                AND v.name = n.name AND v.deleted_at IS NULL))",
    ),
    (
        "apps, VMs and operations that are not where their app is",
        "SELECT (SELECT count(*) FROM app WHERE project_id IS NULL)
            + (SELECT count(*) FROM vm v JOIN app a ON a.id = v.app_row WHERE v.project_id <> a.project_id)
            + (SELECT count(*) FROM operation o JOIN vm v ON v.id = o.resource_id WHERE v.project_id <> o.project_id)",
    ),
    (
        "living VMs without their name",
        "SELECT count(*) FROM vm v WHERE deleted_at IS NULL AND NOT EXISTS (SELECT 1 FROM vm_name n
            WHERE n.workspace_id = v.workspace_id AND n.name = v.name AND n.app_row = v.app_row)",
    ),
];

/// Fails when the database contradicts itself.
pub fn assert_consistent(cloud: &Cloud) {
    let found = leftovers::numbers(&database(cloud), NEVER.map(|(_, sql)| sql));
    for ((what, _), found) in NEVER.iter().zip(found) {
        assert_eq!(found, 0, "{what}");
    }
}

/// Fails when the chain over the events does not hold. What is not sealed yet is no fault.
pub fn assert_chain(cloud: &Cloud) {
    let mut verify = Command::new(crate::binary());
    let output = verify.args(["audit", "verify", "--data-dir"]).arg(cloud.data_dir()).output().expect("holdfast runs");
    let said = || [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].join("");
    assert!(output.status.success(), "audit verify: {}", said());
}

/// Operations of a type on a VM: their public ids, oldest first.
pub fn operations_of(cloud: &Cloud, cvm: &str, operation_type: &str) -> Vec<String> {
    let sql = "SELECT uuid, operation_type FROM operation WHERE resource_uuid = $1 ORDER BY id";
    let all = rows(&database(cloud), sql, cvm);
    let fitting = all.iter().filter(|row| row.get::<String, _>(1) == operation_type);
    fitting.map(|row| row.get(0)).collect()
}

/// VMs that ever had the name.
pub fn vms_named(cloud: &Cloud, name: &str) -> Vec<String> {
    rows(&database(cloud), "SELECT uuid FROM vm WHERE name = $1", name).iter().map(|row| row.get(0)).collect()
}

/// The epoch that a VM should run in; 0 when nothing is wanted of it.
pub fn epoch(cloud: &Cloud, cvm: &str) -> i64 {
    let sql = "SELECT d.boot_epoch FROM vm_desired d JOIN vm v ON v.id = d.vm_id WHERE v.uuid = $1";
    rows(&database(cloud), sql, cvm).first().map_or(0, |row| row.get(0))
}

/// Fails when the story of a finished operation is not one: numbered without gap, begun and ended once, each step begun
/// once and ended once, in the order that the operation tells, and nothing open at its end.
pub fn assert_story(cloud: &Cloud, operation: &Value) {
    let id = operation["id"].as_str().expect("an id");
    let sql = "SELECT e.seq, e.event_type, e.step, o.sub_operations FROM operation_event e
        JOIN operation o ON o.id = e.operation_id WHERE o.uuid = $1 ORDER BY e.seq";
    let events = rows(&database(cloud), sql, id);
    let types: Vec<String> = events.iter().map(|row| row.get(1)).collect();
    let mut open: Option<String> = None;
    let mut begun: Vec<String> = Vec::new();
    for (index, row) in events.iter().enumerate() {
        assert_eq!(row.get::<i64, _>(0), i64::try_from(index).expect("few") + 1, "numbers of {types:?}");
        let (kind, step): (String, Option<String>) = (row.get(1), row.get(2));
        let verb = kind.rsplit('.').next().unwrap_or_default();
        let last = index + 1 == events.len();
        match step {
            None => assert!(if index == 0 { verb == "start" } else { last && verb != "start" }, "{kind} in {types:?}"),
            Some(step) if verb == "start" => {
                assert_eq!(open, None, "{step} began inside another step: {types:?}");
                assert!(!begun.contains(&step), "{step} began twice: {types:?}");
                begun.push(step.clone());
                open = Some(step);
            }
            Some(step) => assert_eq!(open.take(), Some(step), "{kind} ends what is not open: {types:?}"),
        }
    }
    assert_eq!(open, None, "a step is open at the end: {types:?}");
    let ending = if operation["status"] == "done" { ".end" } else { ".error" };
    assert!(types.last().is_some_and(|t| t.ends_with(ending)), "the last of {types:?} is no {ending}");
    let told: String = events.first().map(|row| row.get(3)).unwrap_or_default();
    assert_eq!(serde_json::from_str::<Vec<String>>(&told).ok(), Some(begun), "steps told and steps that began");
}

/// What the node keeps of a VM: what is wanted, and what runs it.
fn node_record(cloud: &Cloud, cvm: &str) -> Option<(Value, Value)> {
    let node = cloud.node_dir();
    let read = |path: PathBuf| -> Option<Value> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    let last = |path: PathBuf| -> Option<Value> {
        serde_json::from_str(std::fs::read_to_string(path).ok()?.lines().last()?).ok()
    };
    if let Some(record) = last(node.join("simulated").join(format!("{cvm}.ndjson"))) {
        return Some((record["desired"].clone(), record["runtime"].clone()));
    }
    let folder = node.join("vms").join(cvm);
    Some((read(folder.join("desired.json"))?, read(folder.join("runtime.json")).unwrap_or_default()))
}

/// Why server and node do not yet say the same of a VM that exists; `None` when they do. `restarts`: how often its machine
/// may have ended without having been told to.
pub fn disagreement(cloud: &Cloud, cvm: &str, restarts: u64) -> Option<String> {
    let sql = "SELECT d.generation, d.run_state, d.boot_epoch, COALESCE(o.generation, -1), COALESCE(o.phase, ''),
            COALESCE(o.boot_epoch, -1), v.status, (SELECT count(*) FROM vm_port p WHERE p.vm_id = v.id)
        FROM vm v JOIN vm_desired d ON d.vm_id = v.id LEFT JOIN vm_observed o ON o.vm_id = v.id WHERE v.uuid = $1";
    let found = rows(&database(cloud), sql, cvm);
    let Some(row) = found.first() else { return Some("no desired state".to_owned()) };
    let (generation, wanted, epoch): (i64, String, i64) = (row.get(0), row.get(1), row.get(2));
    let (seen, phase, seen_epoch): (i64, String, i64) = (row.get(3), row.get(4), row.get(5));
    let (status, ports): (String, i64) = (row.get(6), row.get(7));
    let server = format!("wanted {wanted} #{generation} epoch {epoch}, seen {phase} #{seen} epoch {seen_epoch}");
    let Some((desired, runtime)) = node_record(cloud, cvm) else { return Some(format!("{server}; no node record")) };
    // The script of a real guest publishes none.
    let published = i64::from(!cloud.node_dir().join("vms").exists());
    let life = if wanted == "running" { "on" } else { "off" };
    let same = (generation, wanted.as_str(), wanted.as_str()) == (seen, phase.as_str(), status.as_str())
        && ports == published
        && desired["generation"] == generation
        && desired["run_state"] == wanted.as_str()
        && desired["boot_epoch"] == epoch
        // The record of a machine that ended by itself, and was not wanted any more, says so.
        && (runtime["life"] == life || (restarts > 0 && life == "off"))
        && (wanted != "running"
            || (runtime["epoch"] == epoch
                && seen_epoch == epoch
                && runtime["restarts"].as_u64().is_some_and(|n| n <= restarts)));
    let all = || format!("{server}, status {status}, {ports} ports; node: {desired} {runtime}");
    (!same).then(all)
}
