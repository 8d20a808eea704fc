//! `holdfast admin projects`: the projects of a workspace, through the server.

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
    /// List the projects of the key's workspace, or of another one
    List {
        /// Slug or wks_ id
        #[arg(long, value_name = "WORKSPACE")]
        workspace: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Make a project in the key's workspace
    Create {
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Give a project another name
    Rename {
        /// UUID or name
        project: String,
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a project in which no CVM lives
    Delete {
        /// UUID or name
        project: String,
        #[command(flatten)]
        output: Output,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    let (output, method, path, body) = match command {
        Command::List { workspace, output } => {
            let query = workspace.map(|workspace| format!("workspace={}", segment(&workspace)));
            let rows = every(&output, "/projects", query.as_deref())?;
            return shown(&output, &rows, |rows| table(&HEAD, &rows.iter().map(row).collect::<Vec<_>>()));
        }
        Command::Create { name, output } => {
            (output, Method::POST, "/projects".to_owned(), Some(json!({ "name": name })))
        }
        Command::Rename { project, name, output } => {
            (output, Method::PATCH, of(&project), Some(json!({ "name": name })))
        }
        Command::Delete { project, output } => (output, Method::DELETE, of(&project), None),
    };
    let answer = block_on(Client::new(&output.common)?.request(method, &path, body.as_ref()))?;
    if output.json {
        println!("{answer}");
    } else if answer.get("name").is_some() {
        println!("{}", table(&HEAD, &[row(&answer)]));
    }
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 4] = ["ID", "NAME", "CVMS", "DEFAULT"];

fn row(project: &Value) -> Vec<String> {
    let mut row: Vec<String> = ["id", "name"].map(|name| text(project, name).to_owned()).into();
    row.push(project["cvms"].to_string());
    row.push(if project["is_default"] == true { "yes" } else { "no" }.to_owned());
    row
}

fn of(project: &str) -> String {
    format!("/projects/{}", segment(project))
}
