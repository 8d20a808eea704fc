//! What must not be there any more: files, rows, processes, secrets in files.
//!
//! The one rule: look at the disk, the database and the process table themselves, not at what the server says of them.

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_harness::process;

use crate::cloud::Cloud;
use crate::truth;

/// Fails when anything of the deleted CVM is left on the node or held in the database.
pub fn assert_none(cloud: &Cloud, cvm: &str) {
    let files = paths_naming(cloud.folder.path(), cvm);
    assert!(files.is_empty(), "left on disk: {files:?}");
    assert_eq!(held(cloud), Held::default(), "held in the database after every CVM was deleted");
    let vms = process::vms_of(cloud.folder.path());
    assert!(vms.is_empty(), "left running: {vms:?}");
}

/// Rows that hold something for a living CVM or a running operation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub ports: i64,
    pub names: i64,
    pub claims: i64,
    pub due_operations: i64,
    pub living: i64,
}

pub fn held(cloud: &Cloud) -> Held {
    let counts = [
        "SELECT count(*) FROM vm_port",
        "SELECT count(*) FROM vm_name",
        "SELECT count(*) FROM operation_resource WHERE held",
        "SELECT count(*) FROM operation WHERE wake_at IS NOT NULL",
        "SELECT count(*) FROM vm WHERE deleted_at IS NULL",
    ];
    let [ports, names, claims, due_operations, living] = numbers(&cloud.data_dir().join("holdfast.db"), counts);
    Held { ports, names, claims, due_operations, living }
}

/// One number out of a database that a server may be using.
pub fn number(database: &Path, sql: &'static str) -> i64 {
    numbers(database, [sql])[0]
}

/// A number for each of the queries.
pub fn numbers<const N: usize>(database: &Path, queries: [&'static str; N]) -> [i64; N] {
    truth::ask(database, async |connection| {
        let mut numbers = [0; N];
        for (number, sql) in numbers.iter_mut().zip(queries) {
            let asked = sqlx::query_scalar(sql).fetch_one(&mut *connection).await;
            *number = asked.unwrap_or_else(|e| panic!("{sql}: {e}"));
        }
        numbers
    })
}

/// Files and folders below `folder` whose path holds the uuid, with or without dashes.
pub fn paths_naming(folder: &Path, uuid: &str) -> Vec<PathBuf> {
    let bare = uuid.replace('-', "");
    let mut found = Vec::new();
    walk(folder, &mut |path| {
        if path.to_string_lossy().replace('-', "").contains(&bare) {
            found.push(path.to_owned());
        }
    });
    found
}

/// Files with this name below a folder.
pub fn files_named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(folder, &mut |path| {
        if path.file_name().is_some_and(|n| n == name) {
            found.push(path.to_owned());
        }
    });
    found
}

/// Files below the folders that hold one of the byte strings, also across the boundaries of reads.
pub fn files_holding(folders: &[PathBuf], needles: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        walk(folder, &mut |path| {
            if path.is_file() && holds(path, needles) {
                found.push(path.to_owned());
            }
        });
    }
    found
}

fn holds(path: &Path, needles: &[Vec<u8>]) -> bool {
    use std::io::Read;
    let Ok(mut file) = fs::File::open(path) else { return false };
    let overlap = needles.iter().map(Vec::len).max().unwrap_or(1);
    let mut buffer = vec![0; 4 * 1024 * 1024];
    let mut kept = 0;
    loop {
        let Ok(read) = file.read(&mut buffer[kept..]) else { return false };
        if read == 0 {
            return false;
        }
        let filled = kept + read;
        if needles.iter().any(|needle| contains(&buffer[..filled], needle)) {
            return true;
        }
        kept = overlap.min(filled);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return false };
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        see(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, see);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let long = [vec![b'x'; 4 * 1024 * 1024 - 3], b"needle".to_vec()].concat();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/one"), long).unwrap();
        fs::write(folder.path().join("two"), b"nee dle").unwrap();
        let found = files_holding(&[folder.path().to_owned()], &[b"needle".to_vec()]);
        assert_eq!(found, [folder.path().join("sub/one")]);
    }
}
