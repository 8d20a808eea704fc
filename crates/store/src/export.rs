//! Reading operations for an export: whole ones, in one snapshot, with the seals over their events.
//!
//! The one rule: one snapshot from the first page to the last, so an export is the record as of one moment.

use std::collections::HashMap;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_trust::chain::{ACCEPTED, EVENT, OUTCOME};
use holdfast_trust::export::{Batch, Event, Leaf, Operation};
use sqlx::{AssertSqlSafe, QueryBuilder, Row};

use crate::chain::{columns, public_key, text};
use crate::{Db, Store, fault};

/// Operations per page.
const PAGE: i64 = 200;

/// An export that is being read.
pub struct Export {
    snapshot: sqlx::Transaction<'static, Db>,
    since: i64,
    until: i64,
    /// The last operation that was read.
    row: i64,
    /// The last checkpoint that was looked at.
    position: i64,
}

#[derive(sqlx::FromRow)]
struct CheckpointRow {
    first_position: i64,
    last_position: i64,
    previous_hash: String,
    hash: String,
    sealed_at: i64,
    signature: String,
}

impl Store {
    /// Operations accepted at or after `since` and before `until`.
    pub async fn export(&self, since: Option<Timestamp>, until: Option<Timestamp>) -> Result<Export, Error> {
        let snapshot = self.read().begin().await.map_err(fault)?;
        Ok(Export {
            snapshot,
            since: since.map_or(i64::MIN, Timestamp::micros),
            until: until.map_or(i64::MAX, Timestamp::micros),
            row: 0,
            position: 0,
        })
    }
}

impl Export {
    /// The public key that the database names.
    pub async fn public_key(&mut self) -> Result<String, Error> {
        let key = public_key(&mut self.snapshot).await?;
        key.ok_or_else(|| Error::internal("the database names no public key"))
    }

    /// The next operations, oldest first. Empty: there are no more.
    pub async fn operations(&mut self) -> Result<Vec<Operation>, Error> {
        let sql = format!(
            "SELECT o.id, o.uuid, {}, {} FROM operation o
             WHERE o.id > $1 AND o.created_at >= $2 AND o.created_at < $3 ORDER BY o.id LIMIT $4",
            columns("o.", &ACCEPTED),
            columns("o.", &OUTCOME)
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(self.row)
            .bind(self.since)
            .bind(self.until)
            .bind(PAGE)
            .fetch_all(&mut *self.snapshot)
            .await
            .map_err(fault)?;
        let mut ids = Vec::with_capacity(rows.len());
        for row in &rows {
            ids.push(row.try_get::<i64, _>(0).map_err(fault)?);
        }
        let Some(last) = ids.last() else { return Ok(Vec::new()) };
        self.row = *last;
        let mut events = self.events(&ids).await?;
        let section = |row: &sqlx::sqlite::SqliteRow, from: usize, names: &[&str]| {
            names.iter().enumerate().map(|(index, name)| ((*name).to_owned(), text(row, from + index))).collect()
        };
        let operation = |(id, row): (&i64, &sqlx::sqlite::SqliteRow)| Operation {
            id: text(row, 1).unwrap_or_default(),
            accepted: section(row, 2, &ACCEPTED),
            outcome: section(row, 2 + ACCEPTED.len(), &OUTCOME),
            events: events.remove(id).unwrap_or_default(),
        };
        Ok(ids.iter().zip(&rows).map(operation).collect())
    }

    async fn events(&mut self, operations: &[i64]) -> Result<HashMap<i64, Vec<Event>>, Error> {
        let mut query = QueryBuilder::<Db>::new(format!(
            "SELECT e.operation_id, COALESCE(p.position, -e.id), e.seq, {} FROM operation_event e
             LEFT JOIN event_position p ON p.event_id = e.id WHERE e.operation_id IN (",
            columns("e.", &EVENT)
        ));
        let mut list = query.separated(", ");
        for id in operations {
            list.push_bind(*id);
        }
        list.push_unseparated(") ORDER BY e.operation_id, e.seq");
        let mut events: HashMap<i64, Vec<Event>> = HashMap::new();
        for row in query.build().fetch_all(&mut *self.snapshot).await.map_err(fault)? {
            events.entry(row.try_get(0).map_err(fault)?).or_default().push(Event {
                position: row.try_get(1).map_err(fault)?,
                seq: row.try_get(2).map_err(fault)?,
                event_type: text(&row, 3),
                step: text(&row, 4),
                state: text(&row, 5),
                at: text(&row, 6),
            });
        }
        Ok(events)
    }

    /// The next checkpoint that covers an event of these operations. `None`: there are no more.
    pub async fn batch(&mut self) -> Result<Option<Batch>, Error> {
        loop {
            let row: Option<CheckpointRow> = sqlx::query_as(
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
            if leaves.iter().any(|leaf| matches!(leaf, Leaf::Exported(..))) {
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
    }

    async fn leaves(&mut self, first: i64, last: i64) -> Result<Vec<Leaf>, Error> {
        let rows: Vec<(String, String, i64, Option<i64>)> = sqlx::query_as(
            "SELECT s.leaf, s.operation_uuid, s.seq, o.created_at FROM event_seal s
             LEFT JOIN operation o ON o.uuid = s.operation_uuid
             WHERE s.position >= $1 AND s.position <= $2 ORDER BY s.position",
        )
        .bind(first)
        .bind(last)
        .fetch_all(&mut *self.snapshot)
        .await
        .map_err(fault)?;
        let asked = self.since..self.until;
        let leaf = |(leaf, operation, seq, created_at): (String, String, i64, Option<i64>)| match created_at {
            Some(at) if asked.contains(&at) => Leaf::Exported(leaf, operation, seq),
            _ => Leaf::Other(leaf),
        };
        Ok(rows.into_iter().map(leaf).collect())
    }
}
