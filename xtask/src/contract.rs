//! `cargo xtask contract PAGES`: the facts of the Phala API's pages, for the contract tests of `crates/api`.
//!
//! The one rule: only facts leave the pages: names, types, what is required, what may be null, enums and formats of
//! answers. What the official clients refuse or want differently is not here but in `overlay.json` beside the output, by
//! hand, so that the pages can be read anew without losing it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::root;

const OUTPUT: &str = "crates/api/tests/contract/phala-schemas.json";

/// Where the variants of an answer begin to differ. A page lists the old ones first.
const OLD: &str = "2025-10-28";
const NEW: &str = "2026-01-21";

/// Words of a schema that are facts about a value.
const FACTS: [&str; 8] = ["type", "enum", "const", "format", "pattern", "additionalProperties", "items", "properties"];

pub fn run(words: &[&str]) -> Result<()> {
    let [pages] = words else { bail!("cargo xtask contract PAGES: the OpenAPI document of the Phala API") };
    let pages = read(Path::new(pages))?;
    let served = read(&root().join("openapi/phala.json"))?;
    let text = text(&derive(&pages, &served)?)?;
    let output = root().join(OUTPUT);
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    std::fs::write(&output, text).with_context(|| format!("write {}", output.display()))?;
    println!("wrote {OUTPUT}");
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}

/// Routes with their success answers by version and the statuses that they refuse with, and the schemas that these name.
struct Facts {
    routes: BTreeMap<String, Value>,
    schemas: BTreeMap<String, Value>,
}

/// Takes every route that is in scope or is served.
fn derive(pages: &Value, served: &Value) -> Result<Facts> {
    let empty = Map::new();
    let mut facts = Facts { routes: BTreeMap::new(), schemas: BTreeMap::new() };
    let mut wanted = BTreeSet::new();
    for (path, item) in pages["paths"].as_object().context("the pages have no paths")? {
        for (method, operation) in item.as_object().unwrap_or(&empty) {
            if operation["x-scope"] != "now" && served["paths"][path].get(method).is_none() {
                continue;
            }
            let (mut answers, mut refused) = (Map::new(), Vec::new());
            for (status, answer) in operation["responses"].as_object().unwrap_or(&empty) {
                if let Some(status) = status.parse::<u16>().ok().filter(|status| (400..500).contains(status)) {
                    refused.push(status);
                } else if status.starts_with('2') {
                    let schema = &answer["content"]["application/json"]["schema"];
                    answers.insert(status.clone(), by_version(schema, &mut wanted));
                }
            }
            answers.insert("refused".to_owned(), json!(refused));
            facts.routes.insert(format!("{} {path}", method.to_uppercase()), answers.into());
        }
    }
    // Schemas lead to schemas.
    while let Some(name) = wanted.pop_first() {
        let schema = &pages["components"]["schemas"][&name];
        if schema.is_null() {
            bail!("the pages name a schema that they do not have: {name}");
        }
        let mut more = BTreeSet::new();
        facts.schemas.insert(short(&name), fact(schema, &mut more));
        wanted.extend(more.into_iter().filter(|name| !facts.schemas.contains_key(&short(name))));
    }
    Ok(facts)
}

/// `{"2025-10-28": schema}`, with a second one since 2026-01-21 where the page has variants. Null: an answer without a
/// body. `{}`: a page that says nothing.
fn by_version(schema: &Value, wanted: &mut BTreeSet<String>) -> Value {
    if schema.is_null() {
        return Value::Null;
    }
    let variants: Vec<Value> = schema["anyOf"].as_array().into_iter().flatten().map(|one| fact(one, wanted)).collect();
    if variants.len() < 2 {
        return json!({ OLD: fact(schema, wanted) });
    }
    let one_of = |variants: &[Value]| match variants {
        [only] => only.clone(),
        several => json!({ "anyOf": several }),
    };
    let (old, new) = variants.split_at(variants.len() / 2);
    json!({ OLD: one_of(old), NEW: one_of(new) })
}

/// A schema without anything that is no fact about the value, in its shortest form.
fn fact(schema: &Value, wanted: &mut BTreeSet<String>) -> Value {
    let Some(schema) = schema.as_object() else { return schema.clone() };
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        wanted.insert(name.to_owned());
        return json!({ "$ref": format!("#/$defs/{}", short(name)) });
    }
    if let Some(variants) = schema.get("anyOf").and_then(Value::as_array) {
        return any_of(variants.iter().map(|one| fact(one, wanted)).collect());
    }
    let mut facts = Map::new();
    for word in FACTS {
        let Some(value) = schema.get(word) else { continue };
        let value = match word {
            "items" | "additionalProperties" => fact(value, wanted),
            "properties" => value
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, property)| (name.clone(), fact(property, wanted)))
                .collect::<Map<_, _>>()
                .into(),
            _ => value.clone(),
        };
        facts.insert(word.to_owned(), value);
    }
    // Tuples are lists whose length says which.
    for word in ["required", "prefixItems", "minItems", "maxItems"] {
        if let Some(value) = schema.get(word) {
            let value = match value.as_array() {
                Some(list) if word == "prefixItems" => list.iter().map(|one| fact(one, wanted)).collect(),
                _ => value.clone(),
            };
            facts.insert(word.to_owned(), value);
        }
    }
    facts.into()
}

/// `{"type": ["string", "null"]}` says what `anyOf` with a null says, unless the value is one of a few.
fn any_of(variants: Vec<Value>) -> Value {
    if let [value, null] = variants.as_slice()
        && null == &json!({ "type": "null" })
        && let Some(kind) = value["type"].as_str()
        && value.get("enum").is_none()
        && value.get("const").is_none()
    {
        let mut value = value.clone();
        value["type"] = json!([kind, "null"]);
        return value;
    }
    json!({ "anyOf": variants })
}

/// `teehouse__api__routes__apps__v20251028__schemas__CvmBasicInfo` is `apps.v20251028.CvmBasicInfo`.
fn short(name: &str) -> String {
    let parts = name.strip_prefix("teehouse__api__routes__").unwrap_or(name).split("__");
    parts.filter(|part| *part != "schemas").collect::<Vec<_>>().join(".")
}

/// One line for each route and schema, so that a change is a short diff.
fn text(facts: &Facts) -> Result<String> {
    let mut text = String::from("{\n");
    for (name, entries) in [("routes", &facts.routes), ("schemas", &facts.schemas)] {
        writeln!(text, "  \"{name}\": {{")?;
        for (index, (key, value)) in entries.iter().enumerate() {
            let comma = if index + 1 < entries.len() { "," } else { "" };
            writeln!(text, "    {}: {value}{comma}", json!(key))?;
        }
        writeln!(text, "  }}{}", if name == "routes" { "," } else { "" })?;
    }
    text.push_str("}\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_facts_about_served_answers() {
        let pages = json!({
            "paths": {
                "/a": { "get": { "x-scope": "now", "summary": "words", "responses": {
                    "200": { "content": { "application/json": { "schema": { "anyOf": [
                        { "$ref": "#/components/schemas/teehouse__api__routes__a__v1__schemas__Old" },
                        { "$ref": "#/components/schemas/New" },
                    ] } } } },
                    "422": { "content": {} },
                } } },
                "/b": { "post": { "x-scope": "later", "responses": { "204": {} } } },
                "/c": { "get": { "x-scope": "later", "responses": { "200": {} } } },
            },
            "components": { "schemas": {
                "teehouse__api__routes__a__v1__schemas__Old": {
                    "type": "object", "title": "words", "required": ["b"],
                    "properties": { "b": { "anyOf": [{ "type": "string", "title": "b" }, { "type": "null" }] } },
                },
                "New": { "type": "array", "items": { "$ref": "#/components/schemas/Leaf" } },
                "Leaf": { "type": "string", "enum": ["x"], "description": "words" },
                "Unused": { "type": "string" },
            } },
        });
        let facts = derive(&pages, &json!({ "paths": { "/b": { "post": {} } } })).expect("facts");
        let whole: Value = serde_json::from_str(&text(&facts).expect("text")).expect("JSON");
        let wanted = json!({
            "routes": {
                "GET /a": {
                    "200": { "2025-10-28": { "$ref": "#/$defs/a.v1.Old" }, "2026-01-21": { "$ref": "#/$defs/New" } },
                    "refused": [422],
                },
                "POST /b": { "204": null, "refused": [] },
            },
            "schemas": {
                "Leaf": { "type": "string", "enum": ["x"] },
                "New": { "type": "array", "items": { "$ref": "#/$defs/Leaf" } },
                "a.v1.Old": {
                    "type": "object", "required": ["b"], "properties": { "b": { "type": ["string", "null"] } },
                },
            },
        });
        assert_eq!(whole, wanted);
    }
}
