//! Logins of the official command line and with a password, let in by the operator; and where their secrets are not.
//!
//! The one rule: what may be nowhere is looked for in every file of the data folder, the server's log at its most talkative
//! among them.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use holdfast_e2e::cli::Phala;
use holdfast_e2e::cloud::{Cloud, SOON, text};
use holdfast_e2e::leftovers::files_holding;
use holdfast_harness::client::Client;
use serde_json::Value;

fn admin(cloud: &Cloud, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(holdfast_e2e::binary());
    command.arg("admin").args(args).arg("--data-dir").arg(cloud.data_dir());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("holdfast runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn done(cloud: &Cloud, args: &[&str], input: &str) -> String {
    let output = admin(cloud, args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// `BCDF-GHJK`, somewhere in what was told.
fn code(told: &str) -> String {
    let is_code = |word: &&str| {
        word.len() == 9
            && word.bytes().enumerate().all(|(at, b)| if at == 4 { b == b'-' } else { b.is_ascii_uppercase() })
    };
    told.split_whitespace().find(is_code).unwrap_or_else(|| panic!("no code in {told}")).to_owned()
}

#[test]
fn the_command_line_logs_in_as_a_device() {
    let cloud = Cloud::simulated_with("HOLDFAST_LOG", "debug");
    let app = cloud.deployed("device-app", SOON);
    let phala = Phala::new(&cloud);
    let url = format!("{}/api/v1", cloud.client.base);
    let mut login = phala.follow_logged_in(&["login", "--no-open", "--url", &url]);
    login.wait_for("And enter code:");
    let code = code(&login.told());
    let wrong = admin(&cloud, &["approve", "BCDF-GHJK"], "");
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("HF-0404"));
    done(&cloud, &["approve", &code.to_lowercase()], "");
    assert!(login.wait(), "{}", login.told());

    for (args, words) in [
        (&["whoami"][..], &["admin"][..]),
        (&["status"], &["admin"]),
        (&["link", &app], &[]),
        (&["cvms", "get", "device-app"], &["device-app"]),
    ] {
        let said = phala.try_run_logged_in(args);
        let all = said.out + &said.err;
        assert!(said.ok && words.iter().all(|word| all.contains(word)), "phala {}: {all}", args.join(" "));
    }
    let kept = std::fs::read_to_string(phala.home().join(".phala-cloud/credentials.json")).expect("it keeps its token");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    let token = text(&kept["profiles"]["default"]["token"]);
    assert!(token.starts_with("phak_"), "{kept}");
    // The code was good for one.
    assert!(!admin(&cloud, &["approve", &code], "").status.success());

    // A token of the operator's, and a password.
    let made = done(&cloud, &["tokens", "create", "--name", "robot", "--scope", "read", "--days", "3"], "");
    let password = "swordfish or herring";
    let short = admin(&cloud, &["users", "set-password", "admin"], "short\n");
    assert_eq!(short.status.code(), Some(2), "{}", String::from_utf8_lossy(&short.stderr));
    done(&cloud, &["users", "set-password", "admin"], &format!("{password}\n"));
    let form = "grant_type=password&username=admin&password=swordfish+or+herring";
    let form_type = [("Content-Type", "application/x-www-form-urlencoded")];
    let answer = cloud.client.send("POST", "/api/v1/auth/token", &form_type, Some(form.as_bytes().to_vec()));
    let bearer = text(&answer.expect("it answers").ok().expect("the password is right")["access_token"]);
    let wrong = b"username=admin&password=herring+or+swordfish".to_vec();
    assert_eq!(
        cloud.client.send("POST", "/api/v1/auth/token", &form_type, Some(wrong)).expect("it answers").status,
        401
    );
    let list: Value = serde_json::from_str(&done(&cloud, &["tokens", "list", "--json"], "")).expect("JSON");
    let robot = list["items"].as_array().expect("items").iter().find(|t| t["name"] == "robot").expect("it is listed");
    let get = |key: &str| Client::new(cloud.client.base.clone(), key).get("/api/v1/cvms").expect("it answers").status;
    assert_eq!((get(&made), get(&bearer), get(&token)), (200, 200, 200));
    done(&cloud, &["tokens", "revoke", &robot["id"].to_string()], "");
    assert_eq!((get(&made), get(&bearer)), (401, 200));
    assert!(!admin(&cloud, &["tokens", "revoke", &robot["id"].to_string()], "").status.success());

    let mut needles: Vec<Vec<u8>> =
        [&token, &made, &bearer, &code].iter().map(|secret| secret.as_bytes().to_vec()).collect();
    needles.extend([password, "swordfish+or+herring", "herring or swordfish"].map(|text| text.as_bytes().to_vec()));
    let folders = [cloud.data_dir()];
    assert_eq!(files_holding(&folders, &needles), Vec::<std::path::PathBuf>::new());
    // It would be found: the administrator's key is in its file, and nowhere else.
    let admin_key = vec![cloud.client.key.as_bytes().to_vec()];
    assert_eq!(files_holding(&folders, &admin_key), [cloud.data_dir().join("admin.key")]);
}
