//! The disk by itself: how long it takes until one page is durable. Every commit waits for that at least.

use std::fs::File;
use std::io::Write;
use std::time::Instant;

use anyhow::Result;

use super::Bench;
use crate::bench::accept::milliseconds;

const SYNCS: usize = 500;

/// Milliseconds of each of several hundred appended pages.
pub fn syncs(bench: &Bench) -> Result<Vec<f64>> {
    let mut file = File::create(bench.scratch("disk")?.join("pages"))?;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        file.write_all(&[7; 4096])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(milliseconds(start));
    }
    Ok(times)
}
