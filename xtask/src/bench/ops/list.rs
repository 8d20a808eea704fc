//! Figures 3 and 6: a page of 50 operations with their events over HTTP, however long the past is.
//!
//! The one rule: pages of all pasts and their statements are asked in turn, so that whatever the machine does meanwhile
//! happens to all of them. The statement is the server's own, prepared once, with every column read: the operations of a page, then their events.

use std::collections::VecDeque;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rusqlite::types::ValueRef;
use rusqlite::{OpenFlags, params, params_from_iter};
use serde_json::Value;

use super::cloud::Cloud;
use super::history::Template;
use super::http::Connection;
use super::{Bench, Line};
use crate::bench::accept::milliseconds;
use crate::bench::stats::Samples;

const LIMIT: usize = 50;
const PAGE: &str = "/holdfast/v1/operations?limit=50";
/// The largest page, for walking.
const STRIDE: usize = 500;
const DEEP: usize = 10_000;
/// Clients, and connections of the statement, that a rate is of.
const CLIENTS: usize = 4;
const GOAL_RATE: f64 = 0.5;
const GOAL_P99: f64 = 2.0;
const GOAL_GROWTH: f64 = 1.2;

/// The first page of a past of this length.
pub struct Size {
    pub events: i64,
    pub page: Samples,
    pub statement: Samples,
}

pub struct List {
    pub sizes: Vec<Size>,
    /// The deepest page that was asked for in the longest past, counted from 1.
    pub deep_page: usize,
    pub deep: Samples,
    pub deep_statement: Samples,
    /// Pages per second of several clients in the longest past.
    pub rate: f64,
    pub statement_rate: f64,
    pub page_bytes: usize,
}

pub fn measure(bench: &Bench, template: &Template) -> Result<List> {
    let lengths: &[i64] = if bench.quick { &[10_000, 100_000] } else { &[10_000, 100_000, 1_000_000, 10_000_000] };
    let asked = if bench.quick { 300 } else { 2000 };
    let folders = lengths.iter().map(|events| template.kept(bench, *events)).collect::<Result<Vec<_>>>()?;
    let clouds = folders.iter().map(|folder| Cloud::without_node(&bench.binary, folder));
    let mut clouds = clouds.collect::<Result<Vec<_>>>()?;
    let (Some(longest), Some(folder)) = (clouds.last(), folders.last()) else { bail!("no length was asked for") };
    let file = folder.join("holdfast.db");
    let list = bench.runtime.block_on(async {
        let mut probes = Vec::new();
        for (cloud, folder) in clouds.iter().zip(&folders) {
            probes.push(Probe::new(cloud, &folder.join("holdfast.db"), PAGE.to_owned(), None).await?);
        }
        let (deep_page, path, place) = deep(longest, &Statement::open(&file)?).await?;
        probes.push(Probe::new(longest, &file, path, Some(place)).await?);
        for round in 0..asked + asked / 10 {
            for probe in &mut probes {
                probe.ask(round >= asked / 10).await?;
            }
        }
        let (rate, page_bytes) = rate(longest, asked * 2).await?;
        let statement_rate = statement_rate(&file, asked * 2)?;
        let (deep, deep_statement) = probes.pop().context("a deep page was asked for")?.samples();
        let sizes = lengths.iter().zip(probes).map(|(events, probe)| {
            let (page, statement) = probe.samples();
            Size { events: *events, page, statement }
        });
        let sizes = sizes.collect();
        anyhow::Ok(List { sizes, deep_page, deep, deep_statement, rate, statement_rate, page_bytes })
    });
    clouds.iter_mut().try_for_each(|cloud| cloud.server.stop().map(drop))?;
    list
}

/// A page of one past, and the statement that reads the same.
struct Probe {
    connection: Connection,
    path: String,
    statement: Statement,
    place: Option<Place>,
    page: Vec<f64>,
    bare: Vec<f64>,
}

impl Probe {
    async fn new(cloud: &Cloud, file: &Path, path: String, place: Option<Place>) -> Result<Self> {
        let (connection, statement) = (Connection::open(&cloud.target).await?, Statement::open(file)?);
        Ok(Self { connection, path, statement, place, page: Vec::new(), bare: Vec::new() })
    }

    async fn ask(&mut self, counts: bool) -> Result<()> {
        let start = Instant::now();
        self.connection.length(&self.path).await?;
        let page = milliseconds(start);
        let start = Instant::now();
        self.statement.page(self.place)?;
        let bare = milliseconds(start);
        if counts {
            self.page.push(page);
            self.bare.push(bare);
        }
        Ok(())
    }

    fn samples(self) -> (Samples, Samples) {
        (Samples::new(self.page), Samples::new(self.bare))
    }
}

/// Walks the cursors to page 10,000, or as far as nine tenths of a shorter past, in the largest steps that there are.
async fn deep(cloud: &Cloud, statement: &Statement) -> Result<(usize, String, Place)> {
    let pages = usize::try_from(statement.operations()?)? / LIMIT;
    let wanted = DEEP.min(pages * 9 / 10).max(2);
    let mut skip = (wanted - 1) * LIMIT;
    let mut connection = Connection::open(&cloud.target).await?;
    let mut cursor = String::new();
    let mut last = Value::Null;
    while skip > 0 {
        let step = skip.min(STRIDE);
        let path = format!("/holdfast/v1/operations?limit={step}&cursor={cursor}");
        let page: Value = serde_json::from_slice(&connection.get(&path).await?)?;
        cursor = page["next_cursor"].as_str().context("the list ends early")?.to_owned();
        last = page["items"][step - 1]["id"].clone();
        skip -= step;
    }
    let place = statement.place(last.as_str().context("an operation has an id")?)?;
    Ok((wanted, format!("{PAGE}&cursor={cursor}"), place))
}

async fn rate(cloud: &Cloud, pages: usize) -> Result<(f64, usize)> {
    let start = Instant::now();
    let asked: VecDeque<()> = std::iter::repeat_n((), pages).collect();
    let sizes = cloud.each(CLIENTS, asked, |mut connection, ()| async move {
        let size = connection.length(PAGE).await?;
        Ok((connection, size))
    });
    let sizes = sizes.await?;
    Ok((pages as f64 / start.elapsed().as_secs_f64(), sizes[0]))
}

fn statement_rate(file: &Path, pages: usize) -> Result<f64> {
    let statements = (0..CLIENTS).map(|_| Statement::open(file)).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads = statements
            .into_iter()
            .map(|statement| scope.spawn(move || (0..pages / CLIENTS).try_for_each(|_| statement.page(None))));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a thread of the statement panicked"),
        })
    })?;
    Ok(pages as f64 / start.elapsed().as_secs_f64())
}

/// Time and row of an operation.
type Place = (i64, i64);

struct Statement {
    db: rusqlite::Connection,
    workspace: i64,
    events: String,
}

const OPERATIONS: &str = "SELECT o.id, o.uuid, w.uuid AS workspace_uuid, p.uuid AS project_uuid, o.kind, o.verb,
        o.operation_type, o.plan_version, o.target_state, o.resource_id, o.resource_uuid, o.resource_name,
        v.status AS resource_status, o.compose_hash, o.user_id, o.username, o.email, o.api_key_id, o.client_address,
        o.request_id, o.trace_id, o.diff, o.status, o.direction, o.step, o.sub_operations, o.deadline_at, o.error_code,
        o.error_message, o.error_internal, (SELECT f.uuid FROM operation f WHERE f.id = o.retry_of) AS retry_of,
        o.cancelled_by, o.created_at, o.started_at, o.completed_at, o.updated_at
     FROM operation o
     JOIN workspace w ON w.id = o.workspace_id
     JOIN project p ON p.id = o.project_id
     JOIN vm v ON v.id = o.resource_id
     WHERE o.workspace_id = ?1 AND (o.created_at, o.id) < (?2, ?3)
     ORDER BY o.created_at DESC, o.id DESC LIMIT ?4";

impl Statement {
    fn open(file: &Path) -> Result<Self> {
        let db = rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let places = vec!["?"; LIMIT].join(", ");
        let events = format!(
            "SELECT operation_id, seq, event_type, step, state, at FROM operation_event WHERE operation_id IN ({places})
             ORDER BY operation_id, seq"
        );
        let workspace = db.query_row("SELECT workspace_id FROM operation LIMIT 1", [], |row| row.get(0))?;
        Ok(Self { db, workspace, events })
    }

    fn operations(&self) -> Result<i64> {
        Ok(self.db.query_row("SELECT COUNT(*) FROM operation", [], |row| row.get(0))?)
    }

    fn place(&self, uuid: &str) -> Result<Place> {
        let sql = "SELECT created_at, id FROM operation WHERE uuid = ?1";
        Ok(self.db.query_row(sql, [uuid], |row| Ok((row.get(0)?, row.get(1)?)))?)
    }

    /// Reads a page, the newest without a place, and the row beyond it that says whether there is more.
    fn page(&self, place: Option<Place>) -> Result<()> {
        let (at, id) = place.unwrap_or((i64::MAX, i64::MAX));
        let mut operations = self.db.prepare_cached(OPERATIONS)?;
        let mut rows = operations.query(params![self.workspace, at, id, LIMIT as i64 + 1])?;
        let mut ids: Vec<i64> = Vec::with_capacity(LIMIT + 1);
        while let Some(row) = rows.next()? {
            read_all(row)?;
            ids.push(row.get(0)?);
        }
        ids.truncate(LIMIT);
        let mut events = self.db.prepare_cached(&self.events)?;
        let mut rows = events.query(params_from_iter(&ids))?;
        while let Some(row) = rows.next()? {
            read_all(row)?;
        }
        Ok(())
    }
}

/// Reads every column of a row, as whoever shows it must.
pub fn read_all(row: &rusqlite::Row<'_>) -> Result<()> {
    for column in 0..row.as_ref().column_count() {
        let value: ValueRef<'_> = row.get_ref(column)?;
        black_box(value);
    }
    Ok(())
}

impl List {
    pub fn lines(&self) -> Vec<Line> {
        let (Some(first), Some(last)) = (self.sizes.first(), self.sizes.last()) else { return Vec::new() };
        let (page, statement) = (&last.page, &last.statement);
        let events = last.events;
        vec![
            Line::ratio(
                format!("pages of 50 per second, 4 clients, {events} events"),
                "/s",
                self.rate,
                self.statement_rate,
            )
            .at_least_ratio(GOAL_RATE),
            Line::ratio(format!("page of 50, {events} events, p50"), "ms", page.median(), statement.median()),
            Line::ratio(
                format!("page of 50, {events} events, p99"),
                "ms",
                page.percentile(99.0),
                statement.percentile(99.0),
            )
            .at_most_ratio(GOAL_P99),
            Line::against(format!("page {} against page 1, p50", self.deep_page), self.deep.median(), page.median())
                .at_most_ratio(GOAL_GROWTH),
            Line::against(format!("{events} events against {}, p50", first.events), page.median(), first.page.median())
                .at_most_ratio(GOAL_GROWTH),
        ]
    }
}
