//! The one writer, and how transactions that queue for it share a commit.
//!
//! The one rule: [`commit`] returns success only when the bytes are on the disk. A transaction whose turn comes before the
//! one ahead of it was made durable joins it: it runs as a savepoint in the same database transaction, and whoever ends
//! with nobody waiting commits for all. So a commit costs one flush of the disk for everybody who queued meanwhile, and
//! nobody ever waits for company.
//!
//! ```text
//!            nobody open                    somebody open, not yet durable
//!   begin -> BEGIN IMMEDIATE                SAVEPOINT member
//!              |                               |
//!          the caller's statements         the caller's statements
//!              |            \ dropped          |            \ dropped
//!   commit     v             v                 v             v
//!            (ended)      ROLLBACK          RELEASE       ROLLBACK TO + RELEASE: only this member never happened
//!              |                               |
//!              +-- somebody waits: hand over --+  and wait for what the last one says
//!              +-- nobody waits: COMMIT, tell every member
//! ```
//! [`pass_on`] ends a member without waiting for that: its caller begins another one at once and relies on nothing else. When
//! the caller does not come, the group is committed after [`LONGEST_GROUP`].
//!
//! Members see each other's writes in the order in which they run, as if each had committed before the next began. When
//! the COMMIT fails, all of them fail and none of them happened; no member has answered its caller yet.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use holdfast_model::error::Error;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{Mutex as Line, OwnedMappedMutexGuard, OwnedMutexGuard, watch};

use crate::fault;

/// Members of one commit at the most.
const LARGEST_GROUP: usize = 128;
/// How long a group stays open, in commits: whoever has ended waits for others about as long as the disk would make them
/// wait anyway, so a fast disk answers soon and a slow one is asked seldom.
const GROUP_IN_COMMITS: u32 = 3;
/// And in time, however fast or slow the disk is.
const SHORTEST_GROUP: Duration = Duration::from_micros(500);
const LONGEST_GROUP: Duration = Duration::from_millis(10);

/// The writer connection and whoever stands in line for it.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// `None` once it is closed.
    line: Arc<Line<Option<SqliteConnection>>>,
    waiting: Arc<AtomicUsize>,
    commits: Arc<AtomicU64>,
    state: Arc<Mutex<State>>,
}

/// Touched only by whoever holds the line.
#[derive(Debug)]
struct State {
    group: Option<Group>,
    /// The last member was dropped in the middle and is to be undone; true when it had joined a group.
    abandoned: Option<bool>,
    /// What a commit takes, as the last ones did.
    commit: Duration,
    longest_group: Duration,
}

impl Default for State {
    fn default() -> Self {
        Self { group: None, abandoned: None, commit: Duration::ZERO, longest_group: LONGEST_GROUP }
    }
}

impl State {
    fn group_lasts(&self) -> Duration {
        self.commit.saturating_mul(GROUP_IN_COMMITS).clamp(SHORTEST_GROUP, self.longest_group)
    }
}

/// Transactions that will be durable together.
#[derive(Debug)]
struct Group {
    outcome: watch::Sender<Option<Result<(), Error>>>,
    ended: usize,
    began: Instant,
}

/// A write transaction. Dropped without [`commit`](crate::commit), it never happened.
#[derive(Debug)]
pub struct Tx {
    connection: OwnedMappedMutexGuard<Option<SqliteConnection>, SqliteConnection>,
    writer: Writer,
    /// It runs as a savepoint in somebody else's transaction.
    joined: bool,
    ended: bool,
}

impl Deref for Tx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Writer {
    pub fn new(connection: SqliteConnection) -> Self {
        Self {
            line: Arc::new(Line::new(Some(connection))),
            waiting: Arc::default(),
            commits: Arc::default(),
            state: Arc::default(),
        }
    }

    /// How often the disk was asked to keep something.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits for its turn and begins.
    pub async fn begin(&self) -> Result<Tx, Error> {
        let waiting = Waiting::new(self);
        let line = self.line.clone().lock_owned().await;
        waiting.served();
        let connection = OwnedMutexGuard::try_map(line, Option::as_mut).map_err(|_| fault(sqlx::Error::PoolClosed))?;
        let mut tx = Tx { connection, writer: self.clone(), joined: false, ended: true };
        self.settle(&mut tx).await;
        tx.joined = self.state().group.is_some();
        // From here on a caller that goes away leaves something to undo.
        tx.ended = false;
        let begin = if tx.joined {
            "SAVEPOINT member"
        } else {
            let group = Group { outcome: watch::Sender::new(None), ended: 0, began: Instant::now() };
            self.state().group = Some(group);
            "BEGIN IMMEDIATE"
        };
        run(&mut tx, begin).await.map_err(fault)?;
        Ok(tx)
    }

    /// Waits for whoever writes now, and closes the connection.
    pub async fn close(&self) {
        let mut line = self.line.lock().await;
        if let Some(mut connection) = line.take() {
            self.settle(&mut connection).await;
            self.finish(&mut connection).await;
            let _ = connection.close().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn is_alone(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    /// Makes durable what is open, when nobody will come to do it.
    async fn flush(self) {
        let mut line = self.line.lock().await;
        if let Some(connection) = line.as_mut() {
            self.settle(connection).await;
            if self.is_alone() {
                self.finish(connection).await;
            }
        }
    }

    /// Undoes the member that was dropped in the middle, if one was. What its siblings wrote stays, unless the database
    /// has given up the whole transaction, as it does when the disk is full.
    async fn settle(&self, connection: &mut SqliteConnection) {
        let abandoned = self.state().abandoned;
        match abandoned {
            None => return,
            Some(false) => {
                let _ = run(connection, "ROLLBACK").await;
                self.state().group = None;
            }
            Some(true) => {
                let undone = match run(connection, "ROLLBACK TO member").await {
                    Ok(()) => run(connection, "RELEASE member").await,
                    failed => failed,
                };
                if let Err(error) = undone {
                    self.give_up(connection, fault(error)).await;
                }
            }
        }
        self.state().abandoned = None;
    }

    /// Commits the group, if one is open, and tells its members.
    async fn finish(&self, connection: &mut SqliteConnection) {
        if self.state().group.is_none() {
            return;
        }
        let began = Instant::now();
        match run(connection, "COMMIT").await {
            Ok(()) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                let mut state = self.state();
                state.commit = (state.commit * 7 + began.elapsed()) / 8;
                drop(state);
                self.tell(Ok(()));
            }
            Err(error) => self.give_up(connection, fault(error)).await,
        }
    }

    async fn give_up(&self, connection: &mut SqliteConnection, error: Error) {
        // The database may have ended the transaction by itself; then there is nothing left to roll back.
        let _ = run(connection, "ROLLBACK").await;
        self.tell(Err(error));
    }

    fn tell(&self, result: Result<(), Error>) {
        if let Some(group) = self.state().group.take() {
            group.outcome.send_replace(Some(result));
        }
    }
}

/// Ends a transaction: what it wrote is on the disk when this returns.
pub(crate) async fn commit(tx: Tx) -> Result<(), Error> {
    // On its own: a caller that goes away must not leave the writer in the middle of it.
    tokio::spawn(end(tx)).await.map_err(Error::internal)?
}

async fn end(mut tx: Tx) -> Result<(), Error> {
    if tx.joined {
        run(&mut tx, "RELEASE member").await.map_err(fault)?;
    }
    tx.ended = true;
    let writer = tx.writer.clone();
    let (mut outcome, full) = {
        let mut state = writer.state();
        let lasts = state.group_lasts();
        let Some(group) = state.group.as_mut() else { return Err(Error::internal("the group has gone")) };
        group.ended += 1;
        let full = group.ended >= LARGEST_GROUP || group.began.elapsed() >= lasts;
        (group.outcome.subscribe(), full)
    };
    if full || writer.is_alone() {
        writer.finish(&mut tx).await;
    }
    drop(tx);
    let told = outcome.wait_for(Option::is_some).await.map_err(Error::internal)?;
    told.clone().unwrap_or(Ok(()))
}

/// Ends a transaction without waiting until it is on the disk. It will be when anything is that begins after this returned.
pub(crate) async fn pass_on(mut tx: Tx) -> Result<(), Error> {
    if tx.joined {
        run(&mut tx, "RELEASE member").await.map_err(fault)?;
    }
    tx.ended = true;
    let writer = tx.writer.clone();
    if let Some(group) = writer.state().group.as_mut() {
        group.ended += 1;
    }
    drop(tx);
    tokio::spawn(async move {
        tokio::time::sleep(LONGEST_GROUP).await;
        writer.flush().await;
    });
    Ok(())
}

async fn run(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

/// Starts `flush` in the background. Without a runtime the process ends, and with it what was not committed.
fn flush_later(writer: &Writer) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(writer.clone().flush());
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if !self.ended {
            self.writer.state().abandoned = Some(self.joined);
            flush_later(&self.writer);
        }
    }
}

/// One that stands in line. Whoever hands over relies on it to come; when it leaves, it sends somebody else.
struct Waiting<'a> {
    writer: &'a Writer,
    served: bool,
}

impl<'a> Waiting<'a> {
    fn new(writer: &'a Writer) -> Self {
        writer.waiting.fetch_add(1, Ordering::SeqCst);
        Self { writer, served: false }
    }

    fn served(mut self) {
        self.served = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.writer.waiting.fetch_sub(1, Ordering::SeqCst);
        if !self.served {
            flush_later(self.writer);
        }
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
