//! The official TypeScript SDK, at the version in `tests/clients/package-lock.json`.
//!
//! The one rule: its own schemas judge our answers. A call counts as answered only when the throwing and the safe form of an
//! action both took what we sent.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::cloud::Cloud;

pub struct Sdk {
    version: &'static str,
    node: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Sdk {
    /// `version`: one that the SDK knows, 2025-10-28 or 2026-01-21.
    pub fn new(cloud: &Cloud, version: &'static str) -> Self {
        let mut node = Command::new("node")
            .arg(crate::root().join("tests/clients/call.mjs"))
            .arg(version)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PHALA_CLOUD_API_PREFIX", format!("{}/api/v1", cloud.client.base))
            .env("PHALA_CLOUD_API_KEY", &cloud.client.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs");
        let (input, output) = (node.stdin.take().expect("a pipe"), node.stdout.take().expect("a pipe"));
        Self { version, node, pipes: RefCell::new((input, BufReader::new(output))) }
    }

    /// What one action answered; it must succeed.
    pub fn call(&self, name: &str, params: Value) -> Value {
        let mut result = self.try_call(name, params);
        assert_eq!(result["ok"], true, "{name} at {}: {result}", self.version);
        result["value"].take()
    }

    /// `{ok, value}` or `{ok, status, message}`.
    pub fn try_call(&self, name: &str, params: Value) -> Value {
        let (input, output) = &mut *self.pipes.borrow_mut();
        writeln!(input, "{}", json!([name, params])).expect("node reads");
        let mut line = String::new();
        output.read_line(&mut line).expect("node answers");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{name}: {e}: {line:?}"))
    }
}

impl Drop for Sdk {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}
