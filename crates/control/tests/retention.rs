//! What leaves by age: the right operations, none lost at any crash, and a chain that still tells what was touched.

#[path = "../../store/tests/world/mod.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_control::export::check_file;
use holdfast_control::{Control, Settings, SystemClock, setup};
use holdfast_engine::{Deadlines, decide, ops};
use holdfast_model::Timestamp;
use holdfast_model::node::Phase;
use holdfast_store::operations::{operation_load, operation_write};
use holdfast_store::verify::{Known, Ledger, Report};
use holdfast_store::{commit, desired};
use holdfast_trust::archive::Archive;
use holdfast_trust::chain::SealKey;
use holdfast_trust::export::{Check, Findings};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use uuid::Uuid;
use world::{NOW, World, report};

struct Cloud {
    world: World,
    control: Control,
    archive: PathBuf,
}

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

impl Cloud {
    async fn new() -> Self {
        let world = World::new().await;
        let folder = world.folder.path();
        let master = setup::master_key(&folder.join("master.key"), true).expect("a master key");
        let keys = setup::keys(&world.store, &master).await.expect("secrets");
        let control = Control::new(world.store.clone(), keys, Settings::default(), Arc::new(SystemClock));
        let archive = folder.join("archive");
        Self { world, control, archive }
    }

    async fn create(&self, n: u16) -> (i64, Uuid) {
        self.world.create(&format!("app-{n}"), 20_000 + n).await.expect("a VM")
    }

    async fn work(&self, now: Timestamp) {
        let store = &self.world.store;
        for claimed in store.operations_claim("w", Duration::from_secs(10), 64, now).await.expect("a claim") {
            let mut tx = store.begin().await.expect("a transaction");
            let loaded = operation_load(&mut tx, &claimed, i64::MAX / 2, now).await.expect("a load");
            let (record, view) = loaded.expect("the lease is held");
            let plan = ops::find(&claimed.operation_type, 1).expect("a plan");
            let decision = decide(plan, &record, &view, &Deadlines::default(), now);
            assert!(operation_write(&mut tx, &claimed, &decision, now).await.expect("a write"));
            commit(tx).await.expect("a commit");
        }
    }

    /// The app of this VM comes up, and its operation is over.
    async fn finish(&self, vm: i64, now: Timestamp) {
        let uuid = self.text(&format!("SELECT uuid FROM vm WHERE id = {vm}")).await;
        let mut tx = self.world.store.begin().await.expect("a transaction");
        let reports = [report(&uuid, 1, Phase::Running)];
        desired::reports_write(&mut tx, self.world.node, &reports, now).await.expect("a report");
        commit(tx).await.expect("a commit");
        self.work(now).await;
    }

    async fn seal(&self) {
        let stop = tokio_util::sync::CancellationToken::new();
        stop.cancel();
        holdfast_control::loops::sealer::run(self.control.clone(), stop).await;
    }

    /// First is over, third is under way among its events, second is over but began before the third and ended after it.
    async fn three(&self) -> [(i64, Uuid); 3] {
        let (first, second) = (self.create(0).await, self.create(1).await);
        self.seal().await;
        self.work(at(1)).await;
        self.finish(first.0, at(2)).await;
        self.seal().await;
        let third = self.create(2).await;
        self.work(at(3)).await;
        self.finish(second.0, at(4)).await;
        self.seal().await;
        [first, second, third]
    }

    async fn archive(&self, before: Timestamp) {
        self.control.archive(&self.archive, before).await.expect("archived");
    }

    async fn sql(&self, statement: &str) {
        execute(&self.database(), &[statement.to_owned()]).await;
    }

    async fn text(&self, sql: &str) -> String {
        let mut db = open(&self.database()).await;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut db).await.expect("a value")
    }

    async fn number(&self, sql: &str) -> i64 {
        let mut db = open(&self.database()).await;
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut db).await.expect("a value")
    }

    fn database(&self) -> PathBuf {
        self.world.folder.path().join("holdfast.db")
    }

    async fn is_there(&self, operation: Uuid) -> bool {
        self.world.store.operation(None, &operation.to_string()).await.expect("a query").is_some()
    }

    async fn verify(&self) -> Report {
        verify(&self.database()).await
    }

    /// Names and findings of all archives, oldest first.
    fn files(&self) -> Vec<(String, Findings)> {
        let Ok(folder) = std::fs::read_dir(&self.archive) else { return Vec::new() };
        let mut files: Vec<_> = folder
            .map(|entry| entry.expect("an entry").path())
            .map(|path| {
                let name = path.file_name().expect("a name").to_string_lossy().into_owned();
                (name, check_file(&path, Check::new(None)).expect("it can be read"))
            })
            .collect();
        files.sort_by_key(|(_, findings)| findings.archive.as_ref().map(|span| span.first_position));
        files
    }
}

async fn open(file: &Path) -> SqliteConnection {
    let mut db = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
    sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut db).await.expect("a pragma");
    db
}

async fn execute(file: &Path, statements: &[String]) {
    let mut db = open(file).await;
    for statement in statements {
        sqlx::query(AssertSqlSafe(statement.clone())).execute(&mut db).await.expect("a statement");
    }
    db.close().await.expect("closed");
}

async fn verify(file: &Path) -> Report {
    Ledger::open(file).await.expect("a ledger").verify(&Known::default()).await.expect("a report")
}

#[tokio::test]
async fn what_is_over_and_old_leaves_and_positions_go_on() {
    let cloud = Cloud::new().await;
    let [first, second, third] = cloud.three().await;
    let events = cloud.number("SELECT MAX(position) FROM event_position").await;
    cloud.archive(at(2)).await;
    assert!(cloud.files().is_empty(), "nothing was over before");
    cloud.archive(at(50)).await;

    let there = [cloud.is_there(first.1).await, cloud.is_there(second.1).await, cloud.is_there(third.1).await];
    assert_eq!(there, [false, false, true], "the one that runs stays, and what is before it leaves");
    assert_eq!(cloud.number("SELECT COUNT(*) FROM audit_log").await, 1);
    assert_eq!(cloud.number("SELECT COUNT(DISTINCT operation_id) FROM operation_resource").await, 1);
    let files = cloud.files();
    let (name, findings) = &files[0];
    assert_eq!((files.len(), findings.problem.clone(), findings.operations, findings.audit), (1, None, 2, 2), "{name}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&cloud.archive.join(name).metadata().expect("it").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let report = cloud.verify().await;
    let archive = report.archive.clone().expect("the record of it");
    assert_eq!((report.problem, report.sealed), (None, events));
    assert_eq!((&archive.file, archive.sha256.len()), (name, 64));
    assert!(!archive.ahead.is_empty(), "the second one ended after the third began");
    let third_began = cloud.number("SELECT MIN(position) FROM event_position").await;
    assert!(archive.last_position < third_began);

    // Held back by the one that runs: nothing more. Then it ends, and everything leaves.
    cloud.archive(at(1000)).await;
    assert_eq!(cloud.files().len(), 1);
    cloud.finish(third.0, at(60)).await;
    cloud.seal().await;
    let last = cloud.number("SELECT MAX(last_position) FROM checkpoint").await;
    cloud.archive(at(1000)).await;
    for table in ["operation", "operation_event", "event_position", "event_seal", "operation_resource", "audit_log"] {
        assert_eq!(cloud.world.count(table).await, 0, "{table}");
    }
    assert_eq!(cloud.world.count("checkpoint").await, 1, "where the chain goes on");
    let files = cloud.files();
    let spans: Vec<_> = files.iter().map(|(_, findings)| findings.archive.clone().expect("an archive")).collect();
    assert_eq!((spans.len(), spans[0].hash.clone()), (2, spans[1].previous_hash.clone()));
    assert_eq!((spans[0].last_position + 1, spans[1].last_position), (spans[1].first_position, last));
    assert!(files.iter().all(|(_, findings)| findings.problem.is_none()), "{files:?}");
    let empty = cloud.verify().await;
    assert_eq!((empty.problem, empty.sealed, empty.events), (None, last, 0));

    assert_eq!(cloud.world.store.last_position().await.expect("a position"), last);
    cloud.create(3).await;
    assert_eq!(cloud.number("SELECT MIN(position) FROM event_position").await, last + 1);
    cloud.seal().await;
    let on = cloud.verify().await;
    assert_eq!((on.problem, on.sealed, on.events), (None, last + 1, 1));
}

#[tokio::test]
async fn a_crash_anywhere_loses_nothing_and_is_finished_later() {
    let cloud = Cloud::new().await;
    cloud.three().await;
    let operations = cloud.world.count("operation").await;
    let stopped_by = async |table: &str, verb: &str, before: Timestamp| {
        cloud
            .sql(&format!("CREATE TRIGGER crash BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, 'crash'); END"))
            .await;
        assert!(cloud.control.archive(&cloud.archive, before).await.is_err(), "it stops at {table}");
        cloud.sql("DROP TRIGGER crash").await;
        let report = cloud.verify().await;
        assert_eq!(report.problem, None, "after a crash at {verb} {table}");
    };
    // The file is there, the record is not.
    stopped_by("archive", "UPDATE", at(50)).await;
    assert_eq!(cloud.world.count("operation").await, operations);
    let (name, _) = cloud.files().remove(0);
    let written = std::fs::metadata(cloud.archive.join(&name)).expect("the file").modified().expect("a time");
    // The record is there, and no row has gone yet: what comes next finishes this one, whatever the cutoff is by then.
    stopped_by("operation", "DELETE", at(70)).await;
    assert_eq!(cloud.world.count("operation").await, operations);
    assert_eq!(cloud.verify().await.archive.expect("the record").file, name);
    // One of the two is gone, the other not; what is still there is still checked.
    let half = cloud.world.folder.path().join("half.db");
    for (change, holds) in [("id = id", true), ("username = 'x'", false)] {
        cloud.sql(&format!("VACUUM INTO '{}'", half.display())).await;
        let mut statements: Vec<String> = [
            "DELETE FROM event_position WHERE event_id IN (SELECT id FROM operation_event WHERE operation_id = 1)",
            "DELETE FROM operation_event WHERE operation_id = 1",
            "DELETE FROM operation WHERE id = 1",
        ]
        .map(str::to_owned)
        .into();
        statements.push(format!("UPDATE operation SET {change} WHERE id = 2"));
        execute(&half, &statements).await;
        let problem = verify(&half).await.problem;
        assert_eq!(problem.is_none(), holds, "{problem:?}");
        std::fs::remove_file(&half).expect("removed");
    }
    stopped_by("event_seal", "DELETE", at(80)).await;
    assert_eq!(cloud.world.count("operation").await, 1);
    stopped_by("checkpoint", "DELETE", at(80)).await;
    cloud.archive(at(90)).await;
    let files = cloud.files();
    assert_eq!((files.len(), &files[0].0), (1, &name), "the same file, and no other");
    assert_eq!(std::fs::metadata(cloud.archive.join(&name)).expect("it").modified().expect("a time"), written);
    let report = cloud.verify().await;
    assert_eq!((report.problem, report.archive.expect("the record").file), (None, name));
    assert!(cloud.number("SELECT COUNT(*) FROM checkpoint").await >= 1);
}

#[tokio::test]
async fn a_cut_that_no_record_vouches_for_is_found() {
    let cloud = Cloud::new().await;
    let [.., third] = cloud.three().await;
    cloud.archive(at(50)).await;
    cloud.world.store.close().await;
    let report = cloud.verify().await;
    let genuine = report.archive.expect("the record");
    let (last, key) = (genuine.last_position, SealKey::from_seed(&[66; 32]));
    let forged = Archive { last_position: last + 1, ..genuine.clone() }.sign(&key);
    let third_began = cloud.number("SELECT MIN(position) FROM event_position").await;
    let signature = hex::encode(forged.signature);
    let event = format!("(SELECT event_id FROM event_position WHERE position = {third_began})");
    for statements in [
        vec!["DELETE FROM archive".to_owned()],
        vec![format!("UPDATE archive SET signature = '{signature}'")],
        vec![format!("UPDATE archive SET last_position = {}", last + 1)],
        vec![format!("UPDATE archive SET hash = '{}'", "11".repeat(32))],
        vec!["UPDATE archive SET over_before = over_before + 1".to_owned()],
        vec!["UPDATE archive SET ahead = '[]'".to_owned()],
        vec!["UPDATE archive SET file = 'other'".to_owned()],
        vec![format!("UPDATE archive SET last_position = {}, signature = '{signature}'", last + 1)],
        vec![format!("DELETE FROM checkpoint WHERE last_position = {last}")],
        vec![format!("UPDATE checkpoint SET hash = '{}' WHERE last_position = {last}", "11".repeat(32))],
        // More than the record says.
        vec![format!("DELETE FROM operation_event WHERE id = {event}")],
        vec![
            format!("DELETE FROM operation_event WHERE id = {event}"),
            format!("DELETE FROM event_position WHERE position = {third_began}"),
        ],
        vec![format!("UPDATE operation SET username = 'x' WHERE uuid = '{}'", third.1)],
        vec![format!("UPDATE event_position SET position = 1 WHERE position = {third_began}")],
        vec!["INSERT INTO event_position VALUES (1, 9999)".to_owned()],
    ] {
        let copy = cloud.world.folder.path().join("copy.db");
        std::fs::copy(cloud.database(), &copy).expect("a copy");
        execute(&copy, &statements).await;
        assert!(verify(&copy).await.problem.is_some(), "unseen: {statements:?}");
        std::fs::remove_file(&copy).expect("removed");
    }
    assert_eq!(cloud.verify().await.problem, None);
}

#[tokio::test]
async fn what_was_altered_does_not_leave() {
    let cloud = Cloud::new().await;
    let [first, ..] = cloud.three().await;
    cloud.sql(&format!("UPDATE operation SET username = 'somebody else' WHERE uuid = '{}'", first.1)).await;
    let error = cloud.control.archive(&cloud.archive, at(50)).await.expect_err("it is refused");
    assert!(error.internal.as_deref().unwrap_or_default().contains(&first.1.to_string()), "{error}");
    assert!(cloud.is_there(first.1).await);
    assert!(cloud.files().iter().all(|(name, _)| name.starts_with('.')), "no file of that name");
    // What is in the way is left alone.
    cloud.sql(&format!("UPDATE operation SET username = 'admin' WHERE uuid = '{}'", first.1)).await;
    let name = cloud.text("SELECT file FROM archive").await;
    std::fs::write(cloud.archive.join(&name), "something else").expect("written");
    assert!(cloud.control.archive(&cloud.archive, at(50)).await.is_err());
    assert_eq!(std::fs::read_to_string(cloud.archive.join(&name)).expect("it"), "something else");
    std::fs::remove_file(cloud.archive.join(&name)).expect("removed");
    cloud.archive(at(50)).await;
    assert!(!cloud.is_there(first.1).await);
}

#[tokio::test]
async fn an_archive_keeps_every_column_of_the_audit_log() {
    let cloud = Cloud::new().await;
    let mut db = open(&cloud.database()).await;
    let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info('audit_log')")
        .fetch_all(&mut db)
        .await
        .expect("columns");
    let kept = |name: &String| holdfast_store::export::AUDIT.contains(&name.as_str());
    let missing: Vec<_> = columns.into_iter().filter(|name| !kept(name)).collect();
    assert_eq!(missing, ["id", "operation_id"], "internal keys; operation_uuid says the same");
}
