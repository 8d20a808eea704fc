//! What the node keeps on disk about each VM: what is wanted, and what runs it.
//!
//! The one rule: a record is written whole and atomically, before the act that it announces. It holds no secret: env values
//! are ciphertext and keys never come near it.
//!
//! Two layouts: a folder per VM whose files are replaced by renaming, with fsync (real VMs, that must survive a power cut),
//! and one file per VM that lines are appended to, without (simulated ones, that must survive only a kill: there a new file
//! for each change was most of what a simulated operation cost).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_model::guest::BootError;
use holdfast_model::node::DesiredVm;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The process that runs a VM. The start time tells it from a later process with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks after the host's boot, as in `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// How far a machine's life is, as it was last written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Not started, or ended by us.
    #[default]
    Off,
    /// About to be started; a process may or may not exist.
    Starting,
    On,
    /// Being ended by us: when it is gone, that was no accident.
    Stopping,
    /// Ended by itself.
    Died,
}

/// What the guest last said of itself, kept so that a restarted node does not forget it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// The agent has answered since the machine was started.
    pub agent: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_progress: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_error: Option<BootError>,
    /// The generation that the two speak of.
    #[serde(default)]
    pub app_revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown_progress: Option<String>,
}

/// What runs a VM, or ran it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    pub life: Life,
    /// Epoch of the last start; 0 before the first.
    pub epoch: u64,
    /// Automatic restarts in that epoch.
    pub restarts: u32,
    /// The host's boot id at that start.
    pub host_boot_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
    /// It died in good order: the guest powered itself off.
    #[serde(default)]
    pub clean: bool,
    #[serde(default)]
    pub guest: GuestView,
}

/// All that is kept of one VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub desired: Arc<DesiredVm>,
    #[serde(default)]
    pub runtime: Runtime,
}

/// Lines are appended to a file of this many bytes at the most.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `<dir>/<uuid>/desired.json` and `runtime.json`, with fsync.
    Folders,
    /// `<dir>/<uuid>.ndjson`, without. The last whole line holds.
    Files,
}

/// What [`Records::load`] found.
#[derive(Debug, Default)]
pub struct Found {
    pub records: Vec<Record>,
    /// Traces of VMs without a readable desired state. They are left alone.
    pub orphans: Vec<(PathBuf, String)>,
}

/// The records of one node.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
    layout: Layout,
}

impl Records {
    /// Makes `dir`, readable by its owner alone.
    pub fn open(dir: PathBuf, layout: Layout) -> io::Result<Self> {
        private_dir(&dir)?;
        Ok(Self { dir, layout })
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Folder of one VM ([`Layout::Folders`]).
    pub fn folder(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(uuid.to_string())
    }

    fn file(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.ndjson"))
    }

    /// Reads everything and finishes removals that were interrupted.
    pub fn load(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            if name.ends_with(".removing") {
                remove_all(&path)?;
                continue;
            }
            if name.ends_with(".new") {
                fs::remove_file(&path)?;
                continue;
            }
            let record = match self.layout {
                Layout::Folders => read_folder(&path),
                Layout::Files => read_last(&path),
            };
            match record {
                // It was killed before it had written what is wanted, so nobody was told of this VM.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => fs::remove_file(&path)?,
                Ok(record) if name.starts_with(&record.desired.uuid.to_string()) => found.records.push(record),
                Ok(record) => found.orphans.push((path, format!("it describes VM {}", record.desired.uuid))),
                Err(error) => found.orphans.push((path, error.to_string())),
            }
        }
        Ok(found)
    }

    /// Writes what is wanted. The VM exists on this node from here on.
    pub fn save_desired(&self, record: &Record) -> io::Result<()> {
        holdfast_failpoint::hit("record.desired.before");
        let saved = match self.layout {
            Layout::Folders => {
                let folder = self.folder(record.desired.uuid);
                if !folder.exists() {
                    private_dir(&folder)?;
                    sync_dir(&self.dir)?;
                }
                write_durable(&folder.join("desired.json"), &*record.desired)
            }
            Layout::Files => self.write_file(record),
        };
        holdfast_failpoint::hit("record.desired.after");
        saved
    }

    /// Writes what runs it. `durable` is for what must not be forgotten in a power cut.
    pub fn save_runtime(&self, record: &Record, durable: bool) -> io::Result<()> {
        // What is not worth an fsync is not worth a file either: a simulated guest follows from its start.
        if self.layout == Layout::Files && !durable {
            return Ok(());
        }
        holdfast_failpoint::hit("record.runtime.before");
        let saved = match self.layout {
            Layout::Folders => {
                let path = self.folder(record.desired.uuid).join("runtime.json");
                if durable { write_durable(&path, &record.runtime) } else { write_quick(&path, &record.runtime) }
            }
            Layout::Files => self.write_file(record),
        };
        holdfast_failpoint::hit("record.runtime.after");
        saved
    }

    fn write_file(&self, record: &Record) -> io::Result<()> {
        append(&self.file(record.desired.uuid), record)
    }

    /// Deletes everything of a VM, its disks included. Repeatable, and finished by [`Records::load`] when interrupted.
    pub fn remove(&self, uuid: Uuid) -> io::Result<()> {
        match self.layout {
            Layout::Folders => {
                let folder = self.folder(uuid);
                let doomed = self.dir.join(format!("{uuid}.removing"));
                if doomed.exists() {
                    remove_all(&doomed)?;
                }
                match fs::rename(&folder, &doomed) {
                    Ok(()) => sync_dir(&self.dir)?,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(e) => return Err(e),
                }
                holdfast_failpoint::hit("record.remove.renamed");
                remove_all(&doomed)
            }
            Layout::Files => match fs::remove_file(self.file(uuid)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            },
        }
    }
}

fn read_folder(folder: &Path) -> io::Result<Record> {
    let desired: Arc<DesiredVm> = Arc::new(read_json(&folder.join("desired.json"))?);
    let runtime = match read_json(&folder.join("runtime.json")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Runtime::default(),
        other => other?,
    };
    Ok(Record { desired, runtime })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The last line that is whole. What comes after it was being written when the process was killed, and is cut off.
fn read_last<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    let text = fs::read(path)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if whole < text.len() {
        fs::OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
    }
    let last = text[..whole].split(|byte| *byte == b'\n').rev().find(|line| !line.is_empty());
    serde_json::from_slice(last.ok_or(io::ErrorKind::UnexpectedEof)?)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Adds a line with what holds from now on. A file that grew long is replaced by one with this line alone.
fn append(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let length = file.metadata()?.len();
    if length > LONGEST {
        let (temporary, named) = temporary(path)?;
        (&temporary).write_all(&line)?;
        return fs::rename(named, path);
    }
    // What a full disk took of it must not stand before the next line.
    file.write_all(&line).inspect_err(|_| drop(file.set_len(length)))
}

/// Makes a folder that only its owner may enter, with its parents.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let temporary = path.with_extension("json.new");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    Ok((file, temporary))
}

fn write_temporary(path: &Path, value: &impl Serialize) -> io::Result<(File, PathBuf)> {
    let (mut file, temporary) = temporary(path)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    Ok((file, temporary))
}

fn write_quick(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let (_, temporary) = write_temporary(path, value)?;
    holdfast_failpoint::hit("record.write.unnamed");
    fs::rename(temporary, path)
}

/// As [`write_quick`], and on the medium when this returns.
pub(crate) fn write_durable(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let (file, temporary) = write_temporary(path, value)?;
    file.sync_all()?;
    holdfast_failpoint::hit("record.write.unnamed");
    fs::rename(temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use holdfast_model::vm::{RunState, StopMode};

    use super::*;

    fn record(generation: u64) -> Record {
        let desired = DesiredVm {
            uuid: Uuid::new_v4(),
            generation,
            run_state: RunState::Stopped,
            stop: StopMode::Hard,
            boot_epoch: 1,
            spec: None,
        };
        Record { desired: Arc::new(desired), runtime: Runtime { epoch: 7, ..Runtime::default() } }
    }

    #[test]
    fn both_layouts_keep_and_remove() {
        for layout in [Layout::Folders, Layout::Files] {
            let dir = tempfile::tempdir().expect("a folder");
            let records = Records::open(dir.path().join("vms"), layout).expect("open");
            let record = record(3);
            records.save_desired(&record).expect("save");
            records.save_runtime(&record, true).expect("save");
            let found = records.load().expect("load");
            assert_eq!(found.records.len(), 1);
            assert_eq!(found.records[0].desired, record.desired);
            assert_eq!(found.records[0].runtime, record.runtime);
            records.remove(record.desired.uuid).expect("remove");
            records.remove(record.desired.uuid).expect("remove again");
            assert_eq!(fs::read_dir(dir.path().join("vms")).expect("list").count(), 0);
        }
    }

    #[test]
    fn the_last_whole_line_of_a_file_holds() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path().to_owned(), Layout::Files).expect("open");
        let first = record(1);
        let mut second = first.clone();
        second.runtime.epoch = 8;
        records.save_desired(&first).expect("save");
        let path = records.file(first.desired.uuid);
        let one = fs::read(&path).expect("a file").len();
        records.save_runtime(&second, true).expect("save");
        let both = fs::read(&path).expect("a file");
        for cut in 0..=both.len() {
            fs::write(&path, &both[..cut]).expect("a file");
            let found = records.load().expect("load");
            let epochs: Vec<u64> = found.records.iter().map(|found| found.runtime.epoch).collect();
            let expected = match cut {
                _ if cut < one => vec![],
                _ if cut < both.len() => vec![7],
                _ => vec![8],
            };
            assert_eq!((epochs, found.orphans), (expected, vec![]), "cut at {cut}");
            records.save_runtime(&second, true).expect("it goes on");
            assert_eq!(records.load().expect("load").records[0].runtime.epoch, 8, "cut at {cut}");
        }
    }

    #[test]
    fn a_file_that_grew_long_is_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path().to_owned(), Layout::Files).expect("open");
        let record = record(1);
        records.save_desired(&record).expect("save");
        let path = records.file(record.desired.uuid);
        let line = fs::read(&path).expect("a file");
        fs::write(&path, line.repeat(usize::try_from(LONGEST).expect("a size") / line.len() + 1)).expect("a file");
        records.save_runtime(&record, true).expect("save");
        assert_eq!(fs::read(&path).expect("a file"), line);
        assert_eq!(records.load().expect("load").records.len(), 1);
    }

    #[test]
    fn an_interrupted_removal_is_finished_and_an_orphan_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path().to_owned(), Layout::Folders).expect("open");
        let half = dir.path().join(format!("{}.removing", Uuid::new_v4()));
        let orphan = records.folder(Uuid::new_v4());
        for folder in [&half, &orphan] {
            private_dir(folder).expect("mkdir");
            fs::write(folder.join("data.qcow2"), b"x").expect("write");
        }
        let found = records.load().expect("load");
        assert!(found.records.is_empty());
        assert_eq!(found.orphans.len(), 1);
        assert!(!half.exists() && orphan.join("data.qcow2").exists());
    }

    #[test]
    fn folders_are_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let records = Records::open(dir.path().join("vms"), Layout::Folders).expect("open");
        let record = record(1);
        records.save_desired(&record).expect("save");
        let mode = |p: &Path| fs::metadata(p).expect("stat").permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("vms")), 0o700);
        assert_eq!(mode(&records.folder(record.desired.uuid)), 0o700);
        assert_eq!(mode(&records.folder(record.desired.uuid).join("desired.json")), 0o600);
    }
}
