//! A host under a node: disks, machines and files, which outlive the node's process, and guests with a will of their own.
//!
//! The one rule: nothing here knows what is wanted. It does what it is told, and things happen to it.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_model::guest::{BootError, BootProgress};
use holdfast_node::record::{GuestView, Record};

use crate::world::{Event, SECOND, World};

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    pub id: u64,
    pub port: u16,
    pub guest: GuestView,
}

/// What a guest does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Agent,
    Done,
    BootError,
    Dies,
    /// It was asked to, and powers itself off.
    PowersOff,
}

#[derive(Debug, Default)]
pub struct Host {
    /// Raised by every boot of the host.
    pub boot: u64,
    pub disks: BTreeSet<usize>,
    pub machines: BTreeMap<usize, Machine>,
    /// Files of the node, by VM; `desired` and `runtime` are written apart, and a removal takes both.
    pub records: BTreeMap<usize, Record>,
    /// Machines that ended by themselves, and whether in good order.
    pub ended: BTreeMap<usize, bool>,
    /// Nothing can be written until then.
    pub full_until: u64,
}

impl Host {
    pub fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    /// VMs that have anything here.
    pub fn holds(&self) -> impl Iterator<Item = usize> + '_ {
        self.disks.iter().chain(self.machines.keys()).copied()
    }

    /// The host loses power: its files stay.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.machines.clear();
        self.ended.clear();
    }

    /// A machine of the VM that is there already is ended first. `Err` names the VM that has the port.
    pub fn start(&mut self, vm: usize, id: u64, port: u16) -> Result<(), usize> {
        self.ended.remove(&vm);
        self.machines.remove(&vm);
        if let Some((other, _)) = self.machines.iter().find(|(_, m)| m.port == port) {
            return Err(*other);
        }
        self.machines.insert(vm, Machine { id, port, guest: GuestView::default() });
        Ok(())
    }

    pub fn remove(&mut self, vm: usize) {
        self.machines.remove(&vm);
        self.disks.remove(&vm);
        self.records.remove(&vm);
        self.ended.remove(&vm);
    }
}

impl World {
    /// A machine is made, and its guest begins a life.
    pub fn machine_starts(&mut self, node: usize, vm: usize, port: u16) {
        let machine = self.id();
        if let Err(other) = self.hosts[node].start(vm, machine, port) {
            return self.fail(format!("leftovers: vm {vm} cannot have port {port}, vm {other} still listens on it"));
        }
        let agent = self.rng.range(SECOND / 2, 8 * SECOND);
        let bad = self.rng.chance(self.faults.bad_guest);
        let fate = if bad { self.rng.range(0, 4) } else { 9 };
        if fate != 0 {
            self.after(agent, Event::Guest { node, vm, machine, life: Life::Agent });
        }
        let end = match fate {
            0 => return,
            1 => Life::BootError,
            2 => Life::Dies,
            _ => Life::Done,
        };
        let done = agent + self.rng.range(SECOND / 2, 15 * SECOND);
        self.after(done, Event::Guest { node, vm, machine, life: end });
        if fate == 3 {
            let dies = done + self.rng.range(SECOND, 200 * SECOND);
            self.after(dies, Event::Guest { node, vm, machine, life: Life::Dies });
        }
    }

    pub fn guest_lives(&mut self, node: usize, vm: usize, machine: u64, life: Life) {
        let clean = life == Life::PowersOff;
        let host = &mut self.hosts[node];
        let revision = host.records.get(&vm).map_or(0, |r| r.desired.generation);
        let Some(found) = host.machines.get_mut(&vm).filter(|m| m.id == machine) else { return };
        let guest = &mut found.guest;
        match life {
            Life::Agent => {
                guest.agent = true;
                guest.boot_progress = Some(BootProgress::Booting.as_str().to_owned());
            }
            Life::Done => {
                guest.boot_progress = Some(BootProgress::Done.as_str().to_owned());
                guest.app_revision = revision;
            }
            Life::BootError => {
                let step = BootProgress::PreLaunch.as_str().to_owned();
                guest.boot_error = Some(BootError { step, message: "exit status 1".to_owned() });
                guest.app_revision = revision;
            }
            Life::Dies | Life::PowersOff => {
                host.machines.remove(&vm);
                host.ended.insert(vm, clean);
            }
        }
        self.vm_notice(node, vm);
    }
}
