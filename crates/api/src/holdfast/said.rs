//! What the document says alike of many routes of this surface: whom they refuse, and which part of a list is asked for.
//!
//! The one rule: what is said here is so. The permission is the handler's [`Caller`](crate::extract::Caller), and the bounds of a
//! page are those that [`Paging`] is read with.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use utoipa::{IntoParams, IntoResponses};

use crate::error::Failure;
use crate::extract::Params;

/// The refusals of whatever is for administrators of the installation.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only its documentation is used")]
pub enum ForAdministrators {
    /// No valid API key
    #[response(status = 401)]
    Unauthenticated,
    /// Only for administrators
    #[response(status = 403)]
    Forbidden,
}

/// Which part of a list is asked for.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Paging {
    /// Cursor of a previous answer
    pub cursor: Option<String>,
    /// 50 unless told
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500)]
    pub limit: i64,
}

impl<S: Send + Sync> FromRequestParts<S> for Paging {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let params = Params::of(&parts.uri);
        let limit = params.integer("limit", 1, 500)?.unwrap_or(50);
        Ok(Self { cursor: params.text("cursor").map(str::to_owned), limit })
    }
}
