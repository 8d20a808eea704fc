//! Connections that only read, and the queries that are run on them.
//!
//! The one rule: a query runs on the thread of whoever asks. The way to a connection on a thread of its own and back, as
//! sqlx has it, costs more than most queries do (ADR 43). So a few rows that are found by their keys are read right where
//! they are asked for ([`Readers::here`]), and whatever walks, counts or may meet many rows is read on a thread that may be
//! held up ([`Readers::aside`]), a few of those at a time. Either sees one moment of the database, however many queries it
//! makes of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_model::error::Error;
use rusqlite::types::{FromSql, Type, Value};
use rusqlite::{Connection, OpenFlags, Row, params_from_iter};
use tokio::sync::Semaphore;

use crate::{fault, fault_of};

/// Reads that are made aside at the same time, at the most.
const ASIDE: u32 = 4;
/// Connections that are kept while nobody uses them.
const KEPT: usize = 6;
/// Queries of a connection that are kept prepared.
const PREPARED: usize = 128;
/// Rows that may be read right here, by their keys: a page of a list.
const A_PAGE: usize = 100;

/// A query in the making, with its parameters.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    text: String,
    values: Vec<Value>,
}

impl Query {
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new() }
    }

    /// One whose text is whole, with the values of `$1`, `$2` and so on.
    pub fn with(text: &str, values: impl Into<Vec<Value>>) -> Self {
        Self { text: text.to_owned(), values: values.into() }
    }

    pub fn push(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.text.push_str(text.as_ref());
        self
    }

    pub fn push_bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.text.push('?');
        self.values.push(value.into());
        self
    }

    /// All of these, with commas between them.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = impl Into<Value>>) -> &mut Self {
        for (i, value) in values.into_iter().enumerate() {
            self.push(if i == 0 { "" } else { ", " }).push_bind(value);
        }
        self
    }

    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What a row of a query is read into: its columns, in their order.
pub(crate) trait Record: Sized {
    /// Names of the columns; empty for tuples, which have none.
    const COLUMNS: &'static [&'static str];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self>;
}

/// The columns of a row, one after the other.
pub(crate) struct Columns<'a> {
    row: &'a Row<'a>,
    next: usize,
}

impl Columns<'_> {
    pub fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        let column = self.next;
        self.next += 1;
        self.row.get(column)
    }

    /// A column that is kept as something else.
    pub fn next_from<S, T>(&mut self) -> rusqlite::Result<T>
    where
        S: FromSql,
        T: TryFrom<S, Error: std::error::Error + Send + Sync + 'static>,
    {
        let column = self.next;
        let kept: S = self.next()?;
        T::try_from(kept).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
    }
}

/// Reads a struct from columns that have the names and the order of the fields given.
macro_rules! record {
    ($name:ident { $($field:ident $(from $kept:ty)?),* $(,)? }) => {
        impl $crate::reader::Record for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn read(row: &mut $crate::reader::Columns<'_>) -> rusqlite::Result<Self> {
                Ok(Self { $($field: $crate::reader::record!(row $(, $kept)?)),* })
            }
        }
    };
    ($row:ident) => { $row.next()? };
    ($row:ident, $kept:ty) => { $row.next_from::<$kept, _>()? };
}
pub(crate) use record;

macro_rules! tuples {
    ($($($name:ident)*;)*) => {
        $(impl<$($name: FromSql),*> Record for ($($name,)*) {
            const COLUMNS: &'static [&'static str] = &[];

            fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
                Ok(($(row.next::<$name>()?,)*))
            }
        })*
    };
}
tuples! { A; A B; A B C; A B C D; A B C D E; A B C D E F; }

/// The database at one moment.
pub(crate) struct Snapshot<'a>(&'a Connection);

impl Snapshot<'_> {
    pub fn all<T: Record>(&self, query: &Query) -> Result<Vec<T>, Error> {
        self.read(query).map_err(failed)
    }

    /// The first row, if there is one.
    pub fn first<T: Record>(&self, query: &Query) -> Result<Option<T>, Error> {
        self.all(query).map(|rows| rows.into_iter().next())
    }

    /// The row of a query that always has one.
    pub fn one<T: Record>(&self, query: &Query) -> Result<T, Error> {
        self.first(query)?.ok_or_else(|| Error::internal("a query without a row"))
    }

    fn read<T: Record>(&self, query: &Query) -> rusqlite::Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(&query.text)?;
        debug_assert!(T::COLUMNS.is_empty() || statement.column_names() == T::COLUMNS, "{}", query.text);
        let mut rows = statement.query(params_from_iter(&query.values))?;
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            read.push(T::read(&mut Columns { row, next: 0 })?);
        }
        Ok(read)
    }
}

/// An error of a query as a caller may see it.
fn failed(error: rusqlite::Error) -> Error {
    fault_of(error.sqlite_error().map(|e| e.extended_code), error)
}

fn closed() -> Error {
    fault(sqlx::Error::PoolClosed)
}

/// Connections to one database.
#[derive(Debug, Clone)]
pub(crate) struct Readers {
    file: Arc<PathBuf>,
    /// Those that nobody uses; `None` once the database is closed.
    idle: Arc<Mutex<Option<Vec<Connection>>>>,
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
    pub fn here<T>(&self, read: impl FnOnce(&Snapshot<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let connection = self.take()?;
        // A failure or a panic on the way drops the connection, in whatever state it is.
        run(&connection, "BEGIN")?;
        let read = read(&Snapshot(&connection));
        run(&connection, "COMMIT")?;
        self.give(connection);
        read
    }

    /// Reads on another thread, when it is this one's turn.
    pub async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, Error> + Send + 'static,
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
        read: impl FnOnce(&Snapshot<'_>) -> Result<T, Error> + Send + 'static,
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

    fn idle(&self) -> MutexGuard<'_, Option<Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Result<Connection, Error> {
        let idle = self.idle().as_mut().ok_or_else(closed)?.pop();
        idle.map_or_else(|| open(&self.file).map_err(failed), Ok)
    }

    fn give(&self, connection: Connection) {
        if let Some(idle) = self.idle().as_mut().filter(|idle| idle.len() < KEPT) {
            idle.push(connection);
        }
    }
}

fn open(file: &Path) -> rusqlite::Result<Connection> {
    // No locks within: a connection is on one thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    Ok(connection)
}

fn run(connection: &Connection, sql: &str) -> Result<(), Error> {
    let done = connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
    done.map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    async fn opened() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).await.expect("a database");
        (folder, store)
    }

    fn users(db: &Snapshot<'_>) -> Result<i64, Error> {
        db.one::<(i64,)>(&Query::new("SELECT COUNT(*) FROM user_account")).map(|(count,)| count)
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
        let readers = store.readers().clone();
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
        assert_eq!(store.readers().here(users).expect("a count"), 1, "who comes later sees it");
        go_on.send(()).expect("it waits");
        assert_eq!(reading.await.expect("a task").expect("a read"), (0, 0), "who was reading does not");
    }

    #[tokio::test]
    async fn a_failed_read_leaves_nothing_behind() {
        let (_folder, store) = opened().await;
        let wrong = store.readers().here(|db| db.all::<(i64,)>(&Query::new("SELECT what FROM nowhere")));
        assert!(wrong.is_err());
        let missing = store.readers().here(|db| db.first::<(i64,)>(&Query::new("SELECT id FROM user_account")));
        assert_eq!(missing.expect("no row is no error"), None);
        join(&store, "ann").await;
        assert_eq!(store.readers().here(users).expect("a count"), 1);
        assert!(store.readers().idle().as_ref().is_some_and(|idle| idle.len() == 1), "one connection was enough");
    }

    #[tokio::test]
    async fn nothing_is_read_or_written_through_a_closed_or_a_reading_connection() {
        let (_folder, store) = opened().await;
        let write = store.readers().here(|db| db.all::<(i64,)>(&Query::new("DELETE FROM user_account RETURNING id")));
        assert!(write.is_err());
        store.close().await;
        let closed = store.readers().here(users).expect_err("it is closed");
        assert_eq!(closed.code, holdfast_model::error::Code::Unavailable);
        let closed = store.readers().aside(users).await.expect_err("it is closed");
        assert_eq!(closed.code, holdfast_model::error::Code::Unavailable);
    }

    #[test]
    fn a_query_has_a_place_for_each_of_its_values() {
        let mut query = Query::new("SELECT 1 WHERE a = ");
        query.push_bind(1i64).push(" AND b IN (").push_list(["x".to_owned(), "y".to_owned()]).push(")");
        assert_eq!((query.text(), query.values.len()), ("SELECT 1 WHERE a = ? AND b IN (?, ?)", 3));
    }
}
