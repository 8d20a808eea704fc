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
use rusqlite::ErrorCode;
use tokio::sync::{Mutex as Line, OwnedMappedMutexGuard, OwnedMutexGuard, watch};

use crate::sql::{Failed, PATIENCE, Session};
use crate::{closed, fault};

/// Members of one commit at the most.
const LARGEST_GROUP: usize = 128;
/// How long a group stays open, in commits: whoever has ended waits for others about as long as the disk would make them
/// wait anyway, so a fast disk answers soon and a slow one is asked seldom.
const GROUP_IN_COMMITS: u32 = 3;
/// And in time, however fast or slow the disk is.
const SHORTEST_GROUP: Duration = Duration::from_micros(500);
const LONGEST_GROUP: Duration = Duration::from_millis(10);

const BEGIN: &str = "BEGIN IMMEDIATE";

/// The writer connection and whoever stands in line for it.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    /// `None` once it is closed.
    line: Arc<Line<Option<Session>>>,
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
    session: OwnedMappedMutexGuard<Option<Session>, Session>,
    writer: Writer,
    /// It runs as a savepoint in somebody else's transaction.
    joined: bool,
    ended: bool,
}

impl Deref for Tx {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Writer {
    pub fn new(session: Session) -> Self {
        Self {
            line: Arc::new(Line::new(Some(session))),
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
        let session = OwnedMutexGuard::try_map(line, Option::as_mut).map_err(|_| closed())?;
        self.settle(&session);
        let joined = self.state().group.is_some();
        // From here on a caller that goes away leaves something to undo.
        let mut tx = Tx { session, writer: self.clone(), joined, ended: false };
        tx.session.may_take_long(false);
        if joined {
            tx.run("SAVEPOINT member").map_err(fault)?;
            return Ok(tx);
        }
        let group = Group { outcome: watch::Sender::new(None), ended: 0, began: Instant::now() };
        self.state().group = Some(group);
        match tx.run(BEGIN) {
            Err(failed) if is_busy(&failed) => begin_after_another_process(tx).await,
            begun => begun.map(|()| tx).map_err(fault),
        }
    }

    /// Waits for whoever writes now, and closes the connection.
    pub async fn close(&self) {
        if let Some(session) = self.line.lock().await.take() {
            self.settle(&session);
            self.finish(&session);
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
        let line = self.line.clone().lock_owned().await;
        tokio::task::spawn_blocking(move || {
            if let Some(session) = line.as_ref() {
                self.settle(session);
                if self.is_alone() {
                    self.finish(session);
                }
            }
        });
    }

    /// Undoes the member that was dropped in the middle, if one was. What its siblings wrote stays, unless the database
    /// has given up the whole transaction, as it does when the disk is full.
    fn settle(&self, session: &Session) {
        let abandoned = self.state().abandoned;
        match abandoned {
            None => return,
            Some(false) => {
                let _ = session.run("ROLLBACK");
                self.state().group = None;
            }
            Some(true) => {
                let undone = session.run("ROLLBACK TO member").and_then(|()| session.run("RELEASE member"));
                if let Err(failed) = undone {
                    self.give_up(session, fault(failed));
                }
            }
        }
        self.state().abandoned = None;
    }

    /// Commits the group, if one is open, and tells its members.
    fn finish(&self, session: &Session) {
        if self.state().group.is_none() {
            return;
        }
        let began = Instant::now();
        match session.run("COMMIT") {
            Ok(()) => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                let mut state = self.state();
                state.commit = (state.commit * 7 + began.elapsed()) / 8;
                drop(state);
                self.tell(Ok(()));
            }
            Err(failed) => self.give_up(session, fault(failed)),
        }
    }

    fn give_up(&self, session: &Session, error: Error) {
        // The database may have ended the transaction by itself; then there is nothing left to roll back.
        let _ = session.run("ROLLBACK");
        self.tell(Err(error));
    }

    fn tell(&self, result: Result<(), Error>) {
        if let Some(group) = self.state().group.take() {
            group.outcome.send_replace(Some(result));
        }
    }
}

/// Ends a transaction: what it wrote is on the disk when this returns.
pub(crate) async fn commit(mut tx: Tx) -> Result<(), Error> {
    tx.end()?;
    let writer = tx.writer.clone();
    let (mut outcome, full) = {
        let mut state = writer.state();
        let lasts = state.group_lasts();
        let Some(group) = state.group.as_mut() else { return Err(Error::internal("the group has gone")) };
        let full = group.ended >= LARGEST_GROUP || group.began.elapsed() >= lasts;
        (group.outcome.subscribe(), full)
    };
    if full || writer.is_alone() {
        // On its own: a caller that goes away must not leave the writer in the middle of it, and the disk takes its time.
        tokio::task::spawn_blocking(move || writer.finish(&tx));
    } else {
        drop(tx);
    }
    let told = outcome.wait_for(Option::is_some).await.map_err(Error::internal)?;
    told.clone().unwrap_or(Ok(()))
}

/// Ends a transaction without waiting until it is on the disk. It will be when anything is that begins after this returned.
pub(crate) async fn pass_on(mut tx: Tx) -> Result<(), Error> {
    tx.end()?;
    let writer = tx.writer.clone();
    drop(tx);
    tokio::spawn(async move {
        tokio::time::sleep(LONGEST_GROUP).await;
        writer.flush().await;
    });
    Ok(())
}

fn is_busy(failed: &Failed) -> bool {
    matches!(failed, Failed::Database(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy))
}

/// `holdfast admin` writes to the same database for a moment.
async fn begin_after_another_process(tx: Tx) -> Result<Tx, Error> {
    let waiting = tokio::task::spawn_blocking(move || {
        let patient = |time| tx.busy_timeout(time).map_err(|e| fault(e.into()));
        patient(PATIENCE)?;
        let begun = tx.run(BEGIN).map_err(fault);
        patient(Duration::ZERO)?;
        begun.map(|()| tx)
    });
    waiting.await.map_err(Error::internal)?
}

/// Starts `flush` in the background. Without a runtime the process ends, and with it what was not committed.
fn flush_later(writer: &Writer) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(writer.clone().flush());
    }
}

impl Tx {
    /// It is whole; whether it stays is for its group's commit to say.
    fn end(&mut self) -> Result<(), Error> {
        if self.joined {
            self.run("RELEASE member").map_err(fault)?;
        }
        self.ended = true;
        if let Some(group) = self.writer.state().group.as_mut() {
            group.ended += 1;
        }
        Ok(())
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
