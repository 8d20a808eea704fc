//! The virtio-serial port to the host.
//!
//! The one rule: never wait for the host. The port is non-blocking and read and written by one thread; a host that does not
//! read, floods, or comes and goes costs one bounded buffer.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::guest::{PORT_NAME, ToGuest};
use rustix::event::{PollFd, PollFlags, Timespec};
use zeroize::Zeroize;

use crate::lines::Lines;
use crate::session::{Agent, Task};
use crate::{containers, init, logs, power, stats};

/// Bytes that one turn reads.
const READ: usize = 32 * 1024;
/// While no host is there the kernel reports "hung up" at once, so it is looked for in growing steps.
const ABSENT_FIRST: Duration = Duration::from_millis(5);
const ABSENT_MOST: Duration = Duration::from_millis(200);

pub fn start(agent: Arc<Agent>) {
    init::spawn("port", move || {
        let port = loop {
            match open() {
                Some(port) => break port,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        Port { port, lines: Lines::default(), out: Vec::new(), absent: ABSENT_FIRST, agent }.serve();
    });
}

/// Finds the device by the port's name: there is no udev that would make a link.
fn open() -> Option<File> {
    let named = fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME))?;
    let device = std::path::Path::new("/dev").join(named.file_name());
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(device).ok()
}

struct Port {
    port: File,
    lines: Lines,
    /// The rest of the line that is being sent.
    out: Vec<u8>,
    absent: Duration,
    agent: Arc<Agent>,
}

impl Port {
    fn serve(&mut self) -> ! {
        let mut buffer = vec![0; READ];
        loop {
            self.fill();
            if !self.wait() {
                continue;
            }
            self.receive(&mut buffer);
            self.send();
        }
    }

    /// Puts the next line into the empty buffer.
    fn fill(&mut self) {
        if self.out.is_empty()
            && let Some(message) = self.agent.next()
        {
            let is_first = matches!(message, holdfast_model::guest::FromGuest::HelloAck { .. });
            if is_first {
                // Ends whatever half line the host before this one was sent.
                self.out.push(b'\n');
            }
            if serde_json::to_writer(&mut self.out, &message).is_err() {
                self.out.clear();
            }
            self.out.push(b'\n');
        }
    }

    /// Waits for something to do. False when there is no host to do it with.
    fn wait(&mut self) -> bool {
        let want = if self.out.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut polled = vec![PollFd::new(&self.port, want)];
        let bell = self.agent.bell();
        if let Some(bell) = &bell {
            polled.push(PollFd::new(bell, PollFlags::IN));
        }
        let limit = if bell.is_some() { None } else { Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }) };
        if rustix::event::poll(&mut polled, limit).is_err() {
            return false;
        }
        let state = polled[0].revents();
        if let Some(bell) = bell {
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
        if state.contains(PollFlags::HUP) && !state.contains(PollFlags::IN) {
            self.out.clear();
            self.agent.disconnected();
            std::thread::sleep(self.absent);
            self.absent = (self.absent * 2).min(ABSENT_MOST);
            return false;
        }
        self.absent = ABSENT_FIRST;
        true
    }

    fn receive(&mut self, buffer: &mut [u8]) {
        let Ok(n @ 1..) = self.port.read(buffer) else { return };
        let lines = self.lines.push(&buffer[..n]);
        buffer[..n].zeroize();
        for line in lines {
            let Ok(message) = serde_json::from_slice::<ToGuest>(&line) else { continue };
            if matches!(message, ToGuest::Hello { .. }) {
                self.out.clear();
            }
            if let Some(task) = self.agent.receive(message) {
                self.begin(task);
            }
        }
    }

    fn begin(&self, task: Task) {
        let agent = Arc::clone(&self.agent);
        match task {
            Task::Containers { id } => {
                init::spawn("containers", move || agent.answer_containers(id, containers::list()))
            }
            Task::Stats { id } => init::spawn("stats", move || agent.answer_stats(id, stats::read())),
            Task::Logs { id, container, options, entries, stop } => init::spawn("logs", move || {
                let error = logs::stream(&agent, id, &container, &options, entries, &stop).err();
                agent.end_log(id, &stop, error);
            }),
            Task::Shutdown { grace } => init::spawn("shutdown", move || power::shut_down(&agent, grace)),
        }
    }

    fn send(&mut self) {
        if self.out.is_empty() {
            return;
        }
        match self.port.write(&self.out) {
            Ok(n) => drop(self.out.drain(..n)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.out.clear(),
        }
    }
}
