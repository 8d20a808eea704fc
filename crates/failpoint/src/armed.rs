//! The points when they are compiled in. Counting begins when the file `armed` appears and anew when it changes, so that
//! a start and whatever prepares a case are not counted.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Pid;

static FOLDER: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os("HOLDFAST_FAILPOINTS").filter(|v| !v.is_empty()).map(PathBuf::from));
/// Who started this process, as of the first point, which comes by long before anybody dies.
static PARENT: LazyLock<Option<Pid>> = LazyLock::new(rustix::process::getppid);
/// Ends every machine of this process's node.
static MACHINES: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();
static COUNTS: LazyLock<Mutex<Counts>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Counts {
    armed: String,
    hits: HashMap<String, u64>,
}

pub fn hit(point: &str) {
    let Some(folder) = &*FOLDER else { return };
    if rustix::process::getppid() != *PARENT {
        // The test was interrupted: nobody waits for this server any more.
        die();
    }
    let mut counts = COUNTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let armed = fs::read_to_string(folder.join("armed")).unwrap_or_default();
    if armed != counts.armed {
        *counts = Counts { armed, hits: HashMap::new() };
    }
    let mut words = counts.armed.lines();
    match (words.next(), words.next(), words.next()) {
        (Some("record"), ..) => {
            let file = OpenOptions::new().create(true).append(true).open(folder.join("points"));
            let _ = file.and_then(|mut file| writeln!(file, "{point}"));
        }
        (Some(act @ ("crash" | "machines")), Some(wanted), Some(n)) if wanted == point => {
            let (n, machines) = (n.parse().unwrap_or(1), act == "machines");
            let hits = counts.hits.entry(point.to_owned()).or_default();
            *hits += 1;
            if *hits == n {
                match MACHINES.get().filter(|_| machines) {
                    Some(end) => {
                        let _ = fs::write(folder.join("struck"), point);
                        end();
                    }
                    None => die(),
                }
            }
        }
        _ => {}
    }
}

pub fn machines(end: impl Fn() + Send + Sync + 'static) {
    let _ = MACHINES.set(Box::new(end));
}

/// As `kill -9`: no destructor, no flush, no signal handler. Whoever counts holds the lock, so that no other point is passed.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

pub fn fails(point: &str) -> bool {
    let Some(folder) = &*FOLDER else { return false };
    fs::read_to_string(folder.join("fail")).is_ok_and(|points| points.lines().any(|line| line == point))
}

pub fn patience(wait: Duration) -> Duration {
    if FOLDER.is_some() { wait.min(Duration::from_secs(1)) } else { wait }
}
