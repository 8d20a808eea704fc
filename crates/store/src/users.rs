//! The people of an installation.
//!
//! The one rule: there is always somebody who runs it. What would take the last administrator away is refused by the
//! transaction that would do it ([`admins_left`]).

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use uuid::Uuid;

use crate::page::{From, Page, Place, Sort, Total};
use crate::sql::{self, record};
use crate::{Store, Tx, fault};

/// Somebody with an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: i64,
    pub uuid: String,
    pub username: String,
    /// In small letters.
    pub email: String,
    /// `admin` runs the installation, `user` does not.
    pub role: String,
    pub created_at: i64,
    /// Since when none of their keys works; `None`: they do.
    pub disabled_at: Option<i64>,
}

record!(User { id, uuid, username, email, role, created_at, disabled_at });

impl User {
    /// Where the user is in a list that is sorted by [`order`].
    pub fn place(&self) -> Place {
        Place { values: vec![self.created_at], id: self.id }
    }
}

const COLUMNS: &str =
    "SELECT u.id, u.uuid, u.username, u.email, u.role, u.created_at, u.disabled_at FROM user_account u";

/// The order of lists of people and of workspaces: the oldest first.
pub fn order() -> Sort {
    Sort::oldest_first("created_at")
}

impl Store {
    /// A page of everybody, in the order of [`order`].
    pub async fn users(&self, from: &From, limit: i64) -> Result<Page<User>, Error> {
        let sort = order();
        let (order, place) = from.read(&sort);
        let spell = |column: &str| format!("u.{column}");
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE 1 = 1");
        if let Some(place) = place {
            order.push_after(&mut query, spell, place);
        }
        query.push(" ORDER BY ").push(order.order_by(spell)).push(" LIMIT ").push_bind(limit + 1);
        let reading = self.read().aside(move |db| {
            let (total,) = db.one(&sql::query("SELECT COUNT(*) FROM user_account"))?;
            Ok((db.all(&query)?, total))
        });
        let (rows, total) = reading.await?;
        Ok(Page::of(rows, from, limit, Total::exact(total)))
    }

    pub async fn user(&self, id: i64) -> Result<Option<User>, Error> {
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE u.id = ").push_bind(id);
        self.read().here(|db| db.first(&query))
    }

    /// Whoever has this username.
    pub async fn user_named(&self, username: &str) -> Result<Option<User>, Error> {
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE u.username = ").push_bind(username.to_owned());
        self.read().here(|db| db.first(&query))
    }

    /// Whoever has this address, in small letters.
    pub async fn user_with_email(&self, email: &str) -> Result<Option<User>, Error> {
        let mut query = sql::query(COLUMNS);
        query.push(" WHERE u.email = ").push_bind(email.to_owned());
        self.read().here(|db| db.first(&query))
    }
}

/// Whoever has this address, in small letters, as this transaction has it.
pub async fn user_with_email_in(tx: &mut Tx, email: &str) -> Result<Option<User>, Error> {
    let mut query = sql::query(COLUMNS);
    query.push(" WHERE u.email = ").push_bind(email.to_owned());
    query.fetch_optional(&mut **tx).await.map_err(fault)
}

/// Makes an account, and refuses a username or address that somebody has. Nobody can sign in with it until they get a
/// key or a password.
pub async fn user_create(tx: &mut Tx, username: &str, email: &str, role: &str, now: Timestamp) -> Result<i64, Error> {
    let made: Option<i64> = sql::query(
        "INSERT INTO user_account (uuid, username, email, role, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(Uuid::new_v4().to_string())
    .bind(username)
    .bind(email)
    .bind(role)
    .bind(now.micros())
    .fetch_optional(&mut **tx)
    .await
    .map_err(fault)?;
    made.ok_or_else(|| Error::new(Code::UserExists, "Somebody has this username or this address."))
}

/// Sets what a user may do in the whole installation: `admin` or `user`.
pub async fn user_set_role(tx: &mut Tx, user: i64, role: &str) -> Result<(), Error> {
    sql::query("UPDATE user_account SET role = $2 WHERE id = $1")
        .bind(user)
        .bind(role)
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// Disables a user since a moment, or enables them again with `None`.
pub async fn user_set_disabled(tx: &mut Tx, user: i64, since: Option<Timestamp>) -> Result<(), Error> {
    sql::query("UPDATE user_account SET disabled_at = $2 WHERE id = $1")
        .bind(user)
        .bind(since.map(Timestamp::micros))
        .execute(tx)
        .await
        .map(drop)
        .map_err(fault)
}

/// How many can run the installation, as this transaction has it.
pub async fn admins_left(tx: &mut Tx) -> Result<i64, Error> {
    sql::query("SELECT COUNT(*) FROM user_account WHERE role = 'admin' AND disabled_at IS NULL")
        .fetch_one(&mut **tx)
        .await
        .map_err(fault)
}
