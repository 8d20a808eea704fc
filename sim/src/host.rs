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
    /// Generation of the newest configuration that the guest was given.
    pub given: u64,
    pub guest: GuestView,
}

/// What a guest does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Agent,
    /// The app is up, or has failed, that was begun for this generation; a newer one that was given meanwhile has its
    /// own end.
    Done(u64),
    BootError(u64),
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
    pub fn start(&mut self, vm: usize, id: u64, port: u16, given: u64) -> Result<(), usize> {
        self.ended.remove(&vm);
        self.machines.remove(&vm);
        if let Some((other, _)) = self.machines.iter().find(|(_, m)| m.port == port) {
            return Err(*other);
        }
        self.machines.insert(vm, Machine { id, port, given, guest: GuestView::default() });
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
    pub fn machine_starts(&mut self, node: usize, vm: usize, port: u16, given: u64) {
        let machine = self.id();
        if let Err(other) = self.hosts[node].start(vm, machine, port, given) {
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
            1 => Life::BootError(given),
            2 => Life::Dies,
            _ => Life::Done(given),
        };
        let done = agent + self.rng.range(SECOND / 2, 15 * SECOND);
        self.after(done, Event::Guest { node, vm, machine, life: end });
        if fate == 3 {
            let dies = done + self.rng.range(SECOND, 200 * SECOND);
            self.after(dies, Event::Guest { node, vm, machine, life: Life::Dies });
        }
    }

    /// A guest is given what it should run by now. One that is booting takes it in its stride.
    pub fn guest_is_given(&mut self, node: usize, vm: usize, generation: u64) {
        let Some(found) = self.hosts[node].machines.get_mut(&vm).filter(|m| m.given < generation) else { return };
        found.given = generation;
        if found.guest.app_revision == 0 {
            return;
        }
        let (machine, guest) = (found.id, &mut found.guest);
        guest.boot_progress = Some(BootProgress::StartingContainers.as_str().to_owned());
        (guest.boot_error, guest.app_revision) = (None, generation);
        let bad = self.rng.chance(self.faults.bad_guest);
        let life = if bad { Life::BootError(generation) } else { Life::Done(generation) };
        let done = self.rng.range(SECOND / 2, 15 * SECOND);
        self.after(done, Event::Guest { node, vm, machine, life });
        self.vm_notice(node, vm);
    }

    pub fn guest_lives(&mut self, node: usize, vm: usize, machine: u64, life: Life) {
        let clean = life == Life::PowersOff;
        let host = &mut self.hosts[node];
        let Some(found) = host.machines.get_mut(&vm).filter(|m| m.id == machine) else { return };
        let (given, guest) = (found.given, &mut found.guest);
        if matches!(life, Life::Done(of) | Life::BootError(of) if guest.app_revision > of) {
            return;
        }
        match life {
            Life::Agent => {
                guest.agent = true;
                guest.boot_progress = Some(BootProgress::Booting.as_str().to_owned());
            }
            Life::Done(_) => {
                guest.boot_progress = Some(BootProgress::Done.as_str().to_owned());
                guest.app_revision = given;
            }
            Life::BootError(_) => {
                let step = BootProgress::PreLaunch.as_str().to_owned();
                guest.boot_error = Some(BootError { step, message: "exit status 1".to_owned() });
                guest.app_revision = given;
            }
            Life::Dies | Life::PowersOff => {
                host.machines.remove(&vm);
                host.ended.insert(vm, clean);
            }
        }
        self.vm_notice(node, vm);
    }
}
