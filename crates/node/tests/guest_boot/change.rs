//! An app that is changed while it runs, and a disk that grows under it.

use std::collections::BTreeMap;
use std::time::Instant;

use holdfast_model::guest::{Config, FromGuest, GuestState, ToGuest};
use holdfast_trust::{env, kms};
use serde_json::{Value, json};

use crate::host::{BOOT, Host, Vm, config, emulated};
use crate::{app, containers};

const FIRST: &str = "marker-1c44-the-first-value";
const SECOND: &str = "marker-8e02-the-second-value";
const USER_CONFIG: &str = "marker-55aa-user-config";

fn encrypted(greeting: &str) -> Option<String> {
    let key = kms::Root::from_seed(&[42; 32]).env_key(&[7; 20]);
    let pairs = [("GREETING".to_owned(), greeting.to_owned())];
    Some(hex::encode(env::encrypt(&key.public, &pairs).unwrap()))
}

/// A web server that says GREETING on port 8080, and services that sleep for so many seconds.
fn compose(name: &str, sleepers: &[(&str, u32)], pre_launch: &str) -> Value {
    let mut yaml = "services:\n  web:\n    image: holdfast/hello:latest\n    environment: [GREETING]\n    \
                    ports: ['8080:80']\n    stop_grace_period: 1s\n"
        .to_owned();
    for (service, seconds) in sleepers {
        yaml.push_str(&format!(
            "  {service}:\n    image: holdfast/hello:latest\n    command: [sleep, '{seconds}']\n    stop_grace_period: 1s\n"
        ));
    }
    json!({
        "name": name, "runner": "docker-compose", "docker_compose_file": yaml, "allowed_envs": ["GREETING"],
        "pre_launch_script": pre_launch,
    })
}

fn revision(revision: u64, app: &Value, greeting: &str) -> Config {
    config(revision, &app.to_string(), encrypted(greeting))
}

/// Container ids by service.
fn ids(host: &mut Host, ask: u64) -> BTreeMap<String, String> {
    let listed = containers(host, ask).into_iter().filter(|c| c.state == "running");
    listed.map(|c| (c.names[0].rsplit('-').nth(1).unwrap_or("app").to_owned(), c.id)).collect()
}

fn words(state: &GuestState) -> Vec<&str> {
    state.timeline.iter().map(|(word, _)| word.as_str()).collect()
}

#[test]
fn an_app_is_changed_while_it_runs_and_its_disk_grows() {
    emulated(an_app_is_changed_while_it_runs_and_its_disk_grows_once);
}

fn an_app_is_changed_while_it_runs_and_its_disk_grows_once() {
    let dir = tempfile::tempdir().unwrap();
    let keys = app().keys;
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("a");
    host.give(revision(1, &compose("before", &[("side", 1001), ("gone", 1001)], ""), FIRST));
    host.give_keys(&keys);
    let state = host.booted();
    assert_eq!((state.boot_error, state.app_revision), (None, 1));
    vm.http_says(vm.port_8080, FIRST);
    let first = ids(&mut host, 1);
    assert_eq!(first.keys().collect::<Vec<_>>(), ["gone", "side", "web"]);

    // Only what changed is restarted, also under another name of the app; what is gone is removed.
    let began = Instant::now();
    let second_app = compose("after", &[("side", 1002), ("extra", 1002)], "");
    let state = host.change(revision(2, &second_app, FIRST));
    eprintln!("compose update: {:.1} s", began.elapsed().as_secs_f32());
    assert_eq!((&state.boot_error, words(&state)), (&None, vec!["starting containers", "done"]));
    let second = ids(&mut host, 2);
    assert_eq!(second.keys().collect::<Vec<_>>(), ["extra", "side", "web"]);
    assert_eq!(second["web"], first["web"]);
    assert_ne!(second["side"], first["side"]);

    // The same app in a newer revision is acknowledged, and nothing else happens.
    let state = host.change(revision(3, &second_app, FIRST));
    // The ciphertext is another one each time, so the env counts as replaced; compose still finds nothing to do.
    assert_eq!(ids(&mut host, 3), second);
    let mut same = revision(4, &second_app, FIRST);
    same.encrypted_env = None;
    let without = host.change(same.clone());
    same.revision = 5;
    let again = host.change(same);
    assert_eq!((again.timeline, again.app_revision), (without.timeline, 5));
    assert_eq!(state.app_revision, 3);

    // New values of the env, a text of the owner and a script reach the app, and the services beside it stay.
    let script = "export GREETING=\"$GREETING and $(cat /dstack/.user-config)\"\necho kept > /data/app/marker\n";
    let third_app = compose("after", &[("side", 1002), ("extra", 1002)], script);
    let mut with_text = revision(6, &third_app, SECOND);
    with_text.user_config = Some(USER_CONFIG.to_owned());
    let began = Instant::now();
    let state = host.change(with_text.clone());
    eprintln!("env update: {:.1} s", began.elapsed().as_secs_f32());
    assert_eq!((&state.boot_error, words(&state)), (&None, vec!["pre-launch", "starting containers", "done"]));
    vm.http_says(vm.port_8080, &format!("{SECOND} and {USER_CONFIG}"));
    let third = ids(&mut host, 6);
    assert_ne!(third["web"], second["web"]);
    assert_eq!((&third["side"], &third["extra"]), (&second["side"], &second["extra"]));

    // A change that hangs is given up for the next one, which fails: two services want one port. The app stays up.
    let hangs = compose("after", &[("side", 1002)], "sleep 1000 & wait");
    host.send(&ToGuest::Config(Box::new(revision(7, &hangs, SECOND))));
    host.wait(BOOT, "the script that hangs", |m| match m {
        FromGuest::State(s) if s.app_revision == 7 && s.boot_progress == "pre-launch" => Some(()),
        _ => None,
    });
    let mut clashes = third_app.clone();
    let yaml = clashes["docker_compose_file"].as_str().unwrap().to_owned();
    clashes["docker_compose_file"] =
        json!(format!("{yaml}  clash:\n    image: holdfast/hello:latest\n    ports: ['8080:80']\n"));
    let mut clashing = with_text.clone();
    (clashing.revision, clashing.app_compose) = (8, clashes.to_string());
    let began = Instant::now();
    let state = host.change(clashing);
    eprintln!("failing update: {:.1} s", began.elapsed().as_secs_f32());
    let error = state.boot_error.expect("a port clash");
    assert_eq!(error.step, "starting containers");
    assert!(error.message.contains("8080") && !error.message.contains(SECOND), "{}", error.message);
    vm.http_says(vm.port_8080, SECOND);

    // A lost connection changes nothing, and a good revision makes it well.
    drop(host);
    let mut host = vm.connect("b");
    assert_eq!((host.state.app_revision, host.state.boot_error.is_some()), (8, true));
    let mut good = with_text.clone();
    good.revision = 9;
    let state = host.change(good);
    assert_eq!((state.boot_error, state.app_revision), (None, 9));
    assert_eq!(ids(&mut host, 9), third);

    // Another runner takes over, and gives back.
    let script = json!({ "name": "x", "runner": "bash", "bash_script": "echo by script\nsleep 1000 & wait\n" });
    let state = host.change(revision(10, &script, FIRST));
    assert_eq!((&state.boot_error, words(&state)), (&None, vec!["running main script", "done"]));
    assert_eq!(ids(&mut host, 10).into_values().collect::<Vec<_>>(), ["app"]);
    let state = host.change(revision(11, &second_app, FIRST));
    assert_eq!(state.boot_error, None);
    vm.http_says(vm.port_8080, FIRST);
    host.shut_down(&mut vm);
    drop((host, vm));

    // The disk grows while the VM is off; its data stays, and so do its containers.
    Vm::resize_data(dir.path(), "30G");
    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("c");
    let looks =
        "export GREETING=\"$(cat /data/app/marker) on $(df -BG --output=size /data | tail -n 1 | tr -d ' ')\"\n";
    host.give(revision(12, &compose("after", &[("side", 1002)], looks), FIRST));
    host.give_keys(&keys);
    let state = host.booted();
    assert_eq!((state.boot_error, state.app_revision), (None, 12));
    vm.http_says(vm.port_8080, "kept on 30G");
    host.shut_down(&mut vm);
}
