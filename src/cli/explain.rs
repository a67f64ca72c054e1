//! `portcullis explain IMAGE...`: what would happen to a pull, without doing any of it.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use super::{Report, compile, located};
use crate::config::Source;
use crate::oci::{Digest, Image, Reference};
use crate::policy::{Client, Decision, Effect, Engine, Grants, Refusal, Step, Target};
use crate::telemetry::Metrics;
use crate::units;
use crate::upstream::{HostLists, Upstreams};

/// Rules in a row that have nothing to do with the image and are still named.
const FEW: usize = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// Images as pod manifests write them
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,

    /// Who asks: an address, or mtls:CN=...; without it rules for certain clients do not hold
    #[arg(long, value_name = "CLIENT")]
    client: Option<Client>,
}

#[derive(Debug, Serialize)]
struct Explanation {
    image: String,
    /// Of `target`: allow, audit or deny.
    effect: Effect,
    /// None: the default decided.
    rule: Option<Arc<str>>,
    /// What is pulled; differs from the image when rules rewrite it.
    target: String,
    refusal: Option<Arc<Refusal>>,
    /// How long ago the tag must have been seen with what it answers.
    min_age: Option<String>,
    /// The image, then what each rewrite made of it.
    trail: Vec<Stage>,
    /// What nodes ask for once they know the tag's digest.
    by_digest: ByDigest,
    /// Whether the client may read that repository; None where nothing has to be granted.
    granted: Option<bool>,
    /// Whether the registry is known or has an entry in `[upstreams]`; None when upstreams cannot
    /// be made ready here.
    served: Option<bool>,
    /// Nothing is dialled for what is refused.
    hosts: Option<Hosts>,
}

/// What the rules say about one target.
#[derive(Debug, Serialize)]
struct Stage {
    target: String,
    /// The rule that rewrote something to it; None for the image itself.
    rewritten_by: Option<Arc<str>>,
    rules: Vec<Step>,
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
    /// For who we are, where a cloud says it.
    identity: Vec<String>,
}

// === impl Explain ===

impl Explain {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let policy = compile(&config, source)?;
        let grants = config.grants();
        let grants = grants.map_err(|problems| located(source, problems))?;
        let names = config.server.own_names();
        let metrics = Arc::new(Metrics::default());
        // Policies are written far from the secrets and certificates that upstreams need.
        let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, &metrics);
        let (upstreams, notes) = match upstreams {
            Ok(upstreams) => (Some(upstreams), Vec::new()),
            Err(wrong) => (None, wrong),
        };
        let mut explanations = Vec::new();
        for image in &self.images {
            let image: Image = names
                .image(image)
                .with_context(|| format!("{image:?} is no image"))?;
            let client = self.client.clone().unwrap_or_default();
            explanations.push(Explanation::of(
                &image,
                &client,
                (&policy, &grants),
                upstreams.as_ref(),
            ));
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
    fn of(
        image: &Image,
        client: &Client,
        (policy, grants): (&Engine, &Grants),
        upstreams: Option<&Upstreams>,
    ) -> Self {
        let asked = Target::from(image);
        let decision = policy.evaluate(&asked, client);
        // Any digest stands for those that no rule names.
        let digest = image.digest.unwrap_or(Digest::Sha256([0; 32]));
        let reference = Some(Reference::Digest(digest));
        let by_digest = policy.evaluate(
            &Target {
                reference,
                ..asked.clone()
            },
            client,
        );
        let stage = |target: &Target, rewritten_by| Stage {
            target: target.to_string(),
            rewritten_by,
            rules: policy.explain(target, client),
        };
        let rewrites = decision.rewrites.iter();
        let trail = std::iter::once(stage(&asked, None))
            .chain(rewrites.map(|step| stage(&step.to, Some(Arc::clone(&step.rule)))));
        let registry = &decision.target.repository.registry;
        let hosts = upstreams.map(|upstreams| upstreams.hosts(registry));
        let granted = grants.of(client, &decision.target.repository);
        Explanation {
            granted: granted.filter(|_| decision.effect.serves()),
            image: asked.to_string(),
            effect: decision.effect,
            target: decision.target.to_string(),
            min_age: decision
                .obligation
                .as_ref()
                .map(|obligation| units::show(obligation.min_age)),
            trail: trail.collect(),
            by_digest: ByDigest::from(&by_digest),
            served: hosts.as_ref().map(Option::is_some),
            hosts: hosts
                .flatten()
                .filter(|_| decision.effect.serves())
                .map(Hosts::from),
            rule: decision.rule,
            refusal: decision.refusal,
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.image);
        let mut row = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<9} {value}");
        };
        match &self.rule {
            Some(rule) => row(self.effect.as_str(), &format!("by rule {rule}")),
            None => row(self.effect.as_str(), "by default"),
        }
        match (&self.refusal, self.effect) {
            (Some(refusal), Effect::Deny) => row("answer", &format!("403 {}", refusal.message)),
            (Some(refusal), _) => row("warning", &refusal.message),
            (None, _) => {}
        }
        if let Some(age) = &self.min_age {
            let way = "what the tag was first seen with longer ago than that; refused until then";
            row("min_age", &format!("{age}: the answer is {way}"));
        }
        match self.granted {
            Some(true) => row("grants", "this client may read it"),
            Some(false) => row(
                "grants",
                "403 for whoever has none (--client asks for somebody)",
            ),
            None => {}
        }
        for stage in &self.trail {
            if let Some(rule) = &stage.rewritten_by {
                row("rewrite", &format!("to {} by rule {rule}", stage.target));
            }
            for steps in stage.rules.chunk_by(|a, b| !a.matches && !b.matches) {
                if steps.len() > FEW {
                    row(
                        "rule",
                        &format!("{} others: no pattern matches", steps.len()),
                    );
                    continue;
                }
                for step in steps {
                    row("rule", &format!("{}: {}", step.rule, step.why));
                }
            }
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
                hosts.identity.iter().for_each(|host| row("identity", host));
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
            Effect::Deny if decision.if_led.is_empty() => ByDigest::Deny,
            Effect::Deny => ByDigest::IfLedByTag,
            _ => ByDigest::Allow,
        }
    }
}

impl From<HostLists> for Hosts {
    fn from(lists: HostLists) -> Self {
        let HostLists {
            endpoints,
            auth_hosts,
            redirect_hosts,
            identity_hosts,
        } = lists;
        Hosts {
            endpoints,
            auth: auth_hosts,
            redirect: redirect_hosts,
            identity: identity_hosts,
        }
    }
}
