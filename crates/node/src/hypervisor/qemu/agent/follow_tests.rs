//! Followers of one container against a guest that keeps a log as docker does: what each of them gets, whatever its start
//! and its pace, and how many streams that costs the guest.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::guest::{CAN_ENTRIES, FromGuest, GuestState, ToGuest};
use holdfast_model::node::STREAM_WINDOW;
use holdfast_model::time::{nanos, nanos_text};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::tests::{Rig, accept_stream, rig};
use super::*;

/// Streams that a guest carries at once.
const TASKS: usize = 16;
const LIMIT: Duration = Duration::from_secs(60);

/// A container's log, and what the guest is asked for.
#[derive(Default)]
struct Log {
    entries: Mutex<Vec<Entry>>,
    grown: Notify,
    ended: Mutex<bool>,
    /// The most streams that were open at once, and all that were opened.
    streams: Mutex<(usize, usize)>,
}

impl Log {
    /// Appends a line that says its number. Every third goes to stderr, whose clock is a little behind.
    fn add(&self) {
        let mut entries = self.entries.lock().expect("no panic");
        let number = entries.len();
        let channel = if number % 3 == 2 { 2 } else { 1 };
        let at = 1_000_000_000_000 + 1000 * number as i64 - i64::from(channel == 2) * 1500;
        let data = Bytes::from(format!("line {number} {}\n", "x".repeat(number % 40)));
        entries.push(Entry { at, channel, data });
        drop(entries);
        self.grown.notify_waiters();
    }

    fn len(&self) -> usize {
        self.entries.lock().expect("no panic").len()
    }

    fn end(&self) {
        *self.ended.lock().expect("no panic") = true;
        self.grown.notify_waiters();
    }
}

/// To the microsecond, as docker is asked.
fn micros(text: &str) -> i64 {
    let exact = nanos(text).expect("a time");
    exact - exact.rem_euclid(1000)
}

struct Open {
    next: usize,
    /// Where a stream that does not follow ends.
    until: Option<usize>,
    since: i64,
    credit: u64,
}

/// Answers until the host hangs up. Streams move by turns, some turns late.
async fn guest(stream: tokio::net::UnixStream, log: Arc<Log>, seed: u64) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut open: BTreeMap<u64, Open> = BTreeMap::new();
    loop {
        let grown = log.grown.notified();
        let mut said = Vec::new();
        let mut over = HashSet::new();
        let mut left = false;
        for (id, stream) in &mut open {
            let entries = log.entries.lock().expect("no panic");
            let end = stream.until.unwrap_or(entries.len());
            while stream.next < end {
                if dice.random_bool(0.1) {
                    left = true;
                    break;
                }
                let entry = &entries[stream.next];
                if entry.at >= stream.since {
                    let size = entry.data.len() as u64;
                    if stream.credit < size {
                        break;
                    }
                    stream.credit -= size;
                    let data = STANDARD.encode(&entry.data);
                    said.push(FromGuest::Log { id: *id, channel: entry.channel, data, at: Some(entry.at) });
                }
                stream.next += 1;
            }
            if stream.next == end && (stream.until.is_some() || *log.ended.lock().expect("no panic")) {
                said.push(FromGuest::LogEnd { id: *id, error: None });
                over.insert(*id);
            }
        }
        open.retain(|id, _| !over.contains(id));
        for message in &said {
            let line = serde_json::to_string(message).expect("json") + "\n";
            if write.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
        let line = tokio::select! {
            line = lines.next_line() => line,
            () = grown => continue,
            () = tokio::task::yield_now(), if left => continue,
        };
        let Ok(Some(line)) = line else { return };
        if line.is_empty() {
            continue;
        }
        let answer = match serde_json::from_str(&line).expect("json") {
            ToGuest::Hello { session } => {
                let state = GuestState { can: vec![CAN_ENTRIES.to_owned()], ..GuestState::default() };
                Some(FromGuest::HelloAck { session, state })
            }
            ToGuest::LogsOpen { id, options, entries, .. } => {
                assert!(entries, "only entries can be shared");
                let error = (open.len() >= TASKS).then(|| stream_error("internal", "too many streams at once"));
                if error.is_none() {
                    let all = log.entries.lock().expect("no panic");
                    let since = options.since.as_deref().map_or(i64::MIN, micros);
                    let kept = all.iter().enumerate().filter(|(_, entry)| entry.at >= since).map(|(index, _)| index);
                    let kept: Vec<usize> = kept.collect();
                    let tail = options.tail.map_or(usize::MAX, |tail| usize::try_from(tail).expect("fits"));
                    let next = kept[kept.len().saturating_sub(tail)..].first().copied().unwrap_or(all.len());
                    let until = (!options.follow).then_some(all.len());
                    open.insert(id, Open { next, until, since, credit: STREAM_WINDOW });
                    let mut streams = log.streams.lock().expect("no panic");
                    *streams = (streams.0.max(open.len()), streams.1 + 1);
                }
                error.map(|error| FromGuest::LogEnd { id, error: Some(error) })
            }
            ToGuest::LogsClose { id } => {
                open.remove(&id);
                None
            }
            ToGuest::LogsCredit { id, bytes } => {
                if let Some(stream) = open.get_mut(&id) {
                    stream.credit += bytes;
                }
                None
            }
            _ => None,
        };
        if let Some(answer) = answer {
            let line = serde_json::to_string(&answer).expect("json") + "\n";
            write.write_all(line.as_bytes()).await.expect("write");
        }
    }
}

/// What a follower got. Takes a piece for each permit.
struct Reader {
    got: Arc<Mutex<Vec<u8>>>,
    pace: Arc<Semaphore>,
}

#[async_trait::async_trait]
impl LogSink for Reader {
    async fn write(&mut self, _channel: u8, data: Bytes) -> bool {
        let Ok(permit) = self.pace.acquire().await else { return false };
        permit.forget();
        self.got.lock().expect("no panic").extend_from_slice(&data);
        true
    }
}

/// A follower at work.
struct Follower {
    options: LogOptions,
    /// Entries when it began.
    began: usize,
    got: Arc<Mutex<Vec<u8>>>,
    pace: Arc<Semaphore>,
}

impl Follower {
    fn start(rig: &Rig, log: &Log, options: LogOptions, tasks: &mut JoinSet<Result<(), StreamError>>) -> Self {
        let (got, pace) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::new(Semaphore::new(0)));
        let follower = Self { options: options.clone(), began: log.len(), got: got.clone(), pace: pace.clone() };
        let line = rig.agent.line();
        tasks.spawn(async move {
            let mut reader = Reader { got, pace };
            line.logs("web".to_owned(), options, &mut reader).await
        });
        follower
    }

    /// The numbers of the lines that it has.
    fn numbers(&self) -> Vec<usize> {
        let got = self.got.lock().expect("no panic");
        let text = std::str::from_utf8(&got).expect("text");
        text.lines().map(|line| line.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number")).collect()
    }

    fn has(&self, number: usize) -> bool {
        self.numbers().last() == Some(&number)
    }

    /// Every line from its start to the end, once and in order.
    fn check(&self, log: &Log, begun_by: usize) {
        let entries = log.entries.lock().expect("no panic");
        let numbers = self.numbers();
        let since = self.options.since.as_deref().map_or(i64::MIN, micros);
        let wanted: Vec<usize> = (0..entries.len()).filter(|n| entries[*n].at >= since).collect();
        let first = numbers.first().and_then(|first| wanted.iter().position(|n| n == first)).unwrap_or(wanted.len());
        assert_eq!(numbers, wanted[first..], "{:?}", self.options);
        let Some(tail) = self.options.tail else { return assert_eq!(first, 0, "{:?}", self.options) };
        // It began somewhere between these two.
        let tail = usize::try_from(tail).expect("fits");
        let there = |by: usize| wanted.iter().filter(|n| **n < by).count().saturating_sub(tail);
        let first = wanted.get(first).copied().unwrap_or(entries.len());
        let bounds = there(self.began)..=there(begun_by);
        assert!(
            bounds.contains(&wanted.iter().filter(|n| **n < first).count()),
            "{first} {bounds:?} {:?}",
            self.options
        );
    }
}

async fn meet(log: &Arc<Log>, seed: u64) -> (Rig, AbortOnDropHandle<()>) {
    let mut rig = rig();
    let stream = accept_stream(&rig).await;
    let guest = AbortOnDropHandle::new(tokio::spawn(guest(stream, log.clone(), seed)));
    let greeted = rig.view.wait_for(|view| view.guest.agent);
    tokio::time::timeout(LIMIT, greeted).await.expect("in time").expect("open");
    (rig, guest)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const ALL: usize = Semaphore::MAX_PERMITS / 2;

#[tokio::test]
async fn a_hundred_followers_are_one_stream() {
    let log = Arc::new(Log::default());
    let (rig, _guest) = meet(&log, 1).await;
    (0..10).for_each(|_| log.add());
    let mut tasks = JoinSet::new();
    let followers: Vec<Follower> = (0..100)
        .map(|n| {
            let options = LogOptions { follow: true, tail: (n % 4 > 0).then(|| n % 4 - 1), ..LogOptions::default() };
            let follower = Follower::start(&rig, &log, options, &mut tasks);
            follower.pace.add_permits(ALL);
            follower
        })
        .collect();
    // A log at rest: each has what it asked for, and the streams of their own are closed.
    let begun = |f: &Follower| f.options.tail == Some(0) || f.has(9);
    until("all have begun", || followers.iter().all(begun)).await;
    until("all wait at the feed", || rig.agent.line().feeds.behind.available_permits() == 6).await;
    log.add();
    until("all have the new line", || followers.iter().all(|f| f.has(10) || f.numbers().is_empty())).await;
    (0..1000).for_each(|_| log.add());
    until("all have the last line", || followers.iter().all(|f| f.has(1010))).await;
    for follower in &followers {
        follower.check(&log, 1010);
    }
    let (most, opened) = *log.streams.lock().expect("no panic");
    assert!(most <= TASKS && opened <= 1 + 3 * followers.len(), "{most} at once, {opened} in all");
    // The log ends for all of them.
    log.end();
    while let Some(ended) = tokio::time::timeout(LIMIT, tasks.join_next()).await.expect("in time") {
        ended.expect("no panic").expect("a log that ends");
    }
}

#[tokio::test]
async fn every_start_and_every_pace_gets_every_line_once() {
    for seed in 0..12 {
        let log = Arc::new(Log::default());
        let (rig, _guest) = meet(&log, seed).await;
        let mut dice = StdRng::seed_from_u64(seed);
        let (mut tasks, mut followers) = (JoinSet::new(), Vec::new());
        for _ in 0..40 {
            for _ in 0..dice.random_range(0..30) {
                log.add();
            }
            let at =
                |dice: &mut StdRng| log.entries.lock().expect("no panic").get(dice.random_range(0..300)).map(|e| e.at);
            let options = LogOptions {
                follow: true,
                tail: [None, Some(0), Some(1), Some(3), Some(1000)][dice.random_range(0..5)],
                since: dice.random_bool(0.3).then(|| at(&mut dice)).flatten().map(nanos_text),
                ..LogOptions::default()
            };
            followers.push(Follower::start(&rig, &log, options, &mut tasks));
            // Each takes some, or nothing for a while; the feed keeps far less than what is written meanwhile.
            for follower in &followers {
                if dice.random_bool(0.5) {
                    follower.pace.add_permits(dice.random_range(0..20));
                }
            }
            tokio::task::yield_now().await;
        }
        for follower in &followers {
            follower.pace.add_permits(ALL);
        }
        // Those that are the last to be let in see what comes after they are.
        let begun_by = log.len();
        let waiting = || rig.agent.line().feeds.behind.available_permits();
        until("all have begun", || followers.iter().all(|f| f.options.tail == Some(0) || f.has(begun_by - 1))).await;
        until("nobody is behind", || waiting() == 6).await;
        let mut last = begun_by;
        until("all have the last line", || {
            if log.len() < last + 300 {
                log.add();
            }
            followers.iter().all(|f| f.has(log.len() - 1))
        })
        .await;
        last = log.len();
        for follower in &followers {
            follower.check(&log, last);
        }
        assert!(log.streams.lock().expect("no panic").0 <= TASKS);
    }
}

#[tokio::test]
async fn who_takes_nothing_holds_up_nobody() {
    let log = Arc::new(Log::default());
    let (rig, _guest) = meet(&log, 3).await;
    (0..200).for_each(|_| log.add());
    let options = || LogOptions { follow: true, ..LogOptions::default() };
    let mut tasks = JoinSet::new();
    let sleepers: Vec<_> = (0..30).map(|_| Follower::start(&rig, &log, options(), &mut tasks)).collect();
    let awake = Follower::start(&rig, &log, options(), &mut tasks);
    awake.pace.add_permits(ALL);
    until("it is served", || awake.has(199)).await;
    (0..200).for_each(|_| log.add());
    until("it is served on", || awake.has(399)).await;
    for sleeper in &sleepers {
        sleeper.pace.add_permits(ALL);
    }
    until("those that slept miss nothing", || sleepers.iter().all(|f| f.has(399))).await;
    for follower in sleepers.iter().chain([&awake]) {
        follower.check(&log, 400);
    }
}

#[tokio::test]
async fn lines_carry_their_times_where_they_are_asked_for() {
    let log = Arc::new(Log::default());
    let (rig, _guest) = meet(&log, 4).await;
    log.add();
    let mut tasks = JoinSet::new();
    let options = LogOptions { follow: true, timestamps: true, ..LogOptions::default() };
    let follower = Follower::start(&rig, &log, options, &mut tasks);
    follower.pace.add_permits(ALL);
    let text = || String::from_utf8(follower.got.lock().expect("no panic").clone()).expect("text");
    until("the first line", || text().ends_with('\n')).await;
    (0..2).for_each(|_| log.add());
    until("three lines", || text().lines().count() == 3).await;
    let expected =
        ["00.000000000", "00.000001000", "00.000000500"].map(|s| format!("1970-01-01T00:16:40.{}Z", &s[3..]));
    let stamps: Vec<_> = text().lines().map(|line| line.split(' ').next().expect("a time").to_owned()).collect();
    assert_eq!(stamps, expected);
}
