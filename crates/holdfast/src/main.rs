//! The one binary: server, node, and the commands of operators.
//!
//! Exit codes: 0 done, 1 it failed, 2 it was asked for wrongly or cannot start, 3 the operation was cancelled, 4 it took too
//! long.

#![forbid(unsafe_code)]

mod admin;
mod audit;
mod client;
mod config;
mod export;
mod image;
mod lists;
mod node;
mod nodes;
mod ops;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, LogFormat};

/// Answers are built of many small pieces and sent as one large one, which is what the C library's allocator is slow at: a page
/// of CVMs takes a third less of the processor with this one. How it is set up is in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The open control plane for confidential virtual machines.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server, by default with a node of its own
    Serve(serve::Options),
    /// Run a node that joins a server
    Node(node::Options),
    /// Guest images of this host
    #[command(subcommand)]
    Image(image::Command),
    /// Operations: what was asked for, and how far it is
    #[command(subcommand)]
    Ops(ops::Command),
    /// Nodes of the server
    #[command(subcommand)]
    Nodes(nodes::Command),
    /// Proof that the record is the one that was written
    #[command(subcommand)]
    Audit(audit::Command),
    /// What an operator does: people, workspaces, tokens of nodes
    #[command(subcommand)]
    Admin(admin::Command),
    /// Write the OpenAPI documents
    #[command(hide = true)]
    Openapi {
        #[arg(long)]
        out: PathBuf,
    },
}

/// Options that most commands share.
#[derive(Args, Clone, Default)]
pub struct Common {
    /// Configuration file; see config.default.toml for the keys
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of database and secrets
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
}

/// A start that cannot be: one line, exit code 2.
#[derive(Debug)]
pub struct Refused(pub String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Marks an error as one of how the command was called.
pub fn refused(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::Error::new(Refused(error.to_string()))
}

/// Loads the configuration; a mistake in it refuses the start.
pub fn load(common: &Common, mut options: Vec<(&'static str, Option<String>)>) -> anyhow::Result<Config> {
    options.push(("data_dir", common.data_dir.clone()));
    Config::load(common.config.as_deref(), &options).map_err(|e| refused(format!("{e:#}")))
}

/// Log lines go to standard error: standard output is for data. A line that cannot be written, as on a full disk, is lost
/// and nothing else: told to complain of it, the library would write that to standard error too, and panic.
pub fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).map_err(|e| refused(format!("log: {e}")))?;
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => lines.json().init(),
    }
    Ok(())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before anything uses TLS; only the first call counts, and it is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match cli.command {
        Command::Serve(options) => serve::run(options),
        Command::Node(options) => node::run(options),
        Command::Image(command) => image::run(command),
        Command::Ops(command) => ops::run(command),
        Command::Nodes(command) => nodes::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Admin(command) => admin::run(command),
        Command::Openapi { out } => openapi(&out),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("holdfast: {error:#}");
            ExitCode::from(if error.is::<Refused>() { 2 } else { 1 })
        }
    }
}

fn openapi(out: &std::path::Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(out)?;
    for (name, document) in holdfast_api::documents() {
        std::fs::write(out.join(format!("{name}.json")), document.to_pretty_json()? + "\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
