//! Another policy without a restart: at SIGHUP, and when the configuration file changes.
//!
//! Kubernetes mounts a configuration as symlinks and renews it by swapping one of them, which no
//! watch on the file itself would see. So the file is looked at every second, through the links.
//! Half a file can be a whole policy, only another one: a file that changes is left alone until it
//! looked the same twice. What is wrong with a file is said in the log and by a metric, and
//! changes nothing else; nor do keys outside `[policy]` and other than `grants`, which need a
//! restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::config::{LoadError, Source, check};
use crate::policy::{Engine, Grants, Problem};
use crate::telemetry::Metrics;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps a cache's policy what the configuration file says.
#[derive(Debug)]
pub(super) struct Reload {
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    /// What everything but the policy was made of.
    started: Source,
    /// What the policy was made of.
    current: Source,
}

/// What tells one version of a file from another: inode, size and time.
type Version = (u64, u64, SystemTime);

impl Reload {
    /// `started` is what the cache was made of.
    pub(super) fn new(cache: Arc<Cache>, metrics: Arc<Metrics>, started: Source) -> Self {
        let reload = Reload {
            cache,
            metrics,
            current: started.clone(),
            started,
        };
        reload.succeeded();
        reload
    }

    /// Watches until `stop`.
    ///
    /// # Errors
    /// The signal cannot be listened to.
    pub(super) fn watch(mut self, stop: CancellationToken) -> io::Result<impl Future<Output = ()>> {
        let mut hangup = signal(SignalKind::hangup())?;
        Ok(async move {
            // The file may have changed since it was read for the start.
            let (mut seen, mut changed) = (None, false);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = hangup.recv() => {
                        tracing::info!("asked to reload the policy");
                        changed = false;
                        self.reload().await;
                    }
                    () = tokio::time::sleep(LOOK_EVERY) => {
                        let version = self.version().await;
                        if version != seen {
                            (seen, changed) = (version, true);
                        } else if changed {
                            changed = false;
                            self.reload().await;
                        }
                    }
                }
            }
        })
    }

    async fn version(&self) -> Option<Version> {
        let path = self.started.path()?.to_owned();
        let version = tokio::task::spawn_blocking(move || version(&path));
        version.await.ok().flatten()
    }

    async fn reload(&mut self) {
        let Some(path) = self.started.path().map(Path::to_owned) else {
            tracing::warn!("there is no configuration file to reload");
            return;
        };
        let loaded = tokio::task::spawn_blocking(move || load(&path)).await;
        match loaded {
            Ok(Ok((source, ..))) if source == self.current => self.succeeded(),
            Ok(Ok((source, policy, grants))) => {
                tracing::info!(rules = policy.rule_count(), "policy reloaded");
                let mut keys = self.started.differences(&source, "policy");
                keys.retain(|key| !key.ends_with(".grants"));
                if !keys.is_empty() {
                    let keys = keys.join(", ");
                    tracing::warn!(keys, "changed too, but needs a restart");
                }
                self.cache.set_policy(policy, grants);
                self.current = source;
                self.succeeded();
            }
            Ok(Err(error)) => self.failed(error),
            Err(_) => tracing::error!("reading the configuration file panicked"),
        }
    }

    fn succeeded(&self) {
        let now = jiff::Timestamp::now().as_second();
        self.metrics.policy_loaded.set(now);
        self.metrics.policy_reload_failed.set(0);
    }

    fn failed(&self, error: LoadError) {
        const MESSAGE: &str = "the configuration file is unusable, the old policy holds";
        self.metrics.policy_reload_failed.set(1);
        match error {
            LoadError::Read { .. } => tracing::error!(%error, "{MESSAGE}"),
            LoadError::Invalid { faults, .. } => {
                for fault in faults {
                    tracing::error!(
                        line = fault.line,
                        column = fault.column,
                        key = fault.key,
                        error = fault.message,
                        "{MESSAGE}"
                    );
                }
            }
        }
    }
}

/// Reads the file as a start would: what could not be started with is not taken. Blocking.
fn load(path: &Path) -> Result<(Source, Engine, Grants), LoadError> {
    let source = Source::find(Some(path))?;
    let config = source.parse()?;
    let invalid = |faults| LoadError::Invalid {
        path: Some(PathBuf::from(path)),
        faults,
    };
    let faults = check::check(&config, &source);
    if !faults.is_empty() {
        return Err(invalid(faults));
    }
    let wrong = |problems: Vec<Problem>| {
        let faults = problems.into_iter().map(|problem| source.locate(problem));
        invalid(faults.collect())
    };
    let policy = Engine::compile(&config.policy).map_err(wrong)?;
    let grants = config.grants().map_err(wrong)?;
    Ok((source, policy, grants))
}

/// Follows symlinks. None when there is no file. Blocking.
fn version(path: &Path) -> Option<Version> {
    let meta = std::fs::metadata(path).ok()?;
    Some((
        std::os::unix::fs::MetadataExt::ino(&meta),
        meta.len(),
        meta.modified().ok()?,
    ))
}
