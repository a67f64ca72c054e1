//! What a tag has pointed to: one small JSON file per tag, and its copy in memory.
//!
//! ```json
//! {"variants": {"any": [{"digest": "sha256:..", "media_type": "..", "size": 1234,
//!                        "first_seen": 1760000000, "last_seen": 1760000600}]},
//!  "checked": 1760000600}
//! ```
//!
//! All times are unix seconds. The newest entry is the last: the one that the upstream named last,
//! not the one that appeared last, because a tag can be moved back. Records of several replicas
//! are joined by [`TagRecord::merge`], which gives the same result in whatever order.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::files::{Change, Faults, blocking, found, unix_now};
use super::layout::Layout;
use super::pins::Pins;
use super::present::Present;
use super::shelf::{Kept, Shelf};
use crate::oci::{Digest, MediaType, Repository, Tag};

/// Digests that one variant of a record remembers.
const MOST_ENTRIES: usize = 64;
/// Entries in memory, over all records; each takes about 200 bytes.
const IN_MEMORY: u64 = 200_000;
/// How far the clocks of replicas may differ, in seconds. A time further in the future says nothing
/// about how fresh a tag is.
pub const CLOCKS_DIFFER: i64 = 10;

/// Who an answer of the upstream was for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Clients that take every type: asked with all manifest types.
    Any,
    /// Clients that take images only: asked with their own types.
    Image,
}

/// One digest that a tag has pointed to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TagEntry {
    pub digest: Digest,
    #[serde(with = "media_type")]
    pub media_type: MediaType,
    /// Of the manifest, in bytes.
    pub size: u64,
    /// When the upstream first named it for this tag, in unix seconds.
    pub first_seen: i64,
    /// When the upstream last did.
    pub last_seen: i64,
    /// An operator wanted this very content: it counts as old enough for any `min_age`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vouched: bool,
}

/// What a tag has pointed to, for each variant, newest last: at most 64, thinned out evenly.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TagRecord {
    variants: BTreeMap<Variant, Vec<TagEntry>>,
    /// When the upstream was last asked about any variant, in unix seconds.
    pub checked: i64,
}

/// The tag records of all repositories.
#[derive(Debug)]
pub struct Tags {
    layout: Layout,
    faults: Arc<Faults>,
    pins: Arc<Pins>,
    shelf: Shelf<Slot>,
}

/// A tag's place in memory; empty for a tag of which nothing is known.
#[derive(Debug, Default)]
struct Slot {
    record: Option<Arc<TagRecord>>,
    unwritten: bool,
}

// === impl TagEntry ===

impl TagEntry {
    /// A digest that the upstream named at `seen`, in unix seconds.
    #[must_use]
    pub fn new(digest: Digest, media_type: MediaType, size: u64, seen: i64) -> Self {
        TagEntry {
            digest,
            media_type,
            size,
            first_seen: seen,
            last_seen: seen,
            vouched: false,
        }
    }

    /// Newest is greatest. No two entries are equal that differ in what a merge does not join.
    fn age(&self) -> (i64, Digest, &str, u64) {
        (
            self.last_seen,
            self.digest,
            self.media_type.as_str(),
            self.size,
        )
    }
}

// === impl TagRecord ===

impl TagRecord {
    /// What the tag points to as far as is known.
    #[must_use]
    pub fn current(&self, variant: Variant) -> Option<&TagEntry> {
        self.entries(variant).last()
    }

    /// What any client was last given by this name.
    #[must_use]
    pub fn newest(&self) -> Option<&TagEntry> {
        let newest = self.variants.values().filter_map(|entries| entries.last());
        newest.max_by_key(|entry| entry.last_seen)
    }

    /// All that is known of one variant, newest last.
    #[must_use]
    pub fn entries(&self, variant: Variant) -> &[TagEntry] {
        self.variants.get(&variant).map_or(&[], Vec::as_slice)
    }

    /// What the upstream has named since `since` (unix seconds), and what it named last if it was
    /// asked since then.
    pub fn since(&self, since: i64) -> impl Iterator<Item = &TagEntry> {
        let asked = self.checked >= since;
        self.variants.values().flat_map(move |entries| {
            let last = entries.len().saturating_sub(1);
            let counts = move |(at, entry): (usize, _)| {
                let entry: &TagEntry = entry;
                (entry.last_seen >= since || (asked && at == last)).then_some(entry)
            };
            entries.iter().enumerate().filter_map(counts)
        })
    }

    /// What two replicas know together: the union by digest, first seen when either saw it first,
    /// last seen and checked when either did last, vouched for when either has that. Commutative,
    /// associative and idempotent, so replicas that have exchanged their records agree. May hold
    /// more than 64 entries.
    #[must_use]
    pub fn merge(&self, other: &TagRecord) -> TagRecord {
        let mut variants: BTreeMap<Variant, Vec<TagEntry>> = BTreeMap::new();
        for variant in self.variants.keys().chain(other.variants.keys()) {
            let mut union: BTreeMap<Digest, TagEntry> = BTreeMap::new();
            for entry in self.entries(*variant).iter().chain(other.entries(*variant)) {
                union
                    .entry(entry.digest)
                    .and_modify(|known| {
                        let first_seen = known.first_seen.min(entry.first_seen);
                        let vouched = known.vouched || entry.vouched;
                        if entry.age() > known.age() {
                            known.clone_from(entry);
                        }
                        known.first_seen = first_seen;
                        known.vouched = vouched;
                    })
                    .or_insert_with(|| entry.clone());
            }
            let mut entries: Vec<TagEntry> = union.into_values().collect();
            entries.sort_by(|a, b| a.age().cmp(&b.age()));
            variants.insert(*variant, entries);
        }
        TagRecord {
            variants,
            checked: self.checked.max(other.checked),
        }
    }

    /// One entry.
    #[cfg(test)]
    pub(super) fn of(variant: Variant, entry: TagEntry) -> Self {
        let mut record = TagRecord::default();
        record.see(variant, entry);
        record
    }

    /// Whether it knows one digest, seen once: nobody else can know much more.
    pub(super) fn is_new(&self) -> bool {
        let mut entries = self.variants.values().flatten();
        let first = entries.next();
        first.is_some_and(|entry| entry.first_seen == entry.last_seen) && entries.next().is_none()
    }

    /// The same with at most 64 entries for each variant.
    pub(super) fn bounded(mut self) -> Self {
        self.variants.values_mut().for_each(thin_out);
        self
    }

    /// What another replica wrote, for joining it with `ours`. A clock that is ahead must not
    /// decide what is newest: its times are brought down to before ours.
    pub(super) fn believed_beside(mut self, ours: &TagRecord, now: i64) -> Self {
        let entries = self.variants.values().flatten();
        let latest = entries.map(|entry| entry.last_seen).max();
        if latest.unwrap_or(self.checked).max(self.checked) > now.saturating_add(CLOCKS_DIFFER) {
            let before = ours.checked.min(now).saturating_sub(1);
            self.checked = self.checked.min(before);
            for entries in self.variants.values_mut() {
                clamp(entries, before);
            }
        }
        self
    }

    /// The upstream named `entry` at `entry.last_seen`: it becomes the newest. Where another one was
    /// seen in the same second, or a little later by another replica's clock, this counts on from
    /// there, because those may hold a copy of this record. Whatever a clock that was wrong may have
    /// written beyond that was not seen later.
    fn see(&mut self, variant: Variant, mut entry: TagEntry) {
        let entries = self.variants.entry(variant).or_default();
        if let Some(position) = entries
            .iter()
            .position(|known| known.digest == entry.digest)
        {
            let known = entries.remove(position);
            entry.first_seen = entry.first_seen.min(known.first_seen);
            entry.vouched |= known.vouched;
        }
        self.checked = entry.last_seen;
        let newest = entries.last().map_or(i64::MIN, |newest| newest.last_seen);
        if (0..CLOCKS_DIFFER).contains(&newest.saturating_sub(entry.last_seen)) {
            entry.last_seen = newest + 1;
        }
        clamp(entries, entry.last_seen.saturating_sub(1));
        entries.push(entry);
        thin_out(entries);
    }

    /// What a file said, with times that lie in the future taken for now.
    fn restored(mut self, now: i64) -> Self {
        self.checked = self.checked.min(now);
        for entries in self.variants.values_mut() {
            clamp(entries, now);
        }
        self
    }
}

fn thin_out(entries: &mut Vec<TagEntry>) {
    while entries.len() > MOST_ENTRIES {
        entries.remove(least_missed(entries));
    }
}

/// The entry between the oldest and the newest that tells least: its neighbours are closest in
/// time. A tag that moves every hour so still has a history of months, which `min_age` needs.
fn least_missed(entries: &[TagEntry]) -> usize {
    let gap = |neighbours: &[TagEntry]| {
        neighbours[2]
            .last_seen
            .saturating_sub(neighbours[0].last_seen)
    };
    let gaps = entries.windows(3).map(gap).enumerate();
    gaps.min_by_key(|(_, gap)| *gap)
        .map_or(0, |(index, _)| index + 1)
}

/// Brings times down to `latest` without changing the order.
fn clamp(entries: &mut [TagEntry], mut latest: i64) {
    for entry in entries.iter_mut().rev() {
        entry.last_seen = entry.last_seen.min(latest);
        entry.first_seen = entry.first_seen.min(entry.last_seen);
        latest = entry.last_seen.saturating_sub(1);
    }
}

// === impl Tags ===

impl Tags {
    pub(super) fn new(
        layout: Layout,
        faults: Arc<Faults>,
        pins: Arc<Pins>,
        present: Arc<Present>,
    ) -> Self {
        let shelf = Shelf::new(layout.clone(), Arc::clone(&faults), present, IN_MEMORY);
        Tags {
            layout,
            faults,
            pins,
            shelf,
        }
    }

    /// What is known of a tag: from memory, or from its file.
    pub async fn get(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        self.shelf
            .read(&(repository.clone(), tag.clone()), |slot| {
                slot.record.clone()
            })
            .await
    }

    /// The upstream named `entry` for this tag at `entry.last_seen`. The next [`Tags::get`] knows;
    /// the file is written in the background.
    pub async fn record(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Variant,
        entry: TagEntry,
    ) {
        self.pins.tagged(repository, tag, &entry.digest);
        let key = (repository.clone(), tag.clone());
        self.shelf
            .change(&key, |slot| {
                slot.update(|record| record.see(variant, entry));
                true
            })
            .await;
    }

    /// The upstream was asked at `checked` (unix seconds) and still names `digest`. Nothing
    /// happens when the record does not know the digest.
    pub async fn checked(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Variant,
        digest: &Digest,
        checked: i64,
    ) {
        let key = (repository.clone(), tag.clone());
        self.shelf
            .change(&key, |slot| {
                let record = slot.record.as_deref();
                let known = record.map_or(&[][..], |record| record.entries(variant));
                let Some(entry) = known.iter().find(|entry| entry.digest == *digest) else {
                    return false;
                };
                let entry = TagEntry {
                    last_seen: checked,
                    ..entry.clone()
                };
                slot.update(|record| record.see(variant, entry));
                true
            })
            .await;
    }

    /// An operator wants what the tag points to: see [`TagEntry::vouched`]. Nothing happens when
    /// the record does not know the digest.
    pub(super) async fn vouch(&self, repository: &Repository, tag: &Tag, digest: &Digest) -> bool {
        let key = (repository.clone(), tag.clone());
        let mut news = false;
        let vouch = |slot: &mut Slot| {
            news = slot.record.as_deref().is_some_and(|record| {
                let entries = &mut record.variants.values().flatten();
                entries.any(|entry| entry.digest == *digest && !entry.vouched)
            });
            if news {
                slot.update(|record| {
                    let entries = record.variants.values_mut().flatten();
                    for entry in entries.filter(|entry| entry.digest == *digest) {
                        entry.vouched = true;
                    }
                });
            }
            news
        };
        self.shelf.change(&key, vouch).await;
        news
    }

    /// Joins what other replicas know with what is known here, and gives both together.
    pub(super) async fn adopt(
        &self,
        repository: &Repository,
        tag: &Tag,
        theirs: &TagRecord,
    ) -> Arc<TagRecord> {
        let key = (repository.clone(), tag.clone());
        let mut joined = None;
        let adopt = |slot: &mut Slot| {
            let ours = slot.record.as_deref();
            let both = match ours {
                Some(ours) => ours.merge(theirs).bounded(),
                None => theirs.clone().bounded(),
            };
            let news = ours != Some(&both);
            if news {
                slot.update(|record| *record = both);
            }
            joined.clone_from(&slot.record);
            news
        };
        self.shelf.change(&key, adopt).await;
        joined.unwrap_or_default()
    }

    /// All tags of a repository that have a record, in order.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<Tag>, StoreError> {
        // What was recorded a moment ago counts too.
        self.flush().await;
        let directory = self.layout.tags(repository);
        let result = blocking(move || {
            list(&directory).map_err(StoreError::io(format!("read {}", directory.display())))
        });
        self.faults.noted(result.await)
    }

    /// The upstream's tag is to be forgotten here.
    pub(super) async fn remove(&self, repository: &Repository, tag: &Tag) {
        let key = (repository.clone(), tag.clone());
        self.shelf
            .change(&key, |slot| {
                slot.unwritten = slot.record.take().is_some();
                slot.unwritten
            })
            .await;
    }

    /// All tags of a repository as their files have them. Blocks.
    pub(super) fn on_disk(
        layout: &Layout,
        repository: &Repository,
        faults: &Faults,
    ) -> io::Result<Vec<(Tag, Arc<TagRecord>)>> {
        let tags = list(&layout.tags(repository))?.into_iter();
        let records = tags.filter_map(|tag| {
            let key = (repository.clone(), tag);
            let record = Slot::load(layout, &key, faults).record?;
            Some((key.1, record))
        });
        Ok(records.collect())
    }

    pub(super) async fn flush(&self) {
        self.shelf.flush().await;
    }

    pub(super) async fn run(&self, token: CancellationToken) {
        self.shelf.run(token).await;
    }
}

fn list(directory: &std::path::Path) -> io::Result<Vec<Tag>> {
    let Some(files) = found(std::fs::read_dir(directory))? else {
        return Ok(Vec::new());
    };
    let mut tags = Vec::new();
    for file in files {
        let name = file?.file_name();
        let tag = name
            .to_str()
            .and_then(|name| name.strip_suffix(".json")?.parse().ok());
        tags.extend(tag);
    }
    tags.sort();
    Ok(tags)
}

// === impl Slot ===

impl Slot {
    fn update(&mut self, change: impl FnOnce(&mut TagRecord)) {
        change(Arc::make_mut(self.record.get_or_insert_default()));
        self.unwritten = true;
    }
}

impl Kept for Slot {
    type Key = (Repository, Tag);

    fn files(layout: &Layout, (repository, tag): &Self::Key) -> Vec<PathBuf> {
        vec![layout.tag(repository, tag)]
    }

    fn load(layout: &Layout, (repository, tag): &Self::Key, faults: &Faults) -> Self {
        let path = layout.tag(repository, tag);
        let record = match found(std::fs::read(&path)) {
            Ok(None) => None,
            Ok(Some(bytes)) => match serde_json::from_slice::<TagRecord>(&bytes) {
                Ok(record) => Some(Arc::new(record.restored(unix_now()))),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "damaged tag record set aside");
                    let aside = std::fs::rename(&path, path.with_extension("json.bad"));
                    let what = format!("set aside {}", path.display());
                    let _ = faults.noted(aside.map_err(StoreError::io(what)));
                    None
                }
            },
            Err(source) => {
                faults.note(&StoreError::Io {
                    what: format!("read {}", path.display()),
                    source,
                });
                None
            }
        };
        Slot {
            record,
            unwritten: false,
        }
    }

    fn take_changes(&mut self, layout: &Layout, (repository, tag): &Self::Key) -> Vec<Change> {
        if !std::mem::take(&mut self.unwritten) {
            return Vec::new();
        }
        let path = layout.tag(repository, tag);
        let change = match self.record.as_deref().map(serde_json::to_vec) {
            None => Some(Change::Remove(path)),
            Some(Ok(json)) => Some(Change::Replace(path, json)),
            // Plain data: it always has a JSON form.
            Some(Err(_)) => None,
        };
        change.into_iter().collect()
    }

    fn weight(&self) -> usize {
        self.record
            .as_deref()
            .map_or(0, |record| record.variants.values().map(Vec::len).sum())
    }
}

/// A media type as its text.
mod media_type {
    use serde::Deserialize as _;
    use serde::de::Error as _;

    use crate::oci::MediaType;

    pub(super) fn serialize<S: serde::Serializer>(
        media_type: &MediaType,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(media_type.as_str())
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> Result<MediaType, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        MediaType::parse(&text).ok_or_else(|| D::Error::custom("not a media type"))
    }
}

#[cfg(test)]
mod tests;
