//! Statements, their values, and the rows they give.
//!
//! The one rule: a statement on a connection runs at once, on the thread that asks. The way to a connection on a thread of
//! its own and back costs more than most statements do (ADR 43, ADR 45). So whatever walks or may meet many rows says so:
//! it reads through [`Readers`](crate::reader::Readers), or on a session that [`may_take_long`](Session::may_take_long),
//! and then the thread's other work goes on elsewhere.
//!
//! Running is `async` all the same: with a database behind a socket the same statements wait for it.

use std::borrow::Cow;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use holdfast_model::error::Error;
use rusqlite::types::{FromSql, Type, Value};
use rusqlite::{Connection, OpenFlags, Row, Statement};

use crate::fault;

/// Why a statement failed.
#[derive(Debug)]
pub(crate) enum Failed {
    Database(rusqlite::Error),
    /// It did not come to a database.
    Before(Error),
}

impl Failed {
    /// True when the write broke a unique rule.
    pub fn is_duplicate(&self) -> bool {
        let Self::Database(error) = self else { return false };
        // Of a primary key, of a unique index, of a row's number.
        error.sqlite_error().is_some_and(|e| matches!(e.extended_code, 1555 | 2067 | 2579))
    }
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

type Result<T, E = Failed> = std::result::Result<T, E>;

/// Statements of a connection that are kept prepared.
const PREPARED: usize = 256;
/// Pages that the writer keeps in memory, in KB: those of indexes that every operation writes to, and some.
const WRITTEN_KB: i64 = 16 * 1024;
/// How long one waits for another process that writes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A statement whose values are bound in the order of `$1`, `$2` and so on, or of its `?`.
pub(crate) fn query(text: impl Into<Cow<'static, str>>) -> Query {
    Query { text: text.into(), values: Vec::new() }
}

/// A statement in the making, with its values.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

impl Query {
    pub fn bind(mut self, value: impl Bind) -> Self {
        self.values.push(value.value());
        self
    }

    pub fn push(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.text.to_mut().push_str(text.as_ref());
        self
    }

    pub fn push_bind(&mut self, value: impl Bind) -> &mut Self {
        self.text.to_mut().push('?');
        self.values.push(value.value());
        self
    }

    /// All of these, with commas between them.
    pub fn push_list(&mut self, values: impl IntoIterator<Item = impl Bind>) -> &mut Self {
        for (i, value) in values.into_iter().enumerate() {
            self.push(if i == 0 { "" } else { ", " }).push_bind(value);
        }
        self
    }

    /// Rows to insert, each of whose values `fill` binds.
    pub fn push_values<T>(
        &mut self,
        rows: impl IntoIterator<Item = T>,
        fill: impl Fn(&mut Fields<'_>, T),
    ) -> &mut Self {
        for (i, row) in rows.into_iter().enumerate() {
            self.push(if i == 0 { "VALUES (" } else { ", (" });
            fill(&mut Fields { query: self, bound: 0 }, row);
            self.push(")");
        }
        self
    }

    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Runs it for what it changes: so many rows.
    pub async fn execute(self, on: &mut Session) -> Result<u64> {
        Ok(on.aside(|db| db.change(&self))?)
    }

    pub async fn fetch_all<T: Record>(self, on: impl Source) -> Result<Vec<T>> {
        on.rows(self).await
    }

    /// The first row, if there is one.
    pub async fn fetch_optional<T: Record>(self, on: impl Source) -> Result<Option<T>> {
        on.rows(self).await.map(|rows| rows.into_iter().next())
    }

    /// The row of a query that always has one.
    pub async fn fetch_one<T: Record>(self, on: impl Source) -> Result<T> {
        self.fetch_optional(on).await?.ok_or(Failed::Database(rusqlite::Error::QueryReturnedNoRows))
    }

    fn bind_to(&self, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        for index in 1..=statement.parameter_count() {
            let place = match statement.parameter_name(index).and_then(|name| name[1..].parse().ok()) {
                Some(number) => number,
                None => index,
            };
            let value = self.values.get(place.wrapping_sub(1));
            statement.raw_bind_parameter(
                index,
                value.ok_or(rusqlite::Error::InvalidParameterCount(place, self.values.len()))?,
            )?;
        }
        Ok(())
    }
}

/// The values of one row to insert.
pub(crate) struct Fields<'a> {
    query: &'a mut Query,
    bound: usize,
}

impl Fields<'_> {
    pub fn push_bind(&mut self, value: impl Bind) -> &mut Self {
        if self.bound > 0 {
            self.query.push(", ");
        }
        self.query.push_bind(value);
        self.bound += 1;
        self
    }
}

/// What a statement takes as a value.
pub(crate) trait Bind {
    fn value(self) -> Value;
}

macro_rules! bind {
    ($($type:ty)*) => {
        $(impl Bind for $type {
            fn value(self) -> Value {
                self.into()
            }
        })*
    };
}
bind! { i64 i32 u32 u16 bool String Vec<u8> }

impl Bind for &str {
    fn value(self) -> Value {
        Value::Text(self.to_owned())
    }
}

impl<T: Bind + Clone> Bind for &T {
    fn value(self) -> Value {
        self.clone().value()
    }
}

impl<T: Bind> Bind for Option<T> {
    fn value(self) -> Value {
        self.map_or(Value::Null, Bind::value)
    }
}

/// What a row is read into: its columns, in their order.
pub(crate) trait Record: Sized + Send + 'static {
    /// Names of the columns; empty for what has none.
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

    /// The columns that are left, as text; bytes that are no text were not written by us, and are like nothing that was.
    pub fn texts(&mut self, count: usize) -> rusqlite::Result<Vec<Option<String>>> {
        (0..count).map(|_| self.text()).collect()
    }

    pub fn text(&mut self) -> rusqlite::Result<Option<String>> {
        match self.next::<Option<String>>() {
            Err(rusqlite::Error::FromSqlConversionFailure(..)) => Ok(Some("\u{fffd}".to_owned())),
            read => read,
        }
    }
}

/// Reads a struct from columns that have the names and the order of the fields given.
macro_rules! record {
    ($name:ident { $($field:ident $(from $kept:ty)?),* $(,)? }) => {
        impl $crate::sql::Record for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];

            fn read(row: &mut $crate::sql::Columns<'_>) -> rusqlite::Result<Self> {
                Ok(Self { $($field: $crate::sql::record!(row $(, $kept)?)),* })
            }
        }
    };
    ($row:ident) => { $row.next()? };
    ($row:ident, $kept:ty) => { $row.next_from::<$kept, _>()? };
}
pub(crate) use record;

macro_rules! scalars {
    ($($type:ty)*) => {
        $(impl Record for $type {
            const COLUMNS: &'static [&'static str] = &[];

            fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
                row.next()
            }
        })*
    };
}
scalars! { i64 bool String Option<i64> Option<String> }

macro_rules! tuples {
    ($($($name:ident)*;)*) => {
        $(impl<$($name: FromSql + Send + 'static),*> Record for ($($name,)*) {
            const COLUMNS: &'static [&'static str] = &[];

            fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
                Ok(($(row.next::<$name>()?,)*))
            }
        })*
    };
}
tuples! { A; A B; A B C; A B C D; A B C D E; A B C D E F; A B C D E F G; A B C D E F G H; }

/// A connection, in a transaction or not.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    long: bool,
}

impl Session {
    pub(crate) fn new(connection: Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(PREPARED);
        Self { connection, long: false }
    }

    /// One that changes nothing. `immutable`: nobody else has the file open, and none of the files that its users share is
    /// made.
    pub(crate) fn open_to_read(file: &Path, immutable: bool) -> rusqlite::Result<Self> {
        // No locks within: a connection is on one thread at a time.
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = if immutable {
            Connection::open_with_flags(immutable_uri(file), flags | OpenFlags::SQLITE_OPEN_URI)?
        } else {
            Connection::open_with_flags(file, flags)?
        };
        connection.busy_timeout(PATIENCE)?;
        Ok(Self::new(connection))
    }

    /// The same for writing.
    pub(crate) fn open_to_write(file: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        // Waiting is not for the thread that asks; see `writer.rs`.
        connection.busy_timeout(Duration::ZERO)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -WRITTEN_KB)?;
        // What a savepoint needs to be undone stays in memory; past 64 KB it would be written to a file each time.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        Ok(Self::new(connection))
    }

    /// Its next statements may meet many rows: whatever else the thread has to do goes on elsewhere.
    pub(crate) fn may_take_long(&mut self, long: bool) -> &mut Self {
        self.long = long;
        self
    }

    pub(crate) fn all<T: Record>(&self, query: &Query) -> Result<Vec<T>, Error> {
        self.read(query).map_err(|e| fault(e.into()))
    }

    /// The first row, if there is one.
    pub(crate) fn first<T: Record>(&self, query: &Query) -> Result<Option<T>, Error> {
        self.all(query).map(|rows| rows.into_iter().next())
    }

    /// The row of a query that always has one.
    pub(crate) fn one<T: Record>(&self, query: &Query) -> Result<T, Error> {
        self.first(query)?.ok_or_else(|| Error::internal("a query without a row"))
    }

    pub(crate) fn read<T: Record>(&self, query: &Query) -> rusqlite::Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(&query.text)?;
        debug_assert!(T::COLUMNS.is_empty() || statement.column_names() == T::COLUMNS, "{}", query.text);
        query.bind_to(&mut statement)?;
        let mut rows = statement.raw_query();
        let mut read = Vec::new();
        while let Some(row) = rows.next()? {
            read.push(T::read(&mut Columns { row, next: 0 })?);
        }
        Ok(read)
    }

    fn change(&self, query: &Query) -> rusqlite::Result<u64> {
        let mut statement = self.connection.prepare_cached(&query.text)?;
        query.bind_to(&mut statement)?;
        statement.raw_execute().map(|rows| rows as u64)
    }

    /// A statement without values.
    pub(crate) fn run(&self, sql: &str) -> Result<()> {
        Ok(self.connection.prepare_cached(sql)?.execute([]).map(drop)?)
    }

    fn aside<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        let can_move = || {
            let runtime = tokio::runtime::Handle::try_current();
            runtime.is_ok_and(|r| r.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread)
        };
        if self.long && can_move() { tokio::task::block_in_place(|| work(self)) } else { work(self) }
    }
}

impl Deref for Session {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// Where rows are read.
pub(crate) trait Source {
    fn rows<T: Record>(self, query: Query) -> impl Future<Output = Result<Vec<T>>> + Send;
}

impl Source for &mut Session {
    async fn rows<T: Record>(self, query: Query) -> Result<Vec<T>> {
        Ok(self.aside(|db| db.read(&query))?)
    }
}

fn immutable_uri(file: &Path) -> String {
    let mut uri = String::from("file:");
    for byte in file.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => uri.push(char::from(*byte)),
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(Connection::open_in_memory().expect("a database"))
    }

    #[test]
    fn a_query_has_a_place_for_each_of_its_values() {
        let mut made = query("SELECT 1 WHERE a = ");
        made.push_bind(1i64).push(" AND b IN (").push_list(["x", "y"]).push(")");
        assert_eq!((made.text(), made.values.len()), ("SELECT 1 WHERE a = ? AND b IN (?, ?)", 3));
        let mut rows = query("INSERT INTO t (a, b) ");
        rows.push_values([(1i64, "x"), (2, "y")], |row, (a, b)| {
            row.push_bind(a).push_bind(b);
        });
        assert_eq!((rows.text(), rows.values.len()), ("INSERT INTO t (a, b) VALUES (?, ?), (?, ?)", 4));
    }

    #[tokio::test]
    async fn a_value_goes_where_its_number_stands_however_often_and_in_whatever_order() {
        let mut db = session();
        let asked = query("SELECT $2, $1, $2 || $1").bind("a").bind("b");
        let read: (String, String, String) = asked.fetch_one(&mut db).await.expect("a row");
        assert_eq!(read, ("b".to_owned(), "a".to_owned(), "ba".to_owned()));
        let missing = query("SELECT $2").bind("a").fetch_one::<String>(&mut db).await;
        assert!(matches!(missing, Err(Failed::Database(rusqlite::Error::InvalidParameterCount(2, 1)))), "{missing:?}");
    }

    #[test]
    fn a_file_of_any_name_can_be_opened_where_nobody_writes() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a b?c#d%20\u{e9}.db");
        Connection::open(&file).and_then(|db| db.execute_batch("CREATE TABLE t (n INTEGER)")).expect("a database");
        let db = Session::open_to_read(&file, true).expect("it opens");
        assert_eq!(db.all::<i64>(&query("SELECT n FROM t")).expect("rows"), Vec::<i64>::new());
        assert!(db.run("INSERT INTO t VALUES (1)").is_err());
    }
}
