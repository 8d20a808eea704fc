//! Nothing that is sealed can be changed, removed or moved without being named.

mod world;

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_engine::{Deadlines, decide, ops};
use holdfast_model::Timestamp;
use holdfast_model::node::Phase;
use holdfast_store::chain::Sealing;
use holdfast_store::operations::{operation_load, operation_write};
use holdfast_store::verify::{Known, Ledger, Report};
use holdfast_store::{commit, desired};
use holdfast_trust::chain::{PublicKey, SealKey};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};
use world::{NOW, World, report};

/// Columns of `operation` that nothing binds: how its execution is scheduled, not what it is.
const SCHEDULE: [&str; 7] =
    ["wake_at", "lease_token", "lease_owner", "lease_until", "attempts", "parked", "status_claimed"];

fn key() -> SealKey {
    SealKey::from_seed(&[3; 32])
}

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

async fn work(world: &World, now: Timestamp) {
    for claimed in world.store.operations_claim("w", Duration::from_secs(10), 64, now).await.expect("a claim") {
        let mut tx = world.store.begin().await.expect("a transaction");
        let loaded = operation_load(&mut tx, &claimed, i64::MAX / 2, now).await.expect("a load");
        let (record, view) = loaded.expect("the lease is held");
        let plan = ops::find(&claimed.operation_type, 1).expect("a plan");
        let decision = decide(plan, &record, &view, &Deadlines::default(), now);
        assert!(operation_write(&mut tx, &claimed, &decision, now).await.expect("a write"));
        commit(tx).await.expect("a commit");
    }
}

async fn seal_all(world: &World, limit: i64) {
    while world.store.events_seal(&key(), limit, at(100)).await.expect("a round") != Sealing::Nothing {}
}

/// Two creates, the first of which is done, the second of which failed; and a third that has only begun.
async fn sealed_world(limit: i64) -> World {
    let world = World::new().await;
    world.store.public_key_keep(&key().public()).await.expect("a key");
    for (name, port) in [("one", 20_000), ("two", 20_001)] {
        world.create(name, port).await.expect("a VM");
    }
    work(&world, at(1)).await;
    let page = world.store.desired_page(world.node, 0).await.expect("a page");
    let mut tx = world.store.begin().await.expect("a transaction");
    let uuid = page.vms[0].uuid.to_string();
    desired::reports_write(&mut tx, world.node, &[report(&uuid, 1, Phase::Running)], at(2)).await.expect("a report");
    commit(tx).await.expect("a commit");
    work(&world, at(3)).await;
    // The other one runs into its deadlines until it is undone.
    work(&world, at(10_000)).await;
    work(&world, at(20_000)).await;
    world.create("three", 20_002).await.expect("a VM");
    seal_all(&world, limit).await;
    world
}

/// The database of a world whose server has stopped, to be damaged in copies.
struct Damaged {
    world: World,
    original: PathBuf,
    copies: usize,
}

impl Damaged {
    async fn new() -> Self {
        let world = sealed_world(4).await;
        world.store.close().await;
        let original = world.folder.path().join("holdfast.db");
        Self { world, original, copies: 0 }
    }

    async fn rows(&self, sql: &str) -> Vec<sqlx::sqlite::SqliteRow> {
        let mut db = open(&self.original).await;
        sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(&mut db).await.expect("rows")
    }

    /// What a check says after these statements; `None` when the database refused them.
    async fn after(&mut self, statements: &[String]) -> Option<Report> {
        self.copies += 1;
        let copy = self.world.folder.path().join(format!("copy-{}.db", self.copies));
        std::fs::copy(&self.original, &copy).expect("a copy");
        let mut db = open(&copy).await;
        for statement in statements {
            sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut db).await.ok()?;
        }
        db.close().await.expect("closed");
        let report = check(&copy, &Known::default()).await;
        std::fs::remove_file(&copy).expect("removed");
        Some(report)
    }
}

async fn open(file: &Path) -> SqliteConnection {
    let mut db = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
    for pragma in ["PRAGMA foreign_keys = OFF", "PRAGMA synchronous = OFF"] {
        sqlx::query(pragma).execute(&mut db).await.expect("a pragma");
    }
    db
}

async fn check(file: &Path, known: &Known) -> Report {
    Ledger::open(file).await.expect("a ledger").verify(known).await.expect("a report")
}

#[tokio::test]
async fn a_chain_holds_while_the_server_runs_and_after_it_stopped() {
    let world = sealed_world(4).await;
    let file = world.folder.path().join("holdfast.db");
    let events = world.count("operation_event").await;
    assert!(events > 12, "{events}");
    let report = check(&file, &Known::default()).await;
    assert_eq!((report.problem, report.sealed, report.unsealed), (None, events, 0));
    assert_eq!(report.checkpoints, (events as u64).div_ceil(4));
    assert_eq!(report.public_key, key().public().to_hex());

    world.create("four", 20_003).await.expect("a VM");
    let later = check(&file, &Known::default()).await;
    assert_eq!((later.problem, later.sealed, later.unsealed), (None, events, 1));
    seal_all(&world, 1000).await;
    let head = Some((report.sealed, report.hash));
    world.store.close().await;
    let stopped = check(&file, &Known { head: head.clone(), ..Known::default() }).await;
    assert_eq!((stopped.problem, stopped.sealed, stopped.unsealed), (None, events + 1, 0));
    let left: Vec<_> =
        std::fs::read_dir(world.folder.path()).expect("the folder").flatten().map(|f| f.file_name()).collect();
    assert_eq!(left, ["holdfast.db"], "a check leaves nothing behind");

    // Another key's signatures are not these; another chain is not this one.
    let other = SealKey::from_seed(&[4; 32]).public();
    let known = |public_key: Option<PublicKey>, head| Known { public_key, head };
    assert!(check(&file, &known(Some(other), None)).await.problem.is_some());
    assert_eq!(check(&file, &known(Some(key().public()), head)).await.problem, None);
    let wrong = Some((2, "00".repeat(32)));
    assert_eq!(check(&file, &known(None, wrong)).await.problem.expect("a problem").position, Some(2));
}

#[tokio::test]
async fn every_column_of_an_operation_that_is_over_is_bound() {
    let mut damaged = Damaged::new().await;
    let columns = damaged.rows("SELECT name FROM pragma_table_info('operation')").await;
    let operations = damaged
        .rows(
            "SELECT o.id, o.uuid, o.status, MAX(e.seq) FROM operation o JOIN operation_event e ON e.operation_id = o.id
             GROUP BY o.id ORDER BY o.id",
        )
        .await;
    let statuses: Vec<String> = operations.iter().map(|o| o.get(2)).collect();
    assert_eq!(statuses, ["done", "failed", "pending"]);
    for operation in &operations[..2] {
        let (id, uuid, last): (i64, String, i64) = (operation.get(0), operation.get(1), operation.get(3));
        for column in &columns {
            let column: String = column.get(0);
            let mut refused = 0;
            let changes = match column.as_str() {
                "id" => ["id + 1000".to_owned(), "-id".to_owned()],
                _ => [format!("COALESCE({column}, '') || 'x'"), format!("NULLIF({column}, {column})")],
            };
            for change in changes {
                let was_null = damaged.rows(&format!("SELECT {column} IS NULL FROM operation WHERE id = {id}")).await
                    [0]
                .get::<bool, _>(0);
                if was_null && change.starts_with("NULLIF") {
                    continue;
                }
                let statement = format!("UPDATE operation SET {column} = {change} WHERE id = {id}");
                let Some(report) = damaged.after(std::slice::from_ref(&statement)).await else {
                    refused += 1;
                    continue;
                };
                if SCHEDULE.contains(&column.as_str()) {
                    assert_eq!(report.problem, None, "{statement}");
                    continue;
                }
                let problem = report.problem.unwrap_or_else(|| panic!("unseen: {statement}"));
                assert_eq!(problem.operation.as_deref(), Some(uuid.as_str()), "{statement}: {problem:?}");
                let seq = problem.seq.expect("an event");
                assert!(seq == 1 || seq == last, "{statement}: {problem:?}");
            }
            assert!(refused < 2, "{column} was never changed");
        }
    }
}

#[tokio::test]
async fn every_column_of_an_event_is_bound() {
    let mut damaged = Damaged::new().await;
    let columns = damaged.rows("SELECT name FROM pragma_table_info('operation_event')").await;
    let events = damaged
        .rows(
            "SELECT e.id, o.uuid, e.seq, p.position FROM operation_event e JOIN operation o ON o.id = e.operation_id
             JOIN event_position p ON p.event_id = e.id ORDER BY p.position",
        )
        .await;
    for event in events {
        let (id, uuid, seq): (i64, String, i64) = (event.get(0), event.get(1), event.get(2));
        for column in &columns {
            let column: String = column.get(0);
            let change = match column.as_str() {
                "id" | "operation_id" | "seq" => format!("{column} + 1000"),
                _ => format!("COALESCE({column}, '') || 'x'"),
            };
            let statement = format!("UPDATE operation_event SET {column} = {change} WHERE id = {id}");
            let report = damaged.after(std::slice::from_ref(&statement)).await.expect("no rule against it");
            let problem = report.problem.unwrap_or_else(|| panic!("unseen: {statement}"));
            assert_eq!(problem.operation.as_deref(), Some(uuid.as_str()), "{statement}: {problem:?}");
            let named = problem.seq.expect("an event");
            // An event that leaves its operation makes the one before it the last, which it was not.
            let moved = matches!(column.as_str(), "operation_id" | "seq") && named < seq;
            assert!(named == seq || moved, "{statement}: {problem:?}");
        }
    }
}

#[tokio::test]
async fn removed_and_moved_rows_are_named() {
    let mut damaged = Damaged::new().await;
    let last = damaged.rows("SELECT MAX(position), MAX(event_id) FROM event_position").await[0].get::<i64, _>(0);
    for position in 1..=last {
        let event = format!("(SELECT event_id FROM event_position WHERE position = {position})");
        for statements in [
            vec![format!("DELETE FROM operation_event WHERE id = {event}")],
            vec![
                format!("DELETE FROM operation_event WHERE id = {event}"),
                format!("DELETE FROM event_position WHERE position = {position}"),
            ],
            vec![format!("DELETE FROM event_position WHERE position = {position}")],
            vec![format!("DELETE FROM event_seal WHERE position = {position}")],
            vec![format!("DELETE FROM checkpoint WHERE {position} BETWEEN first_position AND last_position")],
            vec![format!(
                "DELETE FROM operation WHERE id = (SELECT operation_id FROM operation_event WHERE id = {event})"
            )],
        ] {
            let report = damaged.after(&statements).await.expect("no rule against it");
            let problem = report.problem.unwrap_or_else(|| panic!("unseen: {statements:?}"));
            assert!(problem.position.expect("a position") <= position, "{statements:?}: {problem:?}");
        }
        if position < last {
            let next = position + 1;
            let swap = [
                format!("UPDATE event_position SET position = -1 WHERE position = {position}"),
                format!("UPDATE event_position SET position = {position} WHERE position = {next}"),
                format!("UPDATE event_position SET position = {next} WHERE position = -1"),
            ];
            let problem = damaged.after(&swap).await.expect("a swap").problem.expect("a problem");
            assert_eq!(problem.position, Some(position));
            assert!(problem.what.starts_with("reordered"), "{problem:?}");
        }
    }
}

#[tokio::test]
async fn a_cut_tail_and_what_was_slipped_in_are_named() {
    let mut damaged = Damaged::new().await;
    let last = damaged.rows("SELECT MAX(position) FROM event_position").await[0].get::<i64, _>(0);
    let cut = last - 2;
    let tail = |table: &str| format!("DELETE FROM {table} WHERE position > {cut}");
    let events = "DELETE FROM operation_event WHERE id NOT IN (SELECT event_id FROM event_position)".to_owned();
    for statements in [
        vec![tail("event_position"), events.clone()],
        vec![tail("event_position"), events.clone(), tail("event_seal")],
        vec![
            "INSERT INTO operation_event (operation_id, seq, event_type, state, at) VALUES (1, 900, 'x', 'x', 1)"
                .to_owned(),
        ],
        vec![format!("INSERT INTO event_position VALUES ({}, 999)", last + 5)],
        vec!["INSERT INTO event_position VALUES (0, 999)".to_owned()],
    ] {
        let report = damaged.after(&statements).await.expect("no rule against it");
        assert!(report.problem.is_some(), "unseen: {statements:?}");
    }
    // Cut at a checkpoint with everything above it, the chain is a shorter one that holds; who noted its head sees it.
    let whole = check(&damaged.original, &Known::default()).await;
    let mut db = open(&damaged.original).await;
    for statement in [
        "DELETE FROM checkpoint WHERE last_position > 4",
        "DELETE FROM event_seal WHERE position > 4",
        "DELETE FROM event_position WHERE position > 4",
    ] {
        sqlx::query(statement).execute(&mut db).await.expect("a statement");
    }
    sqlx::query(AssertSqlSafe(events)).execute(&mut db).await.expect("a statement");
    sqlx::query("UPDATE operation SET status = 'running' WHERE id < 3").execute(&mut db).await.expect("a statement");
    sqlx::query("DELETE FROM operation WHERE id = 3").execute(&mut db).await.expect("a statement");
    db.close().await.expect("closed");
    assert_eq!(check(&damaged.original, &Known::default()).await.problem, None);
    let known = Known { head: Some((whole.sealed, whole.hash)), ..Known::default() };
    assert_eq!(check(&damaged.original, &known).await.problem.expect("a problem").position, Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealers_that_race_make_one_chain() {
    let world = World::new().await;
    world.store.public_key_keep(&key().public()).await.expect("a key");
    for n in 0..8u16 {
        world.create(&format!("app-{n}"), 20_000 + n).await.expect("a VM");
    }
    work(&world, at(1)).await;
    let sealer = || {
        let store = world.store.clone();
        async move {
            let mut sealed = 0;
            loop {
                match store.events_seal(&key(), 3, at(2)).await.expect("a round") {
                    Sealing::Nothing => return sealed,
                    Sealing::Sealed(count) => sealed += count,
                    Sealing::Lost => {}
                }
            }
        }
    };
    let (one, two, three) = tokio::join!(tokio::spawn(sealer()), tokio::spawn(sealer()), tokio::spawn(sealer()));
    let sealed: usize = [one, two, three].map(|task| task.expect("a sealer")).iter().sum();
    let events = world.count("operation_event").await;
    assert_eq!(sealed as i64, events);
    let report = check(&world.folder.path().join("holdfast.db"), &Known::default()).await;
    assert_eq!((report.problem, report.sealed, report.unsealed), (None, events, 0));
}
