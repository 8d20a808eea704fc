//! What a request would do, told without doing it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::operation::Diff;

/// Where the preview goes of a request that is not to be carried out.
pub type Rehearsal = Arc<OnceLock<Preview>>;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preview {
    /// `None`: no operation would be accepted, because the request changes nothing or needs none.
    pub operation_type: Option<&'static str>,
    pub changes: Diff,
    /// In the order in which they would be done.
    pub steps: Vec<PlannedStep>,
    /// The step after which nothing is undone any more. `None`: nothing is, once the first step has begun.
    pub pivot: Option<&'static str>,
    pub placement: Option<Placement>,
    /// What the workspace may have and what of it is left once the request was carried out. `None`: the request reserves
    /// nothing, and nothing was looked up.
    pub quota: Option<[QuotaLeft; 4]>,
    /// Public id of the operation that it would wait for.
    pub waits_for: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStep {
    pub name: &'static str,
    /// `None` for a step that is only a write.
    pub deadline: Option<Duration>,
    /// A failure or a cancel in this step undoes everything that was done.
    pub undone_on_failure: bool,
}

/// The node that a VM is or would be on, and what it has left once the request was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    pub node: String,
    pub region: Option<String>,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub slots: i64,
}

/// One dimension of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaLeft {
    /// `vm_slots`, `vcpu`, `memory_mb`, `disk_gb`.
    pub name: &'static str,
    /// `None`: nothing limits it.
    pub limit: Option<i64>,
    pub remaining: Option<i64>,
}
