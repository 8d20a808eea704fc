//! Databases with a long past: copies of operations that a server really carried out, spread over a week.
//!
//! The one rule: a row is copied whole and only its identity, its place in time and its resource are changed. So the
//! generator follows the schema by itself, and what is read back is as large as what a server would have written.
//!
//! Copies are linked into no chain: their seals and the checkpoint above them only keep the sealer from beginning anew,
//! and `holdfast audit verify` refuses such a database.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::Bench;
use super::cloud::Cloud;
use super::feed::Ends;
use super::http;
use super::rows::{columns, insert_sql};
use crate::ui;

/// CVMs that the operations are spread over.
const VMS: i64 = 1000;
/// The past that is made, in microseconds.
const SPAN: i64 = 7 * 24 * 3600 * 1_000_000;
/// Stops and starts that are copied, besides the create.
const POWER: usize = 4;

/// A folder of a server that has ended, with a handful of operations to copy.
pub struct Template {
    folder: PathBuf,
    /// The newest migration, which names the cache.
    schema: i64,
}

impl Template {
    pub fn make(bench: &Bench) -> Result<Self> {
        let folder = bench.scratch("template")?;
        let mut cloud = Cloud::start(&bench.binary, &folder)?;
        bench.runtime.block_on(async {
            let ends = Ends::follow(&cloud.target).await?;
            let cvms = cloud.cvms("history", 1, &ends).await?;
            let mut connection = http::Connection::open(&cloud.target).await?;
            for (verb, cvm) in ["stop", "start"].iter().cycle().zip(cvms.iter().cycle()).take(POWER) {
                connection.post(&format!("/api/v1/cvms/{cvm}/{verb}"), &serde_json::Value::Null).await?;
                ends.wait(cvm).await?;
            }
            anyhow::Ok(())
        })?;
        cloud.server.stop()?;
        let schema = schema_of(&folder)?;
        forget_others(bench, schema)?;
        Ok(Self { folder, schema })
    }

    /// A data folder with at least that many events, all sealed; made once and kept in the build folder.
    pub fn kept(&self, bench: &Bench, events: i64) -> Result<PathBuf> {
        let folder = bench.cache.join(format!("schema-{}-events-{events}", self.schema));
        if folder.join("holdfast.db").exists() {
            let db = Connection::open(folder.join("holdfast.db"))?;
            let stored: i64 = db.query_row("SELECT COUNT(*) FROM operation_event", [], |row| row.get(0))?;
            if stored >= events {
                return Ok(folder);
            }
        }
        let unfinished = folder.with_extension("unfinished");
        self.generate(&unfinished, events, true)?;
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&unfinished, &folder)?;
        Ok(folder)
    }

    /// Fills a new folder with at least that many events.
    pub fn generate(&self, folder: &Path, events: i64, sealed: bool) -> Result<()> {
        let start = Instant::now();
        fill(&self.folder, folder, |db| Generator::new(db, sealed)?.run(events))?;
        ui::say(format!("  made   a past of {events} events ({})", ui::seconds(start.elapsed())));
        Ok(())
    }
}

/// The newest migration of a folder's database.
pub fn schema_of(folder: &Path) -> Result<i64> {
    let db = Connection::open(folder.join("holdfast.db"))?;
    Ok(db.query_row("SELECT MAX(version) FROM _sqlx_migrations", [], |row| row.get(0))?)
}

/// Removes what was generated for other schemas: nothing reads it again.
pub fn forget_others(bench: &Bench, schema: i64) -> Result<()> {
    let ours = format!("schema-{schema}-");
    for entry in fs::read_dir(&bench.cache)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("schema-") && !name.starts_with(&ours)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Makes `folder` a copy of the template's, with what `write` adds to its database.
pub fn fill(template: &Path, folder: &Path, write: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(template)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name()))?;
        }
    }
    let db = Connection::open(folder.join("holdfast.db"))?;
    db.set_prepared_statement_cache_capacity(64);
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA cache_size = -1000000; BEGIN;",
    )?;
    write(&db)?;
    db.execute_batch("COMMIT; PRAGMA locking_mode = NORMAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    db.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Rows of one table, to be changed and inserted.
pub struct Copies {
    columns: Vec<String>,
    insert: String,
    pub rows: Vec<Vec<Value>>,
}

impl Copies {
    pub fn of(db: &Connection, table: &str, which: &str) -> Result<Self> {
        let columns = columns(db, table)?;
        let mut statement = db.prepare(&format!("SELECT * FROM {table} {which}"))?;
        let rows = statement.query_map([], |row| (0..columns.len()).map(|column| row.get(column)).collect())?;
        Ok(Self { insert: insert_sql(db, table)?, rows: rows.collect::<Result<_, _>>()?, columns })
    }

    /// The row with these columns changed and all of its times moved.
    pub fn changed(&self, row: &[Value], later: i64, changes: &[(&str, Value)]) -> Vec<Value> {
        let mut row = row.to_vec();
        for (name, value) in self.columns.iter().zip(&mut row) {
            if let Some((_, new)) = changes.iter().find(|(column, _)| column == name) {
                value.clone_from(new);
            } else if let Value::Integer(time) = value
                && (name == "at" || name.ends_with("_at"))
            {
                *time += later;
            }
        }
        row
    }

    pub fn insert(&self, db: &Connection, row: &[Value]) -> Result<()> {
        db.prepare_cached(&self.insert)?.execute(params_from_iter(row))?;
        Ok(())
    }

    /// A column of text of the only row, or of the last one.
    pub fn text(&self, column: &str) -> Result<&str> {
        let at = self.columns.iter().position(|name| name == column);
        match at.and_then(|at| Some(&self.rows.last()?[at])) {
            Some(Value::Text(text)) => Ok(text),
            other => anyhow::bail!("{column} is {other:?}"),
        }
    }

    pub fn integer(&self, row: &[Value], column: &str) -> Result<i64> {
        let at = self.columns.iter().position(|name| name == column);
        match at.map(|at| &row[at]) {
            Some(Value::Integer(number)) => Ok(*number),
            other => anyhow::bail!("{column} is {other:?}"),
        }
    }
}

/// One operation with all that hangs on it.
struct Past {
    operation: Vec<Value>,
    created_at: i64,
    events: Copies,
    resources: Copies,
    audit: Copies,
}

struct Generator<'a> {
    db: &'a Connection,
    operations: Copies,
    pasts: Vec<Past>,
    vms: Vec<(i64, String, String)>,
    seals: Option<Copies>,
    positions: Copies,
}

impl<'a> Generator<'a> {
    fn new(db: &'a Connection, sealed: bool) -> Result<Self> {
        let operations = Copies::of(db, "operation", "WHERE status = 'done' ORDER BY id")?;
        let pasts = operations.rows.iter().map(|row| {
            let id = operations.integer(row, "id")?;
            let hang = |table| Copies::of(db, table, &format!("WHERE operation_id = {id} ORDER BY 1, 2, 3"));
            Ok(Past {
                operation: row.clone(),
                created_at: operations.integer(row, "created_at")?,
                events: Copies::of(db, "operation_event", &format!("WHERE operation_id = {id} ORDER BY seq"))?,
                resources: hang("operation_resource")?,
                audit: hang("audit_log")?,
            })
        });
        let pasts = pasts.collect::<Result<Vec<_>>>()?;
        let positions = Copies::of(db, "event_position", "LIMIT 1")?;
        let seals = sealed.then(|| Copies::of(db, "event_seal", "ORDER BY position DESC LIMIT 1")).transpose()?;
        Ok(Self { db, operations, pasts, vms: vms(db)?, seals, positions })
    }

    fn run(&self, events: i64) -> Result<()> {
        let per_round: usize = self.pasts.iter().map(|past| past.events.rows.len()).sum();
        let count = events / i64::try_from(per_round)? * i64::try_from(self.pasts.len())? + 1;
        let newest = self.pasts.iter().map(|past| past.created_at).min().context("there is nothing to copy")?;
        let mut ids = Ids {
            operation: self.largest("operation", "id")?,
            event: self.largest("operation_event", "id")?,
            position: self.largest("event_position", "position")?,
            audit: self.largest("audit_log", "id")?,
        };
        let end = ids.event + events;
        let mut number: i64 = 0;
        while ids.event < end {
            let past = &self.pasts[usize::try_from(number)? % self.pasts.len()];
            let at = newest - SPAN + SPAN / (count + 1) * number.min(count);
            self.copy(past, &mut ids, at - past.created_at, number)?;
            number += 1;
        }
        if self.seals.is_some() {
            self.checkpoint(ids.position)?;
        }
        Ok(())
    }

    fn largest(&self, table: &str, column: &str) -> Result<i64> {
        Ok(self.db.query_row(&format!("SELECT MAX({column}) FROM {table}"), [], |row| row.get(0))?)
    }

    fn copy(&self, past: &Past, ids: &mut Ids, later: i64, number: i64) -> Result<()> {
        let (vm, vm_uuid, vm_name) = &self.vms[usize::try_from(number)? % self.vms.len()];
        ids.operation += 1;
        let operation = Value::Integer(ids.operation);
        let uuid = Value::Text(uuid(ids.operation));
        let changes = [
            ("id", operation.clone()),
            ("uuid", uuid.clone()),
            ("resource_id", Value::Integer(*vm)),
            ("resource_uuid", Value::Text(vm_uuid.clone())),
            ("resource_name", Value::Text(vm_name.clone())),
        ];
        self.operations.insert(self.db, &self.operations.changed(&past.operation, later, &changes))?;
        for (index, row) in past.events.rows.iter().enumerate() {
            ids.event += 1;
            ids.position += 1;
            let (event, position) = (Value::Integer(ids.event), Value::Integer(ids.position));
            let changes = [("id", event.clone()), ("operation_id", operation.clone())];
            past.events.insert(self.db, &past.events.changed(row, later, &changes))?;
            let changes = [("position", position.clone()), ("event_id", event)];
            self.positions.insert(self.db, &self.positions.changed(&self.positions.rows[0], 0, &changes))?;
            if let Some(seals) = &self.seals {
                let seq = Value::Integer(i64::try_from(index)? + 1);
                let changes = [("position", position), ("operation_uuid", uuid.clone()), ("seq", seq)];
                seals.insert(self.db, &seals.changed(&seals.rows[0], 0, &changes))?;
            }
        }
        for row in &past.resources.rows {
            let mut changes = vec![("operation_id", operation.clone())];
            if row.contains(&Value::Text("target".to_owned())) {
                changes.push(("resource_id", Value::Integer(*vm)));
            }
            past.resources.insert(self.db, &past.resources.changed(row, later, &changes))?;
        }
        for row in &past.audit.rows {
            ids.audit += 1;
            let changes = [
                ("id", Value::Integer(ids.audit)),
                ("uuid", Value::Text(self::uuid(-ids.audit))),
                ("operation_id", operation.clone()),
                ("operation_uuid", uuid.clone()),
                ("target_id", Value::Text(vm_uuid.clone())),
            ];
            past.audit.insert(self.db, &past.audit.changed(row, later, &changes))?;
        }
        Ok(())
    }

    /// One that ends at the last position, so that nothing is left to seal.
    fn checkpoint(&self, last: i64) -> Result<()> {
        let newest = Copies::of(self.db, "checkpoint", "ORDER BY last_position DESC LIMIT 1")?;
        let row = newest.rows.first().context("the server sealed nothing")?;
        let hash = newest.columns.iter().position(|name| name == "hash").context("checkpoints have a hash")?;
        let changes = [
            ("first_position", Value::Integer(newest.integer(row, "last_position")? + 1)),
            ("last_position", Value::Integer(last)),
            ("previous_hash", row[hash].clone()),
        ];
        newest.insert(self.db, &newest.changed(row, 0, &changes))
    }
}

/// The last ones that were given.
struct Ids {
    operation: i64,
    event: i64,
    position: i64,
    audit: i64,
}

/// Copies of the template's VM: row, UUID and name.
fn vms(db: &Connection) -> Result<Vec<(i64, String, String)>> {
    let one = Copies::of(db, "vm", "ORDER BY id LIMIT 1")?;
    let row = one.rows.first().context("there is no VM to copy")?;
    let first = one.integer(row, "id")?;
    (1..=VMS)
        .map(|number| {
            let (id, uuid, name) = (first + number, uuid(number << 40), format!("history-vm-{number}"));
            let changes = [
                ("id", Value::Integer(id)),
                ("uuid", Value::Text(uuid.clone())),
                ("instance_id", Value::Text(format!("{number:040x}"))),
                ("name", Value::Text(name.clone())),
            ];
            one.insert(db, &one.changed(row, 0, &changes))?;
            Ok((id, uuid, name))
        })
        .collect()
}

/// A UUID that looks random, as those do that stand in an index.
pub fn uuid(number: i64) -> String {
    let (a, b) = (mix(number as u64), mix(!number as u64));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        a >> 16 & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

/// SplitMix64: every number to another one, without collisions.
pub fn mix(number: u64) -> u64 {
    let mut n = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
