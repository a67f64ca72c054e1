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

use crate::cache::{self, Cache};
use crate::config::{Config, Source};
use crate::fill::Fills;
use crate::policy::Engine;
use crate::server::{Limits, Server};
use crate::store::{Shared, Store, StoreError, object, prune};
use crate::telemetry::Metrics;
use crate::upstream::{Upstreams, store_client};
use reload::Reload;

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

/// Serves until SIGTERM or SIGINT. `source` is what `config` was read from.
///
/// # Errors
/// Before it listens: whatever keeps it from starting. After: a store that cannot be closed.
pub async fn serve(config: Config, source: Source) -> Result<(), AppError> {
    raise_open_files();
    let metrics = Arc::new(Metrics::default());
    let tracker = TaskTracker::new();
    let background = CancellationToken::new();
    let downloads = CancellationToken::new();

    let policy = Engine::compile(&config.policy)
        .map_err(|problems| AppError::Config(problems.iter().map(ToString::to_string).collect()))?;
    let shared = match &config.store.shared {
        Some(shared) => Some(connect(shared, &config).await?),
        None => None,
    };
    if let (Some(shared), Some(config)) = (shared.clone(), &config.store.shared) {
        tracker.spawn(greet(Arc::clone(&shared), config.url.clone()));
        let prune = prune::run(shared, config.prune_older_than, background.clone());
        tracker.spawn(prune);
    }
    let (store, upstreams) = {
        let (config, metrics) = (config.clone(), Arc::clone(&metrics));
        tokio::task::spawn_blocking(move || open(&config, shared, &metrics))
            .await
            .map_err(io::Error::other)??
    };
    tracker.spawn({
        let (store, background) = (Arc::clone(&store), background.clone());
        async move { store.run(background).await }
    });
    let fills = Fills::new(
        config.fill.clone(),
        Arc::clone(&store.disk),
        Arc::clone(&metrics),
        tracker.clone(),
        downloads.clone(),
    );
    let cache = Cache::new(cache::Parts {
        policy,
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

    let (_ready, ready) = watch::channel(true);
    let limits = Limits {
        answer: config.limits.answer,
        connections: config.limits.connections,
        ..Limits::default()
    };
    let reload = Reload::new(Arc::clone(&cache), Arc::clone(&metrics), source);
    let server = Server::bind(&config.server, limits, cache, metrics, ready)
        .await
        .map_err(AppError::Listen)?;
    let shutdown = CancellationToken::new();
    tracker.spawn(stop_on_signal(shutdown.clone())?);
    tracker.spawn(reload.watch(background.clone())?);
    let ended = server.run(shutdown, &tracker).await;

    downloads.cancel();
    background.cancel();
    tracker.close();
    if tokio::time::timeout(WIND_DOWN, tracker.wait())
        .await
        .is_err()
    {
        tracing::warn!(tasks = tracker.len(), "some work did not end in time");
    }
    store.close().await?;
    tracing::info!("stopped");
    Ok(ended?)
}

/// The shared store, over an HTTP client of ours.
async fn connect(shared: &object::Config, config: &Config) -> Result<Arc<Shared>, AppError> {
    let (limits, egress) = (config.limits.clone(), config.egress.clone());
    let client = tokio::task::spawn_blocking(move || store_client(&limits, &egress))
        .await
        .map_err(io::Error::other)?
        .map_err(|message| AppError::Config(vec![message]))?;
    let store = object::open(shared, client).await;
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

/// The parts that read files. Blocking.
fn open(
    config: &Config,
    shared: Option<Arc<Shared>>,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<Store>, Upstreams), AppError> {
    let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, metrics)
        .map_err(AppError::Config)?;
    let store = Store::open(&config.store, shared, Arc::clone(metrics))?;
    Ok((store, upstreams))
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

/// Cancels `shutdown` at the first SIGTERM or SIGINT.
fn stop_on_signal(shutdown: CancellationToken) -> io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = shutdown.cancelled() => {}
        }
        shutdown.cancel();
    })
}
