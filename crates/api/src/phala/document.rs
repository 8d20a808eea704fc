//! What any route may answer, written into the OpenAPI document for all of them at once.
//!
//! The one rule: what a layer or an extractor refuses for many routes is said here and not at each of them, so that a new
//! route cannot forget it. What a route says of itself stays.

use utoipa::PartialSchema;
use utoipa::openapi::path::{HttpMethod, Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr, Required, ResponseBuilder};

use super::version;

/// Adds the version header to every operation, and the refusals that all routes of its kind share.
pub fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            operation.parameters.get_or_insert_default().push(version_header().into());
            for (status, words) in refusals(path, &method, is_open(operation)) {
                let answers = &mut operation.responses.responses;
                let answer = || RefOr::T(ResponseBuilder::new().description(words).build());
                answers.entry(status.to_owned()).or_insert_with(answer);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let all = [
        (HttpMethod::Get, &mut item.get),
        (HttpMethod::Post, &mut item.post),
        (HttpMethod::Put, &mut item.put),
        (HttpMethod::Patch, &mut item.patch),
        (HttpMethod::Delete, &mut item.delete),
    ];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// It says of itself that it asks for no key.
fn is_open(operation: &Operation) -> bool {
    let none = serde_json::json!([{}]);
    operation.security.as_ref().is_some_and(|security| serde_json::to_value(security).is_ok_and(|value| value == none))
}

fn refusals(path: &str, method: &HttpMethod, is_open: bool) -> Vec<(&'static str, &'static str)> {
    let mut refusals =
        vec![("422", "Validation error"), ("429", "Too many requests; `Retry-After` says when to come again")];
    if !is_open {
        refusals.push(("401", "Authentication required"));
        refusals.push(("403", "The caller's role, or what their API key was made for, does not allow it"));
    }
    if path.contains('{') {
        refusals.push(("400", "The path is not text"));
    }
    if path.contains("{cvm_id}") {
        refusals.push(("409", "The id names several CVMs"));
    }
    if !matches!(method, HttpMethod::Get) {
        refusals.push(("400", "The idempotency key is not valid"));
        refusals.push(("413", "The body is too large"));
    }
    refusals
}

fn version_header() -> Parameter {
    ParameterBuilder::new()
        .name(version::HEADER)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("Schema version to answer in: a date, or `LATEST`; that of the API key unless told"))
        .schema(Some(String::schema()))
        .build()
}
