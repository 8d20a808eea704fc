//! `holdfast serve`: opens the installation, listens, and runs the loops until it is told to stop.
//!
//! The one rule: nothing here is needed for an operation to survive. A stop waits for no operation and no VM; whatever
//! was accepted goes on when a server starts again.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::Args;
use holdfast_api::App;
use holdfast_control::webhooks::dispatch;
use holdfast_control::{Control, Settings, SystemClock, events, loops, oidc, setup};
use holdfast_store::{FolderLock, OpenError, Store};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{Config, NodeMode};
use crate::{Common, load, log_to_stderr, refused};

/// Requests that are under way at a stop may take this long; then their connections are closed.
const DRAIN: Duration = Duration::from_secs(2);
/// A node's stop is waited for this long. Its VMs run on anyway.
const NODE_STOP: Duration = Duration::from_secs(2);
/// After a start no waiting step times out before this, so that nodes can report what happened meanwhile.
const RECOVERY_GRACE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Address and port to listen on [default: 127.0.0.1:8440]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// URL that clients reach the server at
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Certificate chain in PEM
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// Private key in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// Serve plain HTTP on an address that is not loopback
    #[arg(long)]
    insecure_http: bool,
    /// Key that wraps the secrets in the database
    #[arg(long, value_name = "FILE")]
    master_key_file: Option<String>,
    /// embedded or none [default: embedded]
    #[arg(long, value_name = "MODE")]
    node: Option<String>,
    /// qemu or simulated [default: qemu]
    #[arg(long, value_name = "KIND")]
    hypervisor: Option<String>,
    /// How long each step of a simulated VM takes
    #[arg(long, value_name = "MS")]
    simulated_step_ms: Option<String>,
    /// Folder of guest images
    #[arg(long, value_name = "DIR")]
    image_dir: Option<String>,
}

pub fn run(options: Options) -> Result<ExitCode> {
    let keys = vec![
        ("listen", options.listen),
        ("public_url", options.public_url),
        ("tls_cert", options.tls_cert),
        ("tls_key", options.tls_key),
        ("insecure_http", options.insecure_http.then(|| "true".to_owned())),
        ("master_key_file", options.master_key_file),
        ("node", options.node),
        ("hypervisor", options.hypervisor),
        ("simulated_step_ms", options.simulated_step_ms),
        ("image_dir", options.image_dir),
    ];
    let config = load(&options.common, keys)?;
    log_to_stderr(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

async fn serve(config: Config) -> Result<ExitCode> {
    raise_file_limit();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let data_dir = config.data_dir()?;
    let catalogue = Arc::new(config.catalogue().map_err(|e| refused(format!("{e:#}")))?);
    let oidc = config.oidc().map_err(|e| refused(format!("{e:#}")))?;
    let authorities = config.webhook_authorities().map_err(|e| refused(format!("{e:#}")))?;
    let _lock = FolderLock::take(&data_dir).map_err(refused)?;
    let listener = listen(config.listen)?;
    let address = listener.local_addr()?;
    let tls = tls(&config).await?;

    let installation_is_new = !data_dir.join("holdfast.db").exists();
    let master = setup::master_key(&config.master_key_file()?, installation_is_new).map_err(|e| refused(e.message))?;
    let store = Store::open(&data_dir).await.map_err(open_error)?;
    let clock = Arc::new(SystemClock);
    let keys = setup::keys(&store, &master).await.map_err(|e| refused(e.message))?;
    let key_file = data_dir.join("admin.key");
    setup::first_admin(&store, &*clock, &key_file).await?;
    if let Some(newcomers) = oidc.as_ref().and_then(|options| options.newcomers.as_ref())
        && !oidc::people::has_home(&store, newcomers).await?
    {
        warn!(workspace = newcomers.workspace, "the workspace of oidc_workspace is not there: new users are refused");
    }
    let mut settings = Settings { catalogue, oidc, ..config.settings(address.port()) };
    settings.webhooks.authorities = authorities;
    let public_url = settings.public_url.clone();
    let control = Control::new(store.clone(), keys, settings, clock.clone());
    let waiting = store.operations_recover(RECOVERY_GRACE, control.now()).await?;

    let stop = CancellationToken::new();
    let owner = format!("{}-{}", config.node_name(), std::process::id());
    tokio::spawn(events::run(control.clone(), stop.clone()));
    let worker = tokio::spawn(loops::worker::run(control.clone(), owner, stop.clone()));
    tokio::spawn(loops::scheduled_deletes::run(control.clone(), stop.clone()));
    let credentials = tokio::spawn(loops::credentials::run(control.clone(), stop.clone()));
    let sealer = tokio::spawn(loops::sealer::run(control.clone(), stop.clone()));
    tokio::spawn(loops::retention::run(control.clone(), data_dir.join("archive"), stop.clone()));
    let webhooks = tokio::spawn(dispatch::run(control.clone(), stop.clone()));
    let embedded = config.node == NodeMode::Embedded;
    let router = holdfast_api::router(App { control, needs_node: embedded });
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let handle = Handle::new();
    // Beside TLS the embedded node gets a plain port that only this host can reach.
    let local = match &tls {
        Some(_) if embedded => Some(listen(SocketAddr::from(([127, 0, 0, 1], 0)))?),
        _ => None,
    };
    let node_address = local.as_ref().map_or(Ok(address), TcpListener::local_addr)?;
    let plain = |listener| axum_server::from_tcp(listener).map(|server| server.handle(handle.clone()));
    let mut servers: Vec<JoinHandle<std::io::Result<()>>> = Vec::new();
    if let Some(local) = local {
        servers.push(tokio::spawn(plain(local)?.serve(service.clone())));
    }
    servers.push(match tls {
        Some(tls) => tokio::spawn(axum_server::from_tcp_rustls(listener, tls)?.handle(handle.clone()).serve(service)),
        None => tokio::spawn(plain(listener)?.serve(service)),
    });
    let node = match config.node {
        NodeMode::None => None,
        NodeMode::Embedded => {
            let token = setup::embedded_node_token(&store, &*clock, &data_dir.join("node.token")).await?;
            let server = format!("http://{}", reachable(node_address));
            let node = config.node_config(server, token.to_string(), data_dir.join("node"))?;
            Some(tokio::spawn(embedded_node(node, stop.clone())))
        }
    };
    write_url(&data_dir, &public_url)?;
    info!(url = public_url, data = %data_dir.display(), key = %key_file.display(), waiting_operations = waiting,
        "holdfast {} is listening", holdfast_model::VERSION);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping; VMs keep running");
    stop.cancel();
    handle.graceful_shutdown(Some(DRAIN));
    let drained = async {
        for server in servers {
            // A server that failed has nothing left to drain.
            let _ = server.await;
        }
    };
    let _ = tokio::time::timeout(DRAIN + Duration::from_millis(300), drained).await;
    let _ = tokio::time::timeout(Duration::from_millis(500), worker).await;
    let _ = tokio::time::timeout(Duration::from_millis(500), sealer).await;
    let _ = tokio::time::timeout(Duration::from_millis(500), credentials).await;
    let _ = tokio::time::timeout(Duration::from_millis(500), webhooks).await;
    if let Some(node) = node {
        let _ = tokio::time::timeout(NODE_STOP, node).await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), store.close()).await;
    Ok(ExitCode::SUCCESS)
}

async fn embedded_node(config: holdfast_node::NodeConfig, stop: CancellationToken) {
    if let Err(error) = holdfast_node::run(config, stop).await {
        error!(%error, "the embedded node cannot run");
    }
}

/// As many open files as the host allows: every stream and every webhook that hangs holds one, and the usual 1,024 are a
/// limit for programs that use `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => refused(format!("port {} of {} is in use", address.port(), address.ip())),
        _ => refused(format!("cannot listen on {address}: {e}")),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn tls(config: &Config) -> Result<Option<RustlsConfig>> {
    if config.tls_cert.is_empty() {
        return Ok(None);
    }
    let loaded = RustlsConfig::from_pem_file(&config.tls_cert, &config.tls_key).await;
    loaded.map(Some).map_err(|e| refused(format!("tls_cert {} and tls_key {}: {e}", config.tls_cert, config.tls_key)))
}

/// An address to dial for one that was listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, address.port())
}

/// Where the other commands find the server of this data folder.
fn write_url(data_dir: &std::path::Path, url: &str) -> Result<()> {
    std::fs::write(data_dir.join("url"), url).context("cannot write the data folder")
}

pub fn open_error(error: OpenError) -> anyhow::Error {
    refused(error)
}
