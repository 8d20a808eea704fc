//! Further instances of an app: CVMs made like its newest one, and replicas: made like a certain one.
//!
//! The one rule: a new instance is what the other CVM is now, its size, image, env and visibility included, unless the
//! request says otherwise, and in the same project. Its disk is its own and empty: nothing of the other's data is copied.

use holdfast_engine::{Plan, ops};
use holdfast_model::error::{Code, Error};
use holdfast_store::Store;
use holdfast_store::apps::App;
use holdfast_store::desired::vm_is_leaving;
use holdfast_store::idempotency::{idempotency_operation, idempotency_take};
use holdfast_store::provisions::app_compose_insert;
use holdfast_store::revisions::{compose_is_changing, revision_first, revision_in_force};
use holdfast_store::vms::{Filter, Vm};
use tokio::time::Instant;

use crate::create::Blueprint;
use crate::deploy::Wanted;
use crate::projects::check_project;
use crate::update::Update;
use crate::vms::not_found;
use crate::{Control, Principal, RequestInfo};

/// What is to be different in a new instance.
#[derive(Debug, Clone, Default)]
pub struct Instance {
    /// Internal key of a node.
    pub node_id: Option<i64>,
    /// Hash of an app-compose.json that was provisioned in the workspace.
    pub compose_hash: Option<String>,
    pub docker_compose_file: Option<String>,
    pub pre_launch_script: Option<String>,
    /// Hex of the ciphertext.
    pub encrypted_env: Option<String>,
    /// The project that the request names, which can only be the app's.
    pub project: Option<String>,
}

impl Control {
    /// Accepts the create operation of one more CVM of an app that has one.
    pub async fn app_instance_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        app: &App,
        instance: Instance,
    ) -> Result<Vm, Error> {
        let rows = [app.id];
        let filter = Filter { scope: Some(who.scope()), app_rows: Some(&rows), ..Filter::default() };
        let source = self.store.vms(&filter, 1, 0).await?.pop().ok_or_else(|| {
            Error::new(Code::CvmNotFound, "The app has no CVM that another could be made like; deploy it anew.")
        })?;
        self.instance_create(who, info, &ops::VM_CREATE, source.id, instance).await
    }

    /// Accepts the operation that makes a replica of a CVM, which is to be one of `app` if that is given.
    pub async fn vm_replicate(
        &self,
        who: &Principal,
        info: &RequestInfo,
        app: Option<&App>,
        id: &str,
        instance: Instance,
    ) -> Result<Vm, Error> {
        let missing = || Error::new(Code::ReplicaSourceNotFound, "The CVM to replicate was not found.");
        let source = self.vm_find(who, id).await.map_err(|error| match error.code {
            Code::CvmNotFound => missing(),
            _ => error,
        })?;
        if app.is_some_and(|app| app.id != source.app_row) {
            return Err(missing());
        }
        self.instance_create(who, info, &ops::VM_REPLICATE, source.id, instance).await.map_err(|error| {
            match error.code {
                Code::ImageNotFound => Error { code: Code::ReplicaImageMissing, ..error },
                _ => error,
            }
        })
    }

    async fn instance_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        plan: &'static Plan,
        source: i64,
        instance: Instance,
    ) -> Result<Vm, Error> {
        let named = self.project_named(who, instance.project.as_deref()).await?;
        let (now, began) = (self.now(), Instant::now());
        let mut tx = self.store.begin().await?;
        if let Some(key) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, key, now).await?
        {
            let first = idempotency_operation(&mut tx, who.workspace_id, key).await?.ok_or_else(not_found)?;
            drop(tx);
            let first = self.operation_find(who, &first).await?;
            return self.vm_find_any(who, &first.resource_uuid).await;
        }
        let source = Store::vm_in(&mut tx, source).await?;
        check_project(named, source.project_id)?;
        if source.deleted_at.is_some() || vm_is_leaving(&mut tx, source.id).await? {
            let why = format!("\"{}\" is being removed; nothing can be made like it.", source.name);
            return Err(Error::new(Code::WrongState, why));
        }
        if instance.compose_hash.is_none() && compose_is_changing(&mut tx, source.id).await? {
            let why = format!("An update changes what \"{}\" runs, and may still be taken back.", source.name);
            return Err(Error::new(Code::ReplicaHashNeeded, why));
        }
        revision_first(&mut tx, source.id, None, now).await?;
        let current = revision_in_force(&mut tx, &source).await?;
        let update = Update {
            compose_hash: instance.compose_hash,
            docker_compose_file: instance.docker_compose_file,
            pre_launch_script: instance.pre_launch_script,
            encrypted_env: instance.encrypted_env.filter(|text| !text.is_empty()),
            ..Update::default()
        };
        let next = self.revised(who, &current, update).await?;
        app_compose_insert(&mut tx, (who.workspace_id, source.project_id), &next.compose_hash, &next.compose, now)
            .await?;
        let blueprint = Blueprint {
            app_row: source.app_row,
            app_id: source.app_id.clone(),
            wanted: Wanted {
                name: next.name,
                instance_type: next.instance_type,
                vcpu: next.vcpu,
                memory_mb: next.memory_mb,
                disk_gb: next.disk_gb,
                image: next.image,
                node_id: instance.node_id,
                region: None,
                listed: next.listed,
                user_config: next.user_config,
            },
            compose: next.compose,
            compose_hash: next.compose_hash,
            encrypted_env: next.encrypted_env,
            env_names: next.env_names,
            restart_policy: source.restart_policy()?,
            visibility: next.visibility,
            shutdown: next.shutdown,
            like: Some(source.uuid),
        };
        self.vm_create(tx, who, info, plan, blueprint, (now, began)).await
    }
}
