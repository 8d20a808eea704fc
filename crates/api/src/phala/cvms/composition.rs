//! `GET /cvms/{cvm_id}/composition`: the containers of a CVM, as its guest agent sees them now.
//!
//! The one rule: a guest that is silent is an answer, not an error: `is_online` is false and `error` says why.

use axum::extract::{Path, State};
use holdfast_model::error::Error;
use holdfast_model::guest::Container;
use holdfast_store::vms::Vm;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::Failure;
use crate::extract::{Caller, Read};
use crate::json::Json;
use crate::phala::view;

/// What a CVM runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct CvmComposition {
    /// The guest agent answered.
    pub is_online: bool,
    /// The app's logs may be shown publicly.
    pub is_public: bool,
    /// Why it did not answer.
    pub error: Option<String>,
    pub docker_compose_file: Option<String>,
    pub manifest_version: Option<i64>,
    pub version: Option<String>,
    pub runner: Option<String>,
    pub features: Option<Vec<String>>,
    /// Null unless the guest agent answered.
    pub containers: Option<Vec<ExtendedContainer>>,
}

/// A container as docker lists it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExtendedContainer {
    pub id: String,
    /// With the leading `/` that docker gives them.
    pub names: Vec<String>,
    pub image: String,
    pub image_id: String,
    pub command: Option<String>,
    /// Unix seconds.
    pub created: i64,
    pub state: String,
    pub status: String,
    /// Absolute URL of the log, readable without a key for a while.
    pub log_endpoint: Option<String>,
}

/// Containers of a CVM
#[utoipa::path(get, path = "/api/v1/cvms/{cvm_id}/composition", tag = "CVMs", operation_id = "cvms_composition",
    params(("cvm_id" = String, Path, description = "UUID, `cvm_`, `app_` or `instance_` id, integer id, or name")),
    responses((status = 200, body = CvmComposition), (status = 401, description = "Authentication required"),
        (status = 404, description = "CVM not found")))]
pub async fn get(
    State(app): State<App>,
    caller: Caller<Read>,
    Path(id): Path<String>,
) -> Result<Json<CvmComposition>, Failure> {
    let vm = app.control.vm_find(&caller.who, &id).await?;
    let cvm = view::load_one(&app.control, vm).await?;
    let (containers, error) = match containers(&app, &cvm).await {
        Ok(list) => (Some(list), None),
        Err(why) => (None, Some(why)),
    };
    let list = containers.map(|list| list.into_iter().map(|container| extended(&app, &cvm.vm, container)).collect());
    Ok(Json(CvmComposition {
        is_online: error.is_none(),
        is_public: cvm.compose.public_logs,
        error,
        docker_compose_file: cvm.docker_compose_file(),
        manifest_version: Some(i64::from(cvm.compose.manifest_version)),
        version: None,
        runner: Some(cvm.compose.runner.clone()),
        features: Some(cvm.compose.features.clone()),
        containers: list,
    }))
}

/// Asks the guest. `Err` holds the words for the user.
async fn containers(app: &App, cvm: &view::Cvm) -> Result<Vec<Container>, String> {
    let uuid = cvm.guest()?;
    let answer: Result<_, Error> = app.control.streams.containers(cvm.vm.node_id, uuid).await;
    answer.map_err(|error| {
        tracing::debug!(vm = cvm.vm.uuid, %error, "no containers");
        error.message
    })
}

fn extended(app: &App, vm: &Vm, container: Container) -> ExtendedContainer {
    // Names come from the guest: only what needs no escaping goes into a URL of ours.
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let names = container.names.iter().map(|name| name.trim_start_matches('/'));
    let named = names.chain([container.id.as_str()]).find(|text| plain(text));
    let log_endpoint = named.map(|name| app.control.container_log_url(vm, name));
    ExtendedContainer {
        log_endpoint,
        id: container.id,
        names: container.names,
        image: container.image,
        image_id: container.image_id,
        command: Some(container.command),
        created: container.created,
        state: container.state,
        status: container.status,
    }
}
