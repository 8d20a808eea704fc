//! Public env keys of apps, remembered.
//!
//! Deriving one takes two multiplications on curves, and every CVM that is shown has one: a page of 30 would spend most of its
//! time on them. The one rule: a key follows from the app's id and the installation's root alone, so what is remembered is
//! never wrong, and memory is bounded by beginning anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Apps whose keys are remembered: 52 bytes each, and what a table of this size adds, are 7 MB.
const MOST: usize = 114_000;

type AppId = [u8; 20];
type PublicKey = [u8; 32];

#[derive(Default)]
pub(crate) struct EnvKeys(Mutex<HashMap<AppId, PublicKey>>);

impl EnvKeys {
    pub(crate) fn get(&self, app_id: AppId, derive: impl FnOnce(&AppId) -> PublicKey) -> PublicKey {
        let known = self.lock().get(&app_id).copied();
        known.unwrap_or_else(|| {
            // Not under the lock: two who ask at once derive the same.
            let key = derive(&app_id);
            let mut keys = self.lock();
            if keys.len() >= MOST {
                keys.clear();
            }
            keys.insert(app_id, key);
            key
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AppId, PublicKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(number: usize) -> AppId {
        let mut id = [0; 20];
        id[..8].copy_from_slice(&number.to_be_bytes());
        id
    }

    fn derive(id: &AppId) -> PublicKey {
        let mut key = [0; 32];
        key[..20].copy_from_slice(id);
        key
    }

    #[test]
    fn a_key_is_derived_once_and_belongs_to_its_app() {
        let keys = EnvKeys::default();
        for number in 0..3 {
            assert_eq!(keys.get(app(number), derive), derive(&app(number)));
        }
        for number in 0..3 {
            assert_eq!(keys.get(app(number), |_| unreachable!("it is known")), derive(&app(number)));
        }
    }

    #[test]
    fn memory_is_bounded() {
        let keys = EnvKeys::default();
        for number in 0..2 * MOST + 1 {
            keys.get(app(number), derive);
        }
        assert_eq!(keys.lock().len(), 1);
        assert!(keys.lock().capacity() < 2 * MOST);
    }
}
