//! Imports: what a bundle brought across an air gap becomes visible, all of it together.
//!
//! `v1/imports/<id>.json` says what is to become visible. It is written, durably, when every blob
//! is here and durable; that is the import's commit point. Then come links and what led where,
//! then all tags, then the pins, and at the end the record goes. A start that finds one does the
//! rest again: every step may happen twice. Without a record nothing of an import was visible but
//! blobs that no repository links.

use std::io;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::catalog::Name;
use super::disk::Disk;
use super::files::{Temporary, blocking, found, sync_dir};
use super::keep::PinError;
use super::pins::{ImagePin, PinnedBlob};
use super::{Hold, Seen, Store, StoreError, Variant};
use crate::oci::{Digest, Image, Manifest, MediaType, Reference, Repository, Tag};

/// Who holds what an import brings.
pub const IMPORTING: &str = "an import under way";
/// The largest manifest that is looked into, in bytes; what is larger was never taken in as one.
pub const LARGEST_MANIFEST: u64 = 64 << 20;
/// Who pinned it.
const BY: &str = "import";
/// Manifests that are made visible at once; with a shared store each waits for it a moment.
const AT_ONCE: usize = 8;

/// What becomes visible together.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Import {
    pub id: Digest,
    /// Unix seconds.
    pub at: i64,
    pub images: Vec<BundledImage>,
}

/// An image with everything that it is made of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundledImage {
    /// In canonical form, with a tag or a digest.
    #[serde(with = "text")]
    pub image: Image,
    pub digest: Digest,
    /// As they were asked for; empty: all that the index has.
    pub platforms: Vec<String>,
    /// Other tags of the repository that belong to it: those of its signatures.
    pub companions: Vec<Companion>,
    /// The image's own manifest first.
    pub closure: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Companion {
    #[serde(with = "text")]
    pub tag: Tag,
    pub digest: Digest,
}

/// A manifest or blob of an image.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Of a manifest.
    #[serde(default, with = "text_option", skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// What a manifest is about: the image that a signature signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
}

// === impl BundledImage ===

impl BundledImage {
    fn pin(&self, at: i64) -> ImagePin {
        let blob = |part: &Part| PinnedBlob {
            digest: part.digest,
            size: part.size,
        };
        ImagePin {
            image: self.name().to_string(),
            platforms: self.platforms.clone(),
            closure: self.closure.iter().map(blob).collect(),
            by: BY.to_owned(),
            at,
        }
    }

    /// With the reference that counts.
    #[must_use]
    pub fn name(&self) -> Name {
        Name {
            repository: self.image.repository.clone(),
            reference: self.image.reference(),
            digest: self.digest,
        }
    }

    /// The names of the image and of what belongs to it.
    fn names(&self) -> impl Iterator<Item = Name> {
        let companions = self.companions.iter().map(|companion| Name {
            repository: self.image.repository.clone(),
            reference: Reference::Tag(companion.tag.clone()),
            digest: companion.digest,
        });
        std::iter::once(self.name()).chain(companions)
    }
}

// === impl Store ===

impl Store {
    /// Whether all of it could be pinned; known before any blob is here.
    pub fn check_import(&self, images: &[BundledImage]) -> Result<(), PinError> {
        let pins: Vec<ImagePin> = images.iter().map(|image| image.pin(0)).collect();
        self.check_sizes(&pins)
    }

    /// Makes an import visible, and pins it. Its blobs are here, and what its manifests say has been
    /// looked at. When this returns, all of it would survive a power loss. Not cancel-safe: run it
    /// on a task of its own.
    ///
    /// # Errors
    /// Before the commit point, when something is missing or would not fit, and nothing is visible
    /// then. After it, when the disk fails: the next start tries again.
    pub async fn import(&self, import: Import) -> Result<(), PinError> {
        self.check_import(&import.images)?;
        let _holds = self.hold_parts(&import);
        let parts = import.images.iter().flat_map(|image| &image.closure);
        let mut digests: Vec<Digest> = parts.map(|part| part.digest).collect();
        digests.sort_unstable();
        digests.dedup();
        for digest in &digests {
            if self.disk.open_blob(digest).await?.is_none() {
                return Err(PinError::Missing(*digest));
            }
        }
        let (disk, record) = (Arc::clone(&self.disk), import.clone());
        let commit = move || {
            disk.faults.noted(disk.make_durable(&digests))?;
            disk.faults.noted(disk.write_import(&record))
        };
        blocking(commit).await?;
        self.finish_import(import).await
    }

    /// Does the rest of what an earlier process had committed. One that cannot be finished stays
    /// for the next start.
    pub async fn finish_imports(&self) {
        let disk = Arc::clone(&self.disk);
        let unfinished = blocking(move || disk.faults.noted(disk.unfinished_imports())).await;
        // A failure is noted where it happens.
        for import in unfinished.unwrap_or_default() {
            let id = import.id;
            let _holds = self.hold_parts(&import);
            match self.finish_import(import).await {
                Ok(()) => tracing::info!(%id, "finished an import that was cut short"),
                Err(error) => tracing::error!(%id, %error, "an import cannot be finished"),
            }
        }
    }

    fn hold_parts(&self, import: &Import) -> Vec<Hold> {
        let parts = import.images.iter().flat_map(|image| &image.closure);
        parts
            .map(|part| self.disk.hold(&part.digest, IMPORTING))
            .collect()
    }

    async fn finish_import(&self, import: Import) -> Result<(), PinError> {
        for image in &import.images {
            self.link_parts(image).await?;
        }
        for image in &import.images {
            self.set_tags(image).await?;
        }
        self.links.flush().await;
        self.tags.flush().await;
        let disk = Arc::clone(&self.disk);
        let finish = move || {
            for image in &import.images {
                let digests: Vec<Digest> = image.closure.iter().map(|part| part.digest).collect();
                let repository = &image.image.repository;
                if let Some(missing) = disk.first_unlinked(repository, &digests) {
                    return Ok(Err(PinError::Unlinked(missing)));
                }
                for name in image.names() {
                    disk.faults.noted(disk.make_name_durable(&name))?;
                }
                disk.pins.add_image(image.pin(import.at))?;
            }
            disk.faults.noted(disk.remove_import(&import.id))?;
            Ok(Ok(()))
        };
        blocking(finish).await??;
        if let Err(error) = self.publish_pins().await {
            tracing::warn!(%error, "other replicas do not know yet what was imported here");
        }
        Ok(())
    }

    /// From now on the repository may read all of it by digest.
    async fn link_parts(&self, image: &BundledImage) -> Result<(), PinError> {
        let repository = &image.image.repository;
        let parts = image.closure.iter();
        let linked: Vec<_> = parts.map(|part| self.link_part(repository, part)).collect();
        let linked = stream::iter(linked).buffer_unordered(AT_ONCE);
        linked.try_collect().await
    }

    async fn link_part(&self, repository: &Repository, part: &Part) -> Result<(), PinError> {
        if part.media_type.is_some() {
            let manifest = self.imported_manifest(part).await?;
            self.add_manifest(repository, None, &manifest, Seen::Soon)
                .await;
        } else {
            self.add_link(repository, &part.digest, None).await;
        }
        self.publish_blob(&part.digest);
        Ok(())
    }

    async fn set_tags(&self, image: &BundledImage) -> Result<(), PinError> {
        for Name {
            repository,
            reference,
            digest,
        } in image.names()
        {
            let part = image.closure.iter().find(|part| part.digest == digest);
            if let (Reference::Tag(tag), Some(part)) = (reference, part) {
                let manifest = self.imported_manifest(part).await?;
                self.add_manifest(
                    &repository,
                    Some((&tag, Variant::Any)),
                    &manifest,
                    Seen::Soon,
                )
                .await;
                // Who carried it here wants it, however young.
                self.vouch_for(&repository, &tag, &digest).await;
            }
        }
        Ok(())
    }

    async fn imported_manifest(&self, part: &Part) -> Result<Manifest, PinError> {
        let bytes = self.disk.read(&part.digest, LARGEST_MANIFEST).await?;
        let manifest = bytes.zip(part.media_type.clone());
        let manifest =
            manifest.map(|(bytes, found)| Manifest::from_store(bytes, found, part.digest));
        manifest.ok_or(PinError::Missing(part.digest))
    }
}

// === impl Disk: records ===

impl Disk {
    /// Blocks until it would survive a power loss.
    fn write_import(&self, import: &Import) -> Result<(), StoreError> {
        let path = self.layout.import(&import.id);
        let write = || {
            let json = serde_json::to_vec(import).map_err(io::Error::other)?;
            let temporary = Temporary::write(&self.layout, &json)?;
            temporary.file().sync_all()?;
            temporary.name(&path)?;
            sync_dir(&self.layout.imports())?;
            // The directory itself may be new.
            sync_dir(&self.layout.v1())
        };
        write().map_err(StoreError::io(format!("write {}", path.display())))
    }

    fn remove_import(&self, id: &Digest) -> Result<(), StoreError> {
        let path = self.layout.import(id);
        let remove = || {
            found(std::fs::remove_file(&path))?;
            sync_dir(&self.layout.imports())
        };
        remove().map_err(StoreError::io(format!("remove {}", path.display())))
    }

    fn unfinished_imports(&self) -> Result<Vec<Import>, StoreError> {
        let directory = self.layout.imports();
        let read = || {
            let mut imports = Vec::new();
            let Some(files) = found(std::fs::read_dir(&directory))? else {
                return Ok(imports);
            };
            for file in files {
                let path = file?.path();
                match serde_json::from_slice::<Import>(&std::fs::read(&path)?) {
                    Ok(import) => imports.push(import),
                    // Left where it is: it says what somebody was promised.
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "an import cannot be read");
                    }
                }
            }
            Ok(imports)
        };
        read().map_err(StoreError::io(format!("read {}", directory.display())))
    }
}

// === as JSON ===

/// As it is written.
mod text {
    use std::borrow::Cow;
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// The same for what may be absent.
mod text_option {
    use std::borrow::Cow;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::oci::MediaType;

    #[expect(clippy::ref_option, reason = "the shape that serde wants")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<MediaType>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<MediaType>, D::Error> {
        let text = Option::<Cow<'_, str>>::deserialize(deserializer)?;
        let parse = |text: Cow<'_, str>| text.parse().map_err(D::Error::custom);
        text.map(parse).transpose()
    }
}
