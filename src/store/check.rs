//! Bytes are hashed again: before a blob that is not trusted is served, and once a week.
//!
//! A blob that is wrong is set aside in `v1/quarantine` for a day, for whoever wants to know why,
//! and from then on missing: the next request fetches it again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::StoreError;
use super::disk::Disk;
use super::files::{Stamp, blocking, lock, unix_now};
use super::gone::Reason;
use crate::oci::{Digest, Hasher};

/// How much is read at once: large enough to make system calls cheap, small enough for the cache.
const CHUNK: usize = 256 * 1024;
/// How much is hashed between two looks at whether the store is being closed.
const STRIDE: u64 = 16 * 1024 * 1024;
/// How fast the scrub reads, in bytes per microsecond (MB/s): a third of what a slow disk gives.
const SCRUB_RATE: u64 = 32;
/// How old a hash may get before the scrub repeats it, in seconds.
const SCRUB_AGE: i64 = 7 * 24 * 60 * 60;
/// How often the scrub looks for blobs that are due.
const SCRUB_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How many blobs it looks up at once.
const SCRUB_BATCH: usize = 256;

/// A blob that is being hashed by [`Disk::check`]. Its end, or its drop, lets all waiters look
/// again; if the file is then still in doubt, one of them takes over.
struct Check {
    disk: Arc<Disk>,
    digest: Digest,
    /// Waiters see it go.
    _running: watch::Sender<()>,
}

/// A file whose hash is under way.
struct Hashing {
    file: Arc<File>,
    stamp: Stamp,
    hasher: Hasher,
    offset: u64,
    buffer: Vec<u8>,
}

enum Verdict {
    Right,
    Wrong,
    /// The file changed while it was read.
    Changed,
}

// === impl Disk ===

impl Disk {
    /// Hashes a blob that is in doubt, or waits for the check of it that is running. Says whether
    /// the check was our own.
    pub(super) async fn check(self: &Arc<Self>, digest: &Digest) -> Result<bool, StoreError> {
        let check = {
            let mut checks = lock(&self.checks);
            if let Some(running) = checks.get(digest) {
                Err(running.clone())
            } else {
                let (sender, receiver) = watch::channel(());
                checks.insert(*digest, receiver);
                Ok(Check {
                    disk: Arc::clone(self),
                    digest: *digest,
                    _running: sender,
                })
            }
        };
        match check {
            Ok(check) => {
                // Never closed; and without a permit the check is only less well behaved.
                let permit = Arc::clone(&self.hashing).acquire_owned().await.ok();
                blocking(move || {
                    let _permit = permit;
                    check.disk.faults.noted(check.run())
                })
                .await?;
                Ok(true)
            }
            Err(mut running) => {
                // An error says that the sender is gone, which is what we wait for.
                let _ = running.changed().await;
                Ok(false)
            }
        }
    }

    /// Sets a wrong file aside, if it still is the one that has the name. Blocks.
    pub(super) fn quarantine(&self, digest: &Digest, inode: u64) {
        let name = format!("{}-{}-{}", unix_now(), digest.algorithm(), digest.hex());
        self.take_away(digest, inode, Reason::Wrong, |path| {
            tracing::error!(%digest, quarantine = name, "blob on disk does not hash; set aside");
            self.faults.metrics().store_quarantined.inc();
            std::fs::rename(path, self.layout.quarantine().join(&name))
        });
    }

    /// Removes a file that may be lost by the next power failure. Blocks.
    pub(super) fn discard(&self, digest: &Digest, inode: u64) {
        self.take_away(digest, inode, Reason::Lost, |path| {
            std::fs::remove_file(path)
        });
    }

    fn take_away(
        &self,
        digest: &Digest,
        inode: u64,
        reason: Reason,
        by: impl FnOnce(&Path) -> io::Result<()>,
    ) {
        let _moves = lock(&self.moves);
        let path = self.layout.blob(digest);
        if std::fs::symlink_metadata(&path)
            .map(|found| found.ino())
            .ok()
            != Some(inode)
        {
            return;
        }
        let result = by(&path).or_else(|_| std::fs::remove_file(&path));
        // Wherever the file is now, it is no blob.
        let entry = self.with_index(|index| index.remove(digest));
        self.note_gone(
            entry
                .map(|entry| entry.gone(*digest, reason))
                .into_iter()
                .collect(),
        );
        if let Err(source) = result {
            self.faults.note(&StoreError::Io {
                what: format!("take away {digest}"),
                source,
            });
        }
    }

    /// Hashes every blob once a week, slowly. Cancel-safe.
    pub(super) async fn scrub(self: &Arc<Self>) {
        loop {
            loop {
                let due = self.with_index(|index| index.due(unix_now() - SCRUB_AGE, SCRUB_BATCH));
                if due.is_empty() {
                    break;
                }
                for digest in due {
                    if let Err(error) = self.scrub_blob(digest).await {
                        self.faults.note(&error);
                    }
                    // Right ones are confirmed, wrong ones gone; others are tried next week.
                    self.with_index(|index| index.put_off(&digest, unix_now()));
                }
            }
            tokio::time::sleep(SCRUB_INTERVAL).await;
        }
    }

    async fn scrub_blob(self: &Arc<Self>, digest: Digest) -> Result<(), StoreError> {
        let disk = Arc::clone(self);
        let mut unfinished = blocking(move || disk.hash(&digest)).await?;
        while let Some(mut hashing) = unfinished {
            let (disk, before) = (Arc::clone(self), hashing.offset);
            let (after, rest) = blocking(move || {
                let read = hashing.stride();
                let after = hashing.offset;
                if matches!(read, Ok(true)) {
                    return Ok((after, Some(hashing)));
                }
                disk.judge(&digest, hashing, read);
                Ok((after, None))
            })
            .await?;
            unfinished = rest;
            tokio::time::sleep(Duration::from_micros((after - before) / SCRUB_RATE)).await;
        }
        Ok(())
    }

    /// Starts to hash a blob; None when it is gone. Blocks.
    fn hash(&self, digest: &Digest) -> Result<Option<Hashing>, StoreError> {
        #[cfg(test)]
        self.hashed.fetch_add(1, Ordering::Relaxed);
        Ok(self.open_file(digest)?.map(|(file, stamp)| Hashing {
            file: Arc::new(file),
            stamp,
            hasher: Hasher::new(digest.algorithm()),
            offset: 0,
            buffer: vec![0; CHUNK],
        }))
    }

    /// Acts on the end of a hash. A file that cannot be read is as bad as a wrong one. Blocks.
    fn judge(&self, digest: &Digest, hashing: Hashing, read: io::Result<bool>) {
        let Hashing { file, stamp, .. } = &hashing;
        let (file, stamp) = (Arc::clone(file), *stamp);
        match read.and_then(|_| hashing.verdict(digest)) {
            Ok(Verdict::Right) => {
                self.with_index(|index| index.confirm(digest, stamp, unix_now()));
                // What was hashed may have come from memory: a clean end vouches for the disk.
                self.sync_soon(digest, &file);
            }
            Ok(Verdict::Wrong) => self.quarantine(digest, stamp.inode),
            Ok(Verdict::Changed) => {}
            Err(source) => {
                self.faults.note(&StoreError::Io {
                    what: format!("hash {digest}"),
                    source,
                });
                self.quarantine(digest, stamp.inode);
            }
        }
    }
}

// === impl Check ===

impl Check {
    /// Blocks while the blob is hashed.
    fn run(&self) -> Result<(), StoreError> {
        let Some(mut hashing) = self.disk.hash(&self.digest)? else {
            return Ok(());
        };
        let read = loop {
            if self.disk.closing.load(Ordering::Relaxed) {
                return Ok(());
            }
            match hashing.stride() {
                Ok(true) => {}
                result => break result,
            }
        };
        self.disk.judge(&self.digest, hashing, read);
        Ok(())
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        lock(&self.disk.checks).remove(&self.digest);
    }
}

// === impl Hashing ===

impl Hashing {
    /// Hashes the next [`STRIDE`] bytes; false at the end of the file.
    fn stride(&mut self) -> io::Result<bool> {
        let end = self.offset + STRIDE;
        while self.offset < end {
            match self.file.read_at(&mut self.buffer, self.offset) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    self.hasher.update(&self.buffer[..length]);
                    self.offset += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn verdict(self, digest: &Digest) -> io::Result<Verdict> {
        Ok(if Stamp::of(&self.file)? != self.stamp {
            Verdict::Changed
        } else if self.hasher.finish() == *digest {
            Verdict::Right
        } else {
            Verdict::Wrong
        })
    }
}
