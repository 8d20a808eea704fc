//! Reading operations for an export or an archive: whole ones, in one snapshot, with the seals over their events.
//!
//! The one rule: one snapshot from the first page to the last, so an export is the record as of one moment.

use std::collections::{BTreeMap, HashMap};

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_trust::chain::{ACCEPTED, EVENT, OUTCOME, Value};
use holdfast_trust::export::{Batch, Event, Leaf, Older, Operation};

use crate::chain::{columns, public_key};
use crate::reader::Snapshot;
use crate::retention::{Leaving, newest_archive};
use crate::sql::{self, Columns, Record, record};
use crate::{Store, fault};

/// Operations per page.
const PAGE: i64 = 200;

/// Columns of `audit_log` that an archive keeps: all but its internal keys.
pub const AUDIT: [&str; 18] = [
    "uuid",
    "workspace_id",
    "project_id",
    "actor_type",
    "actor_id",
    "actor_name",
    "api_key_id",
    "client_address",
    "user_agent",
    "request_id",
    "method",
    "path",
    "status_code",
    "action",
    "target_type",
    "target_id",
    "operation_uuid",
    "at",
];

/// Which operations are read.
#[derive(Debug, Clone)]
enum Asked {
    /// Accepted at or after the first moment and before the second.
    Accepted(i64, i64),
    /// Those that an archive takes.
    Leaving(Box<Leaving>),
}

/// An export that is being read.
pub struct Export {
    snapshot: Snapshot,
    asked: Asked,
    /// The last operation that was read: its row, or the position of its first event.
    row: i64,
    /// The last audit row that was read.
    audit: i64,
    /// The last checkpoint that was looked at.
    position: i64,
}

struct CheckpointRow {
    first_position: i64,
    last_position: i64,
    previous_hash: String,
    hash: String,
    sealed_at: i64,
    signature: String,
}

record!(CheckpointRow { first_position, last_position, previous_hash, hash, sealed_at, signature });

/// An operation, and where it is among those that are exported.
struct Exported {
    id: i64,
    uuid: Value,
    accepted: Vec<Value>,
    outcome: Vec<Value>,
    place: i64,
}

impl Record for Exported {
    const COLUMNS: &'static [&'static str] = &[];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.next()?,
            uuid: row.text()?,
            accepted: row.texts(ACCEPTED.len())?,
            outcome: row.texts(OUTCOME.len())?,
            place: row.next()?,
        })
    }
}

struct ExportedEvent {
    operation: i64,
    event: Event,
}

impl Record for ExportedEvent {
    const COLUMNS: &'static [&'static str] = &[];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
        let operation = row.next()?;
        let event = Event {
            position: row.next()?,
            seq: row.next()?,
            event_type: row.text()?,
            step: row.text()?,
            state: row.text()?,
            at: row.text()?,
        };
        Ok(Self { operation, event })
    }
}

struct AuditRow {
    id: i64,
    values: Vec<Value>,
}

impl Record for AuditRow {
    const COLUMNS: &'static [&'static str] = &[];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.next()?, values: row.texts(AUDIT.len())? })
    }
}

fn named(names: &[&str], values: Vec<Value>) -> BTreeMap<String, Value> {
    names.iter().map(|name| (*name).to_owned()).zip(values).collect()
}

impl Store {
    /// Operations accepted at or after `since` and before `until`.
    pub async fn export(&self, since: Option<Timestamp>, until: Option<Timestamp>) -> Result<Export, Error> {
        let since = since.map_or(i64::MIN, Timestamp::micros);
        let until = until.map_or(i64::MAX, Timestamp::micros);
        self.export_of(Asked::Accepted(since, until), 0).await
    }

    /// What an archive takes.
    pub async fn export_leaving(&self, leaving: &Leaving) -> Result<Export, Error> {
        let before = leaving.first_position - 1;
        self.export_of(Asked::Leaving(Box::new(leaving.clone())), before).await
    }

    async fn export_of(&self, asked: Asked, before: i64) -> Result<Export, Error> {
        let snapshot = self.read().begin()?;
        Ok(Export { snapshot, asked, row: before.max(0), audit: 0, position: before })
    }
}

impl Export {
    /// The public key that the database names.
    pub async fn public_key(&mut self) -> Result<String, Error> {
        let key = public_key(&mut self.snapshot).await?;
        key.ok_or_else(|| Error::internal("the database names no public key"))
    }

    /// Where operations that are older than this export's are, if some left.
    pub async fn older(&mut self) -> Result<Option<Older>, Error> {
        let Asked::Accepted(since, _) = self.asked else { return Ok(None) };
        let newest = newest_archive(&mut self.snapshot).await?.filter(|newest| since < newest.over_before);
        Ok(newest.map(|newest| Older {
            last_position: newest.last_position,
            over_before: newest.over_before,
            file: newest.file,
        }))
    }

    /// The next operations, oldest first. Empty: there are no more.
    pub async fn operations(&mut self) -> Result<Vec<Operation>, Error> {
        let (first, second, place, from) = match &self.asked {
            Asked::Accepted(since, until) => (
                *since,
                *until,
                "o.id",
                "operation o WHERE o.id > $1 AND o.created_at >= $2 AND o.created_at < $3 ORDER BY o.id",
            ),
            // An operation leaves with its first event.
            Asked::Leaving(leaving) => (
                leaving.first_position,
                leaving.last_position,
                "p.position",
                "event_position p JOIN operation_event e ON e.id = p.event_id JOIN operation o ON o.id = e.operation_id
                 WHERE p.position > $1 AND p.position >= $2 AND p.position <= $3 AND e.seq = 1 ORDER BY p.position",
            ),
        };
        let sql = format!(
            "SELECT o.id, o.uuid, {}, {}, {place} FROM {from} LIMIT $4",
            columns("o.", &ACCEPTED),
            columns("o.", &OUTCOME)
        );
        let rows: Vec<Exported> = sql::query(sql)
            .bind(self.row)
            .bind(first)
            .bind(second)
            .bind(PAGE)
            .fetch_all(&mut *self.snapshot)
            .await
            .map_err(fault)?;
        let Some(last) = rows.last() else { return Ok(Vec::new()) };
        self.row = last.place;
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let mut events = self.events(&ids).await?;
        let operation = |row: Exported| Operation {
            id: row.uuid.unwrap_or_default(),
            accepted: named(&ACCEPTED, row.accepted),
            outcome: named(&OUTCOME, row.outcome),
            events: events.remove(&row.id).unwrap_or_default(),
        };
        Ok(rows.into_iter().map(operation).collect())
    }

    async fn events(&mut self, operations: &[i64]) -> Result<HashMap<i64, Vec<Event>>, Error> {
        let mut query = sql::query(format!(
            "SELECT e.operation_id, COALESCE(p.position, -e.id), e.seq, {} FROM operation_event e
             LEFT JOIN event_position p ON p.event_id = e.id WHERE e.operation_id IN (",
            columns("e.", &EVENT)
        ));
        query.push_list(operations).push(") ORDER BY e.operation_id, e.seq");
        let mut events: HashMap<i64, Vec<Event>> = HashMap::new();
        let rows: Vec<ExportedEvent> = query.fetch_all(&mut *self.snapshot).await.map_err(fault)?;
        for row in rows {
            events.entry(row.operation).or_default().push(row.event);
        }
        Ok(events)
    }

    /// The next rows of the audit log that leave, oldest first. Empty: there are no more.
    pub async fn audit(&mut self) -> Result<Vec<BTreeMap<String, Value>>, Error> {
        let Asked::Leaving(leaving) = &self.asked else { return Ok(Vec::new()) };
        let sql = format!(
            "SELECT a.id, {} FROM audit_log a LEFT JOIN operation o ON o.id = a.operation_id
             LEFT JOIN operation_event e ON e.operation_id = o.id AND e.seq = 1
             LEFT JOIN event_position p ON p.event_id = e.id
             WHERE a.id > $1 AND a.id <= $2 AND (p.position <= $3 OR (o.id IS NULL AND a.at < $4))
             ORDER BY a.id LIMIT $5",
            columns("a.", &AUDIT)
        );
        let rows: Vec<AuditRow> = sql::query(sql)
            .bind(self.audit)
            .bind(leaving.audit_last)
            .bind(leaving.last_position)
            .bind(leaving.over_before)
            .bind(PAGE)
            .fetch_all(&mut *self.snapshot)
            .await
            .map_err(fault)?;
        if let Some(last) = rows.last() {
            self.audit = last.id;
        }
        Ok(rows.into_iter().map(|row| named(&AUDIT, row.values)).collect())
    }

    /// The next checkpoint that covers an event of these operations. `None`: there are no more.
    pub async fn batch(&mut self) -> Result<Option<Batch>, Error> {
        // An archive has every checkpoint up to its end, and those over what left ahead of it.
        let (whole, end) = match &self.asked {
            Asked::Accepted(..) => (0, i64::MAX),
            Asked::Leaving(leaving) => {
                (leaving.last_position, leaving.ahead.last().copied().unwrap_or_default().max(leaving.last_position))
            }
        };
        while self.position < end {
            let row: Option<CheckpointRow> = sql::query(
                "SELECT first_position, last_position, previous_hash, hash, sealed_at, signature FROM checkpoint
                 WHERE last_position > $1 ORDER BY last_position LIMIT 1",
            )
            .bind(self.position)
            .fetch_optional(&mut *self.snapshot)
            .await
            .map_err(fault)?;
            let Some(row) = row else { return Ok(None) };
            self.position = row.last_position;
            let leaves = self.leaves(row.first_position, row.last_position).await?;
            let wanted = row.last_position <= whole || leaves.iter().any(|leaf| matches!(leaf, Leaf::Exported(..)));
            if wanted {
                return Ok(Some(Batch {
                    first_position: row.first_position,
                    last_position: row.last_position,
                    previous_hash: row.previous_hash,
                    hash: row.hash,
                    sealed_at: row.sealed_at,
                    signature: row.signature,
                    leaves,
                }));
            }
        }
        Ok(None)
    }

    async fn leaves(&mut self, first: i64, last: i64) -> Result<Vec<Leaf>, Error> {
        let rows: Vec<(String, String, i64, Option<i64>)> = sql::query(match &self.asked {
            Asked::Accepted(..) => {
                "SELECT s.leaf, s.operation_uuid, s.seq, o.created_at FROM event_seal s
                 LEFT JOIN operation o ON o.uuid = s.operation_uuid
                 WHERE s.position >= $1 AND s.position <= $2 ORDER BY s.position"
            }
            Asked::Leaving(_) => {
                "SELECT s.leaf, s.operation_uuid, s.seq, p.position FROM event_seal s
                 LEFT JOIN operation o ON o.uuid = s.operation_uuid
                 LEFT JOIN operation_event e ON e.operation_id = o.id AND e.seq = 1
                 LEFT JOIN event_position p ON p.event_id = e.id
                 WHERE s.position >= $1 AND s.position <= $2 ORDER BY s.position"
            }
        })
        .bind(first)
        .bind(last)
        .fetch_all(&mut *self.snapshot)
        .await
        .map_err(fault)?;
        let asked = match &self.asked {
            Asked::Accepted(since, until) => *since..*until,
            Asked::Leaving(leaving) => leaving.first_position..leaving.last_position + 1,
        };
        let leaf = |(leaf, operation, seq, place): (String, String, i64, Option<i64>)| match place {
            Some(place) if asked.contains(&place) => Leaf::Exported(leaf, operation, seq),
            _ => Leaf::Other(leaf),
        };
        Ok(rows.into_iter().map(leaf).collect())
    }
}
