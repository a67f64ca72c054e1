//! Blobs under `v1/blobs`: read one, keep one.
//!
//! The life of a blob:
//!
//! | state | how it comes about | what a reader gets |
//! |---|---|---|
//! | absent | never kept, evicted, quarantined, gone behind our back | a miss |
//! | unchecked | found by a start that cannot trust it, or its stamp has changed | waits until it is hashed |
//! | trusted | kept or hashed by this process, or unchanged since a clean end | the file |
//!
//! A start after a clean end trusts the files whose inode, size, mtime and ctime are those of the
//! index. After any other end every file is unchecked: a power loss may have taken bytes that the
//! directory still speaks of.
//!
//! Nothing here waits for an fsync; `upkeep.rs` makes commits durable a moment later. Nothing
//! needs that to be right either, because what a crash leaves is hashed before it is served.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::evict::Evicting;
use super::files::{Faults, Stamp, Temporary, blocking, found, lock, rename, unix_now};
use super::gone::{Departures, Reason};
use super::index::Index;
use super::layout::Layout;
use super::learn::children_of;
use super::pins::Pins;
use super::uploads::{Item, Keep, Uploads};
use super::{FileRange, Restored, Spool, StoreError, Verified};
use crate::oci::Digest;

/// What is evicted beside the size of what does not fit, in bytes: the note of what went and the
/// next map of a spool want room too.
const SLACK: u64 = 64 << 10;
/// Who holds what waits for the shared store.
pub(super) const UPLOAD: &str = "an upload";

/// The blobs of one store. Methods that take `Arc<Self>` do their work on the blocking pool, where
/// it runs to its end even when the caller goes away.
#[derive(Debug)]
pub struct Disk {
    pub(super) layout: Layout,
    pub(super) faults: Arc<Faults>,
    pub(super) pins: Arc<Pins>,
    pub(super) gone: Departures,
    /// Taken before `moves`.
    pub(super) evicting: Mutex<Evicting>,
    /// Bytes; see [`super::Config::max_size`].
    pub(super) max_size: u64,
    pub(super) index: Mutex<Index>,
    /// Held while a name below `v1/blobs` or `v1/spool` changes hands, so that the index and the
    /// directory change together. Taken before `index`, and only on the blocking pool.
    pub(super) moves: Mutex<()>,
    /// Blobs that are being hashed; the sender is dropped at the end.
    pub(super) checks: Mutex<HashMap<Digest, watch::Receiver<()>>>,
    /// As many blobs are hashed at once as there are processors.
    pub(super) hashing: Arc<Semaphore>,
    /// Set aside since somebody was last told.
    pub(super) untold: Mutex<Vec<Digest>>,
    pub(super) unsynced: Mutex<Vec<Unsynced>>,
    /// One round of upkeep at a time; true once the store is closed.
    pub(super) closed: Mutex<bool>,
    /// Tells long hashes to stop.
    pub(super) closing: AtomicBool,
    /// Where commits are noted, when replicas share a store. It holds blobs of this one.
    pub(super) uploads: OnceLock<Weak<Uploads>>,
    #[cfg(test)]
    pub(super) hashed: std::sync::atomic::AtomicU64,
    /// The lock goes with the handle.
    pub(super) _lock: File,
}

/// A blob that has its name but would not survive a power loss yet.
#[derive(Debug)]
pub(super) struct Unsynced {
    pub(super) digest: Digest,
    pub(super) file: Arc<File>,
}

/// What a look at the disk finds.
enum Look {
    Miss,
    Unchecked,
    Trusted(FileRange),
}

// === impl Disk: reading ===

impl Disk {
    /// The size of a blob in bytes, from memory. Not a promise: until a blob is opened, nobody has
    /// looked whether its file is still there and right.
    #[must_use]
    pub fn stat(&self, digest: &Digest) -> Option<u64> {
        lock(&self.index).get(digest).map(|entry| entry.size)
    }

    /// Counts as a use, for a blob that was answered from memory.
    pub fn touch(&self, digest: &Digest) {
        lock(&self.index).touch(digest, unix_now());
    }

    /// The whole blob, for reading by position; None is a miss.
    ///
    /// A blob that is not trusted is hashed first; all who ask meanwhile wait for that one hash. A
    /// wrong one is set aside and missed. Cancel-safe: a hash under way goes on.
    ///
    /// # Errors
    ///
    /// When the file can neither be opened nor is known to be gone.
    pub async fn open_blob(
        self: &Arc<Self>,
        digest: &Digest,
    ) -> Result<Option<FileRange>, StoreError> {
        let mut checked = false;
        loop {
            match self.look(digest).await? {
                Look::Miss => return Ok(None),
                Look::Trusted(range) => return Ok(Some(range)),
                // Our own check has ended and it is still, or again, in doubt.
                Look::Unchecked if checked => return Ok(None),
                Look::Unchecked => checked = self.check(digest).await?,
            }
        }
    }

    /// Opens the file if it is the one that is trusted.
    async fn look(self: &Arc<Self>, digest: &Digest) -> Result<Look, StoreError> {
        let shared = match lock(&self.index).get(digest) {
            None => return Ok(Look::Miss),
            Some(entry) => entry.file.upgrade(),
        };
        // A file that somebody has open is in memory as far as its stamp goes: no need to leave
        // this thread for it.
        if let Some(file) = shared
            && let Ok(stamp) = Stamp::of(&file)
            && let Some(range) = self.opened(digest, &file, stamp)
        {
            return Ok(Look::Trusted(range));
        }
        let (disk, digest) = (Arc::clone(self), *digest);
        blocking(move || disk.faults.noted(disk.look_at_disk(&digest))).await
    }

    fn look_at_disk(&self, digest: &Digest) -> Result<Look, StoreError> {
        let Some((file, stamp)) = self.open_file(digest)? else {
            return Ok(Look::Miss);
        };
        let file = Arc::new(file);
        Ok(self
            .opened(digest, &file, stamp)
            .map_or(Look::Unchecked, Look::Trusted))
    }

    /// Opens the file for reading; one that is gone also leaves the index. Blocks.
    pub(super) fn open_file(&self, digest: &Digest) -> Result<Option<(File, Stamp)>, StoreError> {
        let path = self.layout.blob(digest);
        let open = || {
            let file = File::open(&path)?;
            let stamp = Stamp::of(&file)?;
            Ok((file, stamp))
        };
        let opened = found(open()).map_err(StoreError::io(format!("open {}", path.display())))?;
        if opened.is_none() {
            let _moves = lock(&self.moves);
            // A commit may have put it there since.
            if !path.exists() {
                self.with_index(|index| index.remove(digest));
            }
        }
        Ok(opened)
    }

    /// The answer for a file with this stamp, if it is the trusted one.
    fn opened(&self, digest: &Digest, file: &Arc<File>, stamp: Stamp) -> Option<FileRange> {
        let mut index = lock(&self.index);
        let trusted = index.get(digest)?.stamp == Some(stamp);
        trusted.then(|| {
            index.opened(digest, file, Instant::now(), unix_now());
            FileRange::new(Arc::clone(file), 0..stamp.size)
        })
    }

    /// The content of a small blob; None when it is missing, wrong or larger than `limit` bytes.
    ///
    /// It is always hashed: at this size that costs less than a reason not to.
    ///
    /// # Errors
    ///
    /// When the file can neither be opened nor is known to be gone.
    pub async fn read(
        self: &Arc<Self>,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        if self.stat(digest).is_none_or(|size| size > limit) {
            return Ok(None);
        }
        let (disk, digest) = (Arc::clone(self), *digest);
        blocking(move || disk.faults.noted(disk.read_file(&digest, limit))).await
    }

    fn read_file(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let Some((file, stamp)) = self.open_file(digest)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        // A file that cannot be read is treated like a wrong one.
        let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        if read.as_ref().is_ok_and(|length| *length as u64 > limit) {
            return Ok(None);
        }
        if read.is_ok() && Digest::of(digest.algorithm(), &bytes) == *digest {
            self.with_index(|index| {
                index.confirm(digest, stamp, unix_now());
                index.touch(digest, unix_now());
            });
            return Ok(Some(bytes.into()));
        }
        self.quarantine(digest, stamp.inode);
        Ok(None)
    }

    /// Bytes; see [`super::Config::max_size`].
    #[must_use]
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// How many blobs there are, and their bytes.
    #[must_use]
    pub fn count(&self) -> (usize, u64) {
        self.with_index(|index| (index.len(), index.size()))
    }

    /// The pins of this store.
    #[must_use]
    pub fn pins(&self) -> &Pins {
        &self.pins
    }
}

// === impl Disk: keeping ===

impl Disk {
    /// Keeps `bytes`, a manifest most of the time, under their digest. Done already is fine. Where
    /// replicas share a store, they are on their way there from now on.
    ///
    /// # Errors
    ///
    /// [`StoreError::WrongBytes`] when they do not hash to `digest`; `Io` when the disk fails or
    /// stays full after eviction.
    pub async fn put(self: &Arc<Self>, digest: &Digest, bytes: Bytes) -> Result<(), StoreError> {
        let (disk, digest) = (Arc::clone(self), *digest);
        blocking(move || disk.faults.noted(disk.put_file(&digest, bytes))).await
    }

    /// The same for many at once, on one thread; who calls does not learn what failed. That is
    /// noted, and the others are kept all the same.
    pub async fn put_all(self: &Arc<Self>, blobs: Vec<(Digest, Bytes)>) {
        let disk = Arc::clone(self);
        let work = move || {
            for (digest, bytes) in blobs {
                let _ = disk.faults.noted(disk.put_file(&digest, bytes));
            }
            Ok(())
        };
        // An error means that the process is ending.
        let _ = blocking(work).await;
    }

    fn put_file(self: &Arc<Self>, digest: &Digest, bytes: Bytes) -> Result<(), StoreError> {
        if Digest::of(digest.algorithm(), &bytes) != *digest {
            return Err(StoreError::WrongBytes(*digest));
        }
        let room = bytes.len() as u64 + SLACK;
        let file = if self.holds(digest) {
            self.touch(digest);
            None
        } else {
            let attempt = || self.name_blob(digest, Temporary::write(&self.layout, &bytes)?);
            let result = match attempt() {
                Err(error) if is_full(&error) && self.evict(room, Reason::Full) > 0 => attempt(),
                result => result,
            };
            Some(result.map_err(StoreError::io(format!("keep {digest}")))?)
        };
        let children = children_of(digest, bytes);
        self.with_index(|index| index.refers(digest, children));
        let Some(file) = file else { return Ok(()) };
        if let Some(uploads) = self.uploads() {
            let hold = self.hold(digest, UPLOAD);
            uploads.note(&Item::Blob(*digest), Some(Box::new(hold)));
        }
        self.sync_soon(digest, &file);
        // Spools and quarantine are counted by the next round: that takes a walk.
        if self.with_index(|index| index.size()) > self.max_size {
            self.keep_below_limit();
        }
        Ok(())
    }

    fn name_blob(&self, digest: &Digest, temporary: Temporary) -> io::Result<Arc<File>> {
        let _moves = lock(&self.moves);
        let file = temporary.name(&self.layout.blob(digest))?;
        self.insert(digest, &file)?;
        Ok(file)
    }

    /// Makes a verified spool a blob: the data file gets the blob's name, the journal goes.
    /// Committing what is there already is fine. Readers of the spool's file are not disturbed.
    /// Where replicas share a store, the blob is on its way there from now on.
    ///
    /// # Errors
    ///
    /// When the disk fails; the spool then stays as it is.
    pub async fn commit(self: &Arc<Self>, blob: Verified) -> Result<(), StoreError> {
        let disk = Arc::clone(self);
        blocking(move || {
            let what = format!("commit {}", blob.digest());
            let commit = || disk.commit_file(&blob).map_err(StoreError::io(what));
            let committed = match disk.uploads() {
                None => commit(),
                Some(uploads) => {
                    let hold = disk.hold(blob.digest(), UPLOAD);
                    uploads.commit(&Item::Blob(*blob.digest()), Box::new(hold), commit)
                }
            };
            disk.faults.noted(committed)?;
            disk.sync_soon(blob.digest(), blob.file());
            disk.keep_below_limit();
            Ok(())
        })
        .await
    }

    /// `keep` lives until a blob that is on its way to the shared store has arrived there, or is
    /// known never to; any other drops it at once.
    pub fn until_published(&self, digest: &Digest, keep: Keep) {
        if let Some(uploads) = self.uploads() {
            uploads.keep(&Item::Blob(*digest), keep);
        }
    }

    /// From now on commits are noted there.
    pub(super) fn note_commits_in(&self, uploads: &Arc<Uploads>) {
        // Done once, when the store is opened.
        let _ = self.uploads.set(Arc::downgrade(uploads));
    }

    fn uploads(&self) -> Option<Arc<Uploads>> {
        self.uploads.get().and_then(Weak::upgrade)
    }

    fn commit_file(&self, blob: &Verified) -> io::Result<()> {
        let _moves = lock(&self.moves);
        let digest = blob.digest();
        if self.holds(digest) {
            self.touch(digest);
            found(std::fs::remove_file(blob.data_path()))?;
        } else {
            // The file may be longer than the blob when an upstream lied about the size at first.
            let length = blob.file().metadata()?.len();
            if length < blob.size() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if length > blob.size() {
                blob.file().set_len(blob.size())?;
            }
            rename(blob.data_path(), &self.layout.blob(digest))?;
            self.insert(digest, blob.file())?;
        }
        // Last, because the data without its journal would be fetched again.
        found(std::fs::remove_file(blob.map_path())).map(drop)
    }

    /// Notes a file that has its name now. The stamp is taken after the rename, which changes it.
    fn insert(&self, digest: &Digest, file: &Arc<File>) -> io::Result<()> {
        let stamp = Stamp::of(file)?;
        self.with_index(|index| index.insert(*digest, stamp, file, unix_now()));
        Ok(())
    }

    /// Whether the trusted file is on disk at this moment. Blocks.
    fn holds(&self, digest: &Digest) -> bool {
        let trusted = lock(&self.index).get(digest).and_then(|entry| entry.stamp);
        trusted.is_some_and(|stamp| {
            std::fs::symlink_metadata(self.layout.blob(digest))
                .is_ok_and(|metadata| Stamp::from(metadata) == stamp)
        })
    }

    /// A spool for this digest: new, or the one that an earlier fill left, with what it holds.
    pub async fn spool(self: &Arc<Self>, digest: &Digest) -> Result<(Spool, Restored), StoreError> {
        let (disk, digest) = (Arc::clone(self), *digest);
        blocking(move || {
            let _moves = lock(&disk.moves);
            disk.keep_from_sweep(&digest);
            let spool = Spool::open(&disk.layout.spool(), &digest);
            disk.faults
                .noted(spool.map_err(StoreError::io(format!("open the spool of {digest}"))))
        })
        .await
    }

    /// A spool of its own for bytes that do not come by a fill, who would write to the same file.
    /// The next start sweeps it away if nobody else does.
    pub async fn spool_apart(self: &Arc<Self>, digest: &Digest) -> Result<Spool, StoreError> {
        let (disk, digest) = (Arc::clone(self), *digest);
        blocking(move || {
            let spool = Spool::apart(Temporary::path(&disk.layout), &digest);
            disk.faults
                .noted(spool.map_err(StoreError::io(format!("open a spool of {digest}"))))
        })
        .await
    }

    /// Changes the index and shows the result in the metrics.
    pub(super) fn with_index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> T {
        let mut index = lock(&self.index);
        let result = change(&mut index);
        let metrics = self.faults.metrics();
        metrics
            .store_size
            .set(index.size().try_into().unwrap_or(i64::MAX));
        metrics
            .store_blobs
            .set(index.len().try_into().unwrap_or(i64::MAX));
        result
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
