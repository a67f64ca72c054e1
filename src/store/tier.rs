//! The store as one thing: the local disk in front of what replicas share.
//!
//! | | looked for | kept |
//! |---|---|---|
//! | links, what led where, tag records, manifests | here, then there; what is found there is kept here | here, then there |
//! | blobs | here; a fill looks there | here, then there |
//!
//! Looking there never takes longer than three seconds and never fails: a store that is down is a
//! miss. What is kept goes there behind the answers, by way of [`Uploads`], with one exception: what
//! a manifest brings with it is waited for, a moment, because a client that asked one replica for a
//! tag asks the next one for its digest a millisecond later.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use ipnet::IpNet;
use moka::sync::Cache as Memory;
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;

use super::files::{LOG_INTERVAL, lock, unix_now};
use super::object::{Name, Shared, SharedError};
use super::records::{self, LedRecord, LinkRecord};
use super::uploads::{Item, Uploads};
use super::{Link, Store, TagEntry, TagRecord, Variant};
use crate::oci::{Digest, Manifest, MediaType, Reference, Repository, Tag};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{
    LookupLabels, LookupResult, PublishLabels, PublishResult, SharedKind,
};

/// How long an answer waits until other replicas can see what it is made of.
const SEEN_SOON: Duration = Duration::from_millis(500);
/// The same where they would refuse what they do not see.
const SEEN_FIRST: Duration = Duration::from_secs(3);
/// A search for what led to a digest, all look-ups together.
const SEARCH: Duration = Duration::from_secs(3);
const SEARCH_LOOKUPS: usize = 64;
const SEARCH_AT_ONCE: usize = 8;
/// How long a signed URL works: to be followed at once.
const SIGNED_FOR: Duration = Duration::from_secs(5 * 60);
/// How long a blob that was seen in the shared store is taken to be there, and how many are
/// remembered.
const SEEN_FOR: Duration = Duration::from_secs(2 * 60);
const MOST_SEEN: u64 = 16_384;

/// When other replicas are to see what an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Half a second later: who does not see it by then asks the upstream once more.
    Soon,
    /// Before the answer, if that takes no longer than three seconds: who does not see what an
    /// allowed tag led to refuses it.
    First,
}

/// What lies behind the local disk.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) shared: Arc<Shared>,
    pub(super) uploads: Arc<Uploads>,
    /// Clients that get a signed URL instead of a stream.
    redirect: Vec<IpNet>,
    /// Blobs that are there, and their sizes in bytes.
    seen: Memory<Digest, u64>,
    metrics: Arc<Metrics>,
    logged: Mutex<Option<Instant>>,
}

// === impl Tier ===

impl Tier {
    pub(super) fn new(
        shared: Arc<Shared>,
        uploads: Arc<Uploads>,
        redirect: Vec<IpNet>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Tier {
            shared,
            uploads,
            redirect,
            seen: Memory::builder()
                .max_capacity(MOST_SEEN)
                .time_to_live(SEEN_FOR)
                .build(),
            metrics,
            logged: Mutex::default(),
        }
    }

    /// The blob is in the shared store.
    pub(super) fn saw(&self, digest: &Digest, size: u64) {
        self.seen.insert(*digest, size);
    }

    /// Its size in bytes, if it was seen there a moment ago.
    pub(super) fn has_seen(&self, digest: &Digest) -> Option<u64> {
        self.seen.get(digest)
    }

    /// Says that the shared store failed, once a minute at most.
    pub(super) fn note(&self, error: &SharedError) {
        // What it says has been said by the failures before.
        if matches!(error, SharedError::Down) {
            return;
        }
        let mut logged = lock(&self.logged);
        if logged.is_none_or(|then| then.elapsed() >= LOG_INTERVAL) {
            *logged = Some(Instant::now());
            tracing::warn!(%error, "the shared store failed; pulls go on without it");
        }
    }

    /// Counts a look-up; a failure is a miss.
    fn found<T>(&self, kind: SharedKind, found: Result<Option<T>, SharedError>) -> Option<T> {
        let result = match &found {
            Ok(Some(_)) => LookupResult::Hit,
            Ok(None) => LookupResult::Miss,
            Err(_) => LookupResult::Failed,
        };
        self.count(kind, result);
        found.inspect_err(|error| self.note(error)).ok().flatten()
    }

    fn count(&self, kind: SharedKind, result: LookupResult) {
        let labels = LookupLabels { kind, result };
        self.metrics.shared_lookups.get_or_create(&labels).inc();
    }

    /// Brings what belongs to a manifest, and its bytes, to the shared store, and waits a moment
    /// for that. Says whether the bytes are there.
    async fn announce(&self, items: &[Item], manifest: &Manifest, seen: Seen) -> bool {
        if !self.shared.is_up() {
            for item in items {
                self.uploads.note(item, None);
            }
            return false;
        }
        // The channel closes when the last item is published.
        let (unpublished, mut published) = mpsc::channel::<()>(1);
        for item in items {
            self.uploads.note(item, Some(Box::new(unpublished.clone())));
        }
        drop(unpublished);
        let mut kept = false;
        let keep = async {
            let bytes = manifest.bytes().clone();
            let put = self.shared.put_bytes(manifest.digest(), bytes).await;
            kept = put.inspect_err(|error| self.note(error)).is_ok();
        };
        let all = futures_util::future::join(published.recv(), keep);
        // What takes longer is finished behind the answer.
        let within = match seen {
            Seen::Soon => SEEN_SOON,
            Seen::First => SEEN_FIRST,
        };
        let _ = tokio::time::timeout(within, all).await;
        if kept {
            self.saw(manifest.digest(), manifest.bytes().len() as u64);
            let (kind, result) = (SharedKind::Blob, PublishResult::Done);
            let labels = PublishLabels { kind, result };
            self.metrics.shared_published.get_or_create(&labels).inc();
        }
        kept
    }
}

// === impl Store: looking ===

impl Store {
    /// The link of a digest in a repository, if there is one.
    pub async fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        let link = self.links.link(repository, digest).await;
        let Some(tier) = self.tier.as_ref().filter(|_| link.is_none()) else {
            return link;
        };
        let found = records::read::<LinkRecord>(&tier.shared, Name::Link(repository, digest)).await;
        let link = tier.found(SharedKind::Link, found).map(Link::from)?;
        self.links.adopt_link(repository, digest, &link).await;
        Some(link)
    }

    /// Whether a tag, manifest or index that is `allowed` leads to `digest`, directly or through
    /// others.
    pub async fn is_led(
        &self,
        repository: &Repository,
        digest: &Digest,
        mut allowed: impl FnMut(&Reference) -> bool,
    ) -> bool {
        let leaders = self.links.led_by(repository, digest).await;
        if leaders.iter().any(&mut allowed) {
            return true;
        }
        let Some(tier) = &self.tier else {
            return false;
        };
        let search = self.search(tier, repository, digest, allowed);
        let found = tokio::time::timeout(SEARCH, search).await;
        found.unwrap_or(false)
    }

    /// Climbs over what all replicas know, breadth first.
    async fn search(
        &self,
        tier: &Tier,
        repository: &Repository,
        digest: &Digest,
        mut allowed: impl FnMut(&Reference) -> bool,
    ) -> bool {
        let mut seen = HashSet::from([*digest]);
        let mut front = VecDeque::from([*digest]);
        let mut left = SEARCH_LOOKUPS;
        while !front.is_empty() && left > 0 && tier.shared.is_up() {
            let batch: Vec<Digest> = front.drain(..front.len().min(left)).collect();
            left -= batch.len();
            let mut parents = stream::iter(batch)
                .map(async |child| {
                    let name = Name::Led(repository, &child);
                    let found = records::read::<LedRecord>(&tier.shared, name).await;
                    let there = tier.found(SharedKind::Led, found).unwrap_or_default();
                    self.links
                        .adopt_led(repository, &child, &there.parents)
                        .await;
                    self.links.parents(repository, &child).await
                })
                .buffer_unordered(SEARCH_AT_ONCE);
            while let Some(parents) = parents.next().await {
                if parents.iter().any(&mut allowed) {
                    return true;
                }
                let digests = parents.iter().filter_map(Reference::digest);
                front.extend(digests.filter(|parent| seen.insert(**parent)));
            }
        }
        false
    }

    /// A tag's record with what other replicas know of it; None when nobody knows anything, or
    /// there are no replicas.
    pub async fn fleets_tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        let tier = self.tier.as_ref()?;
        let name = Name::Tag(repository, tag);
        let found = records::read::<TagRecord>(&tier.shared, name).await;
        match tier.found(SharedKind::Tag, found) {
            Some(theirs) => Some(self.tags.adopt(repository, tag, &theirs).await),
            None => self.tags.get(repository, tag).await,
        }
    }

    /// The bytes of a manifest from the shared store, hashed; None when they are not there or more
    /// than `limit`.
    pub async fn fleets_manifest(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        let tier = self.tier.as_ref()?;
        let found = tier.shared.read(digest).await;
        let small = |bytes: &Bytes| bytes.len() as u64 <= limit;
        let bytes = tier.found(SharedKind::Blob, found).filter(small)?;
        if Digest::of(digest.algorithm(), &bytes) == *digest {
            tier.saw(digest, bytes.len() as u64);
            return Some(bytes);
        }
        tier.seen.invalidate(digest);
        tier.count(SharedKind::Blob, LookupResult::Wrong);
        tracing::warn!(%digest, "a wrong object in the shared store is set aside");
        if let Err(error) = tier.shared.quarantine(digest).await {
            tier.note(&error);
        }
        None
    }

    /// Whether there is anybody to share with.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.tier.is_some()
    }
}

// === impl Store: keeping ===

impl Store {
    /// The upstream has said yes just now. A media type that was known stays when none is given.
    pub async fn add_link(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: Option<&MediaType>,
    ) {
        let news = self.links.add_link(repository, digest, media_type).await;
        if let Some(tier) = self.tier.as_ref().filter(|_| news) {
            let item = Item::Link(repository.clone(), *digest);
            tier.uploads.note(&item, None);
        }
    }

    /// The upstream has said no: the digest is no longer readable there, here and for replicas that
    /// have no link of their own yet.
    pub async fn unlink(&self, repository: &Repository, digest: &Digest) {
        self.links.remove_link(repository, digest).await;
        let Some(tier) = &self.tier else { return };
        if let Err(error) = tier.shared.delete(Name::Link(repository, digest)).await {
            tier.note(&error);
        }
    }

    /// The upstream was asked a moment ago and still names `digest`.
    pub async fn confirm_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        variant: Variant,
        digest: &Digest,
    ) {
        let now = unix_now();
        self.tags
            .checked(repository, tag, variant, digest, now)
            .await;
        if let Some(tier) = &self.tier {
            let item = Item::Tag(repository.clone(), tag.clone());
            tier.uploads.note(&item, None);
        }
    }

    /// An operator wants what the tag points to: see [`TagEntry::vouched`].
    pub async fn vouch_for(&self, repository: &Repository, tag: &Tag, digest: &Digest) {
        let news = self.tags.vouch(repository, tag, digest).await;
        if let Some(tier) = self.tier.as_ref().filter(|_| news) {
            let item = Item::Tag(repository.clone(), tag.clone());
            tier.uploads.note(&item, None);
        }
    }

    /// The upstream gave this manifest for this repository, and for `tag` if there is one: links
    /// it, notes what leads to it and where it leads, and when the tag pointed to it.
    ///
    /// Returns when other replicas see all that, or when `seen` has been waited for long enough.
    /// False: its bytes are not in the shared store yet; they go there when they are put on disk, or
    /// are [published](Store::publish_blob) from there.
    pub async fn add_manifest(
        &self,
        repository: &Repository,
        tag: Option<(&Tag, Variant)>,
        manifest: &Manifest,
        seen: Seen,
    ) -> bool {
        let digest = *manifest.digest();
        let mut items = Vec::new();
        let media_type = manifest.media_type();
        if self
            .links
            .add_link(repository, &digest, Some(media_type))
            .await
        {
            items.push(Item::Link(repository.clone(), digest));
        }
        let mut led = Vec::new();
        if let Some((tag, variant)) = tag {
            let parent = Reference::Tag(tag.clone());
            led.extend(self.links.add_led(repository, &parent, &[digest]).await);
            let size = manifest.bytes().len() as u64;
            let entry = TagEntry::new(digest, media_type.clone(), size, unix_now());
            self.tags.record(repository, tag, variant, entry).await;
            items.push(Item::Tag(repository.clone(), tag.clone()));
        }
        // What it refers to leads to it: offline there is nobody else to ask for referrers.
        if let Some(subject) = manifest.subject() {
            let parent = Reference::Digest(subject);
            led.extend(self.links.add_led(repository, &parent, &[digest]).await);
        }
        // What does not parse as an image leads nowhere, but is served all the same.
        let parent = Reference::Digest(digest);
        let children = manifest.child_digests();
        led.extend(self.links.add_led(repository, &parent, children).await);
        let Some(tier) = &self.tier else {
            return true;
        };
        let led = led.into_iter();
        items.extend(led.map(|child| Item::Led(repository.clone(), child)));
        tier.announce(&items, manifest, seen).await
    }

    /// Brings a blob that is on disk to the shared store, some time.
    pub fn publish_blob(&self, digest: &Digest) {
        if let Some(tier) = &self.tier {
            tier.uploads
                .note(&Item::Blob(*digest), Some(self.hold(digest)));
        }
    }
}

// === impl Store: elsewhere ===

impl Store {
    /// Whether this client gets a signed URL where there is one.
    #[must_use]
    pub fn redirects(&self, client: IpAddr) -> bool {
        let networks = self.tier.as_ref().map(|tier| &tier.redirect);
        networks.is_some_and(|networks| networks.iter().any(|network| network.contains(&client)))
    }

    /// A URL by which a client gets the blob from the shared store itself, without us; it is a
    /// secret. None: the blob is not there, or it cannot be signed.
    pub async fn elsewhere(&self, digest: &Digest) -> Option<Url> {
        let tier = self.tier.as_ref()?;
        let there = if let Some(size) = tier.has_seen(digest) {
            size
        } else {
            let size = tier.found(SharedKind::Blob, tier.shared.stat(digest).await)?;
            tier.saw(digest, size);
            size
        };
        // Ours is verified: another size is another blob.
        if self.disk.stat(digest).is_some_and(|here| here != there) {
            return None;
        }
        let signed = tier.shared.sign(digest, SIGNED_FOR).await;
        signed.inspect_err(|error| tier.note(error)).ok().flatten()
    }

    /// The size in bytes of a blob that is in the shared store.
    pub async fn fleets_size(&self, digest: &Digest) -> Option<u64> {
        let tier = self.tier.as_ref()?;
        tier.found(SharedKind::Blob, tier.shared.stat(digest).await)
    }
}
