//! People on real connections: fifty at once who want what one can have, and the operator's commands.

use std::process::Command;
use std::sync::Barrier;

use holdfast_e2e::cloud::{COMPOSE, Cloud, text};
use holdfast_harness::client::Client;
use holdfast_trust::token::ApiKeyHash;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

const RACERS: usize = 50;
const ROUNDS: usize = 4;

/// Sends one request per client at the same moment, on connections that are open already; the statuses.
fn race(clients: &[Client], ask: impl Fn(usize, &Client) -> u16 + Sync) -> Vec<u16> {
    let start = Barrier::new(clients.len());
    let (start, ask) = (&start, &ask);
    std::thread::scope(|scope| {
        let run = |(i, client): (usize, &'_ Client)| {
            let client = client.clone();
            scope.spawn(move || {
                assert_eq!(client.get("/healthz").expect("a connection").status, 200);
                start.wait();
                ask(i, &client)
            })
        };
        let racers: Vec<_> = clients.iter().enumerate().map(run).collect();
        racers.into_iter().map(|racer| racer.join().expect("a racer")).collect()
    })
}

#[track_caller]
fn one_wins(statuses: &[u16], won: u16, lost: u16, what: &str) {
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!((count(won), count(lost)), (1, statuses.len() - 1), "{what}: {statuses:?}");
}

/// Clients that share nothing but the server.
fn apart(cloud: &Cloud, keys: impl IntoIterator<Item = String>) -> Vec<Client> {
    keys.into_iter().map(|key| Client::new(cloud.server.url(), key)).collect()
}

/// Fifty people of another workspace, and their keys.
fn people(cloud: &Cloud) -> Vec<String> {
    let post = |path: &str, body: Value| cloud.client.post(path, Some(&body)).expect("it answers").ok().expect("done");
    post("/holdfast/v1/users", json!({ "username": "host", "email": "host@example.com" }));
    post("/holdfast/v1/workspaces", json!({ "slug": "guests", "owner": "host" }));
    let (mut statements, mut keys) = (String::new(), Vec::new());
    for i in 0..RACERS {
        let (name, key) = (format!("guest{i}"), format!("phak_{i:064x}"));
        let user = json!({ "username": name, "email": format!("{name}@example.com"), "workspace": "guests" });
        post("/holdfast/v1/users", user);
        let hash = hex::encode(ApiKeyHash::of(&key).0);
        statements.push_str(&format!(
            "INSERT INTO api_key (uuid, workspace_id, user_id, name, prefix, hash, default_version, created_at)
             SELECT '{name}', m.workspace_id, m.user_id, 'key', 'phak_', '{hash}', '2026-01-21', 1
             FROM workspace_member m JOIN user_account u ON u.id = m.user_id WHERE u.username = '{name}';"
        ));
        keys.push(key);
    }
    let url = format!("sqlite://{}", cloud.data_dir().join("holdfast.db").display());
    let work = async {
        let mut db = SqliteConnection::connect(&url).await.expect("a connection");
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut db).await.expect("keys");
        db.close().await.expect("closed");
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
    keys
}

#[test]
fn one_invitation_makes_one_member() {
    let cloud = Cloud::simulated(1);
    let guests = apart(&cloud, people(&cloud));
    let members =
        || cloud.client.get("/api/v1/workspaces/default/members").expect("it answers").json()["total"].clone();
    for round in 1..=ROUNDS {
        let invite = json!({ "email": "one@example.com", "role": "reader" });
        let made = cloud.client.post("/api/v1/workspaces/default/invitations", Some(&invite)).expect("it answers");
        let code = json!({ "code": made.ok().expect("an invitation")["token"] });
        let statuses = race(&guests, |_, client| {
            client.post("/holdfast/v1/invitations/accept", Some(&code)).expect("it answers").status
        });
        one_wins(&statuses, 200, 409, "the invitation");
        assert_eq!(members(), json!(1 + round));
    }
}

#[test]
fn one_name_makes_one_cvm_one_workspace_and_one_project() {
    let cloud = Cloud::simulated(1);
    let clients = apart(&cloud, std::iter::repeat_n(cloud.client.key.clone(), RACERS));
    for round in 0..ROUNDS {
        let name = format!("wanted-{}", ["a", "b", "c", "d"][round]);
        let provision =
            |_| cloud.client.provision(&name, COMPOSE, &json!({})).expect("it answers").ok().expect("ready");
        let provisioned: Vec<Value> = (0..RACERS).map(provision).collect();
        let statuses = race(&clients, |i, client| client.commit(&provisioned[i], None).expect("it answers").status);
        one_wins(&statuses, 200, 409, &name);
        let cvms = cloud.client.get("/api/v1/cvms").expect("it answers").json();
        let named = cvms.as_array().expect("CVMs").iter().filter(|cvm| cvm["name"] == name.as_str()).count();
        assert_eq!(named, 1, "{cvms}");

        let slug = json!({ "slug": format!("team-{round}"), "owner": "admin" });
        let statuses =
            race(&clients, |_, client| client.post("/holdfast/v1/workspaces", Some(&slug)).expect("it answers").status);
        one_wins(&statuses, 201, 409, "the slug");

        let project = json!({ "name": format!("project-{round}") });
        let statuses = race(&clients, |_, client| {
            client.post("/holdfast/v1/projects", Some(&project)).expect("it answers").status
        });
        one_wins(&statuses, 201, 409, "the project");
    }
}

/// `holdfast admin users` and `workspaces`, in words and as JSON.
#[test]
fn an_operator_needs_no_console() {
    let cloud = Cloud::simulated(1);
    let run = |args: &str| {
        let mut command = Command::new(holdfast_e2e::binary());
        command.arg("admin").args(args.split(' ')).arg("--data-dir").arg(cloud.data_dir());
        let output = command.output().expect("the command runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().expect("an exit code"), out.into_owned(), err.into_owned())
    };
    let done = |args: &str| {
        let (code, out, err) = run(args);
        assert_eq!(code, 0, "{args}: {out}{err}");
        out
    };
    let json = |args: &str| -> Value { serde_json::from_str(&done(&format!("{args} --json"))).expect(args) };
    assert_eq!(json("users create ada --email ada@example.com")["username"], "ada");
    assert!(done("users list").contains("ada@example.com"));
    assert_eq!(done("users list --json").lines().count(), 2);
    assert_eq!(json("workspaces create team-a --owner ada --name Team")["slug"], "team-a");
    assert!(done("workspaces list").contains("team-a"));
    assert!(
        done("users create bob --email bob@example.com --workspace team-a --workspace-role reader").contains("bob")
    );
    assert_eq!(json("workspaces set-role team-a bob admin")["role"], "admin");
    assert!(done("workspaces add-member team-a admin").contains("member"));
    assert_eq!(done("workspaces members team-a --json").lines().count(), 3);
    assert_eq!(done("workspaces remove-member team-a admin"), "");
    assert_eq!(done("workspaces members team-a --json").lines().count(), 2);
    let (code, _, err) = run("workspaces remove-member team-a ada");
    assert!(code == 1 && err.contains("HF-0414"), "{err}");
    assert_eq!(json("users set-role bob admin")["role"], "admin");
    assert_eq!(json("users disable bob")["disabled"], true);
    assert_eq!(json("users enable bob")["disabled"], false);
    let (code, _, err) = run("users enable nobody");
    assert!(code == 1 && err.contains("HF-0410"), "{err}");
    assert_eq!(json("workspaces disable team-a")["disabled"], true);
    assert_eq!(json("workspaces enable team-a")["disabled"], false);
    assert_eq!(text(&json("users set-role ada user")["role"]), "user");
}
