//! What the official clients send where the contract says something stricter: `2.0` for a whole number, `1` for true,
//! nothing at all for a body.
//!
//! The one rule: only spellings of the same value are taken as one another. `2.5` is no whole number and `"2"` no number.

use axum::body::{Body as Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use holdfast_model::error::{Code, Error};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Unexpected, Visitor};
use utoipa::ToSchema;

use crate::error::Failure;
use crate::extract::{Body, Params};
use crate::{App, BODY_LIMIT};

/// A whole number, also when it is written with a fraction of zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = i64)]
pub struct Integer(pub i64);

impl<'de> serde::Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Whole;
        impl Visitor<'_> for Whole {
            type Value = Integer;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Integer, E> {
                Ok(Integer(n))
            }

            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Integer, E> {
                i64::try_from(n).map(Integer).map_err(|_| E::invalid_value(Unexpected::Unsigned(n), &self))
            }

            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Integer, E> {
                // Up to 2^53 a float says exactly which whole number is meant.
                if n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0 {
                    return Ok(Integer(n as i64));
                }
                Err(E::invalid_value(Unexpected::Float(n), &self))
            }
        }
        d.deserialize_any(Whole)
    }
}

/// `true` and `false`, also written `1` and `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(value_type = bool)]
pub struct Flag(pub bool);

impl<'de> serde::Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Bool(bool),
            Number(Integer),
        }
        let wrong = || D::Error::custom("invalid type, expected true or false");
        match <Spelling as serde::Deserialize>::deserialize(d).map_err(|_| wrong())? {
            Spelling::Bool(b) => Ok(Self(b)),
            Spelling::Number(Integer(0)) => Ok(Self(false)),
            Spelling::Number(Integer(1)) => Ok(Self(true)),
            Spelling::Number(_) => Err(wrong()),
        }
    }
}

/// A JSON body that may be missing: clients announce JSON and send nothing.
#[derive(Debug)]
pub struct MaybeBody<T>(pub Option<T>);

impl<T: DeserializeOwned> FromRequest<App> for MaybeBody<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let (parts, body) = request.into_parts();
        let bytes = to_bytes(body, BODY_LIMIT).await.map_err(|_| {
            Failure(Error::new(Code::BodyTooLarge, format!("The body is larger than {BODY_LIMIT} bytes.")))
        })?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        let request = Request::from_parts(parts, Bytes::from(bytes));
        let Body(value) = Body::<T>::from_request(request, app).await?;
        Ok(Self(Some(value)))
    }
}

/// A parameter that is true, false or absent.
pub fn switch(params: &Params, name: &str) -> Result<Option<bool>, Error> {
    params.word(name, |text| match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        let integer = |text: &str| serde_json::from_str::<Integer>(text).ok().map(|n| n.0);
        assert_eq!(integer("2"), Some(2));
        assert_eq!(integer("2.0"), Some(2));
        assert_eq!(integer("-1"), Some(-1));
        for wrong in ["2.5", "\"2\"", "true", "null", "1e300", "18446744073709551615"] {
            assert_eq!(integer(wrong), None, "{wrong}");
        }
        let flag = |text: &str| serde_json::from_str::<Flag>(text).ok().map(|b| b.0);
        assert_eq!(
            (flag("true"), flag("1"), flag("0"), flag("1.0")),
            (Some(true), Some(true), Some(false), Some(true))
        );
        assert_eq!((flag("2"), flag("\"true\""), flag("null")), (None, None, None));
    }
}
