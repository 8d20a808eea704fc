//! CVMs: deploying, finding, power, and what they run.

mod compose_file;
mod composition;
mod deploy;
mod detail;
pub mod list;
mod operation;
mod operations;
mod power;
mod state;
mod watch;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(deploy::provision))
        .routes(routes!(deploy::commit, list::all))
        .routes(routes!(list::paginated))
        .routes(routes!(detail::get, power::delete))
        .routes(routes!(power::start))
        .routes(routes!(power::stop))
        .routes(routes!(power::restart))
        .routes(routes!(operations::list))
        .routes(routes!(operation::cancel))
        .routes(routes!(operation::status))
        .routes(routes!(composition::get))
        .routes(routes!(state::get))
        .routes(routes!(compose_file::get))
        .routes(routes!(compose_file::docker_compose))
}
