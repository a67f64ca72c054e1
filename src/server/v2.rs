//! `/v2/`: one request in, one answer out.
//!
//! A request is checked, parsed once into a [`Route`], asked of the cache within `limits.answer`,
//! and turned into an answer. No layer of middleware stands in between: what happens to a request
//! can be read here from top to bottom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::body::Body;
use super::error::{ApiError, BadRequest};
use super::listen::{Handler, Peer};
use super::peers;
use super::respond::{self, Shape};
use crate::cache::{Cache, CacheError, Client, Outcome};
use crate::oci::{HostMap, Route, Routed};
use crate::telemetry::metrics::{RequestLabels, RouteLabel};
use crate::telemetry::{Metrics, RequestId};
use crate::upstream::PeerKey;

const MOST_HEADERS: usize = 64;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// What answers on the address that nodes use.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) cache: Arc<Cache>,
    pub(super) hosts: HostMap,
    pub(super) metrics: Arc<Metrics>,
    /// From the request's head to the answer's.
    pub(super) answer_within: Duration,
    pub(super) health: Health,
    /// How other replicas are told from clients, where there are any.
    pub(super) peers: Option<PeerKey>,
}

/// Whether we are alive and should get requests.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub(super) ready: watch::Receiver<bool>,
    pub(super) stopping: CancellationToken,
}

/// An answer, and what the access log says about it.
struct Answered {
    response: Response<Body>,
    routed: Option<Routed>,
    outcome: Option<Outcome>,
}

// === impl Health ===

impl Health {
    /// The answer to a probe, or None when `path` is none.
    pub(super) fn answer(&self, path: &str) -> Option<(StatusCode, &'static str)> {
        match path {
            "/healthz" => Some((StatusCode::OK, "ok\n")),
            "/readyz" if self.stopping.is_cancelled() => {
                Some((StatusCode::SERVICE_UNAVAILABLE, "stopping\n"))
            }
            "/readyz" if *self.ready.borrow() => Some((StatusCode::OK, "ok\n")),
            "/readyz" => Some((StatusCode::SERVICE_UNAVAILABLE, "not ready\n")),
            _ => None,
        }
    }
}

// === impl Api ===

impl Handler for Api {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let checked = check(&request);
        if checked.is_ok()
            && let Some((status, text)) = self.health.answer(request.uri().path())
        {
            return self.probe(&request, status, text);
        }
        let started = Instant::now();
        let id = RequestId::next();
        let mut answered = match checked {
            Ok(()) if peers::is_claimed(&request) => Answered {
                response: id.scope(peers::answer(self, &request, peer, id)).await,
                routed: None,
                outcome: None,
            },
            Ok(()) => id.scope(self.route(&request, peer, id)).await,
            Err(e) => Answered::error(&request, &e.into()),
        };
        let headers = answered.response.headers_mut();
        headers.insert(REQUEST_ID, respond::text(&id.to_string()));
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        if let Some(namespace) = answered.routed.as_ref().and_then(|r| r.namespace.as_ref()) {
            headers.insert(NAMESPACE, respond::text(namespace.as_str()));
        }
        // We answer as if they were not there; what follows may be no request.
        if has_body(&request) || request.headers().contains_key(UPGRADE) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let status = answered.response.status();
        answered.response.body_mut().log(Access {
            id,
            client: peer.address,
            method: request.method().clone(),
            route: answered.routed.map(|routed| routed.route),
            status,
            outcome: answered.outcome,
            started,
            metrics: Arc::clone(&self.metrics),
            bytes: 0,
            failure: None,
        });
        answered.response
    }
}

impl Api {
    /// Probes come every few seconds for ever: they are counted, not logged.
    fn probe(
        &self,
        request: &Request<Incoming>,
        status: StatusCode,
        text: &'static str,
    ) -> Response<Body> {
        let labels = RequestLabels {
            route: RouteLabel::Health,
            status: status.as_u16(),
        };
        self.metrics.requests.get_or_create(&labels).inc();
        let mut response = Response::new(match *request.method() {
            Method::HEAD => Body::empty(),
            _ => Body::bytes(text),
        });
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, text.len().into());
        response
    }

    async fn route(&self, request: &Request<Incoming>, peer: &Peer, id: RequestId) -> Answered {
        let host = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => request
                .headers()
                .get(HOST)
                .and_then(|host| host.to_str().ok()),
        };
        let routed = match Route::parse(request.method(), request.uri(), host, &self.hosts) {
            Ok(routed) => routed,
            Err(e) => return Answered::error(request, &ApiError::route(&e)),
        };
        let answer =
            tokio::time::timeout(self.answer_within, self.answer(request, &routed, peer, id));
        let answer = answer.await.unwrap_or_else(|_| {
            Err(Self::refuse(
                &CacheError::TooSlow("the upstream's answer".to_owned()),
                id,
            ))
        });
        match answer {
            Ok((response, outcome)) => Answered {
                response,
                routed: Some(routed),
                outcome,
            },
            Err(e) => Answered {
                routed: Some(routed),
                ..Answered::error(request, &e)
            },
        }
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
        routed: &Routed,
        peer: &Peer,
        id: RequestId,
    ) -> Result<(Response<Body>, Option<Outcome>), ApiError> {
        let client = Client {
            address: Some(peer.address),
            subject: peer.subject.clone(),
            ..Client::default()
        };
        let refuse = |e: CacheError| Self::refuse(&e, id);
        let mut shape = Shape::of(request);
        Ok(match &routed.route {
            Route::Ping => (respond::ping(&shape), None),
            Route::Manifest {
                repository,
                reference,
            } => {
                // Every line: docker, podman and skopeo send one for each type.
                let accept = request.headers().get_all(ACCEPT).iter();
                let accept: Vec<&str> = accept.filter_map(|line| line.to_str().ok()).collect();
                let answer = self.cache.manifest(&client, repository, reference, &accept);
                let answer = answer.await.map_err(refuse)?;
                (respond::manifest(&shape, &answer), Some(answer.outcome))
            }
            Route::Blob { repository, digest } => {
                let wanted = shape.wanted(request.headers(), digest);
                let answer = self.cache.blob(&client, repository, digest, wanted);
                let answer = answer.await.map_err(refuse)?;
                let outcome = answer.outcome;
                (
                    respond::blob(&shape, answer, peer.queue.clone())?,
                    Some(outcome),
                )
            }
            Route::Tags {
                repository,
                n,
                last,
            } => {
                let answer = self.cache.tags(&client, repository, *n, last.as_ref());
                let answer = answer.await.map_err(refuse)?;
                (
                    respond::tags(&shape, routed, *n, &answer),
                    Some(answer.outcome),
                )
            }
            Route::Referrers {
                repository,
                digest,
                artifact_type,
            } => {
                let filter = artifact_type.as_deref();
                let answer = self.cache.referrers(&client, repository, digest, filter);
                let answer = answer.await.map_err(refuse)?;
                let outcome = answer.outcome;
                (respond::referrers(&shape, answer), Some(outcome))
            }
        })
    }

    /// The answer for `error`; what the client is not told goes to the log under the same id.
    fn refuse(error: &CacheError, id: RequestId) -> ApiError {
        let answer = ApiError::cache(error, id);
        if answer.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(%error, "internal error");
        } else if answer.status.is_server_error() && matches!(error, CacheError::Upstream(_)) {
            // For whoever runs this: the host, and the line of the configuration that would help.
            tracing::warn!(%error, "the upstream failed");
        } else {
            tracing::debug!(%error, "refused");
        }
        answer
    }
}

impl Answered {
    fn error(request: &Request<Incoming>, error: &ApiError) -> Self {
        let response = respond::error(request.method() == Method::HEAD, error);
        Answered {
            response,
            routed: None,
            outcome: None,
        }
    }
}

/// hyper takes a request with both lengths, and a body on a GET. Others on the way may not agree
/// where such a request ends, so none with a body is let in, and its connection is closed.
fn has_body<B: http_body::Body>(request: &Request<B>) -> bool {
    request.headers().contains_key(TRANSFER_ENCODING) || !request.body().is_end_stream()
}

/// What is wrong with a request whatever it asks for.
pub(super) fn check<B: http_body::Body>(request: &Request<B>) -> Result<(), BadRequest> {
    let (headers, uri) = (request.headers(), request.uri());
    // Writing has an error of its own.
    if has_body(request) && matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(BadRequest::Body);
    }
    if headers.len() > MOST_HEADERS {
        return Err(BadRequest::ManyHeaders);
    }
    // In HTTP/2 the target always has an authority, in HTTP/1.1 only proxies are asked that way.
    if request.version() < Version::HTTP_2 {
        if uri.scheme().is_some() && request.method() != Method::CONNECT {
            return Err(BadRequest::AbsoluteForm);
        }
        let mut hosts = headers.get_all(HOST).iter();
        let named = hosts.next().is_some_and(|host| host.to_str().is_ok());
        if hosts.next().is_some() || !named && request.version() == Version::HTTP_11 {
            return Err(BadRequest::Host);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
