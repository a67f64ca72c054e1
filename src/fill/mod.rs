//! One running download of one digest, with any number of readers.
//!
//! A [`Fill`] is a spool, the map of the ranges that the spool holds, a few fetchers that write
//! and any number of readers that follow. It belongs to nobody: the first client starts it, all
//! of them may leave, and it goes on by its own rules.
//!
//! | state | what it is | what those who wait do |
//! |---|---|---|
//! | `Connecting` | no source has answered yet | wait in [`Joined::opened`], so that a 404 or 429 keeps its meaning |
//! | `Filling` | bytes arrive, in windows, out of order | read what is held, up to the last 64 KiB of the blob |
//! | `Done` | all bytes are here and hash to the digest | read to the end |
//! | `Failed` | no source is left, or the bytes are wrong | who has no byte yet gets the error; a body ends short |
//!
//! The rooms: [`map`] which bytes are held; `state` who wants which bytes and who fetches them;
//! `life` from spool to blob; `fetch` and `body` the fetchers; `verify` the hash; `reader` how
//! bytes get out; `slide` what happens when there is no room to keep them; [`near`] other places
//! than the upstream; `running` what operators see of it.

mod body;
mod fetch;
mod life;
pub mod map;
pub mod near;
mod reader;
mod running;
mod slide;
mod state;
mod verify;

#[cfg(test)]
mod model;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::Deserialize;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::oci::Digest;
use crate::store::Disk;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{FillLabels, FillResult};

pub use near::{Near, Nearest, Vigil};
pub use reader::{Joined, Proving, Reader};
pub use running::Running;
use state::{Course, State};

/// What goes out to nobody before the whole blob is verified (promise 1).
pub const TAIL: u64 = 64 * 1024;
/// How long a fill that is not past its half goes on without readers.
const LINGER: Duration = Duration::from_secs(30);
/// How long a source that delivered wrong bytes for a digest is avoided for it.
const POISONED: Duration = Duration::from_secs(60);
/// While a digest is poisoned, how often a fresh download of it may start.
const RETRY_POISONED: Duration = Duration::from_secs(1);
/// Fills at once; each has a few connections, files and tasks.
const MOST_FILLS: usize = 1024;
/// Digests remembered as poisoned; the oldest are of no use.
const MOST_POISONED: usize = 4096;

/// `[fill]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Connections to the upstream for one blob.
    pub connections: usize,
    /// Bytes of one request, and the grid that requests end on.
    #[serde(deserialize_with = "crate::units::size")]
    pub window: u64,
}

/// Where a blob's bytes can be had: one repository of one upstream, say.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Two sources of one name are the same source.
    fn name(&self) -> &str;

    /// Waits for the right to have one more body open at this source.
    async fn permit(&self) -> OwnedSemaphorePermit;

    /// The same without waiting, for connections that only make a fill faster: they stand behind
    /// everybody who waits for a first one.
    fn try_permit(&self) -> Option<OwnedSemaphorePermit>;

    /// Opens the blob, or a range of it. Bounded in time, and so is every chunk of the body.
    async fn open(&self, range: Option<Range<u64>>) -> Result<Opened, SourceError>;

    /// All of a blob came from here and does not hash. For sources that can do something about it.
    fn condemned(&self) {}
}

/// An answered request.
pub struct Opened {
    /// What is coming: a range that starts where it was asked to, or `None` for the whole blob
    /// from byte 0, asked for or not.
    pub range: Option<Range<u64>>,
    /// Size of the whole blob, if the source says it.
    pub total: Option<u64>,
    /// Ends cleanly at the end of the range, or with an error where it was cut or fell silent.
    pub body: BoxStream<'static, Result<Bytes, SourceError>>,
}

/// Why a source did not deliver.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct SourceError {
    pub kind: SourceErrorKind,
    /// For people, and for the layer that made the source to recognise.
    pub cause: Arc<dyn Error + Send + Sync>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// It has no such blob, or not for us: only the requests that came by it end.
    Gone,
    /// Too many requests: the same, but fewer connections may do.
    Throttled,
    /// It cannot do ranges, or not properly: ask for the whole.
    NoRanges,
    /// Cut, silent, down: try again where it stopped.
    Broken,
}

/// Why a fill ended without its blob.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FillError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{source_name} sent bytes that do not have the digest {digest}")]
    WrongBytes { source_name: String, digest: Digest },
    #[error("too many downloads are running")]
    Busy,
    #[error("the server is stopping")]
    Stopping,
    #[error("neither disk nor memory takes the download: {0}")]
    Local(Arc<io::Error>),
    /// Only for readers that nobody waits for.
    #[error("what comes next is not kept any more")]
    TooSlow,
}

/// What [`Fill`] tells whoever asks how far it is.
#[derive(Clone, Debug)]
pub enum FillState {
    Connecting,
    Filling,
    Done,
    Failed(Arc<FillError>),
}

/// All running fills, by digest.
#[derive(Debug)]
pub struct Fills {
    shared: Arc<Shared>,
}

/// How [`Fills::join_or_start`] went.
#[derive(Debug)]
pub enum Join {
    Started(Joined),
    /// Somebody else had started it.
    Joined(Joined),
    /// It runs on other sources: show that this one has the digest, then ask again.
    ProveFirst,
}

/// What every fill needs.
#[derive(Debug)]
struct Shared {
    config: Config,
    disk: Arc<Disk>,
    near: Option<Arc<dyn Near>>,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Windows of memory for fills that the disk has no room for.
    slides: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    running: HashMap<Digest, Arc<Fill>>,
    poisoned: HashMap<Digest, Poison>,
}

/// Wrong bytes came for a digest.
#[derive(Debug)]
struct Poison {
    until: Instant,
    sources: Vec<String>,
    next_start: Instant,
}

/// One download.
#[derive(Debug)]
pub struct Fill {
    digest: Digest,
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Counts changes of `state` that a waiting reader may want to see.
    changes: watch::Sender<u64>,
    /// How many readers there are.
    readers: watch::Sender<usize>,
    /// A request was answered, or a source proved: more fetchers may start.
    answered: Notify,
    /// A reader or the hash moved on, or a reader left: a sliding fill may go on.
    consumed: Notify,
}

// === impl Opened ===

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opened { range, total, .. } = self;
        write!(f, "Opened({range:?} of {total:?})")
    }
}

// === impl SourceError ===

impl SourceError {
    fn no_ranges(message: String) -> Self {
        SourceError {
            kind: SourceErrorKind::NoRanges,
            cause: message_cause(message),
        }
    }

    fn broken(message: String) -> Self {
        SourceError {
            kind: SourceErrorKind::Broken,
            cause: message_cause(message),
        }
    }
}

fn message_cause(message: String) -> Arc<dyn Error + Send + Sync> {
    Arc::from(Box::<dyn Error + Send + Sync>::from(message))
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Config {
            connections: 4,
            window: 8 * 1024 * 1024,
        }
    }
}

// === impl Fills ===

impl Fills {
    /// `near` is asked before any upstream; `tracker` runs the downloads; `stop` makes them write
    /// their journals and end.
    #[must_use]
    pub fn new(
        config: Config,
        disk: Arc<Disk>,
        near: Option<Arc<dyn Near>>,
        metrics: Arc<Metrics>,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let shared = Shared {
            config,
            disk,
            near,
            metrics,
            tracker,
            stop,
            slides: Arc::new(Semaphore::new(slide::MOST_SLIDES)),
            table: Mutex::default(),
        };
        Fills {
            shared: Arc::new(shared),
        }
    }

    /// Whether a download of it runs, or is just being made a blob.
    #[must_use]
    pub fn is_running(&self, digest: &Digest) -> bool {
        self.shared.table().running.contains_key(digest)
    }

    /// The size of a blob that is being filled, if an upstream has told it.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        let table = self.shared.table();
        table
            .running
            .get(digest)
            .and_then(|fill| fill.state().total)
    }

    /// Joins the fill of `digest` if it runs. For readers whose right to the digest does not depend
    /// on its sources. `from` as for [`Fills::join_or_start`].
    #[must_use]
    pub fn follow(&self, digest: &Digest, from: Option<u64>) -> Option<Joined> {
        self.shared.table().running.get(digest)?.join(None, from)
    }

    /// Joins the fill of `digest`, or starts one.
    ///
    /// `source` is where the caller's request came by; `proved` says that it is known to have the
    /// digest. An unproved source may start a fill, whose first answer is the proof, but may not
    /// join what others proved. `from` is the first byte that is wanted, if that is known.
    ///
    /// # Errors
    /// [`FillError::WrongBytes`] while the digest is poisoned, [`FillError::Busy`],
    /// [`FillError::Stopping`].
    pub fn join_or_start(
        &self,
        digest: &Digest,
        source: &Arc<dyn Source>,
        proved: bool,
        from: Option<u64>,
    ) -> Result<Join, FillError> {
        let shared = &self.shared;
        let mut table = shared.table();
        if let Some(fill) = table.running.get(digest) {
            if !proved && !fill.state().knows(source.name()) {
                return Ok(Join::ProveFirst);
            }
            if let Some(joined) = fill.join(Some((source, proved)), from) {
                return Ok(Join::Joined(joined));
            }
        }
        if shared.stop.is_cancelled() {
            return Err(FillError::Stopping);
        }
        if table.running.len() >= MOST_FILLS {
            return Err(FillError::Busy);
        }
        let avoid = table.may_start(digest, from)?;
        let fill = Arc::new(Fill {
            digest: *digest,
            shared: Arc::clone(shared),
            state: Mutex::new(State::new(avoid, shared.first_course())),
            changes: watch::Sender::new(0),
            readers: watch::Sender::new(0),
            answered: Notify::new(),
            consumed: Notify::new(),
        });
        let joined = fill
            .join(Some((source, proved)), from)
            .ok_or(FillError::Busy)?;
        table.running.insert(*digest, Arc::clone(&fill));
        shared.metrics.fills_running.inc();
        shared.tracker.spawn(life::supervise(fill));
        Ok(Join::Started(joined))
    }
}

impl Shared {
    fn first_course(&self) -> Course {
        match self.near {
            Some(_) => Course::Undecided,
            None => Course::Sources,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether a fresh download may start, and which sources it should rather not use.
    fn may_start(&mut self, digest: &Digest, from: Option<u64>) -> Result<Vec<String>, FillError> {
        let now = Instant::now();
        let Some(poison) = self.poisoned.get_mut(digest) else {
            return Ok(Vec::new());
        };
        if poison.until <= now {
            self.poisoned.remove(digest);
            return Ok(Vec::new());
        }
        // Who asks for a later range holds the wrong beginning: the same client, resuming.
        if from != Some(0) || now < poison.next_start {
            let source_name = poison.sources.last().cloned().unwrap_or_default();
            return Err(FillError::WrongBytes {
                source_name,
                digest: *digest,
            });
        }
        poison.next_start = now + RETRY_POISONED;
        Ok(poison.sources.clone())
    }

    fn poison(&mut self, digest: &Digest, source: &str) {
        let now = Instant::now();
        if self.poisoned.len() >= MOST_POISONED {
            self.poisoned.retain(|_, poison| poison.until > now);
        }
        if self.poisoned.len() >= MOST_POISONED {
            return;
        }
        let poison = self.poisoned.entry(*digest).or_insert_with(|| Poison {
            until: now,
            sources: Vec::new(),
            next_start: now,
        });
        poison.until = now + POISONED;
        poison.next_start = now + RETRY_POISONED;
        if !poison.sources.iter().any(|name| name == source) {
            poison.sources.push(source.to_owned());
        }
    }
}

// === impl Fill ===

impl Fill {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits that there is something new to see.
    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Takes the fill out of the table, so that nobody joins it any more.
    fn leave_table(self: &Arc<Self>) {
        let mut table = self.shared.table();
        if table
            .running
            .get(&self.digest)
            .is_some_and(|fill| Arc::ptr_eq(fill, self))
        {
            table.running.remove(&self.digest);
        }
    }

    /// The same, but only while nobody reads. Joining takes the same lock, so nobody slips in.
    fn leave_table_unread(self: &Arc<Self>) -> bool {
        let mut table = self.shared.table();
        if *self.readers.borrow() > 0 {
            return false;
        }
        if table
            .running
            .get(&self.digest)
            .is_some_and(|fill| Arc::ptr_eq(fill, self))
        {
            table.running.remove(&self.digest);
        }
        true
    }

    /// Ends the fill with an error that everybody gets who still waits.
    fn fail(self: &Arc<Self>, error: FillError) {
        if let FillError::WrongBytes { source_name, .. } = &error {
            self.shared.table().poison(&self.digest, source_name);
        }
        self.leave_table();
        self.state().phase = FillState::Failed(Arc::new(error));
        self.changed();
    }

    fn count(&self, result: FillResult) {
        self.shared
            .metrics
            .fills
            .get_or_create(&FillLabels { result })
            .inc();
    }
}
