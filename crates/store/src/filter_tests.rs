//! Every filter is a range of an index, in every order: what the database says it will do, with no statistics to go by.

use super::*;
use crate::Store;
use crate::page::Term;

const EXPLAIN: &str = "EXPLAIN QUERY PLAN ";
const SORTED: &str = "USE TEMP B-TREE FOR ORDER BY";

/// Steps of the plan of a query.
fn plan(store: &Store, query: Query) -> Vec<String> {
    let rows: Vec<(i64, i64, i64, String)> = store.read().here(|db| db.all(&query)).expect("a plan");
    rows.into_iter().map(|(.., step)| step).collect()
}

fn filter() -> Filter {
    Filter { scope: Scope::whole(1), ..Filter::default() }
}

/// The same for somebody who sees some projects.
fn limited(projects: &[i64]) -> Filter {
    Filter { scope: Scope::of(1, Some(projects)), ..Filter::default() }
}

/// Every filter alone, and some together: (name, filter, index that it must lead with).
fn cases() -> Vec<(&'static str, Filter, &'static str)> {
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let time = Some(Timestamp(1));
    let name = Some("web-".to_owned());
    let failed = vec![Status::Failed, Status::Cancelled];
    vec![
        ("everything", filter(), "operation_by_created"),
        ("time", Filter { created_min: time, created_max: time, ..filter() }, "operation_by_created"),
        ("kind", Filter { kind: Some(Kind::Vm), ..filter() }, "operation_by_type"),
        ("type", Filter { verb: Some(Verb::Update), ..filter() }, "operation_by_type"),
        ("operation type", Filter { operation_types: words(&["create"]), ..filter() }, "operation_by_type"),
        ("two types", Filter { operation_types: words(&["create", "delete"]), ..filter() }, "operation_by_type"),
        ("status", Filter { statuses: vec![Status::Done], ..filter() }, "operation_by_status"),
        ("statuses", Filter { statuses: failed.clone(), ..filter() }, "operation_by_status"),
        ("resource", Filter { resource_uuid: Some("u".to_owned()), ..filter() }, "operation_by_resource"),
        ("CVM", Filter { kind: Some(Kind::Vm), resource_id: Some(1), ..filter() }, "operation_by_resource"),
        ("actor", Filter { actor: Some(Actor::Username("u".to_owned())), ..filter() }, "operation_by_actor"),
        ("actor id", Filter { actor: Some(Actor::Id(1)), ..filter() }, "operation_by_actor"),
        ("project", Filter { project_uuid: Some("u".to_owned()), ..filter() }, "operation_by_project"),
        ("correlation id", Filter { uuid: Some("u".to_owned()), ..filter() }, "sqlite_autoindex_operation_1"),
        ("name", Filter { name_prefix: name.clone(), ..filter() }, "operation_by_name"),
        ("name, time", Filter { name_prefix: name.clone(), created_min: time, ..filter() }, "operation_by_name"),
        (
            "name, failed",
            Filter { name_prefix: name.clone(), statuses: failed.clone(), ..filter() },
            "operation_by_status",
        ),
        (
            "name, done, actor",
            Filter { name_prefix: name, statuses: vec![Status::Done], actor: Some(Actor::Id(1)), ..filter() },
            "operation_by_name",
        ),
        (
            "resource, failed, time",
            Filter { resource_uuid: Some("u".to_owned()), statuses: failed, created_max: time, ..filter() },
            "operation_by_resource",
        ),
        (
            "actor, kind, project, done",
            Filter {
                actor: Some(Actor::Id(1)),
                kind: Some(Kind::Vm),
                project_uuid: Some("u".to_owned()),
                statuses: vec![Status::Done],
                ..filter()
            },
            "operation_by_actor",
        ),
        (
            "kind, type, project",
            Filter { kind: Some(Kind::Vm), verb: Some(Verb::Update), project_uuid: Some("u".to_owned()), ..filter() },
            "operation_by_type",
        ),
        ("one's project", limited(&[1]), "operation_by_project"),
        ("one's projects", limited(&[1, 2, 3]), "operation_by_project"),
        ("one's projects, time", Filter { created_min: time, ..limited(&[1, 2]) }, "operation_by_project"),
        ("one's project, kind", Filter { kind: Some(Kind::Vm), ..limited(&[1]) }, "operation_by_project"),
        (
            "one's projects, name",
            Filter { name_prefix: Some("a".to_owned()), ..limited(&[1, 2]) },
            "operation_by_project",
        ),
        (
            "one of one's projects",
            Filter { project_uuid: Some("u".to_owned()), ..limited(&[1, 2]) },
            "operation_by_project",
        ),
        (
            "one's projects, failed",
            Filter { statuses: vec![Status::Failed], ..limited(&[1, 2]) },
            "operation_by_status",
        ),
        (
            "one's projects, id",
            Filter { uuid: Some("u".to_owned()), ..limited(&[1, 2]) },
            "sqlite_autoindex_operation_1",
        ),
        (
            "one's projects, CVM",
            Filter { kind: Some(Kind::Vm), resource_id: Some(1), ..limited(&[1, 2]) },
            "operation_by_resource",
        ),
    ]
}

/// No step reads all of a table.
fn assert_no_scan(name: &str, steps: &[String]) {
    for step in steps {
        let scan = step.strip_prefix("SCAN ");
        // What a query made for itself may be read whole: the names, and the keys that are counted.
        let own = scan.is_some_and(|what| ["name", "matching", "first"].contains(&what));
        assert!(scan.is_none() || own || step.starts_with("SCAN CONSTANT"), "{name}: {step} in {steps:#?}");
    }
}

fn assert_led_by(name: &str, steps: &[String], index: &str) {
    let led = steps.iter().filter(|step| step.starts_with("SEARCH o USING") && !step.contains("PRIMARY KEY"));
    let led: Vec<&String> = led.collect();
    assert!(!led.is_empty() && led.iter().all(|step| step.contains(&format!("INDEX {index} "))), "{name}: {steps:#?}");
}

#[tokio::test]
async fn pages_are_read_from_an_index_in_their_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).await.expect("a database");
    let place = Place { values: vec![5], id: 5 };
    for (name, filter, index) in cases() {
        for descending in [true, false] {
            let sort = Sort::new(vec![Term { column: "created_at", descending }]).expect("an order");
            for place in [None, Some(&place)] {
                let steps = plan(&store, filter.page(EXPLAIN, (&sort, place), 51, false));
                assert_no_scan(name, &steps);
                assert_led_by(name, &steps, index);
                // One row has no order, and names are few and sorted.
                let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
                let may_sort = matches!(filter.lead(), Lead::Uuid | Lead::Name);
                assert!(!sorts || may_sort, "{name}: {steps:#?}");
            }
        }
    }
}

#[tokio::test]
async fn pages_by_update_are_walked_unless_few_match() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).await.expect("a database");
    let place = Place { values: vec![5], id: 5 };
    let sort = Sort::new(vec![Term { column: "updated_at", descending: false }]).expect("an order");
    for (name, filter, index) in cases() {
        let steps = plan(&store, filter.page(EXPLAIN, (&sort, Some(&place)), 51, false));
        assert_no_scan(name, &steps);
        if matches!(filter.lead(), Lead::Uuid | Lead::Resource) {
            assert_led_by(name, &steps, index);
        } else {
            assert_led_by(name, &steps, "operation_by_updated");
            assert!(!steps.iter().any(|step| step == SORTED), "{name}: {steps:#?}");
        }
        let steps = plan(&store, filter.page(EXPLAIN, (&sort, Some(&place)), 51, true));
        assert_no_scan(name, &steps);
        let walked = filter.lead() == Lead::Created;
        assert_led_by(name, &steps, if walked { "operation_by_updated" } else { index });
    }
}

#[tokio::test]
async fn counts_read_the_same_index_and_no_further() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).await.expect("a database");
    for (name, filter, index) in cases() {
        if filter.lead() == Lead::Name {
            let steps = plan(&store, filter.count_by_name(EXPLAIN));
            assert_no_scan(name, &steps);
            assert_led_by(name, &steps, index);
            assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{name}: {steps:#?}");
            continue;
        }
        for query in [filter.count(EXPLAIN), filter.uncounted(EXPLAIN)] {
            let steps = plan(&store, query);
            assert_no_scan(name, &steps);
            assert_led_by(name, &steps, index);
            let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
            assert!(!sorts || filter.lead() == Lead::Uuid, "{name}: {steps:#?}");
        }
        for word in filter.counted_words() {
            let steps = plan(&store, filter.end(EXPLAIN, word, false));
            assert_led_by(name, &steps, index);
        }
    }
}

#[tokio::test]
async fn orders_of_two_terms_sort_only_what_is_equal_in_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path()).await.expect("a database");
    let place = Place { values: vec![5, 6], id: 5 };
    for (first, second, index) in
        [("created_at", "updated_at", "operation_by_created"), ("updated_at", "created_at", "operation_by_updated")]
    {
        for descending in [true, false] {
            let terms = vec![Term { column: first, descending: true }, Term { column: second, descending }];
            let sort = Sort::new(terms).expect("an order");
            let steps = plan(&store, filter().page(EXPLAIN, (&sort, Some(&place)), 51, false));
            assert_no_scan(first, &steps);
            assert_led_by(first, &steps, index);
            assert!(!steps.iter().any(|step| step == SORTED), "{steps:#?}");
        }
    }
}

#[test]
fn words_that_no_operation_has_match_nothing() {
    assert!(Filter { kind: Some(Kind::NksCluster), ..filter() }.is_empty());
    assert!(Filter { nothing: true, ..filter() }.is_empty());
    let restarts = Filter { verb: Some(Verb::Restart), operation_types: vec!["create".to_owned()], ..filter() };
    assert!(restarts.is_empty(), "a create is no restart");
    assert!(!Filter { kind: Some(Kind::Vm), ..filter() }.is_empty());
    assert!(limited(&[]).is_empty() && !limited(&[1]).is_empty());
}

/// Whoever sees all of a workspace asks the database what they asked before there were projects.
#[test]
fn a_whole_workspace_is_asked_for_without_its_projects() {
    let sort = Sort::newest_first("created_at");
    for (name, filter, _) in cases() {
        if filter.scope == Scope::whole(1) && filter.project_uuid.is_none() {
            let asked = filter.page("", (&sort, None), 51, false);
            let asked = asked.text().replace(LIST, "");
            assert!(!asked.contains("project_id"), "{name}: {asked}");
        }
    }
}
