//! `holdfast image`: guest images of this host.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use holdfast_node::image::{Agent, BuildOptions, build, list};

use crate::{Common, load};

include!(concat!(env!("OUT_DIR"), "/agent.rs"));

#[derive(Subcommand)]
pub enum Command {
    /// Build the guest image from Debian packages; does nothing when it is there already
    Build {
        #[command(flatten)]
        common: Common,
        /// Folder of guest images
        #[arg(long, value_name = "DIR")]
        image_dir: Option<String>,
        /// Name of the image [default: holdfast-<version>]
        #[arg(long)]
        name: Option<String>,
        /// The guest agent, if another one than the binary's own
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// docker-archive tar whose images every guest has from the start; may be repeated
        #[arg(long = "container", value_name = "FILE")]
        containers: Vec<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// List the guest images
    List {
        #[command(flatten)]
        common: Common,
        /// Folder of guest images
        #[arg(long, value_name = "DIR")]
        image_dir: Option<String>,
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build { common, image_dir, name, agent, containers, json } => {
            let image_dir = load(&common, vec![("image_dir", image_dir)])?.image_dir()?;
            let stopped = interrupted()?;
            let info = build(BuildOptions {
                image_dir,
                agent: find_agent(agent)?,
                name,
                extra_containers: containers,
                progress: &mut |line| eprintln!("{line}"),
                cancelled: &|| stopped.load(Ordering::Relaxed),
            })?;
            if json {
                println!("{}", serde_json::to_string(&info)?);
            } else {
                println!("{}  {}", info.name, info.os_image_hash.unwrap_or_default());
            }
        }
        Command::List { common, image_dir, json } => {
            let image_dir = load(&common, vec![("image_dir", image_dir)])?.image_dir()?;
            let images = list(&image_dir)?;
            if json {
                println!("{}", serde_json::to_string(&images)?);
            } else {
                for image in images {
                    println!("{}\t{}\t{}", image.name, image.version, image.os_image_hash.unwrap_or_default());
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent that was named, the one in this binary, or the one beside it.
fn find_agent(named: Option<PathBuf>) -> Result<Agent> {
    if let Some(path) = named {
        return Ok(Agent::Path(path));
    }
    if let Some(bytes) = AGENT {
        return Ok(Agent::Bytes(bytes.to_vec()));
    }
    let beside = std::env::current_exe().context("own path")?.with_file_name("holdfast-guest");
    if beside.is_file() {
        return Ok(Agent::Path(beside));
    }
    bail!("this binary was built without the guest agent; name one with --agent")
}

/// Set when the user presses Ctrl-C, so that the build can remove what it made.
fn interrupted() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                set.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(flag)
}
