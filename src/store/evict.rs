//! The size limit. Blobs, spools and quarantine count together; above `max_size` the least
//! recently used blobs go until 95 % of it are left, so that not every commit evicts.
//!
//! A blob that somebody has open, or that was opened in the last minute, stays: taking its name
//! away would free nothing. Who opened a blob just before it went reads on undisturbed. What is
//! *held*, because an upload needs it, stays too.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::StoreError;
use super::disk::Disk;
use super::files::{blocking, found, lock};
use crate::oci::Digest;

/// Where eviction stops, in percent of `max_size`.
const LOW_MARK: u64 = 95;

/// Keeps a blob from being evicted until it is dropped.
#[derive(Debug)]
pub struct Hold {
    disk: Arc<Disk>,
    digest: Digest,
    why: &'static str,
}

// === impl Hold ===

impl Drop for Hold {
    fn drop(&mut self) {
        lock(&self.disk.index).release(&self.digest, self.why);
    }
}

// === impl Disk ===

impl Disk {
    /// Keeps a blob, whether it is here already or still to come, from being evicted. `why` ends
    /// the sentence "it is needed by ...".
    #[must_use = "it is held only as long as this lives"]
    pub fn hold(self: &Arc<Self>, digest: &Digest, why: &'static str) -> Hold {
        lock(&self.index).hold(*digest, why);
        Hold {
            disk: Arc::clone(self),
            digest: *digest,
            why,
        }
    }

    /// Whether a blob of `size` bytes may be kept at all.
    #[must_use]
    pub fn would_fit(&self, size: u64) -> bool {
        size <= self.max_size
    }

    /// Evicts at least `bytes`, for somebody who found the disk full; false when there is not as
    /// much that may go.
    pub async fn make_room(self: &Arc<Self>, bytes: u64) -> bool {
        let disk = Arc::clone(self);
        blocking(move || Ok(disk.evict(bytes) >= bytes))
            .await
            .unwrap_or(false)
    }

    /// Blocks.
    pub(super) fn keep_below_limit(&self) {
        let others = bytes_below(&self.layout.spool()) + bytes_below(&self.layout.quarantine());
        let used = self.with_index(|index| index.size()) + others;
        if used > self.max_size {
            self.evict(used - self.max_size / 100 * LOW_MARK);
        }
    }

    /// Evicts least recently used blobs until `bytes` are gone or nothing idle is left; says how
    /// many bytes went. Blocks.
    pub(super) fn evict(&self, bytes: u64) -> u64 {
        let _moves = lock(&self.moves);
        let mut freed = 0;
        for (digest, size) in self.with_index(|index| index.evict(bytes, Instant::now())) {
            match found(std::fs::remove_file(self.layout.blob(&digest))) {
                Ok(_) => {
                    freed += size;
                    self.faults.metrics().store_evictions.inc();
                }
                // The next start finds it again.
                Err(source) => {
                    self.faults.note(&StoreError::Io {
                        what: format!("evict {digest}"),
                        source,
                    });
                }
            }
        }
        freed
    }
}

/// What the files of a directory take on the disk. Spools have holes: their length says little.
fn bytes_below(directory: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(directory) else {
        return 0;
    };
    // Files come and go: one that is gone takes nothing.
    files
        .flatten()
        .filter_map(|file| file.metadata().ok())
        .map(|file| file.blocks() * 512)
        .sum()
}
