//! What people do to operations: cancel, retry, abandon.

use holdfast_engine::ops;
use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::operation::{Status, Verb};
use holdfast_model::vm::VmStatus;
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::history::Operation;
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::interventions;

use crate::{Control, Principal, RequestInfo, Scope};

enum Intervention {
    Cancel,
    Abandon,
}

impl Control {
    /// An operation of what the caller sees.
    pub async fn operation_find(&self, who: &Principal, id: &str) -> Result<Operation, Error> {
        self.operation_of(Some(&who.scope()), id).await
    }

    /// An operation that the caller may look at: one that they see, or any for whoever runs the installation.
    pub async fn operation_see(&self, who: &Principal, id: &str) -> Result<Operation, Error> {
        let everywhere = who.may(Action::RunInstallation);
        self.operation_of((!everywhere).then_some(&who.scope()), id).await
    }

    async fn operation_of(&self, scope: Option<&Scope>, id: &str) -> Result<Operation, Error> {
        let found = self.store.operation(scope, &id.to_ascii_lowercase()).await?;
        found.ok_or_else(|| {
            let archive = match self.settings.retention {
                Some(_) => " One that was over for longer than operations stay here is in the server's archive.",
                None => "",
            };
            Error::new(Code::OperationNotFound, format!("There is no such operation.{archive}"))
        })
    }

    /// Asks for a cancel. Accepted before the pivot; everything is then undone, and the operation ends as cancelled.
    pub async fn operation_cancel(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Operation, Error> {
        self.intervene(who, info, id, Intervention::Cancel).await
    }

    /// Gives a stuck operation up, whichever workspace it is of. Only for administrators of the installation.
    pub async fn operation_abandon(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Operation, Error> {
        who.require(Action::RunInstallation)?;
        self.intervene(who, info, id, Intervention::Abandon).await
    }

    /// Writes to an operation together with the audit row of who did it.
    async fn intervene(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        intervention: Intervention,
    ) -> Result<Operation, Error> {
        let operation = match intervention {
            Intervention::Cancel => self.operation_find(who, id).await?,
            Intervention::Abandon => self.operation_see(who, id).await?,
        };
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(operation);
        }
        let (action, status_code) = match intervention {
            Intervention::Cancel => {
                interventions::operation_cancel(&mut tx, operation.id, &who.username, now).await?;
                ("operation.cancel", 202)
            }
            Intervention::Abandon => {
                interventions::operation_abandon(&mut tx, operation.id, &who.username, now).await?;
                ("operation.abandon", 200)
            }
        };
        let entry = audit::Entry {
            action,
            target_type: "operation",
            target_id: &operation.uuid,
            operation_id: Some(operation.id),
            status_code,
        };
        // The audit log of the operation's own workspace says it, also when somebody from elsewhere did it.
        let workspace_id = interventions::operation_workspace(&mut tx, operation.id).await?;
        let there = Principal { workspace_id, ..who.clone() };
        audit_insert(&mut tx, &there, info, entry, now).await?;
        holdfast_store::commit(tx).await?;
        self.ring_work();
        self.operation_of(Some(&Scope::whole(workspace_id)), id).await
    }

    /// Does a failed operation again, as a new one that names the old one. A create cannot be repeated: its VM is gone
    /// with its env, or stands there in `error`.
    pub async fn operation_retry(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<Operation, Error> {
        let operation = self.operation_find(who, id).await?;
        let refuse = |why: String| Err(Error::new(Code::NotRetryable, why));
        let status = operation.status()?;
        if !matches!(status, Status::Failed | Status::Cancelled) {
            return refuse(format!("Only a failed operation can be retried; this one is {}.", status.as_str()));
        }
        let version = u32::try_from(operation.plan_version).unwrap_or(0);
        let Some(plan) = ops::find(&operation.operation_type, version) else {
            return refuse("This version of the server does not know that operation any more.".to_owned());
        };
        if plan.verb == Verb::Create {
            let gone = operation.resource_status == VmStatus::Deleted.as_str();
            let why =
                if gone { "Deploy it again." } else { "The CVM exists: look at its logs, then start or delete it." };
            return refuse(format!("A create cannot be retried. {why}"));
        }
        let new = if plan.revises() {
            self.vm_update_again(who, info, &operation, plan).await?
        } else {
            self.vm_resubmit(who, info, &operation, plan).await?
        };
        self.operation_find(who, &new.to_string()).await
    }
}
