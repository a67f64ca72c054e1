//! What links and tags have in common: something small per key that lives in memory, is read from
//! its files when first asked for, and is written back by a background writer.
//!
//! Memory answers at once and is right even when the disk is slow or fails. There is never more
//! than one cell per key: a cell that memory has dropped while somebody still holds it (the
//! writer, above all) is found again instead of being read from a file that lacks its latest.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::files::{Change, Faults, blocking, lock};
use super::layout::Layout;
use super::present::Present;

/// Cells that may wait for the writer. When there are more, a change waits in its cell for the
/// next change of it.
const MOST_DIRTY: usize = 16 * 1024;

/// Changes are written when nothing else has changed for so long: what a burst of pulls changes
/// does not compete with its answers.
const PAUSE: Duration = Duration::from_millis(500);
/// How many pauses they wait for at most.
const MOST_PAUSES: usize = 4;

/// What lies on a shelf.
pub(super) trait Kept: Debug + Default + Send + 'static {
    type Key: Clone + Debug + Eq + Hash + Send + Sync + 'static;

    /// Where it is kept. Where none of these files is, there is nothing to load.
    fn files(layout: &Layout, key: &Self::Key) -> Vec<PathBuf>;

    /// Reads what was kept; nothing, when there is nothing or it cannot be read. Blocks.
    fn load(layout: &Layout, key: &Self::Key, faults: &Faults) -> Self;

    /// Takes what the files do not say yet.
    fn take_changes(&mut self, layout: &Layout, key: &Self::Key) -> Vec<Change>;

    /// How much memory it takes, in entries.
    fn weight(&self) -> usize;
}

#[derive(Debug)]
pub(super) struct Shelf<V: Kept> {
    cells: moka::future::Cache<V::Key, Arc<Cell<V>>>,
    inner: Arc<Inner<V>>,
}

#[derive(Debug)]
struct Inner<V: Kept> {
    layout: Layout,
    faults: Arc<Faults>,
    present: Arc<Present>,
    live: Mutex<Live<V>>,
    dirty: Mutex<Vec<Arc<Cell<V>>>>,
    wake: Notify,
    /// One writer at a time, so that an older state never lands on a newer one.
    saving: Mutex<()>,
}

/// Every cell that anybody holds.
#[derive(Debug)]
struct Live<V: Kept> {
    cells: HashMap<V::Key, Weak<Cell<V>>>,
    /// How large the map may get before it is cleared of cells that are gone.
    prune_at: usize,
}

#[derive(Debug)]
pub(super) struct Cell<V: Kept> {
    key: V::Key,
    value: Mutex<V>,
    /// What memory takes it for, in entries.
    weighed: AtomicUsize,
    dirty: AtomicBool,
}

// === impl Shelf ===

impl<V: Kept> Shelf<V> {
    /// Keeps about `entries` entries in memory.
    pub(super) fn new(
        layout: Layout,
        faults: Arc<Faults>,
        present: Arc<Present>,
        entries: u64,
    ) -> Self {
        let cells = moka::future::Cache::builder()
            .max_capacity(entries)
            .weigher(|_, cell: &Arc<Cell<V>>| cell.weigh())
            .build();
        let inner = Inner {
            layout,
            faults,
            present,
            live: Mutex::new(Live {
                cells: HashMap::new(),
                prune_at: 1024,
            }),
            dirty: Mutex::default(),
            wake: Notify::new(),
            saving: Mutex::default(),
        };
        Shelf {
            cells,
            inner: Arc::new(inner),
        }
    }

    /// Looks at what is kept under `key`.
    pub(super) async fn read<T>(&self, key: &V::Key, look: impl FnOnce(&V) -> T) -> T {
        let cell = self.cell(key).await;
        let value = lock(&cell.value);
        look(&value)
    }

    /// Changes what is kept under `key`; `change` says whether there is something to write. It is
    /// written soon, in the background.
    pub(super) async fn change(&self, key: &V::Key, change: impl FnOnce(&mut V) -> bool) {
        let cell = self.cell(key).await;
        let changed = change(&mut lock(&cell.value));
        if changed {
            self.inner.save_soon(&cell);
            if cell.has_outgrown() {
                self.cells.insert(key.clone(), cell).await;
            }
        }
    }

    async fn cell(&self, key: &V::Key) -> Arc<Cell<V>> {
        if let Some(cell) = self.cells.get(key).await {
            return cell;
        }
        self.cells
            .get_with_by_ref(key, Arc::clone(&self.inner).find_or_load(key))
            .await
    }

    /// Writes what changed before the call. Cancel-safe: a write under way goes on.
    pub(super) async fn flush(&self) {
        let inner = Arc::clone(&self.inner);
        // Failures are noted where they happen.
        let _ = blocking(move || {
            inner.save();
            Ok(())
        })
        .await;
    }

    /// Writes changes as they come, a burst of them together, until `token` is cancelled.
    pub(super) async fn run(&self, token: CancellationToken) {
        let burst = async || {
            self.inner.wake.notified().await;
            for _ in 0..MOST_PAUSES {
                let before = lock(&self.inner.dirty).len();
                tokio::time::sleep(PAUSE).await;
                if lock(&self.inner.dirty).len() == before {
                    break;
                }
            }
        };
        while token.run_until_cancelled(burst()).await.is_some() {
            self.flush().await;
        }
    }
}

// === impl Inner ===

impl<V: Kept> Inner<V> {
    async fn find_or_load(self: Arc<Self>, key: &V::Key) -> Arc<Cell<V>> {
        let found = lock(&self.live).cells.get(key).and_then(Weak::upgrade);
        if let Some(cell) = found {
            return cell;
        }
        let files = V::files(&self.layout, key);
        let value = if files.iter().any(|file| self.present.may_have(file)) {
            let (inner, owned) = (Arc::clone(&self), key.clone());
            let loaded = blocking(move || Ok(V::load(&inner.layout, &owned, &inner.faults))).await;
            // An error means that the process is ending.
            loaded.unwrap_or_default()
        } else {
            V::default()
        };
        let cell = Arc::new(Cell {
            key: key.clone(),
            value: Mutex::new(value),
            weighed: AtomicUsize::new(0),
            dirty: AtomicBool::new(false),
        });
        lock(&self.live).insert(&cell);
        cell
    }

    fn save_soon(&self, cell: &Arc<Cell<V>>) {
        if cell.dirty.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut dirty = lock(&self.dirty);
        if dirty.len() < MOST_DIRTY {
            dirty.push(Arc::clone(cell));
            drop(dirty);
            self.wake.notify_one();
        } else {
            drop(dirty);
            cell.dirty.store(false, Ordering::Release);
            let source = std::io::ErrorKind::WouldBlock.into();
            let what = format!("write what is known of {:?}", cell.key);
            self.faults.note(&StoreError::Io { what, source });
        }
    }

    /// Blocks.
    fn save(&self) {
        let _saving = lock(&self.saving);
        for cell in std::mem::take(&mut *lock(&self.dirty)) {
            // First, so that a change from here on is queued again.
            cell.dirty.store(false, Ordering::Release);
            let changes = lock(&cell.value).take_changes(&self.layout, &cell.key);
            for change in changes {
                self.present.add(change.path());
                if let Err(error) = change.apply(&self.layout) {
                    self.faults.note(&error);
                }
            }
        }
    }
}

// === impl Cell ===

impl<V: Kept> Cell<V> {
    fn weigh(&self) -> u32 {
        let weight = lock(&self.value).weight();
        self.weighed.store(weight, Ordering::Relaxed);
        weight.saturating_add(1).try_into().unwrap_or(u32::MAX)
    }

    /// Whether it has to be weighed again. An eighth more is let pass: weighing changes the table of
    /// all cells, and in a burst one repository grows with every answer.
    fn has_outgrown(&self) -> bool {
        let weighed = self.weighed.load(Ordering::Relaxed);
        lock(&self.value).weight() > weighed + weighed / 8
    }
}

// === impl Live ===

impl<V: Kept> Live<V> {
    fn insert(&mut self, cell: &Arc<Cell<V>>) {
        if self.cells.len() >= self.prune_at {
            self.cells.retain(|_, cell| cell.strong_count() > 0);
            self.prune_at = (self.cells.len() * 2).max(1024);
        }
        self.cells.insert(cell.key.clone(), Arc::downgrade(cell));
    }
}
