//! The one place that builds HTTP clients.
//!
//! What every request to the outside has in common is decided here: who we trust, how long we
//! wait for a connection, that addresses are screened, and that the library does nothing on its
//! own that we would rather decide (redirects, decompression, proxies from the environment,
//! retries).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use ipnet::IpNet;
use reqwest::{Certificate, Client, redirect, retry};

use super::config::{Config, Egress, Limits};
use super::egress::AddressGuard;
use super::proxy::Way;

/// Constant, so that nothing about us or our clients can be read from it.
const USER_AGENT: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

/// The two ways to talk to a host. They share no connections.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    /// For small answers: many of them share one HTTP/2 connection where the host offers it.
    pub(super) general: Client,
    /// For blobs: HTTP/1.1 alone, so that each body in flight has a connection and a TCP window
    /// to itself. Idle connections stay open for the next window of the same blob.
    pub(super) blobs: Client,
    pub(super) way: Way,
}

/// Builds clients, one pair for each distinct setting: every build reads the system's
/// certificates again.
#[derive(Debug)]
pub(super) struct Factory<'a> {
    limits: &'a Limits,
    egress: &'a Egress,
    way: Way,
    built: HashMap<(Vec<PathBuf>, Vec<IpNet>, /* past the proxy */ bool), Arc<Clients>>,
}

/// Where a private endpoint of an object store may be. Not the link-local networks: what answers
/// there gives out identities, and is dialled by its address or not at all.
const PRIVATE: [&str; 6] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
];

/// The client for the shared store, private endpoints and identity services included: directly, or
/// `by_proxy` where there is one (which identity services never see). Blocking: reads certificates
/// and secrets.
///
/// # Errors
///
/// Names the key of `[egress]` that cannot be used.
pub fn store_client(limits: &Limits, egress: &Egress, by_proxy: bool) -> Result<Client, String> {
    let way = if by_proxy {
        way_out(egress).map_err(|wrong| wrong.join("\n"))?
    } else {
        Way::default()
    };
    let private = PRIVATE.iter().filter_map(|network| network.parse().ok());
    let config = Config {
        allow_addresses: private.collect(),
        ..Config::default()
    };
    let clients = Factory::new(limits, egress, way.except_identities()).clients(&config)?;
    Ok(clients.blobs.clone())
}

/// The way that `[egress]` says. Blocking: reads the proxy's password.
///
/// # Errors
///
/// One line for each key that is wrong.
pub(super) fn way_out(egress: &Egress) -> Result<Way, Vec<String>> {
    let line = |(key, message): (&str, String)| format!("egress.{key}: {message}");
    let way = Way::new(egress, |name| std::env::var(name).ok());
    way.map_err(|wrong| wrong.into_iter().map(line).collect())
}

// === impl Factory ===

impl<'a> Factory<'a> {
    pub(super) fn limits(&self) -> &Limits {
        self.limits
    }

    /// Whether this upstream's requests go past every proxy.
    pub(super) fn is_direct(&self, config: &Config) -> bool {
        config.proxy.is_some() || self.way.is_direct()
    }

    /// Whether somebody said that the proxy refuses internal targets.
    pub(super) fn proxy_filters(&self) -> bool {
        self.egress.proxy_filters
    }

    /// Upstreams go out by `way` unless they say otherwise.
    pub(super) fn new(limits: &'a Limits, egress: &'a Egress, way: Way) -> Self {
        Factory {
            limits,
            egress,
            way,
            built: HashMap::new(),
        }
    }

    /// The clients for one upstream. Blocking: reads certificates.
    pub(super) fn clients(&mut self, config: &Config) -> Result<Arc<Clients>, String> {
        let joined = |ours: &[PathBuf], theirs: &[PathBuf]| [ours, theirs].concat();
        let ca_files = joined(&self.egress.ca_files, &config.ca_files);
        let allowed = [&self.egress.allow_addresses[..], &config.allow_addresses].concat();
        let key = (ca_files, allowed, config.proxy.is_some());
        if let Some(clients) = self.built.get(&key) {
            return Ok(Arc::clone(clients));
        }
        let (ca_files, allowed, past) = &key;
        let certificates = read_all_certificates(ca_files)?;
        let guard = AddressGuard {
            allowed: allowed.clone(),
            public: true,
        };
        let way = if *past {
            Way::default()
        } else {
            self.way.clone()
        };
        let build = |blobs| self.client(blobs, &certificates, &guard, &way);
        let clients = Arc::new(Clients {
            general: build(false)?,
            blobs: build(true)?,
            way: way.clone(),
        });
        self.built.insert(key, Arc::clone(&clients));
        Ok(clients)
    }

    /// The client for other replicas, which are in these networks and nowhere else, and never behind
    /// a proxy. Blocking: reads certificates.
    pub(super) fn peers(&self, networks: &[IpNet]) -> Result<Client, String> {
        let certificates = read_all_certificates(&self.egress.ca_files)?;
        let guard = AddressGuard {
            allowed: networks.to_vec(),
            public: false,
        };
        self.client(true, &certificates, &guard, &Way::default())
    }

    fn client(
        &self,
        blobs: bool,
        certificates: &[Certificate],
        guard: &AddressGuard,
        way: &Way,
    ) -> Result<Client, String> {
        let mut headers = HeaderMap::new();
        // Bytes must arrive as they are, or they do not hash.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        #[expect(clippy::disallowed_methods, reason = "this is that one place")]
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers)
            .tls_certs_merge(certificates.iter().cloned())
            .connect_timeout(self.limits.connect)
            // A connection that was good and is dead now is found out as soon as a new one would be.
            .tcp_user_timeout(self.limits.connect)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(64);
        let builder = way
            .lay(builder, guard.clone())
            .map_err(|error| format!("egress.proxy: {error}"))?;
        let built = if blobs {
            builder.http1_only().build()
        } else {
            builder
                .http2_adaptive_window(true)
                .http2_max_header_list_size(64 << 10)
                // Or requests would keep going into a connection that died silently.
                .http2_keep_alive_interval(Duration::from_secs(20))
                .http2_keep_alive_timeout(self.limits.connect)
                .build()
        };
        built.map_err(|error| format!("no HTTP client can be made: {error}"))
    }
}

/// The clients for the identity service of the machine, which is dialled by its address: they look up
/// no name and know no proxy.
pub(super) fn identity_clients(limits: &Limits) -> Result<Arc<Clients>, String> {
    let guard = AddressGuard {
        allowed: Vec::new(),
        public: false,
    };
    #[expect(clippy::disallowed_methods, reason = "this is that one place")]
    let client = Client::builder()
        .user_agent(USER_AGENT)
        .dns_resolver(Arc::new(guard))
        .connect_timeout(limits.connect)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .no_proxy()
        .http1_only()
        .build();
    let client = client.map_err(|error| format!("no HTTP client can be made: {error}"))?;
    Ok(Arc::new(Clients {
        general: client.clone(),
        blobs: client,
        way: Way::default(),
    }))
}

fn read_all_certificates(paths: &[PathBuf]) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    for path in paths {
        certificates.extend(read_certificates(path)?);
    }
    Ok(certificates)
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let place = path.display();
    let pem = std::fs::read(path).map_err(|error| format!("{place}: {error}"))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("{place}: no certificate in it (PEM is expected)"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{place}: {error}")),
    }
}
