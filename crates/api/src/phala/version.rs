//! Schema versions: which variant of an answer a client understands.
//!
//! The one rule: a version that is newer than we know gets the newest we know, and an older one the oldest, because
//! clients name the version they were built for and not one that this server has.

use axum::extract::{FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use holdfast_control::Principal;
use holdfast_model::error::Error;

use crate::credential::Credential;
use crate::error::Failure;
use crate::extract::header;

/// Names the version that a request was written for.
pub const HEADER: &str = "X-Phala-Version";

/// The versions that differ in what they answer, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Flat objects, integer ids.
    V20251028,
    /// Nested objects; the VM object keeps its integer id.
    V20260121,
    /// Hashids wherever 2026-01-21 still had integers.
    V20260522,
    V20260623,
}

impl Version {
    const ALL: [(&'static str, Self); 4] = [
        ("2025-10-28", Self::V20251028),
        ("2026-01-21", Self::V20260121),
        ("2026-05-22", Self::V20260522),
        ("2026-06-23", Self::V20260623),
    ];

    /// `None` when the text is neither a date nor `LATEST`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("latest") {
            return Some(Self::V20260623);
        }
        let digits = |part: &str, len: usize| {
            (part.len() == len && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<u32>().ok()).flatten()
        };
        let mut parts = text.split('-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let date = (digits(year, 4)?, digits(month, 2)?, digits(day, 2)?);
        if parts.next().is_some() || !(1..=12).contains(&date.1) || !(1..=31).contains(&date.2) {
            return None;
        }
        // Dates of this form sort as text.
        let known = Self::ALL.iter().rev().find(|(since, _)| *since <= text);
        Some(known.map_or(Self::V20251028, |(_, version)| *version))
    }
}

/// The version that the request names, if it names one.
#[derive(Debug, Clone, Copy)]
pub struct Asked(Option<Version>);

impl Asked {
    /// The version to answer in: the request's own, else that of the caller's API key.
    pub fn of(self, who: &Principal) -> Version {
        self.0.or_else(|| Version::parse(&who.default_version)).unwrap_or(Version::V20251028)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Self(asked(&parts.headers)?))
    }
}

/// The layer of the surface: a version that is none is refused by every route, also by those whose answers are the same
/// in all versions. Without a key the route says so first.
pub async fn check(request: Request, next: Next) -> Result<Response, Failure> {
    if Credential::of(request.method(), request.headers(), request.extensions()).is_some() {
        asked(request.headers())?;
    }
    Ok(next.run(request).await)
}

fn asked(headers: &HeaderMap) -> Result<Option<Version>, Error> {
    if !headers.contains_key(HEADER) {
        return Ok(None);
    }
    let text = header(headers, HEADER).unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    let why = "must be a date, like 2026-01-21, or LATEST";
    Version::parse(text).map(Some).ok_or_else(|| Error::field("header", HEADER, "value_error", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_date_names_a_version() {
        let cases = [
            ("2020-01-01", Version::V20251028),
            ("2025-05-31", Version::V20251028),
            ("2025-10-28", Version::V20251028),
            ("2026-01-20", Version::V20251028),
            ("2026-01-21", Version::V20260121),
            ("2026-05-22", Version::V20260522),
            ("2026-06-23", Version::V20260623),
            ("2031-12-31", Version::V20260623),
            ("Latest", Version::V20260623),
        ];
        for (text, version) in cases {
            assert_eq!(Version::parse(text), Some(version), "{text}");
        }
        for text in ["yesterday", "2026-1-21", "2026-13-01", "2026-01-21-1", "2026-01", "", "v1"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }
}
