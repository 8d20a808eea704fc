//! `holdfast nodes`: the hosts that run CVMs.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::Common;
use crate::client::{Client, block_on, table, text};

#[derive(Subcommand)]
pub enum Command {
    /// List the nodes
    List {
        #[command(flatten)]
        common: Common,
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    let Command::List { common, json } = command;
    let client = Client::new(&common)?;
    let answer = block_on(client.get("/nodes"))?;
    if json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = answer["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|node| {
            let free = &node["free"];
            let ready = if node["ready"] == true { "yes" } else { "no" };
            vec![
                text(node, "name").to_owned(),
                text(node, "status").to_owned(),
                ready.to_owned(),
                text(node, "hypervisor").to_owned(),
                text(node, "accelerator").to_owned(),
                if node["tee"] == true { "yes" } else { "no" }.to_owned(),
                format!(
                    "{} vCPU, {} MB, {} GB, {} slots",
                    free["vcpu"], free["memory_mb"], free["disk_gb"], free["slots"]
                ),
                node["cvms"].to_string(),
                text(node, "reason").to_owned(),
            ]
        })
        .collect();
    let head = ["NAME", "STATUS", "READY", "HYPERVISOR", "ACCELERATOR", "TEE", "FREE", "CVMS", "REASON"];
    println!("{}", table(&head, &rows));
    Ok(ExitCode::SUCCESS)
}
