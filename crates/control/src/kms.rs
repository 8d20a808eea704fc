//! This server's own key management service, and the app ids that a workspace gets next.
//!
//! The one rule: the KMS answers for any app id alike, whoever has it and whether it exists. A key is a function of the id,
//! clients need it before the app is there, and an answer that differed would tell strangers what exists.

use std::collections::HashSet;

use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};

use crate::deploy::{KMS_KEY, KMS_SLUG, app_id_bytes, predicted_app_id, strip_app_id};
use crate::{Control, Principal};

/// What clients that name a KMS by its kind call one that is off any chain.
pub const KMS_TYPE: &str = "phala";

/// Where an app's env is encrypted to, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEnvKey {
    /// X25519, 64 hex digits.
    pub public_key: String,
    /// r, s and recovery id over keccak256("dstack-env-encrypt-pubkey:" || app id || public key), 130 hex digits.
    pub signature: String,
}

/// The public halves of the root keys, in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootKeys {
    /// secp256k1, a compressed point: signs env keys.
    pub k256: String,
    /// P-256, a SubjectPublicKeyInfo in DER: app keys derive from it.
    pub ca: String,
}

/// An app id that a deploy may get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextAppId {
    /// 40 hex digits.
    pub app_id: String,
    pub nonce: i64,
}

/// True when `name` is this server's KMS: its slug, its kind, or a hashid of it.
pub fn is_ours(name: &str) -> bool {
    name == KMS_SLUG
        || name.eq_ignore_ascii_case(KMS_TYPE)
        || [Prefix::Kms, Prefix::KmsContract].iter().any(|prefix| hashid::decode(*prefix, name) == Some(KMS_KEY))
}

/// Fails with `KmsMissing` unless `name` is this server's KMS.
pub fn check(name: &str) -> Result<(), Error> {
    if is_ours(name) { Ok(()) } else { Err(Error::new(Code::KmsMissing, "There is no such KMS.")) }
}

impl Control {
    /// The env key of an app that exists or may exist one day. Fails with `AppIdInvalid`.
    pub fn kms_env_key(&self, app_id: &str) -> Result<SignedEnvKey, Error> {
        let wrong = |_| Error::new(Code::AppIdInvalid, "app_id must be 40 hex digits.");
        let app_id = app_id_bytes(&strip_app_id(app_id)).map_err(wrong)?;
        let public = self.keys.root.env_key(&app_id).public;
        let signature = self.keys.root.sign_env_public_key(&app_id, &public);
        Ok(SignedEnvKey { public_key: hex::encode(public), signature: hex::encode(signature) })
    }

    pub fn kms_root_keys(&self) -> RootKeys {
        let root = &self.keys.root;
        RootKeys { k256: hex::encode(root.signer()), ca: hex::encode(root.ca_public_key()) }
    }

    /// The app ids that the workspace's next `count` deploys get. Nothing is reserved: a deploy that names one of them with
    /// its nonce makes sure of it.
    pub async fn kms_next_app_ids(&self, who: &Principal, count: usize) -> Result<Vec<NextAppId>, Error> {
        let mut next = Vec::with_capacity(count);
        let mut nonce = self.store.next_nonce(who.workspace_id).await?;
        while next.len() < count {
            let mut some = Vec::with_capacity(count);
            for _ in 0..count {
                some.push(NextAppId { app_id: predicted_app_id(&who.workspace_address, nonce)?, nonce });
                nonce += 1;
            }
            let ids: Vec<&str> = some.iter().map(|id| id.app_id.as_str()).collect();
            let taken: HashSet<String> = self.store.app_ids_taken(who.workspace_id, &ids).await?.into_iter().collect();
            next.extend(some.into_iter().filter(|id| !taken.contains(&id.app_id)).take(count - next.len()));
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kms_by_each_of_its_names() {
        let ids = [Prefix::Kms, Prefix::KmsContract].map(|prefix| hashid::encode(prefix, KMS_KEY));
        for name in [KMS_SLUG, "phala", "PHALA", &ids[0], &ids[1]] {
            assert!(is_ours(name), "{name}");
        }
        let others = [Prefix::Kms, Prefix::Cvm].map(|prefix| hashid::encode(prefix, KMS_KEY + 1));
        for name in ["", "ethereum", "base", "1", "Holdfast", &others[0], &others[1]] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
