//! The audit log: reading it, and writing down what was refused.

use holdfast_model::error::{Code, Error};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::audit_log::{Entry, Filter};
use holdfast_store::page::Sort;

use crate::cursor::{Bound, Listed};
use crate::{Control, Principal, RequestInfo};

/// Action of a mutation that was refused, whatever it was to be: method and path say that.
pub const REFUSED: &str = "request.refused";

impl Control {
    /// A page of the audit log. `audience` names the list to its cursors.
    pub async fn audit_log(
        &self,
        audience: &str,
        filter: &Filter,
        sort: Sort,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Entry>, Error> {
        let sort = sort.then("at");
        let bound = Bound::to(audience, filter, &sort);
        let from = self.cursor_open(cursor, &bound, &sort)?;
        let page = self.store.audit_log(filter, &sort, &from, limit).await?;
        Ok(self.listed(page, &bound, |entry| entry.place(&sort)))
    }

    /// One entry that the caller may see.
    pub async fn audit_entry(&self, who: &Principal, id: &str) -> Result<Entry, Error> {
        let found = self.store.audit_entry(&who.scope(), &id.to_ascii_lowercase()).await?;
        found.ok_or_else(|| Error::new(Code::AuditEntryNotFound, "There is no such audit log entry."))
    }

    /// Writes down that a mutation was refused. It changed nothing, so this is a transaction of its own.
    pub async fn audit_refusal(&self, who: &Principal, info: &RequestInfo, status_code: u16) -> Result<(), Error> {
        let entry = audit::Entry { action: REFUSED, target_type: "", target_id: "", operation_id: None, status_code };
        let mut tx = self.store.begin().await?;
        audit_insert(&mut tx, who, info, entry, self.now()).await?;
        holdfast_store::commit(tx).await
    }
}
