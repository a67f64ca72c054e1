//! What operators do with the cache by name: pin, unpin, purge, and the past of a tag.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::Cache;
use super::clock::now;
use super::closure::{Closure, ClosureError, Progress};
use crate::oci::{Digest, Image, Platform, Reference, Repository};
use crate::policy::{InvalidPattern, Pattern};
use crate::store::catalog::{Catalog, Name};
use crate::store::keep::{PINNING, PinError, Why};
use crate::store::pins::{ImagePin, PatternPin};
use crate::store::{Store, StoreError, TagEntry, Variant};

/// Why an operator's wish was not granted.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Incomplete(#[from] ClosureError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nothing is known of {0} here")]
    NotHere(String),
    #[error("{what} is pinned by {by}: `cache unpin {by}` first")]
    Pinned { what: String, by: String },
    #[error("{digest} is a part of {image}: purge that")]
    Needed { digest: Digest, image: String },
}

/// Who wants something pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `cache pin`
    Pin,
    /// `warm`: somebody looked at the image and wants it as it is now, so that no `min_age` keeps
    /// it back any more.
    Warm,
    /// `[warm]` of the configuration: wants whatever may be had.
    Schedule,
}

/// A pin that would survive a power loss.
#[derive(Clone, Debug, Serialize)]
pub struct Pinned {
    /// Or a pattern.
    pub image: String,
    pub digest: Option<Digest>,
    pub blobs: usize,
    /// Of the image; of everything that is cached and matches the pattern.
    pub bytes: u64,
    /// Of everything that is pinned.
    pub limit: u64,
}

/// What a purge took away.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Purged {
    pub images: Vec<String>,
    pub blobs: usize,
    /// Bytes that are free now.
    pub bytes: u64,
    /// Why the shared store still has some of the names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<String>,
}

// === impl Cache ===

impl Cache {
    /// What is kept, and what is known of it.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Everything that is here, also what came a moment ago.
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        self.write_manifests().await;
        self.store.catalog().await
    }

    /// Makes an image whole and pins it. When this returns, the pin would survive a power loss.
    /// Cancel-safe: what was fetched stays in the cache, and the pin is there whole or not at all.
    pub async fn pin(
        self: &Arc<Self>,
        image: &Image,
        platforms: &[Platform],
        by: By,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pinned, KeepError> {
        let vouched = by == By::Warm;
        let mut closure = self.survey(image, platforms, vouched, PINNING).await?;
        let image = closure.name.to_string();
        let pin = |closure: &Closure| ImagePin {
            image: image.clone(),
            platforms: platforms.iter().map(ToString::to_string).collect(),
            closure: closure.blobs(),
            by: by.to_string(),
            at: now(),
        };
        // Before gigabytes are fetched in vain.
        self.store.check_size(&pin(&closure))?;
        self.fetch(&mut closure, report).await?;
        let pin = pin(&closure);
        let mut names = vec![closure.name.clone()];
        names.extend(closure.companions.iter().cloned());
        self.store.pin_image(names, pin).await?;
        self.tell_fleet_of_pins().await;
        Ok(Pinned {
            image,
            digest: Some(closure.name.digest),
            blobs: closure.parts.len(),
            bytes: closure.size(),
            limit: self.store.disk.max_size(),
        })
    }

    /// Pins whatever is cached and matches, now or later, as long as it fits.
    pub async fn pin_pattern(&self, pattern: &str) -> Result<Pinned, KeepError> {
        let parsed = Pattern::parse(pattern)?;
        let pin = PatternPin {
            pattern: pattern.to_owned(),
            by: By::Pin.to_string(),
            at: now(),
        };
        self.store.pin_pattern(pin).await?;
        self.tell_fleet_of_pins().await;
        let catalog = self.catalog().await?;
        let matched = catalog.matched(&parsed);
        Ok(Pinned {
            image: pattern.to_owned(),
            digest: None,
            blobs: matched.len(),
            bytes: matched.iter().map(|blob| blob.size).sum(),
            limit: self.store.disk.max_size(),
        })
    }

    /// A pin holds here whatever the shared store does; it is told again within the hour.
    async fn tell_fleet_of_pins(&self) {
        if let Err(error) = self.store.publish_pins().await {
            tracing::warn!(%error, "other replicas do not know yet what is pinned here");
        }
    }

    /// Unpins an image, however it is written, or a pattern as it was.
    pub async fn unpin(&self, name: &str) -> Result<(), KeepError> {
        let image = name.parse::<Image>();
        let canonical = image.map_or_else(|_| name.to_owned(), |image| canonical(&image));
        if self.store.unpin(&canonical).await? {
            if let Err(error) = self.store.unpublish_pin(&canonical).await {
                tracing::warn!(%error, "the shared store goes on keeping what was unpinned");
            }
            Ok(())
        } else {
            Err(KeepError::NotHere(format!("a pin of {canonical}")))
        }
    }

    /// Forgets an image and takes away what no other image that is here needs.
    pub async fn purge(&self, image: &Image) -> Result<Purged, KeepError> {
        let catalog = self.catalog().await?;
        let wanted = canonical(image);
        let known = catalog.names().into_iter();
        let mut names: Vec<Name> = known.filter(|name| name.to_string() == wanted).collect();
        if let Some(digest) = image.digest.filter(|_| names.is_empty()) {
            // Some tag or index leads to it too: then it only stops being readable by digest.
            let linked = catalog
                .linked(&digest)
                .any(|repository| *repository == image.repository);
            names.extend(linked.then(|| Name {
                repository: image.repository.clone(),
                reference: Reference::Digest(digest),
                digest,
            }));
        }
        if names.is_empty() {
            return Err(KeepError::NotHere(wanted));
        }
        self.purge_names(&catalog, names).await
    }

    /// The same for all images of a digest, or for a blob that no image needs.
    pub async fn purge_digest(&self, digest: &Digest) -> Result<Purged, KeepError> {
        let catalog = self.catalog().await?;
        let above = catalog.above(digest);
        let names = catalog.names().into_iter();
        let (named, others): (Vec<_>, Vec<_>) = names.partition(|name| name.digest == *digest);
        if let Some(other) = others.into_iter().find(|name| above.contains(&name.digest)) {
            let image = other.to_string();
            return Err(KeepError::Needed {
                digest: *digest,
                image,
            });
        }
        if named.is_empty() {
            let linked = catalog.linked(digest).next().is_some();
            if catalog.blob(digest).is_none() && !linked {
                return Err(KeepError::NotHere(digest.to_string()));
            }
            self.refuse_if_pinned(&digest.to_string(), digest)?;
            return self
                .take(&catalog, Vec::new(), vec![*digest], Vec::new())
                .await;
        }
        self.purge_names(&catalog, named).await
    }

    async fn purge_names(&self, catalog: &Catalog, names: Vec<Name>) -> Result<Purged, KeepError> {
        let pins = self.store.disk.pins();
        for name in &names {
            let image = name.to_string();
            if pins.image(&image).is_some() {
                let by = image.clone();
                return Err(KeepError::Pinned { what: image, by });
            }
            if let Some(by) = pins.pattern_with(&name.digest) {
                let (what, by) = (image, by.to_string());
                return Err(KeepError::Pinned { what, by });
            }
        }
        let only = catalog.only_of(&names);
        let mut gone = Vec::new();
        for name in &names {
            self.store.forget(name).await;
            gone.push((name.repository.clone(), name.reference.clone()));
            for digest in &only.links {
                self.store.links.remove_link(&name.repository, digest).await;
                gone.push((name.repository.clone(), Reference::Digest(*digest)));
            }
        }
        let free = only.blobs.into_iter();
        let free = free
            .filter(|digest| pins.images_with(digest).is_empty())
            .collect();
        let images = names.iter().map(ToString::to_string).collect();
        self.take(catalog, images, free, gone).await
    }

    /// Takes `digests` away, and what the fleet knows by the names that are `gone` here.
    async fn take(
        &self,
        catalog: &Catalog,
        images: Vec<String>,
        digests: Vec<Digest>,
        mut gone: Vec<(Repository, Reference)>,
    ) -> Result<Purged, KeepError> {
        for digest in &digests {
            self.manifests.invalidate(digest);
            let linked = catalog.linked(digest).cloned();
            gone.extend(linked.map(|repository| (repository, Reference::Digest(*digest))));
        }
        let (blobs, bytes) = self.store.purge(catalog, digests).await?;
        let shared = self.store.forget_shared(gone).await;
        Ok(Purged {
            images,
            blobs,
            bytes,
            shared: shared.err().map(|error| error.to_string()),
        })
    }

    fn refuse_if_pinned(&self, what: &str, digest: &Digest) -> Result<(), KeepError> {
        let pins = self.store.disk.pins();
        let image = pins
            .images_with(digest)
            .first()
            .map(|pin| pin.image.clone());
        match image.or_else(|| pins.pattern_with(digest).map(|pattern| pattern.to_string())) {
            Some(by) => Err(KeepError::Pinned {
                what: what.to_owned(),
                by,
            }),
            None => Ok(()),
        }
    }

    /// Why a digest is here or not.
    pub async fn why(&self, digest: &Digest) -> Result<Why, KeepError> {
        Ok(self.store.why(digest).await?)
    }

    /// What a tag has pointed to, newest first, for each kind of client.
    pub async fn history(&self, image: &Image) -> Result<Vec<(Variant, TagEntry)>, KeepError> {
        let unknown = || KeepError::NotHere(format!("the tag {}", canonical(image)));
        let Reference::Tag(tag) = image.reference() else {
            return Err(unknown());
        };
        let record = self.store.tags.get(&image.repository, &tag).await;
        let record = record.ok_or_else(unknown)?;
        let of = |variant| {
            let entries = record.entries(variant).iter().rev();
            entries.map(move |entry| (variant, entry.clone()))
        };
        Ok(of(Variant::Any).chain(of(Variant::Image)).collect())
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Pin => "cache pin",
            By::Warm => "warm",
            By::Schedule => "the schedule",
        })
    }
}

/// With the reference that counts, as names and pins have it.
fn canonical(image: &Image) -> String {
    match image.reference() {
        Reference::Tag(tag) => format!("{}:{tag}", image.repository),
        Reference::Digest(digest) => format!("{}@{digest}", image.repository),
    }
}
