//! Links of private repositories are proved again: what the upstream has said yes to once, it may
//! take back, and whoever is granted it here must not read on for ever.
//!
//! | the upstream's yes is | what happens |
//! |---|---|
//! | younger than 15 minutes | it counts |
//! | older | it counts, and the upstream is asked again behind the answer |
//! | older than an hour | the answer waits for that |
//! | older than `tags.stale_for`, and the upstream cannot say | it counts no more |
//!
//! It takes one HEAD for a digest in a repository, however many come. A no takes the link away. An
//! upstream that cannot say is believed as long as it is for tags: a cluster whose registry is down
//! goes on starting. Three things are never asked again: what everybody may read, what an operator
//! has pinned, warmed or imported, and anything when we are offline.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::accept::Accept;
use super::access::Access;
use super::clock::age;
use super::error::Kind;
use super::flight::landed;
use super::tag::PATIENCE;
use super::{Cache, CacheError};
use crate::oci::{Digest, Reference, Repository};
use crate::store::Link;
use crate::upstream::Upstream;

/// How long a yes counts.
const FRESH: Duration = Duration::from_mins(15);
/// How old it may be for an answer that does not wait.
const NEAR: Duration = Duration::from_hours(1);

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
        kind: Kind,
    ) -> Result<Option<Link>, CacheError> {
        let repository = access.repository();
        let Some(link) = self.store.link(repository, digest).await else {
            return Ok(None);
        };
        if !access.is_private() || self.offline {
            return Ok(Some(link));
        }
        let age = age(link.proved);
        if age < FRESH || self.store.disk.pins().keeps(repository, digest) {
            return Ok(Some(link));
        }
        let believed = age < self.config.stale_for.max(NEAR);
        let answer = match access.ask(CacheError::Offline { listing: false }) {
            Ok(upstream) if believed && self.wants_rest(upstream, repository) => {
                return Ok(Some(link));
            }
            Ok(upstream) => Ok(self.ask_again(upstream, repository, digest, kind)),
            Err(limit) => Err(limit),
        };
        if age < NEAR {
            return Ok(Some(link));
        }
        let said = match answer {
            Ok(answer) => {
                let waited = tokio::time::timeout(PATIENCE, answer).await;
                waited.unwrap_or_else(|_| Err(CacheError::TooSlow(repository.registry.to_string())))
            }
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

    /// Whether an upstream is better not asked where there is another answer.
    fn wants_rest(&self, upstream: &Upstream, repository: &Repository) -> bool {
        upstream.must_spare() || self.recent.is_down(&repository.registry)
    }

    /// The question is on its way when this returns, whoever waits for the answer.
    fn ask_again(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
        kind: Kind,
    ) -> BoxFuture<'static, Result<(), CacheError>> {
        if kind == Kind::Blob {
            let probe = self.start_probe(upstream, repository, digest);
            return probe.map(|probed| landed(probed).map(drop)).boxed();
        }
        let any = Accept::everything();
        let (fetch, _) = self.start_fetch(upstream, repository, digest, &any);
        fetch.map(|fetched| landed(fetched).map(drop)).boxed()
    }

    /// The upstream was asked whether a repository has a digest, and did not say yes. Remembers what
    /// that means for those who come next; a no is the end of a link.
    pub(super) async fn not_proved(
        &self,
        repository: &Repository,
        digest: &Digest,
        error: CacheError,
    ) -> CacheError {
        if !error.leaves_stale() && !self.store.disk.pins().keeps(repository, digest) {
            self.store.unlink(repository, digest).await;
        }
        self.recent
            .note(repository, &Reference::Digest(*digest), &error);
        error
    }
}
