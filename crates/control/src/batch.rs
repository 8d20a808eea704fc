//! Many CVMs in one request.
//!
//! The one rule: each CVM is an operation of its own, with its own claim and audit row; what one of them refuses keeps no
//! other from being accepted. Under an idempotency key each is accepted once, however often the request is sent and
//! wherever it was interrupted.

use std::collections::HashSet;

use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use holdfast_model::vm::VmStatus;
use holdfast_store::idempotency::{Key, idempotency_take};
use holdfast_store::vms::Vm;

use crate::{Control, Principal, RequestInfo};

/// What a batch came to.
#[derive(Debug, Default)]
pub struct Batch {
    /// Ids of CVMs whose operation was accepted, as they were sent.
    pub accepted: Vec<String>,
    /// Those that need none.
    pub skipped: Vec<String>,
    pub refused: Vec<(String, Error)>,
}

impl Control {
    /// Accepts a stop of each of these CVMs. What is stopped, or is being stopped, is skipped.
    pub async fn vms_power_off(&self, who: &Principal, info: &RequestInfo, ids: &[String]) -> Result<Batch, Error> {
        if let Some(key) = &info.idempotency {
            // Taken first, so that the answer can be kept under it; the CVMs have keys of their own.
            let mut tx = self.store.begin().await?;
            idempotency_take(&mut tx, who.workspace_id, key, self.now()).await?;
            holdfast_store::commit(tx).await?;
        }
        let (mut batch, mut seen) = (Batch::default(), HashSet::new());
        for id in ids {
            match self.power_off_one(who, info, id, &mut seen).await {
                Ok(true) => batch.accepted.push(id.clone()),
                Ok(false) => batch.skipped.push(id.clone()),
                Err(error) => batch.refused.push((id.clone(), error)),
            }
        }
        Ok(batch)
    }

    /// False when it is stopped or on its way there, or was seen before.
    async fn power_off_one(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        seen: &mut HashSet<i64>,
    ) -> Result<bool, Error> {
        let vm = self.vm_find(who, id).await?;
        if !seen.insert(vm.id) {
            // Named twice.
            return Ok(false);
        }
        let own = |key: &Key| Key { key: format!("{}\n{}", key.key, vm.uuid), request_hash: key.request_hash.clone() };
        let info = RequestInfo { idempotency: info.idempotency.as_ref().map(own), ..info.clone() };
        match self.vm_change(who, &info, &vm.uuid, &ops::VM_POWER_OFF, None).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code, Code::Busy | Code::WrongState) => {
                let now = self.vm_find(who, &vm.uuid).await?;
                if stops(&now)? { Ok(false) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }
}

fn stops(vm: &Vm) -> Result<bool, Error> {
    Ok(match &vm.operation_target {
        Some(target) => target == VmStatus::Stopped.as_str(),
        None => vm.status()? == VmStatus::Stopped,
    })
}
