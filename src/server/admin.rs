//! The addresses for operators: metrics, the hosts that were dialled, and health, away from the one
//! that nodes use.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Json, Router};
use http::{Request, Response};
use hyper::body::Incoming;
use tower::ServiceExt as _;

use super::listen::{Handler, Peer};
use super::v2::Health;
use crate::telemetry::Metrics;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What answers on `server.admin` and on `server.metrics`.
#[derive(Debug)]
pub(super) struct Admin(Router);

// === impl Admin ===

impl Admin {
    /// For `server.admin`.
    pub(super) fn new(metrics: Arc<Metrics>, health: Health) -> Self {
        let probe = async move |uri: Uri| match health.answer(uri.path()) {
            Some(answer) => answer.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        };
        let probe = get(probe);
        let ledger = Arc::clone(&metrics.ledger);
        let egress = async move || Json(ledger.snapshot());
        let Admin(router) = Admin::metrics_only(metrics);
        Admin(
            router
                .route("/healthz", probe.clone())
                .route("/readyz", probe)
                .route("/api/v1/egress", get(egress)),
        )
    }

    /// For `server.metrics`.
    pub(super) fn metrics_only(metrics: Arc<Metrics>) -> Self {
        let scrape = async move || ([(CONTENT_TYPE, OPEN_METRICS)], metrics.encode());
        Admin(Router::new().route("/metrics", get(scrape)))
    }
}

impl Handler for Admin {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>, _: &Peer) -> Response<Body> {
        match self.0.clone().oneshot(request).await {
            Ok(response) => response,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn get(admin: &Admin, path: &str) -> (u16, String, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let Ok(response) = admin.0.clone().oneshot(request).await;
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
        let admin = Admin::new(Arc::clone(&metrics), health);

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
}
