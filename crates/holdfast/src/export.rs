//! `holdfast ops export`, and the check of what it wrote.
//!
//! The one rule: a file of that name is a whole one. It is written beside it and takes the name when it is complete.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use flate2::bufread::GzDecoder;
use holdfast_trust::chain::PublicKey;
use holdfast_trust::export::{Check, Findings};
use holdfast_trust::walk::Problem;

use crate::audit::Verdict;
use crate::client::{Client, block_on};
use crate::{Common, refused};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Operations accepted at or after, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Operations accepted before, RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// File to write, gzipped lines of JSON; standard output when absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let client = Client::new(&options.common)?;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("since", &options.since), ("until", &options.until)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let path = format!("/operations/export?{}", query.finish());
    let Some(out) = &options.out else {
        let mut stdout = std::io::stdout().lock();
        if stdout.is_terminal() {
            return Err(refused("the export is a gzip file: give --out FILE, or send it somewhere"));
        }
        block_on(client.download(&path, |piece| stdout.write_all(piece)))?;
        stdout.flush()?;
        return Ok(ExitCode::SUCCESS);
    };
    let draft = PathBuf::from(format!("{}.part", out.display()));
    let mut file = File::create(&draft).map_err(|e| refused(format!("cannot write {}: {e}", draft.display())))?;
    let done = block_on(client.download(&path, |piece| file.write_all(piece))).and_then(|()| Ok(file.sync_all()?));
    if let Err(error) = done {
        let _ = std::fs::remove_file(&draft);
        return Err(error);
    }
    std::fs::rename(&draft, out).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Checks a file that [`run`] wrote.
pub fn verify(file: &Path, key: Option<PublicKey>) -> Result<Verdict> {
    let opened = File::open(file).map_err(|e| refused(format!("cannot read {}: {e}", file.display())))?;
    let mut lines = BufReader::new(GzDecoder::new(BufReader::new(opened)));
    let mut check = Check::new(key);
    let mut line = String::new();
    let broken = loop {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(0) => break None,
            Ok(_) => check.line(&line),
            Err(error) => break Some(error),
        }
    };
    let mut findings = check.finish();
    if let Some(error) = broken {
        let what = format!("the export: it is no whole gzip file ({error})");
        findings.problem = Some(Problem { position: None, operation: None, seq: None, what });
    }
    Ok(verdict(findings))
}

fn verdict(findings: Findings) -> Verdict {
    let head = findings.head.as_ref();
    Verdict {
        problem: findings.problem,
        events: i64::try_from(findings.sealed).unwrap_or(i64::MAX),
        unsealed: i64::try_from(findings.unsealed).unwrap_or(i64::MAX),
        checkpoints: findings.checkpoints,
        head: head.map_or_else(|| "0:".to_owned(), |head| format!("{}:{}", head.position, head.hash)),
        sealed_at: head.map_or(0, |head| head.sealed_at),
        public_key: findings.public_key,
    }
}
