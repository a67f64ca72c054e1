//! A start: take the lock, read the index, find the blobs that are there, sweep what an earlier
//! process left behind.
//!
//! The index says whether that process ended well. The word that says so is taken away, durably,
//! before anything else happens, so that it vouches for one start only.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::FlockOperation;
use tokio::sync::Semaphore;

use super::disk::Disk;
use super::files::{Faults, Stamp, found, sync_dir, unix_now};
use super::gone::Departures;
use super::index::{self, Line, Saved};
use super::layout::Layout;
use super::pins::Pins;
use super::{Config, StoreError};
use crate::oci::{Algorithm, Digest};

/// What `max_size` is when it is not configured: 8 tenths of the file system.
const DEFAULT_TENTHS: u64 = 8;

// === impl Disk ===

impl Disk {
    /// Blocks. Takes the lock, reads `v1/index`, walks `v1/blobs`, sweeps what is stale. Evicts
    /// nothing yet: who holds what comes later.
    pub(super) fn open(config: &Config, faults: Arc<Faults>) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::new(&config.path);
        make_directories(&layout)
            .map_err(StoreError::io(format!("make {}", config.path.display())))?;
        let locked = take_lock(&layout)?;
        let saved = read_index(&layout)?;
        let pins = Arc::new(Pins::load(&layout, &faults)?);
        let gone = Departures::load(&layout, &faults);
        let disk = Disk {
            max_size: match config.max_size {
                Some(size) => size,
                None => default_size(layout.root())?,
            },
            layout,
            faults,
            pins,
            gone,
            evicting: Mutex::default(),
            index: Mutex::default(),
            moves: Mutex::default(),
            checks: Mutex::default(),
            hashing: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, usize::from),
            )),
            untold: Mutex::default(),
            unsynced: Mutex::default(),
            closed: Mutex::new(false),
            closing: AtomicBool::new(false),
            uploads: OnceLock::new(),
            #[cfg(test)]
            hashed: 0.into(),
            _lock: locked,
        };
        disk.restore(saved)
            .map_err(StoreError::io("read v1/blobs"))?;
        disk.sweep_temporaries()
            .map_err(StoreError::io("sweep v1/spool"))?;
        disk.sweep();
        Ok(Arc::new(disk))
    }

    /// Fills the index with the files that are there.
    fn restore(&self, saved: Saved) -> io::Result<()> {
        let now = unix_now();
        let mut known: HashMap<Digest, (usize, Line)> = HashMap::with_capacity(saved.lines.len());
        for (position, line) in saved.lines.into_iter().enumerate() {
            known.insert(line.digest, (position, line));
        }
        let mut blobs = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for (digest, found) in walk(&self.layout, algorithm)? {
                if found.size == 0 && !is_empty_digest(&digest) {
                    // No need to read it to know that it is wrong, and nobody should be told its
                    // size.
                    self.quarantine(&digest, found.inode);
                    continue;
                }
                let unknown = Line {
                    digest,
                    used: found.modified(),
                    hashed: 0,
                    stamp: None,
                    children: None,
                };
                let (position, mut line) = known.remove(&digest).unwrap_or((usize::MAX, unknown));
                line.stamp = line.stamp.filter(|stamp| saved.clean && *stamp == found);
                // A clock that was wrong must not make a blob immortal.
                line.used = line.used.min(now);
                // What is not trusted is due for the scrub, if nobody asks for it earlier.
                line.hashed = if line.stamp.is_some() {
                    line.hashed.min(now)
                } else {
                    0
                };
                blobs.push((position, line, found.size));
            }
        }
        blobs.sort_by_key(|(position, line, _)| (line.used, *position));
        self.with_index(|index| {
            for (_, line, size) in blobs {
                index.restore(line, size);
            }
        });
        Ok(())
    }
}

fn make_directories(layout: &Layout) -> io::Result<()> {
    // Images may be private: other users of the machine have no business in here.
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(&layout.blobs(Algorithm::Sha256))?;
    make(&layout.blobs(Algorithm::Sha512))?;
    make(&layout.spool())?;
    make(&layout.pins())?;
    make(&layout.imports())?;
    make(&layout.quarantine())
}

pub(super) fn take_lock(layout: &Layout) -> Result<File, StoreError> {
    let path = layout.lock();
    let what = || format!("lock {}", path.display());
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io(what()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(layout.root().into())),
        Err(error) => Err(StoreError::io(what())(error.into())),
    }
}

/// Reads the index and takes its clean mark away, durably, before anything can change.
fn read_index(layout: &Layout) -> Result<Saved, StoreError> {
    let path = layout.index();
    let what = |verb: &str| format!("{verb} {}", path.display());
    let saved = match found(std::fs::read(&path)).map_err(StoreError::io(what("read")))? {
        None => return Ok(Saved::default()),
        Some(bytes) => std::str::from_utf8(&bytes).ok().and_then(Saved::parse),
    };
    let Some(saved) = saved else {
        tracing::warn!(path = %path.display(), "damaged index set aside; blobs will be hashed");
        std::fs::rename(&path, path.with_extension("bad"))
            .map_err(StoreError::io(what("set aside")))?;
        return Ok(Saved::default());
    };
    if saved.clean {
        let unmark = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.write_all_at(index::DIRTY.as_bytes(), index::MARK_OFFSET)?;
            file.sync_all()?;
            sync_dir(&layout.v1())
        };
        unmark().map_err(StoreError::io(what("mark")))?;
    }
    Ok(saved)
}

fn default_size(root: &Path) -> Result<u64, StoreError> {
    let disk = rustix::fs::statvfs(root)
        .map_err(|error| StoreError::io(format!("measure {}", root.display()))(error.into()))?;
    Ok(disk.f_blocks.saturating_mul(disk.f_frsize) / 10 * DEFAULT_TENTHS)
}

/// All files below `v1/blobs/<algorithm>` whose names and places are those of a blob.
fn walk(layout: &Layout, algorithm: Algorithm) -> io::Result<Vec<(Digest, Stamp)>> {
    let mut blobs = Vec::new();
    for shard in std::fs::read_dir(layout.blobs(algorithm))? {
        let shard = shard?;
        if !shard.file_type()?.is_dir() {
            continue;
        }
        let shard_name = shard.file_name();
        for file in std::fs::read_dir(shard.path())? {
            let file = file?;
            let name = file.file_name();
            // In another shard nobody would find it.
            let hex = name
                .to_str()
                .filter(|hex| shard_name.to_str() == hex.get(..2));
            let digest = hex.and_then(|hex| digest_of(algorithm, hex));
            if let Some(digest) = digest
                && let Some(metadata) = found(file.metadata())?
                && metadata.is_file()
            {
                blobs.push((digest, metadata.into()));
            }
        }
    }
    Ok(blobs)
}

fn digest_of(algorithm: Algorithm, hex: &str) -> Option<Digest> {
    format!("{algorithm}:{hex}").parse().ok()
}

fn is_empty_digest(digest: &Digest) -> bool {
    *digest == Digest::of(digest.algorithm(), b"")
}
