//! Keeps in the shared store what the local disk has no room for, while it passes.
//!
//! A layer larger than `store.path` may be is in nobody's cache otherwise: each replica would fetch
//! it from its upstream at every pull. Its pull does not wait for this. Where the shared store is
//! slower than the clients the upload ends, and the next pull tries again.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::Nearby;
use crate::fill::{FillError, Reader};
use crate::oci::Digest;
use crate::store::SharedError;
use crate::store::object::Parts;
use crate::telemetry::metrics::{PublishLabels, PublishResult, SharedKind};

/// Blobs that are kept in passing at once.
pub(super) const MOST: usize = 4;
/// Parts of each on their way at once. With the one being filled that is 24 MiB of memory a blob.
const AT_ONCE: usize = 2;

/// Why a blob did not get there.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error(transparent)]
    Shared(#[from] SharedError),
}

impl Nearby {
    /// Uploads what `reader` has, which ends well only where all of it is verified. `claim` is held
    /// until that is done, so that others come here, and then to the shared store.
    pub(super) fn keep_passing<C: Send + 'static>(&self, digest: Digest, reader: Reader, claim: C) {
        let Ok(permit) = Arc::clone(&self.passing).try_acquire_owned() else {
            return;
        };
        let nearby = self.clone();
        let keep = async move { nearby.keep(digest, reader, (permit, claim)).await };
        self.tracker.spawn(keep);
    }

    async fn keep<C>(&self, digest: Digest, reader: Reader, held: (OwnedSemaphorePermit, C)) {
        let (kind, result) = match self.upload(&digest, reader).await {
            Ok(()) => {
                tracing::info!(%digest, "kept in the shared store, in passing");
                (SharedKind::Blob, PublishResult::Done)
            }
            Err(error) => {
                tracing::info!(%digest, %error, "not kept in the shared store");
                (SharedKind::Blob, PublishResult::Gone)
            }
        };
        let labels = PublishLabels { kind, result };
        self.published.get_or_create(&labels).inc();
        drop(held);
    }

    async fn upload(&self, digest: &Digest, reader: Reader) -> Result<(), NotKept> {
        let mut parts = self.shared.begin(digest, AT_ONCE).await?;
        let uploaded = copy(reader, &mut parts).await;
        if uploaded.is_err() {
            parts.abort().await;
        }
        uploaded
    }
}

async fn copy(mut reader: Reader, parts: &mut Parts<'_>) -> Result<(), NotKept> {
    while let Some(piece) = reader.next().await {
        let piece = piece?;
        parts.write(piece.file(), piece.range()).await?;
    }
    // The fill's memory goes before the store's last word.
    drop(reader);
    Ok(parts.complete().await?)
}
