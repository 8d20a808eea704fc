//! Passwords of users: their argon2id hashes.

use holdfast_model::Timestamp;
use holdfast_model::error::Error;

use crate::sql;
use crate::{Store, Tx, fault};

impl Store {
    /// The user of this name or e-mail address, and the hash of their password in the PHC string format, if they have one.
    /// One statement, whoever there is.
    pub async fn password_of(&self, name: &str) -> Result<Option<(i64, Option<String>)>, Error> {
        sql::query(
            "SELECT u.id, p.hash FROM user_account u LEFT JOIN user_password p ON p.user_id = u.id
             WHERE u.username = $1 OR u.email = $1 ORDER BY u.username = $1 DESC LIMIT 1",
        )
        .bind(name)
        .fetch_optional(self.read())
        .await
        .map_err(fault)
    }

    /// Whether a user can sign in with a password.
    pub async fn has_password(&self, user: i64) -> Result<bool, Error> {
        sql::query("SELECT COUNT(*) FROM user_password WHERE user_id = $1")
            .bind(user)
            .fetch_one(self.read())
            .await
            .map(|count: i64| count > 0)
            .map_err(fault)
    }
}

/// Gives a user a password.
pub async fn password_set(tx: &mut Tx, user: i64, hash: &str, now: Timestamp) -> Result<(), Error> {
    sql::query(
        "INSERT INTO user_password (user_id, hash, changed_at) VALUES ($1, $2, $3)
         ON CONFLICT (user_id) DO UPDATE SET hash = excluded.hash, changed_at = excluded.changed_at",
    )
    .bind(user)
    .bind(hash)
    .bind(now.micros())
    .execute(tx)
    .await
    .map(drop)
    .map_err(fault)
}
