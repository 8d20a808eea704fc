//! CVMs: deploying, finding, power, and what they run.

mod attestation;
mod batch_stop;
mod compose_file;
mod compose_update;
mod composition;
mod deploy;
mod detail;
mod envs;
mod instance_ids;
pub mod list;
mod network;
mod operation;
mod operations;
mod os_image;
mod ports;
mod power;
pub mod replicas;
mod resources;
mod scheduled_delete;
mod settings;
mod state;
mod stats;
pub mod update;
mod user_config;
mod watch;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{App, dry_run};

pub fn routes() -> OpenApiRouter<App> {
    let with_dry_run = OpenApiRouter::new()
        .routes(routes!(deploy::provision))
        .routes(routes!(deploy::commit, list::all))
        .routes(routes!(detail::get, update::patch, power::delete))
        .routes(routes!(power::start))
        .routes(routes!(power::stop))
        .routes(routes!(power::shutdown))
        .routes(routes!(power::restart))
        .routes(routes!(replicas::create))
        .routes(routes!(scheduled_delete::patch))
        .routes(routes!(compose_update::trigger))
        .routes(routes!(compose_update::docker_compose))
        .routes(routes!(compose_update::pre_launch_script))
        .routes(routes!(resources::patch))
        .routes(routes!(envs::patch))
        .routes(routes!(settings::visibility))
        .routes(routes!(settings::listed))
        .routes(routes!(settings::name))
        .routes(routes!(network::patch))
        .routes(routes!(ports::put))
        .routes(routes!(os_image::patch));
    OpenApiRouter::new()
        .merge(dry_run::routes(with_dry_run))
        .routes(routes!(list::paginated))
        .routes(routes!(batch_stop::post))
        .routes(routes!(instance_ids::one))
        .routes(routes!(instance_ids::many))
        .routes(routes!(operations::list))
        .routes(routes!(operation::cancel))
        .routes(routes!(operation::status))
        .routes(routes!(composition::get))
        .routes(routes!(stats::get))
        .routes(routes!(network::get))
        .routes(routes!(network::config))
        .routes(routes!(ports::get))
        .routes(routes!(user_config::get))
        .routes(routes!(attestation::get))
        .routes(routes!(state::get))
        .routes(routes!(compose_file::get, compose_update::replace))
        .routes(routes!(compose_file::docker_compose))
        .routes(routes!(compose_update::provision))
        .routes(routes!(compose_update::pre_launch_script_get))
        .routes(routes!(os_image::available))
}
