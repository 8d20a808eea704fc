//! What a user may ask for (admission, placement, identity), what a node is told and says, and the loops that carry
//! operations out. Surfaces call this crate and hold no rules of their own.
//!
//! The one rule: truth is in the store. What this crate keeps in memory (wake-ups, open streams, a settings copy) may
//! vanish at any time without anything being lost.

#![forbid(unsafe_code)]

pub mod apps;
pub mod audit_log;
pub mod batch;
pub mod catalogue;
pub mod certificates;
pub mod clock;
mod create;
pub mod cursor;
pub mod deploy;
pub mod devices;
pub mod dry_run;
mod env_keys;
pub mod events;
pub mod export;
pub mod guard;
pub mod history;
pub mod identity;
pub mod instances;
pub mod kms;
pub mod logs;
pub mod loops;
pub mod metrics;
pub mod node_tokens;
pub mod nodes;
pub mod oidc;
pub mod operations;
pub mod passwords;
pub mod people;
pub mod placement;
pub mod projects;
pub mod quotas;
pub mod rates;
pub mod schedules;
pub mod setup;
pub mod ssh_keys;
pub mod streams;
pub mod tokens;
pub mod update;
pub mod usage;
pub mod vms;
pub mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::Deadlines;
use holdfast_model::Timestamp;
use holdfast_store::Store;
use holdfast_trust::chain::SealKey;
use holdfast_trust::kms::Root;
use holdfast_trust::wrap::MasterKey;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

pub use clock::{Clock, SystemClock};
pub use holdfast_store::audit::RequestInfo;
pub use holdfast_store::scope::Scope;
pub use holdfast_store::tenancy::Principal;

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute URL that clients reach the server at, without a trailing slash.
    pub public_url: String,
    /// vCPUs that may be placed per host thread.
    pub vcpu_overcommit: f64,
    /// GB of (thin) disk that may be placed per GB there is.
    pub disk_overcommit: f64,
    pub deadlines: Deadlines,
    /// A node not heard of for this long is OFFLINE.
    pub node_patience: Duration,
    /// How long a log URL works.
    pub log_url_lifetime: Duration,
    /// Operations that were over for longer leave the database for an archive. `None`: they stay for ever.
    pub retention: Option<Duration>,
    /// Operations that may wait for one resource, where they may wait at all.
    pub queue_limit: i64,
    /// Where the keys of GitHub profiles are fetched from, without a trailing slash.
    pub github_url: String,
    /// How long such a fetch may take as a whole.
    pub github_patience: Duration,
    /// Sizes that CVMs can be asked for by name.
    pub catalogue: Arc<catalogue::Catalogue>,
    /// How much a caller may ask for in how much time.
    pub rates: rates::Rates,
    pub webhooks: webhooks::Options,
    /// The identity provider that people can sign in through. `None`: they cannot.
    pub oidc: Option<oidc::Options>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            public_url: "http://127.0.0.1:8440".to_owned(),
            vcpu_overcommit: 4.0,
            disk_overcommit: 4.0,
            deadlines: Deadlines::default(),
            node_patience: Duration::from_secs(20),
            log_url_lifetime: Duration::from_secs(3600),
            retention: None,
            queue_limit: 16,
            github_url: "https://github.com".to_owned(),
            github_patience: Duration::from_secs(10),
            catalogue: Arc::default(),
            rates: rates::Rates::default(),
            webhooks: webhooks::Options::default(),
            oidc: None,
        }
    }
}

/// Keys of this installation, unwrapped. Each has one purpose.
pub struct Keys {
    pub root: Root,
    pub(crate) cursor: Zeroizing<[u8; 32]>,
    pub(crate) log_token: Zeroizing<[u8; 32]>,
    /// Signs checkpoints of the chain.
    pub(crate) seal: SealKey,
    /// Wraps the secrets of webhooks.
    pub(crate) webhooks: MasterKey,
    /// Seals what browsers keep of a login through the identity provider.
    pub(crate) oidc: Zeroizing<[u8; 32]>,
}

/// The core that every surface and loop shares.
#[derive(Clone)]
pub struct Control {
    pub store: Store,
    pub settings: Arc<Settings>,
    pub(crate) keys: Arc<Keys>,
    pub streams: streams::Hub,
    pub metrics: Arc<metrics::Metrics>,
    clock: Arc<dyn Clock>,
    /// Rung when an operation is due.
    pub(crate) work: Arc<Notify>,
    /// Changes when desired state of any node did.
    pub(crate) desired: Arc<watch::Sender<u64>>,
    /// Changes when events were written.
    pub(crate) events_bell: Arc<watch::Sender<u64>>,
    /// Changes when webhooks, or what is to be sent to them, did.
    pub(crate) webhooks_bell: Arc<watch::Sender<u64>>,
    pub(crate) feed: events::Feed,
    pub(crate) env_keys: Arc<env_keys::EnvKeys>,
    pub(crate) uses: Arc<identity::Uses>,
    pub(crate) guard: Arc<guard::Guard>,
    pub(crate) hashing: Arc<passwords::Hashing>,
    pub(crate) oidc: Option<Arc<oidc::provider::Provider>>,
}

impl Control {
    pub fn new(store: Store, keys: Keys, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let provider =
            settings.oidc.clone().map(|options| oidc::provider::Provider::new(options, &settings.public_url));
        Self {
            store,
            settings: Arc::new(settings),
            keys: Arc::new(keys),
            streams: streams::Hub::default(),
            metrics: Arc::default(),
            clock,
            work: Arc::new(Notify::new()),
            desired: Arc::new(watch::Sender::new(0)),
            events_bell: Arc::new(watch::Sender::new(0)),
            webhooks_bell: Arc::new(watch::Sender::new(0)),
            feed: events::Feed::default(),
            env_keys: Arc::default(),
            uses: Arc::default(),
            guard: Arc::default(),
            hashing: Arc::default(),
            oidc: provider.map(Arc::new),
        }
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Patience with nodes in microseconds, as queries want it.
    pub fn node_patience(&self) -> i64 {
        i64::try_from(self.settings.node_patience.as_micros()).unwrap_or(i64::MAX)
    }

    /// An operation was accepted or has news.
    pub(crate) fn ring_work(&self) {
        self.work.notify_one();
        self.ring_events();
    }

    pub(crate) fn ring_events(&self) {
        self.events_bell.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(crate) fn ring_desired(&self) {
        self.desired.send_modify(|n| *n = n.wrapping_add(1));
    }
}
