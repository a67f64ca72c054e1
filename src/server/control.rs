//! `/api/v1` on `control.sock`: what operators' commands ask of the process that has the store.
//!
//! Whoever may open the file may ask anything here; nothing in a request is ever used as a path.
//! Work that takes long answers in JSON lines, `{"progress": ..}` and at the end `{"done": ..}` or
//! `{"error": ..}`, and ends when the one who asked is gone. A command without a running server
//! starts the same [`Control`] in its own process and calls it without a socket.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as BoundListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::error::keep_status;
use crate::cache::Cache;
use crate::cache::keep::{By, KeepError};
use crate::cache::warm::{MOST_IMAGES, Wanted};
use crate::oci::{Digest, Image, Platform};
use crate::store::{Checked, StoreError};

/// Commands at once; more wait.
const MOST_CONNECTIONS: usize = 16;
/// The longest request body, in bytes.
const LONGEST_BODY: usize = 64 << 10;
/// The longest one that is a list of images.
const LONGEST_LIST: usize = 4 << 20;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(10);
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);
/// How long to wait when the process has no file descriptors left.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Platforms that one request may name.
const MOST_PLATFORMS: usize = 64;

/// Answers the requests of operators.
#[derive(Clone, Debug)]
pub struct Control {
    router: Router,
    tracker: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    cache: Arc<Cache>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// `POST /api/v1/pins`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// Or a pattern, which has a `*`.
    pub image: String,
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// `POST /api/v1/warm`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmRequest {
    pub images: Vec<String>,
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// `POST /api/v1/unpin` and `/api/v1/purge`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRequest {
    pub name: String,
}

/// `POST /api/v1/verify`
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// At most so many bytes a second.
    pub rate: u64,
}

/// `GET /api/v1/why`, `/api/v1/history`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    name: String,
}

/// Why a request was not answered.
#[derive(Debug)]
enum Refused {
    /// The name in it makes no sense.
    Name(String),
    Keep(KeepError),
}

type Answer = Result<Json<Value>, Refused>;

// === impl Control ===

impl Control {
    /// Long work runs on `tracker` and ends when `stop` is cancelled.
    #[must_use]
    pub fn new(cache: Arc<Cache>, tracker: TaskTracker, stop: CancellationToken) -> Self {
        let shared = Arc::new(Shared {
            cache,
            tracker: tracker.clone(),
            stop: stop.clone(),
        });
        let router = Router::new()
            .route("/api/v1/images", get(images))
            .route("/api/v1/blobs", get(blobs))
            .route("/api/v1/pins", get(pins).post(pin))
            .route(
                "/api/v1/warm",
                post(warm).layer(DefaultBodyLimit::max(LONGEST_LIST)),
            )
            .route("/api/v1/unpin", post(unpin))
            .route("/api/v1/purge", post(purge))
            .route("/api/v1/verify", post(verify))
            .route("/api/v1/why", get(why))
            .route("/api/v1/history", get(history))
            .route("/api/v1/pulls", get(pulls))
            .route("/api/v1/missing", get(missing))
            .route("/api/v1/status", get(status))
            .route("/api/v1/egress", get(egress))
            .layer(DefaultBodyLimit::max(LONGEST_BODY))
            .with_state(shared);
        Control {
            router,
            tracker,
            stop,
        }
    }

    /// The same with more that can be asked for.
    #[must_use]
    pub fn with(self, routes: Router) -> Self {
        let router = self.router.merge(routes);
        Control { router, ..self }
    }

    /// Answers one request.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
        }
    }

    /// Answers what comes by `listener` until it is time to stop.
    ///
    /// # Errors
    /// When the socket is none that can be waited for.
    pub fn serve(self, listener: BoundListener) -> io::Result<impl Future<Output = ()> + Send> {
        let listener = UnixListener::from_std(listener)?;
        let stop = self.stop.clone();
        let accept = async move {
            let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
            loop {
                // Never closed.
                let permit = Arc::clone(&permits).acquire_owned().await;
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept operators");
                        tokio::time::sleep(BACK_OFF).await;
                        continue;
                    }
                };
                let (control, stop) = (self.clone(), self.stop.clone());
                self.tracker.spawn(async move {
                    let _permit = permit;
                    let service = service_fn(async |request: Request<_>| {
                        Ok::<_, Infallible>(control.call(request.map(Body::new)).await)
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), service);
                    // Who goes away has harmed nothing.
                    let _ = stop.run_until_cancelled(connection).await;
                });
            }
        };
        Ok(async move {
            stop.run_until_cancelled(accept).await;
        })
    }
}

// === what is asked ===

async fn images(State(shared): State<Arc<Shared>>) -> Answer {
    let store = shared.cache.store();
    let catalog = shared.cache.catalog().await?;
    let pins = store.disk.pins();
    let images = catalog.images(|name| {
        pins.image(&name.to_string()).is_some() || pins.pattern_with(&name.digest).is_some()
    });
    Ok(done(json!({ "images": images })))
}

async fn blobs(State(shared): State<Arc<Shared>>) -> Answer {
    let mut blobs: Vec<_> = shared.cache.catalog().await?.blobs().collect();
    blobs.sort_unstable_by_key(|blob| (std::cmp::Reverse(blob.used), blob.digest));
    Ok(done(json!({ "blobs": blobs })))
}

async fn pins(State(shared): State<Arc<Shared>>) -> Answer {
    let (images, patterns) = shared.cache.store().disk.pins().all();
    Ok(done(
        json!({ "images": images.iter().map(|pin| &**pin).collect::<Vec<_>>(), "patterns": patterns }),
    ))
}

async fn pin(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<PinRequest>,
) -> Result<Response<Body>, Refused> {
    if request.image.contains('*') {
        let pinned = shared.cache.pin_pattern(&request.image).await?;
        return Ok(done(pinned).into_response());
    }
    let image: Image = parse(&request.image)?;
    let platforms = platforms(&request.platforms)?;
    let cache = Arc::clone(&shared.cache);
    Ok(shared.lines(async move |tell| {
        cache
            .pin(&image, &platforms, By::Pin, &|progress| {
                tell.progress(&progress);
            })
            .await
    }))
}

async fn warm(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<WarmRequest>,
) -> Result<Response<Body>, Refused> {
    if request.images.len() > MOST_IMAGES {
        return Err(Refused::Name(format!("more than {MOST_IMAGES} images")));
    }
    let images = request.images.iter().map(|text| parse(text));
    let wanted = Wanted {
        images: images.collect::<Result<_, _>>()?,
        platforms: platforms(&request.platforms)?,
    };
    let cache = Arc::clone(&shared.cache);
    Ok(shared.lines(async move |tell| {
        let report = |progress| tell.progress(&progress);
        Ok(cache.warm(&wanted, By::Warm, &report).await)
    }))
}

fn platforms(texts: &[String]) -> Result<Vec<Platform>, Refused> {
    if texts.len() > MOST_PLATFORMS {
        return Err(Refused::Name("too many platforms".to_owned()));
    }
    texts.iter().map(|text| parse(text)).collect()
}

async fn unpin(State(shared): State<Arc<Shared>>, Json(request): Json<NameRequest>) -> Answer {
    shared.cache.unpin(&request.name).await?;
    Ok(done(json!({ "unpinned": request.name })))
}

async fn purge(State(shared): State<Arc<Shared>>, Json(request): Json<NameRequest>) -> Answer {
    let purged = match request.name.parse::<Digest>() {
        Ok(digest) => shared.cache.purge_digest(&digest).await?,
        Err(_) => shared.cache.purge(&parse(&request.name)?).await?,
    };
    Ok(done(purged))
}

async fn verify(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<VerifyRequest>,
) -> Response<Body> {
    let cache = Arc::clone(&shared.cache);
    shared.lines(async move |tell| {
        let disk = &cache.store().disk;
        let report = |checked: &Checked| {
            tell.progress(&json!({ "blobs": checked.blobs, "bytes": checked.bytes }));
        };
        Ok(disk.verify(request.rate, &report).await?)
    })
}

async fn why(State(shared): State<Arc<Shared>>, Query(about): Query<About>) -> Answer {
    Ok(done(shared.cache.why(&parse(&about.name)?).await?))
}

async fn history(State(shared): State<Arc<Shared>>, Query(about): Query<About>) -> Answer {
    let entries = shared.cache.history(&parse(&about.name)?).await?;
    let entry = |(variant, entry)| {
        let mut line = json!(entry);
        line["variant"] = json!(variant);
        line
    };
    Ok(done(
        json!({ "entries": entries.into_iter().map(entry).collect::<Vec<_>>() }),
    ))
}

async fn missing(State(shared): State<Arc<Shared>>) -> Json<Value> {
    done(json!({ "missing": shared.cache.missing().await }))
}

async fn status(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let cache = &shared.cache;
    let (blobs, bytes) = cache.store().disk.count();
    done(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "offline": cache.is_offline(),
        "blobs": blobs,
        "bytes": bytes,
        "limit": cache.store().disk.max_size(),
        "pinned": cache.store().disk.pins().all().0.len(),
        "pulled": cache.pulls().pulls.len(),
        "missing": cache.missing().await.len(),
        "downloads": cache.downloads(),
    }))
}

async fn pulls(State(shared): State<Arc<Shared>>) -> Json<Value> {
    done(shared.cache.pulls())
}

async fn egress(State(shared): State<Arc<Shared>>) -> Json<Value> {
    done(shared.cache.store().ledger())
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Refused> {
    text.parse()
        .map_err(|error: T::Err| Refused::Name(format!("{text:?}: {error}")))
}

fn done(answer: impl Serialize) -> Json<Value> {
    // Plain data: it always has a JSON form.
    Json(json!(answer))
}

// === lines ===

/// Tells how far something is.
#[derive(Clone, Debug)]
pub struct Teller {
    lines: mpsc::Sender<Bytes>,
    told: Arc<Mutex<Option<Instant>>>,
}

/// Runs what takes long and answers with lines about it.
#[derive(Clone, Debug)]
pub struct Lines {
    pub tracker: TaskTracker,
    /// Ends the work.
    pub stop: CancellationToken,
}

impl Teller {
    /// Not too often, and not at all when nobody listens as fast.
    pub fn progress(&self, progress: &impl Serialize) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            *told = Some(Instant::now());
            let _ = self.lines.try_send(line(&json!({ "progress": progress })));
        }
    }
}

impl Shared {
    /// Runs `work` and answers with lines about it. It ends early with the one who asked, and
    /// with the server.
    fn lines<T, F, W>(&self, work: W) -> Response<Body>
    where
        T: Serialize + Send,
        F: Future<Output = Result<T, KeepError>> + Send,
        W: FnOnce(Teller) -> F + Send + 'static,
    {
        let lines = Lines {
            tracker: self.tracker.clone(),
            stop: self.stop.clone(),
        };
        lines.answer(work)
    }
}

impl Lines {
    /// `work` is given up with the one who asked, and with the server.
    pub fn answer<T, E, F, W>(self, work: W) -> Response<Body>
    where
        T: Serialize + Send,
        E: std::fmt::Display + Send,
        F: Future<Output = Result<T, E>> + Send,
        W: FnOnce(Teller) -> F + Send + 'static,
    {
        let (lines, receiver) = mpsc::channel(64);
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let teller = Teller {
                lines: lines.clone(),
                told: Arc::default(),
            };
            let last = tokio::select! {
                () = lines.closed() => return,
                () = stop.cancelled() => json!({ "error": "the server is stopping" }),
                result = work(teller) => match result {
                    Ok(done) => json!({ "done": done }),
                    Err(error) => json!({ "error": error.to_string() }),
                },
            };
            let _ = lines.send(line(&last)).await;
        });
        let lines = stream::unfold(receiver, async |mut receiver| {
            let line = receiver.recv().await?;
            Some((Ok::<_, Infallible>(line), receiver))
        });
        let lines = Body::from_stream(lines);
        ([("content-type", "application/jsonl")], lines).into_response()
    }
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

// === impl Refused ===

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        let (status, error) = match self {
            Refused::Name(text) => (StatusCode::BAD_REQUEST, text),
            Refused::Keep(error) => (keep_status(&error), error.to_string()),
        };
        (status, Json(json!({ "error": error }))).into_response()
    }
}

impl From<KeepError> for Refused {
    fn from(error: KeepError) -> Self {
        Refused::Keep(error)
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Refused::Keep(error.into())
    }
}

#[cfg(test)]
mod tests;
