//! The fuzz targets on the compiler that everything else uses: their corpora, and neighbours of them made at random.
//!
//! The one rule: a failure says how to see it again: `HOLDFAST_FUZZ_SEED=.. cargo test -p holdfast --test fuzz`. To look
//! further than this does: `cargo +nightly fuzz run TARGET` in the root of the tree (`cargo install cargo-fuzz`).

#[path = "../../../fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Neighbours of a corpus that are tried, and the time that they may take.
const NEIGHBOURS: u32 = 3000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Pieces that random bytes do not find.
const WORDS: [&[u8]; 16] = [
    b"{\"is\":\"state\"",
    b"\"app_revision\":18446744073709551615",
    b"\"id\":3,\"channel\":1,\"data\":\"",
    b"\n",
    b"\0",
    b"services:\n  a:\n    ports: [\"",
    b"&a [*a, *a]",
    b"<<: *a",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"cvm_",
    b"app_",
    b"2026-01-21",
    b"LATEST",
    b"\xff\xfe",
];

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("readable")).collect()
}

fn neighbour(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut data = corpus[random.random_range(0..corpus.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=data.len());
        let to = random.random_range(at..=data.len().min(at + 16));
        match random.random_range(0..6) {
            0 if at < data.len() => data[at] ^= 1 << random.random_range(0..8),
            1 if at < data.len() => data[at] = random.random(),
            2 => drop(data.drain(at..to)),
            3 => drop(data.splice(at..to, WORDS[random.random_range(0..WORDS.len())].iter().copied())),
            4 => {
                let again = data[at..to].to_vec();
                drop(data.splice(at..at, again));
            }
            _ => {
                let other = &corpus[random.random_range(0..corpus.len())];
                let from = random.random_range(0..=other.len());
                data.truncate(at);
                data.extend(&other[from..]);
            }
        }
    }
    data
}

fn run(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|(target, _)| *target == name).expect("a target");
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "the corpus of {name} is empty");
    for data in &corpus {
        target(data);
    }
    let asked = std::env::var("HOLDFAST_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = asked.unwrap_or_else(rand::random);
    println!("{name}: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    for _ in 0..NEIGHBOURS {
        let data = neighbour(&mut random, &corpus);
        if catch_unwind(AssertUnwindSafe(|| target(&data))).is_err() {
            panic!("{name} failed: HOLDFAST_FUZZ_SEED={seed}; input {}", String::from_utf8_lossy(&data).escape_debug());
        }
        if start.elapsed() > PATIENCE {
            break;
        }
    }
}

#[test]
fn guest_frames() {
    run("guest_frames");
}

#[test]
fn compose_files() {
    run("compose_files");
}

#[test]
fn env_blobs() {
    run("env_blobs");
}

#[test]
fn ids() {
    run("ids");
}

#[test]
fn cursors() {
    run("cursors");
}

#[test]
fn version_headers() {
    run("version_headers");
}

#[test]
fn every_target_is_one_that_the_fuzzer_has() {
    let manifest = include_str!("../../../fuzz/Cargo.toml");
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
