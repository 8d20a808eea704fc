//! The simulator itself: a seed replays exactly, seeds hold, and each rule that is broken on purpose is noticed.

use holdfast_sim::{Broken, Options, Tally, run};

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        let (once, again) = (run(seed, &Options::default()), run(seed, &Options { trace: true, broken: None }));
        assert_eq!((once.hash, once.events, once.tally), (again.hash, again.events, again.tally), "seed {seed}");
    }
    assert_ne!(run(1, &Options::default()).hash, run(2, &Options::default()).hash);
}

#[test]
fn seeds_hold_and_much_happens_in_them() {
    let mut tally = Tally::default();
    for seed in 0..100 {
        let outcome = run(seed, &Options::default());
        assert_eq!(outcome.violation, None, "cargo xtask sim --seed {seed}");
        tally.add(outcome.tally);
    }
    let enough = [tally.vms, tally.done, tally.failed, tally.waited].iter().all(|n| *n > 100);
    assert!(enough && tally.cancelled > 10 && tally.stuck > 0, "{tally:?}");
}

#[test]
fn every_broken_rule_is_noticed_within_200_seeds() {
    for broken in Broken::ALL {
        let options = Options { trace: false, broken: Some(broken) };
        let red = (0..200).find_map(|seed| Some((seed, run(seed, &options).violation?)));
        let (seed, violation) = red.unwrap_or_else(|| panic!("{broken:?} goes unnoticed"));
        println!("{broken:?}: seed {seed}: {violation:.150}");
        let noticed_as: &[&str] = match broken {
            Broken::Fencing => &["fencing"],
            Broken::Undo => &["diffs"],
            Broken::Claim => &["claims", "order", "queue"],
            Broken::Generations => &["generations"],
            Broken::Release => &["leftovers"],
            Broken::Wake => &["liveness"],
            Broken::Promotion => &["liveness", "queue", "order"],
            Broken::Order => &["order"],
            Broken::Turn => &["queue"],
        };
        assert!(noticed_as.iter().any(|word| violation.starts_with(word)), "{broken:?}: {violation}");
    }
}
