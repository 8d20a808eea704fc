//! Every value counts, and so does where it stands.

use proptest::prelude::*;

use super::*;
use crate::walk::{Seal, Walk};

fn entry(position: i64) -> Entry {
    let values = |names: &[&str]| names.iter().map(|n| Some(format!("{n} {position}"))).collect();
    Entry {
        position,
        operation: format!("operation {position}"),
        seq: 1,
        event: values(&EVENT),
        accepted: Some(values(&ACCEPTED)),
        outcome: Some(values(&OUTCOME)),
    }
}

fn key() -> SealKey {
    SealKey::from_seed(&[7; 32])
}

/// A chain of `count` events in batches of `size`.
fn chain(count: i64, size: i64) -> Vec<(Checkpoint, Vec<(Seal, Entry)>)> {
    let (mut hash, mut batches, mut position) = (ORIGIN, Vec::new(), 0);
    while position < count {
        let last = count.min(position + size);
        let (previous_hash, first_position) = (hash, position + 1);
        let rows: Vec<(Seal, Entry)> = (first_position..=last)
            .map(|p| {
                let entry = entry(p);
                let leaf = entry.leaf();
                hash = link(&hash, &leaf);
                (Seal { position: p, operation: entry.operation.clone(), seq: 1, leaf }, entry)
            })
            .collect();
        let checkpoint =
            Checkpoint { first_position, last_position: last, previous_hash, hash, sealed_at: 1, signature: [0; 64] };
        batches.push((checkpoint.sign(&key()), rows));
        position = last;
    }
    batches
}

fn follow(batches: &[(Checkpoint, Vec<(Seal, Entry)>)]) -> Result<i64, Option<i64>> {
    let mut walk = Walk::new(key().public());
    for (checkpoint, rows) in batches {
        walk.batch(checkpoint).map_err(|p| p.position)?;
        for (seal, entry) in rows {
            walk.event(seal, Some(entry)).map_err(|p| p.position)?;
        }
        walk.batch_end(checkpoint, rows.first().map(|r| &r.0)).map_err(|p| p.position)?;
    }
    Ok(walk.position)
}

#[test]
fn the_format_is_what_it_was() {
    // These values are the format: an auditor's own program must get the same.
    let bare = Entry {
        position: 1,
        operation: "op".to_owned(),
        seq: 2,
        event: vec![Some("instance.create.start".to_owned()), None, Some("creating".to_owned()), Some("5".to_owned())],
        accepted: None,
        outcome: None,
    };
    let mut bytes = b"holdfast event 1\n".to_vec();
    for (name, value) in [
        ("position", Some("1")),
        ("operation", Some("op")),
        ("seq", Some("2")),
        ("event_type", Some("instance.create.start")),
        ("step", None),
        ("state", Some("creating")),
        ("at", Some("5")),
    ] {
        bytes.extend((name.len() as u32).to_be_bytes());
        bytes.extend(name.as_bytes());
        bytes.push(u8::from(value.is_some()));
        if let Some(value) = value {
            bytes.extend((value.len() as u64).to_be_bytes());
            bytes.extend(value.as_bytes());
        }
    }
    let leaf: Hash = Sha256::digest(&bytes).into();
    assert_eq!(bare.leaf(), leaf);
    assert_eq!(link(&ORIGIN, &leaf), Hash::from(Sha256::digest([b"holdfast link 1\n", &ORIGIN[..], &leaf].concat())));
}

#[test]
fn every_value_changes_the_leaf() {
    let entry = entry(3);
    let mut seen = std::collections::HashSet::from([entry.leaf()]);
    let mut other = |change: &dyn Fn(&mut Entry)| {
        let mut changed = entry.clone();
        change(&mut changed);
        assert!(seen.insert(changed.leaf()), "{changed:?}");
    };
    other(&|e| e.position += 1);
    other(&|e| e.seq += 1);
    other(&|e| e.operation.push('x'));
    other(&|e| e.accepted = None);
    other(&|e| e.outcome = None);
    let sections: [fn(&mut Entry) -> &mut Vec<Value>; 3] =
        [|e| &mut e.event, |e| e.accepted.as_mut().expect("the section"), |e| e.outcome.as_mut().expect("the section")];
    for section in sections {
        for index in 0..section(&mut entry.clone()).len() {
            for value in [None, Some(String::new()), Some("other".to_owned())] {
                other(&|e| section(e)[index] = value.clone());
            }
        }
    }
}

#[test]
fn a_chain_holds_and_each_kind_of_damage_is_placed() {
    let whole = chain(10, 4);
    assert_eq!(follow(&whole), Ok(10));
    type Damage = fn(&mut Vec<(Checkpoint, Vec<(Seal, Entry)>)>);
    let cases: [(Damage, i64); 9] = [
        (|c| c[1].1[1].1.event[2] = None, 6),
        (|c| drop(c[1].1.remove(2)), 7),
        (|c| drop(c[2].1.pop()), 10),
        (|c| drop(c.remove(1)), 5),
        (|c| c[1].0.sealed_at += 1, 5),
        (|c| c[0].0.signature[5] ^= 1, 1),
        (|c| c[0].1.swap(1, 2), 2),
        (
            // Row and seal changed together: the signed hash of the batch tells.
            |c| {
                c[1].1[1].1.event[2] = None;
                c[1].1[1].0.leaf = c[1].1[1].1.leaf();
            },
            5,
        ),
        (
            |c| {
                let (one, two) = (c[0].1[0].1.clone(), c[0].1[1].1.clone());
                c[0].1[0].1 = Entry { position: 1, ..two };
                c[0].1[1].1 = Entry { position: 2, ..one };
            },
            1,
        ),
    ];
    for (index, (damage, position)) in cases.into_iter().enumerate() {
        let mut damaged = whole.clone();
        damage(&mut damaged);
        assert_eq!(follow(&damaged), Err(Some(position)), "case {index}");
    }
}

#[test]
fn a_signature_is_bound_to_its_key() {
    let checkpoint = chain(1, 1).remove(0).0;
    assert!(checkpoint.is_signed_by(&key().public()));
    assert!(!checkpoint.is_signed_by(&SealKey::from_seed(&[8; 32]).public()));
    assert_eq!(PublicKey::parse(&key().public().to_hex()), Ok(key().public()));
    for text in ["", "00", "zz"] {
        assert!(PublicKey::parse(text).is_err());
    }
}

proptest! {
    #[test]
    fn values_do_not_run_into_each_other(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
        let with = |x: &str, y: &str| {
            let mut entry = entry(1);
            entry.event[0] = Some(x.to_owned());
            entry.event[1] = Some(y.to_owned());
            entry.leaf()
        };
        prop_assert_eq!(with(&a, &b) == with(&c, &d), (a, b) == (c, d));
    }
}
