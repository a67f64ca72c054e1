//! Links of private repositories are proved again: what the upstream has said yes to once, it may
//! take back, and whoever is granted it here must not read on for ever.
//!
//! | the upstream's yes is | what happens |
//! |---|---|
//! | younger than 15 minutes | it counts |
//! | older | it counts, and the upstream is asked again behind the answer |
//! | older than an hour | the answer waits for that, a few seconds |
//! | older than `tags.stale_for`, and the upstream cannot say | it counts no more |
//!
//! It takes one HEAD of each replica for a digest in a repository, however many come. A no takes the
//! link away. An upstream that cannot say is believed as long as it is for tags: a cluster whose
//! registry is down goes on starting. Three things are never asked again: what everybody may read,
//! what an operator has pinned, warmed or imported here, and anything when we are offline.

use std::sync::Arc;
use std::time::Duration;

use super::accept::with_all_types;
use super::access::Access;
use super::clock::{age, now};
use super::error::Kind;
use super::flight::{Flight, landed};
use super::recent::PATIENCE;
use super::{Cache, CacheError};
use crate::oci::{Digest, Reference, Repository};
use crate::store::Link;
use crate::store::tags::CLOCKS_DIFFER;
use crate::upstream::{Upstream, UpstreamError, UpstreamErrorKind};

/// How long a yes counts.
const FRESH: Duration = Duration::from_mins(15);
/// How old it may be for an answer that does not wait.
pub(super) const NEAR: Duration = Duration::from_hours(1);

impl Cache {
    /// The link of a digest in this repository, if there is one and it counts. Cancel-safe: a
    /// question to the upstream goes on.
    ///
    /// # Errors
    /// What the upstream said: a no, or too long nothing at all.
    pub(super) async fn linked(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<Option<Link>, CacheError> {
        let repository = access.repository();
        let Some(link) = self.store.link(repository, digest).await else {
            return Ok(None);
        };
        if !access.is_private() || self.offline {
            return Ok(Some(link));
        }
        let age = age_of(&link);
        if age < FRESH || self.store.disk.pins().keeps(repository, digest) {
            return Ok(Some(link));
        }
        let believed = age < self.config.stale_for.max(NEAR);
        let asked = access.ask(CacheError::Offline { listing: false });
        // Better left alone where there is another answer.
        let rests = |upstream: &&Arc<Upstream>| {
            upstream.must_spare() || self.recent.is_down(&repository.registry)
        };
        if believed && asked.as_ref().is_ok_and(rests) {
            return Ok(Some(link));
        }
        let answer = asked.map(|upstream| self.prove_again(upstream, repository, digest, &link));
        if age < NEAR {
            return Ok(Some(link));
        }
        let said = match answer {
            Ok(answer) if believed => match tokio::time::timeout(PATIENCE, answer).await {
                Ok(said) => landed(said),
                Err(_) => Err(CacheError::TooSlow(repository.registry.to_string())),
            },
            Ok(answer) => landed(answer.await),
            Err(limit) => Err(limit),
        };
        match said {
            Err(error) if believed && error.leaves_stale() => {
                self.count_stale(error.as_stale());
                Ok(Some(link))
            }
            said => said.map(|()| Some(link)),
        }
    }

    /// The question is on its way when this returns, whoever waits for the answer.
    fn prove_again(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        link: &Link,
    ) -> Flight<Result<(), CacheError>> {
        let key = (repository.clone(), *digest);
        let (proof, _) = self.proofs.start(&key, || {
            let (cache, upstream, link) = (Arc::clone(self), Arc::clone(upstream), link.clone());
            let (repository, digest) = key.clone();
            async move {
                let Err(error) = ask(&upstream, &repository, &digest, &link).await else {
                    cache.store.add_link(&repository, &digest, None).await;
                    return Ok(());
                };
                let error = CacheError::from_upstream(error, kind(&link));
                let reference = Reference::Digest(digest);
                cache.recent.note(&repository, &reference, &error);
                cache.heard(&repository, &digest, &error).await;
                Err(error)
            }
        });
        proof
    }

    /// The upstream was asked for this digest, or for a tag that pointed to it: where it is granted
    /// to certain clients, a no ends the link.
    pub(super) async fn heard(&self, repository: &Repository, digest: &Digest, error: &CacheError) {
        if !error.leaves_stale()
            && self.grants.load().cover(&repository.registry)
            && !self.store.disk.pins().keeps(repository, digest)
        {
            self.store.unlink(repository, digest).await;
        }
    }
}

/// Whether the upstream still has it there.
async fn ask(
    upstream: &Upstream,
    repository: &Repository,
    digest: &Digest,
    link: &Link,
) -> Result<(), UpstreamError> {
    let name = &repository.name;
    if let Some(media_type) = &link.media_type {
        let accept = with_all_types(&[media_type.as_str().to_owned()]);
        let reference = Reference::Digest(*digest);
        let probe = upstream.probe_manifest(name, &reference, &accept);
        return probe.await.map(drop);
    }
    match upstream.probe_blob(name, digest).await {
        // Some registries say so to every HEAD of a blob, and send it all the same.
        Err(error) if matches!(error.kind, UpstreamErrorKind::NotFound) => {
            upstream.blob(name, digest, Some(0..1)).await.map(drop)
        }
        probe => probe.map(drop),
    }
}

/// Which of the two the link was made for: an upstream knows each by its own path only.
fn kind(link: &Link) -> Kind {
    match link.media_type {
        Some(_) => Kind::Manifest,
        None => Kind::Blob,
    }
}

/// A time in the future is no reason to believe: a clock was wrong.
fn age_of(link: &Link) -> Duration {
    if link.proved > now().saturating_add(CLOCKS_DIFFER) {
        return NEAR;
    }
    age(link.proved)
}
