//! The real image in a real QEMU, with a little host that speaks the guest protocol.
//!
//! `HOLDFAST_IMAGE_DIR` and `HOLDFAST_GUEST_AGENT` name what to use instead of building it.
#![allow(clippy::unwrap_used, reason = "a test ends where something is missing")]

mod change;
mod host;
mod runtime;

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use holdfast_model::guest::{Container, FromGuest, Keys, LogOptions, MAX_LINE, ToGuest};
use holdfast_model::node::STREAM_WINDOW;
use holdfast_trust::{env, kms};

use host::{Host, SOON, Vm, emulated};

const MARKER: &str = "marker-7d1f-value-of-GREETING";
const DROPPED: &str = "marker-9b2e-value-not-allowed";

struct App {
    keys: Keys,
    encrypted_env: String,
}

fn app() -> App {
    let key = kms::Root::from_seed(&[42; 32]).env_key(&[7; 20]);
    let pairs = [("GREETING", MARKER), ("NOT_ALLOWED", DROPPED)].map(|(n, v)| (n.to_owned(), v.to_owned()));
    App {
        keys: Keys { env_key: hex::encode(key.secret), disk_key: "5c".repeat(32) },
        encrypted_env: hex::encode(env::encrypt(&key.public, &pairs).unwrap()),
    }
}

fn compose(name: &str, yaml: &str) -> String {
    serde_json::json!({ "name": name, "runner": "docker-compose", "docker_compose_file": yaml, "allowed_envs": ["GREETING"] })
        .to_string()
}

fn hello() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/hello/docker-compose.yml");
    compose("Any Name, even this!", &fs::read_to_string(file).unwrap())
}

fn containers(host: &mut Host, id: u64) -> Vec<Container> {
    host.send(&ToGuest::Containers { id });
    host.wait(SOON, "containers", |m| match m {
        FromGuest::Containers { id: theirs, containers, error } if *theirs == id => {
            assert_eq!(*error, None);
            Some(containers.clone())
        }
        _ => None,
    })
}

/// Opens a log and gives (stdout, stderr, error code) at its end.
fn log(host: &mut Host, id: u64, container: &str, options: LogOptions) -> (String, String, Option<String>) {
    host.send(&ToGuest::LogsOpen { id, container: container.to_owned(), options, entries: false });
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = host.wait(SOON, "end of log", |m| match m {
        FromGuest::Log { id: theirs, channel, data, .. } if *theirs == id => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
            if *channel == 1 {
                out.extend(bytes)
            } else {
                err.extend(bytes)
            }
            None
        }
        FromGuest::LogEnd { id: theirs, error } if *theirs == id => Some(error.as_ref().map(|e| e.code.clone())),
        _ => None,
    });
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), code)
}

/// No file of the folder holds any of these.
fn assert_in_no_file(dir: &Path, needles: &[Vec<u8>]) {
    for entry in fs::read_dir(dir).unwrap().flatten().filter(|e| e.path().is_file()) {
        let bytes = fs::read(entry.path()).unwrap();
        for needle in needles {
            let found = memchr_like(&bytes, needle);
            assert!(!found, "{} holds {:?}", entry.path().display(), String::from_utf8_lossy(needle));
        }
    }
}

fn memchr_like(haystack: &[u8], needle: &[u8]) -> bool {
    let mut at = 0;
    while let Some(next) = haystack[at..].iter().position(|b| *b == needle[0]) {
        at += next;
        if haystack[at..].starts_with(needle) {
            return true;
        }
        at += 1;
    }
    false
}

#[test]
fn an_app_through_its_life() {
    emulated(an_app_through_its_life_once);
}

fn an_app_through_its_life_once() {
    let dir = tempfile::tempdir().unwrap();
    let app = app();

    // First boot: a host that goes away in the middle, and one that sends rubbish.
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("first");
    eprintln!("agent answers after {:.1} s", vm.seconds());
    host.give_config(&hello(), Some(app.encrypted_env.clone()));
    host.wait_need_keys();
    host.raw(b"{\"do\":\"keys\",\"env_");
    drop(host);
    let mut host = vm.connect("second");
    assert_eq!(host.state.boot_progress, "requesting app keys");
    for _ in 0..3 {
        host.raw(&vec![b'x'; MAX_LINE / 2]);
    }
    host.raw(b"\n{\"do\":\"no such thing\"}\n\xff\xfe\n[]\n");
    host.give_keys(&app.keys);
    let page = vm.http(vm.port_8080);
    eprintln!("app answers after {:.1} s", vm.seconds());
    assert!(page.contains(MARKER), "{page}");
    let state = host.booted();
    assert_eq!(state.boot_error, None);
    let words: Vec<_> = state.timeline.iter().map(|(word, _)| word.as_str()).collect();
    assert_eq!(
        words,
        [
            "booting",
            "requesting app keys",
            "initializing data disk",
            "mounting data disk",
            "data disk ready",
            "setting up docker",
            "starting containers",
            "done"
        ]
    );
    eprintln!("timeline {:?}", state.timeline);

    let listed = containers(&mut host, 1);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].state.as_str(), listed[0].image.as_str()), ("running", "holdfast/hello:latest"));
    let name = listed[0].names[0].clone();
    let (out, err, code) = log(&mut host, 2, &name, LogOptions::default());
    assert_eq!((out.as_str(), code), ("hello: listening on port 80\n", None));
    assert!(err.contains("response:200"), "{err}");
    let (stamped, ..) =
        log(&mut host, 3, "web", LogOptions { tail: Some(1), timestamps: true, ..LogOptions::default() });
    assert!(stamped.is_empty() || stamped.starts_with("20"), "{stamped}");
    let (out, err, _) = log(
        &mut host,
        4,
        &name,
        LogOptions { since: Some("2099-01-01T00:00:00Z".to_owned()), ..LogOptions::default() },
    );
    assert_eq!((out.as_str(), err.as_str()), ("", ""));
    assert_eq!(log(&mut host, 5, "nobody", LogOptions::default()).2.as_deref(), Some("no_such_container"));
    assert_eq!(log(&mut host, 6, "../etc", LogOptions::default()).2.as_deref(), Some("no_such_container"));

    // A stream that follows goes on until it is closed, and over when a new host comes.
    host.send(&ToGuest::LogsOpen {
        id: 7,
        container: name.clone(),
        options: LogOptions { follow: true, ..LogOptions::default() },
        entries: false,
    });
    host.wait(SOON, "log data", |m| matches!(m, FromGuest::Log { id: 7, .. }).then_some(()));
    drop(host);
    let mut host = vm.connect("third");
    assert_eq!(host.state.boot_progress, "done");
    assert!(vm.http(vm.port_8080).contains(MARKER));
    assert!(
        !host.drain(Duration::from_secs(1)).iter().any(|m| matches!(m, FromGuest::Log { .. } | FromGuest::NeedKeys))
    );
    host.shut_down(&mut vm);
    drop(host);
    let console = vm.console();
    assert!(console.contains("powering off") && !console.contains(MARKER), "{console}");

    // Second boot: the same container on the same disk.
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("fourth");
    host.give_config(&hello(), Some(app.encrypted_env.clone()));
    host.give_keys(&app.keys);
    assert!(vm.http(vm.port_8080).contains(MARKER));
    eprintln!("second boot: app answers after {:.1} s", vm.seconds());
    let state = host.booted();
    assert!(!state.timeline.iter().any(|(word, _)| word == "initializing data disk"));
    assert_eq!(containers(&mut host, 1)[0].id, listed[0].id);
    host.shut_down(&mut vm);
    drop(host);

    // A wrong key opens nothing and destroys nothing.
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("fifth");
    host.give_config(&hello(), Some(app.encrypted_env.clone()));
    host.give_keys(&Keys { disk_key: "5d".repeat(32), ..app.keys.clone() });
    let error = host.booted().boot_error.expect("the disk does not open");
    assert_eq!(error.step, "mounting data disk");
    assert!(error.message.contains("key"), "{}", error.message);
    host.shut_down(&mut vm);
    drop(host);

    // One vCPU, and the right key again.
    let mut vm = Vm::start(dir.path(), 1);
    let mut host = vm.connect("sixth");
    eprintln!("1 vCPU: agent answers after {:.1} s", vm.seconds());
    host.give_config(&hello(), Some(app.encrypted_env.clone()));
    host.give_keys(&app.keys);
    assert!(vm.http(vm.port_8080).contains(MARKER));
    eprintln!("1 vCPU: app answers after {:.1} s", vm.seconds());
    host.booted();
    assert_eq!(containers(&mut host, 1)[0].id, listed[0].id);
    host.shut_down(&mut vm);
    drop(host);

    let mut secrets = vec![MARKER.as_bytes().to_vec(), DROPPED.as_bytes().to_vec()];
    for key in [&app.keys.env_key, &app.keys.disk_key] {
        secrets.push(key.as_bytes().to_vec());
        secrets.push(hex::decode(key).unwrap());
    }
    drop(vm);
    // The disk was written to: the search below would find something.
    assert!(fs::metadata(dir.path().join("data.qcow2")).unwrap().len() > 10_000_000);
    assert_in_no_file(dir.path(), &secrets);
}

#[test]
fn scripts_and_their_errors() {
    emulated(scripts_and_their_errors_once);
}

fn scripts_and_their_errors_once() {
    let dir = tempfile::tempdir().unwrap();
    let app = app();
    let script = serde_json::json!({
        "name": "script", "runner": "bash", "allowed_envs": ["GREETING"],
        "pre_launch_script": "export FROM_SCRIPT=\"from pre-launch\"\nGREETING=\"$GREETING!\"\n",
        "bash_script": "echo \"$GREETING $FROM_SCRIPT ${NOT_ALLOWED:-unset}\"\necho oops >&2\nmkdir -p /data/kept; ls /data/kept\ntouch /data/kept/file\nsleep 1000 & wait\n",
    });
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("a");
    host.give_config(&script.to_string(), Some(app.encrypted_env.clone()));
    // A server that cannot give the keys yet is asked again.
    host.wait_need_keys();
    host.send(&ToGuest::Refused { what: "keys".to_owned(), reason: "not now".to_owned(), retry_s: Some(1) });
    host.give_keys(&app.keys);
    let state = host.booted();
    assert_eq!(state.boot_error, None);
    eprintln!("bash app runs after {:.1} s", vm.seconds());
    assert_eq!(containers(&mut host, 1)[0].names, ["/app"]);
    host.send(&ToGuest::LogsOpen {
        id: 2,
        container: "app".to_owned(),
        options: LogOptions { follow: true, ..LogOptions::default() },
        entries: false,
    });
    let mut seen = Vec::new();
    host.wait(SOON, "the script's words", |m| {
        if let FromGuest::Log { data, .. } = m {
            seen.extend(base64::engine::general_purpose::STANDARD.decode(data).unwrap());
        }
        let text = String::from_utf8_lossy(&seen);
        (text.contains(&format!("{MARKER}! from pre-launch unset\n")) && text.contains("oops\n")).then_some(())
    });
    host.send(&ToGuest::LogsClose { id: 2 });
    let (out, err, _) = log(&mut host, 3, "app", LogOptions { tail: Some(1), ..LogOptions::default() });
    assert_eq!([out, err].concat().lines().count(), 1);
    host.shut_down(&mut vm);
    drop(host);

    // A script that fails says where, with its last words but without a value.
    let failing = serde_json::json!({
        "name": "script", "runner": "bash", "allowed_envs": ["GREETING"], "bash_script": "true",
        "pre_launch_script": "echo \"about to fail with $GREETING\"\nls /data/kept\nexit 7\n",
    });
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("b");
    host.give_config(&failing.to_string(), Some(app.encrypted_env.clone()));
    host.give_keys(&app.keys);
    let error = host.booted().boot_error.expect("the script ended with 7");
    assert_eq!(error.step, "pre-launch");
    assert!(error.message.contains("7") && error.message.contains("about to fail with ****"), "{}", error.message);
    assert!(error.message.contains("file") && !error.message.contains(MARKER), "{}", error.message);
    host.shut_down(&mut vm);
    assert_in_no_file(dir.path(), &[MARKER.as_bytes().to_vec()]);
}

#[test]
fn a_flood_of_logs_and_a_port_without_a_number() {
    emulated(a_flood_of_logs_and_a_port_without_a_number_once);
}

fn a_flood_of_logs_and_a_port_without_a_number_once() {
    let dir = tempfile::tempdir().unwrap();
    let app = app();
    let yaml = "services:\n  web:\n    image: holdfast/hello:latest\n    environment: [GREETING]\n    ports: ['80']\n  \
                flood:\n    image: holdfast/hello:latest\n    command: [sh, -c, 'i=0; while [ $$i -lt 60000 ]; do echo line $$i; i=$$((i+1)); done; sleep 1000']\n";
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("a");
    host.give_config(&compose("flood", yaml), Some(app.encrypted_env.clone()));
    host.give_keys(&app.keys);
    let state = host.booted();
    assert_eq!(state.boot_error, None);
    assert!(vm.http(vm.port_80).contains(MARKER));
    // Without credit the stream stops at its window, and everything else goes on.
    host.send(&ToGuest::LogsOpen {
        id: 1,
        container: "flood".to_owned(),
        options: LogOptions { follow: true, ..LogOptions::default() },
        entries: false,
    });
    let mut got = 0;
    let count = |m: &FromGuest| match m {
        FromGuest::Log { id: 1, data, .. } => {
            base64::engine::general_purpose::STANDARD.decode(data).unwrap().len() as u64
        }
        _ => 0,
    };
    host.wait(SOON, "a full window", |m| {
        got += count(m);
        (got == STREAM_WINDOW).then_some(())
    });
    assert!(host.drain(Duration::from_secs(2)).iter().all(|m| count(m) == 0));
    assert_eq!(containers(&mut host, 2).len(), 2);
    host.send(&ToGuest::LogsCredit { id: 1, bytes: 1000 });
    host.wait(SOON, "as much as was credited", |m| {
        got += count(m);
        (got == STREAM_WINDOW + 1000).then_some(())
    });
    host.shut_down(&mut vm);
}
