//! The channel against guests that behave and guests that do not.

use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_model::guest::{CAN_STATS, FromGuest, GuestState, Keys, MAX_LINE, SystemStats, ToGuest};
use holdfast_model::node::STREAM_WINDOW;
use holdfast_model::vm::{RunState, StopMode, VmSpec};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::hypervisor::KeyError;
use crate::hypervisor::qemu::argv::AGENT_SOCKET;

#[derive(Default)]
struct Source {
    asked: AtomicU32,
}

#[async_trait::async_trait]
impl KeySource for Source {
    /// Unreachable at first, then a key.
    async fn keys(&self, _uuid: Uuid) -> Result<Keys, KeyError> {
        match self.asked.fetch_add(1, Ordering::Relaxed) {
            0 => Err(KeyError::Unreachable),
            _ => Ok(Keys { env_key: "e".into(), disk_key: "d".into() }),
        }
    }
}

/// The guest's end of a channel.
struct Guest {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Guest {
    fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: BufReader::new(read).lines(), write }
    }

    async fn say(&mut self, message: &FromGuest) {
        let line = serde_json::to_string(message).expect("json") + "\n";
        self.write.write_all(line.as_bytes()).await.expect("write");
    }

    async fn hear(&mut self) -> ToGuest {
        loop {
            let line = tokio::time::timeout(Duration::from_secs(5), self.lines.next_line());
            let line = line.await.expect("in time").expect("read").expect("a line");
            if !line.is_empty() {
                return serde_json::from_str(&line).expect("json");
            }
        }
    }

    async fn greet(&mut self, progress: &str) {
        let ToGuest::Hello { session } = self.hear().await else { panic!("no hello") };
        self.say(&FromGuest::HelloAck { session, state: state(progress) }).await;
    }
}

fn state(progress: &str) -> GuestState {
    GuestState { boot_progress: progress.to_owned(), ..GuestState::default() }
}

pub(super) struct Rig {
    pub agent: Agent,
    wanted: watch::Sender<Arc<DesiredVm>>,
    pub view: watch::Receiver<View>,
    listener: UnixListener,
    _dir: tempfile::TempDir,
}

pub(super) fn rig() -> Rig {
    // Deeper than a socket's path may be.
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join("x".repeat(120));
    std::fs::create_dir(&folder).expect("mkdir");
    let short = dir.path().join("s");
    std::os::unix::fs::symlink(&folder, &short).expect("symlink");
    let listener = UnixListener::bind(short.join(AGENT_SOCKET)).expect("bind");
    let (sender, view) = watch::channel(View::default());
    let spec = VmSpec {
        uuid: Uuid::nil(),
        name: "My App!".into(),
        app_id: "a".into(),
        instance_id: "i".into(),
        image: String::new(),
        vcpu: 1,
        memory_mb: 1,
        disk_gb: 1,
        ports: vec![],
        compose_hash: String::new(),
        app_compose: "{}".into(),
        encrypted_env: Some("ff".into()),
        user_config: None,
        restart_policy: Default::default(),
    };
    let keys = Arc::new(Source::default());
    let desired = DesiredVm {
        uuid: Uuid::nil(),
        generation: 1,
        run_state: RunState::Running,
        stop: StopMode::Hard,
        boot_epoch: 1,
        spec: Some(spec),
    };
    let (wanted, wanted_by_guest) = watch::channel(Arc::new(desired));
    let agent = Agent::open(Peer { uuid: Uuid::nil(), wanted: wanted_by_guest, folder, keys, view: sender });
    Rig { agent, wanted, view, listener, _dir: dir }
}

async fn accept(rig: &Rig) -> Guest {
    Guest::new(accept_stream(rig).await)
}

pub(super) async fn accept_stream(rig: &Rig) -> UnixStream {
    let accepted = tokio::time::timeout(Duration::from_secs(5), rig.listener.accept());
    accepted.await.expect("in time").expect("accept").0
}

async fn progress(rig: &mut Rig, wanted: &str) {
    let reached = rig.view.wait_for(|v| v.guest.boot_progress.as_deref() == Some(wanted));
    tokio::time::timeout(Duration::from_secs(5), reached).await.expect("in time").expect("open");
}

#[tokio::test]
async fn config_keys_and_state() {
    let mut rig = rig();
    let mut guest = accept(&rig).await;
    guest.say(&FromGuest::NeedConfig).await;
    guest.say(&FromGuest::HelloAck { session: "of another host".into(), state: state("a lie") }).await;
    guest.greet("booting").await;
    progress(&mut rig, "booting").await;
    guest.say(&FromGuest::NeedConfig).await;
    let ToGuest::Config(config) = guest.hear().await else { panic!("no config") };
    assert_eq!((config.hostname.as_str(), config.encrypted_env.as_deref()), ("my-app", Some("ff")));
    guest.say(&FromGuest::NeedKeys).await;
    assert!(matches!(guest.hear().await, ToGuest::Refused { retry_s: Some(_), .. }));
    guest.say(&FromGuest::NeedKeys).await;
    let ToGuest::Keys(keys) = guest.hear().await else { panic!("no keys") };
    assert_eq!((keys.env_key.as_str(), keys.disk_key.as_str()), ("e", "d"));
    guest.say(&FromGuest::State(state("done"))).await;
    progress(&mut rig, "done").await;
}

fn running(progress: &str, app_revision: u64) -> GuestState {
    GuestState { boot_progress: progress.to_owned(), app_revision, ..GuestState::default() }
}

/// Wants another app, in `generation`.
fn change(rig: &Rig, generation: u64) {
    rig.wanted.send_modify(|wanted| {
        let mut newer = (**wanted).clone();
        newer.generation = generation;
        if let Some(spec) = &mut newer.spec {
            spec.app_compose = format!("{{\"n\":{generation}}}");
        }
        *wanted = Arc::new(newer);
    });
}

async fn configured(guest: &mut Guest) -> (u64, String) {
    let ToGuest::Config(config) = guest.hear().await else { panic!("no config") };
    (config.revision, config.app_compose)
}

#[tokio::test]
async fn a_running_guest_is_given_the_newest_app_unasked_and_once() {
    let mut rig = rig();
    let mut guest = accept(&rig).await;
    // A guest without any configuration asks for it itself, and gets the newest.
    guest.greet("booting").await;
    progress(&mut rig, "booting").await;
    change(&rig, 2);
    guest.say(&FromGuest::NeedConfig).await;
    assert_eq!(configured(&mut guest).await, (2, "{\"n\":2}".to_owned()));
    guest.say(&FromGuest::State(running("done", 2))).await;
    progress(&mut rig, "done").await;
    assert_eq!(rig.view.borrow().guest.app_revision, 2);

    change(&rig, 3);
    assert_eq!(configured(&mut guest).await, (3, "{\"n\":3}".to_owned()));
    // What it says of the app before counts as that, and what it cannot have is not believed.
    guest.say(&FromGuest::State(running("still", 2))).await;
    progress(&mut rig, "still").await;
    assert_eq!(rig.view.borrow().guest.app_revision, 2);
    guest.say(&FromGuest::State(running("lie", u64::MAX))).await;
    progress(&mut rig, "lie").await;
    assert_eq!(rig.view.borrow().guest.app_revision, 3);

    // A connection later it gets what it has not applied, and not what it has.
    for (has, next) in [(2, 4), (4, 5), (u64::MAX, 6)] {
        drop(guest);
        guest = accept(&rig).await;
        let ToGuest::Hello { session } = guest.hear().await else { panic!("no hello") };
        guest.say(&FromGuest::HelloAck { session, state: running(&next.to_string(), has) }).await;
        progress(&mut rig, &next.to_string()).await;
        if has == 2 {
            assert_eq!(configured(&mut guest).await.0, 3);
        }
        change(&rig, next);
        assert_eq!(configured(&mut guest).await.0, next);
    }
    // An agent that does not speak of revisions has the one of its boot, whatever came since.
    let mut old = self::rig();
    let mut silent = accept(&old).await;
    silent.greet("booting").await;
    silent.say(&FromGuest::NeedConfig).await;
    assert_eq!(configured(&mut silent).await.0, 1);
    change(&old, 2);
    assert_eq!(configured(&mut silent).await.0, 2);
    silent.say(&FromGuest::State(state("done"))).await;
    progress(&mut old, "done").await;
    assert_eq!(old.view.borrow().guest.app_revision, 1);

    // One that is to be stopped gets nothing: the question after it is answered, the change is not told.
    rig.wanted.send_modify(|wanted| *wanted = Arc::new(DesiredVm { generation: 9, spec: None, ..(**wanted).clone() }));
    rig.agent.line().shutdown(1).await;
    assert!(matches!(guest.hear().await, ToGuest::Shutdown { .. }));
}

#[tokio::test]
async fn rubbish_is_dropped_and_a_lost_connection_made_again() {
    let mut rig = rig();
    let mut guest = accept(&rig).await;
    guest.greet("booting").await;
    guest.write.write_all(&vec![b'{'; 3 * MAX_LINE]).await.expect("write");
    guest.write.write_all(b"\n\xff\xfe\n{\"is\":\"root\"}\n[1]\n").await.expect("write");
    guest.say(&FromGuest::State(state(&"é".repeat(500)))).await;
    progress(&mut rig, &"é".repeat(32)).await;
    drop(guest);
    let mut guest = accept(&rig).await;
    guest.greet("done").await;
    progress(&mut rig, "done").await;
}

#[tokio::test]
async fn a_flood_of_states_is_thinned_out() {
    let mut rig = rig();
    let mut guest = accept(&rig).await;
    guest.greet("0").await;
    progress(&mut rig, "0").await;
    let counting = async {
        let mut changes = 0;
        while rig.view.borrow_and_update().guest.boot_progress.as_deref() != Some("done") {
            rig.view.changed().await.expect("open");
            changes += 1;
        }
        changes
    };
    let flood = async {
        for i in 0..5000 {
            guest.say(&FromGuest::State(state(&i.to_string()))).await;
        }
        guest.say(&FromGuest::State(state("done"))).await;
    };
    let (changes, ()) =
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(counting, flood) }).await.expect("in time");
    assert!(changes < 500, "{changes}");
}

#[tokio::test]
async fn a_shutdown_waits_for_the_guest_to_listen() {
    let rig = rig();
    rig.agent.line().shutdown(7).await;
    let mut guest = accept(&rig).await;
    guest.greet("booting").await;
    assert!(matches!(guest.hear().await, ToGuest::Shutdown { grace_s: 7 }));
}

#[tokio::test]
async fn logs_move_on_credit() {
    let rig = rig();
    let mut guest = accept(&rig).await;
    guest.greet("done").await;
    let line = rig.agent.line();
    let mut log = loop {
        match line.open_logs("web".into(), LogOptions::default(), false).await {
            Ok(log) => break log,
            Err(error) => assert_eq!(error.code, "agent_silent"),
        }
    };
    let ToGuest::LogsOpen { id, container, .. } = guest.hear().await else { panic!("no log asked for") };
    assert_eq!(container, "web");
    let data = |text: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    guest.say(&FromGuest::Log { id, channel: 2, data: data(b"hello"), at: None }).await;
    assert_eq!(log.next().await.expect("open"), Some((2, Bytes::from_static(b"hello"), None)));
    // Credit is given in larger pieces than one line.
    let window = usize::try_from(STREAM_WINDOW).expect("fits");
    log.passed_on(5).await;
    log.passed_on(window / 4 - 5).await;
    let ToGuest::LogsCredit { bytes, .. } = guest.hear().await else { panic!("no credit") };
    assert_eq!(bytes, STREAM_WINDOW / 4);
    guest.say(&FromGuest::Log { id, channel: 1, data: data(&vec![b'x'; window]), at: None }).await;
    guest.say(&FromGuest::Log { id, channel: 1, data: data(&vec![b'x'; window / 4]), at: None }).await;
    assert_eq!(log.next().await.expect("open").expect("data").1.len(), window);
    assert_eq!(log.next().await.expect_err("closed").code, "internal");
    assert!(matches!(guest.hear().await, ToGuest::LogsClose { .. }));

    let mut second = line.open_logs("db".into(), LogOptions::default(), false).await.expect("open");
    let ToGuest::LogsOpen { id, .. } = guest.hear().await else { panic!("no log asked for") };
    let error = stream_error("no_such_container", "no db");
    guest.say(&FromGuest::LogEnd { id, error: Some(error.clone()) }).await;
    assert_eq!(second.next().await.expect_err("ended"), error);
    let third = line.open_logs("web".into(), LogOptions::default(), false).await.expect("open");
    assert!(matches!(guest.hear().await, ToGuest::LogsOpen { .. }));
    drop(third);
    assert!(matches!(guest.hear().await, ToGuest::LogsClose { .. }));
}

#[tokio::test]
async fn containers_are_asked_for() {
    let rig = rig();
    let mut guest = accept(&rig).await;
    guest.greet("done").await;
    let line = rig.agent.line();
    let asking = async {
        loop {
            match line.containers().await {
                Err(error) if error.message.contains("yet") => {}
                other => return other,
            }
        }
    };
    let answering = async {
        let ToGuest::Containers { id } = guest.hear().await else { panic!("nothing asked") };
        guest.say(&FromGuest::Containers { id: id + 100, containers: vec![], error: Some("foreign".into()) }).await;
        guest.say(&FromGuest::Containers { id, containers: vec![], error: None }).await;
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer, Ok(vec![]));
}

fn can_stats(progress: &str) -> GuestState {
    GuestState { can: vec![CAN_STATS.to_owned()], ..state(progress) }
}

#[tokio::test]
async fn the_machine_is_asked_for_where_the_agent_can_say() {
    let mut rig = rig();
    let mut guest = accept(&rig).await;
    guest.greet("old").await;
    progress(&mut rig, "old").await;
    let line = rig.agent.line();
    // An agent of an older image would be silent; nobody waits for it.
    assert_eq!(line.stats().await.expect_err("too old").code, "agent_old");
    guest.say(&FromGuest::State(can_stats("new"))).await;
    progress(&mut rig, "new").await;
    let answering = async {
        let ToGuest::Stats { id } = guest.hear().await else { panic!("nothing asked") };
        // Of another question, of another kind, and then the answer, longer than anybody wants it.
        let stats = |model: String| Some(Box::new(SystemStats { cpu_model: model, ..SystemStats::default() }));
        guest.say(&FromGuest::Stats { id: id + 100, stats: stats("foreign".into()), error: None }).await;
        guest.say(&FromGuest::Stats { id, stats: stats("c".repeat(10_000)), error: None }).await;
    };
    let (answer, ()) = tokio::join!(line.stats(), answering);
    assert_eq!(answer.expect("an answer").cpu_model.len(), 256);
    let failing = async {
        let ToGuest::Stats { id } = guest.hear().await else { panic!("nothing asked") };
        guest.say(&FromGuest::Stats { id, stats: None, error: Some("x".repeat(10_000)) }).await;
    };
    let (answer, ()) = tokio::join!(line.stats(), failing);
    assert_eq!(answer.expect_err("no answer").message.len(), 4096);
}

#[tokio::test]
async fn a_guest_that_asks_without_reading_costs_a_bounded_queue() {
    let rig = rig();
    rig.wanted.send_modify(|wanted| {
        let mut large = (**wanted).clone();
        large.spec.as_mut().expect("a spec").app_compose = "x".repeat(MAX_LINE / 2);
        *wanted = Arc::new(large);
    });
    let mut guest = accept(&rig).await;
    guest.greet("booting").await;
    for _ in 0..10_000 {
        guest.say(&FromGuest::NeedConfig).await;
    }
    // A change of the state comes after all of that.
    guest.say(&FromGuest::State(state("done"))).await;
    let mut view = rig.view.clone();
    let done = view.wait_for(|v| v.guest.boot_progress.as_deref() == Some("done"));
    tokio::time::timeout(Duration::from_secs(10), done).await.expect("in time").expect("open");
    rig.agent.line().shutdown(3).await;
    let mut configs = 0;
    // At the end of what was queued it hears what is said next.
    while let ToGuest::Config(config) = guest.hear().await {
        assert_eq!(config.app_compose.len(), MAX_LINE / 2);
        configs += 1;
        if configs == 1 {
            rig.agent.line().shutdown(3).await;
        }
    }
    // Two lines' worth of bytes in the queue, and one on its way out.
    assert!((1..=5).contains(&configs), "{configs}");
    guest.say(&FromGuest::NeedConfig).await;
    loop {
        match guest.hear().await {
            ToGuest::Config(_) => break,
            other => assert!(matches!(other, ToGuest::Shutdown { .. }), "{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_guest_that_floods_is_heard_no_more_than_its_share_and_others_are_as_before() {
    let (hostile, quiet) = (rig(), rig());
    let mut liar = accept(&hostile).await;
    let mut guest = accept(&quiet).await;
    liar.greet("booting").await;
    guest.greet("done").await;
    let flood = async {
        let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, vec![b'x'; 64 * 1024]);
        let mut noise = vec![b'['; 256 * 1024];
        noise.push(b'\n');
        for id in 0u64.. {
            let lines = [
                FromGuest::Log { id, channel: 9, data: data.clone(), at: None },
                FromGuest::LogEnd { id, error: None },
                FromGuest::Containers { id, containers: Vec::new(), error: None },
                FromGuest::NeedKeys,
                FromGuest::HelloAck { session: "another".to_owned(), state: state("a lie") },
            ];
            for line in &lines {
                liar.say(line).await;
            }
            liar.write.write_all(&noise).await.expect("write");
        }
    };
    let line = quiet.agent.line();
    let answering = async {
        for _ in 0..50 {
            let ToGuest::Containers { id } = guest.hear().await else { panic!("nothing asked") };
            guest.say(&FromGuest::Containers { id, containers: Vec::new(), error: None }).await;
        }
    };
    let asking = async {
        let mut answers = 0;
        while answers < 50 {
            match line.containers().await {
                Ok(_) => answers += 1,
                Err(error) => assert!(error.message.contains("yet"), "{error:?}"),
            }
        }
    };
    let served = async { tokio::join!(asking, answering) };
    tokio::select! {
        () = flood => unreachable!("it never ends"),
        done = tokio::time::timeout(Duration::from_secs(20), served) => drop(done.expect("in time")),
    }
    assert_ne!(hostile.view.borrow().guest.boot_progress.as_deref(), Some("a lie"));
}
