//! Manifests: what a tag points to and for how long that is believed, and manifests by digest.
//!
//! | a tag's record is | what happens |
//! |---|---|
//! | missing | one GET upstream, whoever asks at the same time waits for it |
//! | younger than `fresh_for`, or immutable | served, no upstream request at all |
//! | older | one HEAD upstream; a GET follows only if the tag has moved |
//! | older, and the upstream fails | served stale, up to `stale_for` |
//!
//! A manifest by digest needs the repository's link to it. Bytes without a link cost one HEAD;
//! neither bytes nor link, one GET.
//!
//! Where replicas share a store, a record, a link and bytes are looked for there before anybody asks
//! the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::access::Access;
use super::error::Kind;
use super::flight::{Flight, landed};
use super::{Cache, CacheError, Outcome};
use crate::oci::{Algorithm, Digest, Manifest, MediaType, Reference, Repository, Tag};
use crate::policy::{Client, Hit, Refusal, Target};
use crate::store::tags::CLOCKS_DIFFER;
use crate::store::{Seen, TagEntry, TagRecord, Variant};
use crate::telemetry::metrics::Stale;
use crate::upstream::{FetchedManifest, Upstream, UpstreamError, UpstreamErrorKind};

/// What we ask for by tag: the client's own types come on top.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
/// How long a client waits for an upstream to confirm a tag that could be served stale.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

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
    manifest: Arc<Manifest>,
    warnings: Arc<[String]>,
    /// The upstream only confirmed what we had.
    confirmed: bool,
}

/// One question about a tag. `types` are the client's own, where it cannot take what is current.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TagKey {
    repository: Repository,
    tag: Tag,
    types: Option<Vec<String>>,
}

/// What a client can take: all its `Accept` lines.
pub(super) struct Accept<'a>(&'a [&'a str]);

// === impl Cache: by tag ===

impl Cache {
    pub(super) async fn manifest_by_tag(
        self: &Arc<Self>,
        access: &Access,
        tag: &Tag,
        accept: &[&str],
    ) -> Result<ManifestAnswer, CacheError> {
        let accept = Accept(accept);
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
        let stale = match &known {
            Some(entry) if age(entry.last_seen) < self.config.stale_for => {
                self.load(&entry.digest, &entry.media_type).await?
            }
            _ => None,
        };
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
        if !self.offline && !self.is_fresh(entry) {
            if !self.is_immutable(access.repository(), tag) {
                return Ok(None);
            }
            // It points there for ever; whether that may be read is another question.
            let (digest, kind) = (&entry.digest, Kind::Manifest);
            if access.is_private() && self.linked(access, digest, kind).await?.is_none() {
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
    fn is_fresh(&self, entry: &TagEntry) -> bool {
        entry.last_seen <= now().saturating_add(CLOCKS_DIFFER)
            && age(entry.last_seen) < self.config.fresh_for
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
                Err(error) => return Err(self.manifest_failed(repository, &reference, error)),
            }
        }
        let fetched = upstream
            .manifest(&repository.name, &reference, &accept)
            .await;
        let fetched =
            fetched.map_err(|error| self.manifest_failed(repository, &reference, error))?;
        let fetched = parse(fetched, Algorithm::Sha256)?;
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
    fn manifest_failed(
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
        let link = self.linked(access, digest, Kind::Manifest).await?;
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
        let (flight, joined) = self.start_fetch(upstream, repository, digest, &Accept(accept));
        settle((flight.await, joined))
    }

    /// Asks the upstream for a digest in a repository, unless it is being asked already.
    pub(super) fn start_fetch(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        accept: &Accept<'_>,
    ) -> (Flight<Result<Fetched, CacheError>>, bool) {
        let key = (repository.clone(), *digest);
        self.manifest_flights.start(&key, || {
            let (cache, upstream) = (Arc::clone(self), Arc::clone(upstream));
            let (repository, digest) = key.clone();
            let accept = with_all_types(&accept.types());
            async move {
                cache
                    .fetch_by_digest(&upstream, &repository, &digest, &accept)
                    .await
            }
        })
    }

    async fn fetch_by_digest(
        self: Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        accept: &[String],
    ) -> Result<Fetched, CacheError> {
        let reference = Reference::Digest(*digest);
        let failed = async |error| {
            let error = CacheError::from_upstream(error, Kind::Manifest);
            self.not_proved(repository, digest, error).await
        };
        if let Some(bytes) = self.bytes(digest).await? {
            // The bytes are here, but nothing says that this repository has them, or has them still.
            let probe = upstream
                .probe_manifest(&repository.name, &reference, accept)
                .await;
            let probe = match probe {
                Ok(probe) => probe,
                Err(error) => return Err(failed(error).await),
            };
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
        let fetched = match upstream
            .manifest(&repository.name, &reference, accept)
            .await
        {
            Ok(fetched) => fetched,
            Err(error) => return Err(failed(error).await),
        };
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
    async fn keep(
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
    fn cached(manifest: Arc<Manifest>, outcome: Outcome) -> Self {
        ManifestAnswer {
            manifest,
            outcome,
            warnings: Arc::default(),
            audit: None,
        }
    }
}

// === impl Accept ===

impl<'a> Accept<'a> {
    /// Of a client that says nothing.
    pub(super) fn everything() -> Self {
        Accept(&[])
    }

    /// What its lines name, without parameters.
    fn ranges(&self) -> impl Iterator<Item = &'a str> {
        let ranges = self.0.iter().flat_map(|line| line.split(','));
        let types = ranges
            .filter_map(|range| range.split(';').next())
            .map(str::trim);
        types.filter(|media_type| !media_type.is_empty())
    }

    fn takes(&self, media_type: &MediaType) -> bool {
        self.ranges().next().is_none()
            || self.ranges().any(|range| {
                matches!(range, "*/*" | "application/*")
                    || range.eq_ignore_ascii_case(media_type.as_str())
            })
    }

    /// The types it names, without wild cards, in order: a key for those who ask alike. Bounded,
    /// and only proper types, because they become a header of our own request.
    fn types(&self) -> Vec<String> {
        let named = self.ranges().filter(|range| !range.contains('*'));
        let types = named.filter_map(MediaType::parse);
        let mut types: Vec<String> = types
            .map(|parsed| parsed.as_str().to_owned())
            .take(16)
            .collect();
        types.sort_unstable();
        types.dedup();
        types
    }
}

// === helpers ===

fn settle(
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

fn parse(fetched: FetchedManifest, algorithm: Algorithm) -> Result<Fetched, CacheError> {
    let manifest = Manifest::parse(fetched.bytes, fetched.content_type.as_deref(), algorithm);
    let manifest = manifest.map_err(|error| CacheError::WrongBytes(error.to_string()))?;
    Ok(Fetched {
        manifest: Arc::new(manifest),
        warnings: fetched.warnings.into(),
        confirmed: false,
    })
}

fn with_all_types(extra: &[String]) -> Vec<String> {
    let mut types: Vec<String> = MANIFEST_TYPES
        .iter()
        .map(|&known| known.to_owned())
        .collect();
    types.extend(
        extra
            .iter()
            .filter(|extra| !MANIFEST_TYPES.contains(&extra.as_str()))
            .cloned(),
    );
    types
}

/// A signature's tag is often asked for and seldom there; so is a referrers tag.
fn offline(tag: &Tag) -> CacheError {
    let listing = tag.as_str().starts_with("sha256-") || tag.as_str().starts_with("sha512-");
    CacheError::Offline { listing }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// How long ago that was, in unix seconds. A time that lies in the future is now: clocks are set
/// back.
pub(super) fn age(then: i64) -> Duration {
    Duration::from_secs(u64::try_from(now().saturating_sub(then)).unwrap_or(0))
}
