//! Bytes by digest on the local disk, and what is known about them: links, what led where, tags.
//!
//! Everything lies below `store.path` and everything there is written by this module alone:
//!
//! ```text
//! v1/blobs/sha256/<2 hex>/<hex>     blobs and manifests; a name is visible only when its bytes hash
//! v1/index                          stat, last use and children of each, and how the last run ended
//! v1/gone                           what was evicted, set aside or purged lately, and why
//! v1/pins/<sha256 of name>.json     images and patterns that are never evicted
//! v1/imports/<id>.json              what an import is about to make visible
//! v1/repos/<registry>/<repository>/ _tags/<tag>.json, _links, _led
//! v1/spool/                         fills in progress, and files on their way to their names
//! v1/uploads                        what is on its way to the shared store
//! v1/pulls                          who asked for which image
//! v1/quarantine/                    blobs that were found not to hash, for 24 hours
//! v1/ledger.json                    every host that was dialled
//! lock                              held by the one process that uses the store
//! control.sock                      where that process hears its operators
//! ```
//!
//! A failing disk never fails a pull: what cannot be kept is reported to the caller, counted and
//! logged at most once a minute, and the answer goes on without it.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the module that writes below store.path"
)]

pub mod catalog;
mod check;
pub mod claims;
pub mod control;
pub mod disk;
mod evict;
mod files;
pub mod gone;
pub mod imports;
mod index;
pub mod keep;
mod layout;
mod learn;
pub mod ledger;
pub mod links;
pub mod object;
mod open;
mod order;
pub mod pins;
mod present;
pub mod prune;
mod publish;
pub mod pulls;
mod records;
mod shelf;
pub mod spool;
pub mod tags;
#[cfg(test)]
mod tests;
mod tier;
mod upkeep;
mod uploads;
pub mod used;

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::oci::Digest;
use crate::telemetry::Metrics;

pub use check::Checked;
pub use claims::{Claim, Claims};
pub use disk::Disk;
pub use evict::Hold;
pub use gone::Gone;
pub use links::{Link, Links};
pub use object::{Shared, SharedError};
pub use pins::Pins;
pub use spool::{Restored, Spool, Verified, Verifier, write_all_at};
pub use tags::{TagEntry, TagRecord, Tags, Variant};
pub use tier::Seen;
pub use uploads::Keep;

use files::{Faults, blocking};
use layout::Layout;
use present::Present;
use tier::Tier;
use uploads::{Item, Uploads};

/// `[store]` of the configuration.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The directory that holds everything; made when it is missing.
    pub path: PathBuf,
    /// Bytes that blobs, spools and quarantine may take together; None: 80 % of the file system.
    /// Above it the least recently used images go until 95 % of it are left.
    #[serde(deserialize_with = "some_size")]
    pub max_size: Option<u64>,
    /// What replicas share; None: this one is alone.
    pub shared: Option<object::Config>,
}

/// Everything that is kept. One per process; see [`Store::open`].
#[derive(Debug)]
pub struct Store {
    pub disk: Arc<Disk>,
    pub links: Links,
    pub tags: Tags,
    /// What other replicas see too, where there are any.
    pub shared: Option<Arc<Shared>>,
    /// The same with what is on its way there.
    tier: Option<Arc<Tier>>,
    present: Arc<Present>,
}

/// Bytes that lie in a file already: the currency of blob answers, which become writes to a socket
/// only at the very last step.
#[derive(Clone, Debug)]
pub struct FileRange {
    file: Arc<File>,
    range: Range<u64>,
    lease: Option<Arc<Lease>>,
}

/// Keeps a range from being given up while it is on its way: it lasts until the [`FileRange`]
/// that carries it is dropped.
#[derive(Debug)]
pub struct Lease;

impl FileRange {
    #[must_use]
    pub fn new(file: Arc<File>, range: Range<u64>) -> Self {
        FileRange {
            file,
            range,
            lease: None,
        }
    }

    #[must_use]
    pub fn leased(file: Arc<File>, range: Range<u64>, lease: Arc<Lease>) -> Self {
        FileRange {
            file,
            range,
            lease: Some(lease),
        }
    }

    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Half-open, in bytes from the start of the file.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Whether the bytes may be given up as soon as this is dropped. They must then be copied, not
    /// lent: a socket that was given a page by reference sends what is in it when it gets to it.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// In bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The part of it that `part`, counted from its own start, names.
    #[must_use]
    pub fn slice(&self, part: Range<u64>) -> FileRange {
        let at = |offset: u64| self.range.start.saturating_add(offset).min(self.range.end);
        FileRange {
            range: at(part.start)..at(part.end),
            ..self.clone()
        }
    }

    /// Takes at most `length` bytes off the front, under the same lease.
    #[must_use]
    pub fn split_front(&mut self, length: u64) -> FileRange {
        let middle = self.range.end.min(self.range.start.saturating_add(length));
        let front = FileRange {
            range: self.range.start..middle,
            ..self.clone()
        };
        self.range.start = middle;
        front
    }
}

/// Why something could not be kept or read. The answer to a client goes on without the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("the store {0} is in use by another process: stop that one, or set another store.path")]
    Locked(PathBuf),
    #[error("the bytes that were to be kept as {0} do not hash to it")]
    WrongBytes(Digest),
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Config {
            path: PathBuf::from("./portcullis-data"),
            max_size: None,
            shared: None,
        }
    }
}

fn some_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    crate::units::size(deserializer).map(Some)
}

// === impl Store ===

impl Store {
    /// Opens the store, or makes it. Blocks: it walks every blob's directory entry.
    ///
    /// # Errors
    ///
    /// [`StoreError::Locked`] when another process has it; `Io` when it cannot be read or made.
    pub fn open(
        config: &Config,
        shared: Option<Arc<Shared>>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StoreError> {
        let layout = Layout::new(&config.path);
        let faults = Arc::new(Faults::new(Arc::clone(&metrics)));
        let disk = Disk::open(config, Arc::clone(&faults))?;
        ledger::restore(&layout, &metrics.ledger);
        let pins = &disk.pins;
        let present = Arc::new(Present::default());
        let mut tier = None;
        if let Some(shared) = &shared {
            let uploads = Arc::new(Uploads::open(layout.clone(), Arc::clone(&faults))?);
            for digest in uploads.blobs() {
                let hold = disk.hold(&digest, disk::UPLOAD);
                uploads.keep(&Item::Blob(digest), Box::new(hold));
            }
            disk.note_commits_in(&uploads);
            let redirect = config.shared.as_ref();
            let redirect = redirect.map(|shared| shared.redirect.clone());
            tier = Some(Arc::new(Tier::new(
                Arc::clone(shared),
                uploads,
                redirect.unwrap_or_default(),
                metrics,
            )));
        }
        let store = Store {
            links: Links::new(
                layout.clone(),
                Arc::clone(&faults),
                Arc::clone(pins),
                Arc::clone(&present),
            ),
            tags: Tags::new(layout, faults, Arc::clone(pins), Arc::clone(&present)),
            disk,
            shared,
            tier,
            present,
        };
        // Before anything goes.
        store.disk.scan_patterns()?;
        store.disk.keep_below_limit();
        Ok(Arc::new(store))
    }

    /// The work behind the answers: makes commits durable, keeps the size limit, writes links and
    /// tags, brings what is new to the shared store, scrubs and sweeps. Runs until `token` is
    /// cancelled, and up to 5 s longer while the shared store still takes what is new; then call
    /// [`Store::close`].
    pub async fn run(self: &Arc<Self>, token: CancellationToken) {
        tokio::join!(
            token.run_until_cancelled(self.find_files()),
            self.disk.run(token.clone()),
            self.links.run(token.clone()),
            self.tags.run(token.clone()),
            self.write_ledger(&token),
            self.publish(token.clone())
        );
    }

    /// Learns once which files of links and tags there are.
    async fn find_files(&self) {
        let (present, root) = (Arc::clone(&self.present), self.disk.layout.repositories());
        let what = format!("read {}", root.display());
        let found = blocking(move || present.walk(&root).map_err(StoreError::io(what))).await;
        // Without it every look goes to the disk.
        let _ = self.disk.faults.noted(found);
    }

    /// Writes what is still in memory and marks the store as closed in good order, so that the
    /// next start trusts its blobs. Call it when nothing uses the store any more: what is kept
    /// afterwards is safe, but will be hashed again.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.links.flush().await;
        self.tags.flush().await;
        self.write_journal().await;
        self.write_ledger_now().await;
        self.disk.close().await
    }
}

// === impl StoreError ===

impl StoreError {
    /// For `map_err`: says what was being done.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
        let what = what.into();
        move |source| StoreError::Io { what, source }
    }
}
