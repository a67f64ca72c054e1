//! From a configuration to a running server, and back down in order.
//!
//! Up: store, upstreams, policy, fills, cache, listeners. Down, when asked to stop: the listeners
//! let answers finish, fills write their journals, and the store is closed last, in good order.
//! Long tasks run on one tracker, so that nothing is left behind unseen.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::cache::{self, Cache, Fleet, Nearby};
use crate::cluster::admission::Reviewer;
use crate::config::{Config, Source};
use crate::fill::{Fills, Near};
use crate::policy;
use crate::server::admission::Review;
use crate::server::control::Control;
use crate::server::{Limits, Server};
use crate::store::{Claims, Shared, Store, StoreError, object, prune};
use crate::telemetry::{Ledger, Metrics};
use crate::upstream::{PeerKey, Peers, Served, Upstreams, store_client};
use bundles::Bundles;
use reload::Reload;

pub mod bundles;
mod reload;

/// How long fills and background work may take to put their things in order.
const WIND_DOWN: Duration = Duration::from_secs(10);

/// Why the server did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    #[error("cannot listen: {0}")]
    Listen(io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Everything but the listeners: what a server and a command without one have in common.
#[derive(Debug)]
pub struct Engine {
    pub cache: Arc<Cache>,
    store: Arc<Store>,
    /// By which other replicas are known.
    peers: Option<PeerKey>,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    background: CancellationToken,
    downloads: CancellationToken,
    largest_blob: u64,
}

/// What an [`Engine`] is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Other replicas may fetch from it.
    Server,
    /// Nobody can reach it.
    Command,
}

/// Serves until SIGTERM or SIGINT. `source` is what `config` was read from.
///
/// # Errors
/// Before it listens: whatever keeps it from starting. After: a store that cannot be closed.
pub async fn serve(config: Config, source: Source) -> Result<(), AppError> {
    raise_open_files();
    let engine = Engine::start(&config, Role::Server).await?;
    if let Some(proxy) = &config.egress.proxy {
        tracing::info!(%proxy, "upstreams are reached through the egress proxy alone");
    }
    if let (Some(shared), Some(config)) = (&engine.store.shared, &config.store.shared) {
        engine
            .tracker
            .spawn(greet(Arc::clone(shared), config.url.clone()));
        let (store, background) = (Arc::clone(&engine.store), engine.background.clone());
        let prune = prune::run(store, config.prune_older_than, background);
        engine.tracker.spawn(prune);
    }
    if let Ok(wanted) = config.warm.wanted()
        && !wanted.images.is_empty()
    {
        let (cache, every) = (Arc::clone(&engine.cache), config.warm.every);
        let warm = cache.keep_warm(wanted, every, engine.background.clone());
        engine.tracker.spawn(warm);
    }
    let (_ready, ready) = watch::channel(true);
    let limits = Limits {
        answer: config.limits.answer,
        connections: config.limits.connections,
        ..Limits::default()
    };
    let (cache, metrics) = (Arc::clone(&engine.cache), Arc::clone(&engine.metrics));
    let reload = Reload::new(Arc::clone(&cache), Arc::clone(&metrics), source);
    let peers = engine.peers.clone();
    let review = review(&config, &cache, &metrics);
    let mut server = Server::bind(&config.server, limits, cache, peers, metrics, ready)
        .await
        .map_err(AppError::Listen)?;
    if let (Some(admission), Some(tls)) = (&config.admission, config.admission_tls()) {
        server = server
            .with_admission(admission.listen, tls.clone(), review)
            .await
            .map_err(AppError::Listen)?;
    }
    let shutdown = CancellationToken::new();
    let (signal, stop) = (signalled()?, shutdown.clone());
    engine.tracker.spawn(async move {
        stop.run_until_cancelled(signal).await;
        stop.cancel();
    });
    engine
        .tracker
        .spawn(reload.watch(engine.background.clone())?);
    if let Err(error) = engine.hear_operators(shutdown.clone()).await {
        tracing::warn!(%error, "no control.sock: commands will not reach this server");
    }
    let ended = server.run(shutdown, &engine.tracker).await;
    engine.stop().await?;
    tracing::info!("stopped");
    Ok(ended?)
}

// === impl Engine ===

impl Engine {
    /// Takes the store and puts the parts together. Call [`Engine::stop`] at the end.
    ///
    /// # Errors
    /// Above all when another process has the store.
    pub async fn start(config: &Config, role: Role) -> Result<Self, AppError> {
        let metrics = Arc::new(Metrics::default());
        let tracker = TaskTracker::new();
        let background = CancellationToken::new();
        let downloads = CancellationToken::new();

        let (policy, grants) = (Engine::policy(config)?, Engine::grants(config)?);
        let shared = match &config.store.shared {
            Some(shared) => Some(connect(shared, config, &metrics.ledger).await?),
            None => None,
        };
        let (store, upstreams, replicas) = {
            let (config, metrics) = (config.clone(), Arc::clone(&metrics));
            tokio::task::spawn_blocking(move || open(&config, shared, &metrics))
                .await
                .map_err(io::Error::other)??
        };
        tracker.spawn({
            let (store, background) = (Arc::clone(&store), background.clone());
            async move { store.run(background).await }
        });
        // Before anybody can ask for it.
        store.finish_imports().await;
        let near = store.shared.clone().map(|shared| {
            let fleet = replicas.as_ref().map(|replicas| {
                let address = (role == Role::Server).then(|| replicas.advertise.clone());
                let claims = Claims::new(
                    Arc::clone(&shared),
                    address,
                    Arc::clone(&metrics),
                    tracker.clone(),
                );
                let (sweeper, background) = (Arc::clone(&claims), background.clone());
                tracker.spawn(async move { sweeper.run(background).await });
                let peers = Arc::clone(&replicas.peers);
                Fleet { claims, peers }
            });
            let disk = Arc::clone(&store.disk);
            Arc::new(Nearby::new(shared, disk, fleet, &metrics, &tracker)) as Arc<dyn Near>
        });
        let fills = Fills::new(
            config.fill.clone(),
            Arc::clone(&store.disk),
            near,
            Arc::clone(&metrics),
            tracker.clone(),
            downloads.clone(),
        );
        let cache = Cache::new(cache::Parts {
            policy,
            grants,
            upstreams,
            store: Arc::clone(&store),
            fills,
            config: config.tags.clone(),
            offline: config.server.offline,
            manifest_limit: config.limits.manifest_size,
            metrics: Arc::clone(&metrics),
            tracker: tracker.clone(),
        })
        .map_err(|error| AppError::Config(vec![format!("tags.immutable: {error}")]))?;
        cache.read_pulls().await;
        tracker.spawn(Arc::clone(&cache).write_pulls(background.clone()));
        Ok(Engine {
            cache,
            store,
            peers: replicas.map(|replicas| replicas.key),
            metrics,
            tracker,
            background,
            downloads,
            largest_blob: config.limits.blob_size,
        })
    }

    fn policy(config: &Config) -> Result<policy::Engine, AppError> {
        policy::Engine::compile(&config.policy).map_err(|problems| wrong(&problems))
    }

    fn grants(config: &Config) -> Result<policy::Grants, AppError> {
        config.grants().map_err(|problems| wrong(&problems))
    }

    /// What answers operators; long work of theirs ends when `stop` is cancelled.
    #[must_use]
    pub fn control(&self, stop: CancellationToken) -> Control {
        let (cache, tracker) = (&self.cache, self.tracker.clone());
        let bundles = Bundles::new(cache, &tracker, &stop, self.largest_blob);
        Control::new(Arc::clone(cache), tracker, stop).with(bundles.routes())
    }

    async fn hear_operators(&self, stop: CancellationToken) -> io::Result<()> {
        let store = Arc::clone(&self.store);
        let listener = tokio::task::spawn_blocking(move || store.listen()).await??;
        self.tracker.spawn(self.control(stop).serve(listener)?);
        Ok(())
    }

    /// Lets fills write their journals and closes the store in good order.
    ///
    /// # Errors
    /// When the store cannot be closed; the next start then hashes what it finds.
    pub async fn stop(self) -> Result<(), AppError> {
        self.downloads.cancel();
        self.background.cancel();
        self.tracker.close();
        if tokio::time::timeout(WIND_DOWN, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.tracker.len(), "some work did not end in time");
        }
        Ok(self.store.close().await?)
    }
}

fn wrong(problems: &[policy::Problem]) -> AppError {
    AppError::Config(problems.iter().map(ToString::to_string).collect())
}

/// The shared store, over an HTTP client of ours; `ledger` hears of each request.
///
/// # Errors
/// Names the key of the configuration that is wrong. A store that does not answer is no error.
pub async fn connect(
    shared: &object::Config,
    config: &Config,
    ledger: &Arc<Ledger>,
) -> Result<Arc<Shared>, AppError> {
    let (limits, egress) = (config.limits.clone(), config.egress.clone());
    let by_proxy = shared.by_proxy();
    let client = tokio::task::spawn_blocking(move || store_client(&limits, &egress, by_proxy))
        .await
        .map_err(io::Error::other)?
        .map_err(|message| AppError::Config(vec![message]))?;
    let store = object::open(shared, client, ledger).await;
    let store = store.map_err(|error| AppError::Config(vec![error.to_string()]))?;
    Ok(Arc::new(store))
}

/// Says once in the log whether the shared store lets us in; nothing waits for it.
async fn greet(shared: Arc<Shared>, url: object::Location) {
    match shared.probe().await {
        Ok(()) => tracing::info!(%url, "sharing a store"),
        Err(error) => {
            tracing::warn!(%url, %error, "no answer from the shared store; pulls go on without it");
        }
    }
}

/// What answers admission reviews: `server` has the socket, `cluster` knows what they mean.
fn review(config: &Config, cache: &Arc<Cache>, metrics: &Arc<Metrics>) -> Review {
    let reviewer = Reviewer {
        cache: Arc::clone(cache),
        names: config.server.own_names(),
        served: Served::by_name(config.upstreams.keys().map(String::as_str)),
        metrics: Arc::clone(metrics),
    };
    Review(Arc::new(move |body| reviewer.review(body)))
}

/// The parts that read files. Blocking.
fn open(
    config: &Config,
    shared: Option<Arc<Shared>>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Store>, Upstreams, Option<Replicas>), AppError> {
    let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, metrics)
        .map_err(AppError::Config)?;
    let peers = config
        .store
        .shared
        .as_ref()
        .and_then(|shared| shared.peers.as_ref());
    let replicas = peers.map(|peers| Replicas::new(peers, config, metrics));
    let replicas = replicas
        .transpose()
        .map_err(|message| AppError::Config(vec![message]))?;
    let store = Store::open(&config.store, shared, Arc::clone(metrics))?;
    Ok((store, upstreams, replicas))
}

/// The other replicas: how they reach us, and we them.
struct Replicas {
    advertise: Url,
    key: PeerKey,
    peers: Arc<Peers>,
}

impl Replicas {
    /// Blocking: reads the secret and certificates.
    fn new(peers: &object::Peers, config: &Config, metrics: &Metrics) -> Result<Self, String> {
        let secret = peers.secret.read();
        let secret = secret.map_err(|error| format!("store.shared.peers.secret: {error}"))?;
        let key = PeerKey::new(&secret, peers.networks.clone());
        Ok(Replicas {
            advertise: peers.advertise.clone(),
            peers: Arc::new(Peers::new(
                key.clone(),
                &config.limits,
                &config.egress,
                metrics,
            )?),
            key,
        })
    }
}

/// Connections, blobs and spools each take a file; the usual soft limit of 1024 is from another
/// time. Where it cannot be raised, what is there has to do.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// Ends at the first SIGTERM or SIGINT, which from now on end nothing else.
///
/// # Errors
/// When the signals cannot be waited for.
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
