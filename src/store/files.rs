//! How files are written, so that a crash leaves the old one or the new one and nothing between.
//!
//! Everything that writes goes through `std::fs` on the blocking pool: `tokio::fs` reports a write
//! error only with the next operation, or never.

use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::StoreError;
use super::layout::Layout;
use crate::telemetry::Metrics;

/// How often a failing disk may say so in the log.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What tells one state of a file from another: if all of it is the same, the bytes are too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: u64,
    pub(super) size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// A file that has no name yet that anybody looks for. Removed when dropped without one.
#[derive(Debug)]
pub(super) struct Temporary {
    file: Arc<File>,
    path: Option<PathBuf>,
}

/// One change that a background writer makes.
#[derive(Debug)]
pub(super) enum Change {
    /// Whole lines at the end of a file, which is made when it is missing.
    Append(PathBuf, String),
    /// A file in place of the one that has the name, if there is one.
    Replace(PathBuf, Vec<u8>),
    /// No file by this name.
    Remove(PathBuf),
}

/// Where failures of the disk are counted and, once a minute at most, logged.
#[derive(Debug)]
pub(super) struct Faults {
    metrics: Arc<Metrics>,
    logged: Mutex<Option<Instant>>,
}

/// Runs `work` on the blocking pool. It runs to its end even when the caller goes away.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Io {
            what: "background work".into(),
            source: error.into(),
        }),
    }
}

/// A poisoned lock is taken all the same: what it guards is a cache of what the disk says.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wall-clock seconds, for what is written down. Decisions about freshness are the caller's.
pub(super) fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// `Ok(None)` where there is no such file.
pub(super) fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renames, making the directory of `to` when it is missing.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parent(to)?;
            std::fs::rename(from, to)
        }
        result => result,
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        Ok(file.metadata()?.into())
    }

    /// Unix seconds.
    pub(super) fn modified(&self) -> i64 {
        self.mtime.0
    }
}

impl From<Metadata> for Stamp {
    fn from(metadata: Metadata) -> Self {
        Stamp {
            inode: metadata.ino(),
            size: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stamp {
            inode,
            size,
            mtime,
            ctime,
        } = self;
        write!(
            f,
            "{inode} {size} {}.{} {}.{}",
            mtime.0, mtime.1, ctime.0, ctime.1
        )
    }
}

impl FromStr for Stamp {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        fn time(text: &str) -> Option<(i64, i64)> {
            let (seconds, nanoseconds) = text.split_once('.')?;
            Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
        }
        let mut words = text.split(' ');
        let mut parse = || {
            Some(Stamp {
                inode: words.next()?.parse().ok()?,
                size: words.next()?.parse().ok()?,
                mtime: time(words.next()?)?,
                ctime: time(words.next()?)?,
            })
        };
        parse().ok_or(())
    }
}

// === impl Temporary ===

impl Temporary {
    /// A new file with `bytes` in it, on the file system of its later name.
    pub(super) fn write(layout: &Layout, bytes: &[u8]) -> io::Result<Self> {
        let path = Self::path(layout);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        let temporary = Temporary {
            file: Arc::new(file),
            path: Some(path),
        };
        (&*temporary.file).write_all(bytes)?;
        Ok(temporary)
    }

    /// Unique in this process, and a start sweeps what an earlier process left.
    pub(super) fn path(layout: &Layout) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        layout.spool().join(format!("{number}{}", Self::SUFFIX))
    }

    /// How the names of such files end, so that a start can find them.
    pub(super) const SUFFIX: &str = ".tmp";

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Gives the file its name; one that was there before is replaced.
    pub(super) fn name(mut self, path: &Path) -> io::Result<Arc<File>> {
        if let Some(temporary) = &self.path {
            rename(temporary, path)?;
            self.path = None;
        }
        Ok(Arc::clone(&self.file))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Best effort: what stays is swept by the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

// === impl Change ===

impl Change {
    /// The file that it is about.
    pub(super) fn path(&self) -> &Path {
        match self {
            Change::Append(path, _) | Change::Replace(path, _) | Change::Remove(path) => path,
        }
    }

    /// Blocks. Waits for no fsync.
    pub(super) fn apply(self, layout: &Layout) -> Result<(), StoreError> {
        let (path, result) = match self {
            Change::Append(path, lines) => {
                let result = append(&path, lines);
                (path, result)
            }
            Change::Replace(path, bytes) => {
                let result = Temporary::write(layout, &bytes).and_then(|file| file.name(&path));
                (path, result.map(drop))
            }
            Change::Remove(path) => {
                let result = found(std::fs::remove_file(&path)).map(drop);
                (path, result)
            }
        };
        result.map_err(StoreError::io(format!("write {}", path.display())))
    }
}

fn append(path: &Path, mut lines: String) -> io::Result<()> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
    };
    let mut file = if let Some(file) = found(open())? {
        file
    } else {
        make_parent(path)?;
        open()?
    };
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    // A crash tore the last line: what follows must not become a part of it.
    if last != *b"\n" {
        lines.insert(0, '\n');
    }
    file.write_all(lines.as_bytes())
}

// === impl Faults ===

impl Faults {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Faults {
            metrics,
            logged: Mutex::new(None),
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn note(&self, error: &StoreError) {
        self.metrics.store_errors.inc();
        let mut logged = lock(&self.logged);
        let now = Instant::now();
        if logged.is_none_or(|then| now.duration_since(then) >= LOG_INTERVAL) {
            *logged = Some(now);
            tracing::warn!(%error, "the store failed; pulls go on without it");
        }
    }

    /// Notes the error, if there is one, on its way to the caller.
    pub(super) fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.inspect_err(|error| self.note(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_round_trip() {
        let stamp = Stamp::of(&tempfile::tempfile().unwrap()).unwrap();
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
        for text in ["", "1 2 3 4", "1 2 3.4", "1 2 3.4 x.5", "-"] {
            assert_eq!(text.parse::<Stamp>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn an_append_starts_on_a_fresh_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/_links");
        append(&path, "one\n".into()).unwrap();
        append(&path, "two\n".into()).unwrap();
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"to")
            .unwrap();
        append(&path, "three\n".into()).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "one\ntwo\nto\nthree\n"
        );
    }
}
