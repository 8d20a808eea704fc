//! Whether one answer of the Phala surface is what its contract says. Every answer that a test of this crate gets is held
//! to it (`Server::send`).
//!
//! The one rule: a status that our own OpenAPI document does not name for the route is as wrong as a missing key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::http::header;
use holdfast_model::error::Code;
use jsonschema::Validator;
use serde_json::{Value, json};

use super::schemas::{self, GROUPS, Shape};
use crate::support::Answer;

/// Answers that any request may get and no document lists: the server is at fault, or going down.
const OF_THE_SERVER: [u16; 2] = [500, 503];

/// A request, as far as its answer depends on it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With `/api/v1` and without the query.
    pub path: String,
    pub query: String,
    pub version: Option<String>,
    /// The caller's key stands for the oldest version.
    pub oldest_key: bool,
}

/// A path of our OpenAPI document.
pub struct Documented {
    pub path: String,
    pub segments: Vec<String>,
    pub methods: BTreeMap<String, Value>,
}

impl Documented {
    /// The statuses that the document names.
    pub fn statuses(&self, method: &str) -> BTreeSet<u16> {
        let responses = self.methods[method]["responses"].as_object().expect("responses");
        responses.keys().map(|status| status.parse().expect("a status")).collect()
    }
}

/// Our own OpenAPI document, path by path.
pub static DOCUMENT: LazyLock<Vec<Documented>> = LazyLock::new(|| {
    let document = serde_json::to_value(&holdfast_api::documents()[0].1).expect("a document");
    let paths = document["paths"].as_object().expect("paths").iter();
    paths
        .map(|(path, item)| Documented {
            path: path.clone(),
            segments: path.split('/').map(str::to_owned).collect(),
            methods: item.as_object().expect("methods").iter().map(|(m, o)| (m.to_uppercase(), o.clone())).collect(),
        })
        .collect()
});

/// The documented path that a request goes to: the one with the fewest parameters.
pub fn documented(path: &str) -> Option<&'static Documented> {
    let parts: Vec<&str> = path.split('/').collect();
    let is_parameter = |segment: &String| segment.starts_with('{');
    let fits = |known: &&Documented| {
        known.segments.len() == parts.len()
            && known.segments.iter().zip(&parts).all(|(segment, part)| is_parameter(segment) || segment == part)
    };
    DOCUMENT.iter().filter(fits).min_by_key(|known| known.segments.iter().filter(|s| is_parameter(s)).count())
}

/// The groups of versions that a request may be of. More than one where only the caller's key knows.
pub fn groups(version: Option<&str>, oldest_key: bool) -> Vec<&'static str> {
    match version.map(str::trim).filter(|text| !text.is_empty()) {
        None if oldest_key => vec![GROUPS[0]],
        None => GROUPS.to_vec(),
        Some(text) if text.eq_ignore_ascii_case("latest") => vec![GROUPS[3]],
        Some(text) => vec![GROUPS.into_iter().rfind(|since| *since <= text).unwrap_or(GROUPS[0])],
    }
}

/// Says what is wrong with an answer.
pub fn check(asked: &Asked, answer: &Answer) -> Result<(), String> {
    let status = answer.status.as_u16();
    let Some(known) = documented(&asked.path) else { return refusal(answer, &[404]) };
    if !known.methods.contains_key(&asked.method) {
        return refusal(answer, &[405]);
    }
    if !known.statuses(&asked.method).contains(&status) && !OF_THE_SERVER.contains(&status) {
        return Err(format!("{status} is not documented for {} {}", asked.method, known.path));
    }
    if status == 400 && known.path == DEVICE && !answer.text().contains("error_code") {
        return valid(&DEVICE_ERROR, &parsed(&answer.bytes)?);
    }
    if status >= 400 {
        return refusal(answer, &[status]);
    }
    let query: Vec<(String, String)> =
        url::form_urlencoded::parse(asked.query.as_bytes()).into_owned().filter(|(_, v)| v != "false").collect();
    if asked.method != "GET" && query.iter().any(|(name, _)| name == "dry_run") {
        return preview(answer);
    }
    let route = format!("{} {}", asked.method, known.path);
    let of_query = query.iter().map(|(name, _)| format!("{route}?{name}")).find(|route| schemas::knows(route));
    let route = of_query.unwrap_or(route);
    let results = groups(asked.version.as_deref(), asked.oldest_key).into_iter().map(|group| {
        let shape = schemas::shape(group, &route, status);
        let shape = shape.ok_or_else(|| format!("the contract has no entry for {route} {status}"))?;
        success(answer, &shape).map_err(|wrong| format!("{group}: {wrong}"))
    });
    let mut wrong = Vec::new();
    for result in results {
        match result {
            Ok(()) => return Ok(()),
            Err(text) => wrong.push(text),
        }
    }
    Err(wrong.join("\n"))
}

fn success(answer: &Answer, shape: &Shape) -> Result<(), String> {
    match shape {
        Shape::Empty if answer.bytes.is_empty() => Ok(()),
        Shape::Empty => Err("has a body".to_owned()),
        Shape::Text => {
            is_type(answer, "text/plain")?;
            String::from_utf8(answer.bytes.clone()).map(drop).map_err(|e| e.to_string())
        }
        Shape::Json(validator) => {
            is_type(answer, "application/json")?;
            valid(validator, &parsed(&answer.bytes)?)
        }
        Shape::Events(validators) => {
            is_type(answer, "text/event-stream")?;
            let text = answer.text();
            for event in text.split("\n\n").filter(|event| event.contains("event:")) {
                let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let (Some(name), Some(data)) = (field("event:"), field("data:")) else {
                    return Err(format!("an event is a name and one line of data: {event}"));
                };
                let validator = validators.get(name).ok_or_else(|| format!("no event is named {name}"))?;
                valid(validator, &parsed(data.as_bytes())?)?;
            }
            Ok(())
        }
    }
}

fn is_type(answer: &Answer, wanted: &str) -> Result<(), String> {
    let kind = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("nothing");
    if kind.split(';').next() == Some(wanted) { Ok(()) } else { Err(format!("is {kind}, not {wanted}")) }
}

fn parsed(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("{e}: {}", String::from_utf8_lossy(bytes)))
}

fn valid(validator: &Validator, value: &Value) -> Result<(), String> {
    let errors = validator.iter_errors(value).map(|error| {
        let text: String = error.to_string().chars().take(500).collect();
        format!("  at \"{}\": {text}", error.instance_path())
    });
    let errors: Vec<String> = errors.take(8).collect();
    if errors.is_empty() { Ok(()) } else { Err(format!("does not fit:\n{}", errors.join("\n"))) }
}

/// A dry run's answer is ours, and says that it is one.
fn preview(answer: &Answer) -> Result<(), String> {
    is_type(answer, "application/json")?;
    let body = parsed(&answer.bytes)?;
    if answer.status == 200 && body["dry_run"] == true { Ok(()) } else { Err(format!("no preview: {body}")) }
}

/// One of the three shapes of an error that all clients parse (contract, 1.4), and a code that belongs to the status.
fn refusal(answer: &Answer, wanted: &[u16]) -> Result<(), String> {
    let status = answer.status.as_u16();
    if !wanted.contains(&status) {
        return Err(format!("{status} where {wanted:?} was due"));
    }
    is_type(answer, "application/json")?;
    let body = parsed(&answer.bytes)?;
    if let Some(code) = body["error_code"].as_str() {
        let of_code = |known: &&Code| known.id() == code || known.phala() == Some(code);
        let mut named = Code::ALL.iter().filter(of_code).peekable();
        if named.peek().is_none() {
            return Err(format!("no error has the code {code}"));
        }
        // What the framework itself cannot read, such as a path that is no text, is a 400 of the same code as a wrong field.
        if !named.any(|known| known.http() == status || (*known == Code::InvalidRequest && status == 400)) {
            return Err(format!("{code} is none of {status}"));
        }
    }
    let validator = if body.get("error_code").is_some() {
        &STRUCTURED
    } else if body["detail"].is_array() {
        &FIELDS
    } else {
        &WORDS
    };
    valid(validator, &body)?;
    match status {
        401 if body["detail"].is_string() && answer.headers.contains_key(header::WWW_AUTHENTICATE) => Ok(()),
        401 => Err(format!("an unknown caller gets words and a challenge: {body}")),
        _ if status != 422 && body["detail"].is_array() => Err(format!("{status} with a list of fields: {body}")),
        _ => Ok(()),
    }
}

fn exactly(properties: Value) -> Value {
    let names: Vec<String> = properties.as_object().expect("properties").keys().cloned().collect();
    json!({ "type": "object", "properties": properties, "required": names, "additionalProperties": false })
}

fn compiled(schema: Value) -> Validator {
    jsonschema::validator_for(&schema).expect("a schema")
}

static WORDS: LazyLock<Validator> = LazyLock::new(|| compiled(exactly(json!({ "detail": { "type": "string" } }))));

/// Where the command line's login reads a shape of its own (contract, 1.4), and ends at every other one.
const DEVICE: &str = "/api/v1/auth/device/token";

static DEVICE_ERROR: LazyLock<Validator> = LazyLock::new(|| {
    let words = [
        "authorization_pending",
        "slow_down",
        "expired_token",
        "access_denied",
        "invalid_grant",
        "unsupported_grant_type",
    ];
    let error =
        exactly(json!({ "error": { "enum": words }, "error_description": { "type": "string", "minLength": 1 } }));
    compiled(exactly(json!({ "detail": error })))
});

static FIELDS: LazyLock<Validator> = LazyLock::new(|| {
    let place = json!({ "type": "array", "minItems": 1, "items": { "type": ["string", "integer"] } });
    let field = exactly(json!({ "loc": place, "msg": { "type": "string" }, "type": { "type": "string" } }));
    compiled(exactly(json!({ "detail": { "type": "array", "minItems": 1, "items": field } })))
});

/// Without a `detail`: the TypeScript client looks at nothing else when there is one.
static STRUCTURED: LazyLock<Validator> = LazyLock::new(|| {
    let text = json!({ "type": "string", "minLength": 1 });
    let list = |items: Value| json!({ "type": "array", "items": items });
    compiled(exactly(json!({
        "error_code": { "type": "string", "pattern": "^(ERR-[0-9]{2}-[0-9]{3}|HF-[0-9]{4})$" },
        "message": text,
        "details": list(exactly(json!({ "field": text, "value": {}, "message": text }))),
        "suggestions": list(text.clone()),
        "links": list(exactly(json!({ "url": text, "label": text }))),
    })))
});
