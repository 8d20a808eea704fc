//! What goes wrong, and how often. Each seed has a character of its own: some are calm, some are terrible.
//!
//! The one rule: once faults have stopped, nothing here does anything any more.

use crate::rng::Rng;
use crate::world::{Event, SECOND, World};

/// A step of a hypervisor that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misfortune {
    pub code: &'static str,
    pub retryable: bool,
}

/// Chances in percent.
#[derive(Debug)]
pub struct Faults {
    pub on: bool,
    pub drop: u64,
    pub repeat: u64,
    pub slow: u64,
    pub lost_bell: u64,
    pub worker_sleeps: u64,
    pub step_fails: u64,
    pub step_refused: u64,
    pub bad_guest: u64,
    /// Mean seconds between two large faults.
    pub pace: u64,
    /// Nodes that nothing reaches until then.
    pub cut_until: [u64; 4],
}

impl Faults {
    pub fn new(rng: &mut Rng) -> Self {
        let calm = rng.chance(15);
        let mut upto = |most: u64| if calm { 0 } else { rng.range(0, most) };
        Self {
            on: true,
            drop: upto(20),
            repeat: upto(20),
            slow: upto(15),
            lost_bell: upto(40),
            worker_sleeps: upto(12),
            step_fails: upto(20),
            step_refused: upto(6),
            bad_guest: upto(30),
            pace: rng.range(5, 60),
            cut_until: [0; 4],
        }
    }

    pub fn stop(&mut self) {
        self.on = false;
        (self.drop, self.repeat, self.slow, self.lost_bell, self.worker_sleeps) = (0, 0, 0, 0, 0);
        (self.step_fails, self.step_refused, self.bad_guest) = (0, 0, 0);
        self.cut_until = [0; 4];
    }
}

impl World {
    pub fn fault_strikes(&mut self) {
        if !self.faults.on {
            return;
        }
        let wait = self.rng.range(1, 2 * self.faults.pace) * SECOND;
        self.after(wait, Event::Fault);
        let node = self.rng.index(self.nodes.len());
        let worker = self.rng.index(self.workers.len());
        let short = self.rng.range(SECOND / 100, 5 * SECOND);
        let long = self.rng.range(SECOND, 120 * SECOND);
        match self.rng.range(0, 12) {
            0 | 1 => {
                self.node_kill(node);
                let away = if self.rng.chance(70) { short } else { long };
                self.after(away, Event::NodeStart { node });
            }
            2 => {
                self.node_kill(node);
                self.hosts[node].reboot();
                self.after(long, Event::NodeStart { node });
            }
            3..=5 => {
                self.worker_kill(worker);
                self.after(short, Event::WorkerStart { worker });
            }
            6 => {
                self.server_kill();
                self.after(short, Event::ServerStart);
            }
            7 => self.faults.cut_until[node] = self.now + long,
            8 => self.hosts[node].full_until = self.now + long,
            9 => self.clock_offset += i64::try_from(long).unwrap_or(0) * 5,
            10 => self.clock_offset -= i64::try_from(short).unwrap_or(0) / 2,
            _ => self.machine_dies(node),
        }
    }

    fn server_kill(&mut self) {
        self.server_up = false;
        self.polls.clear();
        for worker in 0..self.workers.len() {
            self.worker_kill(worker);
        }
    }

    fn machine_dies(&mut self, node: usize) {
        let Some((vm, machine)) = self.hosts[node].machines.iter().next().map(|(vm, m)| (*vm, m.id)) else { return };
        self.guest_lives(node, vm, machine, crate::host::Life::Dies);
    }

    /// Whether a step of a hypervisor fails now.
    pub fn misfortune(&mut self, node: usize, writes: bool) -> Result<(), Misfortune> {
        if writes && self.now < self.hosts[node].full_until {
            return Err(Misfortune { code: "disk_full", retryable: true });
        }
        if self.rng.chance(self.faults.step_fails) {
            return Err(Misfortune { code: "io", retryable: true });
        }
        if self.rng.chance(self.faults.step_refused) {
            return Err(Misfortune { code: "bad_spec", retryable: false });
        }
        Ok(())
    }
}
