//! Why there is no answer. Knows nothing of HTTP: `server::error` has the table.

use std::sync::Arc;
use std::time::Duration;

use crate::fill::{FillError, SourceError};
use crate::oci::Registry;
use crate::policy::Refusal;
use crate::store::StoreError;
use crate::telemetry::metrics::Stale;
use crate::upstream::{UpstreamError, UpstreamErrorKind};

/// How soon a client may come again when too much is going on.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, thiserror::Error)]
pub enum CacheError {
    /// Policy says no.
    #[error("{}", .0.message)]
    Denied(Arc<Refusal>),
    /// The world is closed: no upstream goes by this name.
    #[error("{0} is not served here")]
    NotServed(Registry),
    #[error("no such manifest")]
    ManifestUnknown,
    #[error("no such blob")]
    BlobUnknown,
    #[error("no such repository")]
    NameUnknown,
    /// Offline, and not in the cache. `listing`: referrers or a signature's tag, whose absence is
    /// an ordinary answer; otherwise an image is missing.
    #[error("offline, and not in the cache")]
    Offline { listing: bool },
    #[error(transparent)]
    Upstream(UpstreamError),
    /// Something came, but it is not what its digest says, or no manifest.
    #[error("{0}")]
    WrongBytes(String),
    #[error("too busy")]
    Busy { retry_after: Duration },
    /// The time for an answer ran out.
    #[error("{0} took too long")]
    TooSlow(String),
    /// Our disk, our bug: the client sees the request's id only.
    #[error("{0}")]
    Internal(String),
}

/// What was being asked for: a 404 has another name for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Manifest,
    Blob,
    List,
}

impl CacheError {
    pub(super) fn from_upstream(error: UpstreamError, kind: Kind) -> Self {
        match (&error.kind, kind) {
            (UpstreamErrorKind::NotFound, Kind::Manifest) => CacheError::ManifestUnknown,
            (UpstreamErrorKind::NotFound, Kind::Blob) => CacheError::BlobUnknown,
            (UpstreamErrorKind::NotFound, Kind::List) => CacheError::NameUnknown,
            _ => CacheError::Upstream(error),
        }
    }

    /// Why something stale is served in place of this error.
    pub(super) fn as_stale(&self) -> Stale {
        match self {
            CacheError::Upstream(error) => match error.kind {
                UpstreamErrorKind::RateLimited { .. } => Stale::RateLimited,
                UpstreamErrorKind::Down { .. } => Stale::Down,
                _ => Stale::Failed,
            },
            _ => Stale::Failed,
        }
    }

    /// Whether the upstream could not say: what we have, though old, is then the best answer.
    /// A registry that says no, or that there is no such thing, has said something.
    pub(super) fn leaves_stale(&self) -> bool {
        match self {
            CacheError::Upstream(error) => match error.kind {
                UpstreamErrorKind::Refused
                | UpstreamErrorKind::LoginRefused(_)
                | UpstreamErrorKind::NotFound => false,
                UpstreamErrorKind::RateLimited { .. }
                | UpstreamErrorKind::Unavailable(_)
                | UpstreamErrorKind::Overloaded { .. }
                | UpstreamErrorKind::Down { .. }
                | UpstreamErrorKind::Busy { .. }
                | UpstreamErrorKind::LoginUnavailable(_)
                | UpstreamErrorKind::TimedOut(_)
                | UpstreamErrorKind::RangeNotSatisfiable
                | UpstreamErrorKind::Invalid(_)
                | UpstreamErrorKind::HostRefused(_)
                | UpstreamErrorKind::NoWayOut(_) => true,
            },
            CacheError::WrongBytes(_) | CacheError::TooSlow(_) | CacheError::Internal(_) => true,
            CacheError::Denied(_)
            | CacheError::NotServed(_)
            | CacheError::ManifestUnknown
            | CacheError::BlobUnknown
            | CacheError::NameUnknown
            | CacheError::Offline { .. }
            | CacheError::Busy { .. } => false,
        }
    }
}

impl CacheError {
    /// Whether that is what an image is missing for.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, CacheError::Offline { listing: false })
    }

    /// Whether the upstream gave no answer of its own: it may give one later.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            CacheError::Upstream(error) => matches!(
                error.kind,
                UpstreamErrorKind::Unavailable(_)
                    | UpstreamErrorKind::TimedOut(_)
                    | UpstreamErrorKind::RateLimited { .. }
            ),
            CacheError::TooSlow(_) => true,
            _ => false,
        }
    }
}

impl From<SourceError> for CacheError {
    fn from(error: SourceError) -> Self {
        // A source's own words, where it failed by them.
        if let Some(error) = error.cause.downcast_ref::<UpstreamError>() {
            return CacheError::from_upstream(error.clone(), Kind::Blob);
        }
        if let Some(error) = error.cause.downcast_ref::<CacheError>() {
            return error.clone();
        }
        CacheError::WrongBytes(error.to_string())
    }
}

impl From<FillError> for CacheError {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Source(error) => error.into(),
            FillError::WrongBytes { .. } => CacheError::WrongBytes(error.to_string()),
            FillError::Busy | FillError::Stopping => CacheError::Busy { retry_after: BUSY },
            FillError::Local(_) | FillError::TooSlow => CacheError::Internal(error.to_string()),
        }
    }
}

impl From<StoreError> for CacheError {
    fn from(error: StoreError) -> Self {
        CacheError::Internal(error.to_string())
    }
}
