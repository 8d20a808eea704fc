//! Operations as a user watches them.
//!
//! The one rule: the state shown is always read from the server again, never guessed from what was asked.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::Client;
use crate::until;

/// The newest operation of a CVM.
pub fn newest(client: &Client, cvm: &str) -> Result<Value> {
    let page = client.get(&format!("/api/v1/cvms/{cvm}/operations?limit=1"))?.ok()?;
    let id = page["items"][0]["correlation_id"].as_str().context("the CVM has no operation")?;
    by_id(client, id)
}

pub fn by_id(client: &Client, id: &str) -> Result<Value> {
    client.get(&format!("/holdfast/v1/operations/{id}"))?.ok()
}

pub fn is_over(operation: &Value) -> bool {
    matches!(operation["status"].as_str(), Some("done" | "failed" | "cancelled" | "stuck"))
}

/// Reads the operation until it is over; `show` sees every reading.
pub fn watch(client: &Client, id: &str, limit: Duration, mut show: impl FnMut(&Value)) -> Result<Value> {
    until(limit, &format!("operation {id} is over"), || {
        let operation = by_id(client, id)?;
        show(&operation);
        Ok(is_over(&operation).then_some(operation))
    })
}

/// Waits for the newest operation of a CVM.
pub fn settle(client: &Client, cvm: &str, limit: Duration) -> Result<Value> {
    let operation = newest(client, cvm)?;
    let id = operation["id"].as_str().context("an operation without an id")?;
    watch(client, id, limit, |_| ())
}

/// The names of the steps, in order.
pub fn steps(operation: &Value) -> Vec<String> {
    let steps = operation["steps"].as_array().into_iter().flatten();
    steps.filter_map(|s| s["name"].as_str().map(str::to_owned)).collect()
}

/// The event types, in order.
pub fn events(operation: &Value) -> Vec<String> {
    let events = operation["events"].as_array().into_iter().flatten();
    events.filter_map(|e| e["event_type"].as_str().map(str::to_owned)).collect()
}
