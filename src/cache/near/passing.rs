//! Keeps in the shared store what the local disk has no room for, while it passes.
//!
//! A layer larger than `store.path` may be is in nobody's cache otherwise: each replica would fetch
//! it from its upstream at every pull. Its pull does not wait for this. Where the shared store is
//! slower than the clients the upload ends, and the next pull tries again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::Nearby;
use crate::fill::{FillError, Reader};
use crate::oci::Digest;
use crate::store::SharedError;
use crate::store::object::Parts;
use crate::telemetry::metrics::{PublishLabels, PublishResult, SharedKind};

/// Blobs that are kept in passing at once.
const MOST: usize = 4;
/// Parts of each on their way at once. With what is read meanwhile that is 25 MiB of memory a blob.
const AT_ONCE: usize = 2;

/// What is being kept, and until when.
#[derive(Debug, Default)]
pub(super) struct Passing {
    running: Mutex<HashMap<Digest, CancellationToken>>,
}

/// A blob is being kept as long as this lives.
struct Turn {
    passing: Arc<Passing>,
    digest: Digest,
}

/// Why a blob did not get there.
#[derive(Debug, thiserror::Error)]
enum NotKept {
    #[error(transparent)]
    Fill(#[from] FillError),
    #[error(transparent)]
    Shared(#[from] SharedError),
}

// === impl Passing ===

impl Passing {
    /// None: it is being kept already, or too many are.
    fn begin(self: &Arc<Self>, digest: Digest) -> Option<Turn> {
        let mut running = self.running();
        if running.len() >= MOST || running.contains_key(&digest) {
            return None;
        }
        running.insert(digest, CancellationToken::new());
        let passing = Arc::clone(self);
        Some(Turn { passing, digest })
    }

    /// Resolves when nobody keeps the digest any more, if somebody does; else never.
    pub(super) async fn ended(&self, digest: &Digest) {
        let token = self.running().get(digest).cloned();
        match token {
            Some(token) => token.cancelled().await,
            None => std::future::pending().await,
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Digest, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(token) = self.passing.running().remove(&self.digest) {
            token.cancel();
        }
    }
}

// === impl Nearby ===

impl Nearby {
    /// Uploads what `reader` has, which ends well only where all of it is verified. `claim` is held
    /// until that is done, so that others come here, and then to the shared store.
    pub(super) fn keep_passing<C: Send + 'static>(&self, digest: Digest, reader: Reader, claim: C) {
        let Some(turn) = self.passing.begin(digest) else {
            return;
        };
        let nearby = self.clone();
        self.tracker.spawn(async move {
            nearby.keep(&digest, reader).await;
            drop((turn, claim));
        });
    }

    async fn keep(&self, digest: &Digest, reader: Reader) {
        let result = match self.upload(digest, reader).await {
            Ok(()) => {
                tracing::info!(%digest, "kept in the shared store, in passing");
                PublishResult::Done
            }
            Err(error) => {
                tracing::info!(%digest, %error, "not kept in the shared store");
                PublishResult::Missed
            }
        };
        let kind = SharedKind::Blob;
        let labels = PublishLabels { kind, result };
        self.published.get_or_create(&labels).inc();
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
        parts.read(piece.file(), piece.range()).await?;
        // The slide keeps a piece as long as somebody has it.
        drop(piece);
        parts.send().await?;
    }
    // The fill's memory goes before the store's last word.
    drop(reader);
    Ok(parts.complete().await?)
}

#[cfg(test)]
mod tests;
