//! What every store must keep, whatever database is behind it.

mod world;

use std::time::Duration;

use holdfast_engine::{Deadlines, decide, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::Code;
use holdfast_model::node::{DISK_FULL, Phase};
use holdfast_model::operation::Status;
use holdfast_model::vm::RunState;
use holdfast_store::history::{Filter, Operation};
use holdfast_store::operations::{Claimed, operation_load, operation_write};
use holdfast_store::page::{From, Page, Sort, Total};
use holdfast_store::vms::By;
use holdfast_store::{FolderLock, OpenError, Store, commit, desired};
use world::{NOW, World, principal, report};

const LEASE: Duration = Duration::from_secs(10);

/// One round of a worker on everything that is due at `now`.
async fn work(world: &World, now: Timestamp) -> usize {
    let claimed = world.store.operations_claim("w", LEASE, 64, now).await.expect("a claim");
    for operation in &claimed {
        assert!(advance(world, operation, now).await);
    }
    claimed.len()
}

/// Decides and writes one claimed operation. False when the lease was lost.
async fn advance(world: &World, claimed: &Claimed, now: Timestamp) -> bool {
    let mut tx = world.store.begin().await.expect("a transaction");
    let Some((record, view)) = operation_load(&mut tx, claimed, i64::MAX / 2, now).await.expect("a load") else {
        return false;
    };
    let plan = ops::find(&claimed.operation_type, 1).expect("a plan");
    let decision = decide(plan, &record, &view, &Deadlines::default(), now);
    let written = operation_write(&mut tx, claimed, &decision, now).await.expect("a write");
    commit(tx).await.expect("a commit");
    written
}

async fn say(world: &World, reports: &[holdfast_model::node::VmReport], now: Timestamp) -> bool {
    let mut tx = world.store.begin().await.expect("a transaction");
    let woken = desired::reports_write(&mut tx, world.node, reports, now).await.expect("a report");
    commit(tx).await.expect("a commit");
    woken
}

fn all(world: &World) -> Filter {
    Filter { scope: world.who.scope(), ..Filter::default() }
}

async fn newest(world: &World) -> Page<Operation> {
    let sort = Sort::newest_first("created_at");
    world.store.operations(&all(world), &sort, &From::Start, 10).await.expect("a page")
}

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

#[tokio::test]
async fn an_accept_is_all_or_nothing() {
    let world = World::new().await;
    let (_, first) = world.create("one", 20_000).await.expect("a VM");
    let tables = [
        "vm",
        "vm_name",
        "vm_port",
        "app",
        "operation",
        "operation_resource",
        "operation_event",
        "event_position",
        "audit_log",
    ];
    let mut before = Vec::new();
    for table in tables {
        before.push(world.count(table).await);
    }
    // Each conflict strikes at another place of the transaction.
    let taken_name = world.create("one", 20_001).await.expect_err("the name is taken");
    assert_eq!(taken_name.code, Code::NameTaken);
    assert!(world.create("two", 20_000).await.is_err(), "the port is taken");
    let mut tx = world.store.begin().await.expect("a transaction");
    world.create_in(&mut tx, "three", 20_002).await.expect("a VM");
    drop(tx);
    for (table, before) in tables.iter().zip(before) {
        assert_eq!(world.count(table).await, before, "{table}");
    }
    assert!(world.store.operation(None, &first.to_string()).await.expect("a query").is_some());
}

#[tokio::test]
async fn a_resource_has_one_running_mutation() {
    let world = World::new().await;
    let (vm, _) = world.create("one", 20_000).await.expect("a VM");
    let uuid = world.store.vm(vm).await.expect("a query").expect("the VM").uuid;
    let mut tx = world.store.begin().await.expect("a transaction");
    let (info, submit) = (world::info(), world::submit(vm, &uuid, "one"));
    let second = holdfast_store::accept::vm_operation_accept(&mut tx, &world.who, &info, submit, NOW);
    assert_eq!(second.await.expect_err("it is busy").code, Code::Busy);
}

#[tokio::test]
async fn a_create_runs_to_its_end_and_a_delete_leaves_nothing() {
    let world = World::new().await;
    let (vm, operation) = world.create("one", 20_000).await.expect("a VM");
    assert_eq!(work(&world, at(1)).await, 1);
    let page = world.store.desired_page(world.node, 0).await.expect("a page");
    assert_eq!(page.vms.len(), 1);
    assert_eq!((page.vms[0].generation, page.vms[0].run_state), (1, RunState::Running));
    assert!(world.store.desired_page(world.node, page.revision).await.expect("a page").vms.is_empty());

    assert_eq!(work(&world, at(2)).await, 0, "it waits for the node");
    let uuid = page.vms[0].uuid.to_string();
    assert!(say(&world, &[report(&uuid, 1, Phase::Running)], at(3)).await);
    assert_eq!(work(&world, at(3)).await, 1);
    let done = world.store.operation(None, &operation.to_string()).await.expect("a query").expect("the operation");
    assert_eq!(done.status().expect("a status"), Status::Done);
    assert_eq!(
        world.store.vm(vm).await.expect("a query").expect("the VM").status().expect("a status").as_str(),
        "running"
    );

    let mut tx = world.store.begin().await.expect("a transaction");
    let mut submit = world::submit(vm, &uuid, "one");
    submit.plan = &ops::VM_DELETE;
    holdfast_store::accept::vm_operation_accept(&mut tx, &world.who, &world::info(), submit, at(4))
        .await
        .expect("accepted");
    commit(tx).await.expect("a commit");
    work(&world, at(4)).await;
    let tombstone = world.store.desired_page(world.node, page.revision).await.expect("a page");
    assert_eq!(tombstone.vms[0].run_state, RunState::Absent);
    assert!(tombstone.vms[0].spec.is_none());
    say(&world, &[report(&uuid, 2, Phase::Absent)], at(5)).await;
    work(&world, at(5)).await;
    for table in ["vm_port", "vm_name", "vm_desired", "vm_observed"] {
        assert_eq!(world.count(table).await, 0, "{table}");
    }
    let gone = world.store.vm(vm).await.expect("a query").expect("the row stays");
    assert!(gone.deleted_at.is_some() && gone.encrypted_env.is_none());
    let nodes = world.store.nodes().await.expect("nodes");
    assert_eq!((nodes[0].used_slots, nodes[0].used_memory_mb), (0, 0));
    // A report that comes late wakes nobody and brings nothing back.
    assert!(!say(&world, &[report(&uuid, 1, Phase::Running)], at(6)).await);
    assert_eq!(world.count("vm_observed").await, 0);
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_writes_nothing() {
    let world = World::new().await;
    let (_, operation) = world.create("one", 20_000).await.expect("a VM");
    let stale = world.store.operations_claim("a", LEASE, 64, at(1)).await.expect("a claim");
    assert!(world.store.operations_claim("b", LEASE, 64, at(2)).await.expect("a claim").is_empty(), "it is held");
    let fresh = world.store.operations_claim("b", LEASE, 64, at(12)).await.expect("a claim");
    assert_eq!(fresh.len(), 1, "the lease ran out");
    assert!(!advance(&world, &stale[0], at(12)).await);
    let untouched = world.store.operation(None, &operation.to_string()).await.expect("a query").expect("the operation");
    assert_eq!(untouched.status().expect("a status"), Status::Pending);
    assert!(advance(&world, &fresh[0], at(12)).await);
    assert!(!advance(&world, &stale[0], at(13)).await);
}

#[tokio::test]
async fn a_start_frees_leases_and_gives_waiting_steps_time() {
    let world = World::new().await;
    world.create("one", 20_000).await.expect("a VM");
    work(&world, at(1)).await;
    let stale = world.store.operations_claim("old", LEASE, 64, at(200)).await.expect("a claim");
    assert_eq!(stale.len(), 1, "its deadline has passed");
    assert_eq!(world.store.operations_recover(Duration::from_secs(60), at(201)).await.expect("a start"), 1);
    assert!(!advance(&world, &stale[0], at(201)).await, "the worker before the start is fenced off");
    let claimed = world.store.operations_claim("new", LEASE, 64, at(201)).await.expect("a claim");
    assert!(advance(&world, &claimed[0], at(201)).await);
    let page = newest(&world).await;
    assert_eq!(page.items[0].status().expect("a status"), Status::Running, "it did not time out while we were away");
}

#[tokio::test]
async fn positions_have_no_gaps_and_events_are_numbered() {
    let world = World::new().await;
    for n in 0..5u16 {
        let name = format!("app-{n}");
        world.create(&name, 20_000 + n).await.expect("a VM");
        assert!(world.create(&name, 20_009).await.is_err());
    }
    work(&world, at(1)).await;
    let events = world.count("operation_event").await;
    let positions = world.count("event_position WHERE position BETWEEN 1 AND 10000").await;
    let highest = world.count("event_position p JOIN event_position q ON q.position <= p.position WHERE p.position = (SELECT MAX(position) FROM event_position)").await;
    assert_eq!((events, events), (positions, highest));
    let page = newest(&world).await;
    let ids: Vec<i64> = page.items.iter().map(|o| o.id).collect();
    for (_, events) in world.store.events(&ids).await.expect("events") {
        let numbers: Vec<i64> = events.iter().map(|e| e.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as i64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn pages_go_both_ways_while_others_write() {
    let world = World::new().await;
    for n in 0..7u16 {
        world.create(&format!("app-{n}"), 20_000 + n).await.expect("a VM");
    }
    let (filter, sort) = (all(&world), Sort::newest_first("created_at"));
    let read = async |from: From| world.store.operations(&filter, &sort, &from, 3).await.expect("a page");
    let first = read(From::Start).await;
    assert!(first.has_next && !first.has_previous);
    world.create("late-comer", 20_008).await.expect("a VM");
    let last = first.items.last().expect("three").place(&sort);
    let second = read(From::After(last)).await;
    let names =
        |page: &Page<Operation>| -> Vec<String> { page.items.iter().map(|o| o.resource_name.clone()).collect() };
    assert_eq!(
        (names(&first), names(&second)),
        (vec!["app-6".into(), "app-5".into(), "app-4".into()], vec!["app-3".into(), "app-2".into(), "app-1".into()],)
    );
    let back = read(From::Before(second.items[0].place(&sort))).await;
    assert_eq!(names(&back), names(&first));
    assert!(back.has_previous, "the late-comer");
    assert_eq!(back.total, Total { number: 8, is_estimate: false });
}

#[tokio::test]
async fn nobody_sees_another_workspace() {
    let world = World::new().await;
    let (vm, operation) = world.create("one", 20_000).await.expect("a VM");
    let other = principal(&world.store, "mallory", "other").await;
    let found = world.store.vms_by(&other.scope(), By::Key(vm)).await.expect("a query");
    assert!(found.is_empty());
    let seen = world.store.operation(Some(&other.scope()), &operation.to_string()).await.expect("a query");
    assert!(seen.is_none());
}

#[tokio::test]
async fn a_folder_has_one_server_and_no_newer_schema() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let lock = FolderLock::take(folder.path()).expect("the lock");
    assert!(matches!(FolderLock::take(folder.path()), Err(OpenError::Locked(..))));
    drop(lock);
    let _lock = FolderLock::take(folder.path()).expect("the lock again");
    Store::open(folder.path()).await.expect("a database").close().await;
    Store::open(folder.path()).await.expect("the same database").close().await;
    let url = format!("sqlite://{}", folder.path().join("holdfast.db").display());
    let db = sqlx::SqlitePool::connect(&url).await.expect("a connection");
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', '2030-01-01', TRUE, x'00', 0)")
        .execute(&db)
        .await
        .expect("a newer migration");
    db.close().await;
    assert!(matches!(Store::open(folder.path()).await, Err(OpenError::Newer(9999))));
}

#[tokio::test]
async fn a_machine_that_stands_still_is_told_once_and_so_is_its_going_on() {
    let world = World::new().await;
    let (vm, _) = world.create("one", 20_000).await.expect("a VM");
    let uuid = world.store.vm(vm).await.expect("a query").expect("the VM").uuid;
    let mut second = 0;
    // Nothing of it before the first pause; a pause that goes on is one; one that is started anew did not go on.
    for (paused, restarts, phase, events) in [
        (false, 0, Phase::Running, vec![]),
        (true, 0, Phase::Running, vec!["instance.paused"]),
        (true, 0, Phase::Running, vec!["instance.paused"]),
        (false, 0, Phase::Running, vec!["instance.paused", "instance.resumed"]),
        (true, 0, Phase::Running, vec!["instance.paused", "instance.resumed", "instance.paused"]),
        (
            false,
            1,
            Phase::Running,
            vec!["instance.paused", "instance.resumed", "instance.paused", "instance.auto_restart"],
        ),
    ] {
        let mut seen = report(&uuid, 1, phase);
        (seen.restarts, seen.paused) = (restarts, paused.then(|| DISK_FULL.to_owned()));
        second += 1;
        say(&world, &[seen], at(second)).await;
        let told = world.store.vm_events(vec![vm]).await.expect("a query");
        let told: Vec<String> = told.into_iter().map(|(_, event)| event.event).collect();
        assert_eq!(told, events);
    }
}
