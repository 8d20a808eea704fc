//! Our own surface: what neither contract has.

mod ansi;
mod audit_logs;
mod export;
mod interventions;
mod invitations;
mod logs;
mod node_tokens;
mod nodes;
mod operations;
mod projects;
mod quotas;
mod said;
mod users;
mod watching;
mod workspaces;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;

#[derive(OpenApi)]
#[openapi(
    info(title = "Holdfast API", description = "Operations across all resources, nodes, and log streams."),
    modifiers(&Security)
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        components.add_security_scheme("bearer", bearer);
        components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))));
    }
}

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(operations::list))
        .routes(routes!(export::export))
        .routes(routes!(operations::get))
        .routes(routes!(interventions::cancel))
        .routes(routes!(interventions::retry))
        .routes(routes!(interventions::abandon))
        .routes(routes!(watching::wait))
        .routes(routes!(watching::events))
        .routes(routes!(watching::stream))
        .routes(routes!(audit_logs::list))
        .routes(routes!(audit_logs::get))
        .routes(routes!(nodes::list))
        .routes(routes!(node_tokens::create, node_tokens::list))
        .routes(routes!(node_tokens::revoke))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::get, users::update))
        .routes(routes!(workspaces::list, workspaces::create))
        .routes(routes!(workspaces::get, workspaces::update))
        .routes(routes!(workspaces::members))
        .routes(routes!(workspaces::member_put, workspaces::member_remove))
        .routes(routes!(invitations::accept))
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::get, projects::rename, projects::delete))
        .routes(routes!(quotas::get, quotas::set, quotas::clear))
        .routes(routes!(logs::serial))
        .routes(routes!(logs::container))
        .merge(crate::pages::oidc::routes())
}
