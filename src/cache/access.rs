//! The gate. The only way in: policy first, then whether this client may read this repository, and
//! only then who the upstream is. The link between a digest and a repository is the third question;
//! it may need the upstream, so it is asked where the digest is looked up.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::{Cache, CacheError};
use crate::oci::{Digest, Reference, Repository};
use crate::policy::{Client, Decision, Effect, Engine, Obligation, Refusal, Target};
use crate::telemetry::metrics::RuleLabels;
use crate::upstream::Upstream;

/// Policy said yes to this request. Only [`Cache::enter`] makes one, and everything that looks
/// into a store or asks an upstream wants one.
#[derive(Clone, Debug)]
pub(super) struct Access {
    /// The one of this request, whatever is loaded meanwhile.
    policy: Arc<Engine>,
    /// Where policy sends the request, which may be another place than the client named.
    target: Target,
    /// The rule that let it in.
    rule: Option<Arc<str>>,
    upstream: Option<Arc<Upstream>>,
    obligation: Option<Arc<Obligation>>,
    audit: Option<Arc<Refusal>>,
    private: bool,
}

impl Access {
    pub(super) fn repository(&self) -> &Repository {
        &self.target.repository
    }

    /// What is asked for there; none for a list of tags.
    pub(super) fn reference(&self) -> Option<&Reference> {
        self.target.reference.as_ref()
    }

    /// Where the rules send what was `asked` for, if they do.
    pub(super) fn rewritten_from(&self, asked: (&Repository, &Reference)) -> Option<Arc<Target>> {
        let (repository, reference) = asked;
        let elsewhere = self.target.repository != *repository
            || self.reference().is_some_and(|there| there != reference);
        elsewhere.then(|| Arc::new(self.target.clone()))
    }

    pub(super) fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// Who to ask, unless we are offline, `missing` then says what was missed, or the upstream
    /// wants to be left alone.
    pub(super) fn ask(&self, missing: CacheError) -> Result<&Arc<Upstream>, CacheError> {
        let upstream = self.upstream(missing)?;
        match upstream.limit() {
            Some(limit) => Err(CacheError::Upstream(limit)),
            None => Ok(upstream),
        }
    }

    /// Who to ask, whether it wants to be asked or not; `missing` when we are offline.
    pub(super) fn upstream(&self, missing: CacheError) -> Result<&Arc<Upstream>, CacheError> {
        self.upstream.as_ref().ok_or(missing)
    }

    /// What a tag must fulfil besides.
    pub(super) fn obligation(&self) -> Option<&Obligation> {
        self.obligation.as_deref()
    }

    /// Whether what is there is granted to certain clients.
    pub(super) fn is_private(&self) -> bool {
        self.private
    }

    /// What the client is to be told about an image that is served all the same.
    pub(super) fn audit(&self) -> Option<&Arc<Refusal>> {
        self.audit.as_ref()
    }
}

impl Cache {
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
        let policy = self.policy.load_full();
        let mut decision = policy.evaluate(&target, client);
        if let Some(digest) = reference.and_then(Reference::digest)
            && let Some(led) = self.led(&policy, client, &decision.if_led, digest).await
        {
            decision = led;
        }
        if decision.effect == Effect::Deny {
            return Err(self.refuse(&target, decision));
        }
        if let Some(rewrite) = decision.rewrites.last() {
            tracing::debug!(from = %target, to = %decision.target, rule = %rewrite.rule, "rewritten");
            count(&self.metrics.rewrites, &rewrite.rule);
        }
        let grants = self.grants.load();
        if let Some(refusal) = grants.refusal(client, &decision.target.repository) {
            return Err(self.deny(Arc::new(refusal)));
        }
        let registry = &decision.target.repository.registry;
        let private = grants.cover(registry);
        let upstream = self.upstreams.get(registry).filter(|_| !self.offline);
        if upstream.is_none() && !self.offline {
            return Err(CacheError::NotServed(registry.clone()));
        }
        Ok(Access {
            policy,
            target: decision.target,
            rule: decision.rule,
            upstream,
            obligation: decision.obligation,
            audit: decision.refusal,
            private,
        })
    }

    /// What policy says of `digest` because of a tag or an index that it allows and that led
    /// there, in one of these places.
    async fn led(
        &self,
        policy: &Engine,
        client: &Client,
        ways: &[Target],
        digest: &Digest,
    ) -> Option<Decision> {
        let mut audited = None;
        for way in ways {
            let mut allowed = None;
            let judge = |leader: &Reference| {
                let leader = Target {
                    repository: way.repository.clone(),
                    reference: Some(leader.clone()),
                };
                let decision = policy.evaluate(&leader, client);
                if decision.effect == Effect::Deny || decision.target.repository != way.repository {
                    return false;
                }
                let decision = Decision {
                    target: way.clone(),
                    obligation: None,
                    ..decision
                };
                if decision.effect == Effect::Allow {
                    allowed = Some(decision);
                    return true;
                }
                audited.get_or_insert(decision);
                false
            };
            self.store.is_led(&way.repository, digest, judge).await;
            if allowed.is_some() {
                return allowed;
            }
        }
        audited
    }

    /// Whether a tag may answer this digest: rules that name it are about it, whoever led there.
    pub(super) fn admit(
        &self,
        access: &Access,
        client: &Client,
        digest: &Digest,
    ) -> Result<(), CacheError> {
        let target = Target {
            repository: access.repository().clone(),
            reference: Some(Reference::Digest(*digest)),
        };
        let decision = access.policy.evaluate(&target, client);
        // Where tags are allowed there is a way, and this one was allowed.
        if decision.effect == Effect::Deny && decision.if_led.is_empty() {
            return Err(self.refuse(&target, decision));
        }
        Ok(())
    }

    /// An image is served that policy would rather not see.
    pub(super) fn note_audit(&self, refusal: &Refusal) {
        let rule = refusal.rule.as_deref().unwrap_or_default();
        tracing::info!(rule, text = refusal.message, "audited");
        count(&self.metrics.audits, rule);
    }

    fn refuse(&self, target: &Target, decision: Decision) -> CacheError {
        let refusal = decision
            .refusal
            .unwrap_or_else(|| Arc::new(Refusal::new(format!("policy does not allow {target}"))));
        self.deny(refusal)
    }

    fn deny(&self, refusal: Arc<Refusal>) -> CacheError {
        let rule = refusal.rule.as_deref().unwrap_or("default");
        count(&self.metrics.denials, rule);
        CacheError::Denied(refusal)
    }
}

fn count(family: &Family<RuleLabels, Counter>, rule: &str) {
    let rule = rule.to_owned();
    family.get_or_create(&RuleLabels { rule }).inc();
}
