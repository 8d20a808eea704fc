//! Stops the real server dead at every commit and every effect of every plan, starts it again, and checks. In the plans
//! that change a CVM its node alone, its machine and its whole host die too.
//!
//! The one rule: the points are not written down anywhere. Each plan is run once to learn which it comes by and how often;
//! then it is crashed at each of them. Started by `cargo xtask crash`.

#![forbid(unsafe_code)]

mod chain;
mod plans;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::chain::{Case, Chain};
use crate::plans::{Plan, Victim};

/// Cases that run at a time. They mostly wait.
const PARALLEL: usize = 8;
/// The same, of each victim that dies alone.
const PARALLEL_STRUCK: usize = 3;
/// A plan does not come by every point as often each time: reports are gathered. More misses than this share fail.
const MISSES: f64 = 0.15;
/// Hits of one point that are crashed with real guests, and in plans that are asked for several times in a row: those are
/// crashed at every hit when they are asked for once.
const FEW_HITS: u32 = 2;
const BEAT: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Asked {
    plan: Option<String>,
    point: Option<String>,
    hit: Option<u32>,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--plan" => asked.plan = Some(value),
            "--point" => asked.point = Some(value),
            "--hit" => asked.hit = Some(value.parse().map_err(|_| format!("--hit {value} is no number"))?),
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(asked)
}

#[derive(Default)]
struct Tally {
    crashed: usize,
    missed: Vec<Case>,
    failed: Vec<Case>,
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(error) => {
            eprintln!("{error}\n[--plan NAME [--point POINT --hit N]]");
            return ExitCode::from(2);
        }
    };
    let wanted = |p: &Plan| asked.plan.as_ref().is_none_or(|name| p.title() == *name);
    let chosen: Vec<Plan> = plans::all().into_iter().filter(wanted).collect();
    if chosen.is_empty() {
        eprintln!("plans: {}", plans::all().iter().map(Plan::title).collect::<Vec<_>>().join(", "));
        return ExitCode::from(2);
    }
    // A failed check is told by us, in one line, with how to see it again.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let mut cases: VecDeque<Case> = match (&asked.point, chosen.first()) {
        (Some(point), Some(&plan)) if asked.plan.is_some() => {
            VecDeque::from([Case { plan, point: point.clone(), hit: asked.hit.unwrap_or(1) }])
        }
        _ => match catch_unwind(AssertUnwindSafe(|| generate(&chosen))) {
            Ok(cases) => cases.into(),
            Err(panic) => {
                println!("FAILED without any crash: {}", text(&*panic));
                return ExitCode::FAILURE;
            }
        },
    };
    let total = cases.len();
    println!("{total} points\n");
    // A queue for the plans that share a server, and one for each that needs its own.
    let mut queues: BTreeMap<&str, Mutex<VecDeque<Case>>> = BTreeMap::new();
    for case in cases.drain(..) {
        let queue = queues.entry(case.plan.server()).or_default();
        queue.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).push_back(case);
    }
    let tally = Mutex::new(Tally::default());
    let progress = Mutex::new((start, 0));
    std::thread::scope(|scope| {
        for (name, queue) in &queues {
            for _ in 0..workers(name) {
                scope.spawn(|| work(queue, &tally, &progress, total));
            }
        }
    });
    let tally = tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    for case in &tally.missed {
        println!("not come by this time: {} {} hit {}", case.plan.title(), case.point, case.hit);
    }
    let missed = tally.missed.len();
    println!(
        "\n{} crashed and recovered, {} failed, {missed} not come by; {total} points in {:.0} s",
        tally.crashed,
        tally.failed.len(),
        start.elapsed().as_secs_f64()
    );
    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
    let too_many = missed as f64 > total as f64 * MISSES;
    if tally.failed.is_empty() && !too_many { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Cases of a queue that run at a time.
fn workers(queue: &str) -> usize {
    match queue {
        "" => PARALLEL,
        _ if queue.starts_with('@') => PARALLEL_STRUCK,
        _ => 1,
    }
}

/// Runs each plan once and turns what it came by into cases.
fn generate(chosen: &[Plan]) -> Vec<Case> {
    let binary = holdfast_e2e::binary();
    let mut cases = Vec::new();
    let mut chain: Option<(&str, Chain)> = None;
    for &plan in chosen {
        // Neighbours in the list share a server.
        let shared = chain.take().filter(|(server, _)| *server == plan.server()).map(|(_, chain)| chain);
        let mut own = shared.unwrap_or_else(|| Chain::new(&binary, plan));
        let mut points = own.record(plan);
        chain = Some((plan.server(), own));
        if plan.qemu {
            // The commits are the same as with simulated guests; what QEMU adds are the node's effects.
            points.retain(|point| !point.starts_with("commit.") && !point.starts_with("report."));
        }
        if !matches!(plan.victim, Victim::Both | Victim::Node) {
            // Before something is written it is as after what was written before it, where that is crashed as well.
            let written = ["commit.before", "report.before", "record.desired.before", "record.runtime.before"];
            points.retain(|point| !written.iter().any(|before| point.starts_with(before)));
        }
        let mut hits: BTreeMap<&str, u32> = BTreeMap::new();
        let before = cases.len();
        for point in &points {
            let hit = hits.entry(point).or_default();
            *hit += 1;
            // A real guest that comes up is written down many times: after the first few they are all the same.
            if !(plan.qemu || plan.times > 1) || *hit <= FEW_HITS {
                cases.push(Case { plan, point: point.clone(), hit: *hit });
            }
        }
        println!("{}: {} points", plan.title(), cases.len() - before);
        for (point, n) in hits {
            println!("  {n:3} x {point}");
        }
    }
    cases
}

/// Takes cases from the queue until it is empty.
fn work(queue: &Mutex<VecDeque<Case>>, tally: &Mutex<Tally>, progress: &Mutex<(Instant, usize)>, total: usize) {
    let mut chain: Option<Chain> = None;
    while let Some(case) = lock(queue).pop_front() {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let chain = chain.get_or_insert_with(|| Chain::new(&holdfast_e2e::binary(), case.plan));
            // A point that was not come by may be the next time: how reports gather depends on the moment.
            chain.crash(&case) || chain.crash(&case)
        }));
        let mut tally = lock(tally);
        match result {
            Ok(true) => tally.crashed += 1,
            Ok(false) => tally.missed.push(case),
            Err(panic) => {
                let kept = chain.take().map(Chain::keep).unwrap_or_default();
                println!("FAILED {} at {} hit {}: {}", case.plan.title(), case.point, case.hit, text(&*panic));
                println!("  data kept in {}; again: {}", kept.display(), again(&case));
                tally.failed.push(case);
            }
        }
        let mut progress = lock(progress);
        progress.1 += 1;
        if progress.0.elapsed() > BEAT {
            println!("  {} of {total}", progress.1);
            progress.0 = Instant::now();
        }
    }
}

fn again(case: &Case) -> String {
    format!("cargo xtask crash --plan {} --point {} --hit {}", case.plan.title(), case.point, case.hit)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().cloned();
    words.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}
