//! What each answer must look like, by route, status and schema version.
//!
//! `phala-schemas.json` holds the facts of the pages, made by `cargo xtask contract`; `overlay.json`, by hand, what the
//! clients want differently, each entry with its reason. The one rule: an object has all the keys that are named and no
//! others. The clients refuse a key too many in some places and a missing one in many; where neither is known to hurt, a
//! key that nobody named is a slip of ours.
//!
//! In the overlay a type is a word: `string`, `integer?` (or null), `time`, `@Name` (that schema), `[..]` (a list of it).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

/// The versions that differ, oldest first.
pub const GROUPS: [&str; 4] = ["2025-10-28", "2026-01-21", "2026-05-22", "2026-06-23"];

const FACTS: &str = include_str!("../../contract/phala-schemas.json");

/// What an answer consists of.
#[derive(Clone)]
pub enum Shape {
    Empty,
    /// `text/plain`.
    Text,
    Json(Arc<Validator>),
    /// Server-sent events, by name.
    Events(HashMap<String, Arc<Validator>>),
}

/// The contract of one group of versions.
struct Contract {
    /// By `GET /path`, then by status.
    routes: BTreeMap<String, BTreeMap<String, Value>>,
    schemas: BTreeMap<String, Value>,
    shapes: Mutex<HashMap<(String, u16), Option<Shape>>>,
}

static CONTRACTS: LazyLock<Vec<Contract>> = LazyLock::new(|| GROUPS.map(Contract::load).into());

/// What this route must answer with this status, to a request of this group. `None` when the contract does not know.
pub fn shape(group: &str, route: &str, status: u16) -> Option<Shape> {
    let at = GROUPS.iter().position(|known| *known == group).expect("a group");
    CONTRACTS[at].shape(route, status)
}

/// The statuses that the pages say this route refuses with.
pub fn refused(route: &str) -> BTreeSet<u16> {
    let facts: Value = serde_json::from_str(FACTS).expect("facts");
    let refused = facts["routes"][route]["refused"].as_array().into_iter().flatten();
    refused.map(|status| u16::try_from(status.as_u64().expect("a status")).expect("a status")).collect()
}

/// True if the contract has an entry of this name, such as one for a query of a route.
pub fn knows(route: &str) -> bool {
    CONTRACTS[0].routes.contains_key(route)
}

impl Contract {
    fn load(group: &str) -> Self {
        let facts: Value = serde_json::from_str(FACTS).expect("facts");
        let overlay: Vec<Value> =
            serde_json::from_str(include_str!("../../contract/overlay.json")).expect("an overlay");
        let mut routes = BTreeMap::new();
        for (route, answers) in object(&facts["routes"]) {
            let of_group = |by_version: &Value| {
                match by_version.as_object() {
                    Some(variants) => variants.iter().rfind(|(since, _)| since.as_str() <= group),
                    None => None,
                }
                .map_or(Value::Null, |(_, schema)| schema.clone())
            };
            let successes = object(answers).iter().filter(|(status, _)| *status != "refused");
            let answers = successes.map(|(status, schema)| (status.clone(), of_group(schema))).collect();
            routes.insert(route.clone(), answers);
        }
        let mut schemas: BTreeMap<String, Value> =
            object(&facts["schemas"]).iter().map(|(name, schema)| (name.clone(), schema.clone())).collect();
        for entry in &overlay {
            assert!(entry["why"].is_string(), "an entry without a reason: {entry}");
            if entry["since"].as_str().is_some_and(|since| since > group) {
                continue;
            }
            for (name, patch) in entry["schemas"].as_object().into_iter().flatten() {
                patched(schemas.entry(name.clone()).or_insert_with(|| json!({})), patch);
            }
            for (route, answers) in entry["routes"].as_object().into_iter().flatten() {
                let known: &mut BTreeMap<_, _> = routes.entry(route.clone()).or_default();
                known.extend(object(answers).iter().map(|(status, schema)| (status.clone(), schema.clone())));
            }
        }
        let finished = schemas.keys().map(|name| (name.clone(), finished(&inherited(name, &schemas)))).collect();
        Self { routes, schemas: finished, shapes: Mutex::default() }
    }

    fn shape(&self, route: &str, status: u16) -> Option<Shape> {
        let key = (route.to_owned(), status);
        if let Some(known) = self.shapes.lock().expect("no panic").get(&key) {
            return known.clone();
        }
        let shape = self.routes.get(route).and_then(|answers| answers.get(&status.to_string())).map(|answer| {
            if answer.is_null() {
                return Shape::Empty;
            }
            if answer == "text" {
                return Shape::Text;
            }
            if let Some(events) = answer["events"].as_object() {
                return Shape::Events(events.iter().map(|(name, one)| (name.clone(), self.validator(one))).collect());
            }
            assert!(answer != &json!({}), "{route} {status}: the pages say nothing of it, so the overlay must");
            Shape::Json(self.validator(answer))
        });
        self.shapes.lock().expect("no panic").insert(key, shape.clone());
        shape
    }

    fn validator(&self, schema: &Value) -> Arc<Validator> {
        let mut schema = finished(schema);
        let (mut defs, mut wanted) = (Map::new(), BTreeSet::new());
        references(&schema, &mut wanted);
        while let Some(name) = wanted.pop_first() {
            let definition = self.schemas.get(&name).unwrap_or_else(|| panic!("no schema is named {name}"));
            defs.insert(name, definition.clone());
            references(definition, &mut wanted);
            wanted.retain(|name| !defs.contains_key(name));
        }
        schema["$defs"] = defs.into();
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft202012)
            .should_validate_formats(true)
            .with_format("hashid", |text: &str| {
                text.split_once('_').is_some_and(|(prefix, id)| {
                    !prefix.is_empty() && id.len() >= 4 && id.bytes().all(|b| b.is_ascii_alphanumeric())
                })
            })
            .with_format("decimal", |text: &str| !text.is_empty() && text.parse::<f64>().is_ok_and(f64::is_finite))
            .should_ignore_unknown_formats(false)
            .build(&schema);
        Arc::new(validator.unwrap_or_else(|e| panic!("{e}: {schema}")))
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}"))
}

/// Puts a patch over a schema: property by property, every other word as a whole.
fn patched(schema: &mut Value, patch: &Value) {
    for (word, value) in object(patch) {
        if word == "properties" {
            for (name, property) in object(value) {
                schema["properties"][name] = property.clone();
            }
        } else {
            schema[word] = value.clone();
        }
    }
}

/// A schema with the properties of those that it is like.
fn inherited(name: &str, schemas: &BTreeMap<String, Value>) -> Value {
    let schema = schemas.get(name).unwrap_or_else(|| panic!("no schema is named {name}"));
    let Some(like) = schema["like"].as_str() else { return schema.clone() };
    let mut whole = inherited(like, schemas);
    patched(&mut whole, schema);
    whole
}

/// A schema with its words written out, and every object in it closed and complete.
fn finished(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::String(word) => return written_out(word),
        Value::Array(of) => match of.as_slice() {
            [item] => return json!({ "type": "array", "items": finished(item) }),
            other => panic!("a list is of one schema: {other:?}"),
        },
        Value::Object(words) => words.clone(),
        other => return other.clone(),
    };
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(word) {
            *inner = finished(inner);
        }
    }
    for variant in schema.get_mut("anyOf").and_then(Value::as_array_mut).into_iter().flatten() {
        *variant = finished(variant);
    }
    let (optional, open) = (schema.remove("optional"), schema.remove("open").is_some());
    schema.remove("like");
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return schema.into() };
    for property in properties.values_mut() {
        *property = finished(property);
    }
    if !open {
        let optional: Vec<&str> =
            optional.iter().flat_map(|names| names.as_array()).flatten().filter_map(Value::as_str).collect();
        let unknown = optional.iter().find(|name| !properties.contains_key(**name));
        assert!(unknown.is_none(), "{unknown:?} is optional and no property");
        let required: Vec<&String> = properties.keys().filter(|name| !optional.contains(&name.as_str())).collect();
        let required = json!(required);
        schema.insert("required".to_owned(), required);
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    schema.into()
}

fn written_out(word: &str) -> Value {
    if let Some(word) = word.strip_suffix('?') {
        return match written_out(word) {
            Value::Object(mut schema) if schema.contains_key("type") => {
                schema["type"] = json!([schema["type"], "null"]);
                schema.into()
            }
            other => json!({ "anyOf": [other, { "type": "null" }] }),
        };
    }
    match word.strip_prefix('@') {
        Some(name) => json!({ "$ref": format!("#/$defs/{name}") }),
        None if word == "time" => json!({ "type": "string", "format": "date-time" }),
        None => json!({ "type": word }),
    }
}

/// Names of the schemas that this one leads to.
fn references(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(words) => {
            if let Some(name) = words.get("$ref").and_then(Value::as_str) {
                names.insert(name.trim_start_matches("#/$defs/").to_owned());
            }
            words.values().for_each(|value| references(value, names));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}
