//! Facts and wrapped secrets of this installation.

use holdfast_model::error::Error;

use crate::sql;
use crate::{Store, Tx, fault};

impl Store {
    pub async fn secret_wrapped(&self, name: &str) -> Result<Option<String>, Error> {
        sql::query("SELECT wrapped FROM secret WHERE name = $1")
            .bind(name)
            .fetch_optional(self.by_key())
            .await
            .map_err(fault)
    }
}

/// Keeps a wrapped secret. One of that name that exists stays as it is: secrets are made once.
pub async fn secret_insert(tx: &mut Tx, name: &str, wrapped: &str) -> Result<(), Error> {
    sql::query("INSERT INTO secret (name, wrapped) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
        .bind(name)
        .bind(wrapped)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}
