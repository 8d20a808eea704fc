//! Logins through a real identity provider, in a process of its own: the whole way there and back, everything that can be
//! changed on that way, and where the secrets of it are not.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use holdfast_e2e::cloud::{Cloud, text};
use holdfast_e2e::identity::{Browser, Provider, Seen, altered, parameter};
use holdfast_e2e::leftovers::{files_holding, number};
use holdfast_harness::client::Client;
use holdfast_harness::until;
use serde_json::{Value, json};

fn admin(cloud: &Cloud, args: &[&str]) -> Output {
    let mut command = Command::new(holdfast_e2e::binary());
    command.arg("admin").args(args).arg("--data-dir").arg(cloud.data_dir()).stdin(Stdio::null());
    command.env("HOLDFAST_URL", &cloud.client.base).env("HOLDFAST_API_KEY", &cloud.client.key);
    command.output().expect("holdfast runs")
}

fn done(cloud: &Cloud, args: &[&str]) -> String {
    let output = admin(cloud, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A provider that does not run yet, and a server that knows of it.
fn clouds(accounts: Value, more: &[(&str, &str)]) -> (Cloud, Provider) {
    let provider = Provider::new(accounts);
    (cloud(&provider, more), provider)
}

fn cloud(provider: &Provider, more: &[(&str, &str)]) -> Cloud {
    let mut variables = provider.variables();
    variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    variables.push(("HOLDFAST_LOG".to_owned(), "debug".to_owned()));
    Cloud::simulated_under(variables)
}

/// Until the server has noticed that the provider is there.
fn until_there(cloud: &Cloud) {
    let url = format!("{}/auth/oidc/login", cloud.client.base);
    let there = until(Duration::from_secs(20), "the provider is found", || {
        Ok((Browser::default().get(&url).answer.status == 303).then_some(()))
    });
    there.unwrap_or_else(|error| panic!("{error}\n{}", cloud.server.log_end(40)));
}

#[track_caller]
fn refused(seen: &Seen, status: u16, code: &str) {
    let text = &seen.answer.text;
    assert!(seen.answer.status == status && text.contains(code), "{}: {text}", seen.answer.status);
    assert!(text.starts_with("<!doctype html>"), "{text}");
    let cookies: Vec<_> = seen.answer.headers.get_all("set-cookie").iter().collect();
    assert!(cookies.iter().all(|cookie| !cookie.to_str().expect("text").contains("session=")), "{cookies:?}");
}

fn rows(cloud: &Cloud, sql: &'static str) -> i64 {
    number(&cloud.data_dir().join("holdfast.db"), sql)
}

/// Who a session is, or null.
fn me(cloud: &Cloud, browser: &mut Browser) -> Value {
    let answer = browser.get_json(&format!("{}/api/v1/auth/me", cloud.client.base));
    if answer.status == 200 { answer.json() } else { Value::Null }
}

#[test]
fn somebody_signs_in_through_the_provider() {
    let accounts = json!({
        "ada": { "email": "Ada@Example.com", "email_verified": true, "preferred_username": "ada" },
        "root": { "email": "admin@localhost", "email_verified": true, "preferred_username": "admin" },
        "eve": { "email": "admin@localhost", "email_verified": false, "preferred_username": "admin" },
    });
    let newcomers = [("HOLDFAST_OIDC_CREATE_USERS", "true"), ("HOLDFAST_OIDC_WORKSPACE", "default")];
    let (mut cloud, mut provider) = clouds(accounts, &newcomers);
    let server = cloud.client.base.clone();

    // It is down: that keeps nobody else from anything.
    let mut browser = Browser::default();
    refused(&browser.get(&format!("{server}/auth/oidc/login")), 503, "HF-0423");
    let answer = browser.get_json(&format!("{server}/auth/oidc/login"));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("HF-0423")));
    assert_eq!(cloud.client.get("/api/v1/cvms").expect("it answers").status, 200);
    provider.start(&server);
    until_there(&cloud);

    // A device waits; its page asks for a login, and that offers the provider.
    let asked = cloud.client.post("/api/v1/auth/device/code", Some(&json!({ "client_id": "robot" })));
    let device = asked.expect("it answers").ok().expect("a code");
    let page = format!("{server}/device?user_code={}", text(&device["user_code"]));
    let login = browser.get(&page).location().expect("to the login page");
    let form = browser.get(&login);
    assert!(form.answer.text.contains("Log in with Corp &lt;ID&gt;"), "{}", form.answer.text);
    let link = format!("{server}{}", form.after("class=\"button\"", "href"));
    let sent = browser.get(&link).location().expect("to the provider");
    assert!(sent.starts_with(&provider.issuer) && sent.contains("code_challenge_method=S256"), "{sent}");
    assert!(sent.contains("scope=openid+profile+email"), "{sent}");
    let cookie = browser.cookies[&server]["holdfast_oidc"].clone();
    let back = browser.through(&sent, Some("ada"));
    let ended = browser.get(&back);
    assert_eq!((ended.answer.status, ended.location()), (303, Some(page.clone())), "{}", ended.answer.text);
    let session = browser.session(&server).expect("a session");
    let flags: Vec<&str> =
        ended.answer.headers.get_all("set-cookie").iter().map(|c| c.to_str().expect("text")).collect();
    let of_session = flags.iter().find(|cookie| cookie.contains("session=")).expect("a session");
    assert!(["HttpOnly", "SameSite=Lax", "Path=/"].iter().all(|word| of_session.contains(word)), "{flags:?}");
    assert!(!browser.cookies[&server].contains_key("holdfast_oidc"), "the login is over");
    let ada = me(&cloud, &mut browser);
    assert_eq!(
        (&ada["username"], &ada["email"], &ada["team_name"]),
        (&json!("ada"), &json!("ada@example.com"), &json!("default"))
    );

    // The device is let in by that session, and acts as its user.
    assert!(browser.get(&page).answer.text.contains("ada in default"));
    let form = format!("user_code={}&decision=approve", text(&device["user_code"]));
    assert_eq!(browser.post(&format!("{server}/device"), &form).answer.status, 200);
    let asked = json!({ "device_code": device["device_code"] });
    let token =
        cloud.client.post("/api/v1/auth/device/token", Some(&asked)).expect("it answers").ok().expect("a token");
    let robot = Client::new(server.clone(), text(&token["access_token"])).get("/api/v1/auth/me").expect("it answers");
    assert_eq!(robot.ok().expect("a user")["user"]["username"], "ada");
    for (action, count) in [("user.create", 1), ("member.add", 1), ("identity.link", 1), ("session.begin", 1)] {
        let said = cloud.client.get("/holdfast/v1/audit-logs?limit=500").expect("it answers").ok().expect("a log");
        let of = said["items"].as_array().expect("items").iter().filter(|row| row["action"] == action);
        assert_eq!(of.count(), count, "{action}: {said}");
    }

    // The provider's answer works once, and in this browser alone.
    refused(&browser.get(&back), 400, "HF-0420");
    browser.cookies.get_mut(&server).expect("cookies").insert("holdfast_oidc".to_owned(), cookie.clone());
    refused(&browser.get(&back), 400, "HF-0420");
    refused(&Browser::default().get(&back), 400, "HF-0420");
    assert_eq!(rows(&cloud, "SELECT COUNT(*) FROM api_key WHERE kind = 'session'"), 1);

    // Another time it is the same user; at the provider they are signed in already.
    assert_eq!(browser.sign_in(&server, "ada").answer.status, 303);
    assert_eq!(me(&cloud, &mut browser)["username"], "ada");
    assert_eq!(rows(&cloud, "SELECT COUNT(*) FROM user_account"), 2);

    // What was changed on the way.
    let mut other = Browser::default();
    let sent = other.begin(&server, "https://evil.example");
    let back = other.through(&sent, Some("ada"));
    let state = parameter(&back, "state");
    let wrong = format!("{}A", &state[..state.len() - 1]);
    let wrong = if wrong == state { format!("{}B", &state[..state.len() - 1]) } else { wrong };
    let kept = other.cookies.clone();
    refused(&other.get(&altered(&back, "state", &wrong)), 400, "HF-0420");
    // That used up nothing: the login that was begun can still end, and leads nowhere else.
    other.cookies = kept;
    assert_eq!(other.get(&back).location(), Some(format!("{server}/device")));
    let sent = other.begin(&server, "/device");
    let back = other.through(&altered(&sent, "nonce", "of-another-login"), Some("ada"));
    refused(&other.get(&back), 401, "HF-0425");
    let sent = other.begin(&server, "/device");
    let back = other.through(&sent, Some("ada"));
    refused(&other.get(&altered(&back, "code", "made-up")), 502, "HF-0424");
    let sent = other.begin(&server, "/device");
    let back = other.through(&sent, Some("ada"));
    refused(&other.get(&altered(&back, "iss", "https%3A%2F%2Fevil.example")), 401, "HF-0425");
    // A code of one login in another: the verifier does not fit.
    let (mut thief, sent) = (Browser::default(), other.begin(&server, "/device"));
    let stolen = parameter(&other.through(&sent, Some("ada")), "code");
    let own = thief.begin(&server, "/device");
    let back = format!("{server}/auth/oidc/callback?code={stolen}&state={}", parameter(&own, "state"));
    refused(&thief.get(&back), 502, "HF-0424");

    // What the provider refuses.
    let mut nobody = Browser::default();
    let sent = format!("{}&prompt=none", nobody.begin(&server, "/device"));
    let back = nobody.through(&sent, None);
    let seen = nobody.get(&back);
    refused(&seen, 403, "HF-0422");
    assert!(seen.answer.text.contains("login_required"), "{}", seen.answer.text);
    let sent = nobody.begin(&server, "/device");
    let back = nobody.through(&sent, None);
    let seen = nobody.get(&back);
    refused(&seen, 403, "HF-0422");
    assert!(seen.answer.text.contains("access_denied"), "{}", seen.answer.text);

    // An address is nobody's proof: not a verified one unless the operator says so, and never one that is not.
    let seen = Browser::default().sign_in(&server, "root");
    refused(&seen, 403, "HF-0426");
    assert!(seen.answer.text.contains("root"), "the subject is told: {}", seen.answer.text);
    let mut eve = Browser::default();
    assert_eq!(eve.sign_in(&server, "eve").answer.status, 303);
    let is = me(&cloud, &mut eve);
    assert_eq!((&is["username"], &is["email"]), (&json!("admin-2"), &json!("admin-2@unverified.invalid")));

    // Whoever is disabled is out, and does not come in again.
    done(&cloud, &["users", "disable", "ada"]);
    assert_eq!(me(&cloud, &mut browser), Value::Null);
    refused(&browser.sign_in(&server, "ada"), 403, "HF-0426");
    done(&cloud, &["users", "enable", "ada"]);

    // It goes away between the two halves, and comes back with other keys.
    let sent = browser.begin(&server, "/device");
    let back = browser.through(&sent, Some("ada"));
    provider.stop();
    refused(&browser.get(&back), 503, "HF-0423");
    provider.restart();
    browser.leave(&provider.issuer);
    assert_eq!(browser.sign_in(&server, "ada").answer.status, 303);
    // And so does the server, which keeps nothing of it in memory that would be missed.
    let sent = browser.begin(&server, "/device");
    let back = browser.through(&sent, Some("ada"));
    cloud.server.kill().expect("it dies");
    cloud.server.restart().expect("it starts");
    assert_eq!(browser.get(&back).answer.status, 303);

    let mut needles = provider.tokens(6);
    needles.extend([provider.secret.clone(), session, cookie, browser.session(&server).expect("a session")]);
    needles.extend([parameter(&back, "code"), parameter(&back, "state"), parameter(&sent, "nonce"), stolen, state]);
    let needles: Vec<Vec<u8>> = needles.into_iter().map(String::into_bytes).collect();
    assert_eq!(files_holding(&[cloud.data_dir()], &needles), Vec::<PathBuf>::new());
    // They would be found: the log has the subject of who was refused.
    let log = cloud.data_dir().join("serve.log");
    assert!(files_holding(&[cloud.data_dir()], &[b"subject=\"root\"".to_vec()]).contains(&log));
}

#[test]
fn accounts_are_linked_by_the_operator() {
    let accounts = json!({
        "bob-1": { "email": "bob@example.com", "email_verified": true },
        "bob-2": { "email": "bob@example.com", "email_verified": false },
        "stranger": { "email": "stranger@example.com", "email_verified": true },
        "carol-1": {},
    });
    let (cloud, mut provider) = clouds(accounts, &[("HOLDFAST_OIDC_LINK_EMAIL", "true")]);
    let server = cloud.client.base.clone();
    provider.start(&server);
    until_there(&cloud);
    for name in ["bob", "carol"] {
        let email = format!("{name}@example.com");
        done(
            &cloud,
            &["users", "create", name, "--email", &email, "--workspace", "default", "--workspace-role", "reader"],
        );
    }
    // Who is nobody here stays so, also with an address that nobody has verified.
    for account in ["stranger", "bob-2", "carol-1"] {
        refused(&Browser::default().sign_in(&server, account), 403, "HF-0426");
    }
    let mut bob = Browser::default();
    assert_eq!(bob.sign_in(&server, "bob-1").answer.status, 303);
    assert_eq!(me(&cloud, &mut bob)["username"], "bob");
    // They are linked by their subject now, whatever becomes of the address.
    done(&cloud, &["users", "link", "carol", "--subject", "carol-1", "--issuer", &provider.issuer]);
    let twice = admin(&cloud, &["users", "link", "bob", "--subject", "carol-1", "--issuer", &provider.issuer]);
    assert_eq!(twice.status.code(), Some(2), "{}", String::from_utf8_lossy(&twice.stderr));
    let mut carol = Browser::default();
    assert_eq!(carol.sign_in(&server, "carol-1").answer.status, 303);
    assert_eq!(me(&cloud, &mut carol)["username"], "carol");
    let list: Value = serde_json::from_str(&done(&cloud, &["users", "identities", "carol", "--json"])).expect("JSON");
    assert_eq!(
        (&list["items"][0]["subject"], &list["items"][0]["issuer"]),
        (&json!("carol-1"), &json!(provider.issuer))
    );
    assert!(list["items"][0]["last_used_at"].is_string(), "{list}");
    // Unlinked, they are out at once.
    done(&cloud, &["users", "unlink", "carol"]);
    assert_eq!(me(&cloud, &mut carol), Value::Null);
    assert_eq!(me(&cloud, &mut bob)["username"], "bob");
    refused(&carol.sign_in(&server, "carol-1"), 403, "HF-0426");
    assert_eq!(admin(&cloud, &["users", "unlink", "carol"]).status.code(), Some(1));
    assert_eq!(rows(&cloud, "SELECT COUNT(*) FROM audit_log WHERE action = 'identity.link'"), 2);
    assert_eq!(rows(&cloud, "SELECT COUNT(*) FROM audit_log WHERE action = 'identity.unlink'"), 1);
}

/// A provider as many companies have it: over https, with a certificate of an authority of their own.
#[test]
fn a_provider_is_believed_by_the_operators_authority() {
    let mut provider = Provider::over_tls(json!({ "ada": { "preferred_username": "ada" } }));
    let authority = provider.authority().to_str().expect("a path").to_owned();
    let newcomers = [("HOLDFAST_OIDC_CREATE_USERS", "true"), ("HOLDFAST_OIDC_WORKSPACE", "default")];
    let told = cloud(&provider, &[&newcomers[..], &[("HOLDFAST_OIDC_CA_FILE", &authority)]].concat());
    let untold = cloud(&provider, &newcomers);
    let server = told.client.base.clone();
    provider.start(&server);
    until_there(&told);

    let mut ada = provider.browser();
    assert_eq!(ada.sign_in(&server, "ada").answer.status, 303);
    assert_eq!(me(&told, &mut ada)["username"], "ada");

    let server = &untold.client.base;
    let seen = Browser::default().get(&format!("{server}/auth/oidc/login"));
    refused(&seen, 503, "HF-0423");
    let why = "its certificate is of no authority that this server trusts.";
    assert!(seen.answer.text.contains(why), "{}", seen.answer.text);
    let log = std::fs::read_to_string(untold.data_dir().join("serve.log")).expect("a log");
    let told = log.lines().find(|line| line.contains("the identity provider's description was not fetched"));
    assert!(told.is_some_and(|line| line.contains("UnknownIssuer") && line.contains(&provider.issuer)), "{told:?}");
}

#[test]
fn half_a_configuration_starts_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::File::create(&secret).and_then(|mut file| file.write_all(b"\n")).expect("written");
    let secret = secret.to_str().expect("a path");
    for variables in [
        &[("HOLDFAST_OIDC_CLIENT_SECRET", "hush-hush")][..],
        &[("HOLDFAST_OIDC_ISSUER", "https://id.example")],
        &[("HOLDFAST_OIDC_ISSUER", "http://id.example"), ("HOLDFAST_OIDC_CLIENT_ID", "x")],
        &[
            ("HOLDFAST_OIDC_ISSUER", "https://id.example"),
            ("HOLDFAST_OIDC_CLIENT_ID", "x"),
            ("HOLDFAST_OIDC_CLIENT_SECRET_FILE", secret),
        ],
    ] {
        let mut command = Command::new(holdfast_e2e::binary());
        command.arg("serve").arg("--data-dir").arg(folder.path().join("d")).envs(variables.iter().copied());
        let output = command.output().expect("holdfast runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{variables:?}: {said}");
        assert!(said.contains("oidc_") && !said.contains("hush-hush"), "{said}");
    }
    assert!(!folder.path().join("d").exists(), "something was begun");
}
