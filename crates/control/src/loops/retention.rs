//! Retention: operations that were over for long enough leave the database for an archive, oldest first.
//!
//! The one rule: the file first. It is whole, on the disk and read again before the record of it is signed, and only what
//! that record names is deleted. A server that is killed anywhere in between goes on where it stopped.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error as IoError, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::retention::{Begun, Leaving};
use holdfast_trust::archive::Archive;
use holdfast_trust::chain::PublicKey;
use holdfast_trust::export::{Check, FORMAT, Header, Span};
use tokio_util::sync::CancellationToken;

use crate::Control;
use crate::export::check_file;

/// After a start, before the first look.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(3600);
/// A retention of days takes whole days (UTC), so that there is one file a day and not one an hour.
const DAY: Duration = Duration::from_secs(86_400);
/// Events per archive: as many as a check holds in memory without being felt.
const MOST_EVENTS: i64 = 200_000;

/// Runs until `stop`; at once over, when operations stay for ever.
pub async fn run(control: Control, folder: PathBuf, stop: CancellationToken) {
    let Some(retention) = control.settings.retention else { return };
    let mut pause = FIRST_PAUSE.min(retention);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = PAUSE.min(retention);
        match stop.run_until_cancelled(control.archive(&folder, cutoff(control.now(), retention))).await {
            Some(Err(error)) => tracing::error!(%error, cause = error.internal, "old operations cannot be archived"),
            Some(Ok(())) => {}
            None => return,
        }
    }
}

/// Operations that were over before leave.
fn cutoff(now: Timestamp, retention: Duration) -> Timestamp {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    let cutoff = now.micros().saturating_sub(micros(retention));
    Timestamp(if retention >= DAY { cutoff - cutoff.rem_euclid(micros(DAY)) } else { cutoff })
}

impl Control {
    /// Archives operations that were over before, into files of this folder, and deletes what lies in an archive.
    pub async fn archive(&self, folder: &Path, before: Timestamp) -> Result<(), Error> {
        self.store.idempotency_expire(self.now()).await?;
        self.sweep().await?;
        loop {
            let leaving = match self.store.archive_begin(before, MOST_EVENTS, self.now()).await? {
                Begun::Leaving(leaving) => leaving,
                Begun::Nothing(held) => {
                    if let Some(held) = held {
                        tracing::warn!(
                            operation = held.operation,
                            status = held.status,
                            "this old operation is not over; it and all after it stay in the database until it is"
                        );
                    }
                    return Ok(());
                }
            };
            let record = self.archive_file(folder, &leaving).await?;
            holdfast_failpoint::hit("archive.written");
            self.store.archive_record(&record, &self.keys.seal.public()).await?;
            tracing::info!(file = record.file, last_position = record.last_position, "old operations were archived");
            self.sweep().await?;
        }
    }

    async fn sweep(&self) -> Result<(), Error> {
        while self.store.archive_sweep().await? {
            holdfast_failpoint::hit("archive.sweeping");
        }
        Ok(())
    }

    /// Makes sure that the file is there, whole and true. Returns the signed record of it.
    async fn archive_file(&self, folder: &Path, leaving: &Leaving) -> Result<Archive, Error> {
        let span = Span {
            first_position: leaving.first_position,
            last_position: leaving.last_position,
            previous_hash: hex::encode(leaving.previous_hash),
            hash: hex::encode(leaving.hash),
            over_before: leaving.over_before,
            elsewhere: leaving.elsewhere.clone(),
        };
        let (file, key) = (folder.join(&leaving.file), self.keys.seal.public());
        let sha256 = if file.exists() {
            // Written before a crash; or something else, which is not for us to delete.
            checked(file, key, span).await?
        } else {
            let draft = folder.join(format!(".{}.part", leaving.file));
            self.archive_write(&draft, leaving, span.clone()).await?;
            let sha256 = checked(draft.clone(), key, span).await?;
            std::fs::rename(&draft, &file).and_then(|()| File::open(folder)?.sync_all()).map_err(failed)?;
            sha256
        };
        let record = Archive {
            first_position: leaving.first_position,
            last_position: leaving.last_position,
            previous_hash: leaving.previous_hash,
            hash: leaving.hash,
            over_before: leaving.over_before,
            ahead: leaving.ahead.clone(),
            file: leaving.file.clone(),
            sha256,
            archived_at: self.now().micros(),
            signature: [0; 64],
        };
        Ok(record.sign(&self.keys.seal))
    }

    async fn archive_write(&self, draft: &Path, leaving: &Leaving, span: Span) -> Result<(), Error> {
        let folder = draft.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft);
        let mut file = options.map_err(failed)?;
        let mut export = self.store.export_leaving(leaving).await?;
        let header = Header {
            format: FORMAT,
            public_key: self.keys.seal.public().to_hex(),
            since: None,
            until: None,
            exported_at: leaving.begun_at,
            archive: Some(span),
            older: export.older().await?,
        };
        let mut pieces = self.export_pieces(header, export);
        while let Some(piece) = pieces.recv().await {
            file.write_all(&piece?).map_err(failed)?;
        }
        tokio::task::spawn_blocking(move || file.sync_all()).await.map_err(Error::internal)?.map_err(failed)
    }
}

/// SHA-256 of the lines of an archive that holds and is the one that is meant.
async fn checked(file: PathBuf, key: PublicKey, span: Span) -> Result<String, Error> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let check = move || check_file(&file, Check::new(Some(key)));
    let findings = tokio::task::spawn_blocking(check).await.map_err(Error::internal)?.map_err(failed)?;
    if let Some(problem) = findings.problem {
        return Err(Error::internal(format!("{name} does not hold, and nothing was deleted: {problem:?}")));
    }
    if findings.archive != Some(span) {
        return Err(Error::internal(format!("{name} is in the way: it is another archive; move it elsewhere")));
    }
    Ok(findings.sha256)
}

fn failed(error: IoError) -> Error {
    Error::internal(format!("the folder of archives: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_leave_whole() {
        let now = Timestamp::parse("2026-11-21T14:30:00Z").expect("a time");
        let before = |seconds| cutoff(now, Duration::from_secs(seconds)).to_string();
        assert_eq!(before(86_400), "2026-11-20T00:00:00.000000Z");
        assert_eq!(before(365 * 86_400), "2025-11-21T00:00:00.000000Z");
        assert_eq!(before(36 * 3600), "2026-11-20T00:00:00.000000Z");
        assert_eq!(before(10), "2026-11-21T14:29:50.000000Z");
    }
}
