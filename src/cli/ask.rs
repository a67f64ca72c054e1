//! Brings a request to the process that has the store: over `control.sock` when a server runs,
//! else to ourselves, with the store's lock taken.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::body::Body;
use futures_util::StreamExt as _;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::form_urlencoded;

use crate::app::{self, Engine, Role};
use crate::config::{Config, Source, check};
use crate::server::control::Control;
use crate::store::control::socket;

/// The longest line or answer, in bytes: a list of a million blobs.
const LONGEST: usize = 256 << 20;
/// How long a server may take to answer the connection itself.
const CONNECT: Duration = Duration::from_secs(10);

/// A request of `/api/v1`.
#[derive(Debug)]
pub(super) struct Asked {
    method: &'static str,
    path: String,
    body: Body,
}

/// The process that has the store.
#[derive(Debug)]
pub(super) enum Service {
    /// A server, by its socket.
    There(PathBuf),
    Here(Control),
}

/// How far the work is, on a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    verb: &'static str,
}

/// Asks and waits for the answer. Ending this early ends the work, and harms nothing.
pub(super) async fn ask(
    config: &Config,
    source: &Source,
    asked: Asked,
    progress: Progress,
) -> anyhow::Result<Value> {
    with_service(config, source, async move |service| {
        service.ask(asked, &progress).await
    })
    .await
}

/// Does `work` with the process that has the store, which is this one where no server runs.
pub(super) async fn with_service<T>(
    config: &Config,
    source: &Source,
    work: impl AsyncFnOnce(&Service) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if connect(&config.store.path).await?.is_some() {
        return work(&Service::There(config.store.path.clone())).await;
    }
    let faults = check::check(config, source);
    if !faults.is_empty() {
        return Err(crate::cli::invalid(source, faults).into());
    }
    // The store is closed in good order, or the next start would hash all of it.
    let signal = app::signalled()?;
    let engine = Engine::start(config, Role::Command).await?;
    let stop = CancellationToken::new();
    let service = Service::Here(engine.control(stop.clone()));
    let done = tokio::select! {
        done = work(&service) => done,
        () = signal => Err(anyhow!("interrupted")),
    };
    stop.cancel();
    engine.stop().await?;
    done
}

// === impl Service ===

impl Service {
    /// The result: the whole body, or the last of its lines.
    pub(super) async fn ask(&self, asked: Asked, progress: &Progress) -> anyhow::Result<Value> {
        answer(self.call(asked).await?, progress).await
    }

    /// What is granted for as long as the answer lives, which has no end of its own.
    pub(super) async fn hold(&self, asked: Asked) -> anyhow::Result<Body> {
        let response = self.call(asked).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let said = answer(response, &Progress::silent()).await?;
        Err(anyhow!("{said}"))
    }

    async fn call(&self, asked: Asked) -> anyhow::Result<Response<Body>> {
        match self {
            Service::There(store) => {
                let stream = connect(store).await?;
                over(stream.context("the server went away")?, asked.request()?).await
            }
            Service::Here(control) => Ok(control.call(asked.request()?).await),
        }
    }
}

/// What the server that has this store answers to a GET; None: no server has it.
pub(super) async fn ask_server(store: &Path, what: &str) -> anyhow::Result<Option<Value>> {
    let Some(stream) = connect(store).await? else {
        return Ok(None);
    };
    let response = over(stream, Asked::get(what, None).request()?).await?;
    answer(response, &Progress::silent()).await.map(Some)
}

/// None: no server has this store.
async fn connect(store: &Path) -> anyhow::Result<Option<UnixStream>> {
    let path = socket(store);
    match UnixStream::connect(&path).await {
        Ok(stream) => Ok(Some(stream)),
        // Never there, or left by a server that is gone.
        Err(error) if is_nobody(&error) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}", path.display())),
    }
}

fn is_nobody(error: &io::Error) -> bool {
    // A path that is too long for a socket has none.
    use io::ErrorKind::{ConnectionRefused, InvalidInput, NotFound};
    matches!(error.kind(), ConnectionRefused | InvalidInput | NotFound)
}

async fn over(stream: UnixStream, request: Request<Body>) -> anyhow::Result<Response<Body>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the runtime.
    TaskTracker::new().spawn(connection);
    let answer = tokio::time::timeout(CONNECT, sender.ready()).await;
    answer.context("the server does not answer on control.sock")??;
    let response = sender.send_request(request).await;
    Ok(response.context("the server went away")?.map(Body::new))
}

/// The result: the whole body, or the last of its lines.
async fn answer(response: Response<Body>, progress: &Progress) -> anyhow::Result<Value> {
    let is_lines = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|found| found == "application/jsonl");
    let is_success = response.status().is_success();
    let mut body = response.into_body().into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.context("the server went away")?);
        if bytes.len() > LONGEST {
            return Err(anyhow!("the server's answer does not end"));
        }
        while is_lines && let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            let mut line: Value = serde_json::from_slice(&line)?;
            if let Some(error) = line["error"].as_str() {
                return Err(anyhow!("{error}"));
            }
            if !line["done"].is_null() {
                progress.bar.finish_and_clear();
                return Ok(line["done"].take());
            }
            progress.show(&line["progress"]);
        }
    }
    if is_lines {
        return Err(anyhow!("the server went away before it was done"));
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(answer) if is_success => Ok(answer),
        Ok(answer) if answer["error"].is_string() => {
            Err(anyhow!("{}", answer["error"].as_str().unwrap_or_default()))
        }
        _ => Err(anyhow!("{}", String::from_utf8_lossy(&bytes))),
    }
}

// === impl Asked ===

impl Asked {
    pub(super) fn get(what: &str, name: Option<&str>) -> Self {
        let query = name.map(|name| {
            let name = form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>();
            format!("?name={name}")
        });
        Asked {
            method: "GET",
            path: format!("/api/v1/{what}{}", query.unwrap_or_default()),
            body: Body::empty(),
        }
    }

    pub(super) fn post(what: &str, body: &impl Serialize) -> anyhow::Result<Self> {
        Ok(Asked {
            method: "POST",
            path: format!("/api/v1/{what}"),
            body: serde_json::to_string(body)?.into(),
        })
    }

    /// Sends what is no JSON. `query` begins with a question mark.
    pub(super) fn send(what: &str, query: &str, body: Body) -> Self {
        Asked {
            method: "POST",
            path: format!("/api/v1/{what}{query}"),
            body,
        }
    }

    fn request(self) -> anyhow::Result<Request<Body>> {
        let request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(HOST, "control")
            .header(CONTENT_TYPE, "application/json");
        Ok(request.body(self.body)?)
    }
}

// === impl Progress ===

impl Progress {
    /// Draws on stderr, if that is a terminal.
    pub(super) fn new(verb: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress { bar, verb }
    }

    pub(super) fn silent() -> Self {
        Progress {
            bar: ProgressBar::hidden(),
            verb: "",
        }
    }

    /// How many bytes there will be.
    pub(super) fn expect(&self, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_message(self.verb);
    }

    /// So many of them are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// `{"blobs": [done, all], "bytes": [done, all]}`
    fn show(&self, progress: &Value) {
        let number = |name: &str, at: usize| progress[name][at].as_u64().unwrap_or(0);
        self.bar.set_length(number("bytes", 1));
        self.bar.set_position(number("bytes", 0));
        let (done, all) = (number("blobs", 0), number("blobs", 1));
        self.bar.set_message(format!("{} {done}/{all}", self.verb));
    }
}
