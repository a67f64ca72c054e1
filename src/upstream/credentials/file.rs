//! A file with secrets, read again when it changes.
//!
//! Kubernetes renews a mounted secret by swapping a link, which no watch on the file itself would
//! see; so the file is looked at, through the links, at most once a second and only when somebody
//! needs what is in it. What cannot be read or understood leaves the old content in place: a rotation
//! that is half done must not stop a pull.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::Instant;
use zeroize::Zeroizing;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a file.
const LARGEST: u64 = 1 << 20;

type Parse<T> = Arc<dyn Fn(&str) -> Result<T, String> + Send + Sync>;

/// The content of a file as it was last understood.
pub(super) struct Watched<T> {
    path: PathBuf,
    parse: Parse<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    version: Option<Version>,
    looked: Instant,
}

/// What tells one version of a file from another: inode, size and time.
type Version = (u64, u64, SystemTime);

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads the file; blocking.
    ///
    /// # Errors
    /// Names the file and never what is in it.
    pub(super) fn open(
        path: &Path,
        parse: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let parse: Parse<T> = Arc::new(parse);
        // Before it is read: what changes in between is seen at the next look.
        let version = version(path);
        let value = Arc::new(read(path, &parse)?);
        Ok(Watched {
            path: path.to_owned(),
            parse,
            state: Mutex::new(State {
                value,
                version,
                looked: Instant::now(),
            }),
        })
    }

    /// What is in the file, or was a second ago.
    pub(super) async fn current(&self) -> Arc<T> {
        let mut state = self.state.lock().await;
        if state.looked.elapsed() >= LOOK_EVERY {
            self.look(&mut state, false).await;
        }
        Arc::clone(&state.value)
    }

    /// Reads the file whether it seems to have changed or not: what was in it has been refused.
    pub(super) async fn read_again(&self) {
        let mut state = self.state.lock().await;
        self.look(&mut state, true).await;
    }

    async fn look(&self, state: &mut State<T>, always: bool) {
        state.looked = Instant::now();
        let (path, parse, known) = (self.path.clone(), Arc::clone(&self.parse), state.version);
        let work = tokio::task::spawn_blocking(move || {
            let version = version(&path);
            let changed = always || version != known;
            (version, changed.then(|| read(&path, &parse)))
        });
        let Ok((version, read)) = work.await else {
            return;
        };
        state.version = version;
        match read {
            None => {}
            Some(Ok(value)) => state.value = Arc::new(value),
            Some(Err(error)) => tracing::warn!(%error, "an old secret is kept"),
        }
    }
}

/// Its content is nobody's business.
impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

fn read<T>(path: &Path, parse: &Parse<T>) -> Result<T, String> {
    let place = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{place}: {error}"))?;
    if size.len() > LARGEST {
        return Err(format!("{place} is larger than {LARGEST} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{place}: {error}"))?;
    parse(&Zeroizing::new(text)).map_err(|error| format!("{place} {error}"))
}

/// Follows links. None when there is no file.
fn version(path: &Path) -> Option<Version> {
    let meta = std::fs::metadata(path).ok()?;
    let inode = std::os::unix::fs::MetadataExt::ino(&meta);
    Some((inode, meta.len(), meta.modified().ok()?))
}
