//! `POST /status/batch`: how many CVMs are doing, in one request.
//!
//! The one rule: each answer stands under the id exactly as it was asked; ids that name nothing here are left out.

use std::collections::{BTreeMap, HashMap};

use axum::extract::State;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::vms::Filter;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::version::{Asked, Version};
use super::view;
use super::view::parts::GuestEvent;
use crate::App;
use crate::error::Failure;
use crate::extract::{Body, Caller, Read};
use crate::json::Json;

/// Ids in one request at the most.
const MOST: usize = 500;

#[derive(Debug, Deserialize, ToSchema)]
pub struct BatchStatusRequest {
    /// UUIDs with or without dashes, at most 500.
    pub vm_uuids: Vec<String>,
}

/// How a CVM is doing.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CvmStatus {
    pub vm_uuid: String,
    pub status: String,
    pub uptime: Option<String>,
    /// True if an operation is currently executing.
    pub in_progress: bool,
    pub boot_progress: Option<String>,
    pub boot_error: Option<String>,
    pub shutdown_progress: Option<String>,
    pub events: Vec<GuestEvent>,
    pub operation_type: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub operation_started_at: Option<Timestamp>,
    pub correlation_id: Option<String>,
    /// From 2026-05-22.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Option<RunningOperation>>,
    /// From 2026-05-22; always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub resource_usage: Option<Option<serde_json::Value>>,
}

/// The operation that holds a CVM.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct RunningOperation {
    pub r#type: Option<String>,
    pub phase: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    pub correlation_id: Option<String>,
}

/// Status of many CVMs
#[utoipa::path(post, path = "/api/v1/status/batch", tag = "CVMs", operation_id = "status_batch",
    request_body = BatchStatusRequest,
    responses((status = 200, body = BTreeMap<String, CvmStatus>), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error")))]
pub async fn batch(
    State(app): State<App>,
    caller: Caller<Read>,
    asked: Asked,
    Body(request): Body<BatchStatusRequest>,
) -> Result<Json<BTreeMap<String, CvmStatus>>, Failure> {
    if request.vm_uuids.len() > MOST {
        return Err(Error::field("body", "vm_uuids", "too_long", format!("may have at most {MOST} items")).into());
    }
    let wanted: Vec<(String, String)> = request
        .vm_uuids
        .into_iter()
        .filter_map(|text| Uuid::try_parse(&text).ok().map(|uuid| (text, uuid.to_string())))
        .collect();
    if wanted.is_empty() {
        return Ok(Json(BTreeMap::new()));
    }
    let uuids: Vec<String> = wanted.iter().map(|(_, uuid)| uuid.clone()).collect();
    let filter = Filter { scope: Some(caller.who.scope()), uuids: Some(&uuids), ..Filter::default() };
    let vms = app.control.store.vms(&filter, MOST as i64, 0).await?;
    let nested = asked.of(&caller.who) >= Version::V20260522;
    let cvms = view::load(&app.control, vms).await?;
    let mut events = view::load_events(&app.control, &cvms).await?;
    let found = cvms.iter().map(|cvm| {
        let events = events.remove(&cvm.vm.id).unwrap_or_default();
        (cvm.vm.uuid.as_str(), status(cvm, events, nested))
    });
    let found: HashMap<&str, CvmStatus> = found.collect();
    let answer = wanted.into_iter().filter_map(|(text, uuid)| {
        let status = found.get(uuid.as_str())?.clone();
        Some((text.clone(), CvmStatus { vm_uuid: text, ..status }))
    });
    Ok(Json(answer.collect()))
}

fn status(cvm: &view::Cvm, events: Vec<GuestEvent>, nested: bool) -> CvmStatus {
    let vm = &cvm.vm;
    let started_at = vm.operation_created_at.map(Timestamp);
    let operation = vm.in_progress().then(|| RunningOperation {
        r#type: vm.operation_type.clone(),
        phase: Some("in_progress".to_owned()),
        started_at,
        correlation_id: vm.operation_uuid.clone(),
    });
    CvmStatus {
        vm_uuid: vm.uuid.clone(),
        status: cvm.status.to_owned(),
        uptime: Some(cvm.uptime()),
        in_progress: vm.in_progress(),
        boot_progress: cvm.boot_progress(),
        boot_error: cvm.boot_error(),
        shutdown_progress: cvm.shutdown_progress(),
        events,
        operation_type: vm.operation_type.clone(),
        operation_started_at: started_at,
        correlation_id: vm.operation_uuid.clone(),
        operation: nested.then_some(operation),
        resource_usage: nested.then_some(None),
    }
}
