//! `holdfast admin users`: accounts, through the server; what lets people in, from the data folder itself.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Value, json};

use super::{credentials, every, identities, shown};
use crate::Common;
use crate::client::{Client, block_on, segment, table, text};

#[derive(Subcommand)]
pub enum Command {
    /// List everybody with an account
    List {
        #[command(flatten)]
        output: Output,
    },
    /// Make an account; it needs a key or a password before anybody can sign in with it
    Create {
        username: String,
        #[arg(long)]
        email: String,
        /// What they may do in the whole installation
        #[arg(long, value_enum, default_value_t = Role::User)]
        role: Role,
        /// Slug of a workspace to make them a member of
        #[arg(long, value_name = "SLUG")]
        workspace: Option<String>,
        /// Their role in it: owner, admin, member or reader
        #[arg(long, value_name = "ROLE", default_value = "member", requires = "workspace")]
        workspace_role: String,
        #[command(flatten)]
        output: Output,
    },
    /// Make all keys of a user worthless until they are enabled again
    Disable {
        /// Username or usr_ id
        user: String,
        #[command(flatten)]
        output: Output,
    },
    /// Let a user in again
    Enable {
        /// Username or usr_ id
        user: String,
        #[command(flatten)]
        output: Output,
    },
    /// Give a user a password, read from standard input; their sessions end
    SetPassword(credentials::SetPassword),
    /// Let a user sign in as who they are at the identity provider
    Link(identities::Link),
    /// Take identities from a user; their sessions end
    Unlink(identities::Unlink),
    /// List who a user is at identity providers
    Identities(identities::Identities),
    /// Say whether a user runs the installation
    SetRole {
        /// Username or usr_ id
        user: String,
        #[arg(value_enum)]
        role: Role,
        #[command(flatten)]
        output: Output,
    },
}

/// Where to ask, and how to answer.
#[derive(Args)]
pub struct Output {
    #[command(flatten)]
    pub common: Common,
    /// The server's answer; a list as one line per row
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Role {
    Admin,
    User,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::User => "user",
        }
    }
}

pub fn run(command: Command) -> Result<ExitCode> {
    let command = match command {
        Command::SetPassword(options) => return done(credentials::set_password(options)),
        Command::Link(options) => return done(identities::link(options)),
        Command::Unlink(options) => return done(identities::unlink(options)),
        Command::Identities(options) => return done(identities::identities(options)),
        other => other,
    };
    let (output, method, path, body) = match command {
        Command::List { output } => {
            let rows = every(&output, "/users", None)?;
            return shown(&output, &rows, |rows| table(&HEAD, &rows.iter().map(row).collect::<Vec<_>>()));
        }
        Command::Create { username, email, role, workspace, workspace_role, output } => {
            let mut body = json!({ "username": username, "email": email, "role": role.word() });
            if let Some(workspace) = workspace {
                body["workspace"] = workspace.into();
                body["workspace_role"] = workspace_role.into();
            }
            (output, Method::POST, "/users".to_owned(), body)
        }
        Command::Disable { user, output } => (output, Method::PATCH, of(&user), json!({ "disabled": true })),
        Command::Enable { user, output } => (output, Method::PATCH, of(&user), json!({ "disabled": false })),
        Command::SetRole { user, role, output } => (output, Method::PATCH, of(&user), json!({ "role": role.word() })),
        Command::SetPassword(_) | Command::Link(_) | Command::Unlink(_) | Command::Identities(_) => {
            return Ok(ExitCode::SUCCESS);
        }
    };
    let answer = block_on(Client::new(&output.common)?.request(method, &path, Some(&body)))?;
    if output.json {
        println!("{answer}");
    } else {
        println!("{}", table(&HEAD, &[row(&answer)]));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs what needs no server.
fn done(work: impl Future<Output = Result<()>>) -> Result<ExitCode> {
    block_on(work)?;
    Ok(ExitCode::SUCCESS)
}

const HEAD: [&str; 5] = ["ID", "USERNAME", "EMAIL", "ROLE", "DISABLED"];

fn row(user: &Value) -> Vec<String> {
    let mut row: Vec<String> = ["id", "username", "email", "role"].map(|name| text(user, name).to_owned()).into();
    row.push(if user["disabled"] == true { "yes" } else { "no" }.to_owned());
    row
}

fn of(user: &str) -> String {
    format!("/users/{}", segment(user))
}
