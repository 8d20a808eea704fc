//! A guest image on disk: a folder in dstack's layout (contract `dstack-vmm`, section 3).

use serde::{Deserialize, Serialize};

/// `metadata.json` of an image folder. File names are relative to that folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageMetadata {
    pub kernel: String,
    pub initrd: String,
    #[serde(default)]
    pub cmdline: Option<String>,
    #[serde(default)]
    pub rootfs: Option<String>,
    #[serde(default)]
    pub bios: Option<String>,
    #[serde(default)]
    pub rootfs_hash: Option<String>,
    #[serde(default)]
    pub shared_ro: bool,
    /// `x.y.z`
    pub version: String,
    #[serde(default)]
    pub is_dev: bool,
}

/// An image as a node offers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Folder name.
    pub name: String,
    pub version: String,
    pub is_dev: bool,
    /// `digest.txt`: sha256 of `sha256sum.txt`, 64 hex digits.
    pub os_image_hash: Option<String>,
}
