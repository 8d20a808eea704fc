//! The line before a resource, as every store must keep it: order, bound, and whose turn it is when somebody leaves.

mod world;

use std::time::Duration;

use holdfast_engine::{Deadlines, Plan, decide, ops};
use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_model::node::{Outcome, Phase};
use holdfast_model::operation::{Status, Value};
use holdfast_model::vm::{RunState, VmStatus};
use holdfast_store::accept::{IfBusy, Touch, vm_operation_accept};
use holdfast_store::history::Operation;
use holdfast_store::interventions::{operation_abandon, operation_cancel};
use holdfast_store::operations::{operation_load, operation_write};
use holdfast_store::{Store, commit, desired, queue};
use uuid::Uuid;
use world::{NOW, World, report};

const QUEUE: IfBusy = IfBusy::Queue { limit: 16 };

/// A world of one running VM, and a clock that never stands still.
struct Bench {
    world: World,
    vm: i64,
    uuid: String,
    seconds: u64,
}

impl Bench {
    async fn new() -> Self {
        let world = World::new().await;
        let (vm, create) = world.create("one", 20_000).await.expect("a VM");
        let uuid = world.store.vm(vm).await.expect("a query").expect("the VM").uuid;
        let mut bench = Self { world, vm, uuid, seconds: 0 };
        bench.settle().await;
        assert_eq!(bench.status(create).await, Status::Done);
        bench
    }

    fn tick(&mut self) -> Timestamp {
        self.seconds += 1;
        NOW.plus(Duration::from_secs(self.seconds))
    }

    async fn ask(&mut self, plan: &'static Plan, if_busy: IfBusy) -> Result<Uuid, Error> {
        let now = self.tick();
        ask(&self.world, self.vm, &self.uuid, plan, if_busy, now).await
    }

    async fn queue(&mut self, plan: &'static Plan) -> Uuid {
        self.ask(plan, QUEUE).await.expect("accepted")
    }

    /// One round of a worker on everything that is due.
    async fn work(&mut self) -> usize {
        let now = self.tick();
        let claimed = self.world.store.operations_claim("w", Duration::from_secs(10), 64, now).await.expect("a claim");
        for operation in &claimed {
            let mut tx = self.world.store.begin().await.expect("a transaction");
            let plan = ops::find(&operation.operation_type, 1).expect("a plan");
            let loaded = operation_load(&mut tx, operation, i64::MAX / 2, now).await.expect("a load");
            let (record, view) = loaded.expect("its lease");
            let decision = decide(plan, &record, &view, &Deadlines::default(), now);
            assert!(operation_write(&mut tx, operation, &decision, now).await.expect("a write"));
            commit(tx).await.expect("a commit");
        }
        claimed.len()
    }

    /// The node does, or refuses for good, what is wanted of the VM.
    async fn node(&mut self, refuses: bool) {
        let page = self.world.store.desired_page(self.world.node, 0).await.expect("a page");
        let Some(wanted) = page.vms.iter().find(|vm| vm.uuid.to_string() == self.uuid) else { return };
        let phase = match wanted.run_state {
            RunState::Running => Phase::Running,
            RunState::Stopped => Phase::Stopped,
            RunState::Absent => Phase::Absent,
        };
        let mut seen = report(&self.uuid, wanted.generation, phase);
        seen.boot_epoch = wanted.boot_epoch;
        if refuses {
            seen.outcome = Outcome::Failed { code: "no".into(), message: "never".into(), retryable: false };
        }
        let now = self.tick();
        let mut tx = self.world.store.begin().await.expect("a transaction");
        desired::reports_write(&mut tx, self.world.node, &[seen], now).await.expect("a report");
        commit(tx).await.expect("a commit");
    }

    /// Worker and node until nothing moves.
    async fn settle(&mut self) {
        for _ in 0..100 {
            self.node(false).await;
            if self.work().await == 0 {
                return;
            }
        }
        panic!("it never ends");
    }

    async fn operation(&self, id: Uuid) -> Operation {
        self.world.store.operation(None, &id.to_string()).await.expect("a query").expect("the operation")
    }

    async fn status(&self, id: Uuid) -> Status {
        self.operation(id).await.status().expect("a status")
    }

    async fn statuses(&self, ids: &[Uuid]) -> Vec<Status> {
        let mut statuses = Vec::new();
        for id in ids {
            statuses.push(self.status(*id).await);
        }
        statuses
    }

    async fn vm_status(&self) -> VmStatus {
        self.world.store.vm(self.vm).await.expect("a query").expect("the VM").status().expect("a status")
    }

    /// Whom an operation waits for.
    async fn waits_for(&self, id: Uuid) -> Option<Uuid> {
        let row = self.operation(id).await.id;
        let waiting = self.world.store.operations_waiting_for(&[row]).await.expect("a query");
        waiting.get(&row).map(|uuid| uuid.parse().expect("a UUID"))
    }

    async fn cancel(&mut self, id: Uuid) {
        let (row, now) = (self.operation(id).await.id, self.tick());
        let mut tx = self.world.store.begin().await.expect("a transaction");
        operation_cancel(&mut tx, row, "ann", now).await.expect("cancelled");
        commit(tx).await.expect("a commit");
    }

    /// Another VM, which its create holds.
    async fn vm(&self, name: &str, port: u16) -> (i64, String) {
        let (vm, _) = self.world.create(name, port).await.expect("a VM");
        (vm, self.world.store.vm(vm).await.expect("a query").expect("the VM").uuid)
    }

    /// The create of a VM ends.
    async fn comes_up(&mut self, uuid: &str) {
        self.work().await;
        let (seen, now) = (report(uuid, 1, Phase::Running), self.tick());
        let mut tx = self.world.store.begin().await.expect("a transaction");
        desired::reports_write(&mut tx, self.world.node, &[seen], now).await.expect("a report");
        commit(tx).await.expect("a commit");
        self.work().await;
    }

    /// An operation on a VM that claims another one too.
    async fn ask_two(&mut self, (vm, uuid): &(i64, String), other: i64) -> Uuid {
        let now = self.tick();
        let mut tx = self.world.store.begin().await.expect("a transaction");
        let mut submit = world::submit(*vm, uuid, "one");
        (submit.plan, submit.if_busy) = (&ops::VM_RESTART, QUEUE);
        submit.status_before = VmStatus::Running;
        submit.touches = vec![Touch { kind: "vm", id: other, role: "target" }];
        let accepted = vm_operation_accept(&mut tx, &self.world.who, &world::info(), submit, now).await;
        commit(tx).await.expect("a commit");
        accepted.expect("accepted").1
    }

    /// As when an undo of it was refused.
    async fn stick(&self, id: Uuid) {
        let file = self.world.folder.path().join("holdfast.db");
        let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
        sqlx::query("UPDATE operation SET status = 'stuck', wake_at = NULL WHERE uuid = $1")
            .bind(id.to_string())
            .execute(&db)
            .await
            .expect("it is stuck");
        db.close().await;
    }

    async fn abandon(&mut self, id: Uuid) {
        let (row, now) = (self.operation(id).await.id, self.tick());
        let mut tx = self.world.store.begin().await.expect("a transaction");
        operation_abandon(&mut tx, row, "ann", now).await.expect("abandoned");
        commit(tx).await.expect("a commit");
    }
}

async fn ask(
    world: &World,
    vm: i64,
    uuid: &str,
    plan: &'static Plan,
    if_busy: IfBusy,
    now: Timestamp,
) -> Result<Uuid, Error> {
    let mut tx = world.store.begin().await?;
    let mut submit = world::submit(vm, uuid, "one");
    (submit.plan, submit.if_busy) = (plan, if_busy);
    submit.status_before = Store::vm_in(&mut tx, vm).await?.status()?;
    let (_, id) = vm_operation_accept(&mut tx, &world.who, &world::info(), submit, now).await?;
    commit(tx).await?;
    Ok(id)
}

fn change(operation: &Operation) -> Option<(Option<Value>, Option<Value>)> {
    operation.diff().expect("a diff").get("status").map(|entry| (entry.from.clone(), entry.to.clone()))
}

fn words(from: &str, to: &str) -> Option<(Option<Value>, Option<Value>)> {
    Some((Some(Value::from(from)), Some(Value::from(to))))
}

#[tokio::test]
async fn twenty_writers_at_once_run_in_the_order_of_their_accepts() {
    let mut bench = Bench::new().await;
    let now = bench.tick();
    let world = std::sync::Arc::new(bench.world);
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let (world, vm, uuid) = (world.clone(), bench.vm, bench.uuid.clone());
            let limit = IfBusy::Queue { limit: 50 };
            tokio::spawn(async move { ask(&world, vm, &uuid, &ops::VM_RESTART, limit, now).await })
        })
        .collect();
    let mut accepted = Vec::new();
    for asked in asking {
        accepted.push(asked.await.expect("no panic").expect("accepted"));
    }
    bench.world = std::sync::Arc::into_inner(world).expect("nobody else");
    let mut in_order = Vec::new();
    for id in accepted {
        in_order.push((bench.operation(id).await.id, id));
    }
    in_order.sort();
    assert_eq!(bench.world.count("operation_resource WHERE held").await, 1);
    assert_eq!(bench.world.count("operation_resource WHERE waiting").await, 19);
    assert_eq!(bench.world.count("operation WHERE wake_at IS NOT NULL").await, 1, "who waits is never due");
    assert_eq!(bench.world.count("operation_event WHERE event_type = 'instance.restart.start'").await, 20);
    bench.settle().await;
    let mut starts = Vec::new();
    for (row, id) in &in_order {
        let operation = bench.operation(*id).await;
        assert_eq!(operation.status().expect("a status"), Status::Done);
        starts.push((operation.started_at.expect("it began"), *row));
    }
    let mut sorted = starts.clone();
    sorted.sort();
    assert_eq!(starts, sorted);
    let (first, last) = (starts[0].0, starts[19].0);
    assert!(starts.windows(2).all(|two| two[0].0 < two[1].0), "one after the other from {first} to {last}");
    assert_eq!(bench.world.count("operation_resource WHERE held OR waiting").await, 0);
}

#[tokio::test]
async fn who_waits_holds_nothing_and_changes_nothing() {
    let mut bench = Bench::new().await;
    let running = bench.queue(&ops::VM_POWER_OFF).await;
    let before = bench.vm_status().await;
    assert_eq!(before, VmStatus::Stopping);
    let waiting = bench.queue(&ops::VM_POWER_ON).await;
    assert_eq!(bench.vm_status().await, before);
    assert_eq!(bench.status(waiting).await, Status::Pending);
    assert_eq!((bench.waits_for(waiting).await, bench.waits_for(running).await), (Some(running), None));
    let row = bench.operation(waiting).await.id;
    let events = bench.world.store.events(&[row]).await.expect("events");
    assert_eq!((events[&row].len(), events[&row][0].state.as_str()), (1, "stopping"));
    assert_eq!(bench.world.count("audit_log WHERE action = 'vm.power_on'").await, 1);
    // Nobody overtakes it, and who may not wait is refused.
    assert_eq!(bench.ask(&ops::VM_DELETE, IfBusy::Refuse).await.expect_err("it is busy").code, Code::Busy);
}

#[tokio::test]
async fn the_line_has_an_end() {
    let mut bench = Bench::new().await;
    let limit = IfBusy::Queue { limit: 2 };
    for _ in 0..3 {
        bench.ask(&ops::VM_RESTART, limit).await.expect("one runs, two wait");
    }
    let before = bench.world.count("operation").await;
    let refused = bench.ask(&ops::VM_RESTART, limit).await.expect_err("a third may not wait");
    assert_eq!(refused.code, Code::QueueFull);
    assert_eq!(bench.world.count("operation").await, before);
    bench.settle().await;
    bench.ask(&ops::VM_RESTART, limit).await.expect("there is room again");
}

#[tokio::test]
async fn the_diff_is_made_anew_when_the_turn_comes() {
    let mut bench = Bench::new().await;
    let off = bench.queue(&ops::VM_POWER_OFF).await;
    let on = bench.queue(&ops::VM_POWER_ON).await;
    let stopped = bench.queue(&ops::VM_POWER_OFF).await;
    bench.work().await;
    bench.node(false).await;
    // The transaction that ends the first one lets the second one begin: it has its claim and was not looked at yet.
    bench.work().await;
    assert_eq!(bench.statuses(&[off, on, stopped]).await, [Status::Done, Status::Pending, Status::Pending]);
    assert_eq!(bench.vm_status().await, VmStatus::Starting);
    assert_eq!(change(&bench.operation(on).await), words("stopped", "running"));
    assert_eq!((bench.waits_for(on).await, bench.waits_for(stopped).await), (None, Some(on)));
    bench.settle().await;
    assert_eq!(bench.statuses(&[on, stopped]).await, [Status::Done, Status::Done]);
    assert_eq!(change(&bench.operation(stopped).await), words("running", "stopped"));
    assert_eq!(bench.vm_status().await, VmStatus::Stopped);
}

#[tokio::test]
async fn what_must_not_begin_any_more_fails_at_its_turn_and_the_next_one_begins() {
    let mut bench = Bench::new().await;
    bench.queue(&ops::VM_POWER_OFF).await;
    let (restart, on) = (bench.queue(&ops::VM_RESTART).await, bench.queue(&ops::VM_POWER_ON).await);
    bench.settle().await;
    assert_eq!(bench.statuses(&[restart, on]).await, [Status::Failed, Status::Done]);
    let failed = bench.operation(restart).await;
    assert_eq!(failed.error_code.as_deref(), Some(Code::WrongState.id()));
    let sentence = "\"one\" is stopped; restart needs it to be running or starting or exited or error.";
    assert_eq!(failed.error_message.as_deref(), Some(sentence));
    assert!(failed.started_at.is_none() && failed.completed_at.is_some());
    let events = bench.world.store.events(&[failed.id]).await.expect("events");
    let types: Vec<_> = events[&failed.id].iter().map(|e| (e.event_type.as_str(), e.state.as_str())).collect();
    assert_eq!(types, [("instance.restart.start", "stopping"), ("instance.restart.error", "stopped")]);
}

#[tokio::test]
async fn after_a_delete_everything_behind_it_fails() {
    let mut bench = Bench::new().await;
    let before = bench.queue(&ops::VM_RESTART).await;
    let delete = bench.queue(&ops::VM_DELETE).await;
    let mut behind = vec![bench.queue(&ops::VM_RESTART).await, bench.queue(&ops::VM_DELETE).await];
    behind.push(bench.queue(&ops::VM_POWER_OFF).await);
    bench.settle().await;
    assert_eq!(bench.statuses(&[before, delete]).await, [Status::Done, Status::Done]);
    for id in behind {
        let failed = bench.operation(id).await;
        assert_eq!(failed.status().expect("a status"), Status::Failed);
        assert_eq!(failed.error_code.as_deref(), Some(Code::CvmNotFound.id()));
        assert_eq!(failed.error_message, Some(format!("The VM was deleted by operation {delete}.")));
    }
    assert_eq!(bench.world.count("operation_resource WHERE held OR waiting").await, 0);
    assert_eq!(bench.vm_status().await, VmStatus::Deleted);
}

#[tokio::test]
async fn a_cancel_leaves_the_line_at_once() {
    let mut bench = Bench::new().await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(bench.queue(&ops::VM_RESTART).await);
    }
    bench.work().await;
    bench.cancel(all[2]).await;
    let cancelled = bench.operation(all[2]).await;
    assert_eq!(cancelled.status().expect("a status"), Status::Cancelled);
    assert_eq!(cancelled.error_code.as_deref(), Some(Code::Cancelled.id()));
    assert_eq!(cancelled.cancelled_by.as_deref(), Some("ann"));
    assert_eq!(bench.vm_status().await, VmStatus::Restarting, "it changed nothing");
    assert_eq!(bench.waits_for(all[3]).await, Some(all[0]));
    bench.settle().await;
    use Status::{Cancelled, Done};
    assert_eq!(bench.statuses(&all).await, [Done, Done, Cancelled, Done]);
}

#[tokio::test]
async fn a_failed_a_cancelled_and_an_abandoned_one_let_the_next_begin() {
    // Failed: the node refuses.
    let mut bench = Bench::new().await;
    let (first, second) = (bench.queue(&ops::VM_RESTART).await, bench.queue(&ops::VM_RESTART).await);
    bench.work().await;
    bench.node(true).await;
    bench.work().await;
    assert_eq!(bench.statuses(&[first, second]).await, [Status::Failed, Status::Pending]);
    assert_eq!(bench.waits_for(second).await, None);
    assert_eq!(change(&bench.operation(second).await), words("error", "running"));
    bench.settle().await;
    assert_eq!(bench.status(second).await, Status::Done);

    // Cancelled while it held the claim, before it began.
    let (first, second) = (bench.queue(&ops::VM_RESTART).await, bench.queue(&ops::VM_RESTART).await);
    bench.cancel(first).await;
    bench.settle().await;
    assert_eq!(bench.statuses(&[first, second]).await, [Status::Cancelled, Status::Done]);

    // Stuck: it keeps its claim, and those behind it wait until a person gives it up.
    let (first, second) = (bench.queue(&ops::VM_POWER_OFF).await, bench.queue(&ops::VM_DELETE).await);
    bench.stick(first).await;
    bench.settle().await;
    assert_eq!((bench.status(second).await, bench.waits_for(second).await), (Status::Pending, Some(first)));
    bench.abandon(first).await;
    bench.settle().await;
    assert_eq!(bench.statuses(&[first, second]).await, [Status::Failed, Status::Done]);
}

#[tokio::test]
async fn a_vm_that_left_while_its_operation_was_stuck_goes_with_the_abandon() {
    let mut bench = Bench::new().await;
    let (delete, behind) = (bench.queue(&ops::VM_DELETE).await, bench.queue(&ops::VM_RESTART).await);
    bench.work().await;
    bench.stick(delete).await;
    bench.node(false).await;
    assert_eq!((bench.work().await, bench.vm_status().await), (0, VmStatus::Deleting));
    bench.abandon(delete).await;
    assert_eq!(bench.vm_status().await, VmStatus::Deleted);
    assert_eq!(bench.world.count("vm_port").await, 0);
    assert_eq!(bench.operation(behind).await.error_code.as_deref(), Some(Code::CvmNotFound.id()));
}

#[tokio::test]
async fn a_start_of_the_server_keeps_the_line() {
    let mut bench = Bench::new().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(bench.queue(&ops::VM_RESTART).await);
    }
    bench.work().await;
    bench.world.store.close().await;
    bench.world.store = Store::open(bench.world.folder.path()).await.expect("the same database");
    let now = bench.tick();
    bench.world.store.operations_recover(Duration::from_secs(60), now).await.expect("a start");
    assert_eq!(bench.waits_for(all[2]).await, Some(all[0]));
    let mut tx = bench.world.store.begin().await.expect("a transaction");
    let line = queue::line(&mut tx, "vm", bench.vm).await.expect("a query").expect("a line");
    assert_eq!((line.waiting, line.running.as_deref(), line.ends_as.as_str()), (2, Some("restart"), "running"));
    drop(tx);
    bench.settle().await;
    assert_eq!(bench.statuses(&all).await, [Status::Done; 3]);
}

#[tokio::test]
async fn an_operation_takes_all_its_claims_or_none() {
    let mut bench = Bench::new().await;
    let (one, two) = ((bench.vm, bench.uuid.clone()), bench.vm("two", 20_001).await);
    // `one` is held by the first, `two` by its create: the second operation needs both.
    let first = bench.queue(&ops::VM_RESTART).await;
    let both = bench.ask_two(&one, two.0).await;
    // Whoever comes after it waits behind it, for each of its resources.
    let now = bench.tick();
    let behind = ask(&bench.world, two.0, &two.1, &ops::VM_DELETE, QUEUE, now).await.expect("waits");
    bench.settle().await;
    assert_eq!(bench.statuses(&[first, both, behind]).await, [Status::Done, Status::Pending, Status::Pending]);
    assert_eq!(bench.world.count("operation_resource WHERE held").await, 1, "only the create of `two`");
    let refused = bench.ask(&ops::VM_RESTART, IfBusy::Refuse).await.expect_err("somebody waits for it");
    assert_eq!(refused.code, Code::Busy);
    bench.comes_up(&two.1).await;
    assert_eq!(bench.world.count("operation_resource WHERE held").await, 2, "both at once");
    bench.settle().await;
    assert_eq!(bench.statuses(&[both, behind]).await, [Status::Done, Status::Running]);
}

#[tokio::test]
async fn nobody_is_overtaken_at_a_claim_that_is_free() {
    let mut bench = Bench::new().await;
    let two = bench.vm("two", 20_001).await;
    bench.comes_up(&two.1).await;
    // `three` is still being created, so `a` waits for it, and has not taken `two` either.
    let three = bench.vm("three", 20_002).await;
    let a = bench.ask_two(&two, three.0).await;
    let first = bench.queue(&ops::VM_RESTART).await;
    let one = (bench.vm, bench.uuid.clone());
    let b = bench.ask_two(&one, two.0).await;
    bench.settle().await;
    assert_eq!(bench.statuses(&[first, a, b]).await, [Status::Done, Status::Pending, Status::Pending]);
    assert_eq!(bench.world.count("operation_resource WHERE held").await, 1, "only the create of `three`");
    bench.comes_up(&three.1).await;
    assert_eq!(bench.world.count("operation_resource WHERE held").await, 2, "`a` took both of its claims");
    assert_eq!((bench.waits_for(a).await, bench.waits_for(b).await), (None, Some(a)));
}

#[tokio::test]
async fn whose_turn_it_is_is_looked_up_in_an_index() {
    let bench = Bench::new().await;
    let file = bench.world.folder.path().join("holdfast.db");
    let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
    let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(
        "EXPLAIN QUERY PLAN SELECT MIN(operation_id) FROM operation_resource
         WHERE kind = 'vm' AND resource_id = 1 AND waiting",
    )
    .fetch_all(&db)
    .await
    .expect("a plan");
    db.close().await;
    assert!(plan.iter().all(|row| row.3.contains("SEARCH") && row.3.contains("operation_resource_queue")), "{plan:?}");
}
