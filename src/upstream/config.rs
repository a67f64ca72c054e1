//! The parts of the configuration that say how upstreams are reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;

use super::credentials::{CredentialSource, LoginConfig, ShareWith};
use super::egress::HostPattern;
use super::proxy::{ProxyUrl, Way};
use crate::telemetry::SecretSource;
use crate::units;

/// `[limits]`. Times bound requests to upstreams unless they say otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// To have a connection: DNS, TCP and TLS together.
    #[serde(deserialize_with = "units::duration")]
    pub connect: Duration,
    /// To have a response header, per try.
    #[serde(deserialize_with = "units::duration")]
    pub first_byte: Duration,
    /// Until we answer: token, redirects and all tries together. containerd gives up at 30 s.
    #[serde(deserialize_with = "units::duration")]
    pub answer: Duration,
    /// Silence inside a body. There is no limit on the time of a whole body.
    #[serde(deserialize_with = "units::duration")]
    pub idle: Duration,
    /// Bytes of a manifest.
    #[serde(deserialize_with = "units::size")]
    pub manifest_size: u64,
    /// Bytes of a blob.
    #[serde(deserialize_with = "units::size")]
    pub blob_size: u64,
    /// Open connections of clients; enforced by the listener.
    pub connections: usize,
}

/// `[egress]`: what holds for every upstream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// The single way out. Nothing goes past it, and nothing goes out while it is down.
    pub proxy: Option<ProxyUrl>,
    /// A login for `proxy`, where its URL has none.
    pub proxy_username: Option<String>,
    pub proxy_password: Option<SecretSource>,
    /// The proxy refuses internal targets by itself. Said aloud, it lets names into `"*"` whose
    /// addresses only the proxy sees.
    pub proxy_filters: bool,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment count.
    pub from_environment: bool,
    /// PEM files with certificates to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Networks that the address guard lets through.
    pub allow_addresses: Vec<IpNet>,
}

/// One entry of `[upstreams]`. A name of the known table needs only what differs: its lists of
/// hosts are added to the table's, its endpoints replace the table's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tried in order. Default: the table's, or the registry's own name.
    pub endpoints: Vec<Url>,
    /// Hosts that tokens may be asked of, beside the endpoints.
    pub auth_hosts: Vec<HostPattern>,
    /// Hosts that redirects may lead to, beside the endpoints.
    pub redirect_hosts: Vec<HostPattern>,
    /// Internal networks that the endpoints and the hosts on the lists may be in.
    pub allow_addresses: Vec<IpNet>,
    pub username: Option<String>,
    pub password: Option<SecretSource>,
    /// Where a login comes from, in place of user name and password.
    pub credential: Option<CredentialSource>,
    /// Logins for parts of the registry, by the beginning of their repositories' names.
    pub logins: BTreeMap<String, LoginConfig>,
    /// Must be said of every login: who sees what it may see.
    pub share_with: Option<ShareWith>,
    /// Or who may read which of its repositories; enforced by the cache.
    pub grants: Vec<GrantConfig>,
    /// While fewer requests than this are left of the upstream's rate limit, as it says itself
    /// (`ratelimit-remaining`), tags are served stale instead of being revalidated.
    pub ratelimit_floor: u64,
    /// PEM files with certificates to trust beside the system's and `[egress]`'s.
    pub ca_files: Vec<PathBuf>,
    /// Allows `http://` for the hosts of this upstream; credentials then go to loopback only.
    pub insecure: bool,
    /// `"none"`: goes past the egress proxy, as to a private endpoint.
    pub proxy: Option<NoProxy>,
}

/// One entry of `grants`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantConfig {
    /// A network, or the subject of a client certificate: `mtls:CN=team-a`.
    pub client: String,
    /// Like names in rules, without the registry: `team-a/**`.
    pub repositories: Vec<String>,
}

/// What an upstream may say about the egress proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoProxy {
    None,
}

// === impl Egress ===

impl Egress {
    /// What is wrong with the way out, each with its key. Blocking: reads the proxy's password.
    #[must_use]
    pub fn check(&self) -> Vec<(&'static str, String)> {
        let way = Way::new(self, |name| std::env::var(name).ok());
        way.err().unwrap_or_default()
    }
}

// === impl Config ===

impl Config {
    /// Whether anything in here is a login.
    pub(super) fn has_login(&self) -> bool {
        let own = self.username.is_some() || self.password.is_some() || self.credential.is_some();
        own || !self.logins.is_empty()
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(15),
            answer: Duration::from_secs(25),
            idle: Duration::from_secs(30),
            manifest_size: 4 << 20,
            blob_size: 64 << 30,
            connections: 4096,
        }
    }
}
