//! The keys and types of every answer, as the seed pages and the clients' schemas have them.
//!
//! A shape is written as text: `name` must be there, `?` allows null; the word after the colon is the type.

use serde_json::{Value, json};

use crate::support::{NEWEST, Server, V_STRING_IDS, V2025, V2026};

/// Checks an object against `key:type key:type? ...`, and that it has these keys when `strict`.
#[track_caller]
pub fn check(value: &Value, strict: bool, shape: &str) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let mut keys = Vec::new();
    for field in shape.split_whitespace() {
        let (key, kind) = field.split_once(':').expect("key:type");
        let value = object.get(key).unwrap_or_else(|| panic!("\"{key}\" is missing in {value}"));
        keys.push(key);
        let (kind, nullable) = kind.strip_suffix('?').map_or((kind, false), |kind| (kind, true));
        let fits = match kind {
            "text" => value.is_string(),
            "int" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "bool" => value.is_boolean(),
            "list" => value.is_array(),
            "object" => value.is_object(),
            "time" => value.as_str().is_some_and(|t| holdfast_model::Timestamp::parse(t).is_some() && t.ends_with('Z')),
            "null" => value.is_null(),
            prefix => value.as_str().is_some_and(|text| text.starts_with(prefix)),
        };
        assert!(fits || (nullable && value.is_null()), "\"{key}\" should be {kind}: {value}");
    }
    if strict {
        let unknown: Vec<_> = object.keys().filter(|key| !keys.contains(&key.as_str())).collect();
        assert!(unknown.is_empty(), "unknown keys {unknown:?}");
    }
}

const KMS_INFO: &str =
    "id:kms_ slug:text? url:text version:text chain_id:int? kms_contract_address:text? gateway_app_id:text?";

#[track_caller]
fn check_hosted(cvm: &Value) {
    check(
        cvm,
        false,
        "hosted:object name:text managed_user:object? node:object? listed:bool status:text in_progress:bool
         dapp_dashboard_url:text? syslog_endpoint:text? allow_upgrade:bool project_id:prj_ project_type:text?
         billing_period:text? kms_info:object? contract_address:text? deployer_address:text? vcpu:int? memory:int?
         disk_size:int? gateway_domain:text? public_urls:list",
    );
    check(
        &cvm["hosted"],
        false,
        "id:text name:text status:text uptime:text app_url:text? app_id:text instance_id:text? configuration:object?
         exited_at:text? boot_progress:text? boot_error:text? shutdown_progress:text? image_version:text? events:list",
    );
    check(
        &cvm["hosted"]["configuration"],
        false,
        "name:text image:text compose_file:object? vcpu:int memory:int disk_size:int ports:list? encrypted_env:text?
         app_id:text? user_config:text? hugepages:bool pin_numa:bool gpus:object? kms_urls:list gateway_urls:list",
    );
    check(
        &cvm["hosted"]["configuration"]["ports"][0],
        false,
        "protocol:text host_port:int vm_port:int host_address:text?",
    );
    check(&cvm["managed_user"], false, "id:int username:text");
    check(&cvm["node"], false, "id:int name:text region_identifier:text?");
    check(&cvm["kms_info"], false, KMS_INFO);
    check(&cvm["public_urls"][0], false, "app:http:// instance:http://");
}

const INFO: &str = "id:cvm_ name:text app_id:text? vm_uuid:text? instance_id:text? resource:object node_info:object?
    os:object? kms_type:phala kms_info:object? status:text in_progress:bool progress:object? compose_hash:text?
    docker_compose_hash:text? pre_launch_script_hash:text? gateway:object logs:object services:list endpoints:list?
    public_logs:bool public_sysinfo:bool public_tcbinfo:bool gateway_enabled:bool secure_time:bool storage_fs:text
    workspace:object? creator:object? created_at:time deleted_at:time? listed:bool project_type:text?";

#[track_caller]
fn check_info(cvm: &Value) {
    check(cvm, false, INFO);
    check(
        &cvm["resource"],
        false,
        "instance_type:text? vcpu:int? memory_in_gb:number? disk_in_gb:int? gpus:int? compute_billing_price:text?
         billing_period:skip",
    );
    check(
        &cvm["node_info"],
        false,
        "object_type:node id:int? node_id:int? name:text? region:text? device_id:text? ppid:text? status:ONLINE version:text?",
    );
    check(&cvm["os"], false, "name:text? version:text? is_dev:bool? os_image_hash:text?");
    check(
        &cvm["kms_info"],
        false,
        "chain_id:int? dstack_kms_address:text? dstack_app_address:text? deployer_address:text? rpc_endpoint:text?
         encrypted_env_pubkey:text",
    );
    check(&cvm["gateway"], false, "base_domain:text? cname:text?");
    check(&cvm["logs"], false, "serial:https:// stdout:https:// stderr:https:// container_log_base:https://");
    check(&cvm["workspace"], false, "object_type:workspace id:wks_ name:text slug:text? avatar_url:text?");
    check(&cvm["creator"], false, "object_type:user id:usr_ username:text? avatar_url:text?");
    check(&cvm["endpoints"][0], false, "app:http:// instance:http://");
}

#[tokio::test]
async fn lists_of_cvms() {
    let server = Server::start().await;
    server.deploy_running("first-app").await;
    let vm = server.deploy_running("second-app").await;
    let app = vm["app_id"].as_str().expect("an app id");
    for (version, check_cvm) in
        [(V2025, check_hosted as fn(&Value)), (V2026, check_info), (V_STRING_IDS, check_info), (NEWEST, check_info)]
    {
        let page = server.at(version).get("/cvms/paginated").await.expect(200);
        check(&page, true, "items:list total:int page:int page_size:int pages:int");
        assert_eq!(
            (&page["total"], &page["page"], &page["page_size"], &page["pages"]),
            (&json!(2), &json!(1), &json!(30), &json!(1))
        );
        let names: Vec<_> = page["items"].as_array().expect("items").iter().map(|cvm| cvm["name"].clone()).collect();
        assert_eq!(names, ["second-app", "first-app"]);
        page["items"].as_array().expect("items").iter().for_each(check_cvm);
        let all = server.at(version).get("/cvms").await.expect(200);
        assert_eq!(all.as_array().map(Vec::len), Some(2));
        check_cvm(&all[0]);
        for form in [app.to_owned(), format!("app_{app}"), format!("0x{app}"), app.to_uppercase()] {
            let cvms = server.at(version).get(&format!("/apps/{form}/cvms")).await.expect(200);
            assert_eq!(cvms.as_array().map(Vec::len), Some(1));
            check_cvm(&cvms[0]);
        }
    }
    let page = server.at(V2026).get("/cvms/paginated?page=2&page_size=1").await.expect(200);
    assert_eq!((&page["items"][0]["name"], &page["pages"]), (&json!("first-app"), &json!(2)));
    let count = async |query: &str| {
        server.at(V2026).get(&format!("/cvms/paginated?{query}")).await.expect(200)["total"].clone()
    };
    assert_eq!(
        (count("teepod_id=1").await, count("teepod_id=2").await, count("user_id=0").await),
        (json!(2), json!(0), json!(0))
    );
    let user = holdfast_model::hashid::encode(holdfast_model::hashid::Prefix::User, 1);
    assert_eq!(count(&format!("user_id={user}")).await, 2);
    assert_eq!(
        server.at(V2026).get(&format!("/apps/{}/cvms", "0".repeat(40))).await.expect(404)["error_code"],
        "HF-0107"
    );
}

#[tokio::test]
async fn one_cvm() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    for (version, id) in [(V2025, "id:int"), (V2026, "id:int"), (V_STRING_IDS, "id:cvm_"), (NEWEST, "id:cvm_")] {
        let commit = json!({ "app_id": vm["app_id"], "compose_hash": server.at(V2026).get("/cvms/my-app").await.expect(200)["compose_hash"] });
        let shape = format!(
            "{id} name:text status:text teepod_id:int teepod:object? user_id:int? app_id:text vm_uuid:text?
             instance_id:text? app_url:text? base_image:text? vcpu:int memory:int disk_size:int manifest_version:int?
             version:text? runner:text? docker_compose_file:text? features:list? created_at:time
             encrypted_env_pubkey:text? app_auth_contract_address:text? deployer_address:text?"
        );
        check(&server.at(version).post("/cvms", &commit).await.expect(200), true, &shape);
    }
    let basic = server.at(V2025).get("/cvms/my-app").await.expect(200);
    check(
        &basic,
        true,
        "id:int teepod_id:int? teepod:object? name:text status:text in_progress:bool app_id:text vm_uuid:text?
         instance_id:text? vcpu:int memory:int disk_size:int base_image:text? encrypted_env_pubkey:text? listed:bool
         project_id:prj_ project_type:text? instance_type:text? public_sysinfo:bool public_logs:bool
         dapp_dashboard_url:text? syslog_endpoint:https:// kms_info:object? contract_address:text? deployer_address:text?
         scheduled_delete_at:time? public_urls:list gateway_domain:text?",
    );
    check(&basic["kms_info"], true, KMS_INFO);
    for version in [V2026, V_STRING_IDS, NEWEST] {
        let info = server.at(version).get("/cvms/my-app").await.expect(200);
        check_info(&info);
        check(&info, true, &format!("{INFO} compose_file:object?"));
    }
    let composition = server.at(V2026).get("/cvms/my-app/composition").await.expect(200);
    check(
        &composition,
        true,
        "is_online:bool is_public:bool error:text? docker_compose_file:text? manifest_version:int? version:text?
         runner:text? features:list? containers:list?",
    );
    check(
        &composition["containers"][0],
        true,
        "id:text names:list image:text image_id:text command:text? created:int state:text status:text log_endpoint:https://",
    );
    let state = server.at(V2026).get("/cvms/my-app/state").await.expect(200);
    check(&state, true, "instance_id:text name:text status:text uptime:1m boot_progress:done");
    let state = server.at("2026-05-22").get("/cvms/my-app/state").await.expect(200);
    check(&state, true, "id:text instance_id:text name:text status:text uptime:1m boot_progress:done");
    let operations = server.at(V2026).get("/cvms/my-app/operations").await.expect(200);
    check(&operations, true, "items:list next_cursor:text? total:int");
    check(
        &operations["items"][0],
        true,
        "correlation_id:text operation_type:text target_state:text triggered_by:int triggered_by_username:text?
         triggered_by_email:text? started_at:time completed_at:time? duration_ms:int? status:text error_message:text?
         sub_operations:list events:list instance_name:text compose_hash:text?",
    );
    check(&operations["items"][0]["events"][0], true, "event_type:text timestamp:time state:text");
}

#[tokio::test]
async fn status_of_many() {
    let server = Server::start().await;
    let vm = server.deploy_running("my-app").await;
    let uuid = vm["vm_uuid"].as_str().expect("a UUID");
    let bare = uuid.replace('-', "");
    let body = json!({ "vm_uuids": [uuid, bare, uuid] });
    let shape = "vm_uuid:text status:text uptime:text? in_progress:bool boot_progress:text? boot_error:text?
         shutdown_progress:text? events:list operation_type:text? operation_started_at:time? correlation_id:text?";
    let old = server.at(V2026).post("/status/batch", &body).await.expect(200);
    assert_eq!(old.as_object().map(|o| o.len()), Some(2));
    for key in [uuid, bare.as_str()] {
        check(&old[key], true, shape);
        assert_eq!(old[key]["vm_uuid"], key);
    }
    server.held.store(true, std::sync::atomic::Ordering::Relaxed);
    server.at(V2026).post_bytes("/cvms/my-app/restart", Vec::new()).await.expect(200);
    let new = server.at(V_STRING_IDS).post("/status/batch", &body).await.expect(200);
    check(&new[uuid], true, &format!("{shape} operation:object resource_usage:null"));
    check(&new[uuid]["operation"], true, "type:restart phase:text started_at:time correlation_id:text");
    assert_eq!((&new[uuid]["status"], &new[uuid]["in_progress"]), (&json!("restarting"), &json!(true)));
}

#[tokio::test]
async fn apps() {
    let server = Server::start().await;
    server.deploy_running("first-app").await;
    let vm = server.deploy_running("second-app").await;
    let shape =
        "id:prj_ name:text app_id:text app_provision_type:text? app_icon_url:text? created_at:time kms_type:phala
         profile:object? current_cvm:object? cvms:list cvm_count:int";
    for version in [V2025, V2026, NEWEST] {
        let list = server.at(version).get("/apps?page=1&page_size=50").await.expect(200);
        check(&list, true, "dstack_apps:list page:int page_size:int total:int total_pages:int");
        let app = &list["dstack_apps"][0];
        let workspace = if version == V2025 { " team_name:text team_slug:text" } else { "" };
        check(app, true, &format!("{shape}{workspace}"));
        assert_eq!((&app["name"], &app["cvm_count"]), (&json!("second-app"), &json!(1)));
        match version {
            V2025 => check(
                &app["current_cvm"],
                true,
                "vm_uuid:text? app_id:text name:text status:text vcpu:int memory:int disk_size:int teepod_id:int
                 teepod_name:text region_identifier:text? kms_type:text? kms_slug:text? kms_id:kms_ instance_type:text?
                 listed:bool? base_image:text? instance_id:text? machine_info:object updated_at:time",
            ),
            _ => check_info(&app["current_cvm"]),
        }
        let one = server.at(version).get(&format!("/apps/{}", vm["app_id"].as_str().expect("an id"))).await.expect(200);
        assert_eq!(one["id"], app["id"]);
    }
    let count = async |query: &str| server.at(V2026).get(&format!("/apps?{query}")).await.expect(200)["total"].clone();
    let uuid = vm["vm_uuid"].as_str().expect("a UUID");
    let app_id = vm["app_id"].as_str().expect("an app id");
    for (query, total) in [
        ("search=SECOND".to_owned(), 1),
        ("search=app".to_owned(), 0),
        ("search=%25".to_owned(), 0),
        (format!("search={uuid}"), 1),
        (format!("search={}", uuid.replace('-', "")), 1),
        (format!("search=app_{app_id}"), 1),
        ("status=running".to_owned(), 2),
        ("status=stopped&status=running".to_owned(), 2),
        ("status=stopped".to_owned(), 0),
        ("listed=false".to_owned(), 2),
        ("listed=true".to_owned(), 0),
        ("base_image=holdfast-1.2.3&instance_type=tdx.small&node=test-node&region=lab".to_owned(), 2),
        ("node=other".to_owned(), 0),
        ("kms_type=phala&kms_slug=holdfast".to_owned(), 2),
        ("kms_type=ethereum".to_owned(), 0),
    ] {
        assert_eq!(count(&query).await, total, "{query}");
    }
    let second = server.at(V2026).get("/apps?page=2&page_size=1").await.expect(200);
    assert_eq!((&second["dstack_apps"][0]["name"], &second["total_pages"]), (&json!("first-app"), &json!(2)));
}

#[tokio::test]
async fn account_and_catalogue() {
    let server = Server::start().await;
    let flat = server.at(V2025).get("/auth/me").await.expect(200);
    check(
        &flat,
        true,
        "username:text email:text credits:number granted_credits:number avatar:text team_name:text team_tier:text",
    );
    let me = server.at(V2026).get("/auth/me").await.expect(200);
    check(
        &me["user"],
        false,
        "username:text email:text role:admin avatar:text email_verified:bool totp_enabled:bool has_backup_codes:bool
         flag_has_password:bool",
    );
    check(&me["workspace"], false, "id:wks_ name:text slug:text? tier:text role:text avatar:text?");
    check(&me["credits"], false, "balance:text granted_balance:text is_post_paid:bool outstanding_amount:text?");

    let list = server.at(V2026).get("/workspaces").await.expect(200);
    check(&list["pagination"], true, "has_more:bool next_cursor:text? total:int?");
    let shape = "id:wks_ name:text slug:text? tier:text role:text is_default:bool created_at:time confidential_models_enabled:bool";
    check(&list["data"][0], true, shape);
    let id = list["data"][0]["id"].as_str().expect("an id");
    for form in ["default", id] {
        check(&server.at(V2026).get(&format!("/workspaces/{form}")).await.expect(200), true, shape);
    }
    let nodes = server.at(V2026).get("/workspaces/default/nodes?page=1&page_size=100").await.expect(200);
    check(&nodes, true, "items:list total:int page:int page_size:int pages:int");
    check(
        &nodes["items"][0],
        false,
        "object_type:node id:int? name:text? region:text? device_id:text? ppid:text? status:ONLINE version:text?",
    );

    let available = server.at(V2026).get("/teepods/available?v03x_only=1").await.expect(200);
    check(&available, true, "tier:text capacity:object nodes:list kms_list:list");
    check(
        &available["nodes"][0],
        true,
        "teepod_id:int name:text listed:bool resource_score:number remaining_vcpu:int remaining_memory:int
         remaining_cvm_slots:int images:list support_onchain_kms:bool fmspc:text? device_id:text? region_identifier:text?
         default_kms:text? kms_list:list",
    );
    assert_eq!(available["nodes"][0]["images"][0]["version"], json!([1, 2, 3]));
    check(&available["kms_list"][0], true, KMS_INFO);

    // The clients refuse any other key in the outer objects.
    let types = server.at(V2026).get("/instance-types").await.expect(200);
    check(&types, true, "result:list");
    check(&types["result"][0], true, "name:text items:list total:int");
    check(
        &types["result"][0]["items"][0],
        false,
        "id:tdx.small name:text description:text vcpu:int memory_mb:int hourly_rate:text requires_gpu:bool
         default_disk_size_gb:int family:text?",
    );
    check(&server.at(V2026).get("/instance-types/cpu").await.expect(200), true, "items:list total:int family:cpu");
    let images = server.at(V2026).get("/os-images?page=1&page_size=100").await.expect(200);
    check(&images, true, "items:list total:int page:int page_size:int pages:int");
    check(
        &images["items"][0],
        false,
        "name:text slug:text version:text os_image_hash:text? is_dev:bool requires_gpu:bool",
    );
    assert_eq!(server.at(V2026).get("/os-images?is_dev=true").await.expect(200)["total"], 0);
}

#[test]
fn the_document_is_whole_and_always_the_same() {
    let document = || serde_json::to_value(&holdfast_api::documents()[0].1).expect("a document");
    let one = document();
    assert_eq!(one.to_string(), document().to_string());
    assert!(one["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")));
    assert!(one["info"]["title"].is_string() && one["info"]["version"].is_string());
    assert_eq!(one["components"]["securitySchemes"]["APIKeyHeader"]["name"], "X-API-Key");
    assert_eq!(one["components"]["securitySchemes"]["Bearer"]["scheme"], "bearer");
    let paths = one["paths"].as_object().expect("paths");
    assert!(paths.keys().all(|path| path.starts_with("/api/v1/")));
    // Every reference leads somewhere.
    let text = one.to_string();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().expect("a name");
        assert!(one["components"]["schemas"].get(name).is_some(), "{name} is not described");
    }
}
