//! Projects, and who sees what of them.

#[allow(dead_code)]
mod world;

use holdfast_model::error::Code;
use holdfast_store::history::Filter;
use holdfast_store::page::{From, Sort};
use holdfast_store::projects::{By, Project, project_delete, project_in, project_insert, project_rename};
use holdfast_store::scope::Scope;
use holdfast_store::vms::{self, By as Named};
use holdfast_store::{apps, audit_log, commit, provisions};
use world::{NOW, World};

async fn made(world: &World, name: &str) -> Project {
    let mut tx = world.store.begin().await.expect("a transaction");
    let uuid = project_insert(&mut tx, world.who.workspace_id, name, false, NOW).await.expect("a project");
    commit(tx).await.expect("a commit");
    world.store.project(&world.who.scope(), By::Uuid(&uuid)).await.expect("a query").expect("the project")
}

#[tokio::test]
async fn names_are_one_living_projects() {
    let world = World::new().await;
    let (one, whole) = (made(&world, "one").await, world.who.scope());
    let mut tx = world.store.begin().await.expect("a transaction");
    let taken = project_insert(&mut tx, world.who.workspace_id, "one", false, NOW).await.expect_err("taken");
    assert_eq!(taken.code, Code::ProjectNameTaken);
    assert_eq!(project_rename(&mut tx, one.id, "default").await.expect_err("taken").code, Code::ProjectNameTaken);
    project_rename(&mut tx, one.id, "uno").await.expect("free");
    let uno = project_in(&mut tx, &whole, By::Name("uno")).await.expect("a query").expect("the project");
    project_delete(&mut tx, &uno, NOW).await.expect("empty");
    assert_eq!(project_in(&mut tx, &whole, By::Key(one.id)).await.expect("a query"), None);
    project_insert(&mut tx, world.who.workspace_id, "uno", false, NOW).await.expect("free again");
    let default = project_in(&mut tx, &whole, By::Name("default")).await.expect("a query").expect("it is there");
    assert_eq!(project_delete(&mut tx, &default, NOW).await.expect_err("it stays").code, Code::ProjectIsDefault);
    commit(tx).await.expect("a commit");
    let page = world.store.projects(&whole, &From::Start, 1).await.expect("a page");
    assert_eq!((page.items[0].name.as_str(), page.total.number, page.has_next), ("default", 2, true));
    assert_eq!(world.store.project_ids(world.who.workspace_id).await.expect("a query").len(), 3, "history keeps them");
}

/// Everything that looks something up, of three projects, for somebody who sees two of them.
#[tokio::test]
async fn a_scope_has_what_is_in_its_projects() {
    let mut world = World::new().await;
    let (one, two) = (made(&world, "one").await, made(&world, "two").await);
    let (first, _) = world.create("first", 20_000).await.expect("a VM");
    world.project = Some(one.id);
    let (second, _) = world.create("second", 20_001).await.expect("a VM");
    world.project = Some(two.id);
    let (third, hidden) = world.create("third", 20_002).await.expect("a VM");
    let third = world.store.vm(third).await.expect("a query").expect("the VM");
    assert_eq!((third.project_id, third.project_uuid.as_str()), (two.id, two.uuid.as_str()));
    let one = world.store.project(&world.who.scope(), By::Key(one.id)).await.expect("a query").expect("the project");
    assert_eq!(one.cvms, 1);
    let mut tx = world.store.begin().await.expect("a transaction");
    assert_eq!(project_delete(&mut tx, &one, NOW).await.expect_err("in use").code, Code::ProjectInUse);
    drop(tx);

    let workspace = world.who.workspace_id;
    let scope = Scope::of(workspace, Some(&[world.who.project_id, one.id]));
    let store = &world.store;
    for by in [
        Named::Key(third.id),
        Named::Uuid(&third.uuid),
        Named::AppId(&third.app_id),
        Named::InstanceId(&third.instance_id),
        Named::Name("third"),
    ] {
        assert_eq!(store.vms_by(&scope, by.clone()).await.expect("a query"), [], "{by:?}");
        assert_eq!(store.vms_by(&Scope::whole(workspace), by).await.expect("a query").len(), 1);
    }
    let filter = vms::Filter { scope: Some(scope.clone()), ..vms::Filter::default() };
    let (seen, total) = store.vms_page(&filter, 10, 0).await.expect("a page");
    assert_eq!((seen.iter().map(|vm| vm.id).collect::<Vec<_>>(), total), (vec![second, first], 2));
    let (seen, total) = store.apps(&scope, &apps::Filter::default(), 10, 0).await.expect("a page");
    assert_eq!((seen.len(), total), (2, 2));
    assert_eq!(store.app(&scope, &third.app_id).await.expect("a query"), None);
    assert_eq!(store.app_by_row(&scope, third.app_row).await.expect("a query"), None);
    assert_eq!(store.app_filter_options(&Scope::of(workspace, Some(&[]))).await.expect("a query"), []);
    assert!(store.operation(Some(&scope), &hidden.to_string()).await.expect("a query").is_none());

    for sort in [Sort::newest_first("created_at"), Sort::newest_first("updated_at")] {
        let operations = Filter { scope: scope.clone(), ..Filter::default() };
        let page = store.operations(&operations, &sort, &From::Start, 10).await.expect("a page");
        let names: Vec<_> = page.items.iter().map(|o| o.resource_name.as_str()).collect();
        assert_eq!((names, page.total.number), (vec!["second", "first"], 2));
        let named = Filter { name_prefix: Some("t".to_owned()), ..operations.clone() };
        let page = store.operations(&named, &sort, &From::Start, 10).await.expect("a page");
        assert_eq!((page.items.len(), page.total.number), (0, 0));
        let of_project = Filter { project_uuid: Some(two.uuid.clone()), ..operations };
        assert_eq!(store.operations(&of_project, &sort, &From::Start, 10).await.expect("a page").items, []);
    }
    let sort = Sort::newest_first("at");
    let entries = audit_log::Filter { scope: scope.clone(), ..audit_log::Filter::default() };
    let page = store.audit_log(&entries, &sort, &From::Start, 10).await.expect("a page");
    assert_eq!((page.items.len(), page.total.number), (2, 2));
    let whole = audit_log::Filter { scope: Scope::whole(workspace), ..audit_log::Filter::default() };
    let page = store.audit_log(&whole, &sort, &From::Start, 10).await.expect("a page");
    assert_eq!(page.items.len(), 3);
    for entry in &page.items {
        let seen = store.audit_entry(&scope, &entry.uuid).await.expect("a query").is_some();
        assert_eq!(seen, entry.target() != Some(("vm", &third.uuid)), "{entry:?}");
    }
    let events = store.events_after(0, 10).await.expect("events");
    assert_eq!(events.iter().filter(|event| scope.admits(event.workspace_id, event.project_id)).count(), 2);
}

/// What was prepared for one project, and the compose files that were brought to it, are not there for another.
#[tokio::test]
async fn what_is_prepared_belongs_to_a_project() {
    let world = World::new().await;
    let (one, two, workspace) = (made(&world, "one").await, made(&world, "two").await, world.who.workspace_id);
    let (mine, theirs) = (Scope::of(workspace, Some(&[one.id])), Scope::of(workspace, Some(&[two.id])));
    let provision = |project_id: i64, request: &str| provisions::Provision {
        project_id,
        app_id: "a1".to_owned(),
        nonce: 1,
        compose_hash: "hash".to_owned(),
        request: request.to_owned(),
    };
    let later = |seconds| NOW.plus(std::time::Duration::from_secs(seconds));
    let mut tx = world.store.begin().await.expect("a transaction");
    provisions::app_compose_insert(&mut tx, (workspace, one.id), "hash", "{}", NOW).await.expect("kept");
    provisions::provision_insert(&mut tx, workspace, &provision(one.id, "mine"), NOW, later(9)).await.expect("kept");
    commit(tx).await.expect("a commit");
    let find = async |scope: &Scope| {
        let found = world.store.provision(scope, "a1", "hash", NOW).await.expect("a query");
        found.map(|(provision, _)| provision.request)
    };
    assert_eq!((find(&mine).await.as_deref(), find(&theirs).await), (Some("mine"), None));
    assert_eq!(world.store.app_compose(&theirs, "hash").await.expect("a query"), None);
    assert_eq!(world.store.app_compose(&mine, "hash").await.expect("a query").as_deref(), Some("{}"));
    assert!(world.store.app_compose(&Scope::whole(workspace), "hash").await.expect("a query").is_some());

    let mut tx = world.store.begin().await.expect("a transaction");
    provisions::app_compose_insert(&mut tx, (workspace, two.id), "hash", "{}", NOW).await.expect("kept");
    provisions::provision_insert(&mut tx, workspace, &provision(two.id, "theirs"), NOW, later(10)).await.expect("kept");
    commit(tx).await.expect("a commit");
    assert_eq!((find(&mine).await.as_deref(), find(&theirs).await.as_deref()), (Some("mine"), Some("theirs")));
    assert_eq!(find(&Scope::whole(workspace)).await.as_deref(), Some("theirs"), "the last of them");
    assert!(world.store.app_compose(&theirs, "hash").await.expect("a query").is_some());
    let mut tx = world.store.begin().await.expect("a transaction");
    project_delete(&mut tx, &two, NOW).await.expect("empty");
    commit(tx).await.expect("a commit");
    assert_eq!(find(&Scope::whole(workspace)).await.as_deref(), Some("mine"));
}
