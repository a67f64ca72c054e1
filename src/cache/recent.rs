//! What upstreams said a moment ago, so that nobody asks them the same again at once: that there
//! is no such thing, that we ask too much, or nothing at all.
//!
//! Clients ask five or six times within a second after a 429 and ignore `Retry-After`; without
//! this, each of them would reach the upstream.

use std::time::Duration;

use moka::sync::Cache as Memory;
use tokio::time::Instant;

use super::CacheError;
use super::error::Kind;
use crate::oci::{Reference, Registry, Repository};
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// Negative answers in memory.
const MOST_MISSING: u64 = 65_536;
/// Registries in memory: wildcards make their number open.
const MOST_REGISTRIES: u64 = 4096;
/// How long an upstream that did not answer is not waited for where there is a stale answer.
const DOWN: Duration = Duration::from_secs(10);
/// How long a rate limit lasts that does not say; and the longest that one is believed.
const LIMITED: Duration = Duration::from_secs(60);
const LONGEST_LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(Debug)]
pub(super) struct Recent {
    missing: Memory<(Repository, Reference, Kind), ()>,
    down: Memory<Registry, ()>,
    /// Until when.
    limited: Memory<Registry, Instant>,
}

impl Recent {
    pub(super) fn new(missing_for: Duration) -> Self {
        Recent {
            missing: Memory::builder()
                .max_capacity(MOST_MISSING)
                .time_to_live(missing_for)
                .build(),
            down: Memory::builder()
                .max_capacity(MOST_REGISTRIES)
                .time_to_live(DOWN)
                .build(),
            limited: Memory::builder()
                .max_capacity(MOST_REGISTRIES)
                .time_to_live(LONGEST_LIMIT)
                .build(),
        }
    }

    /// Remembers what `error` means for those who come next. `reference` is what was asked for.
    pub(super) fn note(&self, repository: &Repository, reference: &Reference, error: &CacheError) {
        let kind = match error {
            CacheError::ManifestUnknown => Kind::Manifest,
            CacheError::BlobUnknown => Kind::Blob,
            error => return self.note_registry(&repository.registry, error),
        };
        self.missing
            .insert((repository.clone(), reference.clone(), kind), ());
    }

    /// The same for what is not about one manifest or blob.
    pub(super) fn note_registry(&self, registry: &Registry, error: &CacheError) {
        let CacheError::Upstream(error) = error else {
            return;
        };
        match error.kind {
            UpstreamErrorKind::Unavailable(_)
            | UpstreamErrorKind::TimedOut(_)
            | UpstreamErrorKind::NoWayOut(_) => {
                self.down.insert(registry.clone(), ());
            }
            UpstreamErrorKind::RateLimited { retry_after } => {
                let wait = retry_after.unwrap_or(LIMITED).min(LONGEST_LIMIT);
                self.limited.insert(registry.clone(), Instant::now() + wait);
            }
            UpstreamErrorKind::Refused
            | UpstreamErrorKind::NotFound
            | UpstreamErrorKind::RangeNotSatisfiable
            | UpstreamErrorKind::Invalid(_)
            | UpstreamErrorKind::HostRefused(_) => {}
        }
    }

    /// Whether the upstream said a moment ago that it has no such thing.
    pub(super) fn is_missing(
        &self,
        repository: &Repository,
        reference: &Reference,
        kind: Kind,
    ) -> bool {
        self.missing
            .contains_key(&(repository.clone(), reference.clone(), kind))
    }

    /// Whether it is not worth waiting for this registry where there is another answer.
    pub(super) fn is_down(&self, registry: &Registry) -> bool {
        self.down.contains_key(registry)
    }

    /// The rate limit that is in force, with the time that is left of it.
    pub(super) fn limit(&self, registry: &Registry) -> Option<CacheError> {
        let until = self.limited.get(registry)?;
        let left = until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())?;
        Some(CacheError::Upstream(UpstreamError {
            registry: registry.to_string(),
            kind: UpstreamErrorKind::RateLimited {
                retry_after: Some(left),
            },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limited(retry_after: Option<Duration>) -> CacheError {
        let kind = UpstreamErrorKind::RateLimited { retry_after };
        CacheError::Upstream(UpstreamError {
            registry: "r.example".into(),
            kind,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_limit_holds_for_its_registry_and_its_time() {
        let recent = Recent::new(Duration::from_secs(15));
        let (one, other): (Registry, Registry) =
            ("r.example".parse().unwrap(), "o.example".parse().unwrap());
        recent.note_registry(&one, &limited(Some(Duration::from_secs(7))));
        assert!(recent.limit(&one).is_some());
        assert!(recent.limit(&other).is_none());
        tokio::time::advance(Duration::from_secs(8)).await;
        assert!(recent.limit(&one).is_none());

        recent.note_registry(&one, &limited(None));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(
            recent.limit(&one).is_some(),
            "a minute where the upstream does not say"
        );
    }
}
