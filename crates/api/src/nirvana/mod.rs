//! The Nirvana Labs surface: operations, and changes of VMs, over the same ledger as everything else.
//! Volumes and networks follow.

mod audit_logs;
mod operations;
mod vms;

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{App, dry_run};

#[derive(OpenApi)]
#[openapi(
    info(title = "Holdfast: Nirvana Labs API", description = "Operations and changes of VMs, as the Nirvana Labs clients know them."),
    modifiers(&Security)
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("bearer", bearer);
    }
}

pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(audit_logs::list))
        .routes(routes!(audit_logs::get))
        .merge(dry_run::routes(OpenApiRouter::new().routes(routes!(vms::delete)).routes(routes!(vms::restart))))
}
