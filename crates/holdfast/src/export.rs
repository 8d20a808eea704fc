//! `holdfast ops export`, and the check of what it and the archive wrote.
//!
//! The one rule: a file of that name is a whole one. It is written beside it and takes the name when it is complete.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use holdfast_control::export::check_file;
use holdfast_store::verify::{Known, Problem, PublicKey};
use holdfast_trust::export::{Check, Older, Span};

use crate::audit::{Archived, Verdict};
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

/// Checks exports and archives. Archives must follow each other without a gap.
pub fn verify(paths: &[PathBuf], known: &Known) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut spans: Vec<(Span, String)> = Vec::new();
    let (mut key, mut seen, mut newest) = (known.public_key, false, 0);
    for path in files(paths)? {
        let check = Check::new(key).known(known.head.clone());
        let findings = check_file(&path, check).map_err(|e| refused(format!("cannot read {}: {e}", path.display())))?;
        // Files of different keys are no one chain.
        key = key.or_else(|| PublicKey::parse(&findings.public_key).ok());
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        verdict.events += i64::try_from(findings.sealed).unwrap_or(i64::MAX);
        verdict.unsealed += i64::try_from(findings.unsealed).unwrap_or(i64::MAX);
        verdict.checkpoints += findings.checkpoints;
        verdict.audit += findings.audit;
        verdict.public_key = findings.public_key;
        seen |= findings.known_seen;
        if let Some(mut problem) = findings.problem {
            problem.what = format!("{name}: {}", problem.what);
            verdict.problem = Some(problem);
            return Ok(verdict);
        }
        if let Some(head) = findings.head.filter(|head| head.position > newest) {
            newest = head.position;
            verdict.head = format!("{}:{}", head.position, head.hash);
            verdict.sealed_at = head.sealed_at;
        }
        match (findings.archive, findings.older) {
            (Some(span), _) => spans.push((span, name)),
            (None, Some(older)) => verdict.archived = Some(archived(older)),
            (None, None) => {}
        }
    }
    if verdict.head.is_empty() {
        verdict.head = "0:".to_owned();
    }
    spans.sort_by_key(|(span, _)| span.first_position);
    verdict.begins_at = spans.first().map(|(span, _)| span.first_position);
    verdict.problem = spans.windows(2).find_map(|pair| unconnected(&pair[0].0, &pair[1].0, &pair[1].1));
    match &known.head {
        Some((position, _)) if !seen && verdict.problem.is_none() => {
            Err(refused(format!("no file has position {position}; give the one that has, or check the database")))
        }
        _ => Ok(verdict),
    }
}

/// Why the second archive does not follow the first one.
fn unconnected(before: &Span, after: &Span, name: &str) -> Option<Problem> {
    let expected = before.last_position + 1;
    if after.first_position != expected {
        let what = format!("the archive that begins here is missing; the next one is {name}");
        return Some(Problem::at(expected, what));
    }
    (after.previous_hash != before.hash)
        .then(|| Problem::at(expected, format!("{name} does not continue the archive before it")))
}

/// Files, and in the place of a folder the archives in it.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let unreadable = |e| refused(format!("cannot read {}: {e}", path.display()));
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("operations-") && name.ends_with(".ndjson.gz") {
                files.push(entry.path());
            }
        }
    }
    if files.is_empty() {
        return Err(refused("there is no archive in that folder"));
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn archived(older: Older) -> Archived {
    let Older { last_position, over_before, file } = older;
    Archived { last_position, over_before, archived_at: None, file }
}
