//! Operations that are set aside because this build cannot carry them out.
//!
//! The one rule: parking changes nothing about an operation but who looks at it. How far it came, its claims and its
//! first failure stay, so that a build that can carry it out goes on where it stopped.
//!
//! ```text
//! running -- this build has no such plan, or cannot read the record --> stuck, parked
//!    ^                                                                   |      '-- abandoned by a person: failed
//!    '------- a server starts whose build has the plan ------------------'
//! ```

use std::time::Duration;

use holdfast_engine::{PARK, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::vm::VmStatus;
use serde::{Deserialize, Serialize};

use crate::operations::{Claimed, NewEvent, event_append};
use crate::sql::{self, record};
use crate::{Tx, fault, from_json, json};

/// Why an operation is parked.
#[derive(Debug)]
pub struct Parking<'a> {
    pub code: Code,
    /// For everybody who may see the operation.
    pub message: &'a str,
    /// For administrators.
    pub internal: Option<&'a str>,
}

/// What parking overwrites.
#[derive(Debug, Serialize, Deserialize)]
struct Before {
    status: String,
    error_code: Option<String>,
    error_message: Option<String>,
    error_internal: Option<String>,
}

record!(Before { status, error_code, error_message, error_internal });

/// Sets an operation aside: it is stuck until a build that can carry it out starts, or a person abandons it. False when
/// the lease was lost; then nothing was written.
pub async fn operation_park(
    tx: &mut Tx,
    claimed: &Claimed,
    parking: Parking<'_>,
    now: Timestamp,
) -> Result<bool, Error> {
    let before: Option<Before> = sql::query(
        "SELECT status, error_code, error_message, error_internal FROM operation WHERE id = $1 AND lease_token = $2",
    )
    .bind(claimed.id)
    .bind(claimed.lease_token)
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    let Some(before) = before else { return Ok(false) };
    sql::query(
        "UPDATE operation SET parked = $2, status = 'stuck', wake_at = NULL, lease_until = NULL, lease_owner = NULL,
            error_code = $3, error_message = $4, error_internal = $5, updated_at = $6 WHERE id = $1",
    )
    .bind(claimed.id)
    .bind(json(&before)?)
    .bind(parking.code.id())
    .bind(parking.message)
    .bind(parking.internal)
    .bind(now.micros())
    .execute(tx)
    .await
    .map_err(fault)?;
    park_event(tx, claimed.id, "error", now).await?;
    Ok(true)
}

/// Lets operations go on that were parked and whose plan this build has. No step times out for the time they lay there.
pub(crate) async fn parked_resume(tx: &mut Tx, grace: Duration, now: Timestamp) -> Result<(), Error> {
    let parked: Vec<(i64, String, i64, String)> = sql::query(
        // Statuses as in the index over operations that are not over.
        "SELECT id, operation_type, plan_version, parked FROM operation
         WHERE status IN ('pending', 'running', 'stuck') AND parked IS NOT NULL ORDER BY id",
    )
    .fetch_all(&mut **tx)
    .await
    .map_err(fault)?;
    for (id, operation_type, version, before) in parked {
        if ops::find(&operation_type, u32::try_from(version).unwrap_or(0)).is_none() {
            continue;
        }
        let before: Before = from_json(&before)?;
        sql::query(
            "UPDATE operation SET parked = NULL, status = $2, error_code = $3, error_message = $4, error_internal = $5,
                attempts = 0, wake_at = $6, updated_at = $6,
                deadline_at = CASE WHEN deadline_at < $7 THEN $7 ELSE deadline_at END WHERE id = $1",
        )
        .bind(id)
        .bind(before.status)
        .bind(before.error_code)
        .bind(before.error_message)
        .bind(before.error_internal)
        .bind(now.micros())
        .bind(now.plus(grace).micros())
        .execute(tx)
        .await
        .map_err(fault)?;
        park_event(tx, id, "end", now).await?;
    }
    Ok(())
}

async fn park_event(tx: &mut Tx, operation: i64, end: &str, now: Timestamp) -> Result<(), Error> {
    let (operation_type, status): (String, String) = sql::query(
        "SELECT o.operation_type, v.status FROM operation o JOIN vm v ON v.id = o.resource_id WHERE o.id = $1",
    )
    .bind(operation)
    .fetch_one(&mut **tx)
    .await
    .map_err(fault)?;
    // The plan may be unknown, and the status may be what cannot be read.
    let event = format!("instance.{operation_type}.{PARK}.{end}");
    let state = VmStatus::parse(&status).unwrap_or(VmStatus::Error);
    event_append(tx, operation, NewEvent { event_type: &event, step: Some(PARK), state }, now).await
}
