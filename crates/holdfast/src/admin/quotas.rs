//! `holdfast admin quotas`: what workspaces may have.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value};

use crate::client::{Client, block_on, table};
use crate::{Common, refused};

#[derive(Subcommand)]
pub enum Command {
    /// Show what a workspace may have and what it has
    Show(Options),
    /// Change limits; those that are not named stay
    Set {
        #[command(flatten)]
        options: Options,
        /// CVMs at the most, or none for no limit
        #[arg(long, value_name = "N")]
        vm_slots: Option<String>,
        /// vCPUs of all CVMs together
        #[arg(long, value_name = "N")]
        vcpu: Option<String>,
        /// Memory of all CVMs together
        #[arg(long, value_name = "MB")]
        memory_mb: Option<String>,
        /// Disks of all CVMs together
        #[arg(long, value_name = "GB")]
        disk_gb: Option<String>,
    },
    /// Lift all limits of a workspace
    Clear(Options),
}

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Slug or id (wks_...) of the workspace
    workspace: String,
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> Result<ExitCode> {
    let (options, method, body) = match command {
        Command::Show(options) => (options, Method::GET, None),
        Command::Clear(options) => (options, Method::DELETE, None),
        Command::Set { options, vm_slots, vcpu, memory_mb, disk_gb } => {
            let named = [("vm_slots", vm_slots), ("vcpu", vcpu), ("memory_mb", memory_mb), ("disk_gb", disk_gb)];
            (options, Method::PATCH, Some(change(named)?))
        }
    };
    let client = Client::new(&options.common)?;
    let path = format!("/quotas/{}", segment(&options.workspace)?);
    let answer = block_on(client.request(method, &path, body.as_ref()))?;
    if options.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = ["vm_slots", "vcpu", "memory_mb", "disk_gb"]
        .into_iter()
        .map(|name| {
            let quota = &answer["quotas"][name];
            let cell = |key: &str| quota[key].as_i64().map_or_else(|| "none".to_owned(), |n| n.to_string());
            let left = if quota["limit"].is_null() { "unlimited".to_owned() } else { cell("remaining") };
            vec![name.to_owned(), cell("limit"), cell("used"), left]
        })
        .collect();
    println!("{}", table(&["QUOTA", "LIMIT", "USED", "REMAINING"], &rows));
    Ok(ExitCode::SUCCESS)
}

/// The body of a change: a number, or null for `none`.
fn change(named: [(&str, Option<String>); 4]) -> Result<Value> {
    let mut body = Map::new();
    for (name, text) in named {
        let Some(text) = text else { continue };
        let value = match text.as_str() {
            "none" => Value::Null,
            text => {
                let wrong =
                    || refused(format!("--{}: \"{text}\" is neither a number nor none", name.replace('_', "-")));
                let number: u64 = text.parse().map_err(|_| wrong())?;
                number.into()
            }
        };
        body.insert(name.to_owned(), value);
    }
    if body.is_empty() {
        return Err(refused("name at least one of --vm-slots, --vcpu, --memory-mb and --disk-gb"));
    }
    Ok(body.into())
}

/// A workspace's name as it can stand in a path.
fn segment(name: &str) -> Result<&str> {
    let fits = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits { Ok(name) } else { Err(refused(format!("\"{name}\" is no slug and no id of a workspace"))) }
}
