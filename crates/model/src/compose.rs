//! app-compose.json: what is measured, hashed and handed to the guest; and what its docker-compose file publishes.
//!
//! The one rule: the bytes are made once ([`normalize`]), hashed, stored and from then on only passed along. Nothing
//! parses them back to write them again, because sha256 of what the guest got must be the compose hash for ever.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Code, Error};

/// Compose file and pre-launch script together, in bytes (the limit that the official CLI applies).
pub const MAX_COMPOSE_BYTES: usize = 200 * 1024;

/// The fields of app-compose.json that the control plane and the guest act on. Unknown ones are kept in the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AppCompose {
    pub name: String,
    pub runner: String,
    #[serde(default)]
    pub docker_compose_file: Option<String>,
    #[serde(default)]
    pub bash_script: Option<String>,
    #[serde(default)]
    pub pre_launch_script: Option<String>,
    #[serde(default)]
    pub init_script: Option<String>,
    #[serde(default)]
    pub allowed_envs: Vec<String>,
    #[serde(default)]
    pub public_logs: bool,
    #[serde(default)]
    pub public_sysinfo: bool,
    #[serde(default = "yes")]
    pub public_tcbinfo: bool,
    #[serde(default)]
    pub kms_enabled: bool,
    #[serde(default)]
    pub gateway_enabled: bool,
    #[serde(default)]
    pub features: Vec<String>,
    #[serde(default)]
    pub secure_time: bool,
    #[serde(default)]
    pub storage_fs: Option<String>,
    #[serde(default)]
    pub manifest_version: u32,
}

fn yes() -> bool {
    true
}

impl AppCompose {
    /// Reads bytes made by [`normalize`].
    pub fn parse(bytes: &str) -> Result<Self, Error> {
        serde_json::from_str(bytes).map_err(|e| Error::new(Code::ComposeInvalid, format!("app-compose.json: {e}")))
    }

    /// TCP ports on the VM that the app publishes; none for an app that is a script.
    pub fn published(&self) -> Result<BTreeSet<u16>, Error> {
        match &self.docker_compose_file {
            Some(yaml) if self.runner == "docker-compose" => {
                Ok(published_ports(yaml)?.into_iter().map(|p| p.vm_port).collect())
            }
            _ => Ok(BTreeSet::new()),
        }
    }
}

/// Makes the bytes of app-compose.json from what a client sent: defaults filled in, nulls and empty scripts dropped,
/// keys sorted, no white space. `name` is used when the client's is empty.
pub fn normalize(sent: &Map<String, Value>, name: &str) -> Result<String, Error> {
    let mut out = Map::new();
    for (key, default) in [
        ("allowed_envs", json!([])),
        ("features", json!(["kms", "tproxy-net"])),
        ("gateway_enabled", json!(true)),
        ("kms_enabled", json!(true)),
        ("local_key_provider_enabled", json!(false)),
        ("manifest_version", json!(2)),
        ("no_instance_id", json!(false)),
        ("public_logs", json!(true)),
        ("public_sysinfo", json!(true)),
        ("public_tcbinfo", json!(true)),
        ("runner", json!("docker-compose")),
        ("secure_time", json!(false)),
        // What our guests have; the original's default is zfs.
        ("storage_fs", json!("ext4")),
        ("tproxy_enabled", json!(true)),
    ] {
        out.insert(key.to_owned(), default);
    }
    for (key, value) in sent {
        let empty_script = matches!(key.as_str(), "pre_launch_script" | "init_script" | "bash_script")
            && value.as_str().is_some_and(str::is_empty);
        if !value.is_null() && !empty_script {
            out.insert(key.clone(), value.clone());
        }
    }
    if out.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        out.insert("name".to_owned(), json!(name));
    }
    check(&out)?;
    let bytes = canonical_json(&Value::Object(out));
    // Whatever else is in it: the guest has to be able to read it.
    AppCompose::parse(&bytes)?;
    Ok(bytes)
}

/// Refuses what would only fail later, inside the guest.
fn check(compose: &Map<String, Value>) -> Result<(), Error> {
    for key in
        ["name", "runner", "docker_compose_file", "bash_script", "pre_launch_script", "init_script", "storage_fs"]
    {
        if compose.get(key).is_some_and(|v| !v.is_string()) {
            return Err(Error::field("body", &format!("compose_file.{key}"), "string_type", "must be a string"));
        }
    }
    for key in ["public_logs", "public_sysinfo", "public_tcbinfo", "kms_enabled", "gateway_enabled", "secure_time"] {
        if compose.get(key).is_some_and(|v| !v.is_boolean()) {
            return Err(Error::field("body", &format!("compose_file.{key}"), "bool_type", "must be true or false"));
        }
    }
    for key in ["allowed_envs", "features"] {
        let strings = compose[key].as_array().is_some_and(|list| list.iter().all(Value::is_string));
        if !strings {
            return Err(Error::field("body", &format!("compose_file.{key}"), "list_type", "must be a list of strings"));
        }
    }
    if compose["storage_fs"] != "ext4" {
        return Err(Error::new(Code::FeatureMissing, "storage_fs: this server's guests have ext4 only."));
    }
    let text = |key: &str| compose.get(key).and_then(Value::as_str);
    let script_bytes: usize = ["docker_compose_file", "bash_script", "pre_launch_script", "init_script"]
        .into_iter()
        .filter_map(text)
        .map(str::len)
        .sum();
    if script_bytes > MAX_COMPOSE_BYTES {
        let message =
            format!("compose_file: {script_bytes} bytes of compose file and scripts; {MAX_COMPOSE_BYTES} are allowed.");
        return Err(Error::new(Code::ComposeTooLarge, message));
    }
    match text("runner") {
        Some("docker-compose") => {
            let Some(yaml) = text("docker_compose_file").filter(|t| !t.trim().is_empty()) else {
                return Err(Error::new(Code::ComposeRequired, "compose_file.docker_compose_file is missing or empty."));
            };
            published_ports(yaml).map(drop)
        }
        Some("bash") if text("bash_script").is_some() => Ok(()),
        Some("bash") => Err(Error::new(Code::ComposeRequired, "runner \"bash\" needs compose_file.bash_script.")),
        _ => Err(Error::new(Code::FeatureMissing, "runner: this server knows \"docker-compose\" and \"bash\".")),
    }
}

/// JSON with sorted keys, no white space and whole numbers without a fraction: the form that the exported
/// `getComposeHash` helper of the official SDK hashes.
pub fn canonical_json(value: &Value) -> String {
    fn write(value: &Value, out: &mut String) {
        match value {
            Value::Object(map) => {
                out.push('{');
                let sorted: BTreeMap<_, _> = map.iter().collect();
                for (i, (key, value)) in sorted.into_iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write(&Value::String(key.clone()), out);
                    out.push(':');
                    write(value, out);
                }
                out.push('}');
            }
            Value::Array(list) => {
                out.push('[');
                for (i, value) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write(value, out);
                }
                out.push(']');
            }
            Value::Number(n) => match n.as_f64() {
                Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 9e15 => out.push_str(&format!("{}", f as i64)),
                _ => out.push_str(&n.to_string()),
            },
            other => out.push_str(&other.to_string()),
        }
    }
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// sha256 in 64 lower-case hex digits.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(bytes.as_ref()))
}

/// A TCP port that a compose service publishes inside the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishedPort {
    pub service: String,
    /// Port on the VM.
    pub vm_port: u16,
    /// Port in the container.
    pub target: u16,
    /// The compose file gives no published number: compose would take a free one, so the guest agent publishes `vm_port`.
    pub implicit: bool,
}

#[derive(Deserialize)]
struct ComposeFile {
    services: BTreeMap<String, Option<Service>>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(default)]
    ports: Option<Vec<PortEntry>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortEntry {
    Number(u32),
    Short(String),
    Long {
        target: PortText,
        #[serde(default)]
        published: Option<PortText>,
        #[serde(default)]
        protocol: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortText {
    Number(u32),
    Text(String),
}

/// Reads the TCP ports of a docker-compose file, sorted, without repeats. Fails when the text is no compose file.
///
/// A port without a published number (`- "80"`) gets the container's own number; the guest agent publishes it there.
/// UDP, and ports whose number is an environment variable without a default, are left out.
pub fn published_ports(yaml: &str) -> Result<Vec<PublishedPort>, Error> {
    let invalid = |why: String| Error::new(Code::ComposeInvalid, format!("docker_compose_file: {why}"));
    let file: ComposeFile = serde_saphyr::from_str(yaml).map_err(|e| {
        let text = e.to_string();
        invalid(text.lines().next().unwrap_or("not a compose file").chars().take(300).collect())
    })?;
    if file.services.is_empty() {
        return Err(invalid("it has no services.".to_owned()));
    }
    let mut ports = Vec::new();
    for (name, service) in file.services {
        let Some(service) = service else {
            return Err(invalid(format!("service \"{name}\" is empty.")));
        };
        for entry in service.ports.into_iter().flatten() {
            let implicit = entry.is_implicit();
            for (vm_port, target) in entry.mappings() {
                ports.push(PublishedPort { service: name.clone(), vm_port, target, implicit });
            }
        }
    }
    // A number that the file itself publishes goes before one that only we would.
    ports.sort_by_key(|p| (p.vm_port, p.implicit));
    ports.dedup_by_key(|p| p.vm_port);
    Ok(ports)
}

impl PortEntry {
    /// Without a published number.
    fn is_implicit(&self) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Short(text) => {
                let text = substitute_defaults(text);
                // The last colon that is not inside an address in brackets; `127.0.0.1::80` has an empty number.
                text.rsplit_once(':').is_none_or(|(before, _)| before.is_empty() || before.ends_with(':'))
            }
            Self::Long { published, .. } => {
                published.as_ref().is_none_or(|p| substitute_defaults(&p.text()).is_empty())
            }
        }
    }

    /// (port on the VM, port in the container) of each TCP port; empty when it cannot be known here.
    fn mappings(&self) -> Vec<(u16, u16)> {
        let pairs = match self {
            Self::Number(n) => pair_ranges(&n.to_string(), &n.to_string()),
            Self::Short(text) => {
                let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
                if protocol != "tcp" {
                    return Vec::new();
                }
                let text = substitute_defaults(text);
                // [address:]published:target, where the address may be [::1]
                let mut parts = text.rsplitn(3, ':');
                let target = parts.next().unwrap_or_default();
                let published = parts.next().filter(|p| !p.is_empty()).unwrap_or(target);
                pair_ranges(published, target)
            }
            Self::Long { target, published, protocol } => {
                if protocol.as_deref().is_some_and(|p| p != "tcp") {
                    return Vec::new();
                }
                let target = substitute_defaults(&target.text());
                let published = published.as_ref().map(|p| substitute_defaults(&p.text()));
                pair_ranges(published.as_deref().filter(|p| !p.is_empty()).unwrap_or(&target), &target)
            }
        };
        pairs.unwrap_or_default()
    }
}

impl PortText {
    fn text(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

/// `8000-8002` with `80-82` gives three pairs; `None` when the two do not fit together.
fn pair_ranges(published: &str, target: &str) -> Option<Vec<(u16, u16)>> {
    let range = |text: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first > 0 && first <= last).then_some(first..=last)
    };
    let (published, target) = (range(published)?, range(target)?);
    (published.len() == target.len()).then(|| published.zip(target).collect())
}

/// `${PORT:-8080}` becomes `8080`; a variable without a default stays and so parses as no number.
fn substitute_defaults(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let Some(len) = rest[start..].find('}') else { break };
        let inside = &rest[start + 2..start + len];
        out.push_str(&rest[..start]);
        match inside.split_once(":-").or_else(|| inside.split_once('-')) {
            Some((_, default)) => out.push_str(default),
            None => out.push_str(&rest[start..=start + len]),
        }
        rest = &rest[start + len + 1..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(yaml: &str) -> Vec<(u16, u16)> {
        published_ports(yaml).expect("a compose file").iter().map(|p| (p.vm_port, p.target)).collect()
    }

    #[test]
    fn canonical_form_is_the_sdk_helpers() {
        // Vector of contracts/phala-clients.md 3.6.
        let value = json!({"bash_script":"z","docker_compose_file":"a: b","name":"x","pre_launch_script":"","runner":"docker-compose"});
        assert_eq!(
            sha256_hex(canonical_json(&value)),
            "62f2ff45e7996ea192fd7908858c75787fba85b9109ec08773173ee5cb5f1035"
        );
        assert_eq!(
            canonical_json(&json!({"b":2.0,"a":[1.5,{"z":null,"y":"ü\n"}]})),
            r#"{"a":[1.5,{"y":"ü\n","z":null}],"b":2}"#
        );
    }

    #[test]
    fn every_spelling_of_a_port() {
        let yaml = r#"
services:
  web:
    image: x
    ports:
      - "8080:80"
      - 9090
      - "127.0.0.1:7001-7002:71-72"
      - "${PORT:-6000}:60"
      - "${NO_DEFAULT}:61"
      - "5353:53/udp"
      - target: 443
        published: "8443"
      - target: 90
        published: 9000
        protocol: udp
  db:
    image: y
"#;
        assert_eq!(ports(yaml), [(6000, 60), (7001, 71), (7002, 72), (8080, 80), (8443, 443), (9090, 9090)]);
    }

    #[test]
    fn ports_without_a_published_number() {
        let yaml = r#"
services:
  a:
    image: x
    ports: ["80", 81, "127.0.0.1::82", "8083:83", "${P:-84}", "90-91", {target: 85}, {target: 86, published: 86}]
  b:
    image: y
    ports: ["81:9"]
"#;
        let found: Vec<_> =
            published_ports(yaml).expect("a compose file").into_iter().map(|p| (p.vm_port, p.implicit)).collect();
        assert_eq!(
            found,
            [
                (80, true),
                (81, false),
                (82, true),
                (84, true),
                (85, true),
                (86, false),
                (90, true),
                (91, true),
                (8083, false)
            ]
        );
    }

    #[test]
    fn what_is_no_compose_file() {
        for text in
            ["- a\n- b\n", "hello", "services: []", "services: {}", "version: '3'", ":\n\t-", "services:\n  a:\n"]
        {
            let error = published_ports(text).expect_err(text);
            assert_eq!(error.code, Code::ComposeInvalid, "{text}");
        }
    }

    #[test]
    fn a_yaml_bomb_is_refused() {
        let mut yaml = String::from("a: &a [x,x,x,x,x,x,x,x,x,x]\n");
        for i in 0..12 {
            let (this, last) = ((b'b' + i) as char, (b'a' + i) as char);
            yaml.push_str(&format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(",")));
        }
        yaml.push_str("services: {a: {image: x, ports: *m}}\n");
        assert!(published_ports(&yaml).is_err());
    }

    #[test]
    fn normalizing_fills_defaults_and_keeps_the_unknown() {
        let sent = json!({"docker_compose_file":"services: {a: {image: x}}","name":"","swap_size":"1G","pre_launch_script":null});
        let bytes = normalize(sent.as_object().expect("an object"), "my-app").expect("valid");
        assert!(bytes.contains(r#""name":"my-app""#) && bytes.contains(r#""swap_size":"1G""#), "{bytes}");
        assert!(!bytes.contains("pre_launch_script"));
        let parsed = AppCompose::parse(&bytes).expect("our own bytes");
        assert_eq!(parsed.runner, "docker-compose");
        assert!(parsed.public_logs);
    }

    #[test]
    fn wrong_types_name_the_field() {
        let sent = json!({"docker_compose_file": 7});
        let error = normalize(sent.as_object().expect("an object"), "my-app").expect_err("a number");
        assert_eq!(error.details[0].loc, ["body", "compose_file", "docker_compose_file"]);
        let big = json!({"docker_compose_file": "x".repeat(MAX_COMPOSE_BYTES + 1)});
        let error = normalize(big.as_object().expect("an object"), "my-app").expect_err("too large");
        assert_eq!(error.code, Code::ComposeTooLarge);
    }
}
