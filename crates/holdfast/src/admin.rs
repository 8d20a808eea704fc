//! `holdfast admin`: what an operator does. What lets people and nodes in (passwords, identities, tokens, the lost admin key)
//! needs the data folder itself, and works beside a running server or without one; people and workspaces are asked of the
//! server, as any client does.

mod credentials;
mod identities;
mod projects;
mod quotas;
mod users;
mod workspaces;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use holdfast_control::{SystemClock, setup};
use holdfast_store::Store;
use serde_json::Value;

use crate::client::{Client, block_on};
use crate::serve::open_error;
use crate::{Common, load};

#[derive(Subcommand)]
pub enum Command {
    /// Accounts: who may use the installation
    #[command(subcommand)]
    Users(users::Command),
    /// Workspaces, and who belongs to them
    #[command(subcommand)]
    Workspaces(workspaces::Command),
    /// Projects of a workspace
    #[command(subcommand)]
    Projects(projects::Command),
    /// Let in a device that shows a code, as `phala login` does
    Approve(credentials::Approve),
    /// API tokens of everybody
    #[command(subcommand)]
    Tokens(credentials::Tokens),
    /// Issue a token for one node; prints it once
    NodeToken {
        #[command(flatten)]
        common: Common,
        /// What to call the token in lists
        #[arg(long, default_value = "node")]
        name: String,
        #[arg(long)]
        json: bool,
    },
    /// Make a new admin API key when the old one is lost; it replaces admin.key
    NewKey {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
    /// What workspaces may have; asks the server
    #[command(subcommand)]
    Quotas(quotas::Command),
}

pub fn run(command: Command) -> Result<ExitCode> {
    let command = match command {
        Command::Quotas(command) => return quotas::run(command),
        Command::Users(command) => return users::run(command),
        Command::Workspaces(command) => return workspaces::run(command),
        Command::Projects(command) => return projects::run(command),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Approve(options) => credentials::approve(options).await?,
            Command::Tokens(command) => credentials::tokens(command).await?,
            Command::NodeToken { common, name, json } => {
                let data_dir = load(&common, Vec::new())?.data_dir()?;
                let store = Store::open_existing(&data_dir).await.map_err(open_error)?;
                let token = setup::node_token(&store, &SystemClock, &name).await?;
                print(json, "token", &token);
            }
            Command::NewKey { common, json } => {
                let data_dir = load(&common, Vec::new())?.data_dir()?;
                let store = Store::open_existing(&data_dir).await.map_err(open_error)?;
                let key = setup::new_admin_key(&store, &SystemClock, &data_dir.join("admin.key")).await?;
                print(json, "key", &key);
            }
            Command::Quotas(_) | Command::Users(_) | Command::Workspaces(_) | Command::Projects(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn print(json: bool, name: &str, secret: &str) {
    if json {
        println!("{}", serde_json::json!({ name: secret }));
    } else {
        println!("{secret}");
    }
}

/// Every row of a list of the server, however many pages that takes. `filter`: parameters of the list.
fn every(output: &users::Output, list: &str, filter: Option<&str>) -> Result<Vec<Value>> {
    let client = Client::new(&output.common)?;
    let first = filter.map_or_else(|| format!("{list}?limit=500"), |filter| format!("{list}?limit=500&{filter}"));
    let (mut rows, mut path) = (Vec::new(), first.clone());
    loop {
        let page = block_on(client.get(&path))?;
        rows.extend(page["items"].as_array().cloned().unwrap_or_default());
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("{first}&cursor={cursor}"),
            None => return Ok(rows),
        }
    }
}

/// Prints rows: one line of JSON for each, or as a table.
fn shown(output: &users::Output, rows: &[Value], table: impl FnOnce(&[Value]) -> String) -> Result<ExitCode> {
    if output.json {
        rows.iter().for_each(|row| println!("{row}"));
    } else {
        println!("{}", table(rows));
    }
    Ok(ExitCode::SUCCESS)
}
