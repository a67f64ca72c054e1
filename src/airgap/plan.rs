//! What a bundle of some images would consist of.
//!
//! An image that is pinned is exported as it is pinned, whatever its tag points to by now, and
//! without asking anybody; any other is made whole first, through the same gate as a pull. Tags of
//! signatures that are in the cache go along with the manifests that they are about.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::AirgapError;
use super::walk::walk;
use crate::cache::closure::{COMPANIONS, Closure, Progress};
use crate::cache::{Cache, Client, fallback_tag};
use crate::oci::{Descriptor, Digest, Image, Manifest, Platform, Reference, Repository};
use crate::store::Variant;
use crate::store::imports::{BundledImage, Companion, LARGEST_MANIFEST, Part};

/// Why what is exported is held.
pub(super) const EXPORTING: &str = "an export under way";

/// What images are made of, each whole and here.
///
/// Cancel-safe: what was fetched stays in the cache. Nothing is held when this returns: an export
/// finds out what went meanwhile.
///
/// # Errors
/// When there is nothing to export, or an image cannot be made whole.
pub async fn plan(
    cache: &Arc<Cache>,
    images: &[Image],
    platforms: &[Platform],
    report: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Vec<BundledImage>, AirgapError> {
    let mut names = images.to_vec();
    if names.is_empty() {
        let (pinned, _) = cache.store().disk.pins().all();
        // Written by us, in canonical form.
        names.extend(
            pinned
                .iter()
                .filter_map(|pin| pin.image.parse::<Image>().ok()),
        );
    }
    if names.is_empty() {
        return Err(AirgapError::Nothing);
    }
    let mut planned = Vec::new();
    for image in &names {
        planned.push(plan_image(cache, image, platforms, report).await?);
    }
    Ok(planned)
}

async fn plan_image(
    cache: &Arc<Cache>,
    image: &Image,
    platforms: &[Platform],
    report: &(dyn Fn(Progress) + Send + Sync),
) -> Result<BundledImage, AirgapError> {
    let reference = image.reference();
    // As names of pins are written: the tag beside a digest is a mere remark.
    let image = Image {
        repository: image.repository.clone(),
        tag: reference.tag().cloned(),
        digest: reference.digest().copied(),
    };
    let pin = cache.store().disk.pins().image(&image.to_string());
    let asked: Vec<String> = platforms.iter().map(ToString::to_string).collect();
    let pin = pin.filter(|pin| asked.is_empty() || asked == pin.platforms);
    let mut closure: Option<Closure> = None;
    let (root, platforms, digests) = match pin.as_deref() {
        Some(pin) if !pin.closure.is_empty() => {
            let digests: Vec<Digest> = pin.closure.iter().map(|blob| blob.digest).collect();
            // The gate: policy may have changed since it was pinned.
            let root = Reference::Digest(digests[0]);
            let client = Client::operator();
            let answer = cache.own_manifest(&client, &image.repository, &root).await;
            answer.map_err(|error| at(&image, error))?;
            (digests[0], pin.platforms.clone(), digests)
        }
        _ => {
            let mut whole = cache.survey(&image, platforms, false, EXPORTING).await?;
            cache.fetch(&mut whole, report).await?;
            let digests = whole.parts.iter().map(|part| part.digest).collect();
            (closure.insert(whole).name.digest, asked, digests)
        }
    };
    let contents = Contents::read(cache, &image.repository, digests).await?;
    drop(closure);
    contents.bundle(image, root, platforms)
}

/// What is here of one image.
struct Contents {
    sizes: HashMap<Digest, u64>,
    manifests: HashMap<Digest, Manifest>,
    companions: Vec<Companion>,
}

impl Contents {
    async fn read(
        cache: &Cache,
        repository: &Repository,
        digests: Vec<Digest>,
    ) -> Result<Self, AirgapError> {
        let mut contents = Contents {
            sizes: HashMap::new(),
            manifests: HashMap::new(),
            companions: Vec::new(),
        };
        for digest in &digests {
            contents.add(cache, repository, digest).await?;
        }
        let mut about: Vec<Digest> = contents.manifests.keys().copied().collect();
        about.sort_unstable();
        for digest in &about {
            // The list of referrers that older clients keep, too.
            for suffix in [""].into_iter().chain(COMPANIONS) {
                contents
                    .add_companion(cache, repository, digest, suffix)
                    .await?;
            }
        }
        Ok(contents)
    }

    async fn add(
        &mut self,
        cache: &Cache,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), AirgapError> {
        let store = cache.store();
        let size = store.disk.stat(digest).ok_or(AirgapError::Gone(*digest))?;
        self.sizes.insert(*digest, size);
        // Of blobs there is none.
        let media_type = store
            .link(repository, digest)
            .await
            .and_then(|link| link.media_type);
        if let Some(media_type) = media_type {
            let bytes = store.disk.read(digest, LARGEST_MANIFEST).await?;
            let bytes = bytes.ok_or(AirgapError::Gone(*digest))?;
            self.manifests
                .insert(*digest, Manifest::from_store(bytes, media_type, *digest));
        }
        Ok(())
    }

    /// What a tag of an older kind says about a manifest, if that is here and whole.
    async fn add_companion(
        &mut self,
        cache: &Cache,
        repository: &Repository,
        about: &Digest,
        suffix: &str,
    ) -> Result<(), AirgapError> {
        let store = cache.store();
        let Some(tag) = fallback_tag(about, suffix) else {
            return Ok(());
        };
        let record = store.tags.get(repository, &tag).await;
        let current = record.and_then(|record| record.current(Variant::Any).cloned());
        let Some(digest) = current.map(|entry| entry.digest) else {
            return Ok(());
        };
        if !self.sizes.contains_key(&digest) {
            let mut more = Vec::from([digest]);
            let link = store.link(repository, &digest).await;
            let media_type = link.and_then(|link| link.media_type);
            let bytes = store.disk.read(&digest, LARGEST_MANIFEST).await?;
            let Some((bytes, media_type)) = bytes.zip(media_type) else {
                return Ok(());
            };
            let manifest = Manifest::from_store(bytes, media_type, digest);
            let children = manifest.children().unwrap_or_default();
            let (images, files): (Vec<_>, Vec<_>) =
                children.iter().partition(|child| child.is_manifest);
            let known = |child: &&Descriptor| self.manifests.contains_key(&child.digest);
            if !images.is_empty() && !images.into_iter().any(|child| known(&child)) {
                // A list of referrers, none of which came along.
                return Ok(());
            }
            more.extend(files.iter().map(|child| child.digest));
            if more.iter().any(|digest| store.disk.stat(digest).is_none()) {
                tracing::warn!(%repository, %tag, "not whole in the cache, so it is not exported");
                return Ok(());
            }
            for digest in more {
                self.add(cache, repository, &digest).await?;
            }
        }
        self.companions.push(Companion { tag, digest });
        Ok(())
    }

    fn bundle(
        mut self,
        image: Image,
        root: Digest,
        platforms: Vec<String>,
    ) -> Result<BundledImage, AirgapError> {
        self.companions.sort();
        let mut roots = vec![root];
        roots.extend(self.companions.iter().map(|companion| companion.digest));
        let found = walk(&roots, &self.manifests, |digest| {
            self.sizes.contains_key(digest)
        });
        if let Some(missing) = found.missing.first() {
            return Err(AirgapError::Gone(*missing));
        }
        let reached: HashSet<Digest> = found.reached.iter().copied().collect();
        let part = |digest: &Digest| {
            let manifest = self.manifests.get(digest);
            let subject = manifest.and_then(Manifest::subject);
            Part {
                digest: *digest,
                size: self.sizes.get(digest).copied().unwrap_or_default(),
                media_type: manifest.map(|manifest| manifest.media_type().clone()),
                subject: subject.filter(|subject| reached.contains(subject)),
            }
        };
        Ok(BundledImage {
            digest: root,
            image,
            platforms,
            closure: found.reached.iter().map(part).collect(),
            companions: self.companions,
        })
    }
}

fn at(image: &Image, error: crate::cache::CacheError) -> AirgapError {
    let what = image.to_string();
    AirgapError::Cache { what, error }
}
