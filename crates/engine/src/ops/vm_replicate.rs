//! Replicate: a create whose CVM is made like another one of its app. The other one is only read, and only when the
//! operation is accepted, so the steps are those of a create.

use super::vm_create;
use crate::plan::Plan;

pub static PLAN: Plan = Plan { name: "replicate", version: 1, ..vm_create::PLAN };
