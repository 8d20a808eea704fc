use std::sync::atomic::AtomicI64;

use holdfast_model::error::Code;
use tempfile::TempDir;

use super::*;
use crate::sql;

struct Bench {
    writer: Writer,
    reader: Session,
    folder: TempDir,
}

async fn bench() -> Bench {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.db");
    let made = rusqlite::Connection::open(&file).expect("a database");
    made.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE t (n INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED)",
    )
    .expect("tables");
    let reader = Session::open_to_read(&file, false).expect("a reader");
    let writer = Writer::new(Session::open_to_write(&file).expect("a writer"));
    {
        // Who shares a commit must not hang on how fast this machine is.
        let mut state = writer.state();
        (state.commit, state.longest_group) = (Duration::from_secs(3600), Duration::from_secs(3600));
    }
    Bench { writer, reader, folder }
}

async fn put(tx: &mut Tx, n: i64) {
    sql::query("INSERT INTO t (n) VALUES ($1)").bind(n).execute(tx).await.expect("a row");
}

async fn rows(reader: &mut Session) -> Vec<i64> {
    sql::query("SELECT n FROM t ORDER BY n").fetch_all(reader).await.expect("rows")
}

/// Lets `n` others get in line.
async fn in_line(writer: &Writer, n: usize) {
    while writer.waiting.load(Ordering::SeqCst) < n {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_committed_is_there_and_what_is_dropped_is_not() {
    let mut bench = bench().await;
    let next = Arc::new(AtomicI64::new(0));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (writer, next) = (bench.writer.clone(), next.clone());
            tokio::spawn(async move {
                let mut kept = Vec::new();
                for _ in 0..50 {
                    let n = next.fetch_add(1, Ordering::SeqCst);
                    let mut tx = writer.begin().await.expect("a turn");
                    put(&mut tx, n).await;
                    if n % 3 == 0 {
                        drop(tx);
                    } else {
                        commit(tx).await.expect("a commit");
                        kept.push(n);
                    }
                }
                kept
            })
        })
        .collect();
    let mut kept = Vec::new();
    for task in tasks {
        kept.extend(task.await.expect("a task"));
    }
    kept.sort_unstable();
    assert_eq!(rows(&mut bench.reader).await, kept);
}

#[tokio::test]
async fn those_who_queue_share_one_commit_and_see_each_other_in_order() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    let writer = bench.writer.clone();
    let second = tokio::spawn(async move {
        let mut tx = writer.begin().await.expect("a turn");
        let seen: i64 = sql::query("SELECT COUNT(*) FROM t").fetch_one(&mut *tx).await.expect("a count");
        let joined = tx.joined;
        put(&mut tx, 2).await;
        commit(tx).await.expect("a commit");
        (joined, seen)
    });
    in_line(&bench.writer, 1).await;
    assert!(rows(&mut bench.reader).await.is_empty(), "nothing is durable yet");
    commit(first).await.expect("a commit");
    assert_eq!(second.await.expect("a task"), (true, 1));
    assert_eq!(rows(&mut bench.reader).await, [1, 2]);
}

#[tokio::test]
async fn a_failed_commit_fails_every_member() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    let writer = bench.writer.clone();
    let second = tokio::spawn(async move {
        let mut tx = writer.begin().await.expect("a turn");
        sql::query("INSERT INTO t (n, parent) VALUES (2, 99)").execute(&mut tx).await.expect("checked at the commit");
        commit(tx).await
    });
    in_line(&bench.writer, 1).await;
    assert!(commit(first).await.is_err());
    assert!(second.await.expect("a task").is_err());
    assert!(rows(&mut bench.reader).await.is_empty());
    let mut after = bench.writer.begin().await.expect("the writer goes on");
    put(&mut after, 3).await;
    commit(after).await.expect("a commit");
    assert_eq!(rows(&mut bench.reader).await, [3]);
}

#[tokio::test]
async fn a_transaction_that_the_database_gave_up_fails_every_member() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    let writer = bench.writer.clone();
    let second = tokio::spawn(async move {
        let mut tx = writer.begin().await.expect("a turn");
        put(&mut tx, 2).await;
        // What a full disk does in the middle of a statement.
        tx.run("ROLLBACK").expect("a rollback");
        drop(tx);
    });
    in_line(&bench.writer, 1).await;
    assert!(commit(first).await.is_err());
    second.await.expect("a task");
    assert!(rows(&mut bench.reader).await.is_empty());
}

#[tokio::test]
async fn nobody_is_left_waiting_by_one_who_leaves_the_line() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    let mut leaver = Box::pin(bench.writer.begin());
    let in_line = std::future::poll_fn(|cx| std::task::Poll::Ready(leaver.as_mut().poll(cx).is_pending())).await;
    assert!(in_line, "the first one has the turn");
    let committing = tokio::spawn(commit(first));
    while bench.writer.state().group.as_ref().is_some_and(|group| group.ended == 0) {
        tokio::task::yield_now().await;
    }
    drop(leaver);
    let committed = tokio::time::timeout(Duration::from_secs(10), committing).await.expect("somebody commits");
    committed.expect("a task").expect("a commit");
    assert_eq!(rows(&mut bench.reader).await, [1]);
}

#[tokio::test]
async fn a_closed_writer_refuses_and_keeps_what_was_committed() {
    let mut bench = bench().await;
    let mut tx = bench.writer.begin().await.expect("a turn");
    put(&mut tx, 1).await;
    commit(tx).await.expect("a commit");
    let mut lost = bench.writer.begin().await.expect("a turn");
    put(&mut lost, 2).await;
    drop(lost);
    bench.writer.close().await;
    assert_eq!(bench.writer.begin().await.map(drop).map_err(|e| e.code), Err(Code::Unavailable));
    assert_eq!(rows(&mut bench.reader).await, [1]);
}

#[tokio::test]
async fn what_was_passed_on_is_durable_with_the_next_one() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    pass_on(first).await.expect("it ended");
    let mut second = bench.writer.begin().await.expect("a turn");
    assert!(second.joined, "it is the same commit");
    put(&mut second, 2).await;
    commit(second).await.expect("a commit");
    assert_eq!(rows(&mut bench.reader).await, [1, 2]);
}

#[tokio::test]
async fn what_was_passed_on_to_nobody_is_durable_soon() {
    let mut bench = bench().await;
    let mut first = bench.writer.begin().await.expect("a turn");
    put(&mut first, 1).await;
    pass_on(first).await.expect("it ended");
    while rows(&mut bench.reader).await.is_empty() {
        tokio::task::yield_now().await;
    }
    // Whoever joined and was dropped takes nothing of it along.
    let mut second = bench.writer.begin().await.expect("a turn");
    put(&mut second, 2).await;
    pass_on(second).await.expect("it ended");
    let mut third = bench.writer.begin().await.expect("a turn");
    put(&mut third, 3).await;
    drop(third);
    let mut fourth = bench.writer.begin().await.expect("a turn");
    put(&mut fourth, 4).await;
    commit(fourth).await.expect("a commit");
    assert_eq!(rows(&mut bench.reader).await, [1, 2, 4]);
}

#[tokio::test]
async fn whoever_waits_for_another_process_holds_up_nobody_on_its_thread() {
    let mut bench = bench().await;
    let other = Session::open_to_write(&bench.folder.path().join("t.db")).expect("another process");
    other.run(BEGIN).expect("it writes");
    let writer = bench.writer.clone();
    let waiting = tokio::spawn(async move {
        let mut tx = writer.begin().await?;
        put(&mut tx, 1).await;
        commit(tx).await
    });
    // This test has one thread: were it waiting, nobody would end the other's transaction.
    while bench.writer.state().group.is_none() {
        tokio::task::yield_now().await;
    }
    other.run("COMMIT").expect("it is done");
    waiting.await.expect("a task").expect("its turn came");
    assert_eq!(rows(&mut bench.reader).await, [1]);
}
