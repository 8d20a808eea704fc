//! The results as JSON for machines and as a table for people.
//!
//! The one rule: the machine is named by its cores and memory alone, and a goal that was missed is shown as missed.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};

use super::accept::Accept;
use super::boot::{Boots, megabytes};
use super::stats::Samples;
use crate::{root, ui};

/// What the control plane may add to a boot, in milliseconds.
const GOAL_SHARE: f64 = 150.0;
/// What accepting a mutation may take, p99, in milliseconds.
const GOAL_ACCEPT: f64 = 15.0;
/// What an idle server may hold, in megabytes.
const GOAL_IDLE: f64 = 40.0;

pub fn write(accept: &Accept, boots: &Boots) -> Result<()> {
    let plain_agent = &boots.plain_to_agent;
    let plain_up = Samples::new(boots.plain.iter().map(|p| p.app_up).collect());
    let plain_answer = Samples::new(boots.plain.iter().map(|p| p.answers).collect());
    // What passes while no guest is at work, and what whole boots say of the same.
    let share = boots.to_qemu.median() + boots.after_word.median();
    let difference = boots.to_agent.median() - plain_agent.median();
    let idle = megabytes(boots.idle.0);
    let guest = guest_timeline(boots);
    let (cores, memory) = machine();
    let document = json!({
        "machine": {"cores": cores, "memory_gb": memory, "accelerator": boots.accelerator},
        "runs": boots.runs,
        "unit": "ms",
        "deploy": {
            "request_to_qemu": boots.to_qemu.json(), "request_to_agent": boots.to_agent.json(),
            "request_to_app_up": boots.to_app_up.json(), "request_to_answer": boots.to_answer.json(),
        },
        "by_hand": {"agent": plain_agent.json(), "app_up": plain_up.json(), "answer": plain_answer.json()},
        "control_plane_share": {
            "value": difference.round(), "goal": GOAL_SHARE, "reached": difference < GOAL_SHARE,
            "while_no_guest_is_at_work": share.round(),
            "request_to_qemu": boots.to_qemu.json(), "agent_to_operation": boots.after_word.json(),
        },
        "guest_after_kernel_start": guest.iter().map(|(name, ms)| json!({"reached": name, "ms": ms})).collect::<Vec<_>>(),
        "accept": {
            "power": accept.power.json(), "create": accept.create.json(), "request_without_transaction": accept.floor.json(),
            "goal_p99": GOAL_ACCEPT, "reached": accept.power.percentile(99.0) < GOAL_ACCEPT,
        },
        "idle": {
            "resident_mb": (idle * 10.0).round() / 10.0, "private_mb": (megabytes(boots.idle.1) * 10.0).round() / 10.0,
            "goal_mb": GOAL_IDLE, "reached": idle < GOAL_IDLE,
        },
    });
    let rows = [
        ("guest agent answers", &boots.to_agent, plain_agent),
        ("containers started", &boots.to_app_up, &plain_up),
        ("app answers", &boots.to_answer, &plain_answer),
    ];
    let mut text = format!(
        "# Boot\n\nWritten by `cargo xtask bench boot`: {} runs on {cores} cores with {memory} GB, accelerator {}.\n\
         Medians, in milliseconds; deploy and by hand in turn.\n\n\
         | until | deploy request, through Holdfast | same QEMU command line by hand | ratio |\n|---|---|---|---|\n",
        boots.runs, boots.accelerator
    );
    for (name, ours, plain) in rows {
        let (ours, plain) = (ours.median(), plain.median());
        text += &format!("| {name} | {ours:.0} | {plain:.0} | {:.2} |\n", ours / plain.max(1.0));
    }
    text += "\n| goal | measured | wanted | |\n|---|---|---|---|\n";
    for (name, value, goal, unit) in [
        ("deploy to agent, more than by hand (difference of medians)", difference, GOAL_SHARE, "ms"),
        ("of it, while no guest is at work", share, GOAL_SHARE, "ms"),
        ("accept of a mutation, durable, p99", accept.power.percentile(99.0), GOAL_ACCEPT, "ms"),
        ("idle server, resident", idle, GOAL_IDLE, "MB"),
    ] {
        let verdict = if value < goal { "reached" } else { "missed" };
        text += &format!("| {name} | {value:.1} {unit} | < {goal:.0} {unit} | {verdict} |\n");
    }
    text += &format!(
        "\nWhile no guest is at work is before QEMU runs (admission, placement, disks: {:.0} ms) and from the agent's answer to the \
         operation that says so ({:.0} ms), medians of {} boots. The medians of whole boots, through Holdfast and by hand, differ \
         by {difference:.0} ms, while boots by hand alone differ by {:.0} ms. Accept of a mutation: p50 {:.1} ms, of a create \
         {:.1} ms; a request without a transaction: {:.1} ms.\n\nInside the guest, by hand, after the start of its kernel:\n\n\
         | reached | ms |\n|---|---|\n",
        boots.to_qemu.median(),
        boots.after_word.median(),
        boots.to_agent.count(),
        plain_agent.percentile(100.0) - plain_agent.percentile(0.0),
        accept.power.median(),
        accept.create.median(),
        accept.floor.median()
    );
    for (name, ms) in &guest {
        text += &format!("| {name} | {ms:.0} |\n");
    }
    let folder = root().join("benches/results");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("boot.json"), format!("{document:#}\n"))?;
    fs::write(folder.join("boot.md"), &text)?;
    ui::heading("benches/results/boot.md");
    ui::say(text);
    Ok(())
}

/// The median of each point of the guest's own timeline, in order.
fn guest_timeline(boots: &Boots) -> Vec<(String, f64)> {
    let Some(first) = boots.plain.first() else { return Vec::new() };
    let point = |name: &String| {
        let times = boots.plain.iter().filter_map(|p| p.guest.iter().find(|(n, _)| n == name)).map(|(_, ms)| *ms);
        (name.clone(), Samples::new(times.collect()).median())
    };
    first.guest.iter().map(|(name, _)| point(name)).collect()
}

/// Cores, and memory in GB.
pub fn machine() -> (Value, u64) {
    let cores = std::thread::available_parallelism().map(usize::from).unwrap_or(1);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    (cores.into(), kilobytes.unwrap_or(0).div_ceil(1024 * 1024))
}
