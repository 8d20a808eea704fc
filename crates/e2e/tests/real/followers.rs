//! Many who follow one container's log of a real VM at the same time.
//!
//! The one rule: each line has a number, so that one which did not arrive, or came twice, is seen at each of them. A guest
//! serves 16 streams at the most: that all are served shows that they share.

use std::io::BufRead;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_e2e::cloud::{Cloud, text};
use holdfast_harness::process;

const FOLLOWERS: usize = 100;
const LINES: usize = 300;
/// What a follower may take of the server's memory, with all that is made for it: its connection, its place, its buffers.
const BYTES_PER_FOLLOWER: u64 = 512 * 1024;

/// The sample app logs the path of each request. Half of them come while followers are still arriving.
pub fn all_get_every_line(cloud: &Cloud, cvm: &str, container: &str) {
    let detail = cloud.client.get(&format!("/api/v1/cvms/{cvm}")).expect("it answers").json();
    let base = text(&detail["logs"]["container_log_base"]);
    let serial = text(&detail["logs"]["serial"]);
    let (_, token) = serial.split_once('?').expect("a signed URL");
    let log = format!("{base}/{container}?{token}&follow=true&text=true&tail=all");
    let app = cloud.client.app_urls(cvm).expect("a detail").remove(0);
    let server = cloud.server.id().expect("it runs");
    let memory = || process::resident(server).expect("it runs").1;
    let before = memory();
    let arrived = AtomicUsize::new(0);
    let lines: Vec<Vec<String>> = std::thread::scope(|scope| {
        let followers: Vec<_> = (0..FOLLOWERS).map(|_| scope.spawn(|| follow(cloud, &log, &arrived))).collect();
        for n in 0..LINES {
            while n == LINES / 2 && arrived.load(Ordering::SeqCst) < FOLLOWERS {
                assert!(!followers.iter().any(|f| f.is_finished()), "one was sent away:\n{}", cloud.server.log_end(40));
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let answer = cloud.client.send("GET", &format!("{app}/{}", path(n)), &[], None);
            assert_eq!(answer.expect("the app answers").status, 404);
        }
        let most = memory();
        let room = BYTES_PER_FOLLOWER * FOLLOWERS as u64;
        assert!(most < before + room, "{FOLLOWERS} followers took {before} to {most} bytes");
        followers.into_iter().map(|follower| follower.join().expect("it read the log")).collect()
    });
    let expected: Vec<String> = (0..LINES).map(path).collect();
    for (follower, lines) in lines.iter().enumerate() {
        assert_eq!(lines, &expected, "follower {follower}");
    }
}

fn path(n: usize) -> String {
    format!("numbered-{n:04}")
}

/// Reads until the last line; answers the numbered ones.
fn follow(cloud: &Cloud, log: &str, arrived: &AtomicUsize) -> Vec<String> {
    let reader = cloud.client.stream(log).expect("the log is served");
    let (mut seen, mut first, last) = (Vec::new(), true, path(LINES - 1));
    for line in reader.lines() {
        let line = line.expect("text");
        if std::mem::take(&mut first) {
            arrived.fetch_add(1, Ordering::SeqCst);
        }
        let Some((_, path)) = line.split_once("url:/").filter(|(_, path)| path.starts_with("numbered-")) else {
            continue;
        };
        seen.push(path.trim().to_owned());
        if path.trim() == last {
            return seen;
        }
    }
    panic!("the log ended after {:?}", seen.last())
}
