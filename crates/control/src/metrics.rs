//! What this process counts and times while it works. What the database knows is counted at the scrape instead.
//!
//! The one rule: labels come from the registry of plans and from lists of words in the code, never from a request, so no
//! tenant's name is in a metric and their number is bounded.

use std::time::Duration;

use holdfast_engine::Plan;
use holdfast_model::Timestamp;
use holdfast_model::operation::Status;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Labels: names and values.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];
/// Histograms by label.
pub type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// How long an accept or a request takes, in seconds.
const SHORT: [f64; 13] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// How long an operation takes, in seconds.
const LONG: [f64; 13] = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// A histogram for what takes milliseconds.
pub fn short() -> Histogram {
    Histogram::new(SHORT)
}

fn long() -> Histogram {
    Histogram::new(LONG)
}

/// How an attempt to deliver an event ends: a success, another answer, or none.
const WEBHOOK_OUTCOMES: [&str; 3] = ["taken", "refused", "unanswered"];

/// The core's own metrics.
#[derive(Debug)]
pub struct Metrics {
    finished: Family<Labels<2>, Counter>,
    duration: Histograms<1>,
    accept: Histogram,
    faults: Family<Labels<1>, Counter>,
    webhooks: Family<Labels<1>, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let webhooks = Family::<Labels<1>, Counter>::default();
        for outcome in WEBHOOK_OUTCOMES {
            // Written also when nothing was sent: an alert on a series that is missing never fires.
            drop(webhooks.get_or_create(&[("outcome", outcome)]));
        }
        Self {
            finished: Family::default(),
            duration: Family::new_with_constructor(long),
            accept: short(),
            faults: Family::default(),
            webhooks,
        }
    }
}

impl Metrics {
    /// Names them to whoever writes them out.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "holdfast_operations_finished",
            "Operations that ended since the process started",
            self.finished.clone(),
        );
        registry.register_with_unit(
            "holdfast_operation_duration",
            "From accept to end",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "holdfast_accept_duration",
            "From an admitted request to its durable operation",
            Unit::Seconds,
            self.accept.clone(),
        );
        registry.register(
            "holdfast_operation_faults",
            "Faults of this server while it carried operations out",
            self.faults.clone(),
        );
        registry.register(
            "holdfast_webhook_attempts",
            "Attempts to deliver an event to a webhook",
            self.webhooks.clone(),
        );
    }

    /// An operation was made durable, `took` after its admission began.
    pub(crate) fn accepted(&self, took: Duration) {
        self.accept.observe(took.as_secs_f64());
    }

    /// An operation that was accepted at `created` is over.
    pub(crate) fn finished(&self, plan: &Plan, status: Status, created: Timestamp, now: Timestamp) {
        self.finished.get_or_create(&[("type", plan.name), ("outcome", status.as_str())]).inc();
        self.duration.get_or_create(&[("type", plan.name)]).observe(now.since(created).as_secs_f64());
    }

    /// An attempt to deliver an event is over; `status` is that of the answer, 0 for none.
    pub(crate) fn webhook(&self, taken: bool, status: u16) {
        let [success, refusal, silence] = WEBHOOK_OUTCOMES;
        let outcome = match status {
            _ if taken => success,
            0 => silence,
            _ => refusal,
        };
        self.webhooks.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Carrying an operation out met a fault: one that `passes`, or one that parked it.
    pub(crate) fn fault(&self, passes: bool) {
        self.faults.get_or_create(&[("kind", if passes { "passing" } else { "lasting" })]).inc();
    }
}
