//! `holdfast ops list` and `holdfast audit log`: lists of the server, a page or all of them.
//!
//! The one rule: what was not shown is said, on standard error, so that a first page is not taken for everything.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::Common;
use crate::client::{Client, block_on, table, text};

/// What both lists have.
#[derive(Args)]
struct Paging {
    #[command(flatten)]
    common: Common,
    /// Accepted at or after this time, like 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Accepted at or before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
    limit: u16,
    /// All of them, however many pages that takes
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// The server's answer; with --all one line per row
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Operations {
    #[command(flatten)]
    paging: Paging,
    /// pending, running, done, failed, cancelled or stuck; several joined by commas
    #[arg(long)]
    status: Option<String>,
    /// create, power_on, restart, delete ...; several joined by commas
    #[arg(long = "type", value_name = "TYPE")]
    operation_type: Option<String>,
    /// UUID of the CVM
    #[arg(long)]
    resource: Option<String>,
    /// Beginning of the CVM's name
    #[arg(long, value_name = "PREFIX")]
    name_prefix: Option<String>,
    /// Username or id of who asked
    #[arg(long)]
    actor: Option<String>,
}

#[derive(Args)]
pub struct AuditLog {
    #[command(flatten)]
    paging: Paging,
    /// vm.create, vm.delete, operation.cancel ..., or request.refused
    #[arg(long)]
    action: Option<String>,
    /// Id of the user who asked
    #[arg(long)]
    actor: Option<String>,
    /// Id of what it was about
    #[arg(long)]
    target: Option<String>,
    /// Id of the operation that it started or acted on
    #[arg(long)]
    operation: Option<String>,
    /// Id of the request
    #[arg(long)]
    request: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
}

pub fn operations(options: Operations) -> Result<ExitCode> {
    let filters = [
        ("status", options.status),
        ("operation_type", options.operation_type),
        ("resource", options.resource),
        ("name_prefix", options.name_prefix),
        ("actor", options.actor),
    ];
    let head = ["ID", "OPERATION", "CVM", "STATUS", "BY", "STARTED (UTC)", "TOOK"];
    show(&options.paging, "/operations", &filters, &head, |operation| {
        vec![
            text(operation, "id").to_owned(),
            text(operation, "operation_type").to_owned(),
            text(&operation["resource"], "name").to_owned(),
            text(operation, "status").to_owned(),
            text(&operation["actor"], "username").to_owned(),
            second(text(operation, "created_at")),
            operation["duration_ms"].as_i64().map(crate::ops::duration).unwrap_or_default(),
        ]
    })
}

pub fn audit_log(options: AuditLog) -> Result<ExitCode> {
    let filters = [
        ("action", options.action),
        ("actor_id", options.actor),
        ("target_id", options.target),
        ("operation_id", options.operation),
        ("request_id", options.request),
        ("status_code_min", options.refused.then(|| "400".to_owned())),
    ];
    let head = ["AT (UTC)", "BY", "FROM", "ACTION", "STATUS", "REQUEST", "OPERATION"];
    show(&options.paging, "/audit-logs", &filters, &head, |entry| {
        vec![
            second(text(entry, "created_at")),
            text(&entry["actor"], "name").to_owned(),
            text(entry, "client_ip").to_owned(),
            text(entry, "action").to_owned(),
            entry["status_code"].to_string(),
            format!("{} {}", text(entry, "method"), text(entry, "path")),
            text(entry, "operation_id").to_owned(),
        ]
    })
}

fn second(time: &str) -> String {
    time.get(..19).unwrap_or_default().to_owned()
}

fn show(
    paging: &Paging,
    list: &str,
    filters: &[(&str, Option<String>)],
    head: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<ExitCode> {
    let client = Client::new(&paging.common)?;
    let limit = if paging.all { 500 } else { paging.limit };
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &limit.to_string());
    let times = [("created_at_min", paging.since.clone()), ("created_at_max", paging.until.clone())];
    for (name, value) in filters.iter().chain(&times) {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let first = format!("{list}?{}", query.finish());
    let mut rows = Vec::new();
    let mut next = Some(first.clone());
    while let Some(path) = next {
        let page = block_on(client.get(&path))?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        if paging.json && paging.all {
            items.iter().for_each(|item| println!("{item}"));
        } else if paging.json {
            println!("{page}");
        } else {
            rows.extend(items.iter().map(&row));
        }
        let cursor = page["next_cursor"].as_str();
        if cursor.is_some() && !paging.all && !paging.json {
            let about = if page["total_is_estimate"] == true { "about " } else { "" };
            eprintln!("{} of {about}{}; --all shows every one", items.len(), page["total"]);
        }
        next = cursor.filter(|_| paging.all).map(|cursor| format!("{first}&cursor={cursor}"));
    }
    if !paging.json {
        println!("{}", table(head, &rows));
    }
    Ok(ExitCode::SUCCESS)
}
