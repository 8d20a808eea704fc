//! `GET /cvms/{cvm_id}/stats`: a CVM's processors, memory, disks and load, as its guest's own kernel has them now.
//!
//! The one rule: a guest that is silent is an answer, not an error: `is_online` is false and `error` says why.

use axum::extract::{Path, State};
use holdfast_model::guest::{DiskStats, SystemStats};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::view::{self, Cvm};

/// How a CVM's machine is doing.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmSystemInfo {
    /// The guest agent answered.
    pub is_online: bool,
    /// The system information may be shown publicly (`public_sysinfo`). The CVM's workspace sees it either way.
    pub is_public: bool,
    /// Why it did not answer.
    pub error: Option<String>,
    /// Null unless the guest agent answered.
    pub sysinfo: Option<SystemInfo>,
    pub status: Option<String>,
    /// True if an operation is currently executing.
    pub in_progress: bool,
    pub boot_progress: Option<String>,
    /// The step that failed, and why; or why the machine stands still.
    pub boot_error: Option<String>,
}

/// A machine. Sizes are in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub struct SystemInfo {
    pub os_name: String,
    pub os_version: String,
    pub kernel_version: String,
    pub cpu_model: String,
    pub num_cpus: u32,
    pub total_memory: u64,
    pub available_memory: u64,
    pub used_memory: u64,
    pub free_memory: u64,
    pub total_swap: u64,
    pub used_swap: u64,
    pub free_swap: u64,
    /// Seconds since the guest's kernel started.
    pub uptime: u64,
    /// In hundredths: 150 is a load of 1.5.
    pub loadavg_one: u32,
    pub loadavg_five: u32,
    pub loadavg_fifteen: u32,
    pub disks: Vec<DiskInfo>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct DiskInfo {
    pub name: String,
    pub mount_point: String,
    pub total_size: u64,
    pub free_size: u64,
}

/// System information of a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/stats", tag = "CVMs", operation_id = "cvms_stats",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmSystemInfo), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<CvmSystemInfo>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    let (sysinfo, error) = match stats(&app, &cvm).await {
        Ok(stats) => (Some(SystemInfo::from(*stats)), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Json(CvmSystemInfo {
        is_online: error.is_none(),
        is_public: cvm.compose.public_sysinfo,
        error,
        sysinfo,
        status: Some(cvm.status.to_owned()),
        in_progress: cvm.vm.in_progress(),
        boot_progress: cvm.boot_progress(),
        boot_error: cvm.boot_error(),
    }))
}

/// Asks the guest. `Err` holds the words for the user.
async fn stats(app: &App, cvm: &Cvm) -> Result<Box<SystemStats>, String> {
    let uuid = cvm.guest()?;
    app.control.streams.stats(cvm.vm.node_id, uuid).await.map_err(|error| {
        tracing::debug!(vm = cvm.vm.uuid, %error, "no system information");
        error.message
    })
}

impl From<SystemStats> for SystemInfo {
    fn from(s: SystemStats) -> Self {
        Self {
            os_name: s.os_name,
            os_version: s.os_version,
            kernel_version: s.kernel_version,
            cpu_model: s.cpu_model,
            num_cpus: s.num_cpus,
            total_memory: s.total_memory,
            available_memory: s.available_memory,
            used_memory: s.used_memory,
            free_memory: s.free_memory,
            total_swap: s.total_swap,
            used_swap: s.used_swap,
            free_swap: s.free_swap,
            uptime: s.uptime,
            loadavg_one: s.loadavg_one,
            loadavg_five: s.loadavg_five,
            loadavg_fifteen: s.loadavg_fifteen,
            disks: s.disks.into_iter().map(DiskInfo::from).collect(),
        }
    }
}

impl From<DiskStats> for DiskInfo {
    fn from(d: DiskStats) -> Self {
        Self { name: d.name, mount_point: d.mount_point, total_size: d.total_size, free_size: d.free_size }
    }
}
