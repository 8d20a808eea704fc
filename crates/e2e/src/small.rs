//! A disk that is soon full.
//!
//! The one rule: dropping it takes it away again, whatever still lies on it or has it open.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A file system in memory, mounted below `/tmp`.
pub struct Small(TempDir);

impl Small {
    /// `None`, and said so, when the caller is not root: nobody else can mount.
    pub fn mount(megabytes: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a small disk");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("hfs").tempdir_in("/tmp").expect("/tmp is writable");
        let small = Self(folder);
        small.tell("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "holdfast-small"]);
        Some(small)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes it larger.
    pub fn grow(&self, megabytes: u32) {
        self.tell("mount", &["-o", &format!("remount,size={megabytes}m")]);
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut file = fs::File::options().create(true).append(true).open(self.ballast()).expect("a file");
        let block = vec![b'x'; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        while file.write_all(b"x").is_ok() {}
    }

    /// Gives it back.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    fn tell(&self, program: &str, args: &[&str]) {
        let status = Command::new(program).args(args).arg(self.path()).status();
        assert!(status.as_ref().is_ok_and(|s| s.success()), "{program} {args:?}: {status:?}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}
