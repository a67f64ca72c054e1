//! The addresses for operators: metrics, the hosts that were dialled, and health, away from the one
//! that nodes use. Where other machines reach `server.admin`, everything but health asks for
//! `server.admin_token`.

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Json, Router};
use http::{Request, Response};
use hyper::body::Incoming;
use tower::ServiceExt as _;

use super::listen::{Handler, Peer};
use super::v2::Health;
use crate::telemetry::{Metrics, Secret};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Health, which whoever starts and stops us asks for without a login.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// What answers on `server.admin` and on `server.metrics`.
#[derive(Debug)]
pub(super) struct Admin {
    router: Router,
    token: Option<Secret<String>>,
}

// === impl Admin ===

impl Admin {
    /// For `server.admin`. With a token only who has it gets more than health.
    pub(super) fn new(
        metrics: Arc<Metrics>,
        health: Health,
        token: Option<Secret<String>>,
    ) -> Self {
        let probe = async move |uri: Uri| match health.answer(uri.path()) {
            Some(answer) => answer.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        };
        let probe = get(probe);
        let ledger = Arc::clone(&metrics.ledger);
        let egress = async move || Json(ledger.snapshot());
        let mut router = Admin::metrics_only(metrics).router;
        for path in PROBES {
            router = router.route(path, probe.clone());
        }
        let router = router.route("/api/v1/egress", get(egress));
        Admin { router, token }
    }

    /// For `server.metrics`.
    pub(super) fn metrics_only(metrics: Arc<Metrics>) -> Self {
        let scrape = async move || ([(CONTENT_TYPE, OPEN_METRICS)], metrics.encode());
        Admin {
            router: Router::new().route("/metrics", get(scrape)),
            token: None,
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        if !self.admits(&request) {
            let text = "this address asks for server.admin_token: Authorization: Bearer TOKEN\n";
            let challenge = [(WWW_AUTHENTICATE, "Bearer")];
            return (StatusCode::UNAUTHORIZED, challenge, text).into_response();
        }
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
        }
    }

    fn admits(&self, request: &Request<Body>) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let given = request.headers().get(AUTHORIZATION);
        let given = given.and_then(|given| given.as_bytes().strip_prefix(b"Bearer "));
        let is_right = |given| verify_slices_are_equal(given, token.expose().as_bytes()).is_ok();
        PROBES.contains(&request.uri().path()) || given.is_some_and(is_right)
    }
}

impl Handler for Admin {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, _: &Peer) -> Response<Body> {
        self.answer(request.map(Body::new)).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn get(admin: &Admin, path: &str) -> (u16, String, String) {
        get_as(admin, path, None).await
    }

    async fn get_as(admin: &Admin, path: &str, login: Option<&str>) -> (u16, String, String) {
        let mut request = Request::get(path);
        if let Some(login) = login {
            request = request.header(AUTHORIZATION, login);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = admin.answer(request).await;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let content_type = head.headers.get(CONTENT_TYPE);
        let content_type = content_type.map_or("", |v| v.to_str().unwrap()).to_owned();
        (
            head.status.as_u16(),
            content_type,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn operators_get_metrics_and_health_and_nothing_else() {
        let (ready, receiver) = watch::channel(false);
        let stopping = CancellationToken::new();
        let health = Health {
            ready: receiver,
            stopping: stopping.clone(),
        };
        let metrics = Arc::new(Metrics::default());
        let admin = Admin::new(Arc::clone(&metrics), health, None);

        let (status, content_type, text) = get(&admin, "/metrics").await;
        assert_eq!((status, &*content_type), (200, OPEN_METRICS));
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert_eq!(get(&admin, "/healthz").await.0, 200);
        assert_eq!(get(&admin, "/readyz").await.0, 503);
        ready.send_replace(true);
        assert_eq!(get(&admin, "/readyz").await.0, 200);
        stopping.cancel();
        assert_eq!(get(&admin, "/readyz").await.0, 503);
        assert_eq!(get(&admin, "/healthz").await.0, 200);
        let (status, _, hosts) = get(&admin, "/api/v1/egress").await;
        assert_eq!((status, &*hosts), (200, r#"{"hosts":[],"forgotten":0}"#));
        for path in [
            "/",
            "/v2/",
            "/v2/library/nginx/manifests/latest",
            "/metrics/",
        ] {
            assert_eq!(get(&admin, path).await.0, 404, "{path}");
        }

        let scraped = Admin::metrics_only(metrics);
        assert_eq!(get(&scraped, "/metrics").await.0, 200);
        assert_eq!(get(&scraped, "/healthz").await.0, 404);
    }

    #[tokio::test]
    async fn with_a_token_only_health_is_for_everybody() {
        let health = Health {
            ready: watch::channel(true).1,
            stopping: CancellationToken::new(),
        };
        let token = Some(Secret::new("open sesame".to_owned()));
        let admin = Admin::new(Arc::new(Metrics::default()), health, token);
        for path in ["/metrics", "/api/v1/egress", "/", "/healthz/"] {
            for login in [
                None,
                Some("open sesame"),
                Some("Bearer open"),
                Some("Bearer open sesame "),
                Some("Basic b3BlbiBzZXNhbWU="),
            ] {
                let (status, _, text) = get_as(&admin, path, login).await;
                assert_eq!(status, 401, "{path} {login:?}");
                assert!(text.contains("server.admin_token"), "{text}");
            }
        }
        for path in PROBES {
            assert_eq!(get(&admin, path).await.0, 200, "{path}");
        }
        let login = Some("Bearer open sesame");
        assert_eq!(get_as(&admin, "/metrics", login).await.0, 200);
        assert_eq!(get_as(&admin, "/api/v1/egress", login).await.0, 200);
    }
}
