//! What operators ask of the store: pin, unpin, purge, why.
//!
//! A pin is acknowledged when it would survive a power loss: first the bytes of its closure, then
//! the links and the tag that lead to them, then its own file.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::Instant;

use super::catalog::{Catalog, Name};
use super::disk::Disk;
use super::files::{blocking, found, lock, sync_dir};
use super::gone::{Gone, Reason};
use super::order::Order;
use super::pins::{ImagePin, PatternPin};
use super::{Hold, SharedError, Store, StoreError, object};
use crate::oci::{Digest, Reference, Repository};

/// Why the parts of an image that is being pinned are held.
pub const PINNING: &str = "a pin under way";
/// Small objects that are taken out of the shared store at once.
const FORGOTTEN_AT_ONCE: usize = 8;

/// Why something was not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "pinned images would take {pinned} bytes, and store.max_size is {limit}: unpin something or raise the limit"
    )]
    TooLarge { pinned: u64, limit: u64 },
    /// Also when it was found not to hash just now.
    #[error("{0} is not here, or not whole")]
    Missing(Digest),
    #[error("the link of {0} could not be written")]
    Unlinked(Digest),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All that is known about a digest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Why {
    pub digest: Digest,
    pub verdict: Verdict,
    /// In bytes, while it is here.
    pub size: Option<u64>,
    /// Last use of the blob itself, in unix seconds.
    pub used: Option<i64>,
    /// Images that are pinned and have it.
    pub pinned_by: Vec<String>,
    /// A pinned pattern that matches a link or a tag of it, or of a manifest that leads to it.
    pub pattern: Option<Arc<str>>,
    /// Who holds it at this moment.
    pub held_by: Vec<&'static str>,
    /// Somebody reads it, or did in the last minute.
    pub in_use: bool,
    /// Images that lead to it, the most recently used first.
    pub images: Vec<UsedBy>,
    /// Its place among those that may go, from 1, and how many they are.
    pub in_line: Option<(usize, usize)>,
    /// Every time that it went, newest first, as far as is remembered.
    pub gone: Vec<Gone>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Here, and not to be evicted now.
    Kept,
    /// Here until room is needed.
    Waiting,
    Gone,
    /// Not here, and not among the latest that went.
    Unknown,
}

/// An image that leads to a blob.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct UsedBy {
    pub image: String,
    /// Last use of its manifest, in unix seconds.
    pub used: i64,
}

// === impl Store: pins ===

impl Store {
    /// Whether the pinned images would still fit if `pin` were one of them.
    pub fn check_size(&self, pin: &ImagePin) -> Result<(), PinError> {
        self.check_sizes(std::slice::from_ref(pin))
    }

    /// The same for many.
    pub(super) fn check_sizes(&self, pins: &[ImagePin]) -> Result<(), PinError> {
        let limit = self.disk.max_size;
        let pinned = self.disk.pins.size_with(pins);
        if pinned > limit {
            return Err(PinError::TooLarge { pinned, limit });
        }
        Ok(())
    }

    /// Pins an image whose closure is here. When this returns, the pin would survive a power loss.
    /// `names` are the image and the tags of its signatures. Once the disk is at work the pin comes,
    /// even if the caller goes away.
    ///
    /// # Errors
    /// When it is not whole or would not fit; nothing is pinned then.
    pub async fn pin_image(&self, names: Vec<Name>, pin: ImagePin) -> Result<(), PinError> {
        self.check_size(&pin)?;
        let digests: Vec<Digest> = pin.closure.iter().map(|blob| blob.digest).collect();
        // Ours, because the caller may go away while the disk is at work.
        let hold = |digest| self.disk.hold(digest, PINNING);
        let holds: Vec<Hold> = digests.iter().map(hold).collect();
        for digest in &digests {
            if self.disk.open_blob(digest).await?.is_none() {
                return Err(PinError::Missing(*digest));
            }
        }
        self.links.flush().await;
        self.tags.flush().await;
        let disk = Arc::clone(&self.disk);
        let pinned = blocking(move || {
            let _holds = holds;
            if let Some(name) = names.first()
                && let Some(missing) = disk.first_unlinked(&name.repository, &digests)
            {
                return Ok(Err(PinError::Unlinked(missing)));
            }
            disk.faults.noted(disk.make_durable(&digests))?;
            for name in &names {
                disk.faults.noted(disk.make_name_durable(name))?;
            }
            disk.pins.add_image(pin)?;
            Ok(Ok(()))
        });
        pinned.await?
    }

    /// Pins whatever is cached and matches, now and later, as long as it fits. When this returns,
    /// the pin would survive a power loss; what it matches is the cache that it was.
    pub async fn pin_pattern(&self, pin: PatternPin) -> Result<(), StoreError> {
        self.links.flush().await;
        self.tags.flush().await;
        let disk = Arc::clone(&self.disk);
        blocking(move || {
            disk.pins.add_pattern(pin)?;
            disk.scan_patterns()
        })
        .await
    }

    /// Unpins an image or a pattern by the name that it was pinned by; false when it was not.
    pub async fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        self.links.flush().await;
        self.tags.flush().await;
        let (disk, name) = (Arc::clone(&self.disk), name.to_owned());
        blocking(move || {
            let known = disk.pins.remove(&name)?;
            disk.scan_patterns()?;
            Ok(known)
        })
        .await
    }
}

// === impl Disk: durability ===

impl Disk {
    pub(super) fn first_unlinked(
        &self,
        repository: &Repository,
        digests: &[Digest],
    ) -> Option<Digest> {
        let links = super::Links::on_disk(&self.layout, repository, &self.faults);
        digests
            .iter()
            .find(|digest| !links.contains_key(digest))
            .copied()
    }

    /// Bytes first, then names. Blocks. A blob whose fsync fails is discarded: see `upkeep.rs`.
    pub(super) fn make_durable(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let mut directories = BTreeSet::new();
        for digest in digests {
            let path = self.layout.blob(digest);
            let what = || format!("make durable {digest}");
            let file = File::open(&path).map_err(StoreError::io(what()))?;
            if let Err(source) = file.sync_all() {
                let inode = super::files::Stamp::of(&file).map(|stamp| stamp.inode);
                self.discard(digest, inode.unwrap_or_default());
                let what = what();
                return Err(StoreError::Io { what, source });
            }
            directories.extend(path.ancestors().skip(1).take(2).map(Path::to_path_buf));
        }
        for directory in directories {
            let what = format!("make durable {}", directory.display());
            sync_dir(&directory).map_err(StoreError::io(what))?;
        }
        Ok(())
    }

    /// The files that lead from an image's name to its blobs, and all directories above them.
    pub(super) fn make_name_durable(&self, name: &Name) -> Result<(), StoreError> {
        let Name {
            repository,
            reference,
            ..
        } = name;
        let links = self.layout.links(repository);
        let mut files = vec![links.clone(), self.layout.led(repository)];
        let mut directories: BTreeSet<_> =
            links.ancestors().skip(1).map(Path::to_path_buf).collect();
        directories.retain(|directory| directory.starts_with(self.layout.v1()));
        if let Reference::Tag(tag) = reference {
            files.push(self.layout.tag(repository, tag));
            directories.insert(self.layout.tags(repository));
        }
        let sync = || {
            for path in files {
                // A manifest that leads nowhere has no `_led`.
                if let Some(file) = found(File::open(path))? {
                    file.sync_all()?;
                }
            }
            directories
                .iter()
                .try_for_each(|directory| sync_dir(directory))
        };
        sync().map_err(StoreError::io(format!("make durable {}", links.display())))
    }
}

// === impl Store: purge ===

impl Store {
    /// Forgets a name: a tag's record, or the link of a digest.
    pub async fn forget(&self, name: &Name) {
        match &name.reference {
            Reference::Tag(tag) => self.tags.remove(&name.repository, tag).await,
            Reference::Digest(digest) => self.links.remove_link(&name.repository, digest).await,
        }
    }

    /// Takes a name out of the shared store, where every replica would believe it again. Blobs there go
    /// when nothing leads to them any more and they are old enough: see [`super::prune`].
    ///
    /// # Errors
    /// Some of them are still there.
    pub async fn forget_shared(
        &self,
        names: impl IntoIterator<Item = (Repository, Reference)>,
    ) -> Result<(), SharedError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let deletes = stream::iter(names).map(|(repository, reference)| async move {
            let name = match &reference {
                Reference::Tag(tag) => object::Name::Tag(&repository, tag),
                Reference::Digest(digest) => object::Name::Link(&repository, digest),
            };
            shared.delete(name).await
        });
        deletes
            .buffer_unordered(FORGOTTEN_AT_ONCE)
            .try_collect()
            .await
    }

    /// Takes blobs away, with every repository's link to them; those that somebody holds stay.
    /// Gives how many and how many bytes went. Who reads one reads on.
    pub async fn purge(
        &self,
        catalog: &Catalog,
        digests: Vec<Digest>,
    ) -> Result<(usize, u64), StoreError> {
        for digest in &digests {
            for repository in catalog.linked(digest) {
                self.links.remove_link(repository, digest).await;
            }
        }
        self.links.flush().await;
        self.tags.flush().await;
        let disk = Arc::clone(&self.disk);
        blocking(move || Ok(disk.purge(&digests))).await
    }
}

impl Disk {
    fn purge(&self, digests: &[Digest]) -> (usize, u64) {
        let _moves = lock(&self.moves);
        let mut gone = Vec::new();
        for digest in digests {
            let entry = self.with_index(|index| match index.holds(digest) {
                [] => index.remove(digest),
                _ => None,
            });
            if let Some(entry) = entry
                && self.remove_file(digest)
            {
                gone.push(entry.gone(*digest, Reason::Purged));
            }
        }
        let freed = (gone.len(), gone.iter().map(|gone| gone.size).sum());
        self.note_gone(gone);
        freed
    }
}

// === impl Store: why ===

impl Store {
    /// Why a blob is here or not.
    pub async fn why(&self, digest: &Digest) -> Result<Why, StoreError> {
        let catalog = self.catalog().await?;
        let (disk, digest) = (Arc::clone(&self.disk), *digest);
        blocking(move || Ok(disk.why(&digest, catalog))).await
    }
}

impl Disk {
    fn why(&self, digest: &Digest, catalog: Catalog) -> Why {
        let blob = catalog.blob(digest);
        let mut above: Vec<Digest> = catalog.above(digest).into_iter().collect();
        above.sort();
        let leads: HashSet<&Digest> = above.iter().chain([digest]).collect();
        let names = catalog
            .names()
            .into_iter()
            .filter(|name| leads.contains(&name.digest));
        let mut images: Vec<UsedBy> = names
            .map(|name| UsedBy {
                image: name.to_string(),
                used: catalog
                    .blob(&name.digest)
                    .map_or(0, |manifest| manifest.used),
            })
            .collect();
        images.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.image.cmp(&b.image)));
        let pinned_by = self.pins.images_with(digest);
        let pattern = leads
            .iter()
            .find_map(|digest| self.pins.pattern_with(digest));
        let (held_by, in_use) = {
            let index = lock(&self.index);
            let in_use = index
                .get(digest)
                .is_some_and(|entry| entry.in_use(Instant::now()));
            (index.holds(digest).to_vec(), in_use)
        };
        let gone = self.gone.of(digest);
        let in_line = self.place_in_line(digest, &Order::of(catalog.take_known()));
        let verdict = match (&blob, in_line) {
            (Some(_), Some(_)) => Verdict::Waiting,
            (Some(_), None) => Verdict::Kept,
            (None, _) if gone.is_empty() => Verdict::Unknown,
            (None, _) => Verdict::Gone,
        };
        Why {
            digest: *digest,
            verdict,
            size: blob.as_ref().map(|blob| blob.size),
            used: blob.map(|blob| blob.used),
            pinned_by: pinned_by.iter().map(|pin| pin.image.clone()).collect(),
            pattern,
            held_by,
            in_use,
            images,
            in_line,
            gone,
        }
    }

    /// Counted as eviction would go about it if it had to start now.
    fn place_in_line(&self, digest: &Digest, order: &Order) -> Option<(usize, usize)> {
        let mut kept: HashSet<Digest> = HashSet::new();
        let (mut place, mut length) = (None, 0);
        for known in order
            .first_to_go
            .iter()
            .filter_map(|digest| order.blobs.get(digest))
        {
            let pinned = self.pins.strength(&known.digest).is_some();
            let stays = known.busy || pinned || kept.contains(&known.digest);
            if stays {
                kept.extend(known.children.iter().copied());
            } else {
                length += 1;
                if known.digest == *digest {
                    place = Some(length);
                }
            }
        }
        place.map(|place| (place, length))
    }
}
