//! Exports: operations with their events and the proof of them, as gzipped lines of JSON.
//!
//! The one rule: it ends with a signature over all of it, or it has no end. Whoever reads half an export knows it.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use holdfast_model::Timestamp;
use holdfast_model::error::Error;
use holdfast_store::export::Export;
use holdfast_trust::chain::Hash;
use holdfast_trust::export::{Check, End, FORMAT, Findings, Header, Line};
use holdfast_trust::walk::Problem;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::Control;

/// Compressed bytes are handed on in pieces of about this size.
const PIECE: usize = 64 * 1024;

impl Control {
    /// Operations accepted at or after `since` and before `until`, as pieces of a gzip file. A receiver that goes away
    /// ends the export.
    pub async fn export(
        &self,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<mpsc::Receiver<Result<Bytes, Error>>, Error> {
        let mut export = self.store.export(since, until).await?;
        let header = Header {
            format: FORMAT,
            public_key: export.public_key().await?,
            since: since.map(Timestamp::micros),
            until: until.map(Timestamp::micros),
            exported_at: self.now().micros(),
            archive: None,
            older: export.older().await?,
        };
        Ok(self.export_pieces(header, export))
    }

    /// What is read of the store, as pieces of a gzip file.
    pub(crate) fn export_pieces(&self, header: Header, mut export: Export) -> mpsc::Receiver<Result<Bytes, Error>> {
        let (sender, receiver) = mpsc::channel(4);
        let control = self.clone();
        tokio::spawn(async move {
            let mut file = File::new(sender);
            if let Err(error) = control.export_write(&mut file, header, &mut export).await {
                tracing::warn!(%error, cause = error.internal, "an export ended early");
                let _ = file.sender.send(Err(error)).await;
            }
        });
        receiver
    }

    async fn export_write(&self, file: &mut File, header: Header, export: &mut Export) -> Result<(), Error> {
        file.line(&Line::Header(header)).await?;
        let (mut operations, mut events) = (0, 0);
        loop {
            let page = export.operations().await?;
            if page.is_empty() {
                break;
            }
            for operation in page {
                operations += 1;
                events += operation.events.len() as u64;
                file.line(&Line::Operation(operation)).await?;
            }
        }
        loop {
            let page = export.audit().await?;
            if page.is_empty() {
                break;
            }
            for row in page {
                file.line(&Line::Audit(row)).await?;
            }
        }
        while let Some(batch) = export.batch().await? {
            file.line(&Line::Checkpoint(batch)).await?;
        }
        let end = End::sign(operations, events, &file.digest(), &self.keys.seal);
        file.line(&Line::End(end)).await?;
        file.finish().await
    }
}

/// Reads a file of an export or an archive through a check.
pub fn check_file(path: &Path, mut check: Check) -> std::io::Result<Findings> {
    let mut lines = BufReader::new(GzDecoder::new(BufReader::new(std::fs::File::open(path)?)));
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
    Ok(findings)
}

/// A gzip file on its way.
struct File {
    gzip: GzEncoder<Vec<u8>>,
    digest: Sha256,
    sender: mpsc::Sender<Result<Bytes, Error>>,
}

impl File {
    fn new(sender: mpsc::Sender<Result<Bytes, Error>>) -> Self {
        Self { gzip: GzEncoder::new(Vec::new(), Compression::default()), digest: Sha256::new(), sender }
    }

    /// Of every line so far.
    fn digest(&self) -> Hash {
        self.digest.clone().finalize().into()
    }

    async fn line(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).map_err(Error::internal)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.gzip.write_all(&text).map_err(Error::internal)?;
        if self.gzip.get_ref().len() >= PIECE {
            let piece = std::mem::take(self.gzip.get_mut());
            self.send(piece).await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Error> {
        self.gzip.try_finish().map_err(Error::internal)?;
        let piece = std::mem::take(self.gzip.get_mut());
        self.send(piece).await
    }

    async fn send(&self, piece: Vec<u8>) -> Result<(), Error> {
        self.sender.send(Ok(piece.into())).await.map_err(|_| Error::internal("nobody reads the export any more"))
    }
}
