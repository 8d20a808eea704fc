//! Revisions of a VM: everything of it that can change, what a change means for the VM, and what is said of it.
//!
//! Revision 1 is what a create made; each accepted update adds one. Which of them is in force is the VM's business: an
//! update puts its own in force, and its undo the one before it.
//!
//! The one rule: a diff says what changed in names, numbers and hashes. Of an env it holds the names and that values were
//! replaced; ciphertext, scripts and free text are compared here and shown nowhere.

use holdfast_model::compose::AppCompose;
use holdfast_model::operation::{Diff, FieldDiff, Value};
use holdfast_model::vm::{PortChoice, PortMapping};

/// A revision, with all that comparing it with another needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revision {
    pub name: String,
    pub instance_type: Option<String>,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub image: String,
    pub os_image_hash: Option<String>,
    pub compose_hash: String,
    /// The bytes of app-compose.json.
    pub compose: String,
    /// Hex of the ciphertext.
    pub encrypted_env: Option<String>,
    pub env_names: Vec<String>,
    pub user_config: Option<String>,
    pub listed: bool,
    pub visibility: Visibility,
    pub shutdown: Shutdown,
    /// What of the compose file's ports is published, and what beside them.
    pub port_choice: PortChoice,
    /// What is published, on the host ports that the VM has for it; by port inside the VM.
    pub ports: Vec<PortMapping>,
}

/// Who may see what of a VM. `None`: as app-compose.json says, which stays what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Visibility {
    pub logs: Option<bool>,
    pub sysinfo: Option<bool>,
    pub tcbinfo: Option<bool>,
}

/// How a VM is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// Seconds that the guest gets to stop its app. `None`: as long as the server gives.
    pub timeout_s: Option<i64>,
    /// A guest that has not powered off by then is ended.
    pub force: bool,
}

/// What a change asks of the VM, from nothing to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Only the control plane knows it.
    Written,
    /// The running guest takes it over; nothing is restarted but containers that it changes.
    Live,
    /// A VM that runs has to start anew.
    Restart,
}

/// What an operation changes of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub effect: Effect,
    pub diff: Diff,
}

impl Change {
    /// `None` when the two are the same.
    pub fn between(old: &Revision, new: &Revision) -> Option<Self> {
        (old != new).then(|| Self { effect: effect(old, new), diff: diff(old, new) })
    }
}

impl Revision {
    /// `self` with everything that `done` changed of `base`: an update made again on what is in force by now.
    pub fn with_changes_of(self, base: &Self, done: &Self) -> Self {
        macro_rules! take {
            ($($field:ident),*) => {
                Self { $( $field: if done.$field == base.$field { self.$field } else { done.$field.clone() }, )* }
            };
        }
        take!(
            name,
            instance_type,
            vcpu,
            memory_mb,
            disk_gb,
            image,
            os_image_hash,
            compose_hash,
            compose,
            encrypted_env,
            env_names,
            user_config,
            listed,
            visibility,
            shutdown,
            port_choice,
            ports
        )
    }

    /// What the VM shows of itself: logs, system information, measurements.
    fn shows(&self) -> [(&'static str, bool); 3] {
        let compose = AppCompose::parse(&self.compose).ok();
        let of = |set: Option<bool>, said: fn(&AppCompose) -> bool| set.unwrap_or(compose.as_ref().is_some_and(said));
        [
            ("public_logs", of(self.visibility.logs, |c| c.public_logs)),
            ("public_sysinfo", of(self.visibility.sysinfo, |c| c.public_sysinfo)),
            ("public_tcbinfo", of(self.visibility.tcbinfo, |c| c.public_tcbinfo)),
        ]
    }

    /// app-compose.json apart from the names of the env that it allows.
    pub(crate) fn compose_but_envs(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        let mut parts: serde_json::Map<_, _> = serde_json::from_str(&self.compose).ok()?;
        parts.remove("allowed_envs");
        Some(parts)
    }

    fn allowed_envs(&self) -> Vec<String> {
        AppCompose::parse(&self.compose).map(|c| c.allowed_envs).unwrap_or_default()
    }

    /// As diffs show them: `host port:port inside the VM`.
    fn port_words(&self) -> Vec<String> {
        self.ports.iter().map(|p| format!("{}:{}", p.host_port, p.vm_port)).collect()
    }
}

fn effect(old: &Revision, new: &Revision) -> Effect {
    let machine = |r: &Revision| (r.vcpu, r.memory_mb, r.disk_gb, r.image.clone(), r.ports.clone());
    let app = |r: &Revision| (r.compose_hash.clone(), r.encrypted_env.clone(), r.user_config.clone());
    if machine(old) != machine(new) {
        Effect::Restart
    } else if app(old) != app(new) {
        Effect::Live
    } else {
        Effect::Written
    }
}

/// One entry for each field that differs.
fn diff(old: &Revision, new: &Revision) -> Diff {
    let mut diff = Diff::new();
    let mut put = |field: &str, from: Option<Value>, to: Option<Value>| {
        if from != to {
            diff.insert(field.to_owned(), FieldDiff { from, to });
        }
    };
    let text = |t: &str| Some(Value::from(t));
    put("name", text(&old.name), text(&new.name));
    put("instance_type", old.instance_type.clone().map(Value::from), new.instance_type.clone().map(Value::from));
    put("vcpu", Some(old.vcpu.into()), Some(new.vcpu.into()));
    put("memory_mb", Some(old.memory_mb.into()), Some(new.memory_mb.into()));
    put("disk_gb", Some(old.disk_gb.into()), Some(new.disk_gb.into()));
    put("image", text(&old.image), text(&new.image));
    put("os_image_hash", old.os_image_hash.clone().map(Value::from), new.os_image_hash.clone().map(Value::from));
    put("compose_hash", text(&old.compose_hash), text(&new.compose_hash));
    put("allowed_envs", Some(old.allowed_envs().into()), Some(new.allowed_envs().into()));
    put("ports", Some(old.port_words().into()), Some(new.port_words().into()));
    put("env", Some(old.env_names.clone().into()), Some(new.env_names.clone().into()));
    let replaced = |is: bool| Some(Value::from(is));
    put("env_values_replaced", replaced(false), replaced(old.encrypted_env != new.encrypted_env));
    put("user_config_replaced", replaced(false), replaced(old.user_config != new.user_config));
    put("listed", Some(old.listed.into()), Some(new.listed.into()));
    put("shutdown_timeout", old.shutdown.timeout_s.map(Value::from), new.shutdown.timeout_s.map(Value::from));
    put("allow_force_stop", Some(old.shutdown.force.into()), Some(new.shutdown.force.into()));
    for ((field, from), (_, to)) in old.shows().into_iter().zip(new.shows()) {
        put(field, Some(from.into()), Some(to.into()));
    }
    diff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision() -> Revision {
        let compose = r#"{"name":"a","runner":"bash","allowed_envs":["A"],"public_logs":true,"public_sysinfo":true}"#;
        Revision {
            name: "web".into(),
            vcpu: 1,
            memory_mb: 2048,
            disk_gb: 20,
            image: "os-1".into(),
            compose_hash: "aa".into(),
            compose: compose.into(),
            encrypted_env: Some("secret-1".into()),
            env_names: vec!["A".into()],
            user_config: Some("private words".into()),
            ..Revision::default()
        }
    }

    fn port(vm_port: u16) -> PortMapping {
        PortMapping { protocol: "tcp".into(), host_address: "127.0.0.1".into(), host_port: 20_000, vm_port }
    }

    #[test]
    fn what_a_change_asks_of_the_vm() {
        let effect = |change: &dyn Fn(&mut Revision)| {
            let mut new = revision();
            change(&mut new);
            Change::between(&revision(), &new).map(|c| c.effect)
        };
        assert_eq!(effect(&|_| ()), None);
        let written: [&dyn Fn(&mut Revision); 4] =
            [&|r| r.name = "other".into(), &|r| r.listed = true, &|r| r.visibility.logs = Some(false), &|r| {
                r.instance_type = Some("tdx.small".into())
            }];
        let live: [&dyn Fn(&mut Revision); 3] =
            [&|r| r.compose_hash = "bb".into(), &|r| r.encrypted_env = Some("secret-2".into()), &|r| {
                r.user_config = None
            }];
        let restart: [&dyn Fn(&mut Revision); 5] =
            [&|r| r.vcpu = 2, &|r| r.memory_mb = 4096, &|r| r.disk_gb = 40, &|r| r.image = "os-2".into(), &|r| {
                (r.compose_hash, r.ports) = ("bb".into(), vec![port(80)])
            }];
        for (effects, wanted) in [(&written[..], Effect::Written), (&live, Effect::Live), (&restart, Effect::Restart)] {
            for change in effects {
                assert_eq!(effect(change), Some(wanted));
            }
        }
    }

    #[test]
    fn a_diff_names_every_field_and_shows_no_secret() {
        let mut new = revision();
        new.vcpu = 2;
        new.ports = vec![port(80)];
        new.encrypted_env = Some("secret-2".into());
        new.env_names = vec!["A".into(), "B".into()];
        new.user_config = Some("other private words".into());
        new.compose = new.compose.replace("[\"A\"]", "[\"A\",\"B\"]");
        new.compose_hash = "bb".into();
        new.visibility.logs = Some(false);
        // Said in another place, but the same.
        new.visibility.sysinfo = Some(true);
        let diff = Change::between(&revision(), &new).expect("a change").diff;
        let fields: Vec<_> = diff.keys().map(String::as_str).collect();
        let all = ["allowed_envs", "compose_hash", "env", "env_values_replaced", "ports", "public_logs"];
        assert_eq!(fields, [&all[..], &["user_config_replaced", "vcpu"]].concat());
        let text = format!("{diff:?}");
        for word in ["secret", "private"] {
            assert!(!text.contains(word), "{text}");
        }
        assert_eq!(diff["vcpu"], FieldDiff { from: Some(1.into()), to: Some(2.into()) });
        assert_eq!(diff["ports"].to, Some(vec!["20000:80".to_owned()].into()));
    }

    #[test]
    fn an_update_is_made_again_on_what_is_there_now() {
        let base = revision();
        let done = Revision { vcpu: 4, ..revision() };
        let now = Revision { memory_mb: 8192, ..revision() };
        let again = now.with_changes_of(&base, &done);
        assert_eq!((again.vcpu, again.memory_mb), (4, 8192));
    }
}
