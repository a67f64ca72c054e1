//! An image made whole: every manifest and blob of it is fetched and verified, through the same
//! gate as any pull.
//!
//! First a *survey*: the manifests of the chosen platforms and of what refers to them (as their
//! subject, or by the tags that cosign gives signatures), which says what there is and how large it
//! is. Then the blobs, a few at a time. Whatever was fetched stays
//! in the cache when this is given up half-way, so the next try goes on from there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::listing::fallback_tag;
use super::{Cache, CacheError, Client, Wanted};
use crate::oci::{Descriptor, Digest, Image, Manifest, Platform, Reference, Repository};
use crate::store::Hold;
use crate::store::catalog::Name;
use crate::store::pins::PinnedBlob;
use crate::upstream::UpstreamErrorKind;

/// Manifests asked for at once.
const MANIFESTS_AT_ONCE: usize = 8;
/// Blobs fetched at once; each has a few connections of its own.
const BLOBS_AT_ONCE: usize = 4;
/// Indexes in indexes: real ones have one level.
const DEEPEST: usize = 8;
/// How deep what cosign signs lies: the index, and its images.
const SIGNED: usize = 1;
/// More than any image has with all its platforms and signatures.
const MOST_BLOBS: usize = 20_000;
/// Tries of one blob whose upstream fails.
const TRIES: u32 = 3;
/// How long to wait before the second try; the third waits twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// What cosign adds to a digest's [`fallback_tag`] for signatures, attestations and bills of material.
pub const COMPANIONS: [&str; 3] = [".sig", ".att", ".sbom"];
/// How often to look whether a fetched blob is on disk; answers do not wait for that, we do.
const LOOK: Duration = Duration::from_millis(20);

/// Everything that an image is made of. What is in it cannot be evicted while this lives.
#[derive(Debug)]
pub struct Closure {
    pub name: Name,
    /// Tags under which its signatures and attestations are found.
    pub companions: Vec<Name>,
    /// Each manifest before what it refers to.
    pub parts: Vec<Part>,
    holds: HashMap<Digest, Hold>,
}

/// One manifest or blob of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub digest: Digest,
    /// In bytes; of a blob that is not here yet, as claimed.
    pub size: u64,
    is_manifest: bool,
    /// Its registry need not have it: layers of that kind come from elsewhere.
    is_foreign: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Blobs that are whole, and how many there are.
    pub blobs: (u64, u64),
    /// Bytes that are here, and how many there are to be.
    pub bytes: (u64, u64),
}

#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    #[error("{what}: {error}")]
    Cache { what: String, error: CacheError },
    #[error("there is nothing for {wanted} in it, only for {has}")]
    NoSuchPlatform { wanted: Platform, has: String },
    #[error("it has more than {MOST_BLOBS} parts or nests deeper than {DEEPEST}")]
    TooLarge,
    #[error(
        "{0} was fetched but could not be kept: the disk is full or fails, its log has the cause"
    )]
    NotKept(Digest),
}

/// A survey under way.
struct Survey<'a> {
    cache: &'a Arc<Cache>,
    repository: &'a Repository,
    platforms: &'a [Platform],
    closure: Closure,
}

// === impl Cache ===

impl Cache {
    /// Finds out what an image is made of, and fetches its manifests. `platforms` choose from an
    /// index; none of them means all. `vouched`: an operator wants what the image is now, however
    /// young. `why` says for what the parts are held: see [`crate::store::Disk::hold`].
    ///
    /// Cancel-safe: what was fetched stays in the cache.
    pub async fn survey(
        self: &Arc<Self>,
        image: &Image,
        platforms: &[Platform],
        vouched: bool,
        why: &'static str,
    ) -> Result<Closure, ClosureError> {
        let (repository, reference) = (&image.repository, image.reference());
        if vouched {
            let vouched = self
                .vouch_for(&Client::operator(), repository, &reference)
                .await;
            vouched.map_err(|error| at(image, error))?;
        }
        let root = self
            .own_manifest(&Client::operator(), repository, &reference)
            .await;
        let root = root.map_err(|error| at(image, error))?.manifest;
        let mut survey = Survey {
            cache: self,
            repository,
            platforms,
            closure: Closure {
                name: Name {
                    repository: repository.clone(),
                    reference,
                    digest: *root.digest(),
                },
                companions: Vec::new(),
                parts: Vec::new(),
                holds: HashMap::new(),
            },
        };
        let mut level = vec![root];
        for depth in 0..DEEPEST {
            if level.is_empty() {
                return Ok(survey.closure);
            }
            if depth <= SIGNED {
                let found = survey.companions(&level).await?;
                level.extend(found);
            }
            level = survey.descend(level, why).await?;
        }
        Err(ClosureError::TooLarge)
    }

    /// Fetches the blobs of an image that are not here. Cancel-safe like [`Cache::survey`].
    pub async fn fetch(
        self: &Arc<Self>,
        closure: &mut Closure,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ClosureError> {
        let repository = closure.name.repository.clone();
        let (done, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        let count = closure.parts.len() as u64;
        let total = closure.size();
        let tell = || {
            report(Progress {
                blobs: (done.load(Ordering::Relaxed), count),
                bytes: (bytes.load(Ordering::Relaxed).min(total), total),
            });
        };
        tell();
        let fetched = stream::iter(closure.parts.iter().cloned()).map(|part| {
            let (repository, bytes, done, tell) = (&repository, &bytes, &done, &tell);
            async move {
                let part = if part.is_manifest {
                    bytes.fetch_add(part.size, Ordering::Relaxed);
                    Some(part)
                } else {
                    self.fetch_part(repository, part, bytes, tell).await?
                };
                done.fetch_add(1, Ordering::Relaxed);
                tell();
                Ok::<_, ClosureError>(part)
            }
        });
        let parts: Vec<Option<Part>> = fetched.buffered(BLOBS_AT_ONCE).try_collect().await?;
        closure.parts = parts.into_iter().flatten().collect();
        Ok(())
    }

    /// None: a layer that this registry need not have, and has not.
    async fn fetch_part(
        self: &Arc<Self>,
        repository: &Repository,
        part: Part,
        bytes: &AtomicU64,
        tell: &(dyn Fn() + Send + Sync),
    ) -> Result<Option<Part>, ClosureError> {
        let digest = part.digest;
        for attempt in 1.. {
            let mut pulled = 0;
            let count = |length: u64| {
                pulled += length;
                bytes.fetch_add(length, Ordering::Relaxed);
                tell();
            };
            match self.pull(repository, &digest, count).await {
                Ok(()) => break,
                Err(CacheError::BlobUnknown) if part.is_foreign => return Ok(None),
                Err(error) if attempt < TRIES && error.leaves_stale() => {
                    tracing::info!(%digest, %error, attempt, "a blob is tried again");
                    bytes.fetch_sub(pulled, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE * attempt).await;
                }
                Err(error) => return Err(at(digest, error)),
            }
        }
        loop {
            let fetching = self.fills.is_running(&digest);
            let file = self.store.disk.open_blob(&digest).await;
            match file.map_err(|error| at(digest, error.into()))? {
                Some(file) => {
                    let size = file.len();
                    return Ok(Some(Part { size, ..part }));
                }
                None if fetching => tokio::time::sleep(LOOK).await,
                None => return Err(ClosureError::NotKept(digest)),
            }
        }
    }

    /// Pulls a blob like a client that throws the bytes away.
    async fn pull(
        self: &Arc<Self>,
        repository: &Repository,
        digest: &Digest,
        mut count: impl FnMut(u64) + Send,
    ) -> Result<(), CacheError> {
        let answer = self
            .blob(&Client::operator(), repository, digest, Wanted::Whole)
            .await?;
        let mut pieces = answer.read_all();
        while let Some(piece) = pieces.next().await {
            count(piece?.len());
        }
        Ok(())
    }
}

// === impl Survey ===

impl Survey<'_> {
    /// Takes in the manifests of one level and fetches those of the next.
    async fn descend(
        &mut self,
        level: Vec<Arc<Manifest>>,
        why: &'static str,
    ) -> Result<Vec<Arc<Manifest>>, ClosureError> {
        let mut next = Vec::new();
        for manifest in level {
            let digest = *manifest.digest();
            let size = manifest.bytes().len() as u64;
            let is_new = self.add(digest, size, why, (true, false))?;
            if !is_new {
                continue;
            }
            let disk = &self.cache.store.disk;
            // Answers do not wait for the disk; a pin has to.
            let kept = disk.put(&digest, manifest.bytes().clone()).await;
            kept.map_err(|error| at(digest, error.into()))?;
            let children = manifest.children().unwrap_or_default();
            let manifests = children.iter().filter(|child| child.is_manifest).cloned();
            next.extend(self.choose(manifests.collect())?);
            for blob in children.iter().filter(|child| !child.is_manifest) {
                self.add(blob.digest, blob.size, why, (false, blob.is_foreign()))?;
            }
            next.extend(self.referrers(&digest).await);
        }
        let (cache, repository) = (self.cache, self.repository);
        let fetched = stream::iter(next).map(async |digest| {
            let reference = Reference::Digest(digest);
            let answer = cache
                .own_manifest(&Client::operator(), repository, &reference)
                .await;
            answer
                .map(|answer| answer.manifest)
                .map_err(|error| at(digest, error))
        });
        fetched.buffered(MANIFESTS_AT_ONCE).try_collect().await
    }

    /// Says whether it was not there yet.
    fn add(
        &mut self,
        digest: Digest,
        size: u64,
        why: &'static str,
        (is_manifest, is_foreign): (bool, bool),
    ) -> Result<bool, ClosureError> {
        let closure = &mut self.closure;
        if closure.holds.contains_key(&digest) {
            return Ok(false);
        }
        if closure.parts.len() >= MOST_BLOBS {
            return Err(ClosureError::TooLarge);
        }
        let hold = self.cache.store.disk.hold(&digest, why);
        closure.holds.insert(digest, hold);
        closure.parts.push(Part {
            digest,
            size,
            is_manifest,
            is_foreign,
        });
        Ok(true)
    }

    /// The entries of an index for the platforms that are wanted. What names no platform is for
    /// all of them.
    fn choose(&self, entries: Vec<Descriptor>) -> Result<Vec<Digest>, ClosureError> {
        let is_for = |entry: &Descriptor, wanted: &Platform| {
            entry
                .platform
                .as_ref()
                .is_none_or(|platform| wanted.takes(platform))
        };
        if !entries.is_empty() {
            let missing = |wanted: &&Platform| !entries.iter().any(|entry| is_for(entry, wanted));
            if let Some(wanted) = self.platforms.iter().find(missing) {
                let mut has: Vec<String> = entries
                    .iter()
                    .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
                    .collect();
                has.sort();
                has.dedup();
                let (wanted, has) = (wanted.clone(), has.join(", "));
                return Err(ClosureError::NoSuchPlatform { wanted, has });
            }
        }
        let chosen = entries.into_iter().filter(|entry| {
            self.platforms.is_empty() || self.platforms.iter().any(|wanted| is_for(entry, wanted))
        });
        Ok(chosen.map(|entry| entry.digest).collect())
    }

    /// What is kept about these manifests under tags of its own. That there is nothing is the
    /// rule, and so may be that policy allows no such tag; an upstream that fails is an error, or a
    /// signature would be left behind unseen.
    async fn companions(
        &mut self,
        level: &[Arc<Manifest>],
    ) -> Result<Vec<Arc<Manifest>>, ClosureError> {
        let mut tags = Vec::new();
        for manifest in level {
            let digest = manifest.digest();
            tags.extend(COMPANIONS.map(|suffix| fallback_tag(digest, suffix)));
        }
        let (cache, repository) = (self.cache, self.repository);
        let found = stream::iter(tags.into_iter().flatten()).map(async |tag| {
            let reference = Reference::Tag(tag);
            let answer = cache
                .own_manifest(&Client::operator(), repository, &reference)
                .await;
            match answer {
                Ok(answer) => Ok(Some((reference, answer.manifest))),
                Err(error) if error.is_outage() => Err(at(&reference, error)),
                Err(_) => Ok(None),
            }
        });
        let found: Vec<_> = found.buffered(MANIFESTS_AT_ONCE).try_collect().await?;
        let mut manifests = Vec::new();
        for (reference, manifest) in found.into_iter().flatten() {
            self.closure.companions.push(Name {
                repository: repository.clone(),
                reference,
                digest: *manifest.digest(),
            });
            manifests.push(manifest);
        }
        Ok(manifests)
    }

    /// Signatures and the like. An upstream that cannot say which there are is no reason to fail.
    async fn referrers(&self, digest: &Digest) -> Vec<Digest> {
        let referrers = self
            .cache
            .referrers(&Client::operator(), self.repository, digest, None)
            .await;
        match referrers {
            Ok(answer) => answer.digests(),
            Err(error) => {
                tracing::debug!(%digest, %error, "no list of referrers");
                Vec::new()
            }
        }
    }
}

// === impl Progress ===

impl Progress {
    /// Two images together.
    pub(super) fn with(self, other: Progress) -> Progress {
        let sum = |a: (u64, u64), b: (u64, u64)| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        Progress {
            blobs: sum(self.blobs, other.blobs),
            bytes: sum(self.bytes, other.bytes),
        }
    }
}

// === impl ClosureError ===

impl ClosureError {
    /// Whether trying again a moment later makes sense. An upstream's limit takes longer than that.
    pub(super) fn may_pass(&self) -> bool {
        let ClosureError::Cache { error, .. } = self else {
            return false;
        };
        match error {
            CacheError::Upstream(error)
                if matches!(error.kind, UpstreamErrorKind::RateLimited { .. }) =>
            {
                false
            }
            CacheError::WrongBytes(_) | CacheError::Busy { .. } => true,
            error => error.is_outage(),
        }
    }
}

// === impl Closure ===

impl Closure {
    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.parts
            .iter()
            .fold(0, |sum, part| sum.saturating_add(part.size))
    }

    /// As a pin has it.
    #[must_use]
    pub fn blobs(&self) -> Vec<PinnedBlob> {
        let blobs = self.parts.iter().map(|part| PinnedBlob {
            digest: part.digest,
            size: part.size,
        });
        blobs.collect()
    }
}

fn at(what: impl std::fmt::Display, error: CacheError) -> ClosureError {
    let what = what.to_string();
    ClosureError::Cache { what, error }
}
