//! First start and every start after it: master key, secrets, the first administrator and their key.
//!
//! The one rule: the database and the master key belong together. A database whose secrets this master key does not open
//! is never written to: the server refuses to start instead of making new secrets over the old ones.

use std::io::Write;
use std::path::{Path, PathBuf};

use holdfast_model::error::Error;
use holdfast_store::tenancy::{api_key_create, workspace_create};
use holdfast_store::{Store, installation, nodes};
use holdfast_trust::chain::SealKey;
use holdfast_trust::kms::Root;
use holdfast_trust::wrap::MasterKey;
use holdfast_trust::{address, token};
use zeroize::Zeroizing;

use crate::{Clock, Keys};

/// Schema version that a request without a version header gets: the one the seed pages show.
const DEFAULT_VERSION: &str = "2025-10-28";

/// Reads the master key, or makes one when the installation is new.
pub fn master_key(file: &Path, installation_is_new: bool) -> Result<MasterKey, Error> {
    match std::fs::read_to_string(file) {
        Ok(text) => MasterKey::parse(&Zeroizing::new(text))
            .map_err(|e| setup_error(format!("the master key file {} is not usable: {e}", file.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && installation_is_new => {
            let key = MasterKey::generate().map_err(|e| setup_error(e.to_string()))?;
            write_secret_file(file, key.to_text().as_str())?;
            Ok(key)
        }
        Err(e) => Err(setup_error(format!(
            "cannot read the master key file {}: {e}; without it the secrets in the database cannot be opened",
            file.display()
        ))),
    }
}

/// Opens the installation's secrets, making those that do not exist yet.
pub async fn keys(store: &Store, master: &MasterKey) -> Result<Keys, Error> {
    // The check value tells a wrong master key from damage, before anything is written.
    if let Some(check) = store.secret_wrapped("master_key_check").await? {
        let check = hex::decode(&check).map_err(Error::internal)?;
        master.verify(&check).map_err(|_| {
            setup_error("the master key does not belong to this database; use the key file it was made with".to_owned())
        })?;
    } else {
        let mut tx = store.begin().await?;
        installation::secret_insert(&mut tx, "master_key_check", &hex::encode(master.check_value())).await?;
        holdfast_store::commit(tx).await?;
    }
    let seed = secret(store, master, "kms_root").await?;
    let seal = SealKey::from_seed(&*secret(store, master, "checkpoint").await?);
    if store.public_key_keep(&seal.public()).await? {
        tracing::error!("the database named another public key for checkpoints; the right one stands there again");
    }
    Ok(Keys {
        root: Root::from_seed(&seed),
        cursor: secret(store, master, "cursor").await?,
        log_token: secret(store, master, "log_token").await?,
        seal,
        webhooks: wrapping_key(store, master, "webhooks").await?,
        oidc: secret(store, master, "oidc").await?,
    })
}

/// A key that wraps secrets of tenants, so that the master key need not stay in memory for it. It is wrapped itself.
async fn wrapping_key(store: &Store, master: &MasterKey, name: &str) -> Result<MasterKey, Error> {
    let bytes = secret(store, master, name).await?;
    MasterKey::parse(&Zeroizing::new(hex::encode(bytes.as_slice()))).map_err(Error::internal)
}

async fn secret(store: &Store, master: &MasterKey, name: &str) -> Result<Zeroizing<[u8; 32]>, Error> {
    if store.secret_wrapped(name).await?.is_none() {
        let fresh = Zeroizing::new(holdfast_trust::random::<32>().map_err(Error::internal)?);
        let wrapped = master.wrap(name, fresh.as_slice()).map_err(Error::internal)?;
        let mut tx = store.begin().await?;
        installation::secret_insert(&mut tx, name, &hex::encode(wrapped)).await?;
        holdfast_store::commit(tx).await?;
    }
    // Read back in any case: another process may have been first.
    let wrapped = store.secret_wrapped(name).await?.ok_or_else(|| Error::internal("a secret is gone"))?;
    let wrapped = hex::decode(&wrapped).map_err(Error::internal)?;
    let clear = master.unwrap(name, &wrapped).map_err(|e| setup_error(format!("the secret \"{name}\": {e}")))?;
    let bytes: [u8; 32] = clear.as_slice().try_into().map_err(Error::internal)?;
    Ok(Zeroizing::new(bytes))
}

/// Makes the first administrator, workspace `default` and an API key in `key_file`, unless they exist. Safe to repeat
/// after a crash at any point: the key file is complete before its hash counts.
pub async fn first_admin(store: &Store, clock: &dyn Clock, key_file: &Path) -> Result<(), Error> {
    if store.first_admin().await?.is_some() {
        return Ok(());
    }
    let now = clock.now();
    let key = token::api_key().map_err(Error::internal)?;
    write_secret_file(key_file, &key)?;
    let mut tx = store.begin().await?;
    let wallet = holdfast_trust::random::<32>().map_err(Error::internal)?;
    let owner =
        workspace_create(&mut tx, "admin", "admin", "default", &hex::encode(address::wallet(&wallet)), now).await?;
    key_insert(&mut tx, owner, "admin", &key, now).await?;
    holdfast_store::commit(tx).await
}

/// A new API key for the first administrator, for when theirs is lost. The old ones go on working.
pub async fn new_admin_key(store: &Store, clock: &dyn Clock, key_file: &Path) -> Result<Zeroizing<String>, Error> {
    let owner = store
        .first_admin()
        .await?
        .ok_or_else(|| setup_error("there is no administrator yet; start the server once".to_owned()))?;
    let key = token::api_key().map_err(Error::internal)?;
    let mut tx = store.begin().await?;
    key_insert(&mut tx, owner, "admin", &key, clock.now()).await?;
    holdfast_store::commit(tx).await?;
    write_secret_file(key_file, &key)?;
    Ok(key)
}

async fn key_insert(
    tx: &mut holdfast_store::Tx,
    owner: (i64, i64),
    name: &str,
    key: &str,
    now: holdfast_model::Timestamp,
) -> Result<(), Error> {
    let hash = hex::encode(token::ApiKeyHash::of(key).0);
    let shown: String = key.chars().take(token::API_KEY_PREFIX.len() + 4).collect();
    api_key_create(tx, owner, name, &shown, &hash, DEFAULT_VERSION, now).await.map(drop)
}

/// A token that makes a node of whoever holds it. Only its hash is kept.
pub async fn node_token(store: &Store, clock: &dyn Clock, name: &str) -> Result<Zeroizing<String>, Error> {
    let text = random_node_token()?;
    let mut tx = store.begin().await?;
    nodes::node_token_create(&mut tx, name, &crate::identity::secret_hash(&text), clock.now()).await?;
    holdfast_store::commit(tx).await?;
    Ok(text)
}

/// A node token that nobody knows yet.
pub(crate) fn random_node_token() -> Result<Zeroizing<String>, Error> {
    let random = Zeroizing::new(holdfast_trust::random::<32>().map_err(Error::internal)?);
    Ok(Zeroizing::new(format!("hfnode_{}", hex::encode(random.as_slice()))))
}

/// The token of the embedded node, made at the first start and kept in `file`.
pub async fn embedded_node_token(store: &Store, clock: &dyn Clock, file: &Path) -> Result<Zeroizing<String>, Error> {
    if let Ok(text) = std::fs::read_to_string(file) {
        let text = Zeroizing::new(text.trim().to_owned());
        if store.node_token(&crate::identity::secret_hash(&text)).await?.is_some() {
            return Ok(text);
        }
    }
    let text = node_token(store, clock, "embedded").await?;
    write_secret_file(file, &text)?;
    Ok(text)
}

/// Writes a file that only its owner can read, whole or not at all.
fn write_secret_file(file: &Path, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt;
    let fail = |e: std::io::Error| setup_error(format!("cannot write {}: {e}", file.display()));
    let draft = PathBuf::from(format!("{}.new", file.display()));
    let mut handle =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft).map_err(fail)?;
    handle.write_all(text.as_bytes()).and_then(|()| handle.sync_all()).map_err(fail)?;
    std::fs::rename(&draft, file).map_err(fail)
}

fn setup_error(why: String) -> Error {
    Error { message: why.clone(), ..Error::internal(why) }
}
