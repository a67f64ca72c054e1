//! Tags: what one points to, and for how long that is believed.
//!
//! | a tag's record is | what happens |
//! |---|---|
//! | missing | one GET upstream, whoever asks at the same time waits for it |
//! | younger than `fresh_for`, or immutable | served, no upstream request at all |
//! | older | one HEAD upstream; a GET follows only if the tag has moved |
//! | older, and the upstream fails | served stale, up to `stale_for` |
//!
//! Where replicas share a store, a record is looked for there before anybody asks the upstream.

use std::sync::Arc;
use std::time::Duration;

use super::accept::{Accept, with_all_types};
use super::access::Access;
use super::clock::{age, now};
use super::error::Kind;
use super::manifest::{Fetched, ManifestAnswer, parse, settle};
use super::proof::NEAR;
use super::recent::PATIENCE;
use super::{Cache, CacheError, Outcome};
use crate::oci::{Algorithm, Manifest, Reference, Repository, Tag};
use crate::policy::Hit;
use crate::store::tags::CLOCKS_DIFFER;
use crate::store::{TagEntry, TagRecord, Variant};
use crate::telemetry::metrics::Stale;
use crate::upstream::{Upstream, UpstreamError, UpstreamErrorKind};

/// One question about a tag. `types` are the client's own, where it cannot take what is current.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TagKey {
    repository: Repository,
    tag: Tag,
    types: Option<Vec<String>>,
}

// === impl Cache ===

impl Cache {
    pub(super) async fn manifest_by_tag(
        self: &Arc<Self>,
        access: &Access,
        tag: &Tag,
        accept: &[&str],
    ) -> Result<ManifestAnswer, CacheError> {
        let accept = Accept::new(accept);
        let answer = self.settled(access, tag, &accept, Variant::Any).await?;
        if accept.takes(answer.manifest.media_type()) {
            return Ok(answer);
        }
        // Old clients that know images but no indexes get what the upstream makes of that.
        self.settled(access, tag, &accept, Variant::Image).await
    }

    /// What the tag points to, as fresh as the configuration wants it.
    pub(super) async fn current(
        self: &Arc<Self>,
        access: &Access,
        tag: &Tag,
        accept: &Accept<'_>,
        variant: Variant,
    ) -> Result<ManifestAnswer, CacheError> {
        let repository = access.repository();
        let newest = |record: Option<Arc<TagRecord>>| record?.current(variant).cloned();
        let mut known = newest(self.store.tags.get(repository, tag).await);
        if let Some(answer) = self.believed(access, tag, known.as_ref()).await? {
            return Ok(answer);
        }
        if self.store.is_shared() {
            // Another replica may have asked the upstream since.
            known = newest(self.fleets_tag(repository, tag).await);
            if let Some(answer) = self.believed(access, tag, known.as_ref()).await? {
                return Ok(answer);
            }
        }
        let reference = Reference::Tag(tag.clone());
        if self
            .recent
            .is_missing(repository, &reference, Kind::Manifest)
        {
            return Err(CacheError::ManifestUnknown);
        }
        let stale = self.when_stale(access, known.as_ref()).await?;
        let upstream = match (access.ask(offline(tag)), &stale) {
            (Ok(_), Some(manifest)) if self.recent.is_down(&repository.registry) => {
                return Ok(self.stale(manifest, Stale::Down));
            }
            (Ok(upstream), Some(manifest)) if upstream.must_spare() => {
                return Ok(self.stale(manifest, Stale::Spared));
            }
            (Err(error), Some(manifest)) if error.leaves_stale() => {
                return Ok(self.stale(manifest, error.as_stale()));
            }
            (upstream, _) => upstream?,
        };
        let types = match variant {
            Variant::Any => None,
            Variant::Image => Some(accept.types()),
        };
        let flight_key = TagKey {
            repository: repository.clone(),
            tag: tag.clone(),
            types,
        };
        let flight = self.tag_flights.join(&flight_key, || {
            let (cache, upstream, key) =
                (Arc::clone(self), Arc::clone(upstream), flight_key.clone());
            let extra = accept.types();
            async move { cache.refresh(&upstream, &key, &extra, known).await }
        });
        let Some(manifest) = stale else {
            return settle(flight.await);
        };
        let result = match tokio::time::timeout(PATIENCE, flight).await {
            Ok(landed) => settle(landed),
            Err(_) => Err(CacheError::TooSlow(repository.registry.to_string())),
        };
        match result {
            Err(error) if error.leaves_stale() => {
                tracing::debug!(%repository, %tag, %error, "serving a stale tag");
                Ok(self.stale(&manifest, error.as_stale()))
            }
            answer => answer,
        }
    }

    fn stale(&self, manifest: &Arc<Manifest>, reason: Stale) -> ManifestAnswer {
        self.count_stale(reason);
        ManifestAnswer::cached(Arc::clone(manifest), Outcome::Stale)
    }

    /// What we know of a tag, if that needs no upstream request.
    async fn believed(
        self: &Arc<Self>,
        access: &Access,
        tag: &Tag,
        known: Option<&TagEntry>,
    ) -> Result<Option<ManifestAnswer>, CacheError> {
        let Some(entry) = known else { return Ok(None) };
        if !self.offline && !self.is_fresh(access, entry) {
            if !self.is_immutable(access.repository(), tag) {
                return Ok(None);
            }
            // It points there for ever; whether that may be read is another question.
            let linked = async || matches!(self.linked(access, &entry.digest).await, Ok(Some(_)));
            if access.is_private() && !linked().await {
                return Ok(None);
            }
        }
        let manifest = self.load(&entry.digest, &entry.media_type).await?;
        Ok(manifest.map(|manifest| ManifestAnswer::cached(manifest, Outcome::Hit)))
    }

    /// The record of a tag with what all replicas know; who asks at the same time waits for one
    /// look.
    async fn fleets_tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        let key = (repository.clone(), tag.clone());
        let (found, _) = self
            .tag_looks
            .join(&key, || {
                let (store, (repository, tag)) = (Arc::clone(&self.store), key.clone());
                async move { store.fleets_tag(&repository, &tag).await }
            })
            .await;
        found.flatten()
    }

    /// A time in the future is no reason to believe: a clock was wrong, here or elsewhere.
    fn is_fresh(&self, access: &Access, entry: &TagEntry) -> bool {
        let most = if access.is_private() {
            NEAR
        } else {
            Duration::MAX
        };
        let fresh_for = self.config.fresh_for.min(most);
        entry.last_seen <= now().saturating_add(CLOCKS_DIFFER) && age(entry.last_seen) < fresh_for
    }

    /// What may be served though the upstream does not confirm it. What a no has ended is none.
    async fn when_stale(
        self: &Arc<Self>,
        access: &Access,
        known: Option<&TagEntry>,
    ) -> Result<Option<Arc<Manifest>>, CacheError> {
        let Some(entry) = known.filter(|entry| age(entry.last_seen) < self.config.stale_for) else {
            return Ok(None);
        };
        let repository = access.repository();
        if access.is_private() && self.store.link(repository, &entry.digest).await.is_none() {
            return Ok(None);
        }
        self.load(&entry.digest, &entry.media_type).await
    }

    /// Asks the upstream what a tag points to, and keeps the answer.
    async fn refresh(
        self: Arc<Self>,
        upstream: &Upstream,
        key: &TagKey,
        extra: &[String],
        known: Option<TagEntry>,
    ) -> Result<Fetched, CacheError> {
        let TagKey {
            repository,
            tag,
            types,
        } = key;
        let reference = Reference::Tag(tag.clone());
        let (variant, accept) = match types {
            Some(types) => (Variant::Image, types.clone()),
            None => (Variant::Any, with_all_types(extra)),
        };
        let failed = async |error| {
            let error = self.manifest_failed(repository, &reference, error);
            if let Some(entry) = &known {
                self.heard(repository, &entry.digest, &error).await;
            }
            error
        };
        if let Some(entry) = &known
            && let Some(manifest) = self.load(&entry.digest, &entry.media_type).await?
        {
            match upstream
                .probe_manifest(&repository.name, &reference, &accept)
                .await
            {
                Ok(probe) if probe.digest == Some(entry.digest) => {
                    let digest = &entry.digest;
                    self.store
                        .confirm_tag(repository, tag, variant, digest)
                        .await;
                    let warnings = Arc::default();
                    return Ok(Fetched {
                        manifest,
                        warnings,
                        confirmed: true,
                    });
                }
                // Moved, or no digest to tell: the GET will.
                Ok(_) => {}
                // A registry that cannot HEAD.
                Err(error) if matches!(error.kind, UpstreamErrorKind::Invalid(_)) => {}
                Err(error) => return Err(failed(error).await),
            }
        }
        let fetched = match upstream
            .manifest(&repository.name, &reference, &accept)
            .await
        {
            Ok(fetched) => parse(fetched, Algorithm::Sha256)?,
            Err(error) => return Err(failed(error).await),
        };
        let manifest = &fetched.manifest;
        if let Some(known) = known.filter(|known| known.digest != *manifest.digest()) {
            let (from, to) = (known.digest, manifest.digest());
            tracing::info!(%repository, %tag, %from, %to, "tag moved");
            self.metrics.tag_moves.inc();
        }
        self.keep(repository, Some((tag, variant)), manifest).await;
        Ok(fetched)
    }

    /// Remembers what a failure means for those who come next.
    pub(super) fn manifest_failed(
        &self,
        repository: &Repository,
        reference: &Reference,
        error: UpstreamError,
    ) -> CacheError {
        let error = CacheError::from_upstream(error, Kind::Manifest);
        self.recent.note(repository, reference, &error);
        error
    }

    fn is_immutable(&self, repository: &Repository, tag: &Tag) -> bool {
        if self.immutable.is_empty() {
            return false;
        }
        let (name, reference) = (repository.to_string(), Reference::Tag(tag.clone()));
        self.immutable
            .iter()
            .any(|pattern| pattern.hit(&name, Some(&reference)) == Hit::Yes)
    }
}

// === helpers ===

/// A signature's tag is often asked for and seldom there; so is a referrers tag.
fn offline(tag: &Tag) -> CacheError {
    let listing = tag.as_str().starts_with("sha256-") || tag.as_str().starts_with("sha512-");
    CacheError::Offline { listing }
}
