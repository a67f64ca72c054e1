//! Manifests by digest, and what is kept of every manifest that comes.
//!
//! A manifest by digest needs the repository's link to it. Bytes without a link cost one HEAD;
//! neither bytes nor link, one GET. Where replicas share a store, a link and bytes are looked for
//! there before anybody asks the upstream. [`tag`](super::tag) says what a tag points to.

use std::sync::Arc;

use bytes::Bytes;

use super::accept::{Accept, with_all_types};
use super::access::Access;
use super::error::Kind;
use super::flight::landed;
use super::{Cache, CacheError, Outcome};
use crate::oci::{Algorithm, Digest, Manifest, MediaType, Reference, Repository, Tag};
use crate::policy::{Client, Refusal, Target};
use crate::store::{Seen, Variant};
use crate::upstream::{FetchedManifest, Upstream};

#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub manifest: Arc<Manifest>,
    pub outcome: Outcome,
    /// Texts of the upstream's `Warning: 299` headers.
    pub warnings: Arc<[String]>,
    /// What policy has to say about it, though it is served.
    pub audit: Option<Arc<Refusal>>,
}

/// What a request to an upstream came back with, shared by all who waited.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) manifest: Arc<Manifest>,
    pub(super) warnings: Arc<[String]>,
    /// The upstream only confirmed what we had.
    pub(super) confirmed: bool,
}

// === impl Cache: by digest ===

impl Cache {
    /// By digest `Accept` decides nothing: there is but one manifest that has it.
    pub(super) async fn manifest_by_digest(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
        accept: &[&str],
    ) -> Result<ManifestAnswer, CacheError> {
        let repository = access.repository();
        let link = self.linked(access, digest).await?;
        if let Some(media_type) = link.and_then(|link| link.media_type)
            && let Some(manifest) = self.load(digest, &media_type).await?
        {
            return Ok(ManifestAnswer::cached(manifest, Outcome::Hit));
        }
        let reference = Reference::Digest(*digest);
        if self
            .recent
            .is_missing(repository, &reference, Kind::Manifest)
        {
            return Err(CacheError::ManifestUnknown);
        }
        let upstream = access.ask(CacheError::Offline { listing: false })?;
        let flight_key = (repository.clone(), *digest);
        let flight = self.manifest_flights.join(&flight_key, || {
            let (cache, upstream) = (Arc::clone(self), Arc::clone(upstream));
            let (repository, digest) = flight_key.clone();
            let accept = with_all_types(&Accept::new(accept).types());
            async move {
                cache
                    .fetch_by_digest(&upstream, &repository, &digest, &accept)
                    .await
            }
        });
        settle(flight.await)
    }

    async fn fetch_by_digest(
        self: Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        accept: &[String],
    ) -> Result<Fetched, CacheError> {
        let reference = Reference::Digest(*digest);
        let failed = |error| self.manifest_failed(repository, &reference, error);
        if let Some(bytes) = self.bytes(digest).await? {
            // The bytes are here, but nothing says that this repository has them.
            let probe = upstream
                .probe_manifest(&repository.name, &reference, accept)
                .await;
            let probe = probe.map_err(failed)?;
            let manifest =
                Manifest::parse(bytes, probe.content_type.as_deref(), digest.algorithm());
            let manifest =
                Arc::new(manifest.map_err(|error| CacheError::WrongBytes(error.to_string()))?);
            self.keep(repository, None, &manifest).await;
            return Ok(Fetched {
                manifest,
                warnings: Arc::default(),
                confirmed: true,
            });
        }
        let fetched = upstream
            .manifest(&repository.name, &reference, accept)
            .await
            .map_err(failed)?;
        let fetched = parse(fetched, digest.algorithm())?;
        if fetched.manifest.digest() != digest {
            let registry = &repository.registry;
            return Err(CacheError::WrongBytes(format!(
                "{registry} sent a manifest that is not {digest}"
            )));
        }
        self.keep(repository, None, &fetched.manifest).await;
        Ok(fetched)
    }
}

// === impl Cache: what is kept ===

impl Cache {
    /// Keeps a manifest that the upstream gave for this repository, and for a tag if it was asked
    /// for one. Answers do not wait for the disk, and only a moment for other replicas.
    pub(super) async fn keep(
        self: &Arc<Self>,
        repository: &Repository,
        tag: Option<(&Tag, Variant)>,
        manifest: &Arc<Manifest>,
    ) {
        let digest = *manifest.digest();
        self.manifests.insert(digest, Arc::clone(manifest));
        let seen = self.when_seen(repository, &digest);
        let published = self
            .store
            .add_manifest(repository, tag, manifest, seen)
            .await;
        if self.store.disk.stat(&digest).is_none() {
            self.write_behind(manifest);
        } else if !published {
            self.store.publish_blob(&digest);
        }
    }

    /// Where policy allows a repository only by some tags, nodes that come to another replica by digest
    /// depend on what it sees of them.
    fn when_seen(&self, repository: &Repository, digest: &Digest) -> Seen {
        let target = Target {
            repository: repository.clone(),
            reference: Some(Reference::Digest(*digest)),
        };
        let decision = self.policy.load().evaluate(&target, &Client::default());
        if decision.if_led.is_empty() {
            Seen::Soon
        } else {
            Seen::First
        }
    }

    /// Writes a manifest when the burst is over.
    fn write_behind(self: &Arc<Self>, manifest: &Manifest) {
        if self.unwritten.push(manifest) {
            let cache = Arc::clone(self);
            self.tracker.spawn(async move {
                cache.unwritten.burst().await;
                cache.write_manifests().await;
            });
        }
    }

    /// Writes the manifests that are still in memory only.
    pub(super) async fn write_manifests(&self) {
        let disk = &self.store.disk;
        let write = async |manifests| disk.put_all(manifests).await;
        self.unwritten.flush(write).await;
    }

    /// A manifest that we or other replicas have.
    pub(super) async fn load(
        self: &Arc<Self>,
        digest: &Digest,
        media_type: &MediaType,
    ) -> Result<Option<Arc<Manifest>>, CacheError> {
        if let Some(manifest) = self.manifests.get(digest)
            && manifest.media_type() == media_type
        {
            // What is answered from memory is in use on disk too.
            self.store.disk.touch(digest);
            return Ok(Some(manifest));
        }
        let Some(bytes) = self.bytes(digest).await? else {
            return Ok(None);
        };
        let manifest = Arc::new(Manifest::from_store(bytes, media_type.clone(), *digest));
        self.manifests.insert(*digest, Arc::clone(&manifest));
        if self.store.is_shared() && self.store.disk.stat(digest).is_none() {
            self.write_behind(&manifest);
        }
        Ok(Some(manifest))
    }

    async fn bytes(&self, digest: &Digest) -> Result<Option<Bytes>, CacheError> {
        if let Some(manifest) = self.manifests.get(digest) {
            return Ok(Some(manifest.bytes().clone()));
        }
        // A disk that fails is no reason to fail a pull: the upstream may still have it.
        match self.store.disk.read(digest, self.manifest_limit).await {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => {}
            Err(error) if self.offline => return Err(error.into()),
            Err(error) => tracing::warn!(%digest, %error, "cannot read a manifest"),
        }
        if !self.store.is_shared() {
            return Ok(None);
        }
        let limit = self.manifest_limit;
        Ok(self.store.fleets_manifest(digest, limit).await)
    }
}

// === impl ManifestAnswer ===

impl ManifestAnswer {
    pub(super) fn cached(manifest: Arc<Manifest>, outcome: Outcome) -> Self {
        ManifestAnswer {
            manifest,
            outcome,
            warnings: Arc::default(),
            audit: None,
        }
    }
}

// === helpers ===

/// What a flight came to, for one of those who waited.
pub(super) fn settle(
    (fetched, joined): (Option<Result<Fetched, CacheError>>, bool),
) -> Result<ManifestAnswer, CacheError> {
    let fetched = landed(fetched)?;
    let outcome = match (fetched.confirmed, joined) {
        (true, _) => Outcome::Hit,
        (false, true) => Outcome::Collapsed,
        (false, false) => Outcome::Miss,
    };
    Ok(ManifestAnswer {
        manifest: fetched.manifest,
        outcome,
        warnings: fetched.warnings,
        audit: None,
    })
}

pub(super) fn parse(fetched: FetchedManifest, algorithm: Algorithm) -> Result<Fetched, CacheError> {
    let manifest = Manifest::parse(fetched.bytes, fetched.content_type.as_deref(), algorithm);
    let manifest = manifest.map_err(|error| CacheError::WrongBytes(error.to_string()))?;
    Ok(Fetched {
        manifest: Arc::new(manifest),
        warnings: fetched.warnings.into(),
        confirmed: false,
    })
}
