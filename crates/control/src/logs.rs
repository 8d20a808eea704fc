//! Log URLs: absolute, readable without a key, and only for a while.
//!
//! The one rule: the token is the permission. It names one CVM and an end, and is signed; the URL carries nothing else
//! that decides what is shown.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_store::vms::Vm;
use holdfast_trust::token;

use crate::Control;

const PURPOSE: &str = "log";

impl Control {
    /// Where the serial log is read, with a query already begun; add `&ch=stdout` for QEMU's own.
    pub fn log_url(&self, vm: &Vm) -> String {
        format!("{}/holdfast/v1/logs/{}?token={}", self.settings.public_url, vm.uuid, self.log_token(vm))
    }

    /// Where one container's log is read.
    pub fn container_log_url(&self, vm: &Vm, container: &str) -> String {
        let token = self.log_token(vm);
        format!("{}/holdfast/v1/logs/{}/{container}?token={token}", self.settings.public_url, vm.uuid)
    }

    fn log_token(&self, vm: &Vm) -> String {
        // Whole lifetimes: URLs stay the same for a while, so clients may compare or cache them.
        let lifetime = i64::try_from(self.settings.log_url_lifetime.as_micros()).unwrap_or(i64::MAX).max(1);
        let ends = (self.now().micros() / lifetime + 2) * lifetime;
        let mut payload = Vec::with_capacity(16);
        payload.extend(vm.id.to_be_bytes());
        payload.extend(ends.to_be_bytes());
        token::sign(&self.keys.log_token, PURPOSE, &payload)
    }

    /// The CVM that a log URL is about.
    pub async fn log_open(&self, uuid: &str, presented: &str) -> Result<Vm, Error> {
        let invalid = || Error::new(Code::LogTokenInvalid, "The log URL is not valid any more.");
        let payload = token::verify(&self.keys.log_token, PURPOSE, presented).map_err(|_| invalid())?;
        let payload: [u8; 16] = payload.try_into().map_err(|_| invalid())?;
        let number = |at: usize| i64::from_be_bytes(std::array::from_fn(|i| payload[at + i]));
        if Timestamp(number(8)) <= self.now() {
            return Err(invalid());
        }
        let vm = self.store.vm(number(0)).await?;
        vm.filter(|vm| vm.uuid == uuid && vm.deleted_at.is_none()).ok_or_else(invalid)
    }
}
