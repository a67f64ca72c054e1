//! `[admission]`: the listener that a cluster's API server asks before it stores a workload.
//!
//! It speaks TLS only, because the API server does, and has an address of its own, because nodes
//! have no business there. What a review means is not known here: bytes go in and come out.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse as _;
use axum::routing::post;
use http::{Request, Response};
use hyper::body::Incoming;
use serde::Deserialize;
use tower::ServiceExt as _;

use super::listen::{Handler, Peer};
use super::tls;

/// The largest review. Objects have at most 1.5 MB in etcd, and an update has two. Bytes.
const LARGEST_REVIEW: usize = 8 << 20;
/// The API server waits 30 s at most, and is on the same network.
const WHOLE: Duration = Duration::from_secs(10);

/// `[admission]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For the API server; not an address that nodes know.
    pub listen: SocketAddr,
    /// For the name of the Service in front; without it the certificate of `[server.tls]`.
    pub tls: Option<tls::Config>,
}

/// Answers the body of a review with another, or says why it is none. Milliseconds.
#[derive(Clone)]
pub struct Review(pub Arc<Answer>);

type Answer = dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync;

/// What answers on `admission.listen`.
#[derive(Debug)]
pub(super) struct Admission(Router);

// === impl Review ===

impl fmt::Debug for Review {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Review")
    }
}

// === impl Admission ===

impl Admission {
    pub(super) fn new(Review(review): Review) -> Self {
        let answer = async move |body: Bytes| match review(&body) {
            Ok(answer) => ([(CONTENT_TYPE, "application/json")], answer).into_response(),
            Err(why) => (StatusCode::BAD_REQUEST, why).into_response(),
        };
        let router = Router::new().route("/admission", post(answer));
        Admission(router.layer(DefaultBodyLimit::max(LARGEST_REVIEW)))
    }
}

impl Handler for Admission {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, _: &Peer) -> Response<Body> {
        match tokio::time::timeout(WHOLE, self.0.clone().oneshot(request)).await {
            Ok(Ok(response)) => response,
            Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(method: &str, path: &str, body: Vec<u8>) -> (u16, String) {
        let review = |body: &[u8]| match body {
            b"no review" => Err("why".to_owned()),
            body => Ok(body.to_ascii_uppercase()),
        };
        let admission = Admission::new(Review(Arc::new(review)));
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::from(body)).unwrap();
        let Ok(response) = admission.0.oneshot(request).await;
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await;
        (status, String::from_utf8(body.unwrap().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn only_reviews_are_answered() {
        assert_eq!(
            ask("POST", "/admission", b"yes".to_vec()).await,
            (200, "YES".to_owned())
        );
        // API servers add their time-out to the path's query.
        assert_eq!(
            ask("POST", "/admission?timeout=3s", b"yes".to_vec())
                .await
                .0,
            200
        );
        assert_eq!(
            ask("POST", "/admission", b"no review".to_vec()).await,
            (400, "why".to_owned())
        );
        assert_eq!(
            ask("POST", "/admission", vec![0; LARGEST_REVIEW + 1])
                .await
                .0,
            413
        );
        for (method, path, status) in [
            ("GET", "/admission", 405),
            ("POST", "/", 404),
            ("POST", "/v2/", 404),
            ("GET", "/metrics", 404),
        ] {
            assert_eq!(
                ask(method, path, Vec::new()).await.0,
                status,
                "{method} {path}"
            );
        }
    }
}
