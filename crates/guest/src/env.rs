//! The app's env values, from ciphertext to the processes that need them.
//!
//! The one rule: a value is in this process, in tmpfs and in the app, nowhere else. Text that leaves the guest through an
//! error goes through [`Env::mask`] first.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use holdfast_trust::env::decrypt;
use zeroize::{Zeroize, Zeroizing};

use crate::credentials::DOCKER_CONFIG;
use crate::engine::DOCKER_HOST;

/// Shorter values are no secrets, and masking them would make any text unreadable.
const MASKED_FROM: usize = 4;
const MASK: &str = "****";

/// Names and values, in the client's order; wiped when dropped.
#[derive(Default)]
pub struct Env {
    values: Vec<(String, String)>,
}

impl Drop for Env {
    fn drop(&mut self) {
        for (_, value) in &mut self.values {
            value.zeroize();
        }
    }
}

impl Env {
    /// Decrypts, and drops every name that the compose file's author did not allow.
    pub fn open(env_key: &[u8; 32], encrypted: Option<&str>, allowed: &[String]) -> Result<Self, String> {
        let Some(encrypted) = encrypted.filter(|e| !e.is_empty()) else { return Ok(Self::default()) };
        let blob = hex::decode(encrypted.trim_start_matches("0x")).map_err(|_| "the encrypted env is not hex")?;
        let values = decrypt(env_key, &blob).map_err(|e| e.to_string())?;
        let mut env = Self { values };
        env.values.retain_mut(|(name, value)| {
            let kept = allowed.contains(name) && is_name(name) && !value.contains('\0');
            if !kept {
                value.zeroize();
            }
            kept
        });
        Ok(env)
    }

    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Takes what a pre-launch script exported over: new names, and new values of old ones.
    pub fn absorb(&mut self, printed: &[u8]) {
        for entry in printed.split(|b| *b == 0) {
            let Some((name, value)) = std::str::from_utf8(entry).ok().and_then(|e| e.split_once('=')) else { continue };
            if matches!(name, "_" | "PWD" | "OLDPWD" | "SHLVL" | "PATH" | "HOME") || !is_name(name) {
                continue;
            }
            if matches!((name, value), ("DOCKER_HOST", DOCKER_HOST) | ("DOCKER_CONFIG", DOCKER_CONFIG)) {
                // Said to the script by us.
                continue;
            }
            match self.values.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => {
                    known.zeroize();
                    value.clone_into(known);
                }
                None => self.values.push((name.to_owned(), value.to_owned())),
            }
        }
    }

    /// Writes what `docker compose --env-file` reads; the folder must be tmpfs.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut text = Zeroizing::new(String::new());
        for (name, value) in self.pairs() {
            text.push_str(name);
            text.push('=');
            quote(value, &mut text);
            text.push('\n');
        }
        let _ = std::fs::remove_file(path);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    }

    /// Replaces every value, and every line of a longer one, in text that others will read.
    pub fn mask(&self, text: &str) -> String {
        let mut parts: Vec<String> = Vec::new();
        for (_, value) in self.pairs() {
            parts.push(value.to_owned());
            parts.extend(value.lines().map(|line| line.trim().to_owned()));
            // As a program quotes it in an error.
            parts.push(value.escape_default().to_string());
            parts.push(serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned());
        }
        parts.retain(|part| part.len() >= MASKED_FROM);
        // The longest first, so that no rest of a value stays.
        parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
        let masked = parts.iter().fold(text.to_owned(), |text, part| text.replace(part.as_str(), MASK));
        parts.iter_mut().for_each(Zeroize::zeroize);
        masked
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Single quotes keep everything as it is; a value that holds one goes into double quotes with escapes.
fn quote(value: &str, out: &mut String) {
    if !value.contains('\'') {
        out.push('\'');
        out.push_str(value);
        out.push('\'');
        return;
    }
    out.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' | '$' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        Env { values: pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect() }
    }

    #[test]
    fn only_allowed_names_come_through() {
        let root = holdfast_trust::kms::Root::from_seed(&[5; 32]).env_key(&[6; 20]);
        let pairs: Vec<_> =
            [("A", "one"), ("B", "two"), ("BAD-NAME", "x")].map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        let blob = hex::encode(holdfast_trust::env::encrypt(&root.public, &pairs).unwrap());
        let allowed = ["A".to_owned(), "BAD-NAME".to_owned(), "C".to_owned()];
        let opened = Env::open(&root.secret, Some(&blob), &allowed).unwrap();
        assert_eq!(opened.pairs().collect::<Vec<_>>(), [("A", "one")]);
        assert!(Env::open(&[1; 32], Some(&blob), &allowed).is_err());
        assert!(Env::open(&root.secret, None, &allowed).unwrap().values.is_empty());
        assert!(Env::open(&root.secret, Some("zz"), &allowed).is_err());
    }

    #[test]
    fn values_do_not_leave_through_errors() {
        let env =
            env(&[("A", "hunter2-secret"), ("B", "hunter2"), ("C", "two\nlines here"), ("D", "x"), ("E", "q\"uo\\te")]);
        let text = "bad hunter2-secret and hunter2, \"two\\nlines here\", lines here, q\\\"uo\\\\te; x stays";
        assert_eq!(env.mask(text), "bad **** and ****, \"****\", ****, ****; x stays");
    }

    #[test]
    fn a_script_may_add_and_change() {
        let mut env = env(&[("A", "old")]);
        env.absorb(b"A=new\0B=with=sign\nand line\0PATH=/x\0_=y\0DOCKER_HOST=unix:///run/docker.sock\0");
        assert_eq!(env.pairs().collect::<Vec<_>>(), [("A", "new"), ("B", "with=sign\nand line")]);
    }

    #[test]
    fn quoting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        env(&[("A", "a b $c"), ("B", "it's \"$5\"\n"), ("C", "")]).write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "A='a b $c'\nB=\"it's \\\"\\$5\\\"\\n\"\nC=''\n");
    }
}
