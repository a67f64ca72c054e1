//! What has to arrive in the shared store: a queue of names, not of content.
//!
//! A name stands for whatever is known here when its turn comes, so that one that is noted twice is
//! published once, and what has gone since is dropped. Small things go before blobs.
//!
//! | a name is | until |
//! |---|---|
//! | waiting | it is taken; after a failure 1 s at first, then twice as long each time, up to 30 s |
//! | running | it is settled; noted again meanwhile, it waits once more |
//!
//! At most 65,536 names wait, about 20 MiB of memory. What comes on top is dropped and counted: it
//! stays here, and other replicas fetch it from its upstream.

mod journal;

use std::any::Any;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::StoreError;
use super::claims::Claim;
use super::files::{Faults, lock};
use super::layout::Layout;
use crate::oci::{Digest, Repository, Tag};
use crate::telemetry::metrics::{PublishLabels, PublishResult, SharedKind};
use journal::Journal;

const MOST: usize = 65_536;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Something that replicas share, by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Item {
    Blob(Digest),
    Link(Repository, Digest),
    /// What led to a digest.
    Led(Repository, Digest),
    Tag(Repository, Tag),
}

/// Kept until a name is published or dropped: a claim, a blob's right to stay, somebody who waits.
pub type Keep = Box<dyn Any + Send>;

/// Names on their way to the shared store.
pub(super) struct Uploads {
    queue: Mutex<Queue>,
    /// Taken before `queue`.
    journal: Mutex<Journal>,
    changed: Notify,
    layout: Layout,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Queue {
    entries: HashMap<Item, Entry>,
    small: VecDeque<Item>,
    blobs: VecDeque<Item>,
    /// Failed, by when they are due; the number tells those of one moment apart.
    later: BTreeMap<(Instant, u64), Item>,
    number: u64,
    /// Noted since the journal was last written.
    unwritten: Vec<Item>,
}

#[derive(Default)]
struct Entry {
    keep: Vec<Keep>,
    failures: u32,
    /// Taken; then whether it was noted again since.
    running: Option<bool>,
    /// The journal has it.
    written: bool,
}

/// A name whose turn has come. Dropped unsettled, as by a shutdown, it waits again.
pub(super) struct Taken {
    uploads: Arc<Uploads>,
    item: Item,
    settled: bool,
}

// === impl Item ===

impl Item {
    fn kind(&self) -> SharedKind {
        match self {
            Item::Blob(_) => SharedKind::Blob,
            Item::Link(..) => SharedKind::Link,
            Item::Led(..) => SharedKind::Led,
            Item::Tag(..) => SharedKind::Tag,
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Blob(digest) => write!(f, "blob {digest}"),
            Item::Link(repository, digest) => write!(f, "link {repository} {digest}"),
            Item::Led(repository, digest) => write!(f, "led {repository} {digest}"),
            Item::Tag(repository, tag) => write!(f, "tag {repository} {tag}"),
        }
    }
}

impl FromStr for Item {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        fn parse<T: FromStr>(text: &str) -> Result<T, ()> {
            text.parse().map_err(drop)
        }
        let (kind, rest) = line.split_once(' ').ok_or(())?;
        if kind == "blob" {
            return Ok(Item::Blob(parse(rest)?));
        }
        let (repository, rest) = rest.split_once(' ').ok_or(())?;
        let (registry, name) = repository.split_once('/').ok_or(())?;
        let repository = Repository::new(parse(registry)?, parse(name)?).map_err(drop)?;
        match kind {
            "link" => Ok(Item::Link(repository, parse(rest)?)),
            "led" => Ok(Item::Led(repository, parse(rest)?)),
            "tag" => Ok(Item::Tag(repository, parse(rest)?)),
            _ => Err(()),
        }
    }
}

// === impl Uploads: what waits ===

impl Uploads {
    /// With what an earlier process left in the journal. Blocks.
    pub(super) fn open(layout: Layout, faults: Arc<Faults>) -> Result<Self, StoreError> {
        let (journal, items) = Journal::open(&layout)?;
        let uploads = Uploads {
            queue: Mutex::default(),
            journal: Mutex::new(journal),
            changed: Notify::new(),
            layout,
            faults,
        };
        let mut queue = lock(&uploads.queue);
        for item in items {
            // The journal gives no more than there is room for.
            let _ = queue.note(&item, None, true);
        }
        uploads.show(&queue);
        drop(queue);
        Ok(uploads)
    }

    /// Notes that something has to be published. `keep` lives until that is done, or hopeless.
    pub(super) fn note(&self, item: &Item, keep: Option<Keep>) {
        self.note_as(item, keep, false);
    }

    /// Notes a blob that `commit` is about to give its name, in the journal before that, so that
    /// no kill comes between. Blocks.
    pub(super) fn commit<T, E>(
        &self,
        item: &Item,
        keep: Keep,
        commit: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let ahead = lock(&self.journal).write_ahead(&self.layout, item);
        let ahead = self.faults.noted(ahead).is_ok();
        let result = commit();
        if result.is_ok() {
            self.note_as(item, Some(keep), ahead);
        }
        lock(&self.journal).caught_up(item);
        result
    }

    fn note_as(&self, item: &Item, keep: Option<Keep>, written: bool) {
        let mut queue = lock(&self.queue);
        let noted = queue.note(item, keep, written);
        self.show(&queue);
        drop(queue);
        if noted.is_ok() {
            self.changed.notify_one();
        } else {
            self.count(item, PublishResult::Dropped);
        }
    }

    /// `keep` lives until a name that is waiting or running is published; else it is dropped now.
    pub(super) fn keep(&self, item: &Item, keep: Keep) {
        if let Some(entry) = lock(&self.queue).entries.get_mut(item) {
            entry.keep.push(keep);
        }
    }

    /// Resolves when something was noted since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.queue).entries.is_empty()
    }

    /// All blobs that wait.
    pub(super) fn blobs(&self) -> HashSet<Digest> {
        let queue = lock(&self.queue);
        let blobs = queue.entries.keys().filter_map(|item| match item {
            Item::Blob(digest) => Some(*digest),
            _ => None,
        });
        blobs.collect()
    }

    /// Takes what is due: something small if `small`, else a blob if `blob`.
    pub(super) fn take(self: &Arc<Self>, small: bool, blob: bool) -> Option<Taken> {
        let mut queue = lock(&self.queue);
        queue.bring_what_is_due();
        let item = small.then(|| queue.small.pop_front()).flatten();
        let item = item.or_else(|| blob.then(|| queue.blobs.pop_front()).flatten())?;
        if let Some(entry) = queue.entries.get_mut(&item) {
            entry.running = Some(false);
        }
        Some(Taken {
            uploads: Arc::clone(self),
            item,
            settled: false,
        })
    }

    /// When something that failed is due again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        lock(&self.queue).later.keys().next().map(|(due, _)| *due)
    }

    fn show(&self, queue: &Queue) {
        let waiting = queue.entries.len().try_into().unwrap_or(i64::MAX);
        self.faults.metrics().shared_waiting.set(waiting);
    }

    fn count(&self, item: &Item, result: PublishResult) {
        let kind = item.kind();
        let labels = PublishLabels { kind, result };
        let metrics = self.faults.metrics();
        metrics.shared_published.get_or_create(&labels).inc();
    }
}

// === impl Uploads: the journal ===

impl Uploads {
    /// Brings the journal up to date. Blocks. A failure is noted: what waits is then forgotten by
    /// a kill, and fetched again by who misses it.
    pub(super) fn write_journal(&self) {
        let mut journal = lock(&self.journal);
        let (all, new) = {
            let mut queue = lock(&self.queue);
            let mut new = std::mem::take(&mut queue.unwritten);
            new.retain(|item| {
                let entry = queue.entries.get_mut(item).filter(|entry| !entry.written);
                entry.map(|entry| entry.written = true).is_some()
            });
            let wasteful = journal.is_wasteful(queue.entries.len());
            let all = wasteful.then(|| queue.entries.keys().cloned().collect::<Vec<_>>());
            (all, new)
        };
        let written = match all {
            Some(all) => journal.replace(&self.layout, all),
            None => journal.append(&self.layout, &new),
        };
        // Noted is all that can be done.
        let _ = self.faults.noted(written);
    }

    /// Whether [`Uploads::write_journal`] has anything to do.
    pub(super) fn journal_is_behind(&self) -> bool {
        // Who has the lock is writing it at this moment.
        let Ok(journal) = self.journal.try_lock() else {
            return true;
        };
        let queue = lock(&self.queue);
        !queue.unwritten.is_empty() || journal.is_wasteful(queue.entries.len())
    }
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uploads({})", lock(&self.queue).entries.len())
    }
}

// === impl Queue ===

impl Queue {
    /// `Err`, with what is to be dropped without the lock: there is no room for it.
    fn note(&mut self, item: &Item, keep: Option<Keep>, written: bool) -> Result<(), Option<Keep>> {
        if let Some(entry) = self.entries.get_mut(item) {
            entry.keep.extend(keep);
            entry.running = entry.running.map(|_| true);
            return Ok(());
        }
        if self.entries.len() >= MOST {
            return Err(keep);
        }
        let entry = Entry {
            keep: keep.into_iter().collect(),
            written,
            ..Entry::default()
        };
        self.entries.insert(item.clone(), entry);
        if !written {
            self.unwritten.push(item.clone());
        }
        self.line_up(item.clone());
        Ok(())
    }

    fn line_up(&mut self, item: Item) {
        match item {
            Item::Blob(_) => self.blobs.push_back(item),
            _ => self.small.push_back(item),
        }
    }

    fn bring_what_is_due(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.later.first_entry()
            && first.key().0 <= now
        {
            let item = first.remove();
            self.line_up(item);
        }
    }

    fn put_back(&mut self, item: &Item) {
        if let Some(entry) = self.entries.get_mut(item) {
            entry.running = None;
            self.line_up(item.clone());
        }
    }

    /// Gives what was kept for it, to be dropped without the lock.
    fn settle(&mut self, item: &Item, done: bool) -> Vec<Keep> {
        let Some(entry) = self.entries.get_mut(item) else {
            return Vec::new();
        };
        let again = entry.running.take() == Some(true);
        if done && !again {
            return self.entries.remove(item).unwrap_or_default().keep;
        }
        if done {
            entry.failures = 0;
            self.line_up(item.clone());
            return Vec::new();
        }
        let wait = FIRST_RETRY.saturating_mul(1 << entry.failures.min(8));
        entry.failures += 1;
        self.number += 1;
        let due = Instant::now() + wait.min(LAST_RETRY);
        self.later.insert((due, self.number), item.clone());
        Vec::new()
    }
}

// === impl Taken ===

impl Taken {
    pub(super) fn item(&self) -> &Item {
        &self.item
    }

    /// Whether a claim is kept until it has arrived.
    pub(super) fn is_claimed(&self) -> bool {
        let queue = lock(&self.uploads.queue);
        let entry = queue.entries.get(&self.item);
        entry.is_some_and(|entry| entry.keep.iter().any(|keep| keep.is::<Claim>()))
    }

    /// It needs no publishing any more.
    pub(super) fn done(self, result: PublishResult) {
        self.uploads.count(&self.item, result);
        self.settle(true);
    }

    /// It is tried again later.
    pub(super) fn failed(self) {
        self.uploads.count(&self.item, PublishResult::Failed);
        self.settle(false);
    }

    /// The same, though nothing has failed.
    pub(super) fn later(self) {
        self.settle(false);
    }

    fn settle(mut self, done: bool) {
        self.settled = true;
        let mut queue = lock(&self.uploads.queue);
        let keep = queue.settle(&self.item, done);
        self.uploads.show(&queue);
        drop(queue);
        drop(keep);
        self.uploads.changed.notify_one();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.settled {
            lock(&self.uploads.queue).put_back(&self.item);
        }
    }
}

#[cfg(test)]
mod tests;
