//! `POST /cvms/batch-stop`: one stop for each of many CVMs.

use axum::extract::State;
use holdfast_model::error::Error;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Info, WriteVms};
use crate::json::Json;

/// CVMs in one request at the most.
const MOST: usize = 50;

#[derive(Debug, Deserialize, ToSchema)]
pub struct BatchStopRequest {
    /// Ids in any form, at most 50.
    #[schema(max_items = 50)]
    cvm_ids: Vec<String>,
}

/// What came of it; the three numbers and the errors add up.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchStopResponse {
    total: usize,
    /// CVMs whose stop was accepted.
    stopped: usize,
    /// CVMs that are stopped or being stopped.
    skipped: usize,
    errors: Vec<BatchStopErrorEntry>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct BatchStopErrorEntry {
    /// As it was sent.
    cvm_id: String,
    error: String,
}

/// Stop many CVMs
///
/// Each is an operation of its own; one that cannot be stopped keeps none of the others running.
#[utoipa::path(post, path = "/api/v1/cvms/batch-stop", tag = "CVMs", operation_id = "cvms_batch_stop",
    request_body = BatchStopRequest,
    responses((status = 200, body = BatchStopResponse), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn post(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    Info(info): Info,
    Body(request): Body<BatchStopRequest>,
) -> Result<Json<BatchStopResponse>, Failure> {
    if request.cvm_ids.len() > MOST {
        return Err(Error::field("body", "cvm_ids", "too_long", format!("may have at most {MOST} items")).into());
    }
    let batch = app.control.vms_power_off(&caller.who, &info, &request.cvm_ids).await?;
    let entry = |(cvm_id, error): (String, Error)| BatchStopErrorEntry { cvm_id, error: error.message };
    Ok(Json(BatchStopResponse {
        total: request.cvm_ids.len(),
        stopped: batch.accepted.len(),
        skipped: batch.skipped.len(),
        errors: batch.refused.into_iter().map(entry).collect(),
    }))
}
