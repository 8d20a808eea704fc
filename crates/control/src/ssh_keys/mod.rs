//! SSH keys of the caller: kept once, checked before, and put into the CVMs that the caller makes.
//!
//! The one rule: a key belongs to a user, not to a workspace, and only its user sees or changes it. What is put into a CVM
//! is what the user had when the CVM was made; a key that is removed later stays in the CVMs that have it.
//!
//! An import only adds. A sync makes the keys that came from a profile what the profile has now: keys that were added by
//! hand are never touched, and a profile whose keys were all removed here is not asked any more.

pub mod github;
pub mod key;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::error::{Code, Error};
use holdfast_model::hashid::{self, Prefix};
use holdfast_store::Tx;
use holdfast_store::audit::{self, audit_insert};
use holdfast_store::idempotency::idempotency_take;
use holdfast_store::ssh_keys::{NewSshKey, SshKey, ssh_key_delete, ssh_key_insert, ssh_key_synced, ssh_keys_in};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{Control, Principal, RequestInfo};
use key::Key;

/// Keys that one user may have.
pub const MOST: usize = 100;

/// What came of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    pub added: usize,
    /// Keys of the profile that were there already.
    pub skipped: usize,
    /// Why the others were not taken.
    pub errors: Vec<String>,
}

/// What came of a sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Profiles that were fetched.
    pub profiles: usize,
    pub added: usize,
    /// Keys that were there and still are in their profile.
    pub updated: usize,
    pub removed: usize,
    /// Profiles that could not be fetched, and keys that were not taken.
    pub errors: Vec<String>,
}

/// The public id of a key.
pub fn public_id(key: i64) -> String {
    hashid::encode(Prefix::SshKey, key)
}

impl Control {
    /// The caller's keys, oldest first.
    pub async fn ssh_keys(&self, who: &Principal) -> Result<Vec<SshKey>, Error> {
        self.store.ssh_keys(who.user_id).await
    }

    /// Keeps a key. One that the caller has is refused; a repetition under the same idempotency key is answered with it.
    pub async fn ssh_key_create(
        &self,
        who: &Principal,
        info: &RequestInfo,
        name: &str,
        text: &str,
    ) -> Result<SshKey, Error> {
        check_name(name)?;
        let key = key::parse(text).map_err(|why| Error {
            code: Code::SshKeyInvalid,
            ..Error::field("body", "public_key", "value_error", why)
        })?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        let there = ssh_keys_in(&mut tx, who.user_id).await?;
        let same = there.iter().find(|known| known.fingerprint == key.fingerprint);
        if let Some(idempotency) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, idempotency, now).await?
        {
            let gone = || Error::new(Code::SshKeyNotFound, "The key that this request added was deleted since.");
            return same.cloned().ok_or_else(gone);
        }
        if let Some(same) = same {
            let message = format!("You have this key already, as \"{}\" ({}).", same.name, public_id(same.id));
            return Err(Error::new(Code::SshKeyTaken, message));
        }
        if there.len() >= MOST {
            return Err(Error::new(
                Code::SshKeyLimit,
                format!("You have {MOST} SSH keys, which is the most there may be."),
            ));
        }
        let made = ssh_key_insert(&mut tx, who.user_id, new(name, &key, None), now).await?;
        let made = made.ok_or_else(|| Error::internal("a key appeared within the transaction that looked for it"))?;
        audit_insert(&mut tx, who, info, entry("ssh_key.create", &public_id(made.id), 201), now).await?;
        holdfast_store::commit(tx).await?;
        Ok(made)
    }

    /// Removes a key of the caller's. CVMs that have it keep it.
    pub async fn ssh_key_delete(&self, who: &Principal, info: &RequestInfo, id: &str) -> Result<(), Error> {
        let unknown = || Error::new(Code::SshKeyNotFound, "You have no such SSH key.");
        let key = hashid::decode(Prefix::SshKey, id).ok_or_else(unknown)?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(idempotency) = &info.idempotency
            && !idempotency_take(&mut tx, who.workspace_id, idempotency, now).await?
        {
            return Ok(());
        }
        if !ssh_key_delete(&mut tx, who.user_id, key).await? {
            return Err(unknown());
        }
        audit_insert(&mut tx, who, info, entry("ssh_key.delete", id, 204), now).await?;
        holdfast_store::commit(tx).await
    }

    /// Adds the keys of a GitHub profile. Fetches before the transaction, which holds nothing up.
    pub async fn ssh_keys_import(&self, who: &Principal, info: &RequestInfo, profile: &str) -> Result<Imported, Error> {
        github::check_name(profile)?;
        let fetched = github::keys(&self.settings.github_url, profile, self.settings.github_patience).await?;
        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(idempotency) = &info.idempotency {
            // A repetition finds all keys there, and says so.
            idempotency_take(&mut tx, who.workspace_id, idempotency, now).await?;
        }
        let mut imported = Imported::default();
        let mut room = MOST.saturating_sub(ssh_keys_in(&mut tx, who.user_id).await?.len());
        for (key, number) in taken(profile, &fetched, &mut imported.errors) {
            match add(&mut tx, who, profile, &key, &mut room, now).await? {
                Some(true) => imported.added += 1,
                Some(false) => imported.skipped += 1,
                None => imported.errors.push(no_room(profile, number)),
            }
        }
        audit_insert(&mut tx, who, info, entry("ssh_key.import", profile, 200), now).await?;
        holdfast_store::commit(tx).await?;
        Ok(imported)
    }

    /// Brings the keys that came from profiles to what the profiles have now. A profile that cannot be fetched keeps its keys.
    pub async fn ssh_keys_sync(&self, who: &Principal, info: &RequestInfo) -> Result<Synced, Error> {
        let profiles: BTreeSet<String> =
            self.store.ssh_keys(who.user_id).await?.into_iter().filter_map(|key| key.github_username).collect();
        let mut synced = Synced::default();
        let fetched = self.profiles(profiles, &mut synced.errors).await?;
        synced.profiles = fetched.len();
        let keys: BTreeMap<&String, Vec<(Key, usize)>> =
            fetched.iter().map(|(name, lines)| (name, taken(name, lines, &mut synced.errors))).collect();

        let now = self.now();
        let mut tx = self.store.begin().await?;
        if let Some(idempotency) = &info.idempotency {
            // A repetition finds the keys as they are, and says so.
            idempotency_take(&mut tx, who.workspace_id, idempotency, now).await?;
        }
        let there = ssh_keys_in(&mut tx, who.user_id).await?;
        let mut room = MOST.saturating_sub(there.len());
        // First all that go, then all that come: a key may have moved from one profile to another.
        for known in &there {
            let Some(of_profile) = known.github_username.as_ref().and_then(|name| keys.get(name)) else { continue };
            if of_profile.iter().any(|(key, _)| key.fingerprint == known.fingerprint) {
                ssh_key_synced(&mut tx, who.user_id, known.id, now).await?;
                synced.updated += 1;
            } else if ssh_key_delete(&mut tx, who.user_id, known.id).await? {
                room += 1;
                synced.removed += 1;
            }
        }
        for (profile, keys) in &keys {
            for (key, number) in keys {
                match add(&mut tx, who, profile, key, &mut room, now).await? {
                    Some(added) => synced.added += usize::from(added),
                    None => synced.errors.push(no_room(profile, *number)),
                }
            }
        }
        let id = hashid::encode(Prefix::User, who.user_id);
        audit_insert(&mut tx, who, info, audit::Entry { target_type: "user", ..entry("ssh_key.sync", &id, 200) }, now)
            .await?;
        holdfast_store::commit(tx).await?;
        Ok(synced)
    }

    /// Fetches profiles side by side; those that fail are among `errors`.
    async fn profiles(
        &self,
        names: BTreeSet<String>,
        errors: &mut Vec<String>,
    ) -> Result<BTreeMap<String, Vec<String>>, Error> {
        let mut tasks = JoinSet::new();
        for name in names {
            let (base, patience) = (self.settings.github_url.clone(), self.settings.github_patience);
            tasks.spawn(async move { (github::keys(&base, &name, patience).await, name) });
        }
        let mut fetched = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            let (result, name) = done.map_err(Error::internal)?;
            match result {
                Ok(lines) => drop(fetched.insert(name, lines)),
                Err(error) => {
                    tracing::info!(%error, profile = name, "the keys of a GitHub profile were not fetched");
                    errors.push(format!("{name}: {}", error.message));
                }
            }
        }
        errors.sort();
        Ok(fetched)
    }
}

/// What a new CVM of this user is told: the owner's text, with the user's keys among its `ssh_authorized_keys`. A text that
/// is no JSON object, or whose `ssh_authorized_keys` are no list, is the app's own and stays as it is.
pub(crate) fn with_keys(user_config: Option<String>, keys: &[SshKey]) -> Option<String> {
    let said = user_config.as_deref().map(str::trim).filter(|text| !text.is_empty());
    if keys.is_empty() {
        return user_config;
    }
    let mut object = match said.map(serde_json::from_str::<Value>) {
        None => serde_json::Map::new(),
        Some(Ok(Value::Object(object))) => object,
        Some(_) => return user_config,
    };
    let list = object.entry("ssh_authorized_keys").or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = list else { return user_config };
    for key in keys {
        if !list.iter().any(|known| known.as_str().is_some_and(|known| same_key(known, &key.public_key))) {
            list.push(key.public_key.as_str().into());
        }
    }
    Some(Value::Object(object).to_string())
}

/// Whether two lines are the same key, whatever their comments.
fn same_key(one: &str, other: &str) -> bool {
    let key = |line: &str| line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    key(one) == key(other)
}

/// The lines of a profile that are keys, each once, with the numbers of their lines.
fn taken(profile: &str, lines: &[String], errors: &mut Vec<String>) -> Vec<(Key, usize)> {
    let mut keys: Vec<(Key, usize)> = Vec::new();
    for (number, line) in (1..).zip(lines) {
        match key::parse(line) {
            Ok(key) if keys.iter().any(|(known, _)| known.fingerprint == key.fingerprint) => {}
            Ok(key) => keys.push((key, number)),
            // Whatever a server may answer, the list of complaints is short.
            Err(_) if errors.len() >= MOST => {}
            Err(why) => errors.push(format!("{profile}, line {number}: it {why}.")),
        }
    }
    keys
}

/// True when it was added, false when it was there, `None` when there is no room for it.
async fn add(
    tx: &mut Tx,
    who: &Principal,
    profile: &str,
    key: &Key,
    room: &mut usize,
    now: holdfast_model::Timestamp,
) -> Result<Option<bool>, Error> {
    if *room == 0 {
        let known = ssh_keys_in(tx, who.user_id).await?;
        return Ok(known.iter().any(|known| known.fingerprint == key.fingerprint).then_some(false));
    }
    let name = if key.comment.is_empty() { format!("{profile} (GitHub)") } else { key.comment.clone() };
    let name: String = name.chars().take(100).collect();
    let added = ssh_key_insert(tx, who.user_id, new(&name, key, Some(profile)), now).await?.is_some();
    *room -= usize::from(added);
    Ok(Some(added))
}

fn no_room(profile: &str, line: usize) -> String {
    format!("{profile}, line {line}: you have {MOST} SSH keys, which is the most there may be.")
}

fn new<'a>(name: &'a str, key: &'a Key, github_username: Option<&'a str>) -> NewSshKey<'a> {
    NewSshKey {
        name,
        public_key: &key.line,
        fingerprint: &key.fingerprint,
        key_type: &key.algorithm,
        bits: key.bits,
        github_username,
    }
}

fn entry<'a>(action: &'a str, id: &'a str, status_code: u16) -> audit::Entry<'a> {
    audit::Entry { action, target_type: "ssh_key", target_id: id, operation_id: None, status_code }
}

fn check_name(name: &str) -> Result<(), Error> {
    if (1..=100).contains(&name.chars().count()) && !name.trim().is_empty() && !name.contains(char::is_control) {
        return Ok(());
    }
    Err(Error::field("body", "name", "value_error", "must be 1 to 100 characters, none of them a control character"))
}

#[cfg(test)]
mod tests {
    use holdfast_model::guest::UserConfig;

    use super::*;

    fn kept(public_key: &str) -> SshKey {
        SshKey {
            id: 1,
            user_id: 1,
            name: "laptop".to_owned(),
            public_key: public_key.to_owned(),
            fingerprint: String::new(),
            key_type: String::new(),
            bits: None,
            github_username: None,
            last_synced_at: None,
            created_at: 0,
            updated_at: 0,
        }
    }

    #[test]
    fn keys_join_those_of_the_owners_text() {
        let keys = [kept("ssh-ed25519 AAAA me"), kept("ssh-rsa BBBB")];
        let merged = |text: Option<&str>| with_keys(text.map(str::to_owned), &keys);
        let told = |text: Option<&str>| UserConfig::of(merged(text).as_deref()).ssh_authorized_keys;
        for text in [None, Some(""), Some("{}"), Some(r#"{"ssh_authorized_keys":["ssh-ed25519 AAAA other"]}"#)] {
            assert_eq!(told(text).len(), 2, "{text:?}");
        }
        assert_eq!(told(Some(r#"{"ssh_authorized_keys":["ssh-ed25519 CCCC"]}"#)).len(), 3);
        let kept = merged(Some(r#"{"hostname":"a","other":[1.50,{"z":1,"a":2}]}"#)).expect("a text");
        assert!(kept.contains(r#""hostname":"a""#) && kept.contains(r#""other":[1.5"#), "{kept}");
        // Not ours to change.
        for text in ["words", "[1]", "7", r#"{"ssh_authorized_keys":"none"}"#] {
            assert_eq!(merged(Some(text)).as_deref(), Some(text));
        }
        assert_eq!(with_keys(None, &[]), None);
        assert_eq!(with_keys(Some(" {} ".to_owned()), &[]).as_deref(), Some(" {} "));
    }
}
