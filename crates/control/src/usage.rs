//! Metered usage: vCPU-hours and GB-hours of a CVM, day by day (UTC).
//!
//! ```text
//! created      up            down                 deleted
//!    |          |=============|                      |       compute: vCPU and memory, while the app is up
//!    |===============================================|       disk: as long as the CVM is there, whatever it does
//! ```
//! The one rule: usage is reckoned from what is written down of a CVM ([`Mark`]) and from nothing else, by a function of
//! times and sizes. The same day asked for again, over other dates, or years later gives the same numbers.

use std::collections::BTreeMap;

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_store::apps::App;
use holdfast_store::usage::{Life, Mark};

use crate::Control;

const DAY: i64 = 86_400_000_000;
const HOUR: f64 = 3_600_000_000.0;

/// The longest time that is reckoned at once.
pub const LONGEST_DAYS: i64 = 366;
/// How far back usage goes when nobody says.
const USUAL_DAYS: i64 = 30;

/// What a CVM used on one day, or of the part of it that was asked for. Products are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Day {
    /// How long its app was up.
    pub running: i64,
    /// How long it was there.
    pub existing: i64,
    pub vcpu: i128,
    pub memory_mb: i128,
    pub disk_gb: i128,
}

impl Day {
    pub fn vcpu_hours(&self) -> f64 {
        self.vcpu as f64 / HOUR
    }

    pub fn memory_gb_hours(&self) -> f64 {
        self.memory_mb as f64 / 1024.0 / HOUR
    }

    pub fn disk_gb_hours(&self) -> f64 {
        self.disk_gb as f64 / HOUR
    }
}

/// What was used of an app's CVM on one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    pub vm_uuid: String,
    /// 40 hex digits.
    pub instance_id: String,
    pub kind: Kind,
    /// Midnight that the day began at.
    pub day: Timestamp,
    /// The part of the day that was asked for and that the CVM was there in.
    pub from: Timestamp,
    pub to: Timestamp,
    pub used: Day,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Compute,
    Disk,
}

/// Some of what was used, and how much of it there is in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    pub items: Vec<Metered>,
    pub total: i64,
}

impl Control {
    /// What the CVMs of an app used between two moments: by CVM, oldest first, and then by day. Without an end: until now;
    /// without a beginning: the 30 days before the end.
    pub async fn app_usage(
        &self,
        app: &App,
        (from, to): (Option<Timestamp>, Option<Timestamp>),
        limit: i64,
        offset: i64,
    ) -> Result<Usage, Error> {
        let now = self.now();
        let asked_to = to.unwrap_or(now);
        let from = from.unwrap_or(Timestamp(asked_to.micros().saturating_sub(USUAL_DAYS * DAY)));
        if from > asked_to {
            return Err(Error::new(Code::RangeInvalid, "start_date is after end_date."));
        }
        if asked_to.micros().saturating_sub(from.micros()) > LONGEST_DAYS * DAY {
            return Err(Error::new(Code::RangeInvalid, format!("More than {LONGEST_DAYS} days are asked for.")));
        }
        let to = asked_to.min(now);
        let lives = self.store.app_lives(app.id, from, to).await?;
        let ids: Vec<i64> = lives.iter().map(|life| life.id).collect();
        let mut marks = self.store.usage_marks(&ids, to).await?;
        let mut usage = Usage { items: Vec::new(), total: 0 };
        for life in lives {
            let marks = marks.remove(&life.id).unwrap_or_default();
            for metered in metered(&life, &marks, from, to) {
                if (offset..offset.saturating_add(limit)).contains(&usage.total) {
                    usage.items.push(metered);
                }
                usage.total += 1;
            }
        }
        Ok(usage)
    }
}

/// The days of one CVM, each as compute, if its app was up, and as disk.
fn metered(life: &Life, marks: &[Mark], from: Timestamp, to: Timestamp) -> impl Iterator<Item = Metered> {
    let (begin, end) = window(life, from.micros(), to.micros());
    days(life, marks, from, to).into_iter().flat_map(move |(day, used)| {
        let of = |kind| Metered {
            vm_uuid: life.uuid.clone(),
            instance_id: life.instance_id.clone(),
            kind,
            day: Timestamp(day),
            from: Timestamp(begin.max(day)),
            to: Timestamp(end.min(day + DAY)),
            used,
        };
        [(used.running > 0).then(|| of(Kind::Compute)), Some(of(Kind::Disk))].into_iter().flatten()
    })
}

fn window(life: &Life, from: i64, to: i64) -> (i64, i64) {
    (from.max(life.created_at), to.min(life.deleted_at.unwrap_or(i64::MAX)))
}

/// What a CVM used between two moments, by the midnight that each day began at. `marks` are in their order.
pub fn days(life: &Life, marks: &[Mark], from: Timestamp, to: Timestamp) -> BTreeMap<i64, Day> {
    let (begin, end) = window(life, from.micros(), to.micros());
    let mut days = BTreeMap::new();
    // Before anything is written down the disk is there already and nothing is up.
    let mut now = Mark {
        vm_id: life.id,
        at: life.created_at,
        running: false,
        vcpu: 0,
        memory_mb: 0,
        disk_gb: marks.first().map_or(life.disk_gb, |mark| mark.disk_gb),
    };
    for mark in marks {
        stretch(&mut days, &now, now.at.max(begin), mark.at.min(end));
        // A clock that was set back makes no time of it.
        now = Mark { at: mark.at.max(now.at), ..*mark };
    }
    stretch(&mut days, &now, now.at.max(begin), end);
    days
}

/// Adds a time in which nothing changed, cut at every midnight.
fn stretch(days: &mut BTreeMap<i64, Day>, mark: &Mark, mut from: i64, to: i64) {
    while from < to {
        let midnight = from - from.rem_euclid(DAY);
        let until = to.min(midnight + DAY);
        let time = until - from;
        let day = days.entry(midnight).or_default();
        day.existing += time;
        day.disk_gb += i128::from(time) * i128::from(mark.disk_gb);
        if mark.running {
            day.running += time;
            day.vcpu += i128::from(time) * i128::from(mark.vcpu);
            day.memory_mb += i128::from(time) * i128::from(mark.memory_mb);
        }
        from = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        Timestamp::parse(text).expect("a time").micros()
    }

    fn life(created: &str, deleted: Option<&str>) -> Life {
        Life {
            id: 1,
            uuid: "u".into(),
            instance_id: "i".into(),
            disk_gb: 20,
            created_at: at(created),
            deleted_at: deleted.map(at),
        }
    }

    fn mark(time: &str, running: bool, vcpu: i64) -> Mark {
        Mark { vm_id: 1, at: at(time), running, vcpu, memory_mb: vcpu * 2048, disk_gb: 20 }
    }

    /// (day, vCPU-hours, GB-hours of memory, GB-hours of disk)
    fn reckon(life: &Life, marks: &[Mark], from: &str, to: &str) -> Vec<(String, f64, f64, f64)> {
        let days = days(life, marks, Timestamp(at(from)), Timestamp(at(to)));
        let row = |(day, used): (i64, Day)| {
            let day = Timestamp(day).to_string()[..10].to_owned();
            (day, used.vcpu_hours(), used.memory_gb_hours(), used.disk_gb_hours())
        };
        days.into_iter().map(row).collect()
    }

    #[test]
    fn a_run_across_midnight_is_cut_there() {
        let life = life("2026-03-01T21:00", None);
        let marks = [mark("2026-03-01T22:00", true, 2), mark("2026-03-02T03:30", false, 2)];
        let days = reckon(&life, &marks, "2026-03-01", "2026-03-03");
        assert_eq!(
            days,
            [
                ("2026-03-01".to_owned(), 4.0, 8.0, 60.0),
                // Stopped at half past three: only the disk goes on.
                ("2026-03-02".to_owned(), 7.0, 14.0, 480.0),
            ]
        );
    }

    #[test]
    fn what_is_asked_for_bounds_what_is_reckoned() {
        let life = life("2026-03-01", Some("2026-03-05T12:00"));
        let marks = [mark("2026-03-01T00:00", true, 1)];
        let hours = |from, to| reckon(&life, &marks, from, to).iter().map(|day| day.1).collect::<Vec<f64>>();
        let none: [f64; 0] = [];
        assert_eq!(hours("2026-03-01T06:00", "2026-03-01T07:30"), [1.5]);
        assert_eq!(hours("2026-02-01", "2026-03-01"), none);
        assert_eq!(hours("2026-03-04T23:59", "2026-04-01"), [1.0 / 60.0, 12.0], "it ends with the CVM");
        assert_eq!(hours("2026-03-06", "2026-04-01"), none);
        assert_eq!(hours("2026-03-03", "2026-03-03"), none, "midnight belongs to the day that it begins");
        // Whole days add up to the time that they are of.
        assert_eq!(hours("2026-02-28", "2026-03-31").iter().sum::<f64>(), 4.0 * 24.0 + 12.0);
    }

    #[test]
    fn a_resize_counts_from_its_moment() {
        let life = life("2026-03-01", None);
        let mut larger = mark("2026-03-01T12:00", true, 4);
        larger.disk_gb = 40;
        let days = reckon(&life, &[mark("2026-03-01T00:00", true, 1), larger], "2026-03-01", "2026-03-02");
        assert_eq!(days, [("2026-03-01".to_owned(), 12.0 + 48.0, 24.0 + 96.0, 240.0 + 480.0)]);
    }

    #[test]
    fn one_that_never_came_up_used_its_disk() {
        let days = reckon(&life("2026-03-01T23:00", Some("2026-03-02T01:00")), &[], "2026-03-01", "2026-03-03");
        assert_eq!(days, [("2026-03-01".to_owned(), 0.0, 0.0, 20.0), ("2026-03-02".to_owned(), 0.0, 0.0, 20.0)]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_time_of_it() {
        let life = life("2026-03-01", None);
        let marks =
            [mark("2026-03-01T10:00", true, 1), mark("2026-03-01T09:00", false, 1), mark("2026-03-01T12:00", true, 1)];
        let days = reckon(&life, &marks, "2026-03-01", "2026-03-01T13:00");
        assert_eq!(days, [("2026-03-01".to_owned(), 1.0, 2.0, 13.0 * 20.0)]);
    }

    #[test]
    fn each_day_is_compute_if_it_ran_and_disk() {
        let life = life("2026-03-01T20:00", None);
        let marks = [mark("2026-03-01T22:00", true, 1), mark("2026-03-02T00:00", false, 1)];
        let to = Timestamp(at("2026-03-02T06:00"));
        let rows: Vec<_> = metered(&life, &marks, Timestamp(0), to).collect();
        let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [Kind::Compute, Kind::Disk, Kind::Disk]);
        assert_eq!((rows[0].from.micros(), rows[0].to.micros()), (at("2026-03-01T20:00"), at("2026-03-02")));
        assert_eq!((rows[2].from.micros(), rows[2].to), (at("2026-03-02"), to));
    }
}
