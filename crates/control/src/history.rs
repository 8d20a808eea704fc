//! Lists of operations.

use holdfast_model::error::Error;
use holdfast_store::history::{Filter, Operation};
use holdfast_store::page::Sort;

use crate::Control;
use crate::cursor::{Bound, Listed};

impl Control {
    /// A page of operations. `audience` names the list to its cursors.
    pub async fn operations(
        &self,
        audience: &str,
        filter: &Filter,
        sort: &Sort,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed<Operation>, Error> {
        let bound = Bound::to(audience, filter, sort);
        let from = self.cursor_open(cursor, &bound, sort)?;
        let page = self.store.operations(filter, sort, &from, limit).await?;
        Ok(self.listed(page, &bound, |operation| operation.place(sort)))
    }
}
