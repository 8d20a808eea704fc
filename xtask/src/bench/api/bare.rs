//! The server's own statements by themselves: prepared once, every column read, one thread for each core.
//!
//! The one rule: their text is taken out of the server's source, so that the comparison cannot fall behind it.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rusqlite::{Connection, OpenFlags, Params, ToSql, params, params_from_iter};

use super::{CLIENTS, Many, PAGE, Route, pick};
use crate::bench::ops::read_all;

const VMS_SOURCE: &str = include_str!("../../../../crates/store/src/vms.rs");
const TENANCY_SOURCE: &str = include_str!("../../../../crates/store/src/tenancy.rs");
const NODES_SOURCE: &str = include_str!("../../../../crates/store/src/nodes.rs");

/// What one request asks the database.
pub struct Statements {
    db: Connection,
    principal: String,
    one: String,
    count: String,
    page: String,
    ports: &'static str,
    ports_end: &'static str,
    images: &'static str,
}

/// The string literal of `source` that begins with `start`.
fn literal(source: &'static str, start: &str) -> Result<&'static str> {
    let quoted = format!("\"{start}");
    let at = source.find(&quoted).with_context(|| format!("no statement begins with {start:?} any more"))?;
    let text = &source[at + 1..];
    text.find('"').map(|end| &text[..end]).context("a statement that does not end")
}

impl Statements {
    fn open(file: &Path) -> Result<Self> {
        let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        db.set_prepared_statement_cache_capacity(64);
        let vms = literal(VMS_SOURCE, "SELECT v.id, v.uuid, v.workspace_id,")?;
        let living = " WHERE v.deleted_at IS NULL AND v.workspace_id = ?1";
        Ok(Self {
            db,
            principal: literal(TENANCY_SOURCE, "SELECT u.id AS user_id,")?.to_owned(),
            one: format!("{vms} WHERE v.workspace_id = ?1 AND v.uuid = ?2 ORDER BY v.id LIMIT 2"),
            count: format!("{}{living}", literal(VMS_SOURCE, "SELECT COUNT(*) FROM vm v")?),
            page: format!("{vms}{living} ORDER BY v.id DESC LIMIT ?2 OFFSET ?3"),
            ports: literal(VMS_SOURCE, "SELECT vm_id, protocol, host_address,")?,
            ports_end: literal(VMS_SOURCE, ") ORDER BY vm_id, vm_port")?,
            images: literal(NODES_SOURCE, "SELECT id, images FROM node")?,
        })
    }

    /// Requests per second of as many threads as there are cores, each with a connection of its own.
    pub fn rate(file: &Path, many: Many, route: Route, seed: u64, time: Duration) -> Result<f64> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(CLIENTS);
        let hashes: Vec<String> = (0..many.workspaces).map(|workspace| many.key_hash(workspace)).collect();
        let statements = (0..threads).map(|_| Self::open(file)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let asked = std::thread::scope(|scope| {
            let running: Vec<_> = statements
                .into_iter()
                .enumerate()
                .map(|(thread, statements)| {
                    let hashes = &hashes;
                    scope.spawn(move || {
                        let mut asked = 0u64;
                        while start.elapsed() < time {
                            let number = pick(many, seed, asked * threads as u64 + thread as u64);
                            let hash = &hashes[usize::try_from(many.workspace_of(number))?];
                            statements.request(route, hash, &many.uuid(number))?;
                            asked += 1;
                        }
                        anyhow::Ok(asked)
                    })
                })
                .collect();
            running.into_iter().try_fold(0, |sum, thread| match thread.join() {
                Ok(asked) => Ok(sum + asked?),
                Err(_) => bail!("a thread of the statements panicked"),
            })
        })?;
        Ok(asked as f64 / start.elapsed().as_secs_f64())
    }

    fn request(&self, route: Route, hash: &str, uuid: &str) -> Result<()> {
        let workspace = self.first(&self.principal, params![hash, 0], "workspace_id")?;
        let workspace = workspace.first().context("a key of a workspace")?;
        let rows = match route {
            Route::Details => self.read(&self.one, params![workspace, uuid])?,
            Route::Page => {
                self.read(&self.count, params![workspace])?;
                self.read(&self.page, params![workspace, PAGE, 0])?
            }
        };
        let expected = if route == Route::Page { usize::try_from(PAGE)? } else { 1 };
        anyhow::ensure!(rows.len() == expected, "{} CVMs instead of {expected}", rows.len());
        let ids: Vec<i64> = rows.iter().map(|(vm, _)| *vm).collect();
        let mut nodes: Vec<i64> = rows.iter().map(|(_, node)| *node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        self.all(&format!("{}{}{}", self.ports, places(ids.len()), self.ports_end), params_from_iter(&ids))?;
        if self.images.ends_with('(') {
            self.all(&format!("{}{})", self.images, places(nodes.len())), params_from_iter(&nodes))
        } else {
            self.all(self.images, [])
        }
    }

    /// Key and node of the rows, after all of their columns were read. A count has neither.
    fn read(&self, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<(i64, i64)>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let node = statement.column_index("node_id").ok();
        let mut rows = statement.query(params)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            read_all(row)?;
            if let Some(node) = node {
                all.push((row.get(0)?, row.get(node)?));
            }
        }
        Ok(all)
    }

    fn first(&self, sql: &str, params: &[&dyn ToSql], column: &str) -> Result<Vec<i64>> {
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            read_all(row)?;
            all.push(row.get(column)?);
        }
        Ok(all)
    }

    fn all(&self, sql: &str, params: impl Params) -> Result<()> {
        let mut statement = self.db.prepare_cached(sql)?;
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            read_all(row)?;
            black_box(row.as_ref());
        }
        Ok(())
    }
}

fn places(count: usize) -> String {
    vec!["?"; count].join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statements_are_found_in_the_servers_source() {
        let text = |source, start: &str| literal(source, start).unwrap();
        assert!(text(VMS_SOURCE, "SELECT v.id, v.uuid, v.workspace_id,").contains("LEFT JOIN vm_observed o"));
        assert_eq!(text(VMS_SOURCE, "SELECT COUNT(*) FROM vm v"), "SELECT COUNT(*) FROM vm v");
        assert!(text(VMS_SOURCE, "SELECT vm_id, protocol, host_address,").ends_with("vm_id IN ("));
        assert!(text(TENANCY_SOURCE, "SELECT u.id AS user_id,").contains("k.hash = $1"));
        assert!(text(NODES_SOURCE, "SELECT id, images FROM node").contains("images"));
        assert!(literal(VMS_SOURCE, "SELECT what is not there").is_err());
    }
}
