//! Answers in JSON.
//!
//! The one rule: an answer is written into one growing vector. A page of operations is ten thousand small pieces, and what
//! each of them costs is what the page costs.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use holdfast_model::error::Error;
use serde::Serialize;

use crate::error::Failure;

/// Most answers fit.
const USUAL: usize = 4096;

/// An answer in JSON.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(USUAL);
        match serde_json::to_writer(&mut body, &self.0) {
            Ok(()) => ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response(),
            Err(error) => Failure(Error::internal(error)).into_response(),
        }
    }
}
