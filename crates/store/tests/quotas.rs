//! Quotas under races: what is left is given to as many as it is left for, whoever shares a commit and whoever gives up.

#[allow(dead_code)]
mod world;

use std::sync::Arc;

use holdfast_model::error::Code;
use holdfast_store::commit;
use holdfast_store::quotas::{Limits, Size, quota_set};
use tokio::task::JoinSet;
use world::{NOW, World};

async fn limit(world: &World, limits: Limits) {
    let mut tx = world.store.begin().await.expect("a transaction");
    quota_set(&mut tx, world.who.workspace_id, limits, NOW).await.expect("a quota");
    commit(tx).await.expect("a commit");
}

async fn used(world: &World) -> Size {
    world.store.quota(world.who.workspace_id).await.expect("a quota").used
}

#[tokio::test]
async fn exactly_one_gets_the_last_slot() {
    for _ in 0..10 {
        let world = Arc::new(World::new().await);
        limit(&world, Limits { vm_slots: Some(1), ..Limits::default() }).await;
        let mut racers = JoinSet::new();
        for racer in 0..50_u16 {
            let world = world.clone();
            racers.spawn(async move { world.create(&format!("racer-{racer}"), 20_000 + racer).await });
        }
        let (won, lost): (Vec<_>, Vec<_>) = racers.join_all().await.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 49));
        assert!(lost.into_iter().all(|lost| lost.is_err_and(|error| error.code == Code::QuotaExceeded)));
        assert_eq!(used(&world).await, Size { vm_slots: 1, vcpu: 1, memory_mb: 1024, disk_gb: 10 });
        assert_eq!(world.count("operation").await, 1, "a refusal leaves nothing");
    }
}

#[tokio::test]
async fn who_gives_up_in_the_middle_leaves_the_place_to_others() {
    let world = Arc::new(World::new().await);
    limit(&world, Limits { vcpu: Some(10), ..Limits::default() }).await;
    let mut racers = JoinSet::new();
    for racer in 0..50_u16 {
        let world = world.clone();
        racers.spawn(async move {
            let mut tx = world.store.begin().await.expect("a transaction");
            let made = world.create_in(&mut tx, &format!("racer-{racer}"), 20_000 + racer).await;
            // Every second one that got a place goes away without a commit.
            if made.is_ok() && racer % 2 == 0 {
                commit(tx).await.expect("a commit");
                return true;
            }
            false
        });
    }
    let made = racers.join_all().await.into_iter().filter(|made| *made).count();
    let now = used(&world).await;
    assert_eq!(i64::try_from(made).expect("few"), now.vm_slots);
    assert!(now.vcpu <= 10 && now.vcpu > 0, "{now:?}");
    // What they did not take is all there: it can be filled to the last.
    let mut racer = 100;
    while used(&world).await.vcpu < 10 {
        world.create(&format!("filler-{racer}"), 20_000 + racer).await.expect("there is room");
        racer += 1;
    }
    let error = world.create("one-too-many", 29_999).await.expect_err("no room");
    assert_eq!(error.code, Code::QuotaExceeded);
}
