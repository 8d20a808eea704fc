//! The official command line client, at the version in `tests/clients/package-lock.json`.
//!
//! The one rule: it never sees the home folder of whoever runs the tests, and never asks a network for updates.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use holdfast_harness::until;
use serde_json::Value;
use tempfile::TempDir;

use crate::cloud::{Cloud, SOON};

pub struct Phala {
    home: TempDir,
    program: PathBuf,
    url: String,
    key: String,
}

/// What a command printed, and whether it succeeded.
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Phala {
    pub fn new(cloud: &Cloud) -> Self {
        Self::with_key(cloud, &cloud.client.key)
    }

    /// One that somebody else's key is given to.
    pub fn with_key(cloud: &Cloud, key: &str) -> Self {
        let program = crate::root().join("tests/clients/node_modules/phala/dist/index.js");
        assert!(program.is_file(), "the client is not installed; run `cargo xtask test simulated`, which does it");
        let home = tempfile::tempdir().expect("a home folder");
        Self { home, program, url: format!("{}/api/v1", cloud.client.base), key: key.to_owned() }
    }

    /// Runs `phala` with the key in its environment.
    pub fn try_run(&self, args: &[&str]) -> Said {
        self.said(self.command(args).env("PHALA_CLOUD_API_PREFIX", &self.url).env("PHALA_CLOUD_API_KEY", &self.key))
    }

    /// Runs `phala` with nothing but what it stored in its home folder.
    pub fn try_run_logged_in(&self, args: &[&str]) -> Said {
        self.said(&mut self.command(args))
    }

    /// Runs `phala`, which must succeed; answers what it printed.
    pub fn run(&self, args: &[&str]) -> String {
        let said = self.try_run(args);
        assert!(said.ok, "phala {}\n{}{}", args.join(" "), said.out, said.err);
        said.out
    }

    /// The same for a command whose output ends with a JSON document.
    pub fn json(&self, args: &[&str]) -> Value {
        let out = self.run(args);
        let start = out.find(['{', '[']).unwrap_or_else(|| panic!("phala {}: no JSON in {out}", args.join(" ")));
        serde_json::from_str(out[start..].trim()).unwrap_or_else(|e| panic!("phala {}: {e} in {out}", args.join(" ")))
    }

    /// Starts a command that goes on until it is ended, such as `logs -f`.
    pub fn follow(&self, args: &[&str]) -> Following {
        let mut command = self.command(args);
        command.env("PHALA_CLOUD_API_PREFIX", &self.url).env("PHALA_CLOUD_API_KEY", &self.key);
        Following::start(command)
    }

    /// The same with nothing but what it stored in its home folder.
    pub fn follow_logged_in(&self, args: &[&str]) -> Following {
        Following::start(self.command(args))
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("node");
        command
            .arg(&self.program)
            .args(args)
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("CI", "1")
            .env("NO_COLOR", "1")
            .env("PHALA_DISABLE_UPDATE_CHECK", "1");
        command
    }

    fn said(&self, command: &mut Command) -> Said {
        let Output { status, stdout, stderr } = command.output().expect("node runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { ok: status.success(), out: text(stdout), err: text(stderr) }
    }

    /// Where it stores what it is told, and looks for a compose file.
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }
}

/// A command that is running; dropping it ends it.
pub struct Following {
    node: Child,
    told: Arc<Mutex<Vec<u8>>>,
}

impl Following {
    fn start(mut command: Command) -> Self {
        let mut node = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("node runs");
        let told = Arc::new(Mutex::new(Vec::new()));
        let readers: [Box<dyn Read + Send>; 2] =
            [Box::new(node.stdout.take().expect("a pipe")), Box::new(node.stderr.take().expect("a pipe"))];
        for mut reader in readers {
            let told = Arc::clone(&told);
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = reader.read(&mut buffer) {
                    told.lock().expect("no panic").extend_from_slice(&buffer[..count]);
                }
            });
        }
        Self { node, told }
    }

    /// Everything that it told so far, whatever stream it used.
    pub fn told(&self) -> String {
        String::from_utf8_lossy(&self.told.lock().expect("no panic")).into_owned()
    }

    /// Waits until it has told this, and fails when it ends before.
    pub fn wait_for(&mut self, text: &str) {
        let seen = until(SOON, &format!("it tells {text:?}"), || {
            let is_told = self.told().contains(text);
            assert!(is_told || self.node.try_wait()?.is_none(), "it ended: {}", self.told());
            Ok(is_told.then_some(()))
        });
        seen.unwrap_or_else(|e| panic!("{e}: {}", self.told()));
    }
}

impl Following {
    /// Waits until it is over; whether it succeeded.
    pub fn wait(&mut self) -> bool {
        let over = until(SOON, "it ends", || Ok(self.node.try_wait()?));
        over.unwrap_or_else(|e| panic!("{e}: {}", self.told())).success()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}
