//! What `export` and `import` ask of the process that has the store: `server` has the socket,
//! `airgap` knows bundles.
//!
//! A bundle that is imported streams through the socket. One that is exported does not: the command
//! reads the blobs that are held for it. No path of a command is ever opened here.

use std::collections::BTreeMap;
use std::future;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::airgap::AirgapError;
use crate::airgap::export::Held;
use crate::airgap::import::{Report, Terms, import};
use crate::airgap::plan::plan;
use crate::airgap::sign::TrustedKey;
use crate::cache::Cache;
use crate::oci::{Digest, Image, Platform};
use crate::server::control::Lines;

/// The longest list of blobs, in bytes.
const LONGEST_LIST: usize = 128 << 20;
/// Images and platforms that one request may name.
const MOST_IMAGES: usize = 10_000;
const MOST_PLATFORMS: usize = 64;
/// Pieces of an archive that may wait for the disk.
const WAITING: usize = 8;

/// `POST /api/v1/plan`: what a bundle of these images would consist of. Done: a list of
/// [`crate::store::imports::BundledImage`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// None: everything that is pinned.
    pub images: Vec<String>,
    pub platforms: Vec<String>,
}

/// `POST /api/v1/hold`: blobs that an export is about to read. The answer begins when each of them
/// is known to be here and right, and has no end: they are held until the connection is closed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// With their sizes in bytes.
    pub blobs: BTreeMap<Digest, u64>,
}

/// `POST /api/v1/import`, with the bundle as its body. Done: an
/// [`crate::airgap::import::Imported`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportQuery {
    pub trust: Option<String>,
    pub receipt: bool,
}

/// Answers for bundles.
#[derive(Clone, Debug)]
pub(super) struct Bundles {
    cache: Arc<Cache>,
    lines: Lines,
    largest_blob: u64,
    /// One import at a time.
    importing: Arc<Semaphore>,
}

// === impl Bundles ===

impl Bundles {
    pub(super) fn new(
        cache: &Arc<Cache>,
        tracker: &TaskTracker,
        stop: &CancellationToken,
        largest_blob: u64,
    ) -> Self {
        let (tracker, stop) = (tracker.clone(), stop.clone());
        Bundles {
            cache: Arc::clone(cache),
            lines: Lines { tracker, stop },
            largest_blob,
            importing: Arc::new(Semaphore::new(1)),
        }
    }

    pub(super) fn routes(self) -> Router {
        let large = DefaultBodyLimit::max(LONGEST_LIST);
        Router::new()
            .route("/api/v1/plan", post(answer_plan).layer(large))
            .route("/api/v1/hold", post(answer_hold).layer(large))
            .route("/api/v1/import", post(answer_import))
            .with_state(self)
    }
}

async fn answer_plan(
    State(bundles): State<Bundles>,
    Json(request): Json<PlanRequest>,
) -> Response<Body> {
    if request.images.len() > MOST_IMAGES || request.platforms.len() > MOST_PLATFORMS {
        return refused(StatusCode::BAD_REQUEST, "too many images or platforms");
    }
    let images: Vec<Image> = match parse_all(&request.images) {
        Ok(images) => images,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    let platforms: Vec<Platform> = match parse_all(&request.platforms) {
        Ok(platforms) => platforms,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error),
    };
    let cache = Arc::clone(&bundles.cache);
    bundles.lines.answer(async move |tell| {
        let report = |progress| tell.progress(&progress);
        plan(&cache, &images, &platforms, &report).await
    })
}

async fn answer_hold(
    State(bundles): State<Bundles>,
    Json(request): Json<HoldRequest>,
) -> Response<Body> {
    match Held::new(bundles.cache.store(), &request.blobs).await {
        Ok(held) => {
            let until_closed = stream::once(async move {
                let _held = held;
                future::pending::<io::Result<Bytes>>().await
            });
            Body::from_stream(until_closed).into_response()
        }
        Err(error) => refused(StatusCode::CONFLICT, &error.to_string()),
    }
}

async fn answer_import(
    State(bundles): State<Bundles>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Response<Body> {
    let (sender, source) = mpsc::channel(WAITING);
    let lines = bundles.lines.clone();
    let (tracker, stop) = (lines.tracker.clone(), lines.stop.clone());
    tracker.spawn(async move { stop.run_until_cancelled(pump(body, sender)).await });
    let trust = query
        .trust
        .as_deref()
        .map(TrustedKey::from_text)
        .transpose();
    let trust = match trust {
        Ok(trust) => trust,
        Err(error) => return refused(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let Ok(permit) = Arc::clone(&bundles.importing).try_acquire_owned() else {
        return refused(StatusCode::CONFLICT, &AirgapError::Busy.to_string());
    };
    let terms = Terms {
        trust,
        largest_blob: bundles.largest_blob,
        receipt: query.receipt,
    };
    let store = Arc::clone(bundles.cache.store());
    lines.answer(async move |tell| {
        let report: Report = Arc::new(move |progress| tell.progress(&progress));
        // Not given up with the one who asked: when its archive ends too early, so does this.
        let work = tracker.spawn(async move {
            let _permit = permit;
            import(store, source, terms, report).await
        });
        work.await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    })
}

/// Reads the body to its end, whether or not anybody takes it: only who has sent everything, or gone
/// away, reads the answer.
async fn pump(body: Body, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(io::Error::other);
        let is_last = chunk.is_err();
        // An import that has ended has said why.
        let _ = sender.send(chunk).await;
        if is_last {
            return;
        }
    }
}

fn parse_all<T: std::str::FromStr<Err: std::fmt::Display>>(
    texts: &[String],
) -> Result<Vec<T>, String> {
    let parse = |text: &String| {
        let parsed = text.parse();
        parsed.map_err(|error: T::Err| format!("{text:?}: {error}"))
    };
    texts.iter().map(parse).collect()
}

fn refused(status: StatusCode, error: &str) -> Response<Body> {
    (status, Json(json!({ "error": error }))).into_response()
}
