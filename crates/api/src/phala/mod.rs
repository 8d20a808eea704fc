//! The Phala Cloud surface: what its official clients send and read, version by version.
//!
//! The one rule: the clients win. Where a contract and a client disagree, the answer is the one that the client accepts.

mod apps;
mod auth;
mod create_resources;
mod cvms;
mod document;
mod instance_types;
mod invitations;
mod kms;
mod kms_info;
mod lenient;
pub(crate) mod logins;
mod members;
mod nodes;
mod os_images;
mod page;
mod quotas;
mod ssh_keys;
mod status;
mod tokens;
mod version;
mod view;
mod webhooks;
mod workspaces;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast: Phala Cloud API",
        description = "Confidential VMs as the Phala Cloud clients manage them. `X-Phala-Version` selects the schema \
                       version: 2025-10-28, 2026-01-21, 2026-05-22 or 2026-06-23.",
    ),
    modifiers(&Security),
    security(("APIKeyHeader" = []), ("Bearer" = [])),
    tags(
        (name = "CVMs", description = "Life cycle of confidential VMs"),
        (name = "Apps", description = "Apps and their CVMs"),
        (name = "KMS", description = "The key management service and the keys of apps"),
        (name = "Workspaces", description = "Who you are and where you work"),
        (name = "Authentication", description = "Logins"),
        (name = "Tokens", description = "API tokens"),
        (name = "SSH keys", description = "The caller's SSH keys, for new CVMs"),
        (name = "Webhooks", description = "Telling others of events"),
        (name = "Catalogue", description = "Nodes, instance types and OS images on offer"),
    )
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        components.add_security_scheme("APIKeyHeader", key);
        components.add_security_scheme("Bearer", bearer);
    }
}

/// Every route of this surface, with its document.
pub fn routes() -> OpenApiRouter<App> {
    let mut routes = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(auth::me))
        .routes(routes!(logins::authenticated))
        .routes(routes!(logins::logout))
        .routes(routes!(logins::token))
        .routes(routes!(logins::device_code))
        .routes(routes!(logins::device_token))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::delete))
        .routes(routes!(tokens::refresh))
        .routes(routes!(workspaces::list))
        .routes(routes!(workspaces::check_slug))
        .routes(routes!(workspaces::get))
        .routes(routes!(workspaces::nodes))
        .routes(routes!(members::list))
        .routes(routes!(members::update, members::remove))
        .routes(routes!(members::leave))
        .routes(routes!(invitations::list, invitations::create))
        .routes(routes!(invitations::shareable))
        .routes(routes!(invitations::revoke))
        .routes(routes!(quotas::get))
        .routes(routes!(ssh_keys::list, ssh_keys::create))
        .routes(routes!(ssh_keys::delete))
        .routes(routes!(ssh_keys::import))
        .routes(routes!(ssh_keys::sync))
        .routes(routes!(nodes::available))
        .routes(routes!(create_resources::get))
        .routes(routes!(instance_types::list))
        .routes(routes!(instance_types::family))
        .routes(routes!(os_images::list))
        .merge(apps::routes())
        .routes(routes!(kms::list))
        .routes(routes!(kms::next_app_ids))
        .routes(routes!(kms::get))
        .routes(routes!(kms::nodes))
        .routes(routes!(kms::pubkey))
        .routes(routes!(kms_info::inspect))
        .routes(routes!(status::batch))
        .merge(webhooks::routes())
        .merge(cvms::routes());
    document::complete(routes.get_openapi_mut());
    routes.route_layer(axum::middleware::from_fn(version::check))
}
