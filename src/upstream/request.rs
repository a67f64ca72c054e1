//! One request to an upstream, from the first byte sent to the header of the last answer:
//! redirects followed by our own rules, every host judged before it hears of us.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use tokio::time::timeout;
use url::Url;

use super::UpstreamErrorKind;
use super::config::Limits;
use super::egress::{Hosts, Purpose, authority};
use super::http::Clients;
use super::retry::retry_after;
use crate::oci::error::foreign_message;
use crate::telemetry::Metrics;
use crate::telemetry::ledger::{self, Dial, Row};
use crate::telemetry::metrics::{RegistryLabels, UpstreamLabels, UpstreamOutcome, UpstreamRequest};

/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 3;
/// Bytes of an error's body that are read.
const ERROR_BODY: u64 = 16 << 10;
/// How long we wait for a body that only matters for keeping its connection alive.
const DRAIN: Duration = Duration::from_secs(1);

/// What is asked: everything of a request but the host and the credentials.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) kind: UpstreamRequest,
    pub(super) method: Method,
    /// Path and query, beginning with `/`.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// It goes on with a download that the upstream has answered before.
    pub(super) resumes: bool,
}

/// How one upstream is talked to, without knowing what about.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    pub(super) clients: Arc<Clients>,
    pub(super) hosts: Hosts,
    pub(super) limits: Limits,
    pub(super) meter: Meter,
}

/// The counters of one upstream.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    pub(super) metrics: Arc<Metrics>,
    pub(super) registry: String,
    received: Counter,
}

/// The final answer to a [`Call`], of any status but a redirect; its body is still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    response: reqwest::Response,
    host: String,
    idle: Duration,
    received: Counter,
    row: Arc<Row>,
    /// A redirect led to another scheme, host or port, where our credentials do not belong.
    pub(super) left_origin: bool,
}

// === impl Transport ===

impl Transport {
    /// Sends `call` to `url` and follows redirects. `authorization` ends with the origin of `url`
    /// and does not come back, even if a later redirect does; `left_origin` tells whether it ended,
    /// for failures too.
    pub(super) async fn follow(
        &self,
        call: &Call,
        mut url: Url,
        mut authorization: Option<HeaderValue>,
        left_origin: &mut bool,
    ) -> Result<Answer, UpstreamErrorKind> {
        *left_origin = false;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = reqwest::Request::new(call.method.clone(), url.clone());
            request.headers_mut().clone_from(&call.headers);
            if let Some(authorization) = &authorization {
                request
                    .headers_mut()
                    .insert(AUTHORIZATION, authorization.clone());
            }
            let mut answer = self.send(call.kind, request).await?;
            answer.left_origin = *left_origin;
            let Some(next) = answer.redirect(&url)? else {
                return Ok(answer);
            };
            self.check(&next, Purpose::Redirect)?;
            answer.drain().await;
            if next.origin() != url.origin() {
                authorization = None;
                *left_origin = true;
            }
            url = next;
        }
        Err(UpstreamErrorKind::Invalid(format!(
            "more than {MAX_REDIRECTS} redirects, the last to {}",
            authority(&url)
        )))
    }

    /// Refuses `url` as [`Hosts::check`] does, and notes that it was wanted.
    pub(super) fn check(&self, url: &Url, purpose: Purpose) -> Result<(), UpstreamErrorKind> {
        self.hosts.check(url, purpose).map_err(|refused| {
            let purpose = match purpose {
                Purpose::Token => ledger::Purpose::Token,
                Purpose::Redirect => ledger::Purpose::Redirect,
            };
            self.meter.refused(url, purpose, refused.why);
            refused.into()
        })
    }

    /// What `url` is asked for: an endpoint stays one when a redirect leads back to it.
    fn purpose(&self, kind: UpstreamRequest, url: &Url) -> ledger::Purpose {
        let is_there = |endpoint: &Url| {
            endpoint.host_str() == url.host_str()
                && endpoint.port_or_known_default() == url.port_or_known_default()
        };
        match kind {
            UpstreamRequest::Token => ledger::Purpose::Token,
            UpstreamRequest::Identity => ledger::Purpose::Identity,
            _ if self.hosts.endpoints.iter().any(is_there) => ledger::Purpose::Endpoint,
            _ => ledger::Purpose::Redirect,
        }
    }

    /// One exchange on the wire, to a URL that has been checked.
    pub(super) async fn send(
        &self,
        kind: UpstreamRequest,
        request: reqwest::Request,
    ) -> Result<Answer, UpstreamErrorKind> {
        let (host, url) = (authority(request.url()), request.url().clone());
        let client = match (kind, request.method()) {
            (UpstreamRequest::Blob, &Method::GET) => &self.clients.blobs,
            _ => &self.clients.general,
        };
        let limit = self.limits.first_byte;
        let row = self
            .meter
            .row(request.url(), self.purpose(kind, request.url()));
        row.asked();
        match timeout(limit, client.execute(request)).await {
            Ok(Ok(response)) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                row.failed();
                let kind = self.clients.way.wants_login(&url);
                Err(kind.unwrap_or_else(|| {
                    UpstreamErrorKind::Invalid(format!("{host} answered as a proxy does (407)"))
                }))
            }
            Ok(Ok(response)) => Ok(Answer::new(
                response,
                host,
                self.limits.idle,
                self.meter.received.clone(),
                row,
            )),
            Ok(Err(error)) => {
                let explained = self.clients.way.explain(&error, &url).await;
                let kind = explained.unwrap_or_else(|| {
                    UpstreamErrorKind::of_request(&error, &host, &self.hosts.key)
                });
                if matches!(kind, UpstreamErrorKind::HostRefused(_)) {
                    let why = ledger::Refusal::InternalAddress;
                    self.meter.metrics.ledger.withdraw(&row, why);
                } else {
                    row.failed();
                }
                Err(kind)
            }
            Err(_) => {
                row.failed();
                Err(UpstreamErrorKind::TimedOut(format!(
                    "{host} did not begin to answer within {limit:?}"
                )))
            }
        }
    }
}

// === impl Meter ===

impl Meter {
    /// `registry` is the key of the configuration or of the known table.
    pub(super) fn new(metrics: Arc<Metrics>, registry: String) -> Self {
        let labels = RegistryLabels {
            registry: registry.clone(),
        };
        let received = metrics.upstream_received.get_or_create(&labels).clone();
        Meter {
            metrics,
            registry,
            received,
        }
    }

    pub(super) fn count(&self, kind: UpstreamRequest, outcome: UpstreamOutcome) {
        let labels = UpstreamLabels {
            registry: self.registry.clone(),
            kind,
            outcome,
        };
        self.metrics.upstream_requests.get_or_create(&labels).inc();
    }

    fn row(&self, url: &Url, purpose: ledger::Purpose) -> Arc<Row> {
        self.metrics.ledger.row(&self.dial(url, purpose))
    }

    fn refused(&self, url: &Url, purpose: ledger::Purpose, why: ledger::Refusal) {
        self.metrics.ledger.refused(&self.dial(url, purpose), why);
    }

    fn dial<'a>(&'a self, url: &'a Url, purpose: ledger::Purpose) -> Dial<'a> {
        Dial {
            host: url.host_str().unwrap_or_default(),
            port: url.port_or_known_default().unwrap_or_default(),
            owner: &self.registry,
            purpose,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// `idle` bounds silence inside the body, whose bytes `received` and `row` count.
    pub(super) fn new(
        response: reqwest::Response,
        host: String,
        idle: Duration,
        received: Counter,
        row: Arc<Row>,
    ) -> Self {
        Answer {
            response,
            host,
            idle,
            received,
            row,
            left_origin: false,
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Where the answer came from, for error texts.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn url(&self) -> &Url {
        self.response.url()
    }

    /// `name` as text, if it is there and printable.
    pub(super) fn header(&self, name: http::HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The header's value even where the library would say 0, as for HEAD.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// The target, if this is a redirect. `base` is what a relative `Location` is relative to.
    fn redirect(&self, base: &Url) -> Result<Option<Url>, UpstreamErrorKind> {
        if !matches!(self.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        match self
            .header(LOCATION)
            .and_then(|location| base.join(location).ok())
        {
            Some(url) if url.has_host() => Ok(Some(url)),
            _ => Err(self.invalid("redirects to no URL")),
        }
    }

    /// This answer if it is a success in the bytes that were meant, else what it says instead.
    pub(super) async fn success(self) -> Result<Self, UpstreamErrorKind> {
        if !self.status().is_success() {
            return Err(self.into_failure().await);
        }
        if self
            .headers()
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|coding| coding != "identity")
        {
            return Err(self.invalid("sends a Content-Encoding that was not asked for"));
        }
        Ok(self)
    }

    /// What a status other than success means.
    pub(super) async fn into_failure(self) -> UpstreamErrorKind {
        let status = self.status();
        let retry_after = retry_after(self.headers());
        let host = self.host.clone();
        let said = foreign_message(&self.small_body().await);
        let text = match &said {
            Some(message) => format!("{host} answered {status}: {message}"),
            None => format!("{host} answered {status}"),
        };
        tracing::debug!("{text}");
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => UpstreamErrorKind::Refused,
            StatusCode::NOT_FOUND => UpstreamErrorKind::NotFound,
            StatusCode::RANGE_NOT_SATISFIABLE => UpstreamErrorKind::RangeNotSatisfiable,
            StatusCode::TOO_MANY_REQUESTS => UpstreamErrorKind::RateLimited { retry_after },
            status if is_outage(status) => match retry_after {
                Some(retry_after) => UpstreamErrorKind::Overloaded { text, retry_after },
                None => UpstreamErrorKind::Unavailable(text),
            },
            _ => UpstreamErrorKind::Invalid(text),
        }
    }

    /// How this answer counts in the metrics.
    pub(super) fn outcome(&self) -> UpstreamOutcome {
        match self.status() {
            status if status.is_success() => UpstreamOutcome::Ok,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => UpstreamOutcome::Refused,
            StatusCode::NOT_FOUND => UpstreamOutcome::NotFound,
            StatusCode::TOO_MANY_REQUESTS => UpstreamOutcome::RateLimited,
            _ => UpstreamOutcome::Invalid,
        }
    }

    pub(super) fn invalid(&self, what: &str) -> UpstreamErrorKind {
        UpstreamErrorKind::Invalid(format!("{} {what}", self.host))
    }

    /// The next piece of the body; None at its end. Cancel-safe.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamErrorKind> {
        match timeout(self.idle, self.response.chunk()).await {
            Ok(Ok(chunk)) => {
                let bytes = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                self.received.inc_by(bytes);
                self.row.received(bytes);
                Ok(chunk)
            }
            Ok(Err(error)) => {
                self.row.failed();
                Err(UpstreamErrorKind::of_body(&error, &self.host))
            }
            Err(_) => {
                self.row.failed();
                Err(UpstreamErrorKind::TimedOut(format!(
                    "{} sent nothing for {:?} inside a body",
                    self.host, self.idle
                )))
            }
        }
    }

    /// The whole body, at most `limit` bytes. `what` it is stands in the error's text.
    pub(super) async fn read(mut self, limit: u64, what: &str) -> Result<Bytes, UpstreamErrorKind> {
        let too_large = |answer: &Answer| {
            answer.invalid(&format!("sends {what} of more than {}", ByteSize(limit)))
        };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large(&self));
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large(&self));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Reads what is left of a small body, because a connection with an unread body is closed.
    pub(super) async fn drain(self) {
        self.small_body().await;
    }

    /// The body, or nothing where it is large, slow or cut.
    async fn small_body(self) -> Bytes {
        match timeout(DRAIN, self.read(ERROR_BODY, "an error")).await {
            Ok(Ok(body)) => body,
            _ => Bytes::new(),
        }
    }
}

/// Statuses that another try, or another endpoint, may turn into an answer. 501 says that the
/// request will never be understood.
pub(super) fn is_outage(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}
