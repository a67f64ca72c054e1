//! The gate. The only way in: policy first, then (once grants exist) whether this client may read
//! this repository, and only then who the upstream is. The link between a digest and a repository
//! is the third question; it may need the upstream, so it is asked where the digest is looked up.

use std::sync::Arc;

use super::{Cache, CacheError};
use crate::oci::{Digest, Reference, Repository};
use crate::policy::{Client, Decision, Effect, Refusal, Target};
use crate::telemetry::metrics::RuleLabels;
use crate::upstream::Upstream;

/// Policy said yes to this request. Only [`Cache::enter`] makes one, and everything that looks
/// into a store or asks an upstream wants one.
#[derive(Clone, Debug)]
pub(super) struct Access {
    repository: Repository,
    upstream: Option<Arc<Upstream>>,
}

impl Access {
    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }
}

impl Cache {
    /// Who to ask, unless we are offline, `missing` then says what was missed, or the upstream
    /// wants to be left alone.
    pub(super) fn ask<'a>(
        &self,
        access: &'a Access,
        missing: CacheError,
    ) -> Result<&'a Arc<Upstream>, CacheError> {
        let upstream = access.upstream.as_ref().ok_or(missing)?;
        match self.recent.limit(&access.repository.registry) {
            Some(limit) => Err(limit),
            None => Ok(upstream),
        }
    }

    /// Decides whether `client` may have anything of `reference` in `repository`.
    ///
    /// # Errors
    /// [`CacheError::Denied`] goes before [`CacheError::NotServed`]: a reason is worth more.
    pub(super) async fn enter(
        &self,
        client: &Client,
        repository: &Repository,
        reference: Option<&Reference>,
    ) -> Result<Access, CacheError> {
        let target = Target {
            repository: repository.clone(),
            reference: reference.cloned(),
        };
        let decision = self.policy.evaluate(&target, client);
        if decision.effect == Effect::Deny {
            let digest = reference.and_then(Reference::digest);
            let led = match digest.filter(|_| decision.if_led_by_tag) {
                Some(digest) => {
                    self.led_by_what_is_allowed(client, repository, digest)
                        .await
                }
                None => false,
            };
            if !led {
                return Err(self.refuse(&target, decision));
            }
        }
        let upstream = self
            .upstreams
            .get(&repository.registry)
            .filter(|_| !self.offline);
        if upstream.is_none() && !self.offline {
            return Err(CacheError::NotServed(repository.registry.clone()));
        }
        Ok(Access {
            repository: repository.clone(),
            upstream,
        })
    }

    /// Whether a tag or an index that policy allows has led to this digest.
    async fn led_by_what_is_allowed(
        &self,
        client: &Client,
        repository: &Repository,
        digest: &Digest,
    ) -> bool {
        let allowed = |leader: &Reference| {
            let target = Target {
                repository: repository.clone(),
                reference: Some(leader.clone()),
            };
            self.policy.evaluate(&target, client).effect == Effect::Allow
        };
        self.store.is_led(repository, digest, allowed).await
    }

    fn refuse(&self, target: &Target, decision: Decision) -> CacheError {
        let rule = decision.rule.as_deref().unwrap_or("default").to_owned();
        self.metrics
            .denials
            .get_or_create(&RuleLabels { rule })
            .inc();
        let refusal = decision.refusal.unwrap_or_else(|| {
            let message = format!("policy does not allow {}", target.repository);
            Arc::new(Refusal {
                message,
                rule: None,
                reason: None,
                instead: None,
                contact: None,
            })
        });
        CacheError::Denied(refusal)
    }
}
