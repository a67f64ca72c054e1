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
use tokio::time::Instant;

use super::StoreError;
use super::disk::Disk;
use super::files::{Stamp, blocking, lock, unix_now};
use super::gone::Reason;
use crate::oci::{Digest, Hasher};

/// How much is read at once: large enough to make system calls cheap, small enough for the cache.
const CHUNK: usize = 256 * 1024;
/// How much is hashed between two looks at whether the store is being closed.
const STRIDE: u64 = 16 * 1024 * 1024;
/// How fast the scrub reads, in bytes a second: a third of what a slow disk gives.
const SCRUB_RATE: u64 = 32_000_000;
/// Shorter waits are added up.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
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

/// Keeps to a rate, over many small blobs as over a large one.
#[derive(Debug)]
pub(super) struct Pace {
    /// In bytes a second.
    rate: u64,
    since: Instant,
    bytes: u64,
}

/// Wrong blobs that nobody was told of, for the next who looks.
const MOST_UNTOLD: usize = 10_000;

/// How far a look at all blobs is, and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Checked {
    /// Looked at, and how many there are.
    pub blobs: (u64, u64),
    pub bytes: (u64, u64),
    /// Set aside since the last such look, by this one, a reader or the scrub: they did not hash, or
    /// could not be read.
    pub wrong: Vec<Digest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
            let mut untold = lock(&self.untold);
            if untold.len() < MOST_UNTOLD {
                untold.push(*digest);
            }
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
        let gone = entry.map(|entry| entry.gone(*digest, reason));
        self.note_gone(gone.into_iter().collect());
        if let Err(source) = result {
            self.faults.note(&StoreError::Io {
                what: format!("take away {digest}"),
                source,
            });
        }
    }

    /// Hashes every blob once a week, slowly. Cancel-safe.
    pub(super) async fn scrub(self: &Arc<Self>) {
        let mut pace = Pace::new(SCRUB_RATE);
        loop {
            loop {
                let due = self.with_index(|index| index.due(unix_now() - SCRUB_AGE, SCRUB_BATCH));
                if due.is_empty() {
                    break;
                }
                for digest in due {
                    if let Err(error) = self.rehash(digest, &mut pace).await {
                        self.faults.note(&error);
                    }
                    // Right ones are confirmed, wrong ones gone; others are tried next week.
                    self.with_index(|index| index.put_off(&digest, unix_now()));
                }
            }
            tokio::time::sleep(SCRUB_INTERVAL).await;
        }
    }

    /// Hashes every blob that is here, at most `rate` bytes a second, and sets aside what is
    /// wrong: the next pull fetches it again. `report` hears of each blob. Cancel-safe.
    ///
    /// # Errors
    /// When a file can neither be opened nor is known to be gone.
    pub async fn verify(
        self: &Arc<Self>,
        rate: u64,
        report: &(dyn Fn(&Checked) + Send + Sync),
    ) -> Result<Checked, StoreError> {
        let mut known = lock(&self.index).known(Instant::now());
        known.sort_unstable_by_key(|blob| blob.digest);
        let mut checked = Checked {
            blobs: (0, known.len() as u64),
            bytes: (0, known.iter().map(|blob| blob.size).sum()),
            wrong: Vec::new(),
        };
        report(&checked);
        let mut pace = Pace::new(rate);
        for blob in known {
            self.faults
                .noted(self.rehash(blob.digest, &mut pace).await)?;
            checked.wrong.extend(self.tell_wrong().await?);
            checked.blobs.0 += 1;
            checked.bytes.0 += blob.size;
            report(&checked);
        }
        checked.wrong.extend(self.tell_wrong().await?);
        Ok(checked)
    }

    /// What was set aside since somebody was last told. Waits for who is at it.
    async fn tell_wrong(self: &Arc<Self>) -> Result<Vec<Digest>, StoreError> {
        let disk = Arc::clone(self);
        let take = move || {
            let _moves = lock(&disk.moves);
            Ok(std::mem::take(&mut *lock(&disk.untold)))
        };
        blocking(take).await
    }

    /// None when the blob is gone.
    async fn rehash(
        self: &Arc<Self>,
        digest: Digest,
        pace: &mut Pace,
    ) -> Result<Option<Verdict>, StoreError> {
        let disk = Arc::clone(self);
        let Some(mut hashing) = blocking(move || disk.hash(&digest)).await? else {
            return Ok(None);
        };
        loop {
            let (disk, before) = (Arc::clone(self), hashing.offset);
            let (after, next) = blocking(move || {
                let read = hashing.stride();
                let after = hashing.offset;
                if matches!(read, Ok(true)) {
                    return Ok((after, Err(hashing)));
                }
                Ok((after, Ok(disk.judge(&digest, hashing, read))))
            })
            .await?;
            pace.keep(after - before).await;
            match next {
                Ok(verdict) => return Ok(Some(verdict)),
                Err(rest) => hashing = rest,
            }
        }
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
    fn judge(&self, digest: &Digest, hashing: Hashing, read: io::Result<bool>) -> Verdict {
        let Hashing { file, stamp, .. } = &hashing;
        let (file, stamp) = (Arc::clone(file), *stamp);
        let verdict = read.and_then(|_| hashing.verdict(digest));
        match &verdict {
            Ok(Verdict::Right) => {
                self.with_index(|index| index.confirm(digest, stamp, unix_now()));
                // What was hashed may have come from memory: a clean end vouches for the disk.
                self.sync_soon(digest, &file);
            }
            Ok(Verdict::Wrong) => self.quarantine(digest, stamp.inode),
            Ok(Verdict::Changed) => {}
            Err(source) => {
                let source = io::Error::new(source.kind(), source.to_string());
                let what = format!("hash {digest}");
                self.faults.note(&StoreError::Io { what, source });
                self.quarantine(digest, stamp.inode);
            }
        }
        verdict.unwrap_or(Verdict::Wrong)
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

// === impl Pace ===

impl Pace {
    /// `rate` is in bytes a second.
    fn new(rate: u64) -> Self {
        Pace {
            rate: rate.max(1),
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Waits until `bytes` more are due. Who is late does not catch up.
    async fn keep(&mut self, bytes: u64) {
        self.bytes += bytes;
        let micros = u128::from(self.bytes) * 1_000_000 / u128::from(self.rate);
        let due = self.since + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let now = Instant::now();
        if due > now + SHORTEST_WAIT {
            tokio::time::sleep_until(due).await;
        } else if due < now {
            (self.since, self.bytes) = (now, 0);
        }
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
