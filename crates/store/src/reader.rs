//! Connections that only read, and the queries that are run on them.
//!
//! The one rule: a query runs on the thread of whoever asks. The way to a connection on a thread of its own and back
//! costs more than most queries do (ADR 43). So a few rows that are found by their keys are read right where
//! they are asked for ([`Readers::here`]), and whatever walks, counts or may meet many rows is read on a thread that may be
//! held up ([`Readers::aside`]), a few of those at a time. Either sees one moment of the database, however many queries it
//! makes of it.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_model::error::Error;
use tokio::sync::Semaphore;

use crate::sql::{Failed, Query, Record, Session, Source};
use crate::{closed, fault};

/// Reads that are made aside at the same time, at the most.
const ASIDE: u32 = 4;
/// Connections that are kept while nobody uses them.
const KEPT: usize = 6;
/// Rows that may be read right here, by their keys: a page of a list.
const A_PAGE: usize = 100;

/// Connections to one database.
#[derive(Debug, Clone)]
pub(crate) struct Readers {
    file: Arc<PathBuf>,
    /// Those that nobody uses; `None` once the database is closed.
    idle: Arc<Mutex<Option<Vec<Session>>>>,
    /// For reads that are made aside.
    turns: Arc<Semaphore>,
}

impl Readers {
    pub fn new(file: &Path) -> Self {
        Self {
            file: Arc::new(file.to_owned()),
            idle: Arc::new(Mutex::new(Some(Vec::new()))),
            turns: Arc::new(Semaphore::new(ASIDE as usize)),
        }
    }

    /// Reads right here. For a few rows that are found by their keys, in little more time than a request's other work
    /// takes: everybody else on this thread waits.
    pub fn here<T>(&self, read: impl FnOnce(&Session) -> Result<T, Error>) -> Result<T, Error> {
        let session = self.take()?;
        // A failure or a panic on the way drops the connection, in whatever state it is.
        session.run("BEGIN").map_err(fault)?;
        let read = read(&session);
        session.run("COMMIT").map_err(fault)?;
        self.give(session);
        read
    }

    /// The database at one moment, for as long as the caller keeps it, and for reads that may take long.
    pub fn begin(&self) -> Result<Snapshot, Error> {
        let mut session = self.take()?;
        session.run("BEGIN").map_err(fault)?;
        session.may_take_long(true);
        Ok(Snapshot { session: Some(session), readers: self.clone() })
    }

    /// Reads on another thread, when it is this one's turn.
    pub async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| closed())?;
        let readers = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            readers.here(read)
        });
        reading.await.map_err(Error::internal)?
    }

    /// Reads so many things by their keys, wherever that is right.
    pub async fn by_keys<T: Send + 'static>(
        &self,
        count: usize,
        read: impl FnOnce(&Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if count <= A_PAGE { self.here(read) } else { self.aside(read).await }
    }

    /// Waits for those who read aside, and closes what is open.
    pub async fn close(&self) {
        if let Ok(turns) = self.turns.acquire_many(ASIDE).await {
            turns.forget();
        }
        self.turns.close();
        self.idle().take();
    }

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Session>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<Session, Error> {
        let idle = self.idle().as_mut().ok_or_else(closed)?.pop();
        idle.map_or_else(|| Session::open_to_read(&self.file, false).map_err(|e| fault(e.into())), Ok)
    }

    fn give(&self, session: Session) {
        if let Some(idle) = self.idle().as_mut().filter(|idle| idle.len() < KEPT) {
            idle.push(session);
        }
    }
}

/// One query, aside.
impl Source for &Readers {
    async fn rows<T: Record>(self, query: Query) -> Result<Vec<T>, Failed> {
        self.aside(move |db| db.all(&query)).await.map_err(Failed::Before)
    }
}

/// One query for what is found by its key, right here.
pub(crate) struct ByKey<'a>(pub &'a Readers);

impl Source for ByKey<'_> {
    async fn rows<T: Record>(self, query: Query) -> Result<Vec<T>, Failed> {
        self.0.here(|db| db.all(&query)).map_err(Failed::Before)
    }
}

/// The database at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// There until it is dropped.
    session: Option<Session>,
    readers: Readers,
}

impl Deref for Snapshot {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("it is taken by drop only")
    }
}

impl DerefMut for Snapshot {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("it is taken by drop only")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(mut session) = self.session.take()
            && session.run("COMMIT").is_ok()
        {
            session.may_take_long(false);
            self.readers.give(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Store, sql};

    async fn opened() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a database");
        (folder, store)
    }

    fn users(db: &Session) -> Result<i64, Error> {
        db.one::<(i64,)>(&sql::query("SELECT COUNT(*) FROM user_account")).map(|(count,)| count)
    }

    async fn join(store: &Store, name: &str) {
        let mut tx = store.begin().await.expect("a transaction");
        let now = holdfast_model::Timestamp(1);
        crate::users::user_create(&mut tx, name, name, "user", now).await.expect("a user");
        crate::commit(tx).await.expect("a commit");
    }

    #[tokio::test]
    async fn a_read_sees_one_moment_and_the_next_one_what_was_committed() {
        let (_folder, store) = opened().await;
        let (began, begun) = std::sync::mpsc::channel();
        let (go_on, told) = std::sync::mpsc::channel::<()>();
        let readers = store.read().clone();
        let reading = tokio::spawn(async move {
            readers
                .aside(move |db| {
                    let before = users(db)?;
                    began.send(()).map_err(Error::internal)?;
                    told.recv().map_err(Error::internal)?;
                    Ok((before, users(db)?))
                })
                .await
        });
        tokio::task::spawn_blocking(move || begun.recv()).await.expect("a thread").expect("it reads");
        join(&store, "ann").await;
        assert_eq!(store.read().here(users).expect("a count"), 1, "who comes later sees it");
        go_on.send(()).expect("it waits");
        assert_eq!(reading.await.expect("a task").expect("a read"), (0, 0), "who was reading does not");
    }

    #[tokio::test]
    async fn a_failed_read_leaves_nothing_behind() {
        let (_folder, store) = opened().await;
        let wrong = store.read().here(|db| db.all::<(i64,)>(&sql::query("SELECT what FROM nowhere")));
        assert!(wrong.is_err());
        let missing = store.read().here(|db| db.first::<(i64,)>(&sql::query("SELECT id FROM user_account")));
        assert_eq!(missing.expect("no row is no error"), None);
        join(&store, "ann").await;
        assert_eq!(store.read().here(users).expect("a count"), 1);
        assert!(store.read().idle().as_ref().is_some_and(|idle| idle.len() == 1), "one connection was enough");
    }

    #[tokio::test]
    async fn nothing_is_read_or_written_through_a_closed_or_a_reading_connection() {
        let (_folder, store) = opened().await;
        let write = store.read().here(|db| db.all::<(i64,)>(&sql::query("DELETE FROM user_account RETURNING id")));
        assert!(write.is_err());
        store.close().await;
        let closed = store.read().here(users).expect_err("it is closed");
        assert_eq!(closed.code, holdfast_model::error::Code::Unavailable);
        let closed = store.read().aside(users).await.expect_err("it is closed");
        assert_eq!(closed.code, holdfast_model::error::Code::Unavailable);
    }
}
