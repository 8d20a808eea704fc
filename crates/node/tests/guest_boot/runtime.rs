//! What a guest says of its machine, and what of its env and of its owner's text is for the guest itself.

use base64::Engine as _;
use holdfast_model::guest::{CAN_ENTRIES, CAN_STATS, Config, FromGuest, Keys, LogOptions, SystemStats, ToGuest};
use holdfast_trust::{env, kms};
use serde_json::json;

use crate::host::{Host, SOON, Vm, config, emulated};
use crate::{assert_in_no_file, log};

const USER: &str = "marker-user-31";
const PASSWORD: &str = "marker-password-8f";
const KEY_OF_ENV: &str = "ssh-ed25519 AAAA-marker-env-key me";
const KEY_OF_OWNER: &str = "ssh-ed25519 AAAA-owner-key me";
const NAMES: [&str; 4] =
    ["DSTACK_DOCKER_USERNAME", "DSTACK_DOCKER_PASSWORD", "DSTACK_DOCKER_REGISTRY", "DSTACK_AUTHORIZED_KEYS"];

/// A registry on a port of the guest's own that lets nobody in, and says in its refusal whether the login was the right one.
const REGISTRY: &str = r#"
use IO::Socket::INET;
my ($want, $password) = @ARGV;
my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 5000, Listen => 16, ReuseAddr => 1) or die;
while (my $client = $listener->accept) {
    my $asked = '';
    while ($asked !~ /\r\n\r\n/ && sysread($client, $asked, 4096, length $asked)) { last if $asked =~ /^\x16/ }
    if ($asked =~ /^\x16/) { close $client; next }
    my ($status, $more, $body) = ('401 Unauthorized', "WWW-Authenticate: Basic realm=\"test\"\r\n", '{}');
    if ($asked =~ /^Authorization: Basic (\S+)\r$/mi) {
        my $verdict = $1 eq $want ? 'right' : 'wrong';
        $body = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"the login is $verdict, $password\"}]}";
        ($status, $more) = ('403 Forbidden', '');
        ($status, $body) = ('200 OK', '{}') if $asked =~ m{^GET /v2/ };
    }
    $body = '' if $asked =~ /^HEAD/;
    print $client "HTTP/1.1 $status\r\nContent-Type: application/json\r\n${more}Connection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
    close $client;
}
"#;

fn encrypted(values: &[&str]) -> Option<String> {
    let key = kms::Root::from_seed(&[42; 32]).env_key(&[7; 20]);
    let pairs: Vec<_> =
        NAMES.iter().zip(values).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Some(hex::encode(env::encrypt(&key.public, &pairs).unwrap()))
}

fn stats(host: &mut Host, id: u64) -> SystemStats {
    host.send(&ToGuest::Stats { id });
    host.wait(SOON, "the machine", |m| match m {
        FromGuest::Stats { id: theirs, stats: Some(stats), error: None } if *theirs == id => Some((**stats).clone()),
        _ => None,
    })
}

/// What a script prints, as the app of a newer configuration.
fn prints(host: &mut Host, revision: u64, script: &str, change: impl FnOnce(&mut Config)) -> String {
    let app = json!({
        "name": "app", "runner": "bash", "allowed_envs": NAMES, "bash_script": format!("{script}\necho over\nsleep 1000 & wait"),
    });
    let mut wanted = config(revision, &app.to_string(), None);
    change(&mut wanted);
    assert_eq!(host.change(wanted).boot_error, None);
    for ask in 0.. {
        let (out, err, _) = log(host, revision * 1000 + ask, "app", LogOptions::default());
        assert_eq!(err, "");
        if let Some(text) = out.strip_suffix("over\n") {
            return text.to_owned();
        }
    }
    unreachable!("it ends, or the test's limit does")
}

#[test]
fn a_private_registry_ssh_keys_and_the_machine() {
    emulated(a_private_registry_ssh_keys_and_the_machine_once);
}

fn a_private_registry_ssh_keys_and_the_machine_once() {
    let dir = tempfile::tempdir().unwrap();
    let key = kms::Root::from_seed(&[42; 32]).env_key(&[7; 20]);
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let registry = format!("cat > /run/registry.pl <<'END'\n{REGISTRY}END\n");
    let start = format!("perl /run/registry.pl '{auth}' \"$DSTACK_DOCKER_PASSWORD\" </dev/null >/dev/null 2>&1 &\n");
    let app = json!({
        "name": "private", "runner": "docker-compose", "allowed_envs": NAMES, "init_script": registry + &start,
        "docker_compose_file": "services: {web: {image: '127.0.0.1:5000/private/app:1'}}",
    });
    let user_config = json!({ "hostname": "Its-Own.Name", "ssh_authorized_keys": [KEY_OF_OWNER] }).to_string();
    let values = [USER, PASSWORD, "http://127.0.0.1:5000/v2/", KEY_OF_ENV];
    let of_owner = |wanted: &mut Config| wanted.user_config = Some(user_config.clone());

    let mut vm = Vm::start(dir.path(), 2);
    let mut host = vm.connect("a");
    let mut first = config(1, &app.to_string(), encrypted(&values));
    of_owner(&mut first);
    host.give(first);
    host.give_keys(&Keys { env_key: hex::encode(key.secret), disk_key: "5c".repeat(32) });
    // The registry knows the login, and what it says of it does not show the password.
    let error = host.booted().boot_error.expect("the registry lets nobody in");
    assert_eq!(error.step, "starting containers");
    assert!(error.message.contains("the login is right, ****"), "{}", error.message);
    assert!(!error.message.contains(PASSWORD) && !error.message.contains(&auth), "{}", error.message);

    assert_eq!(host.state.can, [CAN_STATS, CAN_ENTRIES]);
    let machine = stats(&mut host, 1);
    assert_eq!((machine.num_cpus, machine.os_name.contains("Debian")), (2, true), "{machine:?}");
    assert!(machine.total_memory > 1 << 30 && machine.total_memory <= 2 << 30, "{machine:?}");
    assert!(machine.available_memory < machine.total_memory && machine.uptime > 0, "{machine:?}");
    let data = machine.disks.iter().find(|d| d.mount_point == "/data").expect("the data disk");
    assert!(data.total_size > 15 << 30 && data.free_size < data.total_size, "{machine:?}");

    let look = "hostname\nstat -c '%a %n' /root/.ssh /root/.ssh/authorized_keys \"$DOCKER_CONFIG/config.json\"\n\
                cat /root/.ssh/authorized_keys\ndf --output=fstype /root/.ssh \"$DOCKER_CONFIG\" | tail -n 2 | xargs";
    let seen = prints(&mut host, 2, look, |wanted| {
        wanted.encrypted_env = encrypted(&values);
        of_owner(wanted);
    });
    let modes = "700 /root/.ssh\n600 /root/.ssh/authorized_keys\n600 /run/holdfast/docker/config.json";
    assert_eq!(seen, format!("its-own-name\n{modes}\n{KEY_OF_OWNER}\n{KEY_OF_ENV}\noverlay tmpfs\n"));
    // Asked for no more, they are gone.
    let gone = "hostname\nls /root/.ssh /run/holdfast/docker | grep -v : | xargs";
    assert_eq!(prints(&mut host, 3, gone, |_| ()), "test-vm\n\n");
    host.shut_down(&mut vm);
    drop((host, vm));
    let secrets = [PASSWORD, USER, KEY_OF_ENV, auth.as_str()].map(|text| text.as_bytes().to_vec());
    assert_in_no_file(dir.path(), &secrets);
}
