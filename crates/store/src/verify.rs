//! Checking a database against its chain, offline: nothing is written, and a server may be running on it.
//!
//! The one rule: one snapshot. Everything is read as of the moment the check began, so a server that goes on sealing
//! cannot make it say anything wrong.
//!
//! Where a signed record says that the beginning left by age, the chain begins after it. A row that left may still be
//! there while the server deletes: then its seal is too, and it is checked like any other.

use std::path::{Path, PathBuf};

use holdfast_model::error::Error;
use holdfast_trust::archive::Archive;
use holdfast_trust::chain::Checkpoint;
pub use holdfast_trust::chain::PublicKey;
pub use holdfast_trust::walk::Problem;
use holdfast_trust::walk::{Seal, Walk};

use crate::chain::{bytes, entries, public_key};
use crate::retention::newest_archive;
use crate::sql::{self, Session, record};
use crate::{MIGRATIONS, OpenError, fault};

/// A database opened to be read only.
#[derive(Debug, Clone)]
pub struct Ledger {
    file: PathBuf,
    /// Nobody had it open: it is read without making the files that users of a database share.
    at_rest: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The first thing that is not as it was sealed.
    pub problem: Option<Problem>,
    /// The last position of the chain that was followed, and its hash in hex.
    pub sealed: i64,
    pub hash: String,
    /// Events that were followed; those of them that are in an archive are known by their seal only.
    pub events: i64,
    /// What left by age before the chain of this database begins.
    pub archive: Option<Archive>,
    /// When its batch was sealed, in microseconds since 1970; 0 when nothing is.
    pub sealed_at: i64,
    pub checkpoints: u64,
    /// Committed events that are not sealed yet: nothing speaks for them.
    pub unsealed: i64,
    /// The key that the signatures were checked with.
    pub public_key: String,
}

/// What the caller knows from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Checks signatures with this key, not with the one that the database names.
    pub public_key: Option<PublicKey>,
    /// Hash that the chain had at a position, from an earlier report.
    pub head: Option<(i64, String)>,
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

impl CheckpointRow {
    fn read(&self) -> Result<Checkpoint, Problem> {
        let damaged = || Problem::at(self.first_position, "the checkpoint that begins here was altered");
        Ok(Checkpoint {
            first_position: self.first_position,
            last_position: self.last_position,
            previous_hash: bytes(&self.previous_hash).ok_or_else(damaged)?,
            hash: bytes(&self.hash).ok_or_else(damaged)?,
            sealed_at: self.sealed_at,
            signature: bytes(&self.signature).ok_or_else(damaged)?,
        })
    }
}

/// A fault of the database, or something to report.
enum Stop {
    Fault(Error),
    Problem(Problem),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl From<Problem> for Stop {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl Ledger {
    /// Opens a database file of this version's schema.
    pub async fn open(file: &Path) -> Result<Self, OpenError> {
        let failed = |e: &dyn std::fmt::Display| OpenError::Database(file.to_owned(), e.to_string());
        if !file.is_file() {
            return Err(failed(&"there is no such file"));
        }
        let at_rest = !in_use(file);
        let db = Session::open_to_read(file, at_rest).map_err(|e| failed(&e))?;
        let newest: Option<i64> =
            db.one(&sql::query("SELECT MAX(version) FROM _sqlx_migrations")).map_err(|e| failed(&e))?;
        let own = MIGRATIONS.iter().map(|m| m.version).max();
        match newest {
            Some(version) if newest > own => Err(OpenError::Newer(version)),
            _ if newest != own => {
                Err(failed(&"its schema is of an older version; start the server of this version on it once"))
            }
            _ => Ok(Self { file: file.to_owned(), at_rest }),
        }
    }

    /// The public key that the database names.
    pub async fn public_key(&self) -> Result<Option<String>, Error> {
        public_key(&mut self.session()?).await
    }

    fn session(&self) -> Result<Session, Error> {
        Session::open_to_read(&self.file, self.at_rest).map_err(|e| fault(e.into()))
    }

    /// Follows the chain from its beginning to the last checkpoint.
    pub async fn verify(&self, known: &Known) -> Result<Report, Error> {
        let report = self.verify_once(known).await;
        if self.at_rest && in_use(&self.file) {
            // A server started meanwhile, so that was no snapshot.
            let again = Self::open(&self.file).await.map_err(Error::internal)?;
            return again.verify_once(known).await;
        }
        report
    }

    async fn verify_once(&self, known: &Known) -> Result<Report, Error> {
        let mut snapshot = self.session()?;
        snapshot.run("BEGIN").map_err(fault)?;
        let named = public_key(&mut snapshot).await?.unwrap_or_default();
        let key = known.public_key.or_else(|| PublicKey::parse(&named).ok());
        let mut report = Report {
            problem: None,
            sealed: 0,
            hash: String::new(),
            events: 0,
            archive: None,
            sealed_at: 0,
            checkpoints: 0,
            unsealed: 0,
            public_key: key.as_ref().map_or(named, PublicKey::to_hex),
        };
        match key {
            Some(key) => {
                let mut walk = Walk::new(key);
                match check(&mut snapshot, key, &mut walk, &mut report, known).await {
                    Ok(()) => {}
                    Err(Stop::Problem(problem)) => report.problem = Some(problem),
                    Err(Stop::Fault(error)) => return Err(error),
                }
                report.sealed = walk.position;
                report.hash = hex::encode(walk.hash);
            }
            None => report.problem = Some(Problem::at(1, "the database names no public key to check signatures with")),
        }
        report.unsealed = number(
            &mut snapshot,
            "SELECT COUNT(*) FROM event_position WHERE position > (SELECT COALESCE(MAX(last_position), 0) FROM checkpoint)",
        )
        .await?
        .unwrap_or_default();
        Ok(report)
    }
}

/// A database in use has a log beside it, which may hold what the file does not have yet.
fn in_use(file: &Path) -> bool {
    Path::new(&format!("{}-wal", file.display())).exists()
}

/// The first checkpoint that ends above a position.
async fn next_checkpoint(db: &mut Session, after: i64) -> Result<Option<CheckpointRow>, Error> {
    sql::query(
        "SELECT first_position, last_position, previous_hash, hash, sealed_at, signature FROM checkpoint
         WHERE last_position > $1 ORDER BY last_position LIMIT 1",
    )
    .bind(after)
    .fetch_optional(db)
    .await
    .map_err(fault)
}

async fn check(
    db: &mut Session,
    key: PublicKey,
    walk: &mut Walk,
    report: &mut Report,
    known: &Known,
) -> Result<(), Stop> {
    if let Some(row) = newest_archive(db).await? {
        let wrong =
            |what: &str| Problem::at(row.first_position, format!("the record of the archive {}: {what}", row.file));
        let record = row.record().ok_or_else(|| wrong("it was altered"))?;
        if !record.is_signed_by(&key) {
            return Err(wrong("its signature is not valid, so what it says has left was removed").into());
        }
        *walk = beginning(db, key, &record).await?;
        report.archive = Some(record);
    }
    let begin = walk.position;
    let followed = follow(db, walk, report, known).await;
    report.events = walk.position - begin;
    followed?;
    beyond(db, begin, walk.position).await
}

/// Where the chain begins when something left: at the signed checkpoint that was kept, or before it, where the rows that
/// left are still being deleted.
async fn beginning(db: &mut Session, key: PublicKey, record: &Archive) -> Result<Walk, Stop> {
    let last = record.last_position;
    let removed = || Problem::at(last, "the checkpoint that the archive ends at was removed");
    let kept =
        next_checkpoint(db, last - 1).await?.filter(|row| row.last_position == last).ok_or_else(removed)?.read()?;
    if !kept.is_signed_by(&key) || kept.hash != record.hash {
        return Err(Problem::at(last, "the checkpoint is not the one that the archive ends at").into());
    }
    let lowest = next_checkpoint(db, 0).await?.ok_or_else(removed)?.read()?;
    let seals = number(db, &format!("SELECT MIN(position) FROM event_seal WHERE position <= {last}")).await?;
    if lowest.last_position == last && seals.is_none() {
        return Ok(Walk::from(key, last, record.hash));
    }
    Ok(Walk::from(key, lowest.first_position - 1, lowest.previous_hash))
}

async fn follow(db: &mut Session, walk: &mut Walk, report: &mut Report, known: &Known) -> Result<(), Stop> {
    head(known, walk)?;
    while let Some(row) = next_checkpoint(db, walk.position).await? {
        let checkpoint = row.read()?;
        walk.batch(&checkpoint)?;
        batch(db, walk, &checkpoint, report.archive.as_ref(), known).await?;
        report.checkpoints += 1;
        report.sealed_at = checkpoint.sealed_at;
    }
    if let Some((position, _)) = known.head.as_ref().filter(|(position, _)| *position > walk.position) {
        let what = format!("the chain was cut: it once reached position {position}");
        return Err(Problem::at(walk.position + 1, what).into());
    }
    Ok(())
}

/// The chain has the hash here that an earlier report said.
fn head(known: &Known, walk: &Walk) -> Result<(), Problem> {
    match &known.head {
        Some((at, hash)) if *at == walk.position && *hash != hex::encode(walk.hash) => {
            Err(Problem::at(*at, format!("the chain is another one: its hash here was {hash}")))
        }
        _ => Ok(()),
    }
}

async fn batch(
    db: &mut Session,
    walk: &mut Walk,
    checkpoint: &Checkpoint,
    archive: Option<&Archive>,
    known: &Known,
) -> Result<(), Stop> {
    let (after, last) = (walk.position, checkpoint.last_position);
    let rows: Vec<(i64, String, i64, String)> = sql::query(
        "SELECT position, operation_uuid, seq, leaf FROM event_seal WHERE position > $1 AND position <= $2
         ORDER BY position",
    )
    .bind(after)
    .bind(last)
    .fetch_all(&mut *db)
    .await
    .map_err(fault)?;
    let placed = entries(db, after, last, i64::MAX).await?;
    let mut placed = placed.into_iter().peekable();
    let mut first = None;
    for (position, operation, seq, leaf) in rows {
        let leaf = bytes(&leaf).ok_or_else(|| Problem::at(position, "the seal of this event was altered"))?;
        let seal = Seal { position, operation, seq, leaf };
        match placed.next_if(|p| p.position == position) {
            Some(found) => walk.event(&seal, found.entry.as_ref())?,
            None if archive.is_some_and(|archive| archive.covers(position)) => walk.left(&seal)?,
            None => walk.event(&seal, None)?,
        }
        first.get_or_insert(seal);
        head(known, walk)?;
    }
    walk.batch_end(checkpoint, first.as_ref())?;
    Ok(())
}

/// What must hold besides: nothing stands outside the chain but events that are still to be sealed.
async fn beyond(db: &mut Session, begin: i64, sealed: i64) -> Result<(), Stop> {
    let seal = format!("SELECT MIN(position) FROM event_seal WHERE position > {sealed}");
    if let Some(position) = number(db, &seal).await? {
        return Err(Problem::at(position, "sealed, but the checkpoint over it was removed").into());
    }
    let inserted = format!("SELECT MIN(p.position) FROM event_position p WHERE p.position <= {begin}");
    if let Some(position) = number(db, &inserted).await? {
        return Err(Problem::at(position, "inserted: no event has such a position").into());
    }
    let gap = format!(
        "SELECT MIN(p.position) FROM event_position p WHERE p.position > {sealed} + 1
            AND NOT EXISTS (SELECT 1 FROM event_position q WHERE q.position = p.position - 1)"
    );
    if let Some(position) = number(db, &gap).await? {
        return Err(Problem::at(position - 1, "removed before it was sealed").into());
    }
    let lost: Option<(String, i64)> = sql::query(
        "SELECT COALESCE(o.uuid, 'unknown'), e.seq FROM operation_event e
         LEFT JOIN event_position p ON p.event_id = e.id LEFT JOIN operation o ON o.id = e.operation_id
         WHERE p.position IS NULL ORDER BY e.id LIMIT 1",
    )
    .fetch_optional(&mut *db)
    .await
    .map_err(fault)?;
    if let Some((operation, seq)) = lost {
        return Err(Problem::of(&operation, Some(seq), "inserted: this event has no position").into());
    }
    let silent: Option<String> = sql::query(
        "SELECT o.uuid FROM operation o WHERE NOT EXISTS (SELECT 1 FROM operation_event e
            WHERE e.operation_id = o.id AND e.seq = 1) ORDER BY o.id LIMIT 1",
    )
    .fetch_optional(&mut *db)
    .await
    .map_err(fault)?;
    match silent {
        Some(operation) => Err(Problem::of(&operation, None, "inserted: this operation has no first event").into()),
        None => Ok(()),
    }
}

async fn number(db: &mut Session, sql: &str) -> Result<Option<i64>, Error> {
    sql::query(sql.to_owned()).fetch_one(db).await.map_err(fault)
}
