//! Deploying: provision (validate, hash, choose an app id) and commit (accept the create operation).
//!
//! The one rule: provision promises nothing but the hash and the ids. Whether there is room is decided again at commit,
//! in the transaction that takes the room.

use holdfast_engine::ops;
use holdfast_engine::revision::{Shutdown, Visibility};
use holdfast_model::compose::{self, AppCompose};
use holdfast_model::error::{Code, Error};
use holdfast_model::preview::Preview;
use holdfast_model::vm::RestartPolicy;
use holdfast_store::apps::{app_id_is_taken, app_in};
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::projects::{By, project_in};
use holdfast_store::provisions::{self, Provision};
use holdfast_store::quotas::{Size, quota_check, quota_in};
use holdfast_store::vms::{self, Vm};
use holdfast_store::{Store, Tx};
use holdfast_trust::{address, env};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::catalogue::Catalogue;
use crate::create::Blueprint;
use crate::dry_run::{left, placed};
use crate::placement::{self, Ask, Policy};
use crate::projects::{check_project, no_project};
use crate::{Control, Principal, RequestInfo, catalogue, kms};

/// How long a provision waits for its commit.
const PROVISION_LIFETIME: std::time::Duration = std::time::Duration::from_secs(14 * 24 * 3600);

/// The name of this server's own key management service.
pub const KMS_SLUG: &str = "holdfast";
/// Internal key of that KMS, which has no row of its own.
pub const KMS_KEY: i64 = 1;

/// What a client asks to have deployed.
#[derive(Debug, Clone, Default)]
pub struct ProvisionRequest {
    pub name: String,
    pub compose_file: serde_json::Map<String, serde_json::Value>,
    pub instance_type: Option<String>,
    pub vcpu: Option<i64>,
    pub memory_mb: Option<i64>,
    pub disk_gb: Option<i64>,
    pub image: Option<String>,
    pub prefer_dev: bool,
    /// Internal key of a node.
    pub node_id: Option<i64>,
    pub region: Option<String>,
    pub listed: bool,
    /// `phala` (this server's own), `ethereum`, `base`; any case.
    pub kms: Option<String>,
    pub kms_id: Option<String>,
    pub app_id: Option<String>,
    pub nonce: Option<i64>,
    pub user_config: Option<String>,
    pub gpus: bool,
    /// UUID or name of the project that it is to go to.
    pub project: Option<String>,
}

/// What provisioning came to.
#[derive(Debug, Clone)]
pub struct Provisioned {
    pub app_id: String,
    pub compose_hash: String,
    /// X25519 public key that env values are encrypted to, 64 hex digits.
    pub env_public_key: String,
    pub os_image_hash: Option<String>,
    pub instance_type: Option<String>,
    /// A node that has room now.
    pub node_id: i64,
}

/// The second half of a deploy.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    pub app_id: String,
    pub compose_hash: String,
    /// Hex of the ciphertext.
    pub encrypted_env: Option<String>,
    pub env_keys: Option<Vec<String>>,
    pub kms_id: Option<String>,
    /// UUID or name of the project that it is to go to; without one, the provision says it.
    pub project: Option<String>,
}

/// What commit needs to know of the provision.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub name: String,
    pub instance_type: Option<String>,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub image: String,
    pub node_id: Option<i64>,
    pub region: Option<String>,
    pub listed: bool,
    pub user_config: Option<String>,
}

impl Control {
    /// Validates, makes and keeps app-compose.json, and predicts the app's id and env key.
    pub async fn provision(
        &self,
        who: &Principal,
        info: &RequestInfo,
        request: ProvisionRequest,
    ) -> Result<Provisioned, Error> {
        check_name(&request.name)?;
        check_kms(request.kms.as_deref(), request.kms_id.as_deref())?;
        if request.gpus {
            return Err(Error::new(Code::FeatureMissing, "gpus: this server has no GPUs to give."));
        }
        let content = compose::normalize(&request.compose_file, &request.name)?;
        let compose_hash = compose::sha256_hex(&content);
        let named = self.project_named(who, request.project.as_deref()).await?;
        let now = self.now();
        let nodes = self.store.nodes().await?;
        let policy = self.policy();
        let mut images = catalogue::images(nodes.iter().filter(|node| placement::is_usable(node, policy)))?;
        if images.is_empty() || request.image.is_some() {
            // Then placement says what is wrong with the nodes that have it.
            images = catalogue::images(&nodes)?;
        }
        let image = catalogue::image_choose(&images, request.image.as_deref(), request.prefer_dev)?;
        let wanted = wanted(&self.settings.catalogue, &request, &image.name)?;
        let ports = AppCompose::parse(&content)?.published()?.len();
        let node = placement::choose(&nodes, &wanted.ask(ports), self.policy())?;
        // An id of the caller's own may be that of an app that has the name already: then commit decides.
        if let Some(holder) = self.store.name_holder(who.workspace_id, &request.name).await?
            && request.app_id.as_deref().map(strip_app_id).as_deref() != Some(holder.as_str())
        {
            return Err(vms::name_taken(&request.name));
        }

        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency {
            // A repetition whose first answer got lost provisions again: that promises nothing, so nothing is done twice.
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let nonce = match request.nonce {
            Some(nonce) if nonce >= 0 => nonce,
            Some(_) => return Err(Error::field("body", "nonce", "greater_than_equal", "must not be negative")),
            None => nonce_free(&mut tx, who).await?,
        };
        let app_id = predicted_app_id(&who.workspace_address, nonce)?;
        if let Some(asked) = request.app_id.as_deref().map(strip_app_id)
            && asked != app_id
        {
            let why = "is not the address that the workspace's address and the nonce give";
            return Err(Error::field("body", "app_id", "value_error", why));
        }
        let project_id = match app_in(&mut tx, &who.scope(), &app_id).await? {
            Some(app) => check_project(named, app.project_id)?,
            None => self.project_for(who, named).await?,
        };
        let env_public_key = self.env_public_key(&app_id)?;
        provisions::app_compose_insert(&mut tx, (who.workspace_id, project_id), &compose_hash, &content, now).await?;
        let provision = Provision {
            project_id,
            app_id: app_id.clone(),
            nonce,
            compose_hash: compose_hash.clone(),
            request: serde_json::to_string(&wanted).map_err(Error::internal)?,
        };
        let expires_at = now.plus(PROVISION_LIFETIME);
        provisions::provision_insert(&mut tx, who.workspace_id, &provision, now, expires_at).await?;
        // As with the room on a node: refused now if it is short, and decided again at commit.
        let size = Size::of_vm(wanted.vcpu, wanted.memory_mb, wanted.disk_gb);
        quota_check(&mut tx, who.workspace_id, size).await?;
        let quota = match info.rehearsal {
            Some(_) => Some(left(&quota_in(&mut tx, who.workspace_id).await?.after(size))),
            None => None,
        };
        let mut filled = node.clone();
        filled.reserve(wanted.vcpu, wanted.memory_mb, wanted.disk_gb, 1);
        let preview = Preview { placement: Some(placed(&filled, self.policy())), quota, ..Preview::default() };
        self.write_end(tx, info, preview).await?;
        Ok(Provisioned {
            app_id,
            compose_hash,
            env_public_key,
            os_image_hash: image.os_image_hash,
            instance_type: wanted.instance_type,
            node_id: node.id,
        })
    }

    /// Accepts the create operation of a provisioned app. Repeating it returns the CVM that the first one made.
    pub async fn commit(&self, who: &Principal, info: &RequestInfo, request: CommitRequest) -> Result<Vm, Error> {
        check_kms(None, request.kms_id.as_deref())?;
        let app_id = strip_app_id(&request.app_id);
        let encrypted_env = request.encrypted_env.as_deref().filter(|t| !t.is_empty()).map(check_env).transpose()?;
        let named = self.project_named(who, request.project.as_deref()).await?;
        let (now, began) = (self.now(), Instant::now());
        let provision = self.store.provision(&who.scope(), &app_id, &request.compose_hash, now).await?;
        let mut tx = self.store.begin().await?;
        let Some((provision, content)) = provision else {
            drop(tx);
            return self.commit_without_provision(who, &app_id, &request.compose_hash, named).await;
        };
        if let Some(key) = &info.idempotency {
            // Commits repeat by themselves; the key is kept so that another request cannot use it.
            idempotency_take(&mut tx, who.workspace_id, key, now).await?;
        }
        let wanted: Wanted = serde_json::from_str(&provision.request).map_err(Error::internal)?;
        let place = (who.workspace_id, named.unwrap_or(provision.project_id));
        let app = provisions::app_ensure(&mut tx, place, &app_id, provision.nonce, &wanted.name, now).await?;
        if !who.scope().admits(app.workspace_id, app.project_id) {
            return Err(provision_missing());
        }
        check_project(named, app.project_id)?;
        // It may have been deleted since somebody looked, or since the app's last CVM was.
        if project_in(&mut tx, &who.scope(), By::Key(app.project_id)).await?.is_none() {
            return Err(no_project());
        }
        if !app.made
            && let Some((vm_id, compose_hash)) = vms::vm_of_app(&mut tx, app.id).await?
        {
            if compose_hash != request.compose_hash {
                return Err(app_conflict());
            }
            return Store::vm_in(&mut tx, vm_id).await;
        }

        let allowed = AppCompose::parse(&content)?.allowed_envs;
        let blueprint = Blueprint {
            app_row: app.id,
            app_id,
            wanted,
            compose: content,
            compose_hash: provision.compose_hash,
            env_names: if encrypted_env.is_some() { request.env_keys.unwrap_or(allowed) } else { Vec::new() },
            encrypted_env,
            restart_policy: RestartPolicy::default(),
            visibility: Visibility::default(),
            shutdown: Shutdown::default(),
            like: None,
        };
        self.vm_create(tx, who, info, &ops::VM_CREATE, blueprint, (now, began)).await
    }

    /// A commit that is repeated long after its provision expired still finds its CVM.
    async fn commit_without_provision(
        &self,
        who: &Principal,
        app_id: &str,
        compose_hash: &str,
        named: Option<i64>,
    ) -> Result<Vm, Error> {
        let living = self.store.vms_by(&who.scope(), vms::By::AppId(app_id)).await?;
        match living.into_iter().next() {
            Some(vm) if vm.compose_hash == compose_hash => check_project(named, vm.project_id).map(|_| vm),
            Some(_) => Err(app_conflict()),
            None => Err(provision_missing()),
        }
    }

    /// The public half of an app's env key, 64 hex digits.
    pub fn env_public_key(&self, app_id: &str) -> Result<String, Error> {
        let derive = |app_id: &[u8; 20]| self.keys.root.env_key(app_id).public;
        Ok(hex::encode(self.env_keys.get(app_id_bytes(app_id)?, derive)))
    }

    pub fn policy(&self) -> Policy {
        Policy {
            vcpu_overcommit: self.settings.vcpu_overcommit,
            disk_overcommit: self.settings.disk_overcommit,
            now: self.now(),
            patience: self.node_patience(),
        }
    }
}

impl Wanted {
    pub(crate) fn ask(&self, ports: usize) -> Ask<'_> {
        Ask {
            vcpu: self.vcpu,
            memory_mb: self.memory_mb,
            disk_gb: self.disk_gb,
            image: &self.image,
            region: self.region.as_deref(),
            node_id: self.node_id,
            ports,
        }
    }
}

/// The size that was asked for: a type by name, numbers, or a type with some numbers changed.
fn wanted(catalogue: &Catalogue, request: &ProvisionRequest, image: &str) -> Result<Wanted, Error> {
    let numbers_only = request.instance_type.is_none() && (request.vcpu.is_some() || request.memory_mb.is_some());
    let base = match &request.instance_type {
        Some(id) => catalogue.find(id)?,
        None => catalogue.first()?,
    };
    let vcpu = request.vcpu.unwrap_or(base.vcpu);
    let memory_mb = request.memory_mb.unwrap_or(base.memory_mb);
    let disk_gb = request.disk_gb.unwrap_or(base.disk_gb);
    for (field, value, least) in [("vcpu", vcpu, 1), ("memory", memory_mb, 512), ("disk_size", disk_gb, 1)] {
        if value < least {
            return Err(Error::field("body", field, "greater_than_equal", format!("must be at least {least}")));
        }
    }
    Ok(Wanted {
        name: request.name.clone(),
        instance_type: (!numbers_only).then(|| base.id.clone()),
        vcpu,
        memory_mb,
        disk_gb,
        image: image.to_owned(),
        node_id: request.node_id,
        region: request.region.clone(),
        listed: request.listed,
        user_config: request.user_config.clone(),
    })
}

/// `^[a-zA-Z](?!.*--)([a-zA-Z0-9-]*[a-zA-Z0-9])?$`, 5 to 63 characters.
pub fn check_name(name: &str) -> Result<(), Error> {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    let last = name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric());
    if letters && first && last && !name.contains("--") && (5..=63).contains(&name.len()) {
        return Ok(());
    }
    Err(Error {
        code: Code::NameInvalid,
        ..Error::field("body", "name", "string_pattern_mismatch", Code::NameInvalid.hint())
    })
}

fn check_kms(kind: Option<&str>, id: Option<&str>) -> Result<(), Error> {
    if let Some(kind) = kind
        && !kind.eq_ignore_ascii_case("phala")
    {
        return Err(Error::new(Code::KmsNotFound, format!("kms: there is no \"{kind}\" KMS here; use \"phala\".")));
    }
    match id {
        Some(id) if !kms::is_ours(id) => Err(Error::new(Code::KmsNotFound, "kms_id: there is no such KMS.")),
        _ => Ok(()),
    }
}

/// Ciphertext that could be an env: hex, within the guest's limit, at least key, nonce and tag.
pub(crate) fn check_env(text: &str) -> Result<String, Error> {
    let fail = |why: &str| Error::field("body", "encrypted_env", "value_error", why);
    let text = text.strip_prefix("0x").unwrap_or(text).to_ascii_lowercase();
    let bytes = hex::decode(&text).map_err(|_| fail("must be hexadecimal"))?;
    match bytes.len() {
        0..60 => Err(fail("is too short to be an encrypted env")),
        n if n > env::MAX_BLOB => Err(fail("is larger than 256 KiB")),
        _ => Ok(text),
    }
}

pub(crate) fn predicted_app_id(workspace_address: &str, nonce: i64) -> Result<String, Error> {
    Ok(address::app_id(&app_id_bytes(workspace_address)?, nonce.unsigned_abs()))
}

/// The next nonce of a workspace whose app id nobody has taken by naming it.
async fn nonce_free(tx: &mut Tx, who: &Principal) -> Result<i64, Error> {
    loop {
        let nonce = provisions::nonce_take(tx, who.workspace_id).await?;
        let app_id = predicted_app_id(&who.workspace_address, nonce)?;
        if !app_id_is_taken(tx, who.workspace_id, &app_id).await? {
            return Ok(nonce);
        }
    }
}

/// Where the search for host ports begins. App ids are spread like random numbers; the same one begins at the same
/// place, so that a dry run names the ports that the deployment gets.
pub(crate) fn port_seed(app_id: &str) -> Result<u64, Error> {
    let [a, b, c, d, e, f, g, h, ..] = app_id_bytes(app_id)?;
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

/// 20 bytes in 40 hex digits.
pub(crate) fn app_id_bytes(text: &str) -> Result<[u8; 20], Error> {
    let mut bytes = [0; 20];
    hex::decode_to_slice(text, &mut bytes).map_err(Error::internal)?;
    Ok(bytes)
}

/// `app_<hex>` and `0x<hex>` in any case are the bare lower-case hex.
pub fn strip_app_id(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let text = text.strip_prefix("app_").unwrap_or(&text);
    text.strip_prefix("0x").unwrap_or(text).to_owned()
}

fn provision_missing() -> Error {
    Error::new(Code::ProvisionMissing, "Provision data not found.")
}

fn app_conflict() -> Error {
    Error::new(Code::AppConflict, "This app is active already with another configuration.")
}
