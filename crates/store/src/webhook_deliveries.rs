//! Deliveries to webhooks: what was sent, what waits to be sent again, and in which order.
//!
//! The one rule: of each lane (the events of one CVM for one endpoint) only the first pending row has a time at which it is
//! due; the others wait behind it. Every transaction that touches a lane leaves it so.
//!
//! ```text
//! (event) -- delivered at once ------------------------------> success
//!    '------ failed ---> pending, due after a pause ---------> success
//!    '------ one of its lane waits ---> pending, not due --'-> failed: no attempt is left, or the endpoint was disabled
//! ```

use std::collections::{BTreeSet, HashMap};

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_model::hashid::{self, Prefix};
use uuid::Uuid;

use crate::sql::{self, record};
use crate::webhooks::{GIVEN_UP, webhook_disable};
use crate::{Store, Tx, commit, fault};

/// Rows inserted by one statement.
const CHUNK: usize = 200;
/// Old deliveries deleted by one transaction.
const EXPIRED_AT_ONCE: i64 = 1000;
/// Ids named by one statement.
const IDS: usize = 500;

/// What has become of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryStatus {
    Pending,
    Success,
    Failed,
}

impl DeliveryStatus {
    /// The word in the database and in answers.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Success => "success",
            Self::Failed => "failed",
        }
    }
}

/// A delivery, as the history shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub id: i64,
    pub webhook_id: i64,
    pub event_id: String,
    /// Of a resend: the event that it repeats; else empty.
    pub original_event_id: String,
    pub event_type: String,
    pub lane: String,
    pub sequence: i64,
    pub body: String,
    pub status: String,
    pub attempts: i64,
    pub request_url: String,
    pub response_status: i64,
    pub error_message: String,
    pub duration_ms: i64,
    pub created_at: i64,
    pub delivered_at: Option<i64>,
}

record!(Delivery {
    id,
    webhook_id,
    event_id,
    original_event_id,
    event_type,
    lane,
    sequence,
    body,
    status,
    attempts,
    request_url,
    response_status,
    error_message,
    duration_ms,
    created_at,
    delivered_at,
});

const DELIVERY: &str = "SELECT id, webhook_id, event_id, original_event_id, event_type, lane, sequence, body, status,
        attempts, request_url, response_status, error_message, duration_ms, created_at, delivered_at
     FROM webhook_delivery";

/// Figures of the deliveries of one endpoint that are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveryStats {
    pub total: i64,
    pub success: i64,
    pub failed: i64,
    pub mean_ms: i64,
    pub longest_ms: i64,
    pub last_at: Option<i64>,
}

record!(DeliveryStats { total, success, failed, mean_ms, longest_ms, last_at });

/// What is to be written of one delivery.
#[derive(Debug, Clone)]
pub struct Told {
    pub webhook: i64,
    /// Its row, if it has one.
    pub row: Option<i64>,
    pub event_id: String,
    pub event_type: &'static str,
    pub lane: String,
    pub sequence: i64,
    /// Only of one without a row.
    pub body: String,
    pub status: DeliveryStatus,
    /// When it is to be tried again. `None` while it waits behind another of its lane.
    pub next_at: Option<Timestamp>,
    pub attempts: i64,
    pub request_url: String,
    pub response_status: u16,
    pub error_message: String,
    pub duration_ms: i64,
    /// When the first attempt began.
    pub created_at: Timestamp,
    pub delivered_at: Option<Timestamp>,
}

/// How far an endpoint has come, beside what is told of its deliveries.
#[derive(Debug, Clone)]
pub struct Progress {
    pub webhook: i64,
    pub position: i64,
    /// The last attempt failed at this time; `Some(None)`: it succeeded; `None`: there was none.
    pub last: Option<Option<Timestamp>>,
    /// Its history is to be cut.
    pub cut: bool,
}

/// What writing came to.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Lanes in which nothing waits any more.
    pub clear: Vec<(i64, String)>,
    /// Something is due now that was not.
    pub due: bool,
    /// Endpoints that were disabled because they failed for too long.
    pub disabled: Vec<i64>,
}

/// Bounds of the history of an endpoint, and of its patience.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Deliveries kept that are over.
    pub kept: i64,
    /// An endpoint that fails for this long is disabled.
    pub patience: std::time::Duration,
}

impl Store {
    /// Deliveries of an endpoint, newest first.
    pub async fn deliveries(&self, webhook: i64, limit: i64, offset: i64) -> Result<Vec<Delivery>, Error> {
        let mut query = sql::query(DELIVERY);
        query.push(" WHERE webhook_id = ").push_bind(webhook).push(" ORDER BY id DESC LIMIT ").push_bind(limit);
        query.push(" OFFSET ").push_bind(offset);
        query.fetch_all(self.read()).await.map_err(fault)
    }

    /// Figures of the deliveries that are kept.
    pub async fn delivery_stats(&self, webhook: i64) -> Result<DeliveryStats, Error> {
        sql::query(
            "SELECT COUNT(*) AS total, COALESCE(SUM(CASE WHEN status = 'success' THEN 1 ELSE 0 END), 0) AS success,
                COALESCE(SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END), 0) AS failed,
                COALESCE(CAST(AVG(CASE WHEN attempts > 0 THEN duration_ms END) AS BIGINT), 0) AS mean_ms,
                COALESCE(MAX(duration_ms), 0) AS longest_ms, MAX(delivered_at) AS last_at
             FROM webhook_delivery WHERE webhook_id = $1",
        )
        .bind(webhook)
        .fetch_one(self.read())
        .await
        .map_err(fault)
    }

    /// Ids and endpoints of what is due.
    pub async fn deliveries_due(&self, limit: i64, now: Timestamp) -> Result<Vec<(i64, i64)>, Error> {
        sql::query(
            "SELECT id, webhook_id FROM webhook_delivery WHERE next_at IS NOT NULL AND next_at <= $1
             ORDER BY next_at, id LIMIT $2",
        )
        .bind(now.micros())
        .bind(limit)
        .fetch_all(self.read())
        .await
        .map_err(fault)
    }

    /// These deliveries, whole.
    pub async fn deliveries_by_id(&self, ids: &[i64]) -> Result<Vec<Delivery>, Error> {
        let mut all = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(IDS) {
            let mut query = sql::query(DELIVERY);
            query.push(" WHERE id IN (");
            query.push_list(chunk).push(") ORDER BY id");
            let rows: Vec<Delivery> = query.fetch_all(self.read()).await.map_err(fault)?;
            all.extend(rows);
        }
        Ok(all)
    }

    /// Lanes of an endpoint in which something waits, and how much.
    pub async fn lanes_waiting(&self, webhook: i64) -> Result<Vec<(String, i64)>, Error> {
        sql::query(
            "SELECT lane, COUNT(*) FROM webhook_delivery WHERE webhook_id = $1 AND status = 'pending' GROUP BY lane",
        )
        .bind(webhook)
        .fetch_all(self.read())
        .await
        .map_err(fault)
    }

    /// Sequences after this one that an endpoint has rows of: they were told before the server ended.
    pub async fn sequences_after(&self, webhook: i64, sequence: i64) -> Result<Vec<i64>, Error> {
        sql::query("SELECT sequence FROM webhook_delivery WHERE webhook_id = $1 AND sequence > $2")
            .bind(webhook)
            .bind(sequence)
            .fetch_all(self.read())
            .await
            .map_err(fault)
    }

    /// Writes what became of deliveries, all at once. What belongs to an endpoint that is gone is dropped.
    pub async fn deliveries_record(
        &self,
        told: &[Told],
        progress: &[Progress],
        bounds: Bounds,
        now: Timestamp,
    ) -> Result<Recorded, Error> {
        let mut tx = self.begin().await?;
        let enabled = enabled(&mut tx, progress).await?;
        let mut recorded = Recorded::default();
        let new: Vec<&Told> = told.iter().filter(|t| t.row.is_none() && enabled.contains_key(&t.webhook)).collect();
        for chunk in new.chunks(CHUNK) {
            insert(&mut tx, chunk, &enabled).await?;
        }
        let mut lanes: BTreeSet<(i64, &str)> = BTreeSet::new();
        for one in told.iter().filter(|t| enabled.contains_key(&t.webhook)) {
            if let Some(row) = one.row {
                update(&mut tx, row, one, enabled[&one.webhook]).await?;
            }
            if !one.lane.is_empty() && (one.row.is_some() || one.status == DeliveryStatus::Pending) {
                lanes.insert((one.webhook, &one.lane));
            }
        }
        for (webhook, lane) in lanes {
            if !lane_settle(&mut tx, webhook, lane, now, &mut recorded.due).await? {
                recorded.clear.push((webhook, lane.to_owned()));
            }
        }
        for one in progress.iter().filter(|one| enabled.get(&one.webhook) == Some(&true)) {
            if advance(&mut tx, one, bounds, now).await? {
                recorded.disabled.push(one.webhook);
            }
            if one.cut {
                cut(&mut tx, one.webhook, bounds.kept).await?;
            }
        }
        commit(tx).await?;
        Ok(recorded)
    }

    /// Deletes deliveries of all endpoints that were made before and are over, some at a time, so that writers do not feel it.
    pub async fn deliveries_expire(&self, before: Timestamp) -> Result<(), Error> {
        loop {
            let mut tx = self.begin().await?;
            let deleted = sql::query(
                "DELETE FROM webhook_delivery WHERE id IN (SELECT id FROM webhook_delivery
                    WHERE created_at < $1 AND status <> 'pending' ORDER BY created_at LIMIT $2)",
            )
            .bind(before.micros())
            .bind(EXPIRED_AT_ONCE)
            .execute(&mut tx)
            .await
            .map_err(fault)?;
            if deleted == 0 {
                return Ok(());
            }
            commit(tx).await?;
        }
    }
}

/// Which of these endpoints exist, and whether they are enabled.
async fn enabled(tx: &mut Tx, progress: &[Progress]) -> Result<HashMap<i64, bool>, Error> {
    let mut found = HashMap::with_capacity(progress.len());
    for chunk in progress.chunks(IDS) {
        let mut query = sql::query("SELECT id, enabled FROM webhook WHERE id IN (");
        query.push_list(chunk.iter().map(|one| one.webhook)).push(")");
        let rows: Vec<(i64, bool)> = query.fetch_all(&mut **tx).await.map_err(fault)?;
        found.extend(rows);
    }
    Ok(found)
}

/// Status, due time and error of a row: nothing waits for an endpoint that is disabled.
fn fate(told: &Told, enabled: bool) -> (&'static str, Option<i64>, &str) {
    if told.status == DeliveryStatus::Pending && !enabled {
        return (DeliveryStatus::Failed.word(), None, GIVEN_UP);
    }
    (told.status.word(), told.next_at.map(Timestamp::micros), &told.error_message)
}

async fn insert(tx: &mut Tx, told: &[&Told], enabled: &HashMap<i64, bool>) -> Result<(), Error> {
    let mut query = sql::query(
        "INSERT INTO webhook_delivery (webhook_id, event_id, original_event_id, event_type, lane, sequence, body, status,
            next_at, attempts, request_url, response_status, error_message, duration_ms, created_at, delivered_at) ",
    );
    query.push_values(told, |row, told| {
        let (status, next_at, error) = fate(told, enabled.get(&told.webhook) == Some(&true));
        row.push_bind(told.webhook)
            .push_bind(told.event_id.clone())
            .push_bind("")
            .push_bind(told.event_type)
            .push_bind(told.lane.clone())
            .push_bind(told.sequence)
            .push_bind(told.body.clone())
            .push_bind(status)
            .push_bind(next_at)
            .push_bind(told.attempts)
            .push_bind(told.request_url.clone())
            .push_bind(i64::from(told.response_status))
            .push_bind(error.to_owned())
            .push_bind(told.duration_ms)
            .push_bind(told.created_at.micros())
            .push_bind(told.delivered_at.map(Timestamp::micros));
    });
    // One that has a row was told by the process before this one.
    query.push(" ON CONFLICT (webhook_id, event_id) DO NOTHING");
    query.execute(tx).await.map(drop).map_err(fault)
}

async fn update(tx: &mut Tx, row: i64, told: &Told, enabled: bool) -> Result<(), Error> {
    let (status, next_at, error) = fate(told, enabled);
    sql::query(
        "UPDATE webhook_delivery SET status = $2, next_at = $3, attempts = $4, request_url = $5, response_status = $6,
            error_message = $7, duration_ms = $8, delivered_at = $9 WHERE id = $1",
    )
    .bind(row)
    .bind(status)
    .bind(next_at)
    .bind(told.attempts)
    .bind(&told.request_url)
    .bind(i64::from(told.response_status))
    .bind(error)
    .bind(told.duration_ms)
    .bind(told.delivered_at.map(Timestamp::micros))
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Makes the first of a lane due, if it has no time yet. False when nothing waits in the lane.
async fn lane_settle(tx: &mut Tx, webhook: i64, lane: &str, now: Timestamp, due: &mut bool) -> Result<bool, Error> {
    let first: Option<(i64, Option<i64>)> = sql::query(
        "SELECT id, next_at FROM webhook_delivery WHERE webhook_id = $1 AND lane = $2 AND status = 'pending'
         ORDER BY sequence LIMIT 1",
    )
    .bind(webhook)
    .bind(lane)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let Some((first, next_at)) = first else { return Ok(false) };
    if next_at.is_none() {
        *due = true;
        sql::query("UPDATE webhook_delivery SET next_at = $2 WHERE id = $1")
            .bind(first)
            .bind(now.micros())
            .execute(tx)
            .await
            .map_err(fault)?;
    }
    Ok(true)
}

/// Writes how far an endpoint has come. True when that disabled it.
async fn advance(tx: &mut Tx, one: &Progress, bounds: Bounds, now: Timestamp) -> Result<bool, Error> {
    let failed_at = one.last.flatten().map(Timestamp::micros);
    let since: Option<i64> = sql::query(
        "UPDATE webhook SET position = CASE WHEN position < $2 THEN $2 ELSE position END,
            failing_since = CASE WHEN $3 THEN NULL WHEN $4 IS NULL THEN failing_since ELSE COALESCE(failing_since, $4) END
         WHERE id = $1 RETURNING failing_since",
    )
    .bind(one.webhook)
    .bind(one.position)
    .bind(one.last == Some(None))
    .bind(failed_at)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    let (Some(since), Some(failed_at)) = (since, failed_at) else { return Ok(false) };
    if Timestamp(failed_at).since(Timestamp(since)) < bounds.patience {
        return Ok(false);
    }
    let reason = format!("Every delivery failed since {}.", Timestamp(since));
    webhook_disable(tx, one.webhook, Some(&reason), now).await?;
    sql::query(
        "INSERT INTO audit_log (uuid, workspace_id, actor_type, actor_id, actor_name, request_id, method, path, action,
            target_type, target_id, at, user_agent)
         SELECT $2, workspace_id, 'system', 'webhooks', 'webhooks', '', '', '', 'webhook.disable', 'webhook', $4, $3, ''
         FROM webhook WHERE id = $1",
    )
    .bind(one.webhook)
    .bind(Uuid::new_v4().to_string())
    .bind(now.micros())
    .bind(hashid::encode(Prefix::Webhook, one.webhook))
    .execute(tx)
    .await
    .map_err(fault)?;
    Ok(true)
}

/// Deletes the oldest deliveries of an endpoint that are over, beyond the number that is kept.
async fn cut(tx: &mut Tx, webhook: i64, kept: i64) -> Result<(), Error> {
    sql::query(
        "DELETE FROM webhook_delivery WHERE webhook_id = $1 AND status <> 'pending' AND id <= (
            SELECT id FROM webhook_delivery WHERE webhook_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)",
    )
    .bind(webhook)
    .bind(kept)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// A delivery of an endpoint, by the id of its event.
pub async fn delivery_in(tx: &mut Tx, webhook: i64, event: &str) -> Result<Option<Delivery>, Error> {
    let mut query = sql::query(DELIVERY);
    query.push(" WHERE webhook_id = ").push_bind(webhook).push(" AND event_id = ").push_bind(event);
    query.fetch_optional(&mut **tx).await.map_err(fault)
}

/// A delivery that somebody asks for: a test, or one that repeats another. It is due at once and in no order.
#[derive(Debug)]
pub struct Extra<'a> {
    pub webhook: i64,
    pub event_id: &'a str,
    /// The event that it repeats; empty for a test.
    pub original_event_id: &'a str,
    pub event_type: &'a str,
    pub body: &'a str,
    pub request_url: &'a str,
}

/// Writes a delivery that somebody asks for.
pub async fn delivery_extra(tx: &mut Tx, extra: Extra<'_>, now: Timestamp) -> Result<Delivery, Error> {
    sql::query(
        "INSERT INTO webhook_delivery (webhook_id, event_id, original_event_id, event_type, lane, sequence, body, status,
            next_at, attempts, request_url, response_status, error_message, duration_ms, created_at)
         VALUES ($1, $2, $3, $4, '', 0, $5, 'pending', $7, 0, $6, 0, '', 0, $7)
         RETURNING id, webhook_id, event_id, original_event_id, event_type, lane, sequence, body, status,
            attempts, request_url, response_status, error_message, duration_ms, created_at, delivered_at",
    )
    .bind(extra.webhook)
    .bind(extra.event_id)
    .bind(extra.original_event_id)
    .bind(extra.event_type)
    .bind(extra.body)
    .bind(extra.request_url)
    .bind(now.micros())
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}
