//! What of the env is for the guest itself, by dstack's names: the login of a private container registry, and who may log
//! in by SSH.
//!
//! The one rule: both are files in memory (`/run` is tmpfs, and so is every change to the root), and nothing of them is
//! ever said. A file is written when what is asked for changes, and taken away when it is not asked for any more; in between
//! it is left alone, because a script of the app may have logged in somewhere else by then.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use holdfast_model::guest::authorized_keys;
use zeroize::{Zeroize, Zeroizing};

use crate::env::Env;

/// Folder of docker's client configuration.
pub const DOCKER_CONFIG: &str = "/run/holdfast/docker";
const SSH: &str = "/root/.ssh";
/// What docker's client calls its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// What the files hold by now.
#[derive(Default)]
pub struct Credentials {
    login: Option<Zeroizing<String>>,
    keys: Option<Zeroizing<String>>,
}

impl Credentials {
    /// Makes the files as this env asks for them; `owner_keys` are the SSH keys that came without encryption.
    pub fn renew(&mut self, env: &Env, owner_keys: &[String]) -> Result<(), String> {
        renew(&mut self.login, registry_login(env), Path::new(DOCKER_CONFIG), "config.json")?;
        renew(&mut self.keys, ssh_keys(env, owner_keys), Path::new(SSH), "authorized_keys")
    }
}

type Text = Option<Zeroizing<String>>;

fn renew(held: &mut Text, wanted: Text, folder: &Path, name: &str) -> Result<(), String> {
    if *held != wanted {
        place(folder, name, wanted.as_ref().map(|text| text.as_str()))?;
        *held = wanted;
    }
    Ok(())
}

fn place(folder: &Path, name: &str, text: Option<&str>) -> Result<(), String> {
    let path = folder.join(name);
    let failed = |e: std::io::Error| format!("{}: {}", path.display(), e.kind());
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let Some(text) = text else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)
}

fn value<'a>(env: &'a Env, name: &str) -> Option<&'a str> {
    env.pairs().find(|(known, _)| *known == name).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
}

/// The `config.json` of docker's client; `None` unless both user and password are there.
fn registry_login(env: &Env) -> Option<Zeroizing<String>> {
    let (user, password) = (value(env, "DSTACK_DOCKER_USERNAME")?, value(env, "DSTACK_DOCKER_PASSWORD")?);
    let mut pair = format!("{user}:{password}");
    let auth = Zeroizing::new(BASE64.encode(&pair));
    pair.zeroize();
    let registry = registry(value(env, "DSTACK_DOCKER_REGISTRY").unwrap_or_default());
    // Only the registry's name may need escapes.
    let name = serde_json::to_string(&registry).ok()?;
    Some(Zeroizing::new(format!("{{\"auths\":{{{name}:{{\"auth\":\"{}\"}}}}}}", auth.as_str())))
}

/// The name under which docker's client looks for a registry's login.
fn registry(given: &str) -> String {
    let host = given.split_once("://").map_or(given, |(_, rest)| rest).split('/').next().unwrap_or_default();
    match host {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" | "hub.docker.com" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

fn ssh_keys(env: &Env, owner_keys: &[String]) -> Option<Zeroizing<String>> {
    let mut lines = owner_keys.to_vec();
    for key in value(env, "DSTACK_AUTHORIZED_KEYS").map(authorized_keys).unwrap_or_default() {
        if !lines.contains(&key) {
            lines.push(key);
        }
    }
    let mut text = Zeroizing::new(String::new());
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        let mut env = Env::default();
        for (name, value) in pairs {
            env.absorb(format!("{name}={value}\0").as_bytes());
        }
        env
    }

    #[test]
    fn a_login_needs_user_and_password_and_knows_its_registry() {
        let login = |registry: &str| {
            let pairs = [("DSTACK_DOCKER_USERNAME", "me"), ("DSTACK_DOCKER_PASSWORD", "pass:word")];
            let mut pairs = pairs.to_vec();
            pairs.push(("DSTACK_DOCKER_REGISTRY", registry));
            let text = registry_login(&env(&pairs)).expect("a login");
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let (name, entry) = value["auths"].as_object().unwrap().iter().next().unwrap();
            let auth = BASE64.decode(entry["auth"].as_str().unwrap()).unwrap();
            assert_eq!(auth, b"me:pass:word");
            name.clone()
        };
        for (given, name) in [
            ("", DOCKER_HUB),
            ("docker.io", DOCKER_HUB),
            ("https://index.docker.io/v1/", DOCKER_HUB),
            ("ghcr.io", "ghcr.io"),
            ("https://registry.example:5000/team/", "registry.example:5000"),
            ("we\"ird", "we\"ird"),
        ] {
            assert_eq!(login(given), name, "{given}");
        }
        assert!(registry_login(&env(&[("DSTACK_DOCKER_USERNAME", "me")])).is_none());
        assert!(registry_login(&env(&[("DSTACK_DOCKER_USERNAME", "me"), ("DSTACK_DOCKER_PASSWORD", " ")])).is_none());
    }

    #[test]
    fn keys_of_the_owner_and_of_the_env_come_together_once() {
        let env = env(&[("DSTACK_AUTHORIZED_KEYS", "ssh-ed25519 A\n# note\nssh-rsa B")]);
        let keys = ssh_keys(&env, &["ssh-ed25519 A".to_owned(), "ssh-ed25519 C".to_owned()]);
        assert_eq!(keys.expect("keys").as_str(), "ssh-ed25519 A\nssh-ed25519 C\nssh-rsa B\n");
        assert!(ssh_keys(&Env::default(), &[]).is_none());
    }

    #[test]
    fn files_are_for_root_alone_and_go_when_nobody_asks() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let text = |text: &str| Some(Zeroizing::new(text.to_owned()));
        let mut held = None;
        for asked in ["first", "second", "third"] {
            renew(&mut held, text(asked), &folder, "file").unwrap();
            assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), asked);
            assert_eq!(fs::metadata(folder.join("file")).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        }
        // What a script wrote over it stays while the same is asked for.
        fs::write(folder.join("file"), "logged in elsewhere").unwrap();
        renew(&mut held, text("third"), &folder, "file").unwrap();
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "logged in elsewhere");
        renew(&mut held, None, &folder, "file").unwrap();
        assert!(!folder.join("file").exists());
        fs::write(folder.join("file"), "logged in elsewhere").unwrap();
        renew(&mut held, None, &folder, "file").unwrap();
        assert!(folder.join("file").exists());
        renew(&mut held, None, &dir.path().join("never"), "file").unwrap();
        assert!(!dir.path().join("never").exists());
    }
}
