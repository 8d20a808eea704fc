//! `holdfast admin workspaces`: workspaces and who belongs to them, through the server.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::users::Output;
use super::{every, shown};
use crate::client::{Client, block_on, segment, table, text};

#[derive(Subcommand)]
pub enum Command {
    /// List all workspaces
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Make a workspace
    Create {
        slug: String,
        /// Username or usr_ id of its first owner
        #[arg(long, value_name = "USER")]
        owner: String,
        /// For people; the slug unless told
        #[arg(long)]
        name: Option<String>,
        /// PRO unless told
        #[arg(long)]
        tier: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Make all keys of a workspace worthless until it is enabled again; its CVMs stay as they are
    Disable {
        /// Slug or wks_ id
        workspace: String,
        #[command(flatten)]
        output: Output,
    },
    /// Let the members of a workspace in again
    Enable {
        /// Slug or wks_ id
        workspace: String,
        #[command(flatten)]
        output: Output,
    },
    /// List who belongs to a workspace
    Members {
        /// Slug or wks_ id
        workspace: String,
        #[command(flatten)]
        output: Output,
    },
    /// Make a user a member
    AddMember {
        /// Slug or wks_ id
        workspace: String,
        /// Username or usr_ id
        user: String,
        /// owner, admin, member or reader
        #[arg(long, default_value = "member")]
        role: String,
        #[command(flatten)]
        output: Output,
    },
    /// Take a member out; their keys for the workspace are revoked
    RemoveMember {
        /// Slug or wks_ id
        workspace: String,
        /// Username or usr_ id
        user: String,
        #[command(flatten)]
        output: Output,
    },
    /// Give a member another role
    SetRole {
        /// Slug or wks_ id
        workspace: String,
        /// Username or usr_ id
        user: String,
        /// owner, admin, member or reader
        role: String,
        #[command(flatten)]
        output: Output,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    let (output, method, path, body) = match command {
        Command::List { output } => {
            let rows = every(&output, "/workspaces", None)?;
            return shown(&output, &rows, |rows| table(&HEAD, &rows.iter().map(row).collect::<Vec<_>>()));
        }
        Command::Members { workspace, output } => {
            let rows = members(&output, &workspace)?;
            return shown(&output, &rows, |rows| table(&MEMBERS, &rows.iter().map(member).collect::<Vec<_>>()));
        }
        Command::Create { slug, owner, name, tier, output } => {
            let body = json!({ "slug": slug, "owner": owner, "name": name, "tier": tier });
            (output, Method::POST, "/workspaces".to_owned(), body)
        }
        Command::Disable { workspace, output } => (output, Method::PATCH, of(&workspace), json!({ "disabled": true })),
        Command::Enable { workspace, output } => (output, Method::PATCH, of(&workspace), json!({ "disabled": false })),
        Command::AddMember { workspace, user, role, output } | Command::SetRole { workspace, user, role, output } => {
            (output, Method::PUT, in_it(&workspace, &user), json!({ "role": role }))
        }
        Command::RemoveMember { workspace, user, output } => {
            (output, Method::DELETE, in_it(&workspace, &user), Value::Null)
        }
    };
    let body = Some(&body).filter(|body| !body.is_null());
    let answer = block_on(Client::new(&output.common)?.request(method, &path, body))?;
    if output.json {
        println!("{answer}");
    } else if answer.get("slug").is_some() {
        println!("{}", table(&HEAD, &[row(&answer)]));
    } else if answer.get("user").is_some() {
        println!("{}", table(&MEMBERS, &[member(&answer)]));
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 6] = ["ID", "SLUG", "NAME", "TIER", "MEMBERS", "DISABLED"];
const MEMBERS: [&str; 4] = ["ID", "USERNAME", "EMAIL", "ROLE"];

fn row(workspace: &Value) -> Vec<String> {
    let mut row: Vec<String> = ["id", "slug", "name", "tier"].map(|name| text(workspace, name).to_owned()).into();
    row.push(workspace["members"].to_string());
    row.push(if workspace["disabled"] == true { "yes" } else { "no" }.to_owned());
    row
}

fn member(member: &Value) -> Vec<String> {
    ["user", "username", "email", "role"].map(|name| text(member, name).to_owned()).into()
}

fn of(workspace: &str) -> String {
    format!("/workspaces/{}", segment(workspace))
}

fn in_it(workspace: &str, user: &str) -> String {
    format!("{}/members/{}", of(workspace), segment(user))
}

/// All members of a workspace, page by page.
fn members(output: &Output, workspace: &str) -> Result<Vec<Value>> {
    let client = Client::new(&output.common)?;
    let mut rows = Vec::new();
    loop {
        let page = block_on(client.get(&format!("{}/members?limit=500&offset={}", of(workspace), rows.len())))?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let last = items.is_empty();
        rows.extend(items);
        if last || i64::try_from(rows.len()).ok() >= page["total"].as_i64() {
            return Ok(rows);
        }
    }
}
