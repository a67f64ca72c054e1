//! The size limit. Blobs, spools and quarantine count together; above `max_size` images go, least
//! recently used first (`order.rs`), until 95 % of it are left, so that not every commit evicts.
//!
//! Never evicted: what a pin names; what is *held*, because an upload or a pin under way needs it;
//! what somebody has open or opened in the last minute, because taking its name away would free
//! nothing; and whatever a manifest that stays for one of these reasons refers to. A pattern keeps
//! what it matches only as long as that fits: a limit that nothing may go below would end in a
//! full disk.
//!
//! The order is worked out on a copy, so that no reader waits for it; what was used in between is
//! noticed when it is taken out, a few blobs at a time.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::time::Instant;

use super::StoreError;
use super::disk::Disk;
use super::files::{blocking, found, lock, unix_now};
use super::gone::{Gone, Reason};
use super::index::Taken;
use super::order::Order;
use super::pins::Strength;
use crate::oci::Digest;

/// Where eviction stops, in percent of `max_size`.
const LOW_MARK: u64 = 95;
/// Blobs taken out between two moments in which commits and readers have their turn.
const BATCH: usize = 64;
/// How long to look into manifests that nobody has looked into before somebody goes.
const LEARNING: Duration = Duration::from_millis(500);
/// How long nobody works out the order again after nothing could go.
const FRUITLESS: Duration = Duration::from_secs(1);

/// Keeps a blob from being evicted until it is dropped.
#[derive(Debug)]
pub struct Hold {
    disk: Arc<Disk>,
    digest: Digest,
    why: &'static str,
}

/// The right to evict, which one has at a time.
#[derive(Debug, Default)]
pub(super) struct Evicting {
    /// When last nothing could go.
    fruitless: Option<Instant>,
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
        blocking(move || Ok(disk.evict(bytes, Reason::Full) >= bytes))
            .await
            .unwrap_or(false)
    }

    /// In bytes.
    fn low_mark(&self) -> u64 {
        self.max_size / 100 * LOW_MARK
    }

    /// Bytes that count against `max_size`. Blocks.
    pub(super) fn used(&self) -> u64 {
        let others = bytes_below(&self.layout.spool()) + bytes_below(&self.layout.quarantine());
        lock(&self.index).size() + others
    }

    /// Blocks, unless somebody is at it already, who will see to it.
    pub(super) fn keep_below_limit(&self) {
        let mut evicting = match self.evicting.try_lock() {
            Ok(evicting) => evicting,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let (mut used, limit) = (self.used(), self.max_size);
        while used > limit {
            if evicting
                .fruitless
                .is_some_and(|at| at.elapsed() < FRUITLESS)
            {
                return;
            }
            let reason = Reason::Limit { used, limit };
            let freed = self.evict_alone(used - self.low_mark(), reason, &mut evicting);
            used = if freed > 0 { self.used() } else { 0 };
        }
    }

    /// Evicts until `bytes` are gone or nothing is left that may go; says how many bytes went.
    /// Blocks.
    pub(super) fn evict(&self, bytes: u64, reason: Reason) -> u64 {
        let mut evicting = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        self.evict_alone(bytes, reason, &mut evicting)
    }

    fn evict_alone(
        &self,
        bytes: u64,
        reason: Reason,
        evicting: &mut MutexGuard<'_, Evicting>,
    ) -> u64 {
        self.learn(LEARNING);
        // The copy is all that readers wait for.
        let known = lock(&self.index).known(Instant::now());
        let order = Order::of(known);
        let (mut freed, pinned) = self.evict_in(&order, bytes, reason, Strength::Pattern);
        if freed < bytes && pinned > self.max_size && self.pins.has_patterns() {
            tracing::warn!("what pinned patterns match does not fit; the least recent of it goes");
            let surplus = (pinned - self.low_mark()).min(bytes - freed);
            freed += self.evict_in(&order, surplus, reason, Strength::Image).0;
        }
        evicting.fruitless = (freed == 0).then(Instant::now);
        freed
    }

    /// Evicts in this order, but for what is pinned with at least this strength. Says how many
    /// bytes went and how many, of those looked at, stayed because of pins.
    fn evict_in(
        &self,
        order: &Order,
        bytes: u64,
        reason: Reason,
        strength: Strength,
    ) -> (u64, u64) {
        let (mut freed, mut pinned_bytes) = (0, 0);
        // What stays because of what leads to it: a pinned manifest, a busy one.
        let (mut below_pinned, mut below_busy) = (HashSet::new(), HashSet::new());
        for batch in order.first_to_go.chunks(BATCH) {
            if freed >= bytes {
                break;
            }
            let _moves = lock(&self.moves);
            let (now, at) = (Instant::now(), unix_now());
            let mut gone = Vec::new();
            self.with_index(|index| {
                let mut taken = freed;
                for known in batch.iter().filter_map(|digest| order.blobs.get(digest)) {
                    if taken >= bytes {
                        break;
                    }
                    let digest = known.digest;
                    let children = known.children.iter().copied();
                    let pinned = self.pins.strength(&digest) >= Some(strength);
                    if pinned || below_pinned.contains(&digest) {
                        pinned_bytes += known.size;
                        below_pinned.extend(children);
                        continue;
                    }
                    let outcome = if below_busy.contains(&digest) {
                        Taken::Busy
                    } else {
                        index.take_idle(&digest, known.turn, now)
                    };
                    match outcome {
                        Taken::Busy => below_busy.extend(children),
                        Taken::Absent => {}
                        Taken::Out { used } => {
                            let size = known.size;
                            taken += size;
                            gone.push(Gone {
                                digest,
                                at,
                                size,
                                used,
                                reason,
                            });
                        }
                    }
                }
            });
            gone.retain(|gone| self.remove_file(&gone.digest));
            freed += gone.iter().map(|gone| gone.size).sum::<u64>();
            self.faults
                .metrics()
                .store_evictions
                .inc_by(gone.len() as u64);
            self.note_gone(gone);
        }
        (freed, pinned_bytes)
    }

    /// Removes the file of a blob that is out of the index. Blocks.
    pub(super) fn remove_file(&self, digest: &Digest) -> bool {
        let removed = found(std::fs::remove_file(self.layout.blob(digest)));
        if let Err(source) = removed {
            // The next start finds it again.
            self.faults.note(&StoreError::Io {
                what: format!("remove {digest}"),
                source,
            });
            return false;
        }
        true
    }

    /// Blocks.
    pub(super) fn note_gone(&self, gone: Vec<Gone>) {
        // Noted is all that can be done: the blobs are gone either way.
        let _ = self.faults.noted(self.gone.note(gone));
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
