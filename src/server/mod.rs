//! HTTP on our side: what nodes, probes and operators talk to.
//!
//! `listen` accepts and limits connections, `v2` turns a request into a call of the cache,
//! `respond` and `error` turn what comes back into an answer, and `body` with `sendfile` brings a
//! blob's bytes to the socket. `peers` answers other replicas; `admin` is the other address, for
//! operators, and `control` the socket in the store that their commands use; `admission` is one for
//! a cluster's API server.

mod access;
mod admin;
pub mod admission;
mod body;
#[cfg(test)]
mod client;
mod connection;
pub mod control;
mod error;
mod listen;
mod peers;
mod pulse;
mod respond;
mod sendfile;
pub mod tls;
mod v2;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::cache::Cache;
use crate::oci::{HostMap, OwnNames, Registry};
use crate::telemetry::{Metrics, Secret, SecretSource};
use crate::upstream::PeerKey;
use admin::Admin;
use admission::{Admission, Review};
use listen::Listener;
use tls::Tls;
use v2::{Api, Health};

/// How long nobody must have asked for anything before a stopping server is idle.
const QUIET: Duration = Duration::from_secs(2);
/// How long a stopping server lets answers finish.
const DRAIN: Duration = Duration::from_secs(45);
/// An API server's replicas, each with a few connections. Each may hold a review of 8 MiB.
const ADMISSION_CONNECTIONS: usize = 64;
/// Operators are few.
const ADMIN_CONNECTIONS: usize = 64;

/// `[server]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// For nodes.
    pub listen: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
    /// Asked for on the admin address where other machines reach that; probes need none.
    pub admin_token: Option<SecretSource>,
    /// `/metrics` alone on an address of its own.
    pub metrics: Option<SocketAddr>,
    /// How nodes reach us.
    pub url: Option<Url>,
    /// For requests that name no registry.
    pub default_registry: Registry,
    /// Host header -> registry.
    pub hosts: HashMap<String, Registry>,
    /// Offers HTTP/2 on TLS.
    pub http2: bool,
    /// No outbound connection at all; read by the cache.
    pub offline: bool,
    pub tls: Option<tls::Config>,
}

/// The keys of `[limits]` that are the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From a request's head to the head of its answer: containerd gives up after 30 s.
    pub answer: Duration,
    /// Client connections in all.
    pub connections: usize,
    /// Connections of one client address; loopback is exempt.
    pub connections_per_client: usize,
}

/// Sockets that are bound and a certificate that is read, but nothing accepted yet.
#[derive(Debug)]
pub struct Server {
    data: Listener,
    admin: Listener,
    admin_token: Option<Secret<String>>,
    metrics_only: Option<Listener>,
    admission: Option<(Listener, Admission)>,
    /// Those of all listeners.
    tls: Vec<Arc<Tls>>,
    hosts: HostMap,
    limits: Limits,
    cache: Arc<Cache>,
    peers: Option<PeerKey>,
    metrics: Arc<Metrics>,
    ready: watch::Receiver<bool>,
}

/// Where a server listens, with the ports that the system chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub data: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: Option<SocketAddr>,
    pub admission: Option<SocketAddr>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: (Ipv4Addr::LOCALHOST, 5000).into(),
            admin: (Ipv4Addr::LOCALHOST, 5001).into(),
            admin_token: None,
            metrics: None,
            url: None,
            default_registry: Registry::docker_hub(),
            hosts: HashMap::new(),
            http2: false,
            offline: false,
            tls: None,
        }
    }
}

impl Config {
    /// What is wrong with it, beyond what its types already refuse.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if !self.admin.ip().is_loopback() && self.admin_token.is_none() {
            wrong.push(format!(
                "server.admin = \"{}\" is reachable from other machines and needs server.admin_token",
                self.admin
            ));
        }
        if self.http2 && self.tls.is_none() {
            wrong.push("server.http2 is offered on TLS only and needs [server.tls]".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// What the admin address asks for. On loopback it asks for nothing.
    fn token_of_admin(&self) -> Option<SecretSource> {
        let is_open = !self.admin.ip().is_loopback();
        self.admin_token.clone().filter(|_| is_open)
    }

    /// How images are written that come from us.
    #[must_use]
    pub fn own_names(&self) -> OwnNames {
        let mut names = OwnNames::default();
        for (host, registry) in &self.hosts {
            names.add(host, registry.clone());
        }
        let url = self.url.as_ref();
        if let Some((host, port)) =
            url.and_then(|url| url.host_str().zip(url.port_or_known_default()))
        {
            names.add_url(host, port, &self.default_registry);
        }
        names
    }

    fn host_map(&self) -> HostMap {
        HostMap {
            default_registry: self.default_registry.clone(),
            hosts: self
                .hosts
                .iter()
                .map(|(h, r)| (h.to_ascii_lowercase(), r.clone()))
                .collect(),
            own: self
                .url
                .as_ref()
                .and_then(|url| url.host_str())
                .map(str::to_owned),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            answer: Duration::from_secs(25),
            connections: 4096,
            connections_per_client: 256,
        }
    }
}

// === impl Server ===

impl Server {
    /// Reads the certificate and binds every address. `peers` tells other replicas from clients;
    /// `ready` says whether the rest of the
    /// process can serve; `/readyz` shows it.
    pub async fn bind(
        config: &Config,
        limits: Limits,
        cache: Arc<Cache>,
        peers: Option<PeerKey>,
        metrics: Arc<Metrics>,
        ready: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        config
            .check()
            .map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong.join("; ")))?;
        let tls = match config.tls.clone() {
            None => None,
            Some(files) => {
                let http2 = config.http2;
                Some(tokio::task::spawn_blocking(move || Tls::load(files, http2)).await??)
            }
        };
        let admin_token = match config.token_of_admin() {
            None => None,
            Some(token) => {
                let token = tokio::task::spawn_blocking(move || token.read()).await?;
                let wrong = |error| io::Error::other(format!("server.admin_token: {error}"));
                Some(token.map_err(wrong)?)
            }
        };
        let most = (limits.connections, limits.connections_per_client);
        let data = Listener::bind(
            config.listen,
            tls.clone(),
            most,
            metrics.connections.clone(),
        )
        .await?;
        let operators = async |address| {
            let most = (ADMIN_CONNECTIONS, ADMIN_CONNECTIONS);
            Listener::bind(address, None, most, Gauge::default()).await
        };
        Ok(Server {
            data,
            admin: operators(config.admin).await?,
            admin_token,
            metrics_only: match config.metrics {
                Some(address) => Some(operators(address).await?),
                None => None,
            },
            admission: None,
            tls: tls.into_iter().collect(),
            hosts: config.host_map(),
            limits,
            cache,
            peers,
            metrics,
            ready,
        })
    }

    /// Listens for admission reviews too, with `files` as its certificate.
    pub async fn with_admission(
        mut self,
        listen: SocketAddr,
        files: tls::Config,
        review: Review,
    ) -> io::Result<Self> {
        let tls = tokio::task::spawn_blocking(move || Tls::load(files, false)).await??;
        let most = (ADMISSION_CONNECTIONS, ADMISSION_CONNECTIONS);
        let listener =
            Listener::bind(listen, Some(Arc::clone(&tls)), most, Gauge::default()).await?;
        self.admission = Some((listener, Admission::new(review)));
        self.tls.push(tls);
        Ok(self)
    }

    pub fn addresses(&self) -> io::Result<Addresses> {
        Ok(Addresses {
            data: self.data.address()?,
            admin: self.admin.address()?,
            metrics: self
                .metrics_only
                .as_ref()
                .map(Listener::address)
                .transpose()?,
            admission: match &self.admission {
                Some((listener, _)) => Some(listener.address()?),
                None => None,
            },
        })
    }

    /// Serves until `shutdown`, then until every answer has gone out and nobody has asked for
    /// anything for 2 s, at most 45 s. Connections run as tasks of `tracker` and are all about
    /// to end when this returns.
    pub async fn run(self, shutdown: CancellationToken, tracker: &TaskTracker) -> io::Result<()> {
        let Addresses {
            data: address,
            admin,
            metrics,
            admission,
        } = self.addresses()?;
        let metrics_address = metrics.map(tracing::field::display);
        let admission = admission.map(tracing::field::display);
        let tls = self.data.is_secure();
        tracing::info!(%address, %admin, metrics = metrics_address, admission, tls, "listening");

        let stop = CancellationToken::new();
        let health = Health {
            ready: self.ready,
            stopping: shutdown.clone(),
        };
        let metrics = self.metrics;
        let api = Arc::new(Api {
            cache: self.cache,
            hosts: self.hosts,
            metrics: Arc::clone(&metrics),
            answer_within: self.limits.answer,
            health: health.clone(),
            peers: self.peers,
        });
        let admin = Arc::new(Admin::new(Arc::clone(&metrics), health, self.admin_token));
        let mut connections = vec![Arc::clone(&self.data.connections)];
        tracker.spawn(self.data.serve(api, stop.clone(), tracker.clone()));
        tracker.spawn(self.admin.serve(admin, stop.clone(), tracker.clone()));
        if let Some(listener) = self.metrics_only {
            let handler = Arc::new(Admin::metrics_only(Arc::clone(&metrics)));
            tracker.spawn(listener.serve(handler, stop.clone(), tracker.clone()));
        }
        if let Some((listener, handler)) = self.admission {
            connections.push(Arc::clone(&listener.connections));
            tracker.spawn(listener.serve(Arc::new(handler), stop.clone(), tracker.clone()));
        }
        for tls in self.tls {
            let (stop, metrics) = (stop.clone(), Arc::clone(&metrics));
            tracker.spawn(async move { stop.run_until_cancelled(tls.watch(metrics)).await });
        }

        shutdown.cancelled().await;
        tracing::info!("stopping: answers in hand are finished");
        for connections in &connections {
            connections.drain();
        }
        let mut quiet_since = Instant::now();
        let end = quiet_since + DRAIN;
        while quiet_since.elapsed() < QUIET && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if connections
                .iter()
                .any(|connections| connections.in_use() > 0)
            {
                quiet_since = Instant::now();
            }
        }
        stop.cancel();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn defaults_are_local() {
        let config = config("");
        assert_eq!(config.listen, "127.0.0.1:5000".parse().unwrap());
        assert_eq!(config.admin, "127.0.0.1:5001".parse().unwrap());
        assert_eq!(config.default_registry.as_str(), "docker.io");
        config.check().unwrap();
    }

    #[test]
    fn every_key_is_read_and_no_other() {
        let config = config(
            r#"
            listen = "0.0.0.0:5000"
            admin = "[::1]:5001"
            admin_token = { file = "/run/secrets/admin" }
            metrics = "0.0.0.0:9102"
            url = "https://Images.corp.example:5000"
            default_registry = "registry.k8s.io"
            hosts = { "Hub.corp.example" = "index.docker.io" }
            http2 = true
            offline = true
            [tls]
            certificate = "tls.crt"
            key = "tls.key"
            client_ca = "clients.pem"
            "#,
        );
        config.check().unwrap();
        let hosts = config.host_map();
        assert_eq!(hosts.own.as_deref(), Some("images.corp.example"));
        assert_eq!(hosts.hosts["hub.corp.example"].as_str(), "docker.io");
        assert_eq!(hosts.default_registry.as_str(), "registry.k8s.io");
        toml::from_str::<Config>("listens = 3").unwrap_err();
    }

    #[test]
    fn an_open_admin_address_needs_a_token() {
        let open = r#"admin = "0.0.0.0:5001""#;
        let wrong = config(open).check().unwrap_err();
        assert!(wrong[0].contains("server.admin_token"), "{wrong:?}");
        config(&format!("{open}\nadmin_token = \"x\""))
            .check()
            .unwrap();
        config("http2 = true").check().unwrap_err();
    }
}
