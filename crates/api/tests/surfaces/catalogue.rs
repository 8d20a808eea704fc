//! What is on offer: instance types of the operator's own, and capacity that is true.

use std::sync::Arc;

use holdfast_control::Settings;
use holdfast_control::catalogue::Catalogue;
use serde_json::{Value, json};

use crate::support::{Server, V2025, V2026, provision, until};

const TYPES: &str = r#"
[[type]]
id = "lab.one"
family = "lab"
name = "One"
description = "for a start"
vcpu = 2
memory_mb = 1024
disk_gb = 5
hourly_rate = "0.0420"

[[type]]
id = "lab.two"
family = "lab"
name = "Two"
vcpu = 4
memory_mb = 2048

[[type]]
id = "big.one"
family = "big"
name = "Big"
vcpu = 16
memory_mb = 32768
hourly_rate = "12"
"#;

async fn with_own_types() -> Server {
    let catalogue = Arc::new(Catalogue::parse(TYPES).expect("a catalogue"));
    Server::start_with(Settings { catalogue, ..Settings::default() }).await
}

#[tokio::test]
async fn instance_types_are_those_of_the_operators_file() {
    let server = with_own_types().await;
    let all = server.at(V2026).get("/instance-types").await.expect(200);
    let families: Vec<_> =
        all["result"].as_array().expect("families").iter().map(|f| (&f["name"], &f["total"])).collect();
    assert_eq!(families, [(&json!("lab"), &json!(2)), (&json!("big"), &json!(1))]);
    let one = json!({
        "id": "lab.one", "name": "One", "description": "for a start", "vcpu": 2, "memory_mb": 1024,
        "hourly_rate": "0.0420", "requires_gpu": false, "default_disk_size_gb": 5, "family": "lab",
    });
    assert_eq!(all["result"][0]["items"][0], one);
    let big = server.at(V2026).get("/instance-types/big").await.expect(200);
    assert_eq!(
        (&big["family"], &big["total"], &big["items"][0]["hourly_rate"]),
        (&json!("big"), &json!(1), &json!("12"))
    );
    assert_eq!(server.at(V2026).get("/instance-types/cpu").await.expect(404)["error_code"], "ERR-02-001");
    let graph = server.at(V2026).get("/teepods/cvm-create-resources").await.expect(200);
    let ids: Vec<_> = graph["instance_types"].as_array().expect("types").iter().map(|t| t["id"].clone()).collect();
    assert_eq!(ids, ["lab.one", "lab.two", "big.one"]);
}

#[tokio::test]
async fn a_type_is_a_name_for_a_size() {
    let server = with_own_types().await;
    // Whoever names none gets the first; a name that is not there is refused, on every way to a size.
    let mut body = provision("first-app");
    let refused = server.at(V2025).post("/cvms/provision", &body).await.expect(400);
    assert_eq!(refused["error_code"], "ERR-02-001", "tdx.small is not on offer here: {refused}");
    body.as_object_mut().expect("an object").remove("instance_type");
    let provisioned = server.at(V2025).post("/cvms/provision", &body).await.expect(200);
    let commit = json!({ "app_id": provisioned["app_id"], "compose_hash": provisioned["compose_hash"] });
    server.at(V2025).post("/cvms", &commit).await.expect(200);
    server.until_status("first-app", "running").await;
    let size = async || server.at(V2026).get("/cvms/first-app").await.expect(200)["resource"].clone();
    let one = size().await;
    assert_eq!((&one["vcpu"], &one["memory_in_gb"], &one["disk_in_gb"]), (&json!(2), &json!(1.0), &json!(5)), "{one}");
    let resize = json!({ "instance_type": "lab.two" });
    assert!(server.at(V2026).patch("/cvms/first-app/resources", &resize).await.status.is_success());
    server.until_status("first-app", "running").await;
    assert_eq!(size().await["vcpu"], 4);
    // The size of a type, by its numbers, has its name.
    assert!(
        server
            .at(V2026)
            .patch("/cvms/first-app/resources", &json!({ "vcpu": 2, "memory": 1024 }))
            .await
            .status
            .is_success()
    );
    server.until_status("first-app", "running").await;
    assert_eq!(size().await["instance_type"], "lab.one");
    let refused = server.at(V2026).patch("/cvms/first-app/resources", &json!({ "instance_type": "tdx.small" })).await;
    assert_eq!(refused.expect(400)["error_code"], "ERR-02-001");
}

#[tokio::test]
async fn what_is_reserved_is_not_on_offer() {
    let server = Server::start().await;
    let node = async || server.at(V2026).get("/teepods/available").await.expect(200)["nodes"][0].clone();
    let left = |node: &Value| {
        let of = |key: &str| node[key].as_i64().expect("a number");
        (of("remaining_vcpu"), of("remaining_memory"), of("remaining_cvm_slots"))
    };
    let before = left(&node().await);
    server.deploy_running("first-app").await;
    assert_eq!(left(&node().await), (before.0 - 1, before.1 - 2048, before.2 - 1));
    let graph = server.at(V2026).get("/teepods/cvm-create-resources").await.expect(200);
    assert_eq!(left(&graph["nodes"][0]), left(&node().await));
    server.at(V2026).delete("/cvms/first-app").await;
    until("all of it is there again", async || left(&node().await) == before).await;
}

#[tokio::test]
async fn a_node_that_is_away_or_set_aside_offers_nothing() {
    let server = Server::start().await;
    let offered = async || {
        let nodes = server.at(V2026).get("/teepods/available").await.expect(200)["nodes"].as_array().map(Vec::len);
        let graph = server.at(V2026).get("/teepods/cvm-create-resources").await.expect(200);
        let graph = (graph["nodes"].as_array().map(Vec::len), graph["kms_nodes"][0]["supported_os_images"].clone());
        let images = server.at(V2026).get("/os-images").await.expect(200)["total"].clone();
        (nodes, graph.0, graph.1, images)
    };
    let status = async || {
        let page = server.at(V2026).get("/workspaces/default/nodes").await.expect(200);
        assert_eq!((&page["total"], &page["page_size"]), (&json!(1), &json!(30)));
        page["items"][0]["status"].clone()
    };
    let all = (Some(1), Some(1), json!(["holdfast-1.2.3"]), json!(1));
    let none = (Some(0), Some(0), json!([]), json!(0));
    assert_eq!((offered().await, status().await), (all.clone(), json!("ONLINE")));
    for (statement, back, word) in [
        ("UPDATE node SET last_seen_at = 0", "UPDATE node SET last_seen_at = 4000000000000000", "OFFLINE"),
        ("UPDATE node SET cordoned = TRUE", "UPDATE node SET cordoned = FALSE", "MAINTENANCE"),
        ("UPDATE node SET ready = FALSE", "UPDATE node SET ready = TRUE", "ONLINE"),
    ] {
        server.sql(statement).await;
        assert_eq!((offered().await, status().await), (none.clone(), json!(word)), "{statement}");
        let refused = server.at(V2025).post("/cvms/provision", &provision("some-app")).await.expect(400);
        assert_eq!(refused["error_code"], "ERR-02-002", "{statement}: {refused}");
        server.sql(back).await;
        assert_eq!(offered().await, all, "{back}");
    }
}
