//! `holdfast admin`: what needs the data folder itself. Works beside a running server.

mod credentials;
mod quotas;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use holdfast_control::{SystemClock, setup};
use holdfast_store::Store;

use crate::serve::open_error;
use crate::{Common, load};

#[derive(Subcommand)]
pub enum Command {
    /// Let in a device that shows a code, as `phala login` does
    Approve(credentials::Approve),
    /// API tokens of everybody
    #[command(subcommand)]
    Tokens(credentials::Tokens),
    /// Give a user a password, read from standard input; their sessions end
    SetPassword(credentials::SetPassword),
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
        command => command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Approve(options) => credentials::approve(options).await?,
            Command::Tokens(command) => credentials::tokens(command).await?,
            Command::SetPassword(options) => credentials::set_password(options).await?,
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
            Command::Quotas(_) => {}
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
