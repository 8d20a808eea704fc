//! Instance id refresh. Elsewhere a CVM's instance id is learned from its node and can be missing or outdated. Here it is
//! given when the CVM is made, the node builds the CVM with it, and it never changes: every answer says so.

use axum::extract::{Path, State};
use holdfast_model::error::{Code, Error};
use holdfast_model::vm::VmStatus;
use holdfast_store::vms::{Filter, Vm};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::{Flag, Integer, MaybeBody};
use crate::phala::version::{Asked, Version};
use crate::phala::view::machine::VmId;

/// CVMs that are looked at unless told.
const LIMIT: i64 = 100;
const MOST: i64 = 500;

/// How to refresh. Neither makes a difference here: there is nothing to overwrite.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct InstanceIdRefreshRequest {
    #[schema(value_type = Option<bool>)]
    #[serde(rename = "overwrite")]
    _overwrite: Option<Flag>,
    #[schema(value_type = Option<bool>)]
    #[serde(rename = "dry_run")]
    _dry_run: Option<Flag>,
}

/// Which CVMs to refresh, and how.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct BatchInstanceIdRefreshRequest {
    /// Ids in any form; all CVMs of the workspace unless given.
    cvm_ids: Option<Vec<String>>,
    /// Skip those that do not run; true unless told.
    #[schema(value_type = Option<bool>)]
    running_only: Option<Flag>,
    /// Skip those that have an instance id, which are all; true unless told.
    #[schema(value_type = Option<bool>)]
    missing_only: Option<Flag>,
    #[schema(value_type = Option<bool>)]
    #[serde(rename = "overwrite")]
    _overwrite: Option<Flag>,
    /// CVMs to look at; 100 unless told.
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 500)]
    limit: Option<Integer>,
    #[schema(value_type = Option<bool>)]
    #[serde(rename = "dry_run")]
    _dry_run: Option<Flag>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct InstanceIdRefreshResult {
    /// An integer up to 2026-01-21, then a hashid.
    cvm_id: VmId,
    /// The CVM's UUID.
    identifier: String,
    /// `unchanged` or `skipped`.
    status: &'static str,
    old_instance_id: Option<String>,
    new_instance_id: Option<String>,
    /// Always `none`: nobody else was asked.
    source: &'static str,
    verified_with_gateway: bool,
    reason: Option<&'static str>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct BatchInstanceIdRefreshResponse {
    /// CVMs that were meant.
    total: i64,
    /// Of these, the ones that were looked at.
    scanned: usize,
    updated: usize,
    unchanged: usize,
    skipped: usize,
    conflicts: usize,
    errors: usize,
    items: Vec<InstanceIdRefreshResult>,
}

impl InstanceIdRefreshResult {
    fn of(vm: &Vm, version: Version, skipped: Option<&'static str>) -> Self {
        Self {
            cvm_id: VmId::of(vm, version),
            identifier: vm.uuid.clone(),
            status: if skipped.is_some() { "skipped" } else { "unchanged" },
            old_instance_id: Some(vm.instance_id.clone()),
            new_instance_id: Some(vm.instance_id.clone()),
            source: "none",
            verified_with_gateway: false,
            reason: skipped.or(Some("It was given its instance id when it was made, and keeps it.")),
        }
    }
}

/// Refresh a CVM's instance id
///
/// The answer is always `unchanged`: this server gives CVMs their ids itself.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/instance-id", tag = "CVMs", operation_id = "cvms_instance_id_refresh",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = Option<InstanceIdRefreshRequest>,
    responses((status = 200, body = InstanceIdRefreshResult), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 422, description = "Validation error")))]
pub async fn one(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(_info): Info,
    Path(id): Path<String>,
    MaybeBody(_request): MaybeBody<InstanceIdRefreshRequest>,
) -> Result<Json<InstanceIdRefreshResult>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    Ok(Json(InstanceIdRefreshResult::of(&vm, asked.of(&caller.who), None)))
}

/// Refresh the instance ids of many CVMs
///
/// None of them changes: this server gives CVMs their ids itself.
#[utoipa::path(patch, path = "/api/v1/cvms/instance-ids", tag = "CVMs", operation_id = "cvms_instance_ids_refresh",
    request_body = BatchInstanceIdRefreshRequest,
    responses((status = 200, body = BatchInstanceIdRefreshResponse), (status = 401, description = "Authentication required"),
        (status = 422, description = "Validation error, or one of the CVMs was not found")))]
pub async fn many(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(_info): Info,
    MaybeBody(request): MaybeBody<BatchInstanceIdRefreshRequest>,
) -> Result<Json<BatchInstanceIdRefreshResponse>, Failure> {
    let request = request.unwrap_or_default();
    let limit = request.limit.map_or(Ok(LIMIT), |limit| within(limit.0))?;
    let (total, vms) = meant(&app, &caller, request.cvm_ids.as_deref(), limit).await?;
    let version = asked.of(&caller.who);
    let on = |flag: Option<Flag>| flag.is_none_or(|flag| flag.0);
    let (running_only, missing_only) = (on(request.running_only), on(request.missing_only));
    let mut items = Vec::with_capacity(vms.len());
    for vm in &vms {
        let runs = vm.status()? == VmStatus::Running;
        let skipped = match (runs, missing_only) {
            (false, _) if running_only => Some("It does not run."),
            (_, true) => Some("It has an instance id."),
            _ => None,
        };
        items.push(InstanceIdRefreshResult::of(vm, version, skipped));
    }
    let skipped = items.iter().filter(|item| item.status == "skipped").count();
    Ok(Json(BatchInstanceIdRefreshResponse {
        total,
        scanned: items.len(),
        updated: 0,
        unchanged: items.len() - skipped,
        skipped,
        conflicts: 0,
        errors: 0,
        items,
    }))
}

fn within(limit: i64) -> Result<i64, Error> {
    let bad = |kind: &str, why: String| Err(Error::field("body", "limit", kind, why));
    match limit {
        ..1 => bad("greater_than_equal", "must be at least 1".to_owned()),
        1..=MOST => Ok(limit),
        _ => bad("less_than_equal", format!("must be at most {MOST}")),
    }
}

/// How many CVMs are meant, and the first of them.
async fn meant(
    app: &App,
    caller: &Caller<WriteVms>,
    ids: Option<&[String]>,
    limit: i64,
) -> Result<(i64, Vec<Vm>), Error> {
    let Some(ids) = ids else {
        let filter = Filter { scope: Some(caller.who.scope()), ..Filter::default() };
        let (vms, total) = app.control.store.vms_page(&filter, limit, 0).await?;
        return Ok((total, vms));
    };
    let limit = usize::try_from(limit).map_err(Error::internal)?;
    let mut vms = Vec::new();
    for id in ids.iter().take(limit) {
        vms.push(app.control.vm_find(&caller.who, id).await.map_err(|error| match error.code {
            Code::CvmNotFound => Error::field("body", "cvm_ids", "value_error", format!("there is no CVM \"{id}\"")),
            _ => error,
        })?);
    }
    Ok((i64::try_from(ids.len()).map_err(Error::internal)?, vms))
}
