//! Sealing committed events into the chain.
//!
//! The one rule: what an event binds is read in one snapshot and never changes after it. An operation that is over is not
//! written again, and one that is not over gets another event when it ends; so a batch may be hashed without holding up
//! writers, and is kept only if nobody sealed the same positions meanwhile.

use std::collections::HashMap;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_trust::chain::{
    ACCEPTED, Checkpoint, EVENT, Entry, Hash, ORIGIN, OUTCOME, PublicKey, SealKey, Value, link,
};

use crate::sql::{self, Columns, Record, Session};
use crate::{Store, commit, fault};

/// Name of the public key among the facts of the installation.
const PUBLIC_KEY: &str = "checkpoint_public_key";

/// Values bound per statement.
const CHUNK: usize = 500;

/// What a round of sealing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// Everything is sealed.
    Nothing,
    /// So many events were sealed; there may be more.
    Sealed(usize),
    /// Somebody else sealed these events first.
    Lost,
}

/// A position, and the event that has it. `None`: its event or the event's operation is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub position: i64,
    pub entry: Option<Entry>,
}

impl Store {
    /// Seals at most `limit` events in the order of their positions.
    pub async fn events_seal(&self, key: &SealKey, limit: i64, now: Timestamp) -> Result<Sealing, Error> {
        let mut snapshot = self.read().begin()?;
        let (last, previous_hash) = head(&mut snapshot).await?;
        let placed = entries(&mut snapshot, last, i64::MAX, limit).await?;
        drop(snapshot);
        if placed.is_empty() {
            return Ok(Sealing::Nothing);
        }
        let mut hash = previous_hash;
        let mut seals = Vec::with_capacity(placed.len());
        for (expected, placed) in (last + 1..).zip(&placed) {
            let Some(entry) = placed.entry.as_ref().filter(|e| e.position == expected) else {
                return Err(Error::internal(format!(
                    "the event at position {expected} was removed before it was sealed; nothing after it is sealed"
                )));
            };
            let leaf = entry.leaf();
            hash = link(&hash, &leaf);
            seals.push((entry, hex::encode(leaf)));
        }
        let checkpoint = Checkpoint {
            first_position: last + 1,
            last_position: last + i64::try_from(seals.len()).map_err(Error::internal)?,
            previous_hash,
            hash,
            sealed_at: now.micros(),
            signature: [0; 64],
        };
        let checkpoint = checkpoint.sign(key);
        let mut tx = self.begin().await?;
        tx.may_take_long(true);
        let inserted = sql::query(
            "INSERT INTO checkpoint (last_position, first_position, previous_hash, hash, sealed_at, signature)
             SELECT $1, $2, $3, $4, $5, $6 WHERE (SELECT COALESCE(MAX(last_position), 0) FROM checkpoint) = $7",
        )
        .bind(checkpoint.last_position)
        .bind(checkpoint.first_position)
        .bind(hex::encode(checkpoint.previous_hash))
        .bind(hex::encode(checkpoint.hash))
        .bind(checkpoint.sealed_at)
        .bind(hex::encode(checkpoint.signature))
        .bind(last)
        .execute(&mut tx)
        .await;
        match inserted {
            Ok(1) => {}
            Ok(_) => return Ok(Sealing::Lost),
            Err(e) if e.is_duplicate() => return Ok(Sealing::Lost),
            Err(e) => return Err(fault(e)),
        }
        for chunk in seals.chunks(CHUNK) {
            let mut query = sql::query("INSERT INTO event_seal (position, operation_uuid, seq, leaf) ");
            query.push_values(chunk, |row, (entry, leaf)| {
                row.push_bind(entry.position)
                    .push_bind(entry.operation.clone())
                    .push_bind(entry.seq)
                    .push_bind(leaf.clone());
            });
            query.execute(&mut tx).await.map_err(fault)?;
        }
        commit(tx).await?;
        Ok(Sealing::Sealed(seals.len()))
    }

    /// Keeps the public key where an auditor finds it. True when another one stood there.
    pub async fn public_key_keep(&self, key: &PublicKey) -> Result<bool, Error> {
        let mut connection = self.read().begin()?;
        let stored = public_key(&mut connection).await?;
        drop(connection);
        let text = key.to_hex();
        if stored.as_ref() == Some(&text) {
            return Ok(false);
        }
        let mut tx = self.begin().await?;
        sql::query(
            "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(PUBLIC_KEY)
        .bind(text)
        .execute(&mut tx)
        .await
        .map_err(fault)?;
        commit(tx).await?;
        Ok(stored.is_some())
    }
}

/// The public key that the database names, as text.
pub(crate) async fn public_key(connection: &mut Session) -> Result<Option<String>, Error> {
    sql::query("SELECT value FROM installation WHERE name = $1")
        .bind(PUBLIC_KEY)
        .fetch_optional(connection)
        .await
        .map_err(fault)
}

/// Position and hash of the newest checkpoint.
async fn head(connection: &mut Session) -> Result<(i64, Hash), Error> {
    let row: Option<(i64, String)> =
        sql::query("SELECT last_position, hash FROM checkpoint ORDER BY last_position DESC LIMIT 1")
            .fetch_optional(connection)
            .await
            .map_err(fault)?;
    let Some((last, hash)) = row else { return Ok((0, ORIGIN)) };
    Ok((last, bytes(&hash).ok_or_else(|| Error::internal("the newest checkpoint is damaged"))?))
}

/// A column of hex digits. `None` when it is none of this length.
pub(crate) fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

/// Events above `after` up to `last`, in the order of their positions, with everything that they bind.
pub(crate) async fn entries(connection: &mut Session, after: i64, last: i64, limit: i64) -> Result<Vec<Placed>, Error> {
    let sql = format!(
        "SELECT p.position, o.id, o.uuid, CAST(e.seq AS TEXT),
            o.status IN ('done', 'failed', 'cancelled') AND NOT EXISTS (SELECT 1 FROM operation_event later
                WHERE later.operation_id = e.operation_id AND later.seq > e.seq), {}
         FROM event_position p
         LEFT JOIN operation_event e ON e.id = p.event_id
         LEFT JOIN operation o ON o.id = e.operation_id
         WHERE p.position > $1 AND p.position <= $2 ORDER BY p.position LIMIT $3",
        columns("e.", &EVENT)
    );
    let placed: Vec<Found> =
        sql::query(sql).bind(after).bind(last).bind(limit).fetch_all(&mut *connection).await.map_err(fault)?;
    let mut bound: Vec<i64> = Vec::new();
    for event in &placed {
        if let Found { operation: Some((id, _)), seq, over, .. } = event
            && (*seq == 1 || *over)
        {
            bound.push(*id);
        }
    }
    bound.sort_unstable();
    bound.dedup();
    let operations = operations(connection, &bound).await?;
    Ok(placed.into_iter().map(|event| event.placed(&operations)).collect())
}

/// An event as it was found.
struct Found {
    position: i64,
    /// Row and UUID.
    operation: Option<(i64, String)>,
    seq: i64,
    /// It is the last one of an operation that is over.
    over: bool,
    event: Vec<Value>,
}

impl Record for Found {
    const COLUMNS: &'static [&'static str] = &[];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
        let position = row.next()?;
        let id: Option<i64> = row.next()?;
        Ok(Self {
            position,
            operation: id.zip(row.text()?),
            // Text that is no number is like no number that was sealed.
            seq: row.text()?.and_then(|seq| seq.parse().ok()).unwrap_or(-1),
            over: row.next::<Option<bool>>()?.unwrap_or_default(),
            event: row.texts(EVENT.len())?,
        })
    }
}

impl Found {
    fn placed(self, operations: &HashMap<i64, Vec<Value>>) -> Placed {
        let entry = self.operation.map(|(id, uuid)| {
            let values = operations.get(&id);
            let part = |wanted: bool, accepted: bool| {
                values.filter(|_| wanted).map(|values| {
                    let (first, second) = values.split_at(ACCEPTED.len().min(values.len()));
                    if accepted { first.to_vec() } else { second.to_vec() }
                })
            };
            Entry {
                position: self.position,
                operation: uuid,
                seq: self.seq,
                event: self.event,
                accepted: part(self.seq == 1, true),
                outcome: part(self.over, false),
            }
        });
        Placed { position: self.position, entry }
    }
}

/// What operations bind: the columns of [`ACCEPTED`], then those of [`OUTCOME`].
async fn operations(connection: &mut Session, ids: &[i64]) -> Result<HashMap<i64, Vec<Value>>, Error> {
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let select = format!(
            "SELECT o.id, {}, {} FROM operation o WHERE o.id IN (",
            columns("o.", &ACCEPTED),
            columns("o.", &OUTCOME)
        );
        let mut query = sql::query(select);
        query.push_list(chunk).push(")");
        let rows: Vec<Bound> = query.fetch_all(&mut *connection).await.map_err(fault)?;
        found.extend(rows.into_iter().map(|row| (row.id, row.values)));
    }
    Ok(found)
}

/// An operation with what it binds.
struct Bound {
    id: i64,
    values: Vec<Value>,
}

impl Record for Bound {
    const COLUMNS: &'static [&'static str] = &[];

    fn read(row: &mut Columns<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.next()?, values: row.texts(ACCEPTED.len() + OUTCOME.len())? })
    }
}

/// Columns as text: what is hashed does not depend on how a database keeps numbers.
pub(crate) fn columns(table: &str, names: &[&str]) -> String {
    let casts: Vec<String> = names.iter().map(|name| format!("CAST({table}{name} AS TEXT)")).collect();
    casts.join(", ")
}
