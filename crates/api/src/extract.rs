//! What handlers are given: the caller, the request's facts, its parameters and its body.
//!
//! The one rule: whatever a client can get wrong is refused here with the place of the mistake, so that handlers see
//! only what is well formed.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::middleware::Next;
use axum::response::Response;
use holdfast_control::{Principal, RequestInfo};
use holdfast_model::Timestamp;
use holdfast_model::access::{Action, Reach};
use holdfast_model::error::{Code, Detail, Error};
use holdfast_model::preview::Rehearsal;
use holdfast_store::page::{Sort, Term};
use serde::de::DeserializeOwned;

use crate::App;
use crate::credential::Credential;
use crate::dry_run;
use crate::error::Failure;
use crate::witness::Witness;

/// Names a request in answers and in the log.
#[derive(Debug, Clone, Default)]
pub struct RequestId(pub String);

/// Gives every request an id: the client's own `X-Request-ID` when it is a decent one.
pub async fn request_id(mut request: Request, next: Next) -> Response {
    let decent = |text: &str| {
        (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let sent = header(request.headers(), "x-request-id").filter(|text| decent(text)).map(str::to_owned);
    let id = sent.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", value);
    }
    response
}

/// A permission, as a type in a handler's signature. [`holdfast_model::access`] is the table that is asked.
pub trait Permission: Send + Sync + 'static {
    const ACTION: Action;
    /// What the route is about: a key that is limited to projects does nothing that reaches beyond them.
    const REACH: Reach = Self::ACTION.reach();
}

/// The same permission for what is about the workspace as a whole, or about its caller beyond it.
#[derive(Debug)]
pub struct Whole<P>(PhantomData<P>);

impl<P: Permission> Permission for Whole<P> {
    const ACTION: Action = P::ACTION;
    const REACH: Reach = Reach::Workspace;
}

macro_rules! permissions {
    ($($name:ident),*) => {
        $(
            #[doc = concat!("[`Action::", stringify!($name), "`] as a type.")]
            #[derive(Debug)]
            pub struct $name;

            impl Permission for $name {
                const ACTION: Action = Action::$name;
            }
        )*
    };
}

holdfast_model::each_action!(permissions);

/// Whoever sent the request, known to have permission `P`.
#[derive(Debug)]
pub struct Caller<P = Read> {
    pub who: Principal,
    permission: PhantomData<P>,
}

impl<P: Permission> FromRequestParts<App> for Caller<P> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let authorized = authorize::<P>(parts, app).await;
        if let Some(witness) = parts.extensions.get::<Witness>() {
            witness.note(P::ACTION, authorized.is_ok());
        }
        Ok(Self { who: authorized?, permission: PhantomData })
    }
}

/// The holder of the request's key, when they may do what `P` stands for.
async fn authorize<P: Permission>(parts: &Parts, app: &App) -> Result<Principal, Error> {
    let credential = Credential::of(&parts.method, &parts.headers, &parts.extensions);
    let credential = credential.ok_or_else(|| Error::new(Code::Unauthenticated, "Authentication required."))?;
    let who = credential.holder(app).await?;
    who.require(P::ACTION)?;
    who.require_reach(P::REACH)?;
    Ok(who)
}

/// A header as text, if it is text.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The first field of this name in a form.
pub fn form_field(form: &[u8], name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(form);
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// Characters of a user agent that the audit row keeps.
const USER_AGENT_LIMIT: usize = 512;

/// What the audit row says of the request.
#[derive(Debug)]
pub struct Info(pub RequestInfo);

impl FromRequestParts<App> for Info {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Failure> {
        let trace_id = header(&parts.headers, "traceparent")
            .and_then(|text| text.split('-').nth(1))
            .filter(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned);
        let rehearsal: Option<Rehearsal> = parts.extensions.get().cloned();
        if rehearsal.is_none() && dry_run::is_asked(&parts.uri) {
            // Not ignored: whoever asks what would happen must not make it happen.
            let why = "dry_run: this request cannot be tried without doing it.";
            return Err(Error::new(Code::FeatureMissing, why).into());
        }
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let agent = header(&parts.headers, "user-agent").unwrap_or_default();
        Ok(Self(RequestInfo {
            request_id: parts.extensions.get::<RequestId>().cloned().unwrap_or_default().0,
            trace_id,
            client_address: address.map(|ConnectInfo(address)| address.ip().to_canonical().to_string()),
            user_agent: agent.chars().take(USER_AGENT_LIMIT).collect(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            idempotency: parts.extensions.get().cloned(),
            rehearsal,
        }))
    }
}

/// The project that a request names for what it makes: a header, because clients of others can send one and have no field
/// for it.
pub const PROJECT_HEADER: &str = "x-holdfast-project";

/// What [`PROJECT_HEADER`] says, if it is there. An empty one is a mistake: whoever sends it means some project.
#[derive(Debug)]
pub struct InProject(pub Option<String>);

impl InProject {
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let mut named = headers.get_all(PROJECT_HEADER).into_iter();
        let Some(value) = named.next() else { return Ok(Self(None)) };
        let name = value.to_str().ok().map(str::trim).filter(|name| !name.is_empty() && named.next().is_none());
        match name {
            Some(name) => Ok(Self(Some(name.to_owned()))),
            None => Err(Error::field("header", "X-Holdfast-Project", "value_error", "must name one project")),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for InProject {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Self::of(&parts.headers)?)
    }
}

/// The query string, taken apart. Unknown parameters are ignored, as the clients expect.
#[derive(Debug)]
pub struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Self::of(&parts.uri))
    }
}

impl Params {
    pub fn of(uri: &Uri) -> Self {
        Self(url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The last value of a parameter; an empty one counts as absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Every value of a parameter, repeated, joined by commas, or both.
    pub fn list(&self, name: &str) -> Vec<String> {
        let values = self.0.iter().filter(|(key, _)| key == name || key.strip_suffix("[]") == Some(name));
        values.flat_map(|(_, v)| v.split(',')).filter(|v| !v.is_empty()).map(str::to_owned).collect()
    }

    /// Any of a set of words, given as [`Params::list`] takes them.
    pub fn words<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Error> {
        let unknown =
            |word: &str| Error::field("query", name, "enum", format!("\"{word}\" is not one of the known words"));
        self.list(name).iter().map(|word| parse(word).ok_or_else(|| unknown(word))).collect()
    }

    /// A switch: `?follow`, `?follow=true`, `?follow=1`.
    pub fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| key == name && !matches!(value.as_str(), "false" | "0"))
    }

    /// A whole number within bounds, both included.
    pub fn integer(&self, name: &str, least: i64, most: i64) -> Result<Option<i64>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number =
            i64::from_str(text).map_err(|_| Error::field("query", name, "int_parsing", "must be a whole number"))?;
        if number < least {
            return Err(Error::field("query", name, "greater_than_equal", format!("must be at least {least}")));
        }
        if number > most {
            return Err(Error::field("query", name, "less_than_equal", format!("must be at most {most}")));
        }
        Ok(Some(number))
    }

    /// A point in time in RFC 3339.
    pub fn time(&self, name: &str) -> Result<Option<Timestamp>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        // A plus sign that was not escaped arrives as a space.
        let time = Timestamp::parse(text).or_else(|| Timestamp::parse(&text.replace(' ', "+")));
        time.map(Some).ok_or_else(|| {
            Error::field(
                "query",
                name,
                "datetime_from_date_parsing",
                "must be a date and time, like 2026-01-31T12:00:00Z",
            )
        })
    }

    /// An order: `field:asc` or `field:desc`, several joined by commas in the order of their precedence. `fields` pairs
    /// their names with the columns they stand for. Without the parameter: the first field, newest first.
    pub fn sort(&self, fields: &[(&str, &'static str)]) -> Result<Sort, Error> {
        let terms = self.list("sort");
        let wrong = || {
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            let names = names.join(" or ");
            let message = format!("must be terms like {0}:asc or {0}:desc, joined by commas", names);
            Error::field("query", "sort", "enum", format!("{message}, each field once"))
        };
        let Some((_, first)) = fields.first() else { return Err(wrong()) };
        if terms.is_empty() {
            return Ok(Sort::newest_first(first));
        }
        let term = |text: &String| {
            let (name, direction) = text.split_once(':')?;
            let (_, column) = fields.iter().find(|(field, _)| *field == name)?;
            let descending = match direction {
                "asc" => false,
                "desc" => true,
                _ => return None,
            };
            Some(Term { column, descending })
        };
        terms.iter().map(term).collect::<Option<Vec<_>>>().and_then(Sort::new).ok_or_else(wrong)
    }

    /// A public id of ours.
    pub fn uuid(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let id =
            uuid::Uuid::try_parse(text).map_err(|_| Error::field("query", name, "uuid_parsing", "must be a UUID"))?;
        Ok(Some(id.to_string()))
    }

    /// One of a set of words.
    pub fn word<T>(&self, name: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse(text).map(Some).ok_or_else(|| Error::field("query", name, "enum", "is not one of the known words"))
    }
}

/// A JSON body. Clients send content types of all sorts, so only the bytes decide.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, app).await.map_err(|rejection| {
            let status = axum::response::IntoResponse::into_response(rejection).status();
            if status == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                let limit = crate::BODY_LIMIT;
                Error::new(Code::BodyTooLarge, format!("The body is larger than {limit} bytes."))
            } else {
                Error::new(Code::InvalidRequest, "The body did not arrive whole.")
            }
        })?;
        parse_body(&bytes).map(Self).map_err(Failure)
    }
}

/// Parses JSON and says where it is wrong.
fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    // Serde would take a list for an object whose names were left out.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        let message = "must be an object".to_owned();
        let detail = Detail { loc: vec!["body".to_owned()], message: message.clone(), kind: "dict_type".to_owned() };
        return Err(Error { details: vec![detail], ..Error::new(Code::InvalidRequest, message) });
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        let (kind, message) = match cause.classify() {
            serde_json::error::Category::Data => {
                let text = cause.to_string();
                let kind = if text.starts_with("missing field") { "missing" } else { "value_error" };
                (kind, text.split(" at line ").next().unwrap_or_default().to_owned())
            }
            _ => ("json_invalid", format!("invalid JSON: {cause}")),
        };
        let fields = path.split('.').filter(|part| *part != "." && !part.is_empty() && *part != "?");
        let mut loc: Vec<String> = ["body"].into_iter().chain(fields).map(str::to_owned).collect();
        if kind == "missing"
            && let Some(name) = message.split('`').nth(1)
        {
            loc.push(name.to_owned());
        }
        Error {
            details: vec![Detail { loc, message: message.clone(), kind: kind.to_owned() }],
            ..Error::new(Code::InvalidRequest, message)
        }
    })?;
    reader.end().map_err(|e| Error::field("body", "", "json_invalid", format!("invalid JSON: {e}")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Sample {
        name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        vcpu: u32,
    }

    #[test]
    fn a_wrong_body_says_where() {
        let loc = |text: &str| {
            let error = parse_body::<Sample>(text.as_bytes()).expect_err(text);
            (error.details[0].loc.join("."), error.details[0].kind.clone())
        };
        assert_eq!(loc(r#"{"inner":null}"#), ("body.name".into(), "missing".into()));
        assert_eq!(loc(r#"{"name":"a","inner":{"vcpu":"x"}}"#), ("body.inner.vcpu".into(), "value_error".into()));
        assert_eq!(loc(" [\"a\", null]"), ("body".into(), "dict_type".into()));
        assert_eq!(loc("{").1, "json_invalid");
        assert_eq!(loc("").1, "json_invalid");
        assert_eq!(loc("{\"name\":\"a\"} x").1, "json_invalid");
    }

    #[test]
    fn parameters() {
        let params = Params(vec![
            ("limit".into(), "501".into()),
            ("since".into(), "yesterday".into()),
            ("types".into(), "a,b".into()),
            ("types".into(), "c".into()),
            ("follow".into(), String::new()),
        ]);
        assert!(params.integer("limit", 1, 500).is_err());
        assert!(params.time("since").is_err());
        assert_eq!(params.list("types"), ["a", "b", "c"]);
        assert!(params.flag("follow") && !params.flag("text"));
        assert_eq!(params.integer("page", 1, 10).expect("absent"), None);
    }
}
