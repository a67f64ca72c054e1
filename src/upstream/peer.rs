//! Other replicas of this proxy: a blob from the one that is filling it for all.
//!
//! A request between replicas is a GET or HEAD of `/v2/_peer/blobs/<digest>`, a name that no
//! repository can have, with
//!
//! ```text
//! Authorization: Portcullis t=<unix seconds>,mac=<hex>
//! ```
//!
//! where `mac` is HMAC-SHA256 under the peers' secret over four lines joined by `\n`: the method,
//! the path, the value of `Range` or nothing, and `t`. A request is good for five minutes either
//! way. The secret itself never travels.
//!
//! Peers are dialled inside the configured networks only, whatever address a claim says: the
//! resolver drops what is outside, and an IP literal, which meets no resolver, is judged here.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use http::header::{AUTHORIZATION, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use ipnet::IpNet;
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use reqwest::Client;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use url::Url;

use super::blob::BlobResponse;
use super::config::{Egress, Limits};
use super::egress::{authority, literal};
use super::http::Factory;
use super::proxy::Way;
use super::request::Answer;
use super::{BODIES, UpstreamError, UpstreamErrorKind};
use crate::oci::Digest;
use crate::telemetry::ledger::{Dial, Ledger, Purpose, Refusal};
use crate::telemetry::metrics::{NearLabels, NearSource};
use crate::telemetry::{Metrics, Secret};

/// In front of a digest, the path of a request between replicas.
pub const PEER_BLOBS: &str = "/v2/_peer/blobs/";
const SCHEME: &str = "Portcullis";
/// How far apart the clocks of two replicas may be, in seconds.
const SKEW: u64 = 300;
/// A replica is near: one that takes longer is not there.
const CONNECT: Duration = Duration::from_secs(2);

/// What replicas sign their requests to each other with, and where they may be.
#[derive(Clone)]
pub struct PeerKey {
    key: hmac::Key,
    networks: Vec<IpNet>,
}

/// How other replicas are reached.
#[derive(Debug)]
pub struct Peers {
    client: Client,
    key: PeerKey,
    limits: Limits,
    bodies: Arc<Semaphore>,
    received: Counter,
    ledger: Arc<Ledger>,
}

// === impl PeerKey ===

impl PeerKey {
    #[must_use]
    pub fn new(secret: &Secret<String>, networks: Vec<IpNet>) -> Self {
        PeerKey {
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()),
            networks,
        }
    }

    /// Whether a peer may be at this address.
    #[must_use]
    pub fn is_inside(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// Whether headers are those of a request between replicas, genuine or not.
    #[must_use]
    pub fn is_claimed(headers: &HeaderMap) -> bool {
        headers.get_all(AUTHORIZATION).iter().any(|value| {
            let scheme = value.as_bytes().split(|byte| *byte == b' ').next();
            scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME.as_bytes()))
        })
    }

    /// Whether a replica that knows the secret has signed this request within the last minutes.
    #[must_use]
    pub fn is_genuine(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        self.verify(method, path, headers, Timestamp::now().as_second())
    }

    pub(super) fn verify(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        now: i64,
    ) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let signed = value.to_str().ok().and_then(|value| {
            let (t, mac) = value.strip_prefix(SCHEME)?.split_once(',')?;
            let t: i64 = t.strip_prefix(" t=")?.parse().ok()?;
            Some((t, from_hex(mac.strip_prefix("mac=")?)?))
        });
        let Some((t, mac)) = signed else {
            return false;
        };
        let mut ranges = headers.get_all(RANGE).iter();
        let range = ranges.next().map(|range| range.to_str());
        let (Ok(range), None) = (range.unwrap_or(Ok("")), ranges.next()) else {
            return false;
        };
        let text = to_sign(method, path, range, t);
        // In constant time.
        t.abs_diff(now) <= SKEW && hmac::verify(&self.key, text.as_bytes(), &mac).is_ok()
    }

    pub(super) fn authorization(&self, method: &Method, path: &str, range: &str, t: i64) -> String {
        let mac = hmac::sign(&self.key, to_sign(method, path, range, t).as_bytes());
        let mut hex = String::new();
        for byte in mac.as_ref() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        format!("{SCHEME} t={t},mac={hex}")
    }
}

impl std::fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerKey")
            .field("networks", &self.networks)
            .finish_non_exhaustive()
    }
}

fn to_sign(method: &Method, path: &str, range: &str, t: i64) -> String {
    format!("{method}\n{path}\n{range}\n{t}")
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

// === impl Peers ===

impl Peers {
    /// Blocking: reads certificates.
    ///
    /// # Errors
    ///
    /// Names the file of `egress.ca_files` that cannot be used.
    pub fn new(
        key: PeerKey,
        limits: &Limits,
        egress: &Egress,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let limits = Limits {
            connect: limits.connect.min(CONNECT),
            ..limits.clone()
        };
        let client = Factory::new(&limits, egress, Way::default()).peers(&key.networks)?;
        let source = NearSource::Peer;
        let received = metrics
            .near_received
            .get_or_create(&NearLabels { source })
            .clone();
        Ok(Peers {
            client,
            key,
            limits,
            bodies: Arc::new(Semaphore::new(BODIES)),
            received,
            ledger: Arc::clone(&metrics.ledger),
        })
    }

    /// What the replica at `peer` has of a blob: a GET of the whole or of a range, on a connection
    /// of its own. Answers within `limits.first_byte`. Cancel-safe.
    pub async fn blob(
        &self,
        peer: &Url,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobResponse, UpstreamError> {
        let host = authority(peer);
        let work = self.try_blob(peer, &host, digest, range.as_ref());
        work.await.map_err(|kind| UpstreamError {
            registry: format!("the replica at {host}"),
            kind,
        })
    }

    async fn try_blob(
        &self,
        peer: &Url,
        host: &str,
        digest: &Digest,
        range: Option<&Range<u64>>,
    ) -> Result<BlobResponse, UpstreamErrorKind> {
        let dial = Dial {
            host: peer.host_str().unwrap_or_default(),
            port: peer.port_or_known_default().unwrap_or_default(),
            owner: "store.shared.peers",
            purpose: Purpose::Peer,
        };
        let note = |_: &_| self.ledger.refused(&dial, Refusal::NotListed);
        self.check(peer, host).inspect_err(note)?;
        let path = format!("{PEER_BLOBS}{digest}");
        let url = peer
            .join(&path)
            .map_err(|error| UpstreamErrorKind::Invalid(format!("{host} makes no URL: {error}")))?;
        let bytes =
            range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let bytes = bytes.as_deref().unwrap_or_default();
        let now = Timestamp::now().as_second();
        let authorization = self.key.authorization(&Method::GET, &path, bytes, now);
        let mut request = reqwest::Request::new(Method::GET, url);
        let headers = [(AUTHORIZATION, authorization.as_str()), (RANGE, bytes)];
        for (name, value) in headers.into_iter().filter(|(_, value)| !value.is_empty()) {
            let value = HeaderValue::try_from(value)
                .map_err(|error| UpstreamErrorKind::Invalid(format!("{name}: {error}")))?;
            request.headers_mut().insert(name, value);
        }
        let limit = self.limits.first_byte;
        let row = self.ledger.row(&dial);
        row.asked();
        let response = match timeout(limit, self.client.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let kind = UpstreamErrorKind::of_request(&error, host, "");
                if matches!(kind, UpstreamErrorKind::HostRefused(_)) {
                    self.ledger.withdraw(&row, Refusal::NotListed);
                } else {
                    row.failed();
                }
                return Err(outside(kind, host));
            }
            Err(_) => {
                row.failed();
                return Err(UpstreamErrorKind::TimedOut(format!(
                    "{host} did not begin to answer within {limit:?}"
                )));
            }
        };
        let answer = Answer::new(
            response,
            host.to_owned(),
            self.limits.idle,
            self.received.clone(),
            row,
        );
        let answer = answer.success().await?;
        BlobResponse::judge(answer, range, host, self.limits.blob_size)
    }

    /// Nothing is dialled that is outside, and nothing that could be another protocol.
    fn check(&self, peer: &Url, host: &str) -> Result<(), UpstreamErrorKind> {
        let spelled = literal(peer).is_none_or(|address| self.key.is_inside(address));
        let plain = peer.username().is_empty() && peer.password().is_none();
        if matches!(peer.scheme(), "http" | "https") && plain && spelled {
            return Ok(());
        }
        Err(outside(UpstreamErrorKind::HostRefused(String::new()), host))
    }

    /// A permit to have one more body in flight; waits for it. Cancel-safe.
    pub async fn body_permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.bodies).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// The same without waiting.
    #[must_use]
    pub fn try_body_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bodies).try_acquire_owned().ok()
    }
}

/// Says which line of the configuration refuses a peer's address.
fn outside(kind: UpstreamErrorKind, host: &str) -> UpstreamErrorKind {
    match kind {
        UpstreamErrorKind::HostRefused(_) => UpstreamErrorKind::HostRefused(format!(
            "{host} is not inside the networks of [store.shared.peers]"
        )),
        kind => kind,
    }
}
