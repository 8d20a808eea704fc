//! `holdfast audit`: is the record the one that was written? Offline; changes nothing, and only `log` needs a server.
//!
//! Exit codes: 0 the chain holds, 1 it does not (the first bad row is named), 2 there is nothing that can be checked.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use holdfast_model::Timestamp;
use holdfast_store::verify::{Known, Ledger, Problem, PublicKey, Report};
use serde_json::json;

use crate::client::block_on;
use crate::serve::open_error;
use crate::{Common, export, load, refused};

#[derive(Subcommand)]
pub enum Command {
    /// Check that no operation or event was altered, removed or reordered
    Verify(Verify),
    /// Who asked for what: requests that changed something or were refused, newest first; needs a server
    Log(crate::lists::AuditLog),
    /// Print the public key that checkpoints are signed for; keep it where the server's operator cannot change it
    PublicKey {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    common: Common,
    /// The database itself: a path, or sqlite://PATH
    #[arg(long, value_name = "URL", conflicts_with = "data_dir")]
    database_url: Option<String>,
    /// A file of `holdfast ops export`, an archive, or a folder of archives; may be given several times
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data_dir", "database_url"])]
    export: Vec<PathBuf>,
    /// Check signatures with this key, not with the one that the database names
    #[arg(long, value_name = "HEX")]
    public_key: Option<String>,
    /// The chain must have had this hash at this position, from the report of an earlier check
    #[arg(long, value_name = "POSITION:HASH")]
    head: Option<String>,
    #[arg(long)]
    json: bool,
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Verify(options) => {
            let known = known(&options)?;
            if !options.export.is_empty() {
                let report = export::verify(&options.export, &known)?;
                print(&report, options.json, known.public_key.is_some());
                return Ok(ExitCode::from(u8::from(report.problem.is_some())));
            }
            let file = database(&options)?;
            let report = block_on(async {
                let ledger = Ledger::open(&file).await.map_err(open_error)?;
                Ok(Verdict::of(ledger.verify(&known).await?))
            })?;
            let left = report.archived.as_ref().map_or(0, |archived| archived.last_position);
            if let Some((position, _)) = known.head.filter(|(at, _)| *at < left && report.problem.is_none()) {
                return Err(refused(format!(
                    "position {position} is in an archive now: check its file with --export, and the chain from {left} on here"
                )));
            }
            print(&report, options.json, known.public_key.is_some());
            Ok(ExitCode::from(u8::from(report.problem.is_some())))
        }
        Command::Log(options) => crate::lists::audit_log(options),
        Command::PublicKey { common } => {
            let file = load(&common, Vec::new())?.data_dir()?.join("holdfast.db");
            let key = block_on(async {
                let ledger = Ledger::open(&file).await.map_err(open_error)?;
                Ok(ledger.public_key().await?)
            })?;
            println!("{}", key.ok_or_else(|| refused("the database names no public key; start the server once"))?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What both kinds of check say.
#[derive(Default)]
pub struct Verdict {
    pub problem: Option<Problem>,
    pub events: i64,
    pub unsealed: i64,
    pub checkpoints: u64,
    /// Audited requests in archives.
    pub audit: u64,
    /// The first position of an unbroken part of the chain. `None` for an export, which has parts of it.
    pub begins_at: Option<i64>,
    /// What left the database before.
    pub archived: Option<Archived>,
    /// `POSITION:HASH` of the newest checkpoint.
    pub head: String,
    /// Microseconds since 1970; 0 when nothing is sealed.
    pub sealed_at: i64,
    pub public_key: String,
}

/// Where older operations are.
pub struct Archived {
    pub last_position: i64,
    /// Microseconds since 1970.
    pub over_before: i64,
    /// Microseconds since 1970; an export does not know it.
    pub archived_at: Option<i64>,
    pub file: String,
}

impl Verdict {
    fn of(report: Report) -> Self {
        let archived = report.archive.map(|archive| Archived {
            last_position: archive.last_position,
            over_before: archive.over_before,
            archived_at: Some(archive.archived_at),
            file: archive.file,
        });
        Self {
            problem: report.problem,
            events: report.events,
            unsealed: report.unsealed,
            checkpoints: report.checkpoints,
            audit: 0,
            begins_at: Some(archived.as_ref().map_or(1, |archived| archived.last_position + 1)),
            archived,
            head: format!("{}:{}", report.sealed, report.hash),
            sealed_at: report.sealed_at,
            public_key: report.public_key,
        }
    }
}

fn database(options: &Verify) -> Result<PathBuf> {
    let Some(url) = &options.database_url else {
        return Ok(load(&options.common, Vec::new())?.data_dir()?.join("holdfast.db"));
    };
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
    if path.contains("://") {
        return Err(refused(format!("{url} is not a path and not sqlite://PATH")));
    }
    Ok(Path::new(path.split('?').next().unwrap_or(path)).to_owned())
}

fn known(options: &Verify) -> Result<Known> {
    let public_key = options.public_key.as_deref().map(PublicKey::parse).transpose().map_err(refused)?;
    let head = match &options.head {
        None => None,
        Some(text) => {
            let wrong = || refused(format!("\"{text}\" is not POSITION:HASH as a report prints it"));
            let (position, hash) = text.split_once(':').ok_or_else(wrong)?;
            let position: i64 = position.parse().map_err(|_| wrong())?;
            let digits = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
            if position < 1 || !digits {
                return Err(wrong());
            }
            Some((position, hash.to_ascii_lowercase()))
        }
    };
    Ok(Known { public_key, head })
}

fn print(report: &Verdict, as_json: bool, key_given: bool) {
    if as_json {
        let problem = report
            .problem
            .as_ref()
            .map(|p| json!({ "position": p.position, "operation_id": p.operation, "seq": p.seq, "message": p.what }));
        let sealed_at = (report.sealed_at > 0).then_some(Timestamp(report.sealed_at));
        let archived = report.archived.as_ref().map(|archived| {
            json!({
                "last_position": archived.last_position,
                "over_before": Timestamp(archived.over_before),
                "archived_at": archived.archived_at.map(Timestamp),
                "file": archived.file,
            })
        });
        println!(
            "{}",
            json!({
                "holds": report.problem.is_none(),
                "problem": problem,
                "sealed_events": report.events,
                "sealed_at": sealed_at,
                "unsealed_events": report.unsealed,
                "checkpoints": report.checkpoints,
                "begins_at": report.begins_at,
                "archived": archived,
                "audit_rows": report.audit,
                "head": report.head,
                "public_key": report.public_key,
                "public_key_given": key_given,
            })
        );
        return;
    }
    match &report.problem {
        None => println!("The chain holds: {} events under {} checkpoints.", report.events, report.checkpoints),
        Some(problem) => println!("The chain does not hold. First problem: {}.", describe(problem)),
    }
    if let Some(position) = report.begins_at {
        println!("  begins at       position {position}");
    }
    if let Some(archived) = &report.archived {
        let date = archived.archived_at.map(|at| format!(" on {}", Timestamp(at))).unwrap_or_default();
        let before = Timestamp(archived.over_before);
        println!(
            "  archived        up to position {}, over before {before}; left{date} in {}",
            archived.last_position, archived.file
        );
    }
    if report.audit > 0 {
        println!("  audit rows      {}", report.audit);
    }
    println!("  not sealed yet  {}", report.unsealed);
    println!("  head            {}", report.head);
    let source = if key_given { "as given" } else { "as it says itself; compare it with the one you kept" };
    println!("  public key      {} ({source})", report.public_key);
}

fn describe(problem: &Problem) -> String {
    let parts = [
        problem.position.map(|position| format!("position {position}")),
        problem.operation.as_ref().map(|operation| format!("operation {operation}")),
        problem.seq.map(|seq| format!("event {seq}")),
    ];
    let place: Vec<String> = parts.into_iter().flatten().collect();
    if place.is_empty() {
        return problem.what.clone();
    }
    format!("{}: {}", place.join(", "), problem.what)
}
