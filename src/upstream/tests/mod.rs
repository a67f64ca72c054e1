//! The client against servers that behave badly: each test says what must arrive where, and what
//! must not.

mod auth;
mod blobs;
mod config;
mod egress;
mod endpoints;
mod faults;
mod gate;
mod limits;
mod logins;
mod manifests;
mod peer;
mod proxy;
mod quirks;
mod redirects;
pub(super) mod server;
mod tags;
mod tls;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use super::{Config, Egress, Limits, Upstream, UpstreamErrorKind, Upstreams};
use crate::oci::{Digest, Reference, Registry, RepositoryName};
use crate::telemetry::Metrics;
use server::{Reply, Request, Server, Then};

const NAME: &str = "registry.example";

/// As `main` does it for the process.
pub(super) fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

fn upstreams(toml: &str, limits: &Limits) -> Result<Upstreams, Vec<String>> {
    upstreams_by(&Egress::default(), toml, limits)
}

fn upstreams_by(egress: &Egress, toml: &str, limits: &Limits) -> Result<Upstreams, Vec<String>> {
    install_crypto();
    let entries: BTreeMap<String, Config> = toml::from_str(toml).unwrap();
    Upstreams::new(&entries, limits, egress, &Arc::new(Metrics::default()))
}

/// `registry.example` at `server`, with further lines for its entry.
fn upstream_with(server: &Server, more: &str, limits: &Limits) -> Arc<Upstream> {
    let url = server.url();
    let toml = format!("[\"{NAME}\"]\nendpoints = [\"{url}\"]\ninsecure = true\n{more}");
    upstreams(&toml, limits)
        .unwrap()
        .get(&registry(NAME))
        .unwrap()
}

fn upstream(server: &Server, more: &str) -> Arc<Upstream> {
    upstream_with(server, more, &Limits::default())
}

fn registry(name: &str) -> Registry {
    name.parse().unwrap()
}

fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

fn tag(tag: &str) -> Reference {
    tag.parse().unwrap()
}

fn digest() -> Digest {
    Digest::sha256(b"")
}

/// The kind of a call's failure, after a look at its text: no error shows what must stay hidden.
fn kind<T: std::fmt::Debug>(result: Result<T, super::UpstreamError>) -> UpstreamErrorKind {
    let error = result.unwrap_err();
    let shown = format!("{error} {error:?}");
    for secret in ["hunter2", "t0ken", "sig=", "?"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    error.kind
}

async fn get(upstream: &Upstream, name: &str) -> Result<Vec<u8>, super::UpstreamError> {
    let manifest = upstream
        .manifest(&repository(name), &tag("latest"), &[])
        .await?;
    Ok(manifest.bytes.to_vec())
}
