//! What a guest says, cut to size.
//!
//! The one rule: nothing of a guest is passed on that is longer than its place allows, and a whole answer of one guest
//! always fits into one frame of the stream socket: a frame that does not fit would end the socket for all guests.

use holdfast_model::guest::{Container, DiskStats, SystemStats};

/// Longest of the guest's own words that are kept and passed on, in bytes.
pub const WORD: usize = 64;
pub const MESSAGE: usize = 4096;
/// Longest texts of a container list, in bytes.
const TEXT: usize = 256;
/// Containers and names of one container that are passed on.
const CONTAINERS: usize = 500;
const NAMES: usize = 16;
/// All texts of a container list together. JSON makes of each byte at most two, since control characters are taken out.
const LIST: usize = 384 * 1024;
/// What a container weighs beside its texts.
const CONTAINER: usize = 200;
const DISKS: usize = 16;
/// Numbers that clients can hold exactly.
const NUMBER: u64 = 1 << 53;

/// At most `most` bytes of `text`, cut between characters.
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let at = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(at);
    }
    text
}

/// The same, without control characters.
fn plain(text: String, most: usize) -> String {
    let text = cut(text, most);
    if text.contains(char::is_control) { text.replace(char::is_control, " ") } else { text }
}

/// The first containers of a list, as far as they fit.
pub fn containers(list: Vec<Container>) -> Vec<Container> {
    let mut left = LIST;
    let fitting = list.into_iter().take(CONTAINERS).map(container).take_while(|c| {
        let texts = [&c.id, &c.image, &c.image_id, &c.command, &c.state, &c.status];
        let size = CONTAINER + texts.into_iter().chain(&c.names).map(|text| text.len() + 4).sum::<usize>();
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    });
    fitting.collect()
}

fn container(c: Container) -> Container {
    Container {
        id: plain(c.id, TEXT),
        names: c.names.into_iter().take(NAMES).map(|name| plain(name, TEXT)).collect(),
        image: plain(c.image, TEXT),
        image_id: plain(c.image_id, TEXT),
        command: plain(c.command, TEXT),
        created: c.created,
        state: plain(c.state, WORD),
        status: plain(c.status, TEXT),
    }
}

/// The machine as the guest says it is.
pub fn stats(s: SystemStats) -> SystemStats {
    let number = |n: u64| n.min(NUMBER);
    let disk = |d: DiskStats| DiskStats {
        name: plain(d.name, TEXT),
        mount_point: plain(d.mount_point, TEXT),
        total_size: number(d.total_size),
        free_size: number(d.free_size),
    };
    SystemStats {
        os_name: plain(s.os_name, TEXT),
        os_version: plain(s.os_version, TEXT),
        kernel_version: plain(s.kernel_version, TEXT),
        cpu_model: plain(s.cpu_model, TEXT),
        num_cpus: s.num_cpus,
        total_memory: number(s.total_memory),
        available_memory: number(s.available_memory),
        used_memory: number(s.used_memory),
        free_memory: number(s.free_memory),
        total_swap: number(s.total_swap),
        used_swap: number(s.used_swap),
        free_swap: number(s.free_swap),
        uptime: number(s.uptime),
        loadavg_one: s.loadavg_one,
        loadavg_five: s.loadavg_five,
        loadavg_fifteen: s.loadavg_fifteen,
        disks: s.disks.into_iter().take(DISKS).map(disk).collect(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::node::{STREAM_FRAME, StreamReply};

    use super::*;

    fn hostile(n: usize, text: &str) -> Container {
        let text = text.repeat(n);
        Container {
            id: text.clone(),
            names: vec![text.clone(); n],
            image: text.clone(),
            image_id: text.clone(),
            command: text.clone(),
            created: i64::MIN,
            state: text.clone(),
            status: text,
        }
    }

    #[test]
    fn any_list_of_containers_fits_into_a_frame() {
        for text in ["\"", "\u{1}", "\u{7f}", "é", "\\", "x"] {
            for n in [0, 1, 10, 200, 1000] {
                let containers = containers(vec![hostile(n, text); 1000]);
                assert!(!containers.is_empty() && containers.len() <= CONTAINERS);
                let reply = StreamReply::Containers { id: u64::MAX, containers };
                let frame = serde_json::to_string(&reply).expect("JSON");
                assert!(frame.len() <= STREAM_FRAME, "{n} of {text:?}: {}", frame.len());
            }
        }
    }

    #[test]
    fn a_machine_is_told_in_bounds() {
        let disk = DiskStats { name: "\n".repeat(1000), total_size: u64::MAX, ..DiskStats::default() };
        let said = SystemStats {
            cpu_model: "c".repeat(100_000),
            total_memory: u64::MAX,
            disks: vec![disk; 1000],
            ..SystemStats::default()
        };
        let told = stats(said);
        assert_eq!((told.cpu_model.len(), told.total_memory, told.disks.len()), (TEXT, NUMBER, DISKS));
        assert_eq!((told.disks[0].name.trim(), told.disks[0].total_size), ("", NUMBER));
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("éé".to_owned(), 3), "é");
        assert_eq!(cut("éé".to_owned(), 4), "éé");
        assert_eq!(cut("é".to_owned(), 0), "");
    }
}
