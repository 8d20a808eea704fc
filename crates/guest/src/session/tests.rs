//! What is said before and after each `Hello`, which configuration counts, and that no host makes the agent grow.

use holdfast_model::guest::SystemStats;

use super::*;

fn said(agent: &Agent) -> Vec<FromGuest> {
    std::iter::from_fn(|| agent.next()).collect()
}

fn hello(agent: &Agent, session: &str) {
    assert!(agent.receive(ToGuest::Hello { session: session.to_owned() }).is_none());
}

fn keys() -> ToGuest {
    ToGuest::Keys(Keys { env_key: String::new(), disk_key: String::new() })
}

fn open(agent: &Agent, id: u64) -> Option<Arc<Stop>> {
    match agent.receive(ToGuest::LogsOpen {
        id,
        container: "c".to_owned(),
        options: LogOptions::default(),
        entries: false,
    }) {
        Some(Task::Logs { stop, .. }) => Some(stop),
        _ => None,
    }
}

#[test]
fn nothing_is_said_before_hello_and_all_of_it_after_each() {
    let agent = Agent::new("boot".to_owned());
    agent.progress(BootProgress::RequestingAppKeys);
    drop(agent.ask(Need::Keys));
    assert!(said(&agent).is_empty());
    assert!(agent.receive(keys()).is_none());
    for session in ["a", "b"] {
        hello(&agent, session);
        let lines = said(&agent);
        assert!(
            matches!(&lines[0], FromGuest::HelloAck { session: s, state } if s == session && state.timeline.len() == 2)
        );
        assert_eq!(lines[1..], [FromGuest::NeedKeys]);
    }
    // What nobody asked for is not taken; what was asked for, once.
    agent.receive(ToGuest::Refused { what: "config".to_owned(), reason: String::new(), retry_s: None });
    assert!(agent.lock().keys.is_none());
    agent.receive(keys());
    assert!(matches!(agent.lock().keys.take(), Some(Ok(_))));
    agent.receive(keys());
    assert!(agent.lock().keys.is_none());
    hello(&agent, "c");
    assert_eq!(said(&agent).len(), 1);
}

#[test]
fn a_message_that_was_taken_is_not_written_before_the_next_is_asked_for() {
    let agent = Agent::new("boot".to_owned());
    hello(&agent, "a");
    agent.shutdown_progress("powering off");
    let told = |agent: &Agent| {
        agent.flush(Duration::ZERO);
        !agent.lock().owes_the_host()
    };
    while agent.next().is_some() {
        assert!(!told(&agent));
    }
    assert!(told(&agent));
}

#[test]
fn the_machine_is_looked_at_for_whoever_asks() {
    let agent = Agent::new("boot".to_owned());
    assert!(agent.receive(ToGuest::Stats { id: 1 }).is_none());
    hello(&agent, "a");
    assert!(matches!(&said(&agent)[0], FromGuest::HelloAck { state, .. } if state.can == [CAN_STATS, CAN_ENTRIES]));
    assert!(matches!(agent.receive(ToGuest::Stats { id: 2 }), Some(Task::Stats { id: 2 })));
    agent.answer_stats(2, SystemStats { num_cpus: 3, ..SystemStats::default() });
    let [FromGuest::Stats { id: 2, stats: Some(stats), error: None }] = &said(&agent)[..] else { panic!("no answer") };
    assert_eq!((stats.num_cpus, agent.lock().tasks), (3, 0));
}

fn config(revision: u64, app: &str) -> ToGuest {
    ToGuest::Config(Box::new(Config {
        vm_uuid: String::new(),
        app_id: String::new(),
        instance_id: String::new(),
        hostname: String::new(),
        app_compose: app.to_owned(),
        encrypted_env: None,
        user_config: None,
        now: holdfast_model::Timestamp(0),
        revision,
    }))
}

#[test]
fn the_newest_configuration_wins_and_the_same_app_is_left_alone() {
    let agent = Agent::new(String::new());
    hello(&agent, "a");
    // Before the first was asked for, none is taken.
    agent.receive(config(1, "one"));
    assert!(!agent.superseded());
    std::thread::scope(|scope| {
        let boot = scope.spawn(|| agent.need_config());
        while agent.lock().need.is_none() {
            std::thread::yield_now();
        }
        agent.receive(config(1, "one"));
        assert_eq!(boot.join().unwrap().revision, 1);
    });
    assert_eq!(agent.lock().state.app_revision, 1);
    agent.progress(BootProgress::Done);
    said(&agent);

    // The same app: acknowledged at once, while it stays done.
    agent.receive(config(2, "one"));
    assert!(!agent.superseded());
    let [FromGuest::State(state)] = &said(&agent)[..] else { panic!("no state") };
    assert_eq!((state.app_revision, state.boot_progress.as_str()), (2, "done"));

    // Of several others only the last; an older one, or the same again, never.
    for (revision, app) in [(3, "two"), (5, "four"), (4, "three"), (5, "else")] {
        agent.receive(config(revision, app));
    }
    assert!(agent.superseded());
    let newer = agent.newer_config();
    assert_eq!((newer.revision, newer.app_compose.as_str()), (5, "four"));
    assert!(!agent.superseded());
    assert_eq!(agent.lock().state.app_revision, 2);
    agent.begin_revision(5, BootProgress::StartingContainers);
    agent.set_error(Some(BootError { step: String::new(), message: String::new() }));

    // The same app after it failed is tried again.
    agent.receive(config(6, "four"));
    assert!(agent.superseded());
    agent.begin_revision(agent.newer_config().revision, BootProgress::PreLaunch);
    let state = agent.lock().state.clone();
    assert_eq!((state.app_revision, state.boot_error, state.timeline.len()), (6, None, 1));
}

#[test]
fn a_stream_ends_at_its_credit_and_with_its_host() {
    let agent = Agent::new(String::new());
    hello(&agent, "a");
    said(&agent);
    let stop = open(&agent, 1).expect("a stream");
    let window = vec![b'x'; usize::try_from(STREAM_WINDOW).unwrap()];
    assert!(agent.send_log(1, &stop, 1, &window));
    assert_eq!(agent.lock().streams[&1].credit, 0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| agent.send_log(1, &stop, 1, b"more"));
        hello(&agent, "b");
        assert!(!waiting.join().unwrap());
    });
    assert!(stop.stopped());
    agent.end_log(1, &stop, None);
    assert_eq!(said(&agent).len(), 1);
    assert_eq!(agent.lock().tasks, 0);
}

#[test]
fn a_host_that_asks_without_end_gets_bounded_memory() {
    let agent = Agent::new(String::new());
    hello(&agent, "a");
    let begun = (0..100_000).filter(|id| open(&agent, *id).is_some()).count();
    assert_eq!(begun, MAX_TASKS);
    for id in 0..100_000 {
        assert!(agent.receive(ToGuest::Containers { id }).is_none());
        assert!(agent.receive(ToGuest::Stats { id }).is_none());
    }
    assert!(agent.lock().queued_bytes <= 2 * QUEUE_BYTES + 1024);
    // Credit without reading does not help either.
    agent.receive(ToGuest::LogsCredit { id: 0, bytes: u64::MAX });
    assert_eq!(agent.lock().streams[&0].credit, u64::MAX);
}
