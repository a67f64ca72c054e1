//! What upstreams said a moment ago, so that nobody asks them the same again at once: that there
//! is no such thing, or nothing at all. That they are asked too much, they know themselves
//! ([`Upstream::limit`](crate::upstream::Upstream::limit)).

use std::time::Duration;

use moka::sync::Cache as Memory;

use super::CacheError;
use super::error::Kind;
use crate::oci::{Reference, Registry, Repository};
use crate::upstream::UpstreamErrorKind;

/// Negative answers in memory.
const MOST_MISSING: u64 = 65_536;
/// Registries in memory: wildcards make their number open.
const MOST_REGISTRIES: u64 = 4096;
/// How long a client waits for an upstream where there is a stale answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How long an upstream that did not answer is not waited for there.
const DOWN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Recent {
    missing: Memory<(Repository, Reference, Kind), ()>,
    down: Memory<Registry, ()>,
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
            | UpstreamErrorKind::Overloaded { .. }
            | UpstreamErrorKind::TimedOut(_)
            | UpstreamErrorKind::NoWayOut(_) => {
                self.down.insert(registry.clone(), ());
            }
            // Nobody waited for these.
            UpstreamErrorKind::RateLimited { .. }
            | UpstreamErrorKind::Down { .. }
            | UpstreamErrorKind::Busy { .. }
            | UpstreamErrorKind::Refused
            | UpstreamErrorKind::LoginRefused(_)
            | UpstreamErrorKind::LoginUnavailable(_)
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
}
