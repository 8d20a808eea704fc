//! Figure 5, the chain: how fast a server takes a backlog of events into the signed chain, and what that costs.
//!
//! The one rule: the server does nothing else meanwhile, so all of its processor time is the sealer's, less what a start
//! without a backlog needs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_harness::until;
use rusqlite::{Connection, OpenFlags};

use super::cloud::Cloud;
use super::history::Template;
use super::{Bench, Line};

const LIMIT: Duration = Duration::from_secs(600);

pub struct Seal {
    pub events: i64,
    pub per_second: f64,
    /// Microseconds of processor time per event.
    pub cpu_us: f64,
}

pub fn measure(bench: &Bench, template: &Template) -> Result<Seal> {
    let events = if bench.quick { 50_000 } else { 500_000 };
    let idle = {
        let mut cloud = Cloud::without_node(&bench.binary, &template.kept(bench, 10_000)?)?;
        let cpu = cloud.cpu()?;
        cloud.server.stop()?;
        cpu
    };
    let folder = bench.scratch("seal")?;
    template.generate(&folder, events, false)?;
    let (before, last) = sealed(&folder)?;
    let mut cloud = Cloud::without_node(&bench.binary, &folder)?;
    let (start, first) = (Instant::now(), sealed(&folder)?.0);
    until(LIMIT, "everything is sealed", || Ok((sealed(&folder)?.0 >= last).then_some(())))?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cloud.cpu()? - idle);
    cloud.server.stop()?;
    Ok(Seal {
        events: last - before,
        per_second: (last - first) as f64 / seconds,
        cpu_us: cpu * 1e6 / (last - before) as f64,
    })
}

/// The last sealed position, and the last one.
fn sealed(folder: &Path) -> Result<(i64, i64)> {
    let db = Connection::open_with_flags(folder.join("holdfast.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(Duration::from_secs(5))?;
    let sql = "SELECT COALESCE((SELECT MAX(last_position) FROM checkpoint), 0),
                      COALESCE((SELECT MAX(position) FROM event_position), 0)";
    Ok(db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

impl Seal {
    pub fn lines(&self) -> Vec<Line> {
        vec![
            Line::figure("chain: events sealed per second, nothing else running", "/s", self.per_second),
            Line::figure("chain: processor time per event", "us", self.cpu_us),
        ]
    }
}
