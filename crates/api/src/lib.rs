//! The HTTP surfaces: one core, thin views.
//!
//! A surface parses, authorizes, calls the core and renders; it holds no rules. The one rule here: a handler gets its
//! caller from an extractor, so one that forgets to ask who is calling has no workspace to act in.
//!
//! | path | module | contract |
//! |---|---|---|
//! | `/api/v1/*` | [`phala`] | Phala Cloud API |
//! | `/v1/*` | [`nirvana`] | Nirvana Labs API |
//! | `/holdfast/v1/*` | [`holdfast`] | ours |
//! | `/node/v1/*` | [`node`] | nodes dial in here |
//! | `/login`, `/device`, `/auth/oidc/*` | [`pages`] | people with a browser sign in and let devices in |

#![forbid(unsafe_code)]

pub mod audit;
pub mod credential;
pub mod dry_run;
pub mod error;
pub mod extract;
pub mod health;
pub mod holdfast;
pub mod idempotency;
pub mod json;
pub mod limits;
pub mod metrics;
pub mod nirvana;
pub mod node;
pub mod pages;
pub mod phala;
pub mod refusals;
pub mod witness;

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use bytes::Bytes;
use holdfast_control::Control;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// Largest request body of the public surfaces, in bytes: a compose file and an encrypted env in hex, with room.
pub const BODY_LIMIT: usize = 2 * 1024 * 1024;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    pub control: Control,
    /// True when `/readyz` waits for a node of its own.
    pub needs_node: bool,
}

/// Makes a surface's routes and its OpenAPI document.
type Surface = fn() -> OpenApiRouter<App>;

/// The surfaces that have an OpenAPI document.
const SURFACES: [(&str, Surface); 3] =
    [("phala", phala::routes), ("nirvana", nirvana::routes), ("holdfast", holdfast::routes)];

/// The OpenAPI document of each surface, by the name it is served under.
pub fn documents() -> [(&'static str, OpenApi); 3] {
    SURFACES.map(|(name, routes)| (name, routes().into_openapi()))
}

/// Everything this server answers.
pub fn router(app: App) -> Router {
    let limits = limits::Limits::new(app.control.settings.rates).map(Arc::new);
    let public = |routes: OpenApiRouter<App>, shape: error::Shape| {
        let router: Router<App> = routes.into();
        let router = router
            .layer(DefaultBodyLimit::max(BODY_LIMIT))
            .layer(axum::middleware::from_fn_with_state(app.clone(), idempotency::layer))
            .layer(CatchPanicLayer::custom(error::panicked))
            .layer(axum::middleware::from_fn_with_state(app.clone(), refusals::layer));
        let router = match &limits {
            Some(limits) => {
                let state = (app.clone(), limits.clone());
                router.layer(axum::middleware::from_fn_with_state(state, limits::layer))
            }
            None => router,
        };
        router.layer(axum::middleware::from_fn_with_state(shape, error::render))
    };
    let http = metrics::Http::default();
    let mut router = Router::new()
        .merge(public(phala::routes(), error::Shape::Phala))
        .merge(public(nirvana::routes(), error::Shape::Nirvana))
        .merge(public(holdfast::routes(), error::Shape::Holdfast))
        .merge(node::routes().layer(axum::middleware::from_fn_with_state(error::Shape::Holdfast, error::render)))
        .merge(pages::routes())
        .merge(health::routes())
        .merge(metrics::routes(app.clone(), http.clone()));
    // Made when the first one is asked for: few are, and it takes longer than the rest of a start.
    static TEXTS: LazyLock<[(&str, Bytes); 3]> =
        LazyLock::new(|| documents().map(|(name, document)| (name, document.to_json().unwrap_or_default().into())));
    for (name, _) in SURFACES {
        let body = move || async move {
            let text = TEXTS.iter().find(|(of, _)| *of == name).map(|(_, text)| text.clone()).unwrap_or_default();
            ([("content-type", "application/json")], text)
        };
        router = router.route(&format!("/openapi/{name}.json"), get(body));
    }
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(axum::middleware::from_fn(error::render_by_path))
        .layer(axum::middleware::from_fn(extract::request_id))
        .layer(axum::middleware::from_fn_with_state(http, metrics::layer))
        .with_state(app)
}
