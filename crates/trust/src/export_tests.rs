//! An export that was touched anywhere is no export.

use serde_json::{Value as Json, json};

use super::*;
use crate::chain::{ORIGIN, OUTCOME};

fn key() -> SealKey {
    SealKey::from_seed(&[9; 32])
}

fn columns(names: &[&str], of: &str) -> BTreeMap<String, Value> {
    names.iter().map(|name| ((*name).to_owned(), Some(format!("{name} of {of}")))).collect()
}

/// Two operations, one over; a batch of five events, one of them of an operation that was not asked for, and one event
/// that is not sealed yet.
fn lines() -> Vec<Json> {
    let operation = |id: &str, status: &str, positions: &[i64]| {
        let mut outcome = columns(&OUTCOME, id);
        outcome.insert("status".to_owned(), Some(status.to_owned()));
        let events = (1..).zip(positions).map(|(seq, position)| Event {
            position: *position,
            seq,
            event_type: Some("instance.create.start".to_owned()),
            step: None,
            state: Some("creating".to_owned()),
            at: Some("5".to_owned()),
        });
        Operation { id: id.to_owned(), accepted: columns(&ACCEPTED, id), outcome, events: events.collect() }
    };
    let operations = [operation("one", "done", &[1, 4]), operation("two", "running", &[2, 5, 6])];
    let mut check = Check::new(None);
    for operation in &operations {
        check.operation(operation).expect("rows are only read");
    }
    let mut hash = ORIGIN;
    let mut leaves = Vec::new();
    for position in 1..=5 {
        let (leaf, shown) = match check.rows.get(&position) {
            Some((leaf, id, seq)) => (*leaf, Leaf::Exported(hex::encode(leaf), id.clone(), *seq)),
            None => ([7; 32], Leaf::Other(hex::encode([7; 32]))),
        };
        hash = link(&hash, &leaf);
        leaves.push(shown);
    }
    let checkpoint = Checkpoint {
        first_position: 1,
        last_position: 5,
        previous_hash: ORIGIN,
        hash,
        sealed_at: 9,
        signature: [0; 64],
    };
    let checkpoint = checkpoint.sign(&key());
    let batch = Batch {
        first_position: 1,
        last_position: 5,
        previous_hash: hex::encode(ORIGIN),
        hash: hex::encode(hash),
        sealed_at: 9,
        signature: hex::encode(checkpoint.signature),
        leaves,
    };
    let header = Header {
        format: FORMAT,
        public_key: key().public().to_hex(),
        since: None,
        until: None,
        exported_at: 1,
        archive: None,
        older: None,
    };
    let mut lines = vec![Line::Header(header)];
    lines.extend(operations.map(Line::Operation));
    lines.push(Line::Checkpoint(batch));
    let mut lines: Vec<Json> = lines.iter().map(|line| serde_json::to_value(line).expect("JSON")).collect();
    lines.push(end(&lines, 2, 5));
    lines
}

fn end(before: &[Json], operations: u64, events: u64) -> Json {
    let text: String = before.iter().map(|line| format!("{line}\n")).collect();
    let digest = Sha256::digest(text).into();
    serde_json::to_value(Line::End(End::sign(operations, events, &digest, &key()))).expect("JSON")
}

fn check(lines: &[Json]) -> Findings {
    let mut check = Check::new(Some(key().public()));
    for line in lines {
        check.line(&format!("{line}\n"));
    }
    check.finish()
}

/// Paths to every value in a line.
fn paths(value: &Json, path: &str, found: &mut Vec<String>) {
    match value {
        Json::Object(map) => map.iter().for_each(|(name, value)| paths(value, &format!("{path}/{name}"), found)),
        Json::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| paths(value, &format!("{path}/{at}"), found));
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn an_export_that_was_not_touched_holds() {
    let findings = check(&lines());
    assert_eq!(findings.problem, None);
    assert_eq!((findings.operations, findings.sealed, findings.unsealed, findings.checkpoints), (2, 4, 1, 1));
    assert_eq!(findings.head.map(|head| head.position), Some(5));
}

#[test]
fn every_value_and_every_line_counts() {
    let whole = lines();
    for (index, line) in whole.iter().enumerate() {
        let mut found = Vec::new();
        paths(line, "", &mut found);
        for path in found {
            let mut damaged = whole.clone();
            let value = damaged[index].pointer_mut(&path).expect("the value");
            *value = match value {
                Json::Number(number) => json!(number.as_i64().expect("a whole number") + 1),
                Json::String(text) if text.starts_with('0') => json!(format!("1{}", &text[1..])),
                Json::String(text) => json!(format!("0{}", text.get(1..).unwrap_or_default())),
                _ => json!(8),
            };
            assert!(check(&damaged).problem.is_some(), "unseen: line {index}, {path}");
        }
        let mut damaged = whole.clone();
        damaged.remove(index);
        assert!(check(&damaged).problem.is_some(), "unseen: line {index} removed");
    }
}

#[test]
fn the_row_is_named_even_when_the_end_was_made_again() {
    let again = |change: &dyn Fn(&mut Vec<Json>), operations, events| {
        let mut lines = lines();
        lines.pop();
        change(&mut lines);
        lines.push(end(&lines, operations, events));
        let problem = check(&lines).problem.expect("a problem");
        (problem.operation.unwrap_or_default(), problem.seq.unwrap_or_default(), problem.position.unwrap_or_default())
    };
    let one = |operation: &str, seq, position| (operation.to_owned(), seq, position);
    let changed = again(&|l| l[1]["operation"]["accepted"]["username"] = json!("x"), 2, 5);
    assert_eq!(changed, one("one", 1, 1));
    let changed = again(&|l| l[1]["operation"]["outcome"]["error_code"] = json!("x"), 2, 5);
    assert_eq!(changed, one("one", 2, 4));
    let changed = again(&|l| l[2]["operation"]["events"][1]["state"] = json!("x"), 2, 5);
    assert_eq!(changed, one("two", 2, 5));
    assert_eq!(again(&|l| drop(l.remove(2)), 1, 2), one("two", 1, 2));
    let swapped = |l: &mut Vec<Json>| {
        l[1]["operation"]["events"][0]["position"] = json!(2);
        l[2]["operation"]["events"][0]["position"] = json!(1);
    };
    assert_eq!(again(&swapped, 2, 5), one("one", 1, 1));
}
