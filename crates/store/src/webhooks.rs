//! Webhook endpoints: whom a workspace tells of its events, and how far each of them has come.
//!
//! The one rule: an endpoint's position says that everything up to it was delivered, or lies in `webhook_delivery` and
//! waits. It only rises, except that an endpoint which is enabled again begins with the newest event.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::feed::LAST_POSITION;
use crate::sql::{self, Session, record};
use crate::{Store, Tx, fault};

/// An endpoint, its secrets wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub id: i64,
    pub workspace_id: i64,
    /// What its secrets are bound to.
    pub uuid: String,
    pub name: Option<String>,
    pub url: String,
    /// JSON list of event names.
    pub events: String,
    /// Wrapped, in hex.
    pub secret: String,
    /// The secret before, wrapped, in hex.
    pub previous_secret: Option<String>,
    /// The secret before is valid until then.
    pub previous_until: Option<i64>,
    pub enabled: bool,
    /// Why the server disabled it.
    pub disabled_reason: Option<String>,
    /// The first failure after the last success.
    pub failing_since: Option<i64>,
    /// Raised whenever it is enabled.
    pub epoch: i64,
    pub position: i64,
    pub created_at: i64,
    pub updated_at: i64,
}

record!(Webhook {
    id,
    workspace_id,
    uuid,
    name,
    url,
    events,
    secret,
    previous_secret,
    previous_until,
    enabled,
    disabled_reason,
    failing_since,
    epoch,
    position,
    created_at,
    updated_at,
});

/// What a new endpoint is made of.
#[derive(Debug)]
pub struct NewWebhook<'a> {
    pub uuid: &'a str,
    pub name: Option<&'a str>,
    pub url: &'a str,
    pub events: &'a str,
    pub secret: &'a str,
}

const WEBHOOK: &str =
    "SELECT id, workspace_id, uuid, name, url, events, secret, previous_secret, previous_until, enabled,
        disabled_reason, failing_since, epoch, position, created_at, updated_at FROM webhook";

/// What pending deliveries of an endpoint that was disabled end with.
pub(crate) const GIVEN_UP: &str = "The endpoint was disabled before this was delivered.";

impl Store {
    /// The endpoints of a workspace, oldest first.
    pub async fn webhooks(&self, workspace: i64) -> Result<Vec<Webhook>, Error> {
        let mut query = sql::query(WEBHOOK);
        query.push(" WHERE workspace_id = ").push_bind(workspace).push(" ORDER BY id");
        query.fetch_all(self.read()).await.map_err(fault)
    }

    /// One endpoint of a workspace.
    pub async fn webhook(&self, workspace: i64, id: i64) -> Result<Option<Webhook>, Error> {
        let mut connection = self.read().begin()?;
        webhook_read(&mut connection, workspace, id).await
    }

    /// All endpoints that want deliveries.
    pub async fn webhooks_enabled(&self) -> Result<Vec<Webhook>, Error> {
        let mut query = sql::query(WEBHOOK);
        query.push(" WHERE enabled ORDER BY id");
        query.fetch_all(self.read()).await.map_err(fault)
    }
}

async fn webhook_read(connection: &mut Session, workspace: i64, id: i64) -> Result<Option<Webhook>, Error> {
    let mut query = sql::query(WEBHOOK);
    query.push(" WHERE workspace_id = ").push_bind(workspace).push(" AND id = ").push_bind(id);
    query.fetch_optional(connection).await.map_err(fault)
}

/// One endpoint, as this transaction sees it.
pub async fn webhook_in(tx: &mut Tx, workspace: i64, id: i64) -> Result<Option<Webhook>, Error> {
    webhook_read(tx, workspace, id).await
}

/// How many endpoints a workspace has.
pub async fn webhook_count(tx: &mut Tx, workspace: i64) -> Result<i64, Error> {
    sql::query("SELECT COUNT(*) FROM webhook WHERE workspace_id = $1")
        .bind(workspace)
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}

/// Makes an endpoint that is told of what happens from now on. Returns its id.
pub async fn webhook_insert(tx: &mut Tx, workspace: i64, new: NewWebhook<'_>, now: Timestamp) -> Result<i64, Error> {
    let position = position_now(tx).await?;
    sql::query(
        "INSERT INTO webhook (workspace_id, uuid, name, url, events, secret, enabled, epoch, position, created_at,
            updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, TRUE, 0, $7, $8, $8) RETURNING id",
    )
    .bind(workspace)
    .bind(new.uuid)
    .bind(new.name)
    .bind(new.url)
    .bind(new.events)
    .bind(new.secret)
    .bind(position)
    .bind(now.micros())
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)
}

async fn position_now(tx: &mut Tx) -> Result<i64, Error> {
    sql::query(LAST_POSITION).fetch_one(&mut **tx).await.map_err(fault)
}

/// Writes an endpoint's name, URL and events.
pub async fn webhook_update(
    tx: &mut Tx,
    id: i64,
    (name, url, events): (Option<&str>, &str, &str),
    now: Timestamp,
) -> Result<(), Error> {
    sql::query("UPDATE webhook SET name = $2, url = $3, events = $4, updated_at = $5 WHERE id = $1")
        .bind(id)
        .bind(name)
        .bind(url)
        .bind(events)
        .bind(now.micros())
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Enables an endpoint: it is told of what happens from now on, and nothing counts that failed before.
pub async fn webhook_enable(tx: &mut Tx, id: i64, now: Timestamp) -> Result<(), Error> {
    let position = position_now(tx).await?;
    sql::query(
        "UPDATE webhook SET enabled = TRUE, disabled_reason = NULL, failing_since = NULL, epoch = epoch + 1, position = $2,
            updated_at = $3
         WHERE id = $1",
    )
    .bind(id)
    .bind(position)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Disables an endpoint: what waits is given up. `reason`: why the server did it by itself.
pub async fn webhook_disable(tx: &mut Tx, id: i64, reason: Option<&str>, now: Timestamp) -> Result<(), Error> {
    sql::query("UPDATE webhook SET enabled = FALSE, disabled_reason = $2, updated_at = $3 WHERE id = $1")
        .bind(id)
        .bind(reason)
        .bind(now.micros())
        .execute(tx)
        .await
        .map_err(fault)?;
    sql::query(
        "UPDATE webhook_delivery SET status = 'failed', next_at = NULL, error_message = $2
         WHERE webhook_id = $1 AND status = 'pending'",
    )
    .bind(id)
    .bind(GIVEN_UP)
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Puts another secret in the place of the one there is, which stays valid until `previous_until`.
pub async fn webhook_rotate(
    tx: &mut Tx,
    id: i64,
    secret: &str,
    previous_until: Timestamp,
    now: Timestamp,
) -> Result<(), Error> {
    sql::query(
        "UPDATE webhook SET previous_secret = secret, previous_until = $3, secret = $2, updated_at = $4 WHERE id = $1",
    )
    .bind(id)
    .bind(secret)
    .bind(previous_until.micros())
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}

/// Deletes an endpoint and the history of its deliveries.
pub async fn webhook_delete(tx: &mut Tx, id: i64) -> Result<(), Error> {
    for statement in ["DELETE FROM webhook_delivery WHERE webhook_id = $1", "DELETE FROM webhook WHERE id = $1"] {
        sql::query(statement).bind(id).execute(tx).await.map_err(fault)?;
    }
    Ok(())
}
