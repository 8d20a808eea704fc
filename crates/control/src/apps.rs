//! Apps of a workspace: finding them by each of their names, their revisions, and putting one in force again.

use holdfast_engine::ops;
use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::app_revisions::AppRevision;
use holdfast_store::apps::App;
use holdfast_store::vms::{Filter, Vm};
use uuid::Uuid;

use crate::deploy::strip_app_id;
use crate::update::{Update, Updated};
use crate::vms::not_found;
use crate::{Control, Principal, RequestInfo};

/// The most CVMs that one request redeploys.
const CVMS_AT_ONCE: i64 = 1000;

/// What became of one CVM of a redeployment.
#[derive(Debug)]
pub struct Redeployed {
    pub vm_uuid: String,
    pub outcome: Result<Updated, Error>,
}

/// The public name of a revision: `<UUID of its CVM>-<its number there>`.
pub fn revision_id(revision: &AppRevision) -> String {
    format!("{}-{}", revision.vm_uuid, revision.revision)
}

/// UUID and number that [`revision_id`] made a name of.
fn parse_revision_id(id: &str) -> Option<(String, i64)> {
    let (uuid, number) = id.rsplit_once('-')?;
    let uuid = Uuid::try_parse(uuid).ok().filter(|_| matches!(uuid.len(), 32 | 36))?;
    let revision = number.parse().ok().filter(|n: &i64| *n > 0 && n.to_string() == number)?;
    Some((uuid.to_string(), revision))
}

impl Control {
    /// The app that `id` names in what the caller sees: its app id, with or without `app_` or `0x`, or its `prj_` id. It
    /// is found as long as anything of it is remembered, also after its last CVM.
    pub async fn app_find(&self, who: &Principal, id: &str) -> Result<App, Error> {
        let found = match hashid::decode(Prefix::App, id) {
            Some(row) => self.store.app_by_row(&who.scope(), row).await?,
            None => self.store.app(&who.scope(), &strip_app_id(id)).await?,
        };
        found.ok_or_else(|| Error::new(Code::AppNotFound, "The requested app was not found."))
    }

    /// A revision of an app by its public name. Fails with `RevisionNotFound`.
    pub async fn app_revision_find(&self, app: &App, id: &str) -> Result<AppRevision, Error> {
        self.revision_find(app.id, id).await
    }

    async fn revision_find(&self, app_row: i64, id: &str) -> Result<AppRevision, Error> {
        let found = match parse_revision_id(id) {
            Some((uuid, revision)) => self.store.app_revision(app_row, &uuid, revision).await?,
            None => None,
        };
        found.ok_or_else(|| Error::new(Code::RevisionNotFound, "The app has no such revision."))
    }

    /// Gives a CVM what its app was made of in a revision, also one of another CVM of the app.
    pub async fn vm_redeploy(
        &self,
        who: &Principal,
        info: &RequestInfo,
        id: &str,
        revision: &str,
    ) -> Result<Updated, Error> {
        let vm = self.vm_find(who, id).await?;
        let revision = self.revision_find(vm.app_row, revision).await?;
        let update = self.update_of(&revision).await?;
        self.vm_update(who, info, &vm.uuid, &ops::COMPOSE_UPDATE, update, 202).await
    }

    /// The same for CVMs of an app: for those that are `chosen`, by any of their names, or for all of them. Each gets an
    /// operation of its own; fails when none is accepted.
    pub async fn app_redeploy(
        &self,
        who: &Principal,
        info: &RequestInfo,
        app: &App,
        revision: &str,
        chosen: Option<&[String]>,
    ) -> Result<Vec<Redeployed>, Error> {
        let revision = self.revision_find(app.id, revision).await?;
        let update = self.update_of(&revision).await?;
        let mut done = Vec::new();
        let mut accepted = false;
        for vm in self.redeploy_targets(who, app, chosen).await? {
            // An idempotency key stands for one operation: the first. Whatever a repetition does again changes nothing.
            let own = RequestInfo { idempotency: info.idempotency.clone().filter(|_| !accepted), ..info.clone() };
            let outcome = self.vm_update(who, &own, &vm.uuid, &ops::COMPOSE_UPDATE, update.clone(), 202).await;
            accepted |= outcome.is_ok();
            done.push(Redeployed { vm_uuid: vm.uuid, outcome });
        }
        if accepted {
            return Ok(done);
        }
        match done.into_iter().find_map(|redeployed| redeployed.outcome.err()) {
            Some(error) => Err(error),
            None => Err(not_found()),
        }
    }

    async fn redeploy_targets(&self, who: &Principal, app: &App, chosen: Option<&[String]>) -> Result<Vec<Vm>, Error> {
        let Some(chosen) = chosen else {
            let rows = [app.id];
            let filter = Filter { scope: Some(who.scope()), app_rows: Some(&rows), ..Filter::default() };
            return self.store.vms(&filter, CVMS_AT_ONCE, 0).await;
        };
        let mut targets: Vec<Vm> = Vec::new();
        for id in chosen {
            let vm = self.vm_find(who, id).await?;
            if vm.app_row != app.id {
                return Err(not_found());
            }
            if !targets.iter().any(|known| known.id == vm.id) {
                targets.push(vm);
            }
        }
        Ok(targets)
    }

    async fn update_of(&self, revision: &AppRevision) -> Result<Update, Error> {
        let contents = self.store.revision_contents(revision.vm_id, revision.revision).await?;
        Ok(Update {
            compose_hash: Some(revision.compose_hash.clone()),
            encrypted_env: contents.encrypted_env,
            user_config: contents.user_config,
            ..Update::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_revision() {
        let uuid = "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e";
        assert_eq!(parse_revision_id(&format!("{uuid}-12")), Some((uuid.to_owned(), 12)));
        assert_eq!(parse_revision_id(&format!("{}-1", uuid.replace('-', ""))), Some((uuid.to_owned(), 1)));
        for wrong in ["", "-", "12", uuid, &format!("{uuid}-"), &format!("{uuid}-0"), &format!("{uuid}-01"), "x-1"] {
            assert_eq!(parse_revision_id(wrong), None, "{wrong}");
        }
    }
}
