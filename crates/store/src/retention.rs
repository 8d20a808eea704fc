//! What leaves by age: the beginning of the chain, up to a checkpoint, once it lies in an archive.
//!
//! The one rule: nothing is deleted that a signed record does not say has left, and the record is written only when the
//! archive is on the disk and was read again. So each crash leaves either everything, or a record and rows that may go.
//!
//! ```text
//! begin    a row of `archive` says what will leave; from now on the file's contents are fixed
//! write    the file, under another name until it is whole and was checked
//! record   the row is signed: the chain of this database begins after it
//! sweep    operations, audit rows, then seals and checkpoints, a little per transaction; the last checkpoint stays
//! ```
//! An operation leaves with its first event. Its later events may lie above the end of the archive, among those of
//! operations that stay: they leave with it, and the signed record lists them (`ahead`).

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_trust::archive::Archive;
use holdfast_trust::chain::{Hash, ORIGIN, PublicKey};

use crate::chain::bytes;
use crate::sql::{self, Session, record};
use crate::{Store, Tx, commit, fault, from_json, json};

/// Operations deleted per transaction: few enough that writers do not feel it.
const OPERATIONS: i64 = 200;
/// Audit rows of no operation, per transaction.
const AUDIT_ROWS: i64 = 2000;
/// Checkpoints deleted per transaction, with the seals under them.
const CHECKPOINTS: i64 = 10;

/// What an archive takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    pub first_position: i64,
    pub last_position: i64,
    pub previous_hash: Hash,
    pub hash: Hash,
    /// Operations that were over before, in microseconds since 1970.
    pub over_before: i64,
    /// Audit rows up to this one.
    pub audit_last: i64,
    /// Positions above `last_position` that leave too, or left before; ascending.
    pub ahead: Vec<i64>,
    /// Positions of this archive's span that left with the one before it.
    pub elsewhere: Vec<i64>,
    /// Name of the file.
    pub file: String,
    pub begun_at: i64,
}

/// An operation that everything after it waits for, though it is old.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub operation: String,
    pub status: String,
}

/// What a look for old operations found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// These leave; there may be more.
    Leaving(Box<Leaving>),
    /// Nothing leaves now. `Some`: because of an old operation that is not over, or not sealed.
    Nothing(Option<Held>),
}

/// A row of `archive`.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveRow {
    pub(crate) last_position: i64,
    pub(crate) first_position: i64,
    previous_hash: String,
    pub(crate) hash: String,
    pub(crate) over_before: i64,
    audit_last: i64,
    ahead: String,
    pub(crate) file: String,
    archived_at: i64,
    sha256: Option<String>,
    signature: Option<String>,
}

record!(ArchiveRow {
    last_position,
    first_position,
    previous_hash,
    hash,
    over_before,
    audit_last,
    ahead,
    file,
    archived_at,
    sha256,
    signature,
});

impl ArchiveRow {
    /// The signed record. `None` when the row is damaged.
    pub(crate) fn record(&self) -> Option<Archive> {
        Some(Archive {
            first_position: self.first_position,
            last_position: self.last_position,
            previous_hash: bytes(&self.previous_hash)?,
            hash: bytes(&self.hash)?,
            over_before: self.over_before,
            ahead: serde_json::from_str(&self.ahead).ok()?,
            file: self.file.clone(),
            sha256: self.sha256.clone()?,
            archived_at: self.archived_at,
            signature: bytes(self.signature.as_deref()?)?,
        })
    }

    fn leaving(&self, elsewhere: Vec<i64>) -> Result<Leaving, Error> {
        let damaged = || Error::internal("the row of an archive that was begun is damaged");
        Ok(Leaving {
            first_position: self.first_position,
            last_position: self.last_position,
            previous_hash: bytes(&self.previous_hash).ok_or_else(damaged)?,
            hash: bytes(&self.hash).ok_or_else(damaged)?,
            over_before: self.over_before,
            audit_last: self.audit_last,
            ahead: from_json(&self.ahead)?,
            elsewhere,
            file: self.file.clone(),
            begun_at: self.archived_at,
        })
    }
}

const ARCHIVE: &str = "SELECT last_position, first_position, previous_hash, hash, over_before, audit_last, ahead, file,
        archived_at, sha256, signature FROM archive";

/// The newest signed record: where the chain of this database begins.
pub(crate) async fn newest_archive(connection: &mut Session) -> Result<Option<ArchiveRow>, Error> {
    let mut query = sql::query(ARCHIVE);
    query.push(" WHERE signature IS NOT NULL ORDER BY last_position DESC LIMIT 1");
    query.fetch_optional(connection).await.map_err(fault)
}

async fn begun(connection: &mut Session) -> Result<Option<ArchiveRow>, Error> {
    let mut query = sql::query(ARCHIVE);
    query.push(" WHERE signature IS NULL ORDER BY last_position DESC LIMIT 1");
    query.fetch_optional(connection).await.map_err(fault)
}

/// Where the record of a running server begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Events up to this position left.
    pub position: i64,
    /// Operations that were over before.
    pub over_before: Timestamp,
}

impl Store {
    /// Where the record begins, if something left.
    pub async fn archive_base(&self) -> Result<Option<Base>, Error> {
        let mut connection = self.read().begin()?;
        let newest = newest_archive(&mut connection).await?;
        Ok(newest.map(|row| Base { position: row.last_position, over_before: Timestamp(row.over_before) }))
    }

    /// Looks for what leaves: everything below the first operation that was not over before `before`, up to a checkpoint,
    /// at most about `most` events. An archive that was begun is finished first.
    pub async fn archive_begin(&self, before: Timestamp, most: i64, now: Timestamp) -> Result<Begun, Error> {
        let mut snapshot = self.read().begin()?;
        let newest = newest_archive(&mut snapshot).await?;
        let left: Vec<i64> = newest.as_ref().map_or(Ok(Vec::new()), |row| from_json(&row.ahead))?;
        let elsewhere = |last: i64| left.iter().copied().filter(|position| *position <= last).collect::<Vec<_>>();
        if let Some(row) = begun(&mut snapshot).await? {
            return Ok(Begun::Leaving(Box::new(row.leaving(elsewhere(row.last_position))?)));
        }
        let (after, previous_hash) = match &newest {
            Some(row) => {
                let hash = bytes(&row.hash).ok_or_else(|| Error::internal("the record of an archive is damaged"))?;
                (row.last_position, hash)
            }
            None => (0, ORIGIN),
        };
        let (end, held) = leaving_end(&mut snapshot, before, after, after.saturating_add(most)).await?;
        let checkpoint: Option<(i64, String)> = sql::query(
            "SELECT last_position, hash FROM checkpoint WHERE last_position > $1 AND last_position <= $2
             ORDER BY last_position DESC LIMIT 1",
        )
        .bind(after)
        .bind(end)
        .fetch_optional(&mut *snapshot)
        .await
        .map_err(fault)?;
        let Some((last, hash)) = checkpoint else { return Ok(Begun::Nothing(held)) };
        // Operations of the span with events above it.
        let mut ahead: Vec<i64> = sql::query(
            "SELECT q.position FROM event_position p JOIN operation_event e ON e.id = p.event_id AND e.seq = 1
             JOIN operation_event later ON later.operation_id = e.operation_id
             JOIN event_position q ON q.event_id = later.id
             WHERE p.position > $1 AND p.position <= $2 AND q.position > $2",
        )
        .bind(after)
        .bind(last)
        .fetch_all(&mut *snapshot)
        .await
        .map_err(fault)?;
        let audit_last =
            sql::query("SELECT COALESCE(MAX(id), 0) FROM audit_log").fetch_one(&mut *snapshot).await.map_err(fault)?;
        drop(snapshot);
        let before_this = elsewhere(last);
        ahead.extend(left.iter().filter(|position| **position > last));
        ahead.sort_unstable();
        let leaving = Leaving {
            first_position: after + 1,
            last_position: last,
            previous_hash,
            hash: bytes(&hash).ok_or_else(|| Error::internal("a checkpoint is damaged"))?,
            over_before: before.micros(),
            audit_last,
            ahead,
            elsewhere: before_this,
            file: format!("operations-{}-{last}.ndjson.gz", after + 1),
            begun_at: now.micros(),
        };
        if self.archive_insert(&leaving).await? {
            return Ok(Begun::Leaving(Box::new(leaving)));
        }
        Err(Error::internal("another process archives the same operations"))
    }

    /// False when there is such an archive.
    async fn archive_insert(&self, leaving: &Leaving) -> Result<bool, Error> {
        let mut tx = self.begin().await?;
        let inserted = sql::query(
            "INSERT INTO archive (last_position, first_position, previous_hash, hash, over_before, audit_last, ahead,
                file, archived_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(leaving.last_position)
        .bind(leaving.first_position)
        .bind(hex::encode(leaving.previous_hash))
        .bind(hex::encode(leaving.hash))
        .bind(leaving.over_before)
        .bind(leaving.audit_last)
        .bind(json(&leaving.ahead)?)
        .bind(&leaving.file)
        .bind(leaving.begun_at)
        .execute(&mut tx)
        .await;
        match inserted {
            Ok(_) => commit(tx).await.map(|()| true),
            Err(e) if e.is_duplicate() => Ok(false),
            Err(e) => Err(fault(e)),
        }
    }

    /// Keeps the signed record of an archive that is on the disk. From here on its rows may go.
    pub async fn archive_record(&self, record: &Archive, key: &PublicKey) -> Result<(), Error> {
        if !record.is_signed_by(key) {
            return Err(Error::internal("the record of an archive is not signed"));
        }
        let mut tx = self.begin().await?;
        let kept = sql::query(
            "UPDATE archive SET archived_at = $3, sha256 = $4, signature = $5
             WHERE last_position = $1 AND first_position = $2 AND signature IS NULL",
        )
        .bind(record.last_position)
        .bind(record.first_position)
        .bind(record.archived_at)
        .bind(&record.sha256)
        .bind(hex::encode(record.signature))
        .execute(&mut tx)
        .await
        .map_err(fault)?;
        if kept != 1 {
            return Err(Error::internal("the archive was not begun, or is recorded already"));
        }
        commit(tx).await
    }

    /// Deletes some of what has left. True when there is more.
    pub async fn archive_sweep(&self) -> Result<bool, Error> {
        let mut connection = self.read().begin()?;
        let newest = newest_archive(&mut connection).await?;
        drop(connection);
        let Some(newest) = newest else { return Ok(false) };
        let mut tx = self.begin().await?;
        tx.may_take_long(true);
        let swept = operations_sweep(&mut tx, &newest).await?
            || audit_sweep(&mut tx, &newest).await?
            || seals_sweep(&mut tx, &newest).await?;
        if swept {
            commit(tx).await?;
        }
        Ok(swept)
    }

    /// Deletes keys that no request can use any more.
    pub async fn idempotency_expire(&self, now: Timestamp) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sql::query("DELETE FROM idempotency_key WHERE expires_at <= $1")
            .bind(now.micros())
            .execute(&mut tx)
            .await
            .map_err(fault)?;
        commit(tx).await
    }
}

/// Up to where operations may leave, and the old one that holds back those after it.
async fn leaving_end(
    snapshot: &mut Session,
    before: Timestamp,
    after: i64,
    most: i64,
) -> Result<(i64, Option<Held>), Error> {
    let sealed: i64 = sql::query("SELECT COALESCE(MAX(last_position), 0) FROM checkpoint")
        .fetch_one(&mut *snapshot)
        .await
        .map_err(fault)?;
    let end = sealed.min(most);
    // One that is over, but whose last event is not sealed, is not proven yet.
    struct First {
        position: i64,
        uuid: Option<String>,
        status: Option<String>,
        created_at: Option<i64>,
        young: bool,
    }

    record!(First { position, uuid, status, created_at, young });
    let first: Option<First> = sql::query(
        "SELECT p.position, o.uuid, o.status, o.created_at, o.status IN ('done', 'failed', 'cancelled')
                AND o.completed_at >= $3 AS young
         FROM event_position p LEFT JOIN operation_event e ON e.id = p.event_id
         LEFT JOIN operation o ON o.id = e.operation_id
         WHERE p.position > $1 AND p.position <= $2 AND (o.id IS NULL
            OR o.status NOT IN ('done', 'failed', 'cancelled') OR o.completed_at IS NULL OR o.completed_at >= $3
            OR (e.seq = 1 AND EXISTS (SELECT 1 FROM operation_event later JOIN event_position q ON q.event_id = later.id
                WHERE later.operation_id = o.id AND q.position > $4)))
         ORDER BY p.position LIMIT 1",
    )
    .bind(after)
    .bind(end)
    .bind(before.micros())
    .bind(sealed)
    .fetch_optional(&mut *snapshot)
    .await
    .map_err(fault)?;
    let Some(first) = first else { return Ok((end, None)) };
    let old = !first.young && first.created_at.is_none_or(|at| at < before.micros());
    let held = old.then(|| Held {
        operation: first.uuid.unwrap_or_else(|| "unknown".to_owned()),
        status: first.status.unwrap_or_else(|| "missing".to_owned()),
    });
    Ok((first.position - 1, held))
}

/// Operations that left, with everything that belongs to them.
async fn operations_sweep(tx: &mut Tx, newest: &ArchiveRow) -> Result<bool, Error> {
    let ids: Vec<i64> = sql::query(
        "SELECT e.operation_id FROM event_position p JOIN operation_event e ON e.id = p.event_id
         WHERE p.position <= $1 AND e.seq = 1 ORDER BY p.position LIMIT $2",
    )
    .bind(newest.last_position)
    .bind(OPERATIONS)
    .fetch_all(&mut **tx)
    .await
    .map_err(fault)?;
    if ids.is_empty() {
        return Ok(false);
    }
    for (statement, end) in [
        ("DELETE FROM audit_log WHERE operation_id IN (", ")"),
        ("DELETE FROM event_position WHERE event_id IN (SELECT id FROM operation_event WHERE operation_id IN (", "))"),
        ("DELETE FROM operation_event WHERE operation_id IN (", ")"),
        ("DELETE FROM operation_resource WHERE operation_id IN (", ")"),
        ("DELETE FROM operation WHERE id IN (", ")"),
    ] {
        let mut query = sql::query(statement);
        query.push_list(&ids).push(end);
        query.execute(tx).await.map_err(fault)?;
    }
    Ok(true)
}

/// Audit rows of that age that belong to no operation.
async fn audit_sweep(tx: &mut Tx, newest: &ArchiveRow) -> Result<bool, Error> {
    let deleted = sql::query(
        "DELETE FROM audit_log WHERE id IN (SELECT a.id FROM audit_log a LEFT JOIN operation o ON o.id = a.operation_id
            WHERE a.id <= $1 AND a.at < $2 AND o.id IS NULL ORDER BY a.id LIMIT $3)",
    )
    .bind(newest.audit_last)
    .bind(newest.over_before)
    .bind(AUDIT_ROWS)
    .execute(tx)
    .await
    .map_err(fault)?;
    Ok(deleted > 0)
}

/// Checkpoints that left, lowest first, each with the seals under it; the last one stays, without them.
async fn seals_sweep(tx: &mut Tx, newest: &ArchiveRow) -> Result<bool, Error> {
    let end: Option<i64> = sql::query(
        "SELECT MAX(last_position) FROM (SELECT last_position FROM checkpoint WHERE last_position < $1
            ORDER BY last_position LIMIT $2) AS lowest",
    )
    .bind(newest.last_position)
    .bind(CHECKPOINTS)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let seals = sql::query("DELETE FROM event_seal WHERE position <= $1")
        .bind(end.unwrap_or(newest.last_position))
        .execute(tx)
        .await
        .map_err(fault)?;
    if let Some(end) = end {
        sql::query("DELETE FROM checkpoint WHERE last_position <= $1").bind(end).execute(tx).await.map_err(fault)?;
    }
    Ok(end.is_some() || seals > 0)
}
