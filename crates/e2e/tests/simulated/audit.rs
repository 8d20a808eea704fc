//! `holdfast audit verify` beside a server, after it, and after somebody wrote to its database.

use std::path::Path;
use std::process::{Command, Output};

use holdfast_e2e::cloud::{Cloud, SOON};
use holdfast_harness::until;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

fn holdfast(args: &[&str]) -> Output {
    let mut command = Command::new(holdfast_e2e::binary());
    for name in ["HOLDFAST_URL", "HOLDFAST_API_KEY", "HOLDFAST_CONFIG"] {
        command.env_remove(name);
    }
    command.args(args).output().expect("the binary runs")
}

/// Exit code and report.
fn verify(args: &[&str]) -> (i32, Value) {
    let output = holdfast(&[&["audit", "verify", "--json"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("it was not killed"), report)
}

fn sql(data: &Path, statement: &str) {
    let url = format!("sqlite://{}", data.join("holdfast.db").display());
    let work = async {
        let mut db = SqliteConnection::connect(&url).await.expect("a connection");
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut db).await.expect("a pragma");
        sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut db).await.expect("a statement");
        db.close().await.expect("closed");
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work);
}

fn export(cloud: &Cloud, folder: &str, key: &str) {
    let file = cloud.folder.path().join("operations.ndjson.gz");
    let path = file.to_str().expect("a path in UTF-8");
    let out = |more: &[&str]| holdfast(&[&["ops", "export", "--data-dir", folder, "--out", path], more].concat());
    assert_eq!(out(&[]).status.code(), Some(0));
    let (code, report) = verify(&["--export", path, "--public-key", key]);
    assert_eq!((code, &report["holds"], &report["unsealed_events"]), (0, &true.into(), &0.into()), "{report}");
    assert!(report["sealed_events"].as_i64() >= Some(8), "{report}");
    let (code, _) = verify(&["--export", path, "--public-key", &format!("58{}", "66".repeat(31))]);
    assert_ne!(code, 0, "another key");
    // Half a file is no file; nor is one with a changed byte.
    let whole = std::fs::read(&file).expect("the export");
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    for bytes in [&whole[..middle], &changed] {
        std::fs::write(&file, bytes).expect("written");
        assert_eq!(verify(&["--export", path]).0, 1);
    }
    // None were accepted then: an empty export is whole too.
    assert_eq!(out(&["--until", "2001-01-01T00:00:00Z"]).status.code(), Some(0));
    let (code, report) = verify(&["--export", path]);
    assert_eq!((code, &report["sealed_events"]), (0, &0.into()), "{report}");
    assert_eq!(out(&["--since", "yesterday"]).status.code(), Some(1));
    assert!(!std::path::Path::new(&format!("{path}.part")).exists());
}

#[test]
fn what_is_done_is_sealed_and_what_is_changed_is_named() {
    let mut cloud = Cloud::simulated(1);
    let (cvm, operation) = cloud.deploy("sealed");
    cloud.done(&operation, SOON);
    let data = cloud.data_dir();
    let folder = data.to_str().expect("a path in UTF-8").to_owned();
    let sealed = until(SOON, "everything is sealed", || {
        let (code, report) = verify(&["--data-dir", &folder]);
        assert_eq!((code, &report["holds"]), (0, &Value::from(true)), "{report}");
        Ok((report["unsealed_events"] == 0).then_some(report))
    });
    let sealed = sealed.expect("the sealer works");
    assert!(sealed["sealed_events"].as_i64() >= Some(8), "{sealed}");
    let head = sealed["head"].as_str().expect("a head").to_owned();
    let key = holdfast(&["audit", "public-key", "--data-dir", &folder]);
    let key = String::from_utf8(key.stdout).expect("hex").trim().to_owned();
    assert_eq!(sealed["public_key"].as_str(), Some(key.as_str()));

    export(&cloud, &folder, &key);

    // More happens; the server is stopped, even killed; the chain holds and still has its old head.
    cloud.deleted(&cvm);
    cloud.server.kill().expect("killed");
    let (code, report) = verify(&["--data-dir", &folder, "--head", &head, "--public-key", &key]);
    assert_eq!(code, 0, "{report}");
    cloud.server.restart().expect("it starts again");
    cloud.server.stop().expect("it stops");
    let database = format!("sqlite://{folder}/holdfast.db");
    let (code, report) = verify(&["--database-url", &database, "--head", &head]);
    assert_eq!((code, &report["unsealed_events"]), (0, &Value::from(0)), "{report}");

    // Wrong calls are no verdict.
    for wrong in [&["--public-key", "zz"][..], &["--head", "x"], &["--database-url", "/nowhere/holdfast.db"]] {
        assert_eq!(holdfast(&[&["audit", "verify"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
    let other = "00".repeat(32);
    let (code, _) = verify(&["--data-dir", &folder, "--head", &format!("3:{other}")]);
    assert_eq!(code, 1, "another chain");

    sql(&data, &format!("UPDATE operation SET username = 'somebody else' WHERE uuid = '{operation}'"));
    let (code, report) = verify(&["--data-dir", &folder]);
    assert_eq!((code, &report["holds"]), (1, &Value::from(false)), "{report}");
    assert_eq!(report["problem"]["operation_id"].as_str(), Some(operation.as_str()), "{report}");
    assert_eq!((&report["problem"]["seq"], &report["problem"]["position"]), (&Value::from(1), &Value::from(1)));
    let spoken = holdfast(&["audit", "verify", "--data-dir", &folder]);
    assert_eq!(spoken.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&spoken.stdout).contains(&operation), "{spoken:?}");
}

#[test]
fn what_is_old_leaves_for_an_archive_and_both_parts_are_proven() {
    let mut cloud = Cloud::simulated_with("HOLDFAST_RETENTION", "2s");
    let data = cloud.data_dir();
    let (folder, archive) = (data.to_str().expect("UTF-8").to_owned(), data.join("archive"));
    let archives = archive.to_str().expect("UTF-8").to_owned();
    let (_, operation) = cloud.deploy("leaves");
    let left = until(SOON, "the operation has left", || {
        let answer = cloud.client.get(&format!("/holdfast/v1/operations/{operation}"))?;
        let swept = verify(&["--data-dir", &folder]).1["unsealed_events"] == 0;
        Ok((answer.status == 404 && swept).then_some(answer.text))
    });
    assert!(left.expect("it is over and old").contains("archive"));
    cloud.deploy("stays");
    cloud.server.stop().expect("it stops");

    let (code, files) = verify(&["--export", &archives]);
    assert_eq!((code, &files["begins_at"]), (0, &1.into()), "{files}");
    assert!(files["audit_rows"].as_i64() >= Some(1), "{files}");
    let head = files["head"].as_str().expect("a head").to_owned();
    let (code, rest) = verify(&["--data-dir", &folder, "--head", &head]);
    assert_eq!((code, &rest["holds"]), (0, &true.into()), "{rest}");
    let last = rest["archived"]["last_position"].as_i64().expect("the signed record");
    assert_eq!((rest["begins_at"].as_i64(), head.starts_with(&format!("{last}:"))), (Some(last + 1), true), "{rest}");
    let spoken = holdfast(&["audit", "verify", "--data-dir", &folder]);
    assert!(String::from_utf8_lossy(&spoken.stdout).contains(".ndjson.gz"), "{spoken:?}");
    // What the database had before is to be checked in the archive.
    let early = holdfast(&["audit", "verify", "--data-dir", &folder, "--head", &format!("1:{}", "00".repeat(32))]);
    assert_eq!(early.status.code(), Some(2), "{early:?}");
    assert_eq!(verify(&["--export", &archives, "--head", &format!("1:{}", "00".repeat(32))]).0, 1, "another chain");

    // Half an archive is none, and without its record the beginning is missing.
    let file = std::fs::read_dir(&archive).expect("the archive").next().expect("a file").expect("an entry").path();
    let whole = std::fs::read(&file).expect("bytes");
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("written");
    assert_eq!(verify(&["--export", &archives]).0, 1);
    sql(&data, "DELETE FROM archive");
    let (code, report) = verify(&["--data-dir", &folder]);
    assert_eq!((code, &report["problem"]["position"]), (1, &1.into()), "{report}");
}
