//! Where a new CVM goes: decided inside the transaction that accepts it, on rows nobody else can change meanwhile.

use holdfast_model::Timestamp;
use holdfast_model::error::{Code, Error};
use holdfast_store::nodes::Node;
use holdfast_store::{Tx, vms};

/// Host ports that are looked at together for free ones.
const PORTS_LOOKED_AT: i64 = 64;

/// What a CVM needs of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<'a> {
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub image: &'a str,
    pub region: Option<&'a str>,
    /// Only this node.
    pub node_id: Option<i64>,
    pub ports: usize,
}

/// How far a node may be filled.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub vcpu_overcommit: f64,
    pub disk_overcommit: f64,
    pub now: Timestamp,
    /// Microseconds after which a silent node counts as gone.
    pub patience: i64,
}

/// What is left of a node: vCPU, memory in MB, disk in GB, slots. Never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    pub vcpu: i64,
    pub memory_mb: i64,
    pub disk_gb: i64,
    pub slots: i64,
}

pub fn free(node: &Node, policy: Policy) -> Free {
    let scaled = |n: i64, factor: f64| (n as f64 * factor) as i64;
    Free {
        vcpu: (scaled(node.vcpu, policy.vcpu_overcommit) - node.used_vcpu).max(0),
        memory_mb: (node.memory_mb - node.used_memory_mb).max(0),
        disk_gb: (scaled(node.disk_gb, policy.disk_overcommit) - node.used_disk_gb).max(0),
        slots: (node.slots - node.used_slots).max(0),
    }
}

/// True for a node that takes new CVMs as far as anybody knows: it is there, nobody set it aside, and it is well.
pub fn is_usable(node: &Node, policy: Policy) -> bool {
    node.ready && !node.cordoned && node.is_online(policy.now, policy.patience)
}

/// The node with the most memory left among those that can take it, or the reason why none can: the one that the node
/// that came closest gives.
pub fn choose<'a>(nodes: &'a [Node], ask: &Ask<'_>, policy: Policy) -> Result<&'a Node, Error> {
    let mut best: Option<&Node> = None;
    let mut closest: Option<(u8, Error)> = None;
    for node in nodes {
        match fits(node, ask, policy)? {
            Ok(()) => {
                if best.is_none_or(|b| free(node, policy).memory_mb > free(b, policy).memory_mb) {
                    best = Some(node);
                }
            }
            Err(reason) => {
                if closest.as_ref().is_none_or(|(rank, _)| reason.0 > *rank) {
                    closest = Some(reason);
                }
            }
        }
    }
    best.ok_or_else(|| match (closest, ask.node_id) {
        (Some((_, error)), _) => error,
        (None, _) => Error::new(Code::NoNode, "No node has joined yet."),
    })
}

/// `Err` carries how close the node came, and why it does not do.
fn fits(node: &Node, ask: &Ask<'_>, policy: Policy) -> Result<Result<(), (u8, Error)>, Error> {
    let no = |rank: u8, code: Code, why: String| Ok(Err((rank, Error::new(code, why))));
    if ask.node_id.is_some_and(|id| id != node.id) {
        return no(0, Code::NodeNotFound, "There is no node with that id.".to_owned());
    }
    if ask.region.is_some() && ask.region != node.region.as_deref() {
        return no(1, Code::NoNode, "No node is in that region.".to_owned());
    }
    if node.cordoned || !node.is_online(policy.now, policy.patience) {
        return no(2, Code::NoNode, "No node is ONLINE.".to_owned());
    }
    if !node.ready {
        return no(3, Code::NoNode, "No node can take new CVMs right now.".to_owned());
    }
    if !node.images()?.iter().any(|image| image.name == ask.image) {
        return no(4, Code::ImageNotFound, format!("No usable node has the OS image \"{}\".", ask.image));
    }
    let left = free(node, policy);
    if left.slots < 1 {
        return no(5, Code::NoSlot, "Every node has as many CVMs as it may have.".to_owned());
    }
    if left.memory_mb < ask.memory_mb {
        let why =
            format!("{} MB of memory were asked for; at most {} MB are free on a node.", ask.memory_mb, left.memory_mb);
        return no(6, Code::NoMemory, why);
    }
    if left.vcpu < ask.vcpu {
        let why = format!("{} vCPUs were asked for; at most {} are free on a node.", ask.vcpu, left.vcpu);
        return no(7, Code::NoVcpu, why);
    }
    if left.disk_gb < ask.disk_gb {
        let why = format!("{} GB of disk were asked for; at most {} GB are free on a node.", ask.disk_gb, left.disk_gb);
        return no(8, Code::NoDisk, why);
    }
    let range = usize::try_from(node.port_last - node.port_first + 1).unwrap_or(0);
    if range < ask.ports {
        return no(9, Code::NoPort, "The node publishes fewer ports than the compose file asks for.".to_owned());
    }
    Ok(Ok(()))
}

/// Fails when a node has no room for what a CVM on it wants more of: vCPU, memory in MB, disk in GB, before and after.
pub fn fits_grown(node: &Node, sizes: [(i64, i64, i64); 2], policy: Policy) -> Result<(), Error> {
    let (left, [before, after]) = (free(node, policy), sizes);
    let lacks = [
        (after.0 - before.0, left.vcpu, Code::NoVcpu, "vCPUs"),
        (after.1 - before.1, left.memory_mb, Code::NoMemory, "MB of memory"),
        (after.2 - before.2, left.disk_gb, Code::NoDisk, "GB of disk"),
    ];
    match lacks.into_iter().find(|(more, left, ..)| *more > 0 && more > left) {
        Some((more, left, code, what)) => {
            Err(Error::new(code, format!("{more} more {what} were asked for; {left} are free on the CVM's node.")))
        }
        None => Ok(()),
    }
}

/// `count` free host ports of the node's range, beginning at a place that `seed` decides: other programs of the host
/// use ports too, and a random one rarely meets them.
pub async fn ports_choose(tx: &mut Tx, node: &Node, count: usize, seed: u64) -> Result<Vec<u16>, Error> {
    let size = node.port_last - node.port_first + 1;
    let start = i64::try_from(seed % u64::try_from(size.max(1)).unwrap_or(1)).unwrap_or(0);
    let (mut ports, mut looked_at) = (Vec::with_capacity(count), 0);
    while ports.len() < count {
        if looked_at >= size {
            return Err(Error::new(Code::NoPort, "The node has no free port left to publish."));
        }
        let first = node.port_first + (start + looked_at) % size;
        let last = (first + PORTS_LOOKED_AT.min(size - looked_at) - 1).min(node.port_last);
        let taken = vms::ports_taken(tx, node.id, (first, last)).await?;
        let free = (first..=last).filter(|port| taken.binary_search(port).is_err());
        ports.extend(free.filter_map(|port| u16::try_from(port).ok()).take(count - ports.len()));
        looked_at += last - first + 1;
    }
    Ok(ports)
}
