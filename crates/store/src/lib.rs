//! Where everything that must not be lost is kept.
//!
//! The one rule: whatever belongs together is written in one transaction of [`Store::begin`], and nothing outside this
//! crate sees SQL. Queries are in the subset that SQLite and PostgreSQL share; only opening, claiming and waking differ.
//!
//! On SQLite there is one writer connection (`writer.rs`), so write transactions queue in the process instead of failing
//! as busy, those that queue share a commit, and the data folder is locked, so that there is one process. A statement runs
//! on the thread that asks (`sql.rs`), unless it may take long (`reader.rs`).

#![forbid(unsafe_code)]

pub mod accept;
pub mod api_keys;
pub mod app_events;
pub mod app_revisions;
pub mod apps;
pub mod audit;
pub mod audit_log;
pub mod chain;
mod claiming;
pub mod counts;
pub mod desired;
pub mod device_logins;
pub mod export;
pub mod feed;
mod filter;
pub mod history;
pub mod idempotency;
pub mod identities;
pub mod installation;
pub mod interventions;
pub mod invitations;
mod lock;
pub mod members;
pub mod node_tokens;
pub mod nodes;
pub mod operations;
pub mod page;
pub mod parking;
pub mod passwords;
pub mod preview;
pub mod projects;
pub mod provisions;
pub mod queue;
pub mod quotas;
mod reader;
mod reserved;
pub mod retention;
pub mod revisions;
pub mod schedules;
pub mod scope;
mod sql;
pub mod ssh_keys;
pub mod tenancy;
pub mod usage;
pub mod users;
pub mod verify;
pub mod vms;
pub mod webhook_deliveries;
pub mod webhook_feed;
pub mod webhooks;
pub mod workspaces;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use holdfast_model::error::{Code, Error};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{ConnectOptions, Connection};

use reader::{ByKey, Readers};
use sql::{Failed, Session};
use writer::Writer;

pub use lock::FolderLock;
pub use writer::Tx;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data folder {0} is used by another server{1}")]
    Locked(PathBuf, String),
    #[error("the data folder was written by a newer version of holdfast (schema {0}); this is {version}", version = holdfast_model::VERSION)]
    Newer(i64),
    #[error("cannot open the database {0}: {1}")]
    Database(PathBuf, String),
    #[error("cannot use the data folder {0}: {1}")]
    Folder(PathBuf, std::io::Error),
}

/// Connections to the database of one data folder.
#[derive(Debug, Clone)]
pub struct Store {
    write: Writer,
    readers: Readers,
    /// The workspace that the last round of claims ended with; see `claiming.rs`.
    turn: Arc<AtomicI64>,
}

impl Store {
    /// Opens `folder/holdfast.db`, making or migrating it as needed. Lock the folder first ([`FolderLock`]).
    pub async fn open(folder: &Path) -> Result<Self, OpenError> {
        Self::connect(folder, true).await
    }

    /// Opens a database that exists, beside the server that may be using it. Changes no schema.
    pub async fn open_existing(folder: &Path) -> Result<Self, OpenError> {
        Self::connect(folder, false).await
    }

    async fn connect(folder: &Path, migrate: bool) -> Result<Self, OpenError> {
        let file = folder.join("holdfast.db");
        let failed = |e: &dyn std::fmt::Display| OpenError::Database(file.clone(), e.to_string());
        if migrate {
            migrated(&file).await?;
        }
        let write = Session::open_to_write(&file).map_err(|e| failed(&e))?;
        if !migrate {
            let newest: Option<i64> =
                write.one(&sql::query("SELECT MAX(version) FROM _sqlx_migrations")).map_err(|e| failed(&e))?;
            if newest != MIGRATIONS.iter().map(|m| m.version).max() {
                return Err(failed(&"its schema is of another version; start the server of this version on it once"));
            }
        }
        restrict(&file).map_err(|e| OpenError::Folder(folder.to_owned(), e))?;
        Ok(Self { write: Writer::new(write), readers: Readers::new(&file), turn: Arc::default() })
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> Result<Tx, Error> {
        self.write.begin().await
    }

    /// Commits of this process that were made durable; a commit is shared by transactions that queue for it.
    pub fn commits(&self) -> u64 {
        self.write.commits()
    }

    /// Connections for queries that write nothing.
    pub(crate) fn read(&self) -> &Readers {
        &self.readers
    }

    /// The same for one query that finds a row or two by their keys.
    pub(crate) fn by_key(&self) -> ByKey<'_> {
        ByKey(&self.readers)
    }

    /// Checks that the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        self.readers.here(|db| db.one::<i64>(&sql::query("SELECT 1"))).map(drop)
    }

    /// Folds the write-ahead log into the database and closes all connections.
    pub async fn close(&self) {
        self.readers.close().await;
        self.write.close().await;
    }
}

/// Makes a transaction durable.
#[track_caller]
pub fn commit(tx: Tx) -> impl Future<Output = Result<(), Error>> {
    let caller = holdfast_failpoint::caller();
    async move {
        holdfast_failpoint::hit_by("commit.before", caller);
        let committed = writer::commit(tx).await;
        holdfast_failpoint::hit_by("commit.after", caller);
        committed
    }
}

/// Ends a transaction whose caller begins another one at once, and only then relies on this one being durable.
#[track_caller]
pub(crate) fn pass_on(tx: Tx) -> impl Future<Output = Result<(), Error>> {
    let caller = holdfast_failpoint::caller();
    async move {
        holdfast_failpoint::hit_by("commit.before", caller);
        let passed = writer::pass_on(tx).await;
        holdfast_failpoint::hit_by("commit.after", caller);
        passed
    }
}

/// The database holds hashes and ciphertext, but it is nobody else's business either.
fn restrict(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for suffix in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{suffix}", file.display()));
        if path.exists() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Makes the database, or brings it to this version's schema.
async fn migrated(file: &Path) -> Result<(), OpenError> {
    let failed = |e: &dyn std::fmt::Display| OpenError::Database(file.to_owned(), e.to_string());
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .foreign_keys(true)
        .busy_timeout(sql::PATIENCE);
    let mut connection = options.connect().await.map_err(|e| failed(&e))?;
    MIGRATIONS.run(&mut connection).await.map_err(|e| match e {
        sqlx::migrate::MigrateError::VersionMissing(version) => OpenError::Newer(version),
        other => failed(&other),
    })?;
    connection.close().await.map_err(|e| failed(&e))
}

fn closed() -> Error {
    fault_of(Some(CANNOT_OPEN), "the database is closed")
}

/// A database error as a caller may see it: a full disk or a busy file passes, anything else is a fault of ours.
pub(crate) fn fault(failed: Failed) -> Error {
    match failed {
        Failed::Database(error) => fault_of(error.sqlite_error().map(|e| e.extended_code), error),
        Failed::Before(error) => error,
    }
}

const CANNOT_OPEN: i32 = 14;
/// The file that all connections share, which cannot grow.
const SHARED_SIZE: i32 = 4874;

/// The same by the result code of SQLite.
fn fault_of(code: Option<i32>, cause: impl std::fmt::Display) -> Error {
    // Primary codes: 5 busy, 6 locked, 7 no memory, 10 I/O, 13 full, 14 cannot open; extended ones carry them in the low
    // byte.
    let primary = code.map(|code| code & 0xff);
    if primary == Some(13) || code == Some(SHARED_SIZE) {
        let message = "The disk of the server's database is full; nothing was changed.";
        return Error::new(Code::Unavailable, message).with_internal(cause);
    }
    match primary {
        Some(5 | 6 | 7 | 10 | CANNOT_OPEN) => {
            Error::new(Code::Unavailable, "The database cannot be used right now; nothing was changed.")
                .with_internal(cause)
        }
        _ => Error::internal(cause),
    }
}

/// Text of ours that must parse; anything else in the database is damage.
pub(crate) fn stored<T>(parsed: Option<T>, what: &str, text: &str) -> Result<T, Error> {
    parsed.ok_or_else(|| Error::internal(format!("unknown {what} {text:?} in the database")))
}

/// JSON text for a column.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(Error::internal)
}

/// A column of JSON text.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(Error::internal)
}
