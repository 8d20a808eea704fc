//! `holdfast admin users link`, `unlink` and `identities`: who users are at the identity provider, from the data folder itself.
//! Works beside a running server and without one.

use anyhow::{Result, bail};
use clap::Args;
use holdfast_control::SystemClock;
use holdfast_control::oidc::people;
use holdfast_model::Timestamp;
use serde_json::json;

use super::credentials::store;
use crate::client::table;
use crate::{Common, load, refused};

#[derive(Args)]
pub struct Link {
    /// Name or e-mail address of the user
    user: String,
    /// Who they are at the provider; the page that refuses a login shows it
    #[arg(long, value_name = "SUBJECT")]
    subject: String,
    /// URL of the provider [default: oidc_issuer of the configuration]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub struct Unlink {
    /// Name or e-mail address of the user
    user: String,
    /// URL of the provider [default: all of them]
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub struct Identities {
    /// Name or e-mail address of the user
    user: String,
    #[command(flatten)]
    common: Common,
    #[arg(long)]
    json: bool,
}

pub async fn link(options: Link) -> Result<()> {
    let config = load(&options.common, Vec::new())?;
    let issuer = options.issuer.as_deref().or(config.oidc_issuer());
    let issuer = issuer.ok_or_else(|| refused("no oidc_issuer is configured: name it with --issuer"))?;
    let store = store(&options.common).await?;
    let linked = people::link(&store, &SystemClock, &options.user, issuer, &options.subject).await;
    linked.map_err(|e| refused(e.message))
}

pub async fn unlink(options: Unlink) -> Result<()> {
    let store = store(&options.common).await?;
    let removed = people::unlink(&store, &SystemClock, &options.user, options.issuer.as_deref()).await;
    if removed.map_err(|e| refused(e.message))? == 0 {
        bail!("{} has no such identity", options.user);
    }
    Ok(())
}

pub async fn identities(options: Identities) -> Result<()> {
    let store = store(&options.common).await?;
    let user = store.user_of_login(&options.user).await?;
    let user = user.ok_or_else(|| refused(format!("nobody is called {}", options.user)))?;
    let time = |at: Option<i64>| at.map(|at| Timestamp(at).to_string());
    let all = store.identities(user).await?;
    if options.json {
        let items = all.iter().map(|identity| {
            json!({
                "issuer": identity.issuer, "subject": identity.subject, "created_at": time(Some(identity.created_at)),
                "last_used_at": time(identity.last_used_at),
            })
        });
        println!("{}", json!({ "items": items.collect::<Vec<_>>() }));
        return Ok(());
    }
    let rows = all.iter().map(|identity| {
        let used = time(identity.last_used_at).unwrap_or_else(|| "never".to_owned());
        vec![identity.issuer.clone(), identity.subject.clone(), Timestamp(identity.created_at).to_string(), used]
    });
    println!("{}", table(&["ISSUER", "SUBJECT", "LINKED", "USED"], &rows.collect::<Vec<_>>()));
    Ok(())
}
