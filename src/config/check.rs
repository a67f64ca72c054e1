//! Everything that is wrong with a configuration that could be read, said at once.

use std::sync::Arc;
use std::time::Duration;

use super::{Config, Fault, Source};
use crate::policy::{Engine, Problem};
use crate::telemetry::{Metrics, SecretSource};
use crate::upstream::{Upstreams, store_client};

/// More connections for one blob than any registry likes.
const MOST_CONNECTIONS: usize = 64;

/// The smallest window: below it a request costs more than it brings.
const SMALLEST_WINDOW: u64 = 64 << 10;

/// What keeps this configuration from being served. Blocking: reads the certificates and secrets
/// that it names, but opens no store and no connection.
#[must_use]
pub fn check(config: &Config, source: &Source) -> Vec<Fault> {
    let mut problems = Vec::new();
    let mut wrong = |key: &str, message: String| {
        problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    };
    for message in config.server.check().err().into_iter().flatten() {
        wrong("server", message);
    }
    if let Some(Err(error)) = config.server.admin_token.as_ref().map(SecretSource::read) {
        wrong("server.admin_token", error);
    }
    if let Some(tls) = &config.server.tls
        && let Err(error) = tls.check()
    {
        wrong("server.tls", error.to_string());
    }
    if let Some((key, message)) = admission(config) {
        wrong(key, message);
    }
    if let Err(error) = config.tags.immutable() {
        wrong("tags.immutable", error.to_string());
    }
    for (key, message) in config.egress.check() {
        wrong(&format!("egress.{key}"), message);
    }
    if let Err((key, message)) = config.warm.wanted() {
        wrong(&format!("warm.{key}"), message);
    }
    if config.server.offline && !config.warm.images.is_empty() {
        let message = "server.offline is true: nothing can be fetched, so import a bundle";
        wrong("warm.images", message.to_owned());
    }
    let shared = config.store.shared.as_ref();
    if let Some(peers) = shared.and_then(|shared| shared.peers.as_ref()) {
        for (key, message) in peers.check() {
            wrong(&format!("store.shared.peers.{key}"), message);
        }
    }
    if !(1..=MOST_CONNECTIONS).contains(&config.fill.connections) {
        wrong(
            "fill.connections",
            format!("must be 1 to {MOST_CONNECTIONS}"),
        );
    }
    if config.fill.window < SMALLEST_WINDOW {
        wrong("fill.window", "must be at least 64KiB".to_owned());
    }
    let limits = &config.limits;
    for (key, limit) in [
        ("limits.connect", limits.connect),
        ("limits.first_byte", limits.first_byte),
        ("limits.answer", limits.answer),
        ("limits.idle", limits.idle),
    ] {
        if limit == Duration::ZERO {
            wrong(key, "must be longer than nothing".to_owned());
        }
    }
    for (key, limit) in [
        ("limits.manifest_size", limits.manifest_size),
        ("limits.blob_size", limits.blob_size),
        ("limits.connections", limits.connections as u64),
    ] {
        if limit == 0 {
            wrong(key, "must be more than nothing".to_owned());
        }
    }
    let certificates = config.server.tls.as_ref();
    if certificates.is_none_or(|tls| tls.client_ca.is_none()) {
        for key in by_certificate(config) {
            let message = "no client has a certificate here: say server.tls.client_ca too";
            wrong(&key, message.to_owned());
        }
    }
    for problem in config.grants().err().into_iter().flatten() {
        wrong(&problem.key, problem.message);
    }
    if let Some(shared) = &config.store.shared {
        // Without a client the certificates are at fault, which the upstreams below say.
        let client = store_client(limits, &config.egress, shared.by_proxy()).ok();
        for (key, message) in client.iter().flat_map(|client| shared.check(client)) {
            wrong(&format!("store.shared.{key}"), message);
        }
    }
    problems.extend(Engine::compile(&config.policy).err().into_iter().flatten());
    let mut faults: Vec<_> = problems
        .into_iter()
        .map(|problem| source.locate(problem))
        .collect();

    faults.extend(upstreams(config, &faults));
    faults
}

/// What is wrong with upstreams, and not among what was `said`. The messages name their section
/// themselves.
fn upstreams(config: &Config, said: &[Fault]) -> Vec<Fault> {
    let metrics = Arc::new(Metrics::default());
    let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, &metrics);
    let is_said = |message: &String| {
        let mut said = said.iter();
        said.any(|fault| *message == format!("{}: {}", fault.key, fault.message))
    };
    let messages = upstreams.err().unwrap_or_default().into_iter();
    let fault = |message| Fault {
        line: None,
        column: None,
        key: String::new(),
        message,
    };
    messages
        .filter(|message| !is_said(message))
        .map(fault)
        .collect()
}

/// The keys that know clients by their certificates.
fn by_certificate(config: &Config) -> Vec<String> {
    let is_subject = |client: &String| client.starts_with("mtls:");
    let mut keys = Vec::new();
    for (number, rule) in config.policy.rules.iter().enumerate() {
        if rule.clients.iter().flatten().any(is_subject) {
            keys.push(format!("policy.rules.{number}.clients"));
        }
    }
    for (name, upstream) in &config.upstreams {
        for (number, grant) in upstream.grants.iter().enumerate() {
            if is_subject(&grant.client) {
                keys.push(format!("upstreams.{name}.grants.{number}.client"));
            }
        }
    }
    keys
}

/// What is wrong with `[admission]`, and where.
fn admission(config: &Config) -> Option<(&'static str, String)> {
    let admission = config.admission.as_ref()?;
    match (config.admission_tls(), &admission.tls) {
        (None, _) => Some((
            "admission",
            "API servers speak TLS only: give [admission.tls] or [server.tls]".to_owned(),
        )),
        // That of the server is looked at already.
        (Some(_), None) => None,
        (Some(_), Some(own)) => {
            let error = own.check().err()?;
            Some(("admission.tls", error.to_string()))
        }
    }
}

/// What is right but may not do what it seems to.
#[must_use]
pub fn notes(config: &Config) -> Vec<String> {
    let Ok(policy) = Engine::compile(&config.policy) else {
        return Vec::new();
    };
    let by_tag = policy.refused_by_tag().map(|(rule, pattern)| {
        format!(
            "rule {rule} refuses {pattern} by tag: whoever asks for the digest behind the tag gets \
             it, unless a rule refuses the repository or the digest"
        )
    });
    let mut notes: Vec<_> = by_tag.collect();
    let metrics = Arc::new(Metrics::default());
    let upstreams = Upstreams::new(&config.upstreams, &config.limits, &config.egress, &metrics);
    if let Ok(upstreams) = upstreams {
        let unserved = policy
            .rewrites()
            .filter(|(_, registry)| upstreams.hosts(registry).is_none());
        notes.extend(unserved.map(|(rule, registry)| {
            format!("rule {rule} rewrites to {registry}, which is not served: add [upstreams.\"{registry}\"]")
        }));
    }
    notes
}
