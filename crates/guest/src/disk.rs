//! The data disk: LUKS2 with ext4 inside, keyed by the server.
//!
//! The one rule: only a disk that has never held anything is formatted. That is one whose first bytes are all zero, or one
//! that still carries [`NEW`], the label it has between its encryption and the end of its first mkfs. Whatever else does not
//! open (a wrong key, a damaged header) is an error, and stays as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use zeroize::Zeroizing;

use crate::initramfs::{attach, disk_with_serial};
use crate::process;
use crate::tail::Tail;

/// Where the app's data and docker's are.
pub const MOUNT: &str = "/data";
const MAPPED: &str = "/dev/mapper/data";
/// Label of an encrypted disk without a file system yet, and of a finished one.
const NEW: &str = "holdfast-new";
const READY: &str = "holdfast";
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
/// Chosen by measurement, see ADR 0010.
const CIPHER: &str = "aes-xts-plain64";
const KEY_BITS: &str = "512";
const MODULES: &[&[&str]] = &[&["dm-crypt", "aesni-intel", "xts", "algif_skcipher"]];
/// A disk with only zeros in its first bytes was never written.
const BLANK: usize = 1024 * 1024;

/// What the first bytes of the disk say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Blank,
    /// Encrypted, but its file system was never finished.
    Unfinished,
    Ready,
    /// Somebody else's, or damaged.
    Foreign,
}

/// The disk before it is opened.
pub struct Disk {
    device: String,
    found: Found,
}

/// Looks for the disk and what is on it.
pub fn find() -> Result<Disk, String> {
    let device = disk_with_serial("data", Duration::from_secs(10)).ok_or("the VM has no data disk")?;
    let mut head = vec![0; BLANK];
    let mut file = File::open(&device).map_err(|e| format!("data disk: {e}"))?;
    file.read_exact(&mut head).map_err(|e| format!("data disk: {e}"))?;
    Ok(Disk { device: device.to_string_lossy().into_owned(), found: examine(&head) })
}

fn examine(head: &[u8]) -> Found {
    if head.iter().all(|b| *b == 0) {
        return Found::Blank;
    }
    // LUKS2: magic, version, header size, sequence number, then the label of 48 bytes.
    let Some(label) = head.get(24..72).filter(|_| head.starts_with(MAGIC)) else { return Found::Foreign };
    let label = label.split(|b| *b == 0).next().unwrap_or_default();
    match std::str::from_utf8(label) {
        Ok(NEW) => Found::Unfinished,
        Ok(READY) => Found::Ready,
        _ => Found::Foreign,
    }
}

impl Disk {
    /// True when [`Disk::open`] will format it.
    pub fn is_new(&self) -> bool {
        matches!(self.found, Found::Blank | Found::Unfinished)
    }

    /// Encrypts and formats a new disk.
    pub fn prepare(&self, key: &[u8; 32]) -> Result<(), String> {
        cryptsetup(
            &[
                "luksFormat",
                "--batch-mode",
                "--type",
                "luks2",
                "--cipher",
                CIPHER,
                "--key-size",
                KEY_BITS,
                "--hash",
                "sha256",
                "--pbkdf",
                "pbkdf2",
                "--pbkdf-force-iterations",
                "1000",
                "--sector-size",
                "4096",
                "--luks2-metadata-size",
                "16k",
                "--luks2-keyslots-size",
                "512k",
                "--label",
                NEW,
                "--use-urandom",
                "--key-file",
                "-",
                &self.device,
            ],
            Some(key),
        )?;
        self.unlock(key)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args([
            "-q",
            "-F",
            "-m",
            "1",
            "-L",
            "holdfast-data",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
            MAPPED,
        ]);
        process::output(&mut mkfs).map_err(|e| e.to_string())?;
        rustix::fs::sync();
        cryptsetup(&["config", "--batch-mode", "--label", READY, &self.device], None)
    }

    /// Opens a disk that was prepared earlier.
    pub fn open(&self, key: &[u8; 32]) -> Result<(), String> {
        match self.found {
            Found::Ready => self.unlock(key),
            _ => Err("the data disk holds something that is not ours, or its header is damaged; it was left as it is"
                .to_owned()),
        }
    }

    fn unlock(&self, key: &[u8; 32]) -> Result<(), String> {
        cryptsetup(
            &[
                "open",
                "--type",
                "luks2",
                "--perf-no_read_workqueue",
                "--perf-no_write_workqueue",
                "--key-file",
                "-",
                &self.device,
                "data",
            ],
            Some(key),
        )
    }

    /// Mounts the opened disk, repaired and grown if it needs to be.
    pub fn mount(&self) -> Result<(), String> {
        let super_block = SuperBlock::read(Path::new(MAPPED)).map_err(|e| format!("data disk: {e}"))?;
        if super_block.has_errors {
            let tail = Arc::new(Tail::new(16 * 1024));
            let code = process::run(Command::new("e2fsck").args(["-p", MAPPED]), &tail).map_err(|e| e.to_string())?;
            if code > 2 {
                return Err(format!("the data disk's file system cannot be repaired.\n{}", tail.last_lines(5)));
            }
        }
        // The tables of unused inodes stay unwritten: zeroing them would encrypt and store hundreds of megabytes.
        attach(MAPPED, MOUNT, "ext4", MountFlags::NODEV | MountFlags::NOATIME, "noinit_itable")?;
        let size = OpenOptions::new().read(true).open(MAPPED).and_then(|mut d| d.seek(SeekFrom::End(0))).unwrap_or(0);
        if size > super_block.bytes + 1024 * 1024 {
            process::output(Command::new("resize2fs").arg(MAPPED))
                .map_err(|e| format!("growing the data disk: {e}"))?;
        }
        Ok(())
    }
}

/// Unmounts and forgets the key. What cannot be unmounted is made read-only, so that its journal is clean.
pub fn close() {
    rustix::fs::sync();
    for _ in 0..20 {
        match rustix::mount::unmount(MOUNT, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(Duration::from_millis(50)),
            _ => break,
        }
    }
    let _ = rustix::mount::mount_remount(MOUNT, MountFlags::RDONLY, c"");
}

fn cryptsetup(arguments: &[&str], key: Option<&[u8; 32]>) -> Result<(), String> {
    let mut command = Command::new("cryptsetup");
    command.args(arguments).env("DM_DISABLE_UDEV", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let tail = Arc::new(Tail::new(16 * 1024));
    let mut child = process::spawn(&mut command).map_err(|e| e.to_string())?;
    if let (Some(mut stdin), Some(key)) = (child.stdin.take(), key) {
        stdin.write_all(key).map_err(|e| format!("cryptsetup: {e}"))?;
    }
    let child = process::follow(child, &tail);
    let code = child.wait();
    tail.settle(Duration::from_millis(200));
    match code {
        0 => Ok(()),
        2 => Err("the data disk does not open with this app's key; it was left as it is".to_owned()),
        code => Err(format!("cryptsetup {} ended with {code}: {}", arguments[0], tail.last_lines(5))),
    }
}

/// 64 hex digits of the protocol as bytes that are wiped.
pub fn key_bytes(hex: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(hex, &mut key[..]).ok().map(|()| key)
}

/// The little of an ext4 superblock that a mount decides by.
struct SuperBlock {
    bytes: u64,
    has_errors: bool,
}

impl SuperBlock {
    fn read(device: &Path) -> std::io::Result<Self> {
        let mut block = [0; 1024];
        let mut file = File::open(device)?;
        file.seek(SeekFrom::Start(1024))?;
        file.read_exact(&mut block)?;
        Self::parse(&block).ok_or_else(|| std::io::Error::other("no ext4 file system inside"))
    }

    fn parse(block: &[u8; 1024]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        if half(0x38) != 0xef53 || word(0x18) > 6 {
            return None;
        }
        let blocks = u64::from(word(0x04)) | u64::from(word(0x150)) << 32;
        Some(Self { bytes: blocks.checked_mul(1024 << word(0x18))?, has_errors: half(0x3a) & 2 != 0 })
    }
}

/// Makes the kernel know the modules that LUKS needs, before the key is here.
pub fn warm_up() {
    let _ = fs::create_dir_all("/dev/mapper");
    for module in MODULES {
        let _ = process::output(Command::new("modprobe").arg("-a").args(*module));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luks(label: &str) -> Vec<u8> {
        let mut head = vec![0; BLANK];
        head[..6].copy_from_slice(MAGIC);
        head[24..24 + label.len()].copy_from_slice(label.as_bytes());
        head
    }

    #[test]
    fn only_what_was_never_used_counts_as_new() {
        assert_eq!(examine(&vec![0; BLANK]), Found::Blank);
        assert_eq!(examine(&luks(NEW)), Found::Unfinished);
        assert_eq!(examine(&luks(READY)), Found::Ready);
        assert_eq!(examine(&luks("mine")), Found::Foreign);
        let mut one_byte = vec![0; BLANK];
        one_byte[BLANK - 1] = 1;
        assert_eq!(examine(&one_byte), Found::Foreign);
        assert_eq!(examine(&[1, 2, 3]), Found::Foreign);
    }

    #[test]
    fn keys_are_64_hex_digits() {
        assert_eq!(key_bytes(&"0f".repeat(32)).unwrap()[..], [15; 32]);
        for bad in ["", "0f", &"0g".repeat(32), &"0f".repeat(33)] {
            assert!(key_bytes(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_superblock() {
        let mut block = [0; 1024];
        assert!(SuperBlock::parse(&block).is_none());
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        block[0x04..0x08].copy_from_slice(&1000u32.to_le_bytes());
        block[0x18] = 2;
        block[0x3a] = 2;
        let parsed = SuperBlock::parse(&block).unwrap();
        assert_eq!((parsed.bytes, parsed.has_errors), (4_096_000, true));
    }
}
