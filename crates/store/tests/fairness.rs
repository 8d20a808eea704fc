//! Whose operations are claimed: one workspace's many do not hold up another's few.

#[allow(dead_code)]
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use holdfast_model::Timestamp;
use holdfast_store::operations::Claimed;
use world::{NOW, World, principal};

const LEASE: Duration = Duration::from_secs(10);
const BATCH: i64 = 64;

fn at(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

/// A world whose operations belong to whichever workspace is asked for.
struct Many {
    world: World,
    port: u16,
}

impl Many {
    async fn new(others: usize) -> Self {
        let world = World::new().await;
        for other in 0..others {
            principal(&world.store, &format!("user-{other}"), &format!("other-{other}")).await;
        }
        Self { world, port: 20_000 }
    }

    /// Accepts a create, and as many operations like it as are wanted, each due a microsecond after the one before it.
    async fn accept(&mut self, workspace: i64, operations: i64) {
        self.port += 1;
        let port = self.port;
        let (_, first) = self.world.create(&format!("vm-{port}"), port).await.expect("accepted");
        self.sql(&format!(
            "UPDATE operation SET workspace_id = {workspace}, wake_at = {now} + ({port} - 20000) * 100000 WHERE uuid = '{first}';
             WITH RECURSIVE more(n) AS (SELECT 1 WHERE {operations} > 1 UNION ALL SELECT n + 1 FROM more
                WHERE n < {operations} - 1)
             INSERT INTO operation (uuid, workspace_id, project_id, kind, verb, operation_type, plan_version, target_state,
                resource_id, resource_uuid, resource_name, user_id, username, email, request_id, request, diff, status,
                status_before, direction, step, step_entered, generation, sub_operations, wake_at, lease_token, attempts,
                created_at, updated_at)
             SELECT uuid || '-' || n, workspace_id, project_id, kind, verb, operation_type, plan_version, target_state,
                resource_id, resource_uuid, resource_name, user_id, username, email, request_id, request, diff, status,
                status_before, direction, step, step_entered, generation, sub_operations, wake_at + n, lease_token,
                attempts, created_at, updated_at
             FROM operation, more WHERE uuid = '{first}';",
            now = NOW.micros(),
        ))
        .await;
    }

    async fn sql(&self, statements: &str) {
        let file = self.world.folder.path().join("holdfast.db");
        let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned())).execute(&db).await.expect("statements");
        db.close().await;
    }

    async fn claim(&self) -> Vec<Claimed> {
        self.world.store.operations_claim("w", LEASE, BATCH, at(100)).await.expect("a claim")
    }

    /// How many of a batch belong to each workspace.
    async fn of(&self, batch: &[Claimed]) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        let file = self.world.folder.path().join("holdfast.db");
        let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", file.display())).await.expect("a connection");
        for claimed in batch {
            let workspace: i64 = sqlx::query_scalar("SELECT workspace_id FROM operation WHERE id = $1")
                .bind(claimed.id)
                .fetch_one(&db)
                .await
                .expect("an operation");
            *counts.entry(workspace).or_default() += 1;
        }
        db.close().await;
        counts
    }
}

#[tokio::test]
async fn a_thousand_do_not_hold_up_one() {
    let mut many = Many::new(1).await;
    many.accept(1, 1000).await;
    many.accept(2, 1).await;
    let counts = many.of(&many.claim().await).await;
    assert_eq!(counts, BTreeMap::from([(1, 63), (2, 1)]), "the one is in the very next batch, and the batch is full");
    // One that comes later is in the batch after it.
    many.accept(2, 1).await;
    let counts = many.of(&many.claim().await).await;
    assert_eq!(counts, BTreeMap::from([(1, 63), (2, 1)]));
    let mut left = 1000 - 126;
    while left > 0 {
        let batch = many.claim().await;
        assert!(!batch.is_empty());
        left -= batch.len();
    }
    assert!(many.claim().await.is_empty(), "each was claimed once");
}

#[tokio::test]
async fn those_who_have_much_share() {
    let mut many = Many::new(2).await;
    many.accept(1, 500).await;
    many.accept(2, 500).await;
    many.accept(3, 2).await;
    let counts = many.of(&many.claim().await).await;
    assert_eq!(counts[&3], 2, "{counts:?}");
    assert!(counts[&2] >= 16, "{counts:?}");
    assert_eq!(counts.values().sum::<usize>(), 64, "{counts:?}");
}

#[tokio::test]
async fn everybodys_turn_comes_round() {
    let mut many = Many::new(119).await;
    many.accept(1, 500).await;
    for workspace in 2..=120 {
        many.accept(workspace, 3).await;
    }
    // 48 of a batch go by turn: three batches go around 120 workspaces.
    let mut seen = BTreeMap::new();
    for _ in 0..3 {
        for (workspace, count) in many.of(&many.claim().await).await {
            *seen.entry(workspace).or_insert(0) += count;
        }
    }
    assert_eq!(seen.len(), 120, "{seen:?}");
}

#[tokio::test]
async fn the_oldest_come_first_where_nobody_else_waits() {
    let mut many = Many::new(0).await;
    many.accept(1, 200).await;
    let batch = many.claim().await;
    let mut ids: Vec<i64> = batch.iter().map(|claimed| claimed.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=64).collect::<Vec<_>>());
    assert!(batch.iter().all(|claimed| claimed.attempts == 1 && claimed.lease_token == 1));
}

/// A claim looks into indexes only, and does not grow with what waits.
#[tokio::test]
async fn a_claim_costs_the_same_however_much_waits() {
    let mut many = Many::new(1).await;
    many.accept(1, 30_000).await;
    many.accept(2, 1).await;
    let began = Instant::now();
    for _ in 0..20 {
        many.claim().await;
    }
    let each = began.elapsed() / 20;
    println!("a claim of 64 among 30,000: {each:?}");
    assert!(each < Duration::from_millis(100), "{each:?}");
}
