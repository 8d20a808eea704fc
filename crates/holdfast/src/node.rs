//! `holdfast node`: the node as a process of its own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Common, load, log_to_stderr, refused};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// URL of the server to join
    #[arg(long, value_name = "URL", env = "HOLDFAST_SERVER")]
    server: String,
    /// Token that `holdfast admin node-token` issued
    #[arg(long, value_name = "TOKEN", env = "HOLDFAST_NODE_TOKEN", hide_env_values = true)]
    token: String,
    /// Name of the node [default: the host's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// qemu or simulated [default: qemu]
    #[arg(long, value_name = "KIND")]
    hypervisor: Option<String>,
    /// How long each step of a simulated VM takes
    #[arg(long, value_name = "MS")]
    simulated_step_ms: Option<String>,
    /// Folder of guest images
    #[arg(long, value_name = "DIR")]
    image_dir: Option<String>,
    /// Address that published ports listen on [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    publish_address: Option<String>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let keys = vec![
        ("node_name", options.name),
        ("hypervisor", options.hypervisor),
        ("simulated_step_ms", options.simulated_step_ms),
        ("image_dir", options.image_dir),
        ("publish_address", options.publish_address),
    ];
    let config = load(&options.common, keys)?;
    log_to_stderr(&config)?;
    let server = options.server.trim_end_matches('/').to_owned();
    let node = config.node_config(server, options.token, config.data_dir()?.join("node"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        });
        holdfast_node::run(node, stop).await.map_err(refused)?;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}
