//! Guest images: folders in dstack's layout, found by name and checked before use.
//!
//! The one rule: nothing outside its own folder is ever opened for an image. Names are one plain path component, and the
//! files that `metadata.json` names must lie, after links are followed, inside the folder.

mod build;
mod cpio;
mod rootfs;

use std::fs;
use std::path::{Component, Path, PathBuf};

use holdfast_model::image::{ImageInfo, ImageMetadata};
use sha2::{Digest, Sha256};

pub use build::{Agent, BuildOptions, build, image_name};

const METADATA: &str = "metadata.json";
const SUMS: &str = "sha256sum.txt";
const DIGEST: &str = "digest.txt";
const MAX_TEXT: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no guest image {0:?}")]
    Missing(String),
    #[error("{0:?} is no name of an image: letters, digits, '_', '-' and '.', at most 64")]
    BadName(String),
    #[error("image {name:?}: {why}")]
    Invalid { name: String, why: String },
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{program} is not installed (Debian package {package})")]
    ToolMissing { program: &'static str, package: &'static str },
    #[error("{step} failed: {why}")]
    Build { step: &'static str, why: String },
    #[error("the build was cancelled")]
    Cancelled,
}

/// An image that can be started: every path exists and lies inside the folder.
#[derive(Debug, Clone)]
pub struct Image {
    pub info: ImageInfo,
    pub metadata: ImageMetadata,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub rootfs: Option<PathBuf>,
    pub bios: Option<PathBuf>,
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { what, path, source }
}

/// Every readable image of the folder, by name. A folder that is no image is left out.
pub fn list(image_dir: &Path) -> Result<Vec<ImageInfo>, ImageError> {
    let entries = match fs::read_dir(image_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io("reading", image_dir)(e)),
    };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut found: Vec<_> = names.filter_map(|name| load(image_dir, &name).ok()).map(|image| image.info).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Opens one image. The digest is checked against `sha256sum.txt`; [`verify`] checks the files against both.
pub fn load(image_dir: &Path, name: &str) -> Result<Image, ImageError> {
    check_name(name)?;
    let dir = image_dir.join(name);
    if !dir.join(METADATA).is_file() {
        return Err(ImageError::Missing(name.to_owned()));
    }
    let invalid = |why: String| ImageError::Invalid { name: name.to_owned(), why };
    let metadata: ImageMetadata =
        serde_json::from_str(&read_text(&dir.join(METADATA))?).map_err(|e| invalid(format!("{METADATA}: {e}")))?;
    let inside = |file: &str| inside(&dir, file).map_err(invalid);
    let kernel = inside(&metadata.kernel)?;
    let initrd = inside(&metadata.initrd)?;
    let rootfs = metadata.rootfs.as_deref().map(inside).transpose()?;
    let bios = metadata.bios.as_deref().map(inside).transpose()?;
    let os_image_hash = match dir.join(DIGEST).is_file() {
        true => {
            let digest = read_text(&dir.join(DIGEST))?.trim().to_owned();
            let sums = read_text(&dir.join(SUMS))?;
            if hex::encode(Sha256::digest(sums.as_bytes())) != digest {
                return Err(invalid(format!("{DIGEST} is not the digest of {SUMS}")));
            }
            Some(digest)
        }
        false => None,
    };
    let info =
        ImageInfo { name: name.to_owned(), version: metadata.version.clone(), is_dev: metadata.is_dev, os_image_hash };
    Ok(Image { info, metadata, kernel, initrd, rootfs, bios })
}

/// Reads every file that `sha256sum.txt` lists and compares. Takes as long as reading the disk image does.
pub fn verify(image_dir: &Path, name: &str) -> Result<(), ImageError> {
    let image = load(image_dir, name)?;
    let dir = image_dir.join(name);
    let invalid = |why: String| ImageError::Invalid { name: name.to_owned(), why };
    let sums = read_text(&dir.join(SUMS))?;
    let mut listed = Vec::new();
    for line in sums.lines() {
        let (sum, file) = line.split_once("  ").ok_or_else(|| invalid(format!("{SUMS}: a line without a name")))?;
        let path = inside(&dir, file).map_err(invalid)?;
        if file_digest(&path)? != sum {
            return Err(invalid(format!("{file} is not what {SUMS} says")));
        }
        listed.push(path);
    }
    let used = [Some(image.kernel), Some(image.initrd), image.rootfs, image.bios];
    match used.into_iter().flatten().find(|path| !listed.contains(path)) {
        Some(path) => Err(invalid(format!("{} is not in {SUMS}", path.display()))),
        None => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), ImageError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
        return Err(ImageError::BadName(name.to_owned()));
    }
    Ok(())
}

/// The path of `file` below `dir`, with links followed and shown to stay there.
fn inside(dir: &Path, file: &str) -> Result<PathBuf, String> {
    let plain = !file.is_empty() && Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
    if !plain {
        return Err(format!("{file:?} is not the name of a file in the folder"));
    }
    let root = dir.canonicalize().map_err(|e| format!("{e}"))?;
    let path = root.join(file).canonicalize().map_err(|e| format!("{file}: {e}"))?;
    match path.starts_with(&root) && path.is_file() {
        true => Ok(path),
        false => Err(format!("{file:?} leads out of the folder")),
    }
}

fn read_text(path: &Path) -> Result<String, ImageError> {
    let size = fs::metadata(path).map_err(io("reading", path))?.len();
    if size > MAX_TEXT {
        return Err(io("reading", path)(std::io::Error::other("larger than such a file ever is")));
    }
    fs::read_to_string(path).map_err(io("reading", path))
}

fn file_digest(path: &Path) -> Result<String, ImageError> {
    let mut file = fs::File::open(path).map_err(io("reading", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).map_err(io("reading", path))? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path, metadata: &str) {
        let folder = dir.join("an-image");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("kernel"), "k").unwrap();
        fs::write(folder.join("initrd"), "i").unwrap();
        fs::write(folder.join(METADATA), metadata).unwrap();
        let sums =
            format!("{}  kernel\n{}  initrd\n", hex::encode(Sha256::digest("k")), hex::encode(Sha256::digest("i")));
        fs::write(folder.join(DIGEST), hex::encode(Sha256::digest(&sums))).unwrap();
        fs::write(folder.join(SUMS), sums).unwrap();
    }

    #[test]
    fn a_good_image_is_found_and_verified() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
        image(dir.path(), r#"{"kernel":"kernel","initrd":"initrd","version":"1.2.3"}"#);
        fs::create_dir(dir.path().join(".building")).unwrap();
        let found = list(dir.path()).unwrap();
        assert_eq!((found.len(), found[0].version.as_str()), (1, "1.2.3"));
        verify(dir.path(), "an-image").unwrap();
        fs::write(dir.path().join("an-image/kernel"), "K").unwrap();
        assert!(matches!(verify(dir.path(), "an-image"), Err(ImageError::Invalid { .. })));
        fs::write(dir.path().join("an-image").join(SUMS), "").unwrap();
        assert!(load(dir.path(), "an-image").is_err());
    }

    #[test]
    fn nothing_outside_the_folder_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "s").unwrap();
        for kernel in ["../secret", "/etc/passwd", "link", "", "."] {
            image(dir.path(), &format!(r#"{{"kernel":"{kernel}","initrd":"initrd","version":"1.2.3"}}"#));
            let _ = std::os::unix::fs::symlink("../secret", dir.path().join("an-image/link"));
            assert!(matches!(load(dir.path(), "an-image"), Err(ImageError::Invalid { .. })), "{kernel}");
        }
        for name in ["", ".", "..", "../an-image", "a/b", ".hidden", "a\0b", &"x".repeat(65)] {
            assert!(matches!(load(dir.path(), name), Err(ImageError::BadName(_))), "{name}");
        }
        assert!(matches!(load(dir.path(), "nobody"), Err(ImageError::Missing(_))));
    }
}
