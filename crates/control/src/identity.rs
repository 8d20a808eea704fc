//! Who is asking.

use holdfast_model::error::{Code, Error};
use holdfast_store::tenancy::Principal;
use sha2::{Digest, Sha256};

use crate::Control;

/// sha256 of a random secret, as the database keeps it. No salt and no stretching: the secret has 256 random bits.
pub fn secret_hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

impl Control {
    /// The holder of an API key. The key is looked up by its hash, so the time taken says nothing about the key.
    pub async fn authenticate(&self, key: &str) -> Result<Principal, Error> {
        self.store
            .principal(&secret_hash(key), self.now())
            .await?
            .ok_or_else(|| Error::new(Code::Unauthenticated, "The API key is not valid."))
    }

    /// The token row behind a node token.
    pub async fn authenticate_node(&self, token: &str) -> Result<i64, Error> {
        self.store
            .node_token(&secret_hash(token))
            .await?
            .ok_or_else(|| Error::new(Code::Unauthenticated, "The node token is not valid."))
    }
}
