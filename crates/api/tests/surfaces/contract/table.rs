//! What the walk came to, as the page `docs/coverage.md`: a route that nobody asked, or a documented answer that nobody
//! saw, is a hole.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::answers::DOCUMENT;
use super::walk::Seen;

/// By route: what each version's walk saw, in the order of the versions.
pub type Coverage = BTreeMap<String, Vec<BTreeSet<u16>>>;

/// Puts the walks side by side, with every documented route.
pub fn coverage(walks: &[Seen]) -> Coverage {
    let of = |route: &String| walks.iter().map(|seen| seen.get(route).cloned().unwrap_or_default()).collect();
    documented()
        .into_keys()
        .map(|route| {
            let all = of(&route);
            (route, all)
        })
        .collect()
}

/// The statuses that our document names, by route: but for 429, which any route answers where an operator has set limits,
/// and which `rate_limits.rs` is about.
fn documented() -> BTreeMap<String, BTreeSet<u16>> {
    let mut all = BTreeMap::new();
    for known in DOCUMENT.iter() {
        for method in known.methods.keys() {
            let statuses = known.statuses(method).into_iter().filter(|status| *status != 429);
            all.insert(format!("{method} {}", known.path), statuses.collect());
        }
    }
    all
}

/// Documented answers that a version's walk did not see.
pub fn holes(coverage: &Coverage, names: &[&str]) -> Vec<String> {
    let mut holes = Vec::new();
    for (route, due) in documented() {
        for (name, seen) in names.iter().zip(&coverage[&route]) {
            let missing: Vec<_> = due.difference(seen).collect();
            if !missing.is_empty() {
                holes.push(format!("{route} in {name}: {missing:?}"));
            }
        }
    }
    holes
}

/// The page.
pub fn page(coverage: &Coverage, names: &[&str]) -> String {
    let mut page = String::from(INTRODUCTION);
    let answers: usize = coverage.values().flatten().map(BTreeSet::len).sum();
    writeln!(page, "{} routes in {} versions: {answers} kinds of answers.\n", coverage.len(), names.len())
        .expect("text");
    writeln!(page, "| route | {} | refused in all of them |", names.join(" | ")).expect("text");
    writeln!(page, "|---|{}---|", "---|".repeat(names.len())).expect("text");
    for (route, versions) in coverage {
        let words =
            |statuses: &mut dyn Iterator<Item = &u16>| statuses.map(u16::to_string).collect::<Vec<_>>().join(" ");
        let successes = versions.iter().map(|seen| words(&mut seen.iter().filter(|s| **s < 400)));
        let successes: Vec<_> = successes.collect();
        let refused = versions.iter().flatten().filter(|s| **s >= 400 && versions.iter().all(|seen| seen.contains(s)));
        let refused: BTreeSet<_> = refused.collect();
        let refused = words(&mut refused.into_iter());
        writeln!(page, "| `{}` | {} | {refused} |", route.replace("/api/v1", ""), successes.join(" | ")).expect("text");
    }
    let facts: Value = serde_json::from_str(include_str!("../../contract/phala-schemas.json")).expect("facts");
    let served = documented();
    let shape =
        |route: &str| route.split('/').map(|s| if s.starts_with('{') { "{}" } else { s }).collect::<Vec<_>>().join("/");
    let served: BTreeSet<String> = served.keys().map(|route| shape(route)).collect();
    page.push_str(MISSING);
    for route in facts["routes"].as_object().expect("routes").keys().filter(|route| !served.contains(&shape(route))) {
        writeln!(page, "- `{}`", route.replace("/api/v1", "")).expect("text");
    }
    page
}

const INTRODUCTION: &str = "\
# What of the Phala surface is held to its contract

Written by the test `contract::every_route_in_every_version` of `crates/api`, which fails when this page is not current:
`HOLDFAST_WRITE_COVERAGE=1 cargo test -p holdfast-api --test surfaces every_route_in_every_version` writes it anew.

Each cell holds the successes that a version's walk met, each with CVMs that are being created, run, are in an operation,
are stopped, failed or are deleted. Every answer was validated against `crates/api/tests/contract/`: the facts of the
API's pages (`cargo xtask contract`) under what the official clients want differently (`overlay.json`). A 200 beside
another success is that of a dry run. A documented answer that a walk does not meet is a hole, and fails.

";

const MISSING: &str = "
## In scope and not served yet

Routes of the pages that are to come; until then they answer 404.

";
