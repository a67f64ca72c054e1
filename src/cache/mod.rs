//! The heart: what is asked for is judged, found or fetched.
//!
//! Everybody who wants something of a registry comes through here, and the first thing that
//! happens is always the same: [`access`] asks policy, before any look-up anywhere. What it lets
//! through carries an `Access`, and nothing below can be reached without one.
//!
//! | | |
//! |---|---|
//! | What is asked for | [`tag`], [`manifest`], [`blob`], [`listing`] (tag lists and referrers) |
//! | Whether it may be had | [`access`], [`proof`] (what is not everybody's), [`age`] (tags that are too young), [`accept`] (kinds that a client can take) |
//! | Where it comes from | [`source`] (an upstream's repository, as a fill sees it), [`near`] (who else may have a blob), [`recent`] (what upstreams said a moment ago), [`flight`] (one question at a time for each answer) |
//! | What becomes of it | [`unwritten`] (manifests on their way to the disk), [`pulls`] (who asked for what), [`missing`] (what of that is not here) |
//! | What operators do | [`keep`] (pins and purges), [`closure`] (an image made whole), [`warm`] (many of them) |

mod accept;
mod access;
mod age;
mod blob;
mod clock;
pub mod closure;
pub mod error;
mod flight;
pub mod keep;
mod listing;
mod manifest;
mod missing;
mod near;
mod proof;
pub mod pulls;
mod recent;
mod source;
mod tag;
mod unwritten;
pub mod warm;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::sync::Cache as Memory;
use serde::Deserialize;
use tokio_util::task::TaskTracker;

use crate::fill::{Fills, Running};
use crate::oci::{Digest, Manifest, Reference, Repository, Tag};
use crate::policy::{Engine, Grants, InvalidPattern, Pattern};
use crate::store::{Store, TagRecord};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{AnswerLabels, OutcomeLabel, RouteLabel, Stale, StaleLabels};
use crate::upstream::Upstreams;

pub use crate::policy::Client;
use access::Access;
pub use blob::{BlobAnswer, Pieces, Wanted};
pub use error::CacheError;
use flight::Flights;
pub use listing::{ReferrersAnswer, TagsAnswer, fallback_tag};
use manifest::Fetched;
pub use manifest::ManifestAnswer;
pub use near::{Fleet, Nearby};
use pulls::Pulls;
use recent::Recent;
use tag::TagKey;
use unwritten::Unwritten;

/// Manifests in memory, in bytes.
const MANIFEST_MEMORY: u64 = 64 * 1024 * 1024;
/// Tag lists and referrers in memory, in bytes.
const LISTING_MEMORY: u64 = 32 * 1024 * 1024;

/// `[tags]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Inside it a tag, a tag list or referrers cause no upstream request at all.
    #[serde(deserialize_with = "crate::units::duration")]
    pub fresh_for: Duration,
    /// How old a tag may be served when the upstream fails, and how old the yes to a digest may be
    /// where an upstream has grants.
    #[serde(deserialize_with = "crate::units::duration")]
    pub stale_for: Duration,
    /// How long a 404 is believed.
    #[serde(deserialize_with = "crate::units::duration")]
    pub missing_for: Duration,
    /// Patterns over `registry/repository:tag` of tags that are never checked again.
    pub immutable: Vec<String>,
}

/// All that an answer can be made of. One per running server; cheap to share.
#[derive(Debug)]
pub struct Cache {
    policy: ArcSwap<Engine>,
    grants: ArcSwap<Grants>,
    upstreams: Upstreams,
    store: Arc<Store>,
    fills: Fills,
    config: Config,
    immutable: Vec<Pattern>,
    offline: bool,
    manifest_limit: u64,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    manifests: Memory<Digest, Arc<Manifest>>,
    unwritten: Unwritten,
    pulls: Pulls,
    listings: Memory<listing::Key, listing::Listing>,
    recent: Recent,
    tag_looks: Flights<(Repository, Tag), Option<Arc<TagRecord>>>,
    tag_flights: Flights<TagKey, Result<Fetched, CacheError>>,
    manifest_flights: Flights<(Repository, Digest), Result<Fetched, CacheError>>,
    blob_probes: Flights<(Repository, Digest), Result<Option<u64>, CacheError>>,
    proofs: Flights<(Repository, Digest), Result<(), CacheError>>,
    listing_flights: Flights<listing::Key, Result<Bytes, CacheError>>,
}

/// What a [`Cache`] is built from.
#[derive(Debug)]
pub struct Parts {
    pub policy: Engine,
    pub grants: Grants,
    pub upstreams: Upstreams,
    pub store: Arc<Store>,
    pub fills: Fills,
    pub config: Config,
    /// No outbound connection at all.
    pub offline: bool,
    /// The largest manifest that is read back, in bytes.
    pub manifest_limit: u64,
    pub metrics: Arc<Metrics>,
    /// Runs what must not end with the client that asked for it.
    pub tracker: TaskTracker,
}

/// How an answer came about: becomes `Cache-Status` (RFC 9211).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Hit,
    /// From the cache, too old, because the upstream does not answer.
    Stale,
    /// Fetched for this request.
    Miss,
    /// Fetched for another request that runs at the same time.
    Collapsed,
    /// What the upstream said just now to a HEAD; nothing was stored.
    Passed,
    /// The client was sent to the shared store.
    Redirected,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Config {
            fresh_for: Duration::from_mins(1),
            stale_for: Duration::from_hours(24),
            missing_for: Duration::from_secs(15),
            immutable: Vec::new(),
        }
    }
}

impl Config {
    /// The `immutable` patterns, ready to match; they are written like those of policy rules.
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub fn immutable(&self) -> Result<Vec<Pattern>, InvalidPattern> {
        self.immutable
            .iter()
            .map(|pattern| Pattern::parse(pattern))
            .collect()
    }
}

// === impl Cache ===

impl Cache {
    /// # Errors
    /// A pattern in `tags.immutable` that is none.
    pub fn new(parts: Parts) -> Result<Arc<Self>, InvalidPattern> {
        let immutable = parts.config.immutable()?;
        let weight = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let tracker = &parts.tracker;
        Ok(Arc::new(Cache {
            manifests: Memory::builder()
                .max_capacity(MANIFEST_MEMORY)
                .weigher(move |_, manifest: &Arc<Manifest>| weight(manifest.weight()))
                .build(),
            listings: Memory::builder()
                .max_capacity(LISTING_MEMORY)
                .weigher(move |_, listing: &listing::Listing| weight(listing.weight()))
                .time_to_live(parts.config.stale_for.max(parts.config.fresh_for))
                .build(),
            unwritten: Unwritten::default(),
            pulls: Pulls::new(Arc::clone(&parts.metrics)),
            recent: Recent::new(parts.config.missing_for),
            tag_looks: Flights::new(tracker),
            tag_flights: Flights::new(tracker),
            manifest_flights: Flights::new(tracker),
            blob_probes: Flights::new(tracker),
            proofs: Flights::new(tracker),
            listing_flights: Flights::new(tracker),
            immutable,
            policy: ArcSwap::from_pointee(parts.policy),
            grants: ArcSwap::from_pointee(parts.grants),
            upstreams: parts.upstreams,
            store: parts.store,
            fills: parts.fills,
            config: parts.config,
            offline: parts.offline,
            manifest_limit: parts.manifest_limit,
            metrics: parts.metrics,
            tracker: parts.tracker,
        }))
    }

    /// Whether nobody outside is asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// What is being downloaded at this moment.
    #[must_use]
    pub fn downloads(&self) -> Vec<Running> {
        self.fills.running()
    }

    /// The rules that decide at this moment.
    #[must_use]
    pub fn policy(&self) -> Arc<Engine> {
        self.policy.load_full()
    }

    /// Takes another policy and other grants from the next request on.
    pub fn set_policy(&self, policy: Engine, grants: Grants) {
        self.grants.store(Arc::new(grants));
        self.policy.store(Arc::new(policy));
    }

    /// Answers for a manifest that a client pulls, and puts that on record. `accept` has every
    /// `Accept` header line of the client.
    ///
    /// Cancel-safe: what was begun for the answer is finished without the client.
    pub async fn manifest(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        reference: &Reference,
        accept: &[&str],
    ) -> Result<ManifestAnswer, CacheError> {
        let entered = self.enter(client, repository, Some(reference)).await;
        let answer = match &entered {
            Ok(access) => {
                self.manifest_behind(access, client, reference, accept)
                    .await
            }
            Err(error) => Err(error.clone()),
        };
        let asked = (repository, reference);
        self.note_pull(client, asked, entered.as_ref().ok(), answer.as_ref())
            .await;
        answer
    }

    /// The same for operators and for ourselves, which is no pull.
    pub async fn own_manifest(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<ManifestAnswer, CacheError> {
        let access = self.enter(client, repository, Some(reference)).await?;
        self.manifest_behind(&access, client, reference, &[]).await
    }

    async fn manifest_behind(
        self: &Arc<Self>,
        access: &Access,
        client: &Client,
        reference: &Reference,
        accept: &[&str],
    ) -> Result<ManifestAnswer, CacheError> {
        let mut answer = match access.reference().unwrap_or(reference) {
            Reference::Tag(tag) => {
                let answer = self.manifest_by_tag(access, tag, accept).await?;
                self.admit(access, client, answer.manifest.digest())?;
                answer
            }
            Reference::Digest(digest) => self.manifest_by_digest(access, digest, accept).await?,
        };
        if let Some(shared) = &self.store.shared {
            shared.used.note(answer.manifest.digest());
        }
        // Once for an image: its blobs follow from its manifest.
        if let Some(audit) = access.audit() {
            self.note_audit(audit);
            answer.audit = Some(Arc::clone(audit));
        }
        self.count(RouteLabel::Manifest, answer.outcome);
        Ok(answer)
    }

    /// Answers for a blob: its size, and what to read it from. Cancel-safe.
    pub async fn blob(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        digest: &Digest,
        wanted: Wanted,
    ) -> Result<BlobAnswer, CacheError> {
        let access = self
            .enter(client, repository, Some(&Reference::Digest(*digest)))
            .await?;
        let answer = self.find_blob(client, &access, digest, wanted).await;
        if answer.as_ref().is_err_and(CacheError::is_missing) {
            self.note_missing_blob(client, &access, digest).await;
        }
        let answer = answer?;
        self.count(RouteLabel::Blob, answer.outcome);
        Ok(answer)
    }

    /// What another replica may have of a blob: what is here, or on its way here. Nobody is asked,
    /// nothing is started, and whose right it is was decided over there. Cancel-safe.
    pub async fn blob_for_peer(&self, digest: &Digest, wanted: Wanted) -> Option<BlobAnswer> {
        self.find_for_peer(digest, wanted).await
    }

    /// Lists tags after `last`, at most `n` of them. Cancel-safe.
    pub async fn tags(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        n: Option<usize>,
        last: Option<&Tag>,
    ) -> Result<TagsAnswer, CacheError> {
        let access = self.enter(client, repository, None).await?;
        let answer = self.list_tags(&access, n, last).await?;
        self.count(RouteLabel::Tags, answer.outcome);
        Ok(answer)
    }

    /// Lists what refers to `digest`, as an image index. Cancel-safe.
    pub async fn referrers(
        self: &Arc<Self>,
        client: &Client,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrersAnswer, CacheError> {
        let access = self
            .enter(client, repository, Some(&Reference::Digest(*digest)))
            .await?;
        let answer = self.list_referrers(&access, digest, artifact_type).await?;
        self.count(RouteLabel::Referrers, answer.outcome);
        Ok(answer)
    }

    /// Something too old is served, and why.
    fn count_stale(&self, reason: Stale) {
        let labels = StaleLabels { reason };
        self.metrics.stale.get_or_create(&labels).inc();
    }

    fn count(&self, kind: RouteLabel, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Hit => OutcomeLabel::Hit,
            Outcome::Stale => OutcomeLabel::Stale,
            Outcome::Miss => OutcomeLabel::Miss,
            Outcome::Collapsed => OutcomeLabel::Collapsed,
            Outcome::Passed => OutcomeLabel::Passed,
            Outcome::Redirected => OutcomeLabel::Redirected,
        };
        self.metrics
            .answers
            .get_or_create(&AnswerLabels { kind, outcome })
            .inc();
    }
}
