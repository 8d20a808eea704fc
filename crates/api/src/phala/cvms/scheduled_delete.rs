//! `PATCH /cvms/{cvm_id}/scheduled-delete`: when a CVM is to be deleted.

use axum::extract::{Path, State};
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Info, WriteVms};
use crate::json::Json;
use crate::phala::lenient::MaybeBody;
use crate::phala::version::Asked;
use crate::phala::view;
use crate::phala::view::machine::Machine;

#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct ScheduledDeleteRequest {
    /// A moment in the future; UTC where it names no zone. Null: not any more.
    #[schema(value_type = Option<String>, format = DateTime)]
    scheduled_delete_at: Option<String>,
}

/// Schedule a CVM's deletion
///
/// At that time it is deleted as by `DELETE /cvms/{cvm_id}`; one that is busy then, when it is free.
#[utoipa::path(patch, path = "/api/v1/cvms/{cvm_id}/scheduled-delete", tag = "CVMs",
    operation_id = "cvms_scheduled_delete_update",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    request_body = Option<ScheduledDeleteRequest>,
    responses((status = 200, body = Machine), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found"), (status = 422, description = "Validation error")))]
pub async fn patch(
    State(app): State<App>,
    caller: Caller<WriteVms>,
    asked: Asked,
    Info(info): Info,
    Path(id): Path<String>,
    MaybeBody(request): MaybeBody<ScheduledDeleteRequest>,
) -> Result<Json<Machine>, Failure> {
    let at = request.unwrap_or_default().scheduled_delete_at.as_deref().map(time).transpose()?;
    let vm = app.control.vm_schedule_delete(&caller.who, &info, &id, at).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    Ok(Json(Machine::of(&cvm, asked.of(&caller.who))))
}

fn time(text: &str) -> Result<Timestamp, Error> {
    let time = Timestamp::parse(text).or_else(|| Timestamp::parse(&format!("{text}Z")));
    time.ok_or_else(|| {
        let why = "must be a date and time, like 2026-01-31T12:00:00Z";
        Error::field("body", "scheduled_delete_at", "datetime_from_date_parsing", why)
    })
}
