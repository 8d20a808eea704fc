//! `holdfast admin approve`, `tokens` and `users set-password`: what lets people in, from the data folder itself. Works beside
//! a running server and without one.
//!
//! The one rule: a secret is printed by the command that makes it and by no other, and a password is never an argument,
//! because every process of the host can read those.

use std::io::Read;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use holdfast_control::{Clock, SystemClock, devices, passwords, projects, tokens};
use holdfast_model::Timestamp;
use holdfast_model::access::Action;
use holdfast_model::limits::Limits;
use holdfast_store::Store;
use serde_json::json;
use zeroize::Zeroizing;

use crate::client::table;
use crate::serve::open_error;
use crate::{Common, load, refused};

/// In whose name something is done.
#[derive(Args)]
pub struct Whose {
    /// Name or e-mail address of a user [default: the first administrator]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Slug of a workspace that they belong to [default: their first]
    #[arg(long, value_name = "SLUG")]
    workspace: Option<String>,
}

#[derive(Args)]
pub struct Approve {
    /// The code that the device shows
    code: String,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    whose: Whose,
    /// Turn the device away
    #[arg(long)]
    deny: bool,
}

#[derive(Subcommand)]
pub enum Tokens {
    /// List the tokens of everybody; the secrets are kept nowhere
    List {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
    /// Make a token for somebody; prints it once
    Create {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        whose: Whose,
        /// What to call the token in lists
        #[arg(long)]
        name: String,
        /// Days after which it expires [default: never]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: Option<u32>,
        /// What it may be used for, several times; without it whatever its holder may do
        #[arg(long = "scope", value_name = "SCOPE", value_parser = scope)]
        scopes: Vec<Action>,
        /// Project that it is limited to, by UUID or name, several times; without it all of the workspace
        #[arg(long = "project", value_name = "PROJECT")]
        projects: Vec<String>,
        #[arg(long)]
        json: bool,
    },
    /// Make a token worthless, at once
    Revoke {
        /// Its number in the list
        id: i64,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
pub struct SetPassword {
    /// Name or e-mail address of the user
    user: String,
    #[command(flatten)]
    common: Common,
}

fn scope(word: &str) -> Result<Action, String> {
    let words = || Action::ALL.map(Action::word).join(", ");
    Action::parse(word).ok_or_else(|| format!("not one of {}", words()))
}

pub(super) async fn store(common: &Common) -> Result<Store> {
    let data_dir = load(common, Vec::new())?.data_dir()?;
    Store::open_existing(&data_dir).await.map_err(open_error)
}

pub async fn approve(options: Approve) -> Result<()> {
    let store = store(&options.common).await?;
    let who = tokens::named(&store, options.whose.user.as_deref(), options.whose.workspace.as_deref()).await;
    let who = who.map_err(|e| refused(e.message))?;
    let info = tokens::by_operator("holdfast admin approve");
    devices::decide(&store, &who, &info, &options.code, !options.deny, SystemClock.now()).await?;
    if options.deny {
        eprintln!("The device was turned away.");
    } else {
        eprintln!("The device is in, as {} in {}.", who.username, who.workspace_slug);
    }
    Ok(())
}

pub async fn tokens(command: Tokens) -> Result<()> {
    match command {
        Tokens::List { common, json } => list(&store(&common).await?, json).await,
        Tokens::Create { common, whose, name, days, scopes, projects, json } => {
            let store = store(&common).await?;
            let who = tokens::named(&store, whose.user.as_deref(), whose.workspace.as_deref()).await;
            let who = who.map_err(|e| refused(e.message))?;
            let mut limits = if scopes.is_empty() { Limits::default() } else { Limits::to(scopes) };
            if !projects.is_empty() {
                let found = projects::named(&store, &who, &projects).await;
                limits.projects = Some(found.map_err(|e| refused(e.message))?);
            }
            let lifetime = days.map(|days| Duration::from_secs(86_400) * days);
            let token = tokens::make(&store, &who, &name, &limits, lifetime, SystemClock.now()).await?;
            super::print(json, "token", &token);
            Ok(())
        }
        Tokens::Revoke { id, common } => {
            if !tokens::revoke(&store(&common).await?, id, SystemClock.now()).await? {
                bail!("there is no token {id}");
            }
            Ok(())
        }
    }
}

async fn list(store: &Store, json: bool) -> Result<()> {
    let keys = store.api_keys_of_all().await?;
    let time = |at: Option<i64>| at.map(|at| Timestamp(at).to_string());
    if json {
        let items = keys.iter().map(|(user, key)| {
            json!({
                "id": key.id, "user": user, "workspace": key.workspace_slug, "name": key.name, "kind": key.kind,
                "prefix": key.prefix, "limits": key.limits, "created_at": time(Some(key.created_at)),
                "last_used_at": time(key.last_used_at), "expires_at": time(key.expires_at),
            })
        });
        println!("{}", json!({ "items": items.collect::<Vec<_>>() }));
        return Ok(());
    }
    let rows = keys.iter().map(|(user, key)| {
        let words = key.limits.scopes.as_ref().map(|s| s.iter().map(|s| s.word()).collect::<Vec<_>>().join(","));
        vec![
            key.id.to_string(),
            user.clone(),
            key.workspace_slug.clone(),
            key.name.clone(),
            key.prefix.clone(),
            words.unwrap_or_else(|| "all".to_owned()),
            time(key.last_used_at).unwrap_or_else(|| "never".to_owned()),
            time(key.expires_at).unwrap_or_else(|| "never".to_owned()),
        ]
    });
    let head = ["ID", "USER", "WORKSPACE", "NAME", "PREFIX", "SCOPES", "USED", "EXPIRES"];
    println!("{}", table(&head, &rows.collect::<Vec<_>>()));
    Ok(())
}

pub async fn set_password(options: SetPassword) -> Result<()> {
    let store = store(&options.common).await?;
    let mut typed = Zeroizing::new(String::new());
    std::io::stdin().take(4096).read_to_string(&mut typed)?;
    // The end of the line is how it was sent, not part of it.
    let password = typed.strip_suffix('\n').map_or(typed.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    let set = passwords::set(&store, &SystemClock, &options.user, password).await;
    if !set.map_err(|e| refused(e.message))? {
        bail!("nobody is called {}", options.user);
    }
    Ok(())
}
