//! Where a fill's readers come from: one repository of an upstream, or offline nobody.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::CacheError;
use crate::fill::{Opened, Source, SourceError, SourceErrorKind};
use crate::oci::{Digest, Repository};
use crate::store::Shared;
use crate::upstream::{BlobBody, Upstream, UpstreamError, UpstreamErrorKind};

/// How long a fill that is offline waits for what the shared store has, which is on its way when this
/// begins.
const LATE: Duration = Duration::from_secs(10);

pub(super) struct RepositorySource {
    upstream: Arc<Upstream>,
    repository: Repository,
    digest: Digest,
    name: String,
    /// The upstream has begun to send it.
    begun: AtomicBool,
}

/// Offline there is no upstream. What the shared store has comes from there, as from near; this says
/// that there is nothing else.
#[derive(Debug)]
pub(super) struct Offline {
    name: String,
    shared: Option<Arc<Shared>>,
    digest: Digest,
    permits: Arc<Semaphore>,
}

// === impl RepositorySource ===

impl RepositorySource {
    pub(super) fn new(upstream: Arc<Upstream>, repository: Repository, digest: Digest) -> Self {
        let name = repository.to_string();
        RepositorySource {
            upstream,
            repository,
            digest,
            name,
            begun: AtomicBool::new(false),
        }
    }
}

impl fmt::Debug for RepositorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[async_trait]
impl Source for RepositorySource {
    fn name(&self) -> &str {
        &self.name
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        self.upstream.body_permit().await
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.upstream.try_body_permit()
    }

    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError> {
        let (upstream, name) = (&self.upstream, &self.repository.name);
        let answer = if self.begun.load(Ordering::Relaxed) {
            upstream.blob_again(name, &self.digest, range).await
        } else {
            upstream.blob(name, &self.digest, range).await
        };
        let answer = answer.map_err(source_error)?;
        self.begun.store(true, Ordering::Relaxed);
        Ok(Opened {
            range: answer.range,
            total: answer.total,
            body: body_stream(answer.body),
        })
    }
}

// === impl Offline ===

impl Offline {
    pub(super) fn new(
        repository: &Repository,
        shared: Option<Arc<Shared>>,
        digest: Digest,
    ) -> Self {
        Offline {
            name: format!("{repository}, offline"),
            shared,
            digest,
            permits: Arc::new(Semaphore::new(1)),
        }
    }
}

#[async_trait]
impl Source for Offline {
    fn name(&self) -> &str {
        &self.name
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.permits);
        permits
            .acquire_owned()
            .await
            .expect("nobody closes this semaphore")
    }

    fn try_permit(&self) -> Option<OwnedSemaphorePermit> {
        None
    }

    /// Asked only where nothing was found near in the time that a pull waits for that when it has an
    /// upstream too. Here it has all the time there is.
    async fn open(&self, _: Option<Range<u64>>) -> Result<Opened, SourceError> {
        let found = match &self.shared {
            Some(shared) => shared.stat(&self.digest).await,
            None => Ok(None),
        };
        match found {
            Ok(Some(_)) => sleep(LATE).await,
            Ok(None) => {}
            Err(error) => {
                return Err(SourceError {
                    kind: SourceErrorKind::Broken,
                    cause: Arc::new(error),
                });
            }
        }
        Err(SourceError {
            kind: SourceErrorKind::Gone,
            cause: Arc::new(CacheError::Offline { listing: false }),
        })
    }
}

/// A body as a stream that ends after its first error.
pub(super) fn body_stream(body: BlobBody) -> BoxStream<'static, Result<Bytes, SourceError>> {
    let chunks = stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.chunk().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some(body))),
            Ok(None) => None,
            Err(error) => Some((Err(source_error(error)), None)),
        }
    });
    chunks.boxed()
}

pub(super) fn source_error(error: UpstreamError) -> SourceError {
    let kind = match &error.kind {
        UpstreamErrorKind::Refused
        | UpstreamErrorKind::LoginRefused(_)
        | UpstreamErrorKind::NotFound => SourceErrorKind::Gone,
        UpstreamErrorKind::RateLimited { .. } => SourceErrorKind::Throttled,
        // An empty blob has no range; an upstream that lies about ranges may still send the whole.
        UpstreamErrorKind::RangeNotSatisfiable | UpstreamErrorKind::Invalid(_) => {
            SourceErrorKind::NoRanges
        }
        UpstreamErrorKind::Unavailable(_)
        | UpstreamErrorKind::Overloaded { .. }
        | UpstreamErrorKind::Down { .. }
        | UpstreamErrorKind::Busy { .. }
        | UpstreamErrorKind::LoginUnavailable(_)
        | UpstreamErrorKind::TimedOut(_)
        | UpstreamErrorKind::HostRefused(_)
        | UpstreamErrorKind::NoWayOut(_) => SourceErrorKind::Broken,
    };
    SourceError {
        kind,
        cause: Arc::new(error),
    }
}
