use zeroize::Zeroizing;

use super::*;

const LANES: [&str; 3] = ["a", "b", "c"];

fn endpoint(position: i64, known: Vec<i64>) -> Endpoint {
    let secrets =
        Secrets { current: Zeroizing::new("secret".to_owned()), previous: None, previous_until: Timestamp::default() };
    let words = ("https://example.com/".into(), Events::of(["cvm.stopped"]), Arc::new(secrets));
    Endpoint::new((1, 1, 0), words, position, Vec::new(), known, Standing::New)
}

fn stopped(position: i64, lane: &str) -> Heard {
    Heard {
        position,
        workspace_id: 1,
        workspace_slug: "team".to_owned(),
        workspace_name: "Team".to_owned(),
        operation_uuid: format!("operation-{position}"),
        operation_type: "power_off".to_owned(),
        operation_status: "done".to_owned(),
        error_code: None,
        error_message: None,
        resource_uuid: lane.to_owned(),
        resource_name: lane.to_owned(),
        app_id: None,
        seq: 9,
        event_type: "instance.power_off.end".to_owned(),
        state: "stopped".to_owned(),
        at: position,
    }
}

fn attempt(status: u16) -> Attempt {
    let error = if status == 200 { String::new() } else { "no".to_owned() };
    Attempt { status, error, took: Duration::from_millis(5) }
}

const NOW: Timestamp = Timestamp(1_000_000_000);

#[test]
fn one_of_a_lane_at_a_time_and_16_in_all() {
    let (mut endpoint, mut told) = (endpoint(0, Vec::new()), Vec::new());
    for position in 1..=60 {
        let lane = format!("lane-{}", position % 30);
        endpoint.hear(&stopped(position, &lane), &mut Shared::default(), &mut told).expect("heard");
    }
    // Nothing is known of it yet, so it gets one.
    let first = endpoint.take_next(false).expect("a job");
    assert!(endpoint.take_next(false).is_none());
    endpoint.ended(first, &attempt(200), NOW, &mut told);
    let mut under_way = Vec::new();
    while let Some(job) = endpoint.take_next(false) {
        under_way.push(job);
    }
    assert_eq!(under_way.len(), AT_ONCE);
    let lanes: HashSet<&str> = under_way.iter().map(|job| job.lane.as_str()).collect();
    assert_eq!(lanes.len(), AT_ONCE, "two of a lane are under way");
    // One that hangs stops the others from beginning.
    endpoint.hangs();
    endpoint.ended(under_way.pop().expect("a job"), &attempt(0), NOW, &mut told);
    assert!(endpoint.take_next(false).is_none());
}

#[test]
fn while_places_are_scarce_everybody_has_one_attempt() {
    let (mut endpoint, mut told) = (endpoint(0, Vec::new()), Vec::new());
    for position in 1..=40 {
        endpoint
            .hear(&stopped(position, &format!("lane-{position}")), &mut Shared::default(), &mut told)
            .expect("heard");
    }
    let first = endpoint.take_next(true).expect("the first one, scarce or not");
    endpoint.ended(first, &attempt(200), NOW, &mut told);
    let second = endpoint.take_next(true).expect("one at a time");
    assert!(!endpoint.may_begin(true) && endpoint.take_next(true).is_none(), "though it is good");
    // While they are plentiful it may be as far away as it likes.
    let under_way: Vec<_> = std::iter::from_fn(|| endpoint.take_next(false)).collect();
    assert_eq!(under_way.len(), AT_ONCE - 1);
    endpoint.ended(second, &attempt(200), NOW, &mut told);
    assert!(!endpoint.may_begin(true) && endpoint.may_begin(false), "one of many that ended makes no room");
    for job in under_way {
        endpoint.ended(job, &attempt(200), NOW, &mut told);
    }
    assert!(endpoint.may_begin(true));
}

#[test]
fn the_position_never_passes_what_is_not_written() {
    let (mut endpoint, mut told) = (endpoint(10, Vec::new()), Vec::new());
    for (position, lane) in (11..).zip(LANES) {
        endpoint.hear(&stopped(position, lane), &mut Shared::default(), &mut told).expect("heard");
    }
    endpoint.cursor = 20;
    let first = endpoint.take_next(false).expect("a job");
    endpoint.ended(first.clone(), &attempt(200), NOW, &mut told);
    let (second, third) = (endpoint.take_next(false).expect("a job"), endpoint.take_next(false).expect("a job"));
    assert_eq!((first.sequence, second.sequence, third.sequence), (22, 24, 26));
    assert_eq!(endpoint.progress(&told.split_off(0), 0).position, 11);
    endpoint.ended(third, &attempt(200), NOW, &mut told);
    assert_eq!(endpoint.progress(&told.split_off(0), 0).position, 11, "the second one is not written");
    endpoint.ended(second, &attempt(500), NOW, &mut told);
    let progress = endpoint.progress(&told.split_off(0), 0);
    assert_eq!((progress.position, progress.last), (20, Some(Some(NOW))), "one that waits is written");
}

#[test]
fn what_comes_after_a_failure_waits_behind_it() {
    let (mut endpoint, mut told) = (endpoint(0, Vec::new()), Vec::new());
    for position in 1..=3 {
        endpoint.hear(&stopped(position, "a"), &mut Shared::default(), &mut told).expect("heard");
    }
    let job = endpoint.take_next(false).expect("a job");
    endpoint.ended(job, &attempt(500), NOW, &mut told);
    endpoint.hear(&stopped(4, "a"), &mut Shared::default(), &mut told).expect("heard");
    endpoint.hear(&stopped(5, "b"), &mut Shared::default(), &mut told).expect("heard");
    let waits: Vec<_> = told.iter().map(|one| (one.sequence, one.attempts, one.next_at.is_some())).collect();
    assert_eq!(waits, [(2, 1, true), (4, 0, false), (6, 0, false), (8, 0, false)]);
    let due = NOW.plus(Duration::from_millis(5)).plus(PAUSES[0]);
    assert_eq!(told[0].next_at, Some(due));
    assert_eq!(endpoint.take_next(false).map(|job| job.lane), Some("b".to_owned()));
    // That nothing waits any more counts only when all of it was written.
    endpoint.clear("a");
    endpoint.hear(&stopped(6, "a"), &mut Shared::default(), &mut told).expect("heard");
    assert_eq!(told.len(), 5, "the lane is not blocked any more");
    for one in &told {
        endpoint.written(one);
    }
    assert_eq!(endpoint.waiting, 5);
    endpoint.clear("a");
    endpoint.hear(&stopped(7, "a"), &mut Shared::default(), &mut told).expect("heard");
    assert_eq!(told.len(), 5, "the lane is still blocked");
}

fn row(id: i64, attempts: i64) -> Delivery {
    Delivery {
        id,
        webhook_id: 1,
        event_id: "evt_1".to_owned(),
        original_event_id: String::new(),
        event_type: "cvm.stopped".to_owned(),
        lane: "a".to_owned(),
        sequence: 2,
        body: "{}".to_owned(),
        status: "pending".to_owned(),
        attempts,
        request_url: String::new(),
        response_status: 0,
        error_message: String::new(),
        duration_ms: 0,
        created_at: 1,
        delivered_at: None,
    }
}

#[test]
fn a_row_is_tried_three_times_more() {
    let mut endpoint = endpoint(0, Vec::new());
    for (attempts, pause) in [(1, Some(PAUSES[1])), (2, Some(PAUSES[2])), (3, None)] {
        let mut told = Vec::new();
        endpoint.retry(row(7, attempts));
        // Seen again before it is written, it is not taken again.
        endpoint.retry(row(7, attempts));
        let job = endpoint.take_next(false).expect("a job");
        assert!(endpoint.take_next(false).is_none() && endpoint.has_taken(7));
        endpoint.ended(job, &attempt(500), NOW, &mut told);
        assert_eq!(told[0].next_at, pause.map(|pause| NOW.plus(Duration::from_millis(5)).plus(pause)));
        let due = if pause.is_some() { DeliveryStatus::Pending } else { DeliveryStatus::Failed };
        assert_eq!((told[0].row, told[0].attempts, told[0].status), (Some(7), attempts + 1, due));
        endpoint.written(&told[0]);
        assert!(!endpoint.has_taken(7));
    }
}

#[test]
fn what_the_process_before_wrote_is_not_told_again() {
    let (mut endpoint, mut told) = (endpoint(0, vec![4]), Vec::new());
    for position in 1..=3 {
        endpoint.hear(&stopped(position, "a"), &mut Shared::default(), &mut told).expect("heard");
    }
    let mut sequences = Vec::new();
    while let Some(job) = endpoint.take_next(false) {
        sequences.push(job.sequence);
        endpoint.ended(job, &attempt(200), NOW, &mut told);
    }
    assert_eq!(sequences, [2, 6]);
    // Nor is an event that was handed over before.
    endpoint.hear(&stopped(3, "a"), &mut Shared::default(), &mut told).expect("heard");
    assert!(endpoint.take_next(false).is_none());
}
