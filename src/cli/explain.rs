//! `portcullis explain IMAGE...`: what would happen to a pull, without doing any of it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use super::{Report, compile};
use crate::config::Source;
use crate::oci::{Digest, Image, Reference};
use crate::policy::{Client, Decision, Effect, Engine, Refusal, Step, Target};
use crate::telemetry::Metrics;
use crate::upstream::{HostLists, Upstreams};

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// Images as pod manifests write them
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Explanation {
    image: String,
    effect: Effect,
    /// None: the default decided.
    rule: Option<Arc<str>>,
    refusal: Option<Arc<Refusal>>,
    trail: Vec<Step>,
    /// What nodes ask for once they know the tag's digest.
    by_digest: ByDigest,
    /// Whether the registry is known or has an entry in `[upstreams]`; None when upstreams cannot
    /// be made ready here.
    served: Option<bool>,
    /// Nothing is dialled for what is refused.
    hosts: Option<Hosts>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ByDigest {
    Allow,
    Deny,
    /// Only what an allowed tag led to.
    IfLedByTag,
}

#[derive(Debug, Serialize)]
struct Hosts {
    endpoints: Vec<String>,
    /// For tokens, where the registry asks for one.
    auth: Vec<String>,
    /// For manifests and blobs that live elsewhere.
    redirect: Vec<String>,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let metrics = Arc::new(Metrics::default());
        // Policies are written far from the secrets and certificates that upstreams need.
        let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, &metrics);
        let (upstreams, notes) = match upstreams {
            Ok(upstreams) => (Some(upstreams), Vec::new()),
            Err(wrong) => (None, wrong),
        };
        let mut explanations = Vec::new();
        for image in &self.images {
            let image: Image = image
                .parse()
                .with_context(|| format!("{image:?} is no image"))?;
            explanations.push(Explanation::of(&image, &policy, upstreams.as_ref()));
        }
        let text = explanations
            .iter()
            .map(Explanation::text)
            .collect::<Vec<_>>()
            .join("\n");
        let json = serde_json::to_value(&explanations)?;
        Ok(Report {
            notes,
            ..Report::new(text, json)
        })
    }
}

// === impl Explanation ===

impl Explanation {
    fn of(image: &Image, policy: &Engine, upstreams: Option<&Upstreams>) -> Self {
        let target = Target::from(image);
        // No rule of this version looks at the client.
        let client = Client {
            address: Ipv4Addr::LOCALHOST.into(),
        };
        let decision = policy.evaluate(&target, &client);
        // Any digest stands for those that no rule names.
        let digest = image.digest.unwrap_or(Digest::Sha256([0; 32]));
        let reference = Some(Reference::Digest(digest));
        let by_digest = policy.evaluate(
            &Target {
                reference,
                ..target.clone()
            },
            &client,
        );
        let registry = &target.repository.registry;
        let hosts = upstreams.map(|upstreams| upstreams.hosts(registry));
        Explanation {
            image: target.to_string(),
            effect: decision.effect,
            rule: decision.rule,
            refusal: decision.refusal,
            trail: policy.explain(&target),
            by_digest: ByDigest::from(&by_digest),
            served: hosts.as_ref().map(Option::is_some),
            hosts: hosts
                .flatten()
                .filter(|_| decision.effect == Effect::Allow)
                .map(Hosts::from),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.image);
        let mut row = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<9} {value}");
        };
        let effect = match self.effect {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        };
        match &self.rule {
            Some(rule) => row(effect, &format!("by rule {rule}")),
            None => row(effect, "by default"),
        }
        if let Some(refusal) = &self.refusal {
            row("answer", &format!("403 {}", refusal.message));
        }
        for step in &self.trail {
            row("rule", &format!("{}: {}", step.rule, step.why));
        }
        if self.by_digest == ByDigest::IfLedByTag {
            row("digest", "allowed when an allowed tag led to it");
        }
        if self.by_digest == ByDigest::Allow && self.effect == Effect::Deny {
            row(
                "digest",
                "allowed: who asks for the digest behind the tag gets it",
            );
        }
        match (&self.hosts, self.served) {
            (Some(hosts), _) => {
                hosts
                    .endpoints
                    .iter()
                    .for_each(|host| row("upstream", host));
                hosts.auth.iter().for_each(|host| row("tokens", host));
                hosts
                    .redirect
                    .iter()
                    .for_each(|host| row("redirects", host));
            }
            _ if self.effect == Effect::Deny => {
                row("upstream", "none: what is refused is not asked for");
            }
            (None, Some(_)) => row("upstream", "none: 403, this registry is not served here"),
            (None, None) => row("upstream", "not known on this machine"),
        }
        text
    }
}

impl From<&Decision> for ByDigest {
    fn from(decision: &Decision) -> Self {
        match decision.effect {
            Effect::Allow => ByDigest::Allow,
            Effect::Deny if decision.if_led_by_tag => ByDigest::IfLedByTag,
            Effect::Deny => ByDigest::Deny,
        }
    }
}

impl From<HostLists> for Hosts {
    fn from(lists: HostLists) -> Self {
        let HostLists {
            endpoints,
            auth_hosts,
            redirect_hosts,
        } = lists;
        Hosts {
            endpoints,
            auth: auth_hosts,
            redirect: redirect_hosts,
        }
    }
}
