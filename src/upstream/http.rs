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
}

/// Builds clients, one pair for each distinct setting: every build reads the system's
/// certificates again.
#[derive(Debug)]
pub(super) struct Factory<'a> {
    limits: &'a Limits,
    egress: &'a Egress,
    built: HashMap<(Vec<PathBuf>, Vec<IpNet>), Arc<Clients>>,
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

/// The client for the shared store, private endpoints and identity services included. Blocking:
/// reads certificates.
///
/// # Errors
///
/// Names the file of `egress.ca_files` that cannot be used.
pub fn store_client(limits: &Limits, egress: &Egress) -> Result<Client, String> {
    let private = PRIVATE.iter().filter_map(|network| network.parse().ok());
    let config = Config {
        allow_addresses: private.collect(),
        ..Config::default()
    };
    let clients = Factory::new(limits, egress).clients(&config)?;
    Ok(clients.blobs.clone())
}

// === impl Factory ===

impl<'a> Factory<'a> {
    pub(super) fn limits(&self) -> &Limits {
        self.limits
    }

    pub(super) fn new(limits: &'a Limits, egress: &'a Egress) -> Self {
        Factory {
            limits,
            egress,
            built: HashMap::new(),
        }
    }

    /// The clients for one upstream. Blocking: reads certificates.
    pub(super) fn clients(&mut self, config: &Config) -> Result<Arc<Clients>, String> {
        let joined = |ours: &[PathBuf], theirs: &[PathBuf]| [ours, theirs].concat();
        let ca_files = joined(&self.egress.ca_files, &config.ca_files);
        let allowed = [&self.egress.allow_addresses[..], &config.allow_addresses].concat();
        let key = (ca_files, allowed);
        if let Some(clients) = self.built.get(&key) {
            return Ok(Arc::clone(clients));
        }
        let (ca_files, allowed) = &key;
        let certificates = read_all_certificates(ca_files)?;
        let guard = Arc::new(AddressGuard {
            allowed: allowed.clone(),
            public: true,
        });
        let build = |blobs| self.client(blobs, &certificates, Arc::clone(&guard));
        let clients = Arc::new(Clients {
            general: build(false)?,
            blobs: build(true)?,
        });
        self.built.insert(key, Arc::clone(&clients));
        Ok(clients)
    }

    /// The client for other replicas, which are in these networks and nowhere else. Blocking:
    /// reads certificates.
    pub(super) fn peers(&self, networks: &[IpNet]) -> Result<Client, String> {
        let certificates = read_all_certificates(&self.egress.ca_files)?;
        let guard = AddressGuard {
            allowed: networks.to_vec(),
            public: false,
        };
        self.client(true, &certificates, Arc::new(guard))
    }

    fn client(
        &self,
        blobs: bool,
        certificates: &[Certificate],
        guard: Arc<AddressGuard>,
    ) -> Result<Client, String> {
        let mut headers = HeaderMap::new();
        // Bytes must arrive as they are, or they do not hash.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        #[expect(clippy::disallowed_methods, reason = "this is that one place")]
        let builder = Client::builder()
            .user_agent(USER_AGENT)
            .default_headers(headers)
            .tls_certs_merge(certificates.iter().cloned())
            .dns_resolver(guard)
            .connect_timeout(self.limits.connect)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(60))
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(64);
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
