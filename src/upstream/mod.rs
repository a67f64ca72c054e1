//! How registries are reached: our own client of the distribution API, on reqwest.
//!
//! [`Upstreams`] is the closed world of registries that are served; [`Upstream`] is one of them
//! with its calls. A call goes through the files in this order:
//!
//! - `retry`: up to three tries within a budget, all inside `limits.answer`;
//! - `ask`: when the upstream wants to be asked (`pace`), the endpoints in order that are not known
//!   to be down (`health`), and one answer to a challenge (`auth`, with a login from `credentials`);
//! - `request`: one request and its redirects, each target judged by `egress` before it is used;
//! - `http`: the clients, whose resolver screens addresses; `proxy`: their way out;
//! - `blob`, `tags`: what the answer must look like.
//!
//! [`Peers`] are other replicas of this proxy, dialled with the same care.
//!
//! Nothing of a client's request is passed on but the name, the reference and the media types
//! that it accepts. What comes back is bounded and typed, but not yet judged: whether bytes have
//! their digest is the caller's question.

mod ask;
mod auth;
mod blob;
mod config;
mod credentials;
mod egress;
pub mod error;
mod health;
mod hosts;
mod http;
pub mod known;
mod meter;
mod pace;
mod peer;
mod proxy;
mod referrers;
mod registries;
mod request;
mod retry;
mod tags;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ::http::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE, WARNING};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use url::Url;

use crate::oci::range::parse_content_range;
use crate::oci::{Digest, Reference, Registry, RepositoryName};
use crate::telemetry::metrics::UpstreamRequest;

use auth::Auth;
use health::Health;
use pace::Pace;
use request::{Answer, Call, Transport};
use retry::Retries;

pub use blob::{BlobBody, BlobResponse};
pub use config::{Config, Egress, GrantConfig, Limits, NoProxy};
pub use credentials::{CredentialSource, LoginConfig, ShareWith};
pub use egress::{HostPattern, InvalidHost};
pub use error::{UpstreamError, UpstreamErrorKind};
pub use hosts::{HostBook, Listed};
pub use http::store_client;
pub use peer::{PEER_BLOBS, PeerKey, Peers};
pub use proxy::{InvalidProxy, ProxyUrl};
pub use registries::{HostLists, Served, Upstreams};
pub use tags::TagList;

/// Bodies of blobs in flight per upstream.
const BODIES: usize = 32;
/// Bytes of `Warning` values that are passed on with one manifest.
const WARNINGS: usize = 4 << 10;

/// One registry. Every call is cancel-safe and answers within `limits.answer`.
pub struct Upstream {
    registry: Registry,
    transport: Transport,
    auth: Auth,
    health: Health,
    pace: Pace,
    retries: Retries,
    /// Where the bytes of a blob were found by redirect: asked directly until it fails.
    found: moka::sync::Cache<(RepositoryName, Digest), Url>,
    bodies: Arc<Semaphore>,
}

/// A manifest as it came, not yet judged. At most `limits.manifest_size` bytes.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub bytes: Bytes,
    pub content_type: Option<String>,
    /// Values of `Warning: 299`, printable, at most 4 KiB together.
    pub warnings: Vec<String>,
}

/// What a HEAD said.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `Docker-Content-Digest`: a hint only. None where it is malformed.
    pub digest: Option<Digest>,
    pub content_type: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
}

// === impl Upstream ===

impl Upstream {
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// One manifest by tag or digest. `accept` are the media types to ask for.
    pub async fn manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &[String],
    ) -> Result<FetchedManifest, UpstreamError> {
        let call = manifest_call(Method::GET, name, reference, accept);
        let work = self.retries.run(|| self.try_manifest(name, &call));
        self.in_turn(call.kind, work).await
    }

    async fn try_manifest(
        &self,
        name: &RepositoryName,
        call: &Call,
    ) -> Result<FetchedManifest, UpstreamErrorKind> {
        let answer = self.ask(name, call).await?.success().await?;
        let content_type = answer.header(CONTENT_TYPE).map(str::to_owned);
        let warnings = warnings(answer.headers());
        let bytes = answer
            .read(self.transport.limits.manifest_size, "a manifest")
            .await?;
        Ok(FetchedManifest {
            bytes,
            content_type,
            warnings,
        })
    }

    /// What the upstream says of a manifest without sending it (where HEAD is refused, the header
    /// of a GET). HEAD is free of Docker Hub's rate limit.
    pub async fn probe_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
        accept: &[String],
    ) -> Result<Probe, UpstreamError> {
        let head = manifest_call(Method::HEAD, name, reference, accept);
        let get = Call {
            method: Method::GET,
            ..head.clone()
        };
        let work = self.retries.run(|| self.try_probe(name, &head, &get));
        self.in_turn(head.kind, work).await
    }

    /// What the upstream says of a blob without sending it: HEAD, and where HEAD is refused a GET
    /// of one byte.
    pub async fn probe_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<Probe, UpstreamError> {
        let head = blob_call(Method::HEAD, name, digest, None);
        let get = blob_call(Method::GET, name, digest, Some(&(0..1)));
        let work = self.retries.run(|| self.try_probe(name, &head, &get));
        self.in_turn(head.kind, work).await
    }

    async fn try_probe(
        &self,
        name: &RepositoryName,
        head: &Call,
        get: &Call,
    ) -> Result<Probe, UpstreamErrorKind> {
        let mut answer = self.ask(name, head).await?;
        if refuses_head(&answer) {
            answer = self.ask(name, get).await?;
        }
        let empty = answer.header(CONTENT_RANGE) == Some("bytes */0");
        let size = match answer.status() {
            // Nothing has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if empty => Some(0),
            StatusCode::PARTIAL_CONTENT => answer
                .header(CONTENT_RANGE)
                .and_then(parse_content_range)
                .and_then(|(_, total)| total),
            _ => {
                answer = answer.success().await?;
                answer.content_length()
            }
        };
        let digest = answer.header(HeaderName::from_static("docker-content-digest"));
        Ok(Probe {
            // Some write it in capitals.
            digest: digest.and_then(|digest| digest.to_ascii_lowercase().parse().ok()),
            content_type: answer.header(CONTENT_TYPE).map(str::to_owned),
            size,
        })
    }

    /// One GET of a blob, or of a range of it, over HTTP/1.1 on a connection of its own. `range`
    /// None sends no Range header. A 206 that is not what was asked for is
    /// [`UpstreamErrorKind::Invalid`].
    ///
    /// A redirect's target is remembered for the next ranges and asked directly until it fails.
    pub async fn blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobResponse, UpstreamError> {
        self.any_blob(name, digest, range, false).await
    }

    /// The same for a download that this upstream has answered before: a rate limit that others ran
    /// into does not stop it, and where every endpoint has failed it waits a few seconds for one to
    /// come back.
    pub async fn blob_again(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
    ) -> Result<BlobResponse, UpstreamError> {
        self.any_blob(name, digest, range, true).await
    }

    async fn any_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        range: Option<Range<u64>>,
        resumes: bool,
    ) -> Result<BlobResponse, UpstreamError> {
        let call = Call {
            resumes,
            ..blob_call(Method::GET, name, digest, range.as_ref())
        };
        let key = (name.clone(), *digest);
        let work = async {
            if let Some(url) = self.found.get(&key) {
                let left_origin = &mut false;
                let answer = Box::pin(self.transport.follow(&call, url, None, left_origin)).await;
                self.count(&call, &answer);
                match answer.and_then(|answer| self.judge_blob(answer, range.as_ref())) {
                    Ok(response) => return Ok(response),
                    Err(error) => tracing::debug!(%error, "a redirect's target is forgotten"),
                }
                self.found.invalidate(&key);
            }
            let attempt = || self.try_blob(&key, &call, range.as_ref());
            self.retries.run(attempt).await
        };
        let deadline = Instant::now() + self.transport.limits.answer;
        self.bounded(call.kind, deadline, work).await
    }

    async fn try_blob(
        &self,
        key: &(RepositoryName, Digest),
        call: &Call,
        range: Option<&Range<u64>>,
    ) -> Result<BlobResponse, UpstreamErrorKind> {
        let answer = self.ask(&key.0, call).await?.success().await?;
        let redirected = answer.left_origin.then(|| answer.url().clone());
        let response = self.judge_blob(answer, range)?;
        if let Some(url) = redirected {
            self.found.insert(key.clone(), url);
        }
        Ok(response)
    }

    fn judge_blob(
        &self,
        answer: Answer,
        range: Option<&Range<u64>>,
    ) -> Result<BlobResponse, UpstreamErrorKind> {
        let limit = self.transport.limits.blob_size;
        BlobResponse::judge(answer, range, self.registry.as_str(), limit)
    }

    /// The rate limit that is in force: whatever is new would be refused with this, unasked.
    #[must_use]
    pub fn limit(&self) -> Option<UpstreamError> {
        Some(self.error(self.pace.limit()?))
    }

    /// Whether what is left of the upstream's rate limit is below `ratelimit_floor`: then only what
    /// is not cached is worth a request. False for one request every 15 minutes all the same.
    #[must_use]
    pub fn must_spare(&self) -> bool {
        self.pace.must_spare()
    }

    /// A permit to have one more body in flight; waits for it. For the first fetcher of a fill.
    /// Cancel-safe.
    pub async fn body_permit(&self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.bodies).acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }

    /// The same without waiting, for extra fetchers: none while a first fetcher waits.
    #[must_use]
    pub fn try_body_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bodies).try_acquire_owned().ok()
    }
}

/// Of what it remembers nothing is shown: there are tokens and signed URLs among it.
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("registry", &self.registry)
            .field("hosts", &self.transport.hosts)
            .finish_non_exhaustive()
    }
}

fn manifest_call(
    method: Method,
    name: &RepositoryName,
    reference: &Reference,
    accept: &[String],
) -> Call {
    Call {
        kind: UpstreamRequest::Manifest,
        method,
        path: format!("/v2/{name}/manifests/{reference}"),
        headers: header(ACCEPT, accept.join(", ")),
        resumes: false,
    }
}

fn blob_call(
    method: Method,
    name: &RepositoryName,
    digest: &Digest,
    range: Option<&Range<u64>>,
) -> Call {
    Call {
        kind: UpstreamRequest::Blob,
        method,
        path: format!("/v2/{name}/blobs/{digest}"),
        headers: match range {
            Some(range) => header(
                RANGE,
                format!("bytes={}-{}", range.start, range.end.saturating_sub(1)),
            ),
            None => HeaderMap::new(),
        },
        resumes: false,
    }
}

/// A map of one header, or an empty one where `value` cannot stand in a header.
fn header(name: HeaderName, value: impl TryInto<HeaderValue>) -> HeaderMap {
    value
        .try_into()
        .map(|value| HeaderMap::from_iter([(name, value)]))
        .unwrap_or_default()
}

/// Whether an answer to HEAD says more about HEAD than about what was asked. A URL that was
/// signed for GET alone answers a HEAD with 403, but only where a redirect led. What stands in
/// front of a registry, or only looks like one, may let no HEAD through; such an answer has nothing
/// of a registry's.
fn refuses_head(answer: &Answer) -> bool {
    match answer.status().as_u16() {
        400 | 405 | 501 => true,
        401 => answer.left_origin,
        403 => answer.left_origin || !is_registrys(answer),
        404 => !is_registrys(answer),
        _ => false,
    }
}

/// Whether the header of an error is one that a registry writes: JSON, or the version of the API.
fn is_registrys(answer: &Answer) -> bool {
    let version = HeaderName::from_static("docker-distribution-api-version");
    let json = |value: &str| value.contains("json");
    answer.headers().contains_key(version) || answer.header(CONTENT_TYPE).is_some_and(json)
}

/// The values of `Warning: 299` as they came.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let mut room = WARNINGS;
    let lines = headers
        .get_all(WARNING)
        .iter()
        .filter_map(|line| line.to_str().ok());
    lines
        .filter(|line| line.starts_with("299 "))
        .take_while(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        })
        .map(str::to_owned)
        .collect()
}
