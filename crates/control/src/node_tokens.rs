//! Tokens of nodes, as administrators see them over HTTP. `holdfast admin node-token` makes them without a server.
//!
//! The one rule: the token itself is in one answer and nowhere else. Its request's idempotency key remembers that it was
//! answered, not what.

use holdfast_model::access::Action;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::{idempotency_created, idempotency_take};
use holdfast_store::node_tokens::{NodeToken, node_of_token, node_token_revoke};
use holdfast_store::nodes::node_token_create;
use zeroize::Zeroizing;

use crate::identity::secret_hash;
use crate::{Control, Principal, RequestInfo, setup};

/// A token that was just made.
pub struct NewNodeToken {
    pub id: String,
    pub token: Zeroizing<String>,
    pub created_at: holdfast_model::Timestamp,
}

/// The public id of a token.
pub fn public_id(token: i64) -> String {
    hashid::encode(Prefix::NodeToken, token)
}

impl Control {
    /// Makes a token. A repetition under the same idempotency key is refused, because the token is not here any more.
    pub async fn node_token_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        name: &str,
    ) -> Result<NewNodeToken, Error> {
        who.require(Action::RunInstallation)?;
        check_name(name)?;
        let (token, now) = (setup::random_node_token()?, self.now());
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            // Never false: a key that was taken by this request names what it made, and that is refused.
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let id = public_id(node_token_create(&mut tx, name, &secret_hash(&token), now).await?);
        if let Some(key) = &info.idempotency {
            idempotency_created(&mut tx, who.workspace_id, key, &id).await?;
        }
        audit_insert(&mut tx, who, info, entry("node_token.create", &id, 201), now).await?;
        holdfast_store::commit(tx).await?;
        Ok(NewNodeToken { id, token, created_at: now })
    }

    /// All tokens, oldest first, without their secrets.
    pub async fn node_tokens(&self, who: &Principal) -> Result<Vec<NodeToken>, Error> {
        who.require(Action::RunInstallation)?;
        self.store.node_tokens().await
    }

    /// Makes a token worthless and ends the session of its node. The node's VMs run on, without news.
    pub async fn node_token_revoke(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<(), Error> {
        who.require(Action::RunInstallation)?;
        let unknown = || Error::new(Code::NodeTokenNotFound, "There is no such node token.");
        let token = hashid::decode(Prefix::NodeToken, id).ok_or_else(unknown)?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            return Ok(());
        }
        if !node_token_revoke(&mut tx, token, now).await? {
            return Err(unknown());
        }
        let node = node_of_token(&mut tx, token).await?;
        audit_insert(&mut tx, who, info, entry("node_token.revoke", id, 204), now).await?;
        holdfast_store::commit(tx).await?;
        // Whoever waits for news of desired state asks again, and is refused; the open socket is closed.
        self.ring_desired();
        if let Some(node) = node {
            self.streams.detach(node);
        }
        Ok(())
    }
}

fn entry<'a>(action: &'a str, id: &'a str, status_code: u16) -> audit::Entry<'a> {
    audit::Entry { action, target_type: "node_token", target_id: id, operation_id: None, status_code }
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if fits {
        return Ok(());
    }
    let why = "must be 1 to 63 letters, digits, dots, dashes and underscores";
    Err(Error::field("body", "name", "string_pattern_mismatch", why))
}
