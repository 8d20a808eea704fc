//! The ceiling of writes: the rows of operations that the server really carried out, written again by plain prepared
//! statements into a database with the same schema, indexes and pragmas.
//!
//! The one rule: only what must be durable at a moment somebody learns of it is a commit: the acceptance (the client is
//! answered), a report (the node is answered) and a decision (its effect begins). Reading, deciding, HTTP and the lease's
//! own commit are left out, so this is what no server on this database can exceed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params, params_from_iter};

use crate::bench::accept::milliseconds;

/// Rows that acceptance inserts, in order, by operation `{op}` and VM `{vm}`. Those of the VM only belong to a create.
const OF_THE_VM: &[(&str, &str)] = &[
    ("app", "id = (SELECT app_row FROM vm WHERE id = {vm})"),
    ("vm_name", "app_row = (SELECT app_row FROM vm WHERE id = {vm})"),
    ("vm", "id = {vm}"),
    ("vm_port", "vm_id = {vm}"),
];
const OF_THE_OPERATION: &[(&str, &str)] =
    &[("operation", "id = {op}"), ("operation_resource", "operation_id = {op}"), ("audit_log", "operation_id = {op}")];
/// Filled by the operation itself or by loops; everything else is copied before the clock starts.
const LATER: &[&str] =
    &["operation_event", "event_position", "event_seal", "checkpoint", "vm_desired", "vm_observed", "sqlite_sequence"];

/// How long a server may hold up who reads its database.
const BUSY: Duration = Duration::from_secs(5);

type Row = Vec<Value>;

/// Everything that one operation wrote.
pub struct Recorded {
    id: i64,
    vm: i64,
    node: i64,
    accepted: Vec<(&'static str, Row)>,
    /// Events of the acceptance, then of each decision that had some.
    moments: Vec<Vec<Row>>,
    desired: Option<Row>,
    observed: Option<Row>,
}

/// What is written along.
#[derive(Debug, Clone, Copy, Default)]
pub struct With {
    pub audit: bool,
    pub idempotency: bool,
}

/// Operations out of a server's database, and a place to write them to again.
pub struct Replay {
    source: PathBuf,
    pub operations: Vec<Recorded>,
    creates: bool,
}

impl Replay {
    /// Reads the newest `limit` finished operations of a type, oldest first, from a server's database. The server may run.
    pub fn load(source: &Path, operation_type: &str, limit: usize) -> Result<Self> {
        let db = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch("BEGIN")?;
        let creates = operation_type == "create";
        let mut found = db.prepare(
            "SELECT o.id, v.id, v.node_id FROM operation o JOIN vm v ON v.id = o.resource_id
             WHERE o.operation_type = ?1 AND o.status = 'done' ORDER BY o.id DESC LIMIT ?2",
        )?;
        let found =
            found.query_map(params![operation_type, limit as i64], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        let mut operations = Vec::new();
        for ids in found {
            let (id, vm, node) = ids?;
            operations.push(record(&db, id, vm, node, creates)?);
        }
        if operations.is_empty() {
            bail!("the server finished no {operation_type}");
        }
        operations.reverse();
        Ok(Self { source: source.to_owned(), operations, creates })
    }

    /// Decisions with events per operation, on average.
    pub fn decisions(&self) -> f64 {
        self.mean(|o| o.moments.len() - 1)
    }

    /// Moments of an operation at which somebody learns of it: its acceptance, its decisions, and a report between each two.
    pub fn barriers(&self) -> f64 {
        (2.0 * self.decisions()).max(1.0)
    }

    /// Events per operation, on average.
    pub fn events(&self) -> f64 {
        self.mean(|o| o.moments.iter().map(Vec::len).sum())
    }

    /// Rows that are inserted per operation, on average, with desired and observed state.
    pub fn rows(&self) -> f64 {
        self.mean(|o| o.accepted.len() + 2 * o.moments.iter().map(Vec::len).sum::<usize>()) + 2.0
    }

    fn mean(&self, of: impl Fn(&Recorded) -> usize) -> f64 {
        self.operations.iter().map(of).sum::<usize>() as f64 / self.operations.len() as f64
    }

    /// Whole operations per second when `group` of them share each commit.
    pub fn whole(&self, file: &Path, group: usize, with: With) -> Result<f64> {
        let mut writer = self.writer(file)?;
        let start = Instant::now();
        for group in self.operations.chunks(group) {
            writer.transaction(|w| group.iter().try_for_each(|o| w.accept(o, with)))?;
            let last = group.iter().map(|o| o.moments.len()).max().unwrap_or(1);
            for moment in 1..last {
                if moment > 1 {
                    writer.transaction(|w| w.report(group))?;
                }
                writer.transaction(|w| {
                    group.iter().filter(|o| moment < o.moments.len()).try_for_each(|o| w.decide(o, moment))
                })?;
            }
        }
        Ok(self.operations.len() as f64 / start.elapsed().as_secs_f64())
    }

    /// Milliseconds of each acceptance alone, one commit each, in each of these ways in turn; a database for each.
    pub fn accepts<const N: usize>(&self, folder: &Path, ways: [With; N]) -> Result<[Vec<f64>; N]> {
        let mut times = [const { Vec::new() }; N];
        let mut writers = Vec::with_capacity(N);
        for number in 0..N {
            writers.push(self.writer(&folder.join(format!("ceiling-{number}.db")))?);
        }
        for operation in &self.operations {
            for ((writer, with), times) in writers.iter_mut().zip(ways).zip(&mut times) {
                let start = Instant::now();
                writer.transaction(|w| w.accept(operation, with))?;
                times.push(milliseconds(start));
                // The next operation may be one on the same VM.
                writer.run("UPDATE operation_resource SET held = FALSE WHERE operation_id = ?1", [operation.id])?;
            }
        }
        Ok(times)
    }

    fn writer(&self, file: &Path) -> Result<Writer> {
        let db = empty_copy(&self.source, file, self.creates, &self.operations)?;
        Ok(Writer { db, position: 0, inserts: HashMap::new() })
    }
}

fn record(db: &Connection, id: i64, vm: i64, node: i64, create: bool) -> Result<Recorded> {
    let mut accepted = Vec::new();
    let of_the_vm = if create { OF_THE_VM } else { &[] };
    for (table, which) in of_the_vm.iter().chain(OF_THE_OPERATION) {
        let which = which.replace("{op}", &id.to_string()).replace("{vm}", &vm.to_string());
        accepted.extend(rows(db, table, &which)?.into_iter().map(|row| (*table, row)));
    }
    let mut moments: Vec<Vec<Row>> = Vec::new();
    let events = rows(db, "operation_event", &format!("operation_id = {id} ORDER BY seq"))?;
    let at = columns(db, "operation_event")?.iter().position(|c| c == "at").context("events have a time")?;
    for event in events {
        match moments.last_mut().filter(|m| m.last().is_some_and(|e| e[at] == event[at])) {
            Some(moment) => moment.push(event),
            None => moments.push(vec![event]),
        }
    }
    let one = |table| Ok::<_, anyhow::Error>(rows(db, table, &format!("vm_id = {vm}"))?.pop());
    Ok(Recorded { id, vm, node, accepted, moments, desired: one("vm_desired")?, observed: one("vm_observed")? })
}

fn rows(db: &Connection, table: &str, which: &str) -> Result<Vec<Row>> {
    let mut statement = db.prepare_cached(&format!("SELECT * FROM {table} WHERE {which}"))?;
    let width = statement.column_count();
    let rows = statement.query_map([], |row| (0..width).map(|column| row.get(column)).collect())?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The columns of a table, in order.
pub fn columns(db: &Connection, table: &str) -> Result<Vec<String>> {
    let mut statement = db.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let names = statement.query_map([table], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// The statement that inserts a whole row.
pub fn insert_sql(db: &Connection, table: &str) -> Result<String> {
    let places = vec!["?"; columns(db, table)?.len()].join(", ");
    Ok(format!("INSERT INTO {table} VALUES ({places})"))
}

/// The server's pragmas.
fn pragmas(db: &Connection) -> Result<()> {
    db.set_prepared_statement_cache_capacity(256);
    Ok(db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?)
}

/// Name, type and SQL of everything in the schema, in the order in which it was made.
fn schema(db: &Connection) -> Result<Vec<(String, String, String)>> {
    let sql = "SELECT name, type, sql FROM source.sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid";
    let mut schema = db.prepare(sql)?;
    let schema = schema.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
    Ok(schema.collect::<Result<_, _>>()?)
}

/// A database of the same schema with everything but what the operations wrote.
fn empty_copy(source: &Path, file: &Path, creates: bool, operations: &[Recorded]) -> Result<Connection> {
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
    }
    let db = Connection::open(file)?;
    pragmas(&db)?;
    db.busy_timeout(BUSY)?;
    db.execute("ATTACH ?1 AS source", [source.to_string_lossy()])?;
    let schema = schema(&db)?;
    db.execute_batch("PRAGMA foreign_keys = OFF; BEGIN;")?;
    for (name, kind, sql) in &schema {
        if name == "sqlite_sequence" {
            continue;
        }
        db.execute_batch(sql)?;
        if kind == "table" && !LATER.contains(&name.as_str()) {
            db.execute_batch(&format!("INSERT INTO main.{name} SELECT * FROM source.{name}"))?;
        }
    }
    for operation in operations {
        db.prepare_cached("DELETE FROM operation_resource WHERE operation_id = ?1")?.execute([operation.id])?;
        db.prepare_cached("DELETE FROM audit_log WHERE operation_id = ?1")?.execute([operation.id])?;
        db.prepare_cached("DELETE FROM operation WHERE id = ?1")?.execute([operation.id])?;
        if creates {
            let vm = [operation.vm];
            db.prepare_cached("DELETE FROM vm_port WHERE vm_id = ?1")?.execute(vm)?;
            db.prepare_cached("DELETE FROM vm_name WHERE app_row = (SELECT app_row FROM vm WHERE id = ?1)")?
                .execute(vm)?;
            db.prepare_cached("DELETE FROM app WHERE id = (SELECT app_row FROM vm WHERE id = ?1)")?.execute(vm)?;
            db.prepare_cached("DELETE FROM vm WHERE id = ?1")?.execute(vm)?;
        }
    }
    db.execute_batch("UPDATE operation_resource SET held = FALSE; COMMIT; DETACH source; PRAGMA foreign_keys = ON;")?;
    Ok(db)
}

struct Writer {
    db: Connection,
    position: i64,
    inserts: HashMap<&'static str, String>,
}

impl Writer {
    fn transaction(&mut self, write: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        write(self)?;
        self.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    fn run(&self, sql: &str, values: impl rusqlite::Params) -> Result<()> {
        self.db.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    fn insert(&mut self, table: &'static str, row: &Row) -> Result<()> {
        if !self.inserts.contains_key(table) {
            self.inserts.insert(table, insert_sql(&self.db, table)?);
        }
        self.run(&self.inserts[table], params_from_iter(row))
    }

    fn accept(&mut self, operation: &Recorded, with: With) -> Result<()> {
        for (table, row) in &operation.accepted {
            if *table != "audit_log" || with.audit {
                self.insert(table, row)?;
            }
        }
        if with.idempotency {
            self.run(
                "INSERT INTO idempotency_key (workspace_id, key, request_hash, status_code, response, created_at, expires_at)
                 VALUES (1, ?1, ?2, 0, '', ?3, ?3)",
                params![format!("key-{}", operation.id), format!("{:064x}", operation.id), operation.id],
            )?;
        }
        self.run("UPDATE operation SET wake_at = created_at WHERE id = ?1", [operation.id])?;
        self.run(
            "UPDATE operation_resource SET held = TRUE WHERE operation_id = ?1 AND role = 'target'",
            [operation.id],
        )?;
        self.run("UPDATE vm SET updated_at = updated_at + 1 WHERE id = ?1", [operation.vm])?;
        self.events(&operation.moments[0])
    }

    /// One report of the node about all of these VMs.
    fn report(&mut self, operations: &[Recorded]) -> Result<()> {
        let Some(first) = operations.first() else { return Ok(()) };
        self.run(
            "UPDATE node SET report_seq = report_seq + 1, last_seen_at = last_seen_at + 1 WHERE id = ?1",
            [first.node],
        )?;
        for operation in operations {
            if let Some(row) = &operation.observed {
                self.upsert("vm_observed", "report = excluded.report, updated_at = excluded.updated_at", row)?;
            }
            self.run("UPDATE operation SET wake_at = wake_at + 1 WHERE id = ?1", [operation.id])?;
        }
        Ok(())
    }

    fn decide(&mut self, operation: &Recorded, moment: usize) -> Result<()> {
        let last = moment + 1 == operation.moments.len();
        if moment == 1 {
            self.run("UPDATE node SET desired_revision = desired_revision + 1 WHERE id = ?1", [operation.node])?;
            if let Some(row) = &operation.desired {
                self.upsert("vm_desired", "generation = excluded.generation, revision = excluded.revision", row)?;
            }
        }
        self.run(
            "UPDATE operation SET lease_token = lease_token + 1, attempts = attempts + 1, step = ?2, updated_at = ?2,
                wake_at = CASE WHEN ?3 THEN NULL ELSE wake_at + 1 END WHERE id = ?1",
            params![operation.id, moment as i64, last],
        )?;
        if last {
            self.run("UPDATE vm SET updated_at = updated_at + 1 WHERE id = ?1", [operation.vm])?;
            self.run("UPDATE operation_resource SET held = FALSE WHERE operation_id = ?1", [operation.id])?;
        }
        self.events(&operation.moments[moment])
    }

    fn upsert(&mut self, table: &'static str, set: &str, row: &Row) -> Result<()> {
        if !self.inserts.contains_key(table) {
            let sql = insert_sql(&self.db, table)?;
            self.inserts.insert(table, format!("{sql} ON CONFLICT (vm_id) DO UPDATE SET {set}"));
        }
        self.run(&self.inserts[table], params_from_iter(row))
    }

    fn events(&mut self, events: &[Row]) -> Result<()> {
        for event in events {
            // Its number is given anew, in the order of writing.
            let row = std::iter::once(&Value::Null).chain(&event[1..]);
            if !self.inserts.contains_key("operation_event") {
                self.inserts.insert("operation_event", insert_sql(&self.db, "operation_event")?);
            }
            self.run(&self.inserts["operation_event"], params_from_iter(row))?;
            self.position += 1;
            self.run(
                "INSERT INTO event_position (position, event_id) VALUES (?1, ?2)",
                [self.position, self.db.last_insert_rowid()],
            )?;
        }
        Ok(())
    }
}
