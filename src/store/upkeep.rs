//! The work behind the answers, once a second: what was kept becomes durable, the size limit
//! holds, the index is written, leftovers go.
//!
//! One fsync costs milliseconds, so they are batched, and nobody waits for them. An fsync that
//! failed is never tried again: the kernel has marked the pages clean, a second one would succeed
//! without having written anything. The blob goes instead.

use std::collections::BTreeSet;
use std::fs::{DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::disk::{Disk, Unsynced};
use super::files::{Temporary, blocking, found, lock, sync_dir, unix_now};
use super::index::{self, Line};
use crate::oci::Digest;

const ROUND: Duration = Duration::from_secs(1);
/// How often the index is written when it has changed: what a crash may cost in last uses.
const INDEX_INTERVAL: Duration = Duration::from_secs(60);
/// How long one round looks into blobs that may be manifests.
const LEARNING: Duration = Duration::from_millis(200);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// How long an abandoned spool waits for somebody who wants the rest, and quarantine for somebody
/// who wants to know why.
const LEFTOVERS: Duration = Duration::from_secs(24 * 60 * 60);
/// Commits that may wait for a round; each holds a file open. When there are more, the thread of
/// the next one does its fsync itself.
const MOST_UNSYNCED: usize = 256;

// === impl Disk ===

impl Disk {
    /// Runs until `token` is cancelled; the round under way is finished.
    pub(super) async fn run(self: &Arc<Self>, token: CancellationToken) {
        tokio::join!(token.run_until_cancelled(self.scrub()), self.rounds(&token));
    }

    async fn rounds(self: &Arc<Self>, token: &CancellationToken) {
        let mut clock = tokio::time::interval(ROUND);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut indexed, mut swept) = (Instant::now(), Instant::now());
        while token.run_until_cancelled(clock.tick()).await.is_some() {
            let index_due = indexed.elapsed() >= INDEX_INTERVAL;
            let sweep_due = swept.elapsed() >= SWEEP_INTERVAL;
            let disk = Arc::clone(self);
            // Failures are noted where they happen.
            let _ = blocking(move || disk.round(index_due, sweep_due)).await;
            if index_due {
                indexed = Instant::now();
            }
            if sweep_due {
                swept = Instant::now();
            }
        }
    }

    pub(super) fn round(&self, index_due: bool, sweep_due: bool) -> Result<(), StoreError> {
        let closed = lock(&self.closed);
        if *closed {
            return Ok(());
        }
        let synced = self.sync();
        self.learn(LEARNING);
        self.keep_below_limit();
        if sweep_due {
            self.sweep();
            // Tags move away from what a pattern kept. A failure is noted; what is known stays.
            let _ = self.scan_patterns();
        }
        if index_due && let Some(lines) = self.with_index(index::Index::take_changes) {
            self.faults.noted(self.write_index(false, &lines))?;
        }
        synced
    }

    /// Makes everything durable and marks the index as clean.
    pub(super) async fn close(self: &Arc<Self>) -> Result<(), StoreError> {
        self.closing.store(true, Ordering::Relaxed);
        let disk = Arc::clone(self);
        blocking(move || {
            let mut closed = lock(&disk.closed);
            *closed = true;
            disk.sync()?;
            let lines = disk.with_index(|index| index.lines());
            disk.faults.noted(disk.write_index(true, &lines))
        })
        .await
    }

    /// The blob becomes durable with the next round.
    pub(super) fn sync_soon(&self, digest: &Digest, file: &Arc<File>) {
        let commit = Unsynced {
            digest: *digest,
            file: Arc::clone(file),
        };
        let mut unsynced = lock(&self.unsynced);
        if unsynced.len() < MOST_UNSYNCED {
            unsynced.push(commit);
        } else {
            drop(unsynced);
            // Its name may still be lost by a power failure, and the blob with it: a miss.
            self.sync_file(&commit);
        }
    }

    /// Makes durable what was kept since the last call: the bytes, then the names.
    fn sync(&self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut *lock(&self.unsynced));
        let mut directories = BTreeSet::new();
        for commit in &batch {
            self.sync_file(commit);
            let shard = self.layout.blob(&commit.digest);
            directories.extend(shard.ancestors().skip(1).take(2).map(Path::to_path_buf));
        }
        let mut result = Ok(());
        for directory in directories {
            let what = format!("make durable {}", directory.display());
            result = result.and(
                self.faults
                    .noted(sync_dir(&directory).map_err(StoreError::io(what))),
            );
        }
        result
    }

    fn sync_file(&self, commit: &Unsynced) {
        let Unsynced { digest, file } = commit;
        if let Err(source) = file.sync_data() {
            self.faults.note(&StoreError::Io {
                what: format!("make durable {digest}"),
                source,
            });
            if let Ok(metadata) = file.metadata() {
                self.discard(digest, metadata.ino());
            }
        }
    }

    fn write_index(&self, clean: bool, lines: &[Line]) -> Result<(), StoreError> {
        let write = || {
            let text = index::encode(clean, lines);
            let temporary = Temporary::write(&self.layout, text.as_bytes())?;
            temporary.file().sync_all()?;
            temporary.name(&self.layout.index())?;
            sync_dir(&self.layout.v1())
        };
        write().map_err(StoreError::io("write v1/index"))
    }
}

// === impl Disk: leftovers ===

impl Disk {
    /// Removes what an earlier process was about to give a name. Only at the start: later such
    /// files are at work. Blocks.
    pub(super) fn sweep_temporaries(&self) -> io::Result<()> {
        for file in std::fs::read_dir(self.layout.spool())? {
            let path = file?.path();
            if path
                .to_str()
                .is_some_and(|path| path.ends_with(Temporary::SUFFIX))
            {
                found(std::fs::remove_file(path))?;
            }
        }
        Ok(())
    }

    /// Removes abandoned spools and old quarantine. Blocks.
    pub(super) fn sweep(&self) {
        let _moves = lock(&self.moves);
        let spools = each_file(&self.layout.spool(), |file| {
            let path = file.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("data") if is_abandoned(file)? => {
                    found(std::fs::remove_file(&path))?;
                    found(std::fs::remove_file(path.with_extension("map"))).map(drop)
                }
                Some("map") if !path.with_extension("data").exists() => {
                    found(std::fs::remove_file(&path)).map(drop)
                }
                _ => Ok(()),
            }
        });
        let quarantine = each_file(&self.layout.quarantine(), |file| {
            let since = file
                .file_name()
                .to_str()
                .and_then(|name| name.split('-').next()?.parse().ok());
            let age = since.map_or(0, |since: i64| unix_now().saturating_sub(since));
            if u64::try_from(age).is_ok_and(|age| age >= LEFTOVERS.as_secs()) {
                found(std::fs::remove_file(file.path()))?;
            }
            Ok(())
        });
        for result in [spools, quarantine] {
            // Noted is all that can be done; the next sweep tries again.
            let _ = self.faults.noted(result.map_err(StoreError::io("sweep")));
        }
    }

    /// Makes an abandoned spool look fresh, because somebody wants the rest of it now.
    pub(super) fn keep_from_sweep(&self, digest: &Digest) {
        let name = format!("{}-{}.data", digest.algorithm(), digest.hex());
        if let Ok(file) = File::options()
            .write(true)
            .open(self.layout.spool().join(name))
        {
            // Without it the fill's first write does the same a moment later.
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

fn is_abandoned(file: &DirEntry) -> io::Result<bool> {
    // A time in the future is no age at all.
    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
    Ok(age >= LEFTOVERS)
}

/// Goes on after a failure and reports the last one.
fn each_file(directory: &Path, visit: impl Fn(&DirEntry) -> io::Result<()>) -> io::Result<()> {
    let mut result = Ok(());
    for file in std::fs::read_dir(directory)? {
        if let Err(error) = visit(&file?) {
            result = Err(error);
        }
    }
    result
}
