//! Instance types and guest images on offer.

use holdfast_model::error::{Code, Error};
use holdfast_model::image::ImageInfo;
use holdfast_store::nodes::Node;

/// A size that a CVM can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    pub id: &'static str,
    pub name: &'static str,
    pub description: &'static str,
    pub family: &'static str,
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
}

/// The names are those of the clients' defaults; what hardware is behind them is the node's business.
pub const INSTANCE_TYPES: [InstanceType; 5] = [
    size("tdx.small", "Small", "1 vCPU, 2 GB", 1, 2),
    size("tdx.medium", "Medium", "2 vCPU, 4 GB", 2, 4),
    size("tdx.large", "Large", "4 vCPU, 8 GB", 4, 8),
    size("tdx.xlarge", "XLarge", "8 vCPU, 16 GB", 8, 16),
    size("tdx.2xlarge", "2XLarge", "16 vCPU, 32 GB", 16, 32),
];

const fn size(
    id: &'static str,
    name: &'static str,
    description: &'static str,
    vcpu: i64,
    memory_gb: i64,
) -> InstanceType {
    InstanceType { id, name, description, family: "cpu", vcpu, memory_mb: memory_gb * 1024, disk_gb: 20 }
}

pub fn instance_type(id: &str) -> Result<&'static InstanceType, Error> {
    INSTANCE_TYPES
        .iter()
        .find(|t| t.id == id)
        .ok_or_else(|| Error::new(Code::TypeNotFound, format!("There is no instance type \"{id}\".")))
}

/// Images that some node offers, newest version first, each once.
pub fn images(nodes: &[Node]) -> Result<Vec<ImageInfo>, Error> {
    let mut all = Vec::new();
    for node in nodes {
        all.extend(node.images()?);
    }
    all.sort_by(|a, b| version(&b.version).cmp(&version(&a.version)).then_with(|| a.name.cmp(&b.name)));
    all.dedup_by(|a, b| a.name == b.name);
    Ok(all)
}

/// `0.5.10` is newer than `0.5.9`.
fn version(text: &str) -> Vec<u64> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// The numbers of a version, as the Phala surface wants them.
pub fn version_numbers(text: &str) -> [u64; 3] {
    let parts = version(text);
    std::array::from_fn(|i| parts.get(i).copied().unwrap_or(0))
}

/// The image a CVM gets: the one that was named, else the newest.
pub fn image_choose(images: &[ImageInfo], named: Option<&str>, prefer_dev: bool) -> Result<ImageInfo, Error> {
    let chosen = match named {
        Some(name) => images.iter().find(|i| i.name == name),
        None => images.iter().find(|i| i.is_dev == prefer_dev).or(images.first()),
    };
    chosen.cloned().ok_or_else(|| {
        let message = match named {
            Some(name) => format!("There is no OS image \"{name}\" on any node."),
            None => "No node has an OS image yet.".to_owned(),
        };
        Error::new(Code::ImageNotFound, message)
    })
}
