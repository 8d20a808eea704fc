//! `?dry_run=true` on mutations: 200 with what would happen, and nothing is written. See `holdfast_control::dry_run`.
//!
//! The one rule: a route that has no dry run refuses the parameter (`extract::Info`) instead of ignoring it.

use std::collections::BTreeMap;

use axum::extract::Request;
use axum::http::Uri;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_model::operation::Diff;
use holdfast_model::preview::{self, QuotaLeft, Rehearsal};
use serde::Serialize;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::App;
use crate::extract::Params;
use crate::json::Json;

/// What a request would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct Preview {
    /// Always true.
    dry_run: bool,
    /// Null when no operation would be accepted.
    operation_type: Option<&'static str>,
    /// Each field that would change: `{"from": ..., "to": ...}`.
    #[schema(value_type = BTreeMap<String, Object>)]
    changes: Diff,
    /// What would be done, in this order.
    steps: Vec<PreviewStep>,
    /// The step after which nothing is undone any more. Null: nothing is, once the first step has begun.
    pivot: Option<&'static str>,
    placement: Option<PreviewPlacement>,
    /// `unlimited`: nothing limits the workspace. `within`: what is asked for fits into its quota. Null: nothing is reserved.
    /// What does not fit is refused as the request itself is.
    quota: Option<&'static str>,
    /// What the workspace may have, and what of it is left once the request was carried out, by name: `vm_slots`, `vcpu`,
    /// `memory_mb`, `disk_gb`. Only what is limited.
    #[schema(value_type = BTreeMap<String, PreviewQuota>)]
    quota_after: BTreeMap<&'static str, PreviewQuota>,
    /// The operation that it would wait for.
    would_wait_for: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewStep {
    name: &'static str,
    /// How long it may take. Null for a step that is only a write.
    deadline_s: Option<u64>,
    /// A failure or a cancel in this step undoes everything that was done.
    undone_on_failure: bool,
}

/// Where the CVM is or would be.
#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewPlacement {
    node: String,
    region: Option<String>,
    free_after: FreeAfter,
}

/// What the node has left once the request was carried out.
#[derive(Debug, Serialize, ToSchema)]
pub struct FreeAfter {
    vcpu: i64,
    memory_mb: i64,
    disk_gb: i64,
    slots: i64,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewQuota {
    limit: i64,
    remaining: i64,
}

/// Gives every mutation among these routes its dry run, and says so in their document.
pub fn routes(mut routes: OpenApiRouter<App>) -> OpenApiRouter<App> {
    document(routes.get_openapi_mut());
    routes.route_layer(axum::middleware::from_fn(layer))
}

/// True when the request asks for a dry run.
pub fn is_asked(uri: &Uri) -> bool {
    Params::of(uri).flag("dry_run")
}

async fn layer(mut request: Request, next: Next) -> Response {
    if request.method().is_safe() || !is_asked(request.uri()) {
        return next.run(request).await;
    }
    let rehearsal = Rehearsal::default();
    request.extensions_mut().insert(rehearsal.clone());
    let response = next.run(request).await;
    match rehearsal.get() {
        // The handler's own answer is about something that is not there.
        Some(preview) => Json(view(preview)).into_response(),
        None if response.status().is_success() => Json(view(&preview::Preview::default())).into_response(),
        None => response,
    }
}

fn view(preview: &preview::Preview) -> Preview {
    let step = |step: &preview::PlannedStep| PreviewStep {
        name: step.name,
        deadline_s: step.deadline.map(|deadline| deadline.as_secs()),
        undone_on_failure: step.undone_on_failure,
    };
    let placement = |on: &preview::Placement| PreviewPlacement {
        node: on.node.clone(),
        region: on.region.clone(),
        free_after: FreeAfter { vcpu: on.vcpu, memory_mb: on.memory_mb, disk_gb: on.disk_gb, slots: on.slots },
    };
    let limited = |left: &QuotaLeft| {
        let quota = PreviewQuota { limit: left.limit?, remaining: left.remaining? };
        Some((left.name, quota))
    };
    let after: BTreeMap<_, _> = preview.quota.iter().flatten().filter_map(limited).collect();
    Preview {
        dry_run: true,
        operation_type: preview.operation_type,
        changes: preview.changes.clone(),
        steps: preview.steps.iter().map(step).collect(),
        pivot: preview.pivot,
        placement: preview.placement.as_ref().map(placement),
        quota: preview.quota.as_ref().map(|_| if after.is_empty() { "unlimited" } else { "within" }),
        quota_after: after,
        would_wait_for: preview.waits_for.clone(),
    }
}

/// Adds the parameter and, where the success has no body of its own, the preview as an answer.
fn document(document: &mut OpenApi) {
    let mutations = document.paths.paths.values_mut().flat_map(|item| {
        [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete].into_iter().filter_map(Option::as_mut)
    });
    for operation in mutations {
        operation.parameters.get_or_insert_default().push(parameter().into());
        add_answer(operation);
    }
    let mut schemas = vec![(Preview::name().into_owned(), Preview::schema())];
    Preview::schemas(&mut schemas);
    document.components.get_or_insert_default().schemas.extend(schemas);
}

fn parameter() -> Parameter {
    ParameterBuilder::new()
        .name("dry_run")
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some("Write nothing; answer 200 with a `Preview` of what would happen, or with the refusal"))
        .schema(Some(bool::schema()))
        .build()
}

fn add_answer(operation: &mut Operation) {
    if operation.responses.responses.contains_key("200") {
        return;
    }
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Preview::name()))).build();
    let answer = ResponseBuilder::new().description("With `dry_run`").content("application/json", content).build();
    operation.responses.responses.insert("200".to_owned(), RefOr::T(answer));
}
