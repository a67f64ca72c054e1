//! A registry on loopback that does what a test tells it to, and counts.
//!
//! It holds documents by path, and a list of [`Fault`]s that apply to requests whose path contains
//! a given text. Everything that arrives is kept ([`Upstream::requests`]) and every body byte that
//! leaves is counted ([`Upstream::sent`]): the counters are what the tests judge by. One thread per
//! connection and plain blocking I/O, so that holding, stalling and cutting are what they look like.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use rustix::net::sockopt::set_socket_linger;

use super::canary::secret;
use super::image::{Image, Manifest};
use super::{PATIENCE, wire};

/// The realm of [`Upstream::require_token`] hands out this token.
pub const TOKEN: &str = secret!("token");

#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    accepting: Option<thread::JoinHandle<()>>,
}

/// What a connection's thread sees.
#[derive(Debug)]
pub struct Shared {
    pub address: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    documents: HashMap<String, Arc<Document>>,
    faults: Vec<Rule>,
    auth: Option<Auth>,
    latency: Duration,
    rate: Option<u64>,
    requests: Vec<Request>,
    sent: HashMap<String, u64>,
    /// Those that are open, by number.
    connections: HashMap<usize, TcpStream>,
    connects: usize,
    stopped: bool,
}

#[derive(Debug)]
pub struct Document {
    pub bytes: Vec<u8>,
    pub content_type: String,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
}

/// What goes wrong. Offsets count from the blob's first byte, whatever range was asked for; a
/// fault with an offset waits for a request that reaches it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// FIN in front of this byte.
    CutAt(u64),
    /// RST in front of this byte.
    ResetAt(u64),
    /// Silence from this byte on; the connection stays open.
    StallAt(u64),
    /// Nothing from this byte on until the gate opens.
    HoldAt(u64, Arc<Gate>),
    /// One bit of this byte is wrong.
    FlipBit(u64),
    /// `Range` is not understood: 200 and everything.
    NoRanges,
    /// How the end of the body is told.
    Framing(Framing),
    /// A header more, or in place of our own of that name.
    Header(&'static str, String),
    /// This instead of the document.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The same, but only to HEAD.
    AnswerHead(u16, Vec<u8>),
    /// 307 to this origin, same path.
    Redirect(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Content-Length is off by so much.
    LengthOffBy(i64),
    Chunked,
    /// Neither: the end is where the connection ends.
    CloseDelimited,
}

#[derive(Debug)]
struct Rule {
    fragment: String,
    left: usize,
    fault: Fault,
}

#[derive(Clone, Debug)]
enum Auth {
    Bearer { realm: String },
    Basic { header: String },
}

/// A door in the middle of a body.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

/// Everything that a connection's thread needs to answer one request.
#[derive(Debug)]
pub struct Script {
    pub document: Option<Arc<Document>>,
    pub faults: Vec<Fault>,
    /// Set when the request may not have the document.
    pub challenge: Option<String>,
    pub latency: Duration,
    pub rate: Option<u64>,
}

// === impl Upstream ===

impl Upstream {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        shared.document("/v2/", b"{}".to_vec(), "application/json");
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Upstream {
            shared,
            accepting: Some(accepting),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address())
    }

    // --- what it has ---

    /// Any document at any path (query not included).
    pub fn document(&self, path: &str, bytes: impl Into<Vec<u8>>, content_type: &str) {
        self.shared.document(path, bytes.into(), content_type);
    }

    pub fn blob(&self, repository: &str, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.document(
            &blob_path(repository, &digest),
            bytes,
            "application/octet-stream",
        );
        digest
    }

    /// A manifest by its digest, and by `tag`.
    pub fn manifest(&self, repository: &str, tag: &str, manifest: &Manifest) {
        for reference in [tag, &manifest.digest().to_string()] {
            let path = format!("/v2/{repository}/manifests/{reference}");
            self.document(&path, manifest.bytes.clone(), &manifest.media_type);
        }
    }

    /// An image with everything it refers to.
    pub fn image(&self, repository: &str, tag: &str, image: &Image) {
        self.manifest(repository, tag, &image.manifest);
        for blob in image.blobs() {
            self.blob(repository, blob.clone());
        }
    }

    pub fn remove(&self, path: &str) {
        self.shared.lock().documents.remove(path);
    }

    // --- how it behaves ---

    /// Before every answer.
    pub fn latency(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// Bytes per second and connection.
    pub fn rate(&self, rate: u64) {
        self.shared.lock().rate = Some(rate);
    }

    pub fn no_ranges(&self) {
        self.always("/blobs/", Fault::NoRanges);
    }

    /// Applies `fault` to the next `times` requests whose path contains `fragment`.
    pub fn times(&self, times: usize, fragment: impl Display, fault: Fault) {
        let rule = Rule {
            fragment: fragment.to_string(),
            left: times,
            fault,
        };
        self.shared.lock().faults.push(rule);
    }

    pub fn once(&self, fragment: impl Display, fault: Fault) {
        self.times(1, fragment, fault);
    }

    pub fn always(&self, fragment: impl Display, fault: Fault) {
        self.times(usize::MAX, fragment, fault);
    }

    /// From now on nothing at or behind `byte` leaves until the gate is opened; at 0 no answer to a
    /// HEAD either.
    pub fn hold(&self, fragment: impl Display, byte: u64) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        self.always(fragment, Fault::HoldAt(byte, Arc::clone(&gate)));
        gate
    }

    /// No faults any more; who waits at a gate goes on waiting.
    pub fn behave(&self) {
        self.shared.lock().faults.clear();
    }

    /// A Bearer challenge whose realm is this upstream's own `/token`.
    pub fn require_token(&self) {
        self.require_token_of(&format!("{}/token", self.origin()));
        let token = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
        self.document("/token", token, "application/json");
    }

    pub fn require_token_of(&self, realm: &str) {
        self.shared.lock().auth = Some(Auth::Bearer {
            realm: realm.to_owned(),
        });
    }

    /// `header` is the whole value of Authorization that opens the door.
    pub fn require_basic(&self, header: &str) {
        self.shared.lock().auth = Some(Auth::Basic {
            header: header.to_owned(),
        });
    }

    /// Stops listening and cuts every connection; what was counted can still be asked for.
    pub fn stop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stopped = true;
            for (_, connection) in state.connections.drain() {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        // accept() has no other way to hear of it.
        let _ = TcpStream::connect(self.address());
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }

    // --- what it saw ---

    /// Everything that arrived, in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// The requests whose path contains `fragment`.
    pub fn seen(&self, fragment: impl Display) -> Vec<Request> {
        let fragment = fragment.to_string();
        let mut requests = self.requests();
        requests.retain(|request| request.path.contains(&fragment));
        requests
    }

    /// How many GETs and HEADs there were for paths that contain `fragment`.
    pub fn hits(&self, fragment: impl Display) -> usize {
        self.seen(fragment).len()
    }

    /// Body bytes that left for paths that contain `fragment`.
    pub fn sent(&self, fragment: impl Display) -> u64 {
        let fragment = fragment.to_string();
        let state = self.shared.lock();
        state
            .sent
            .iter()
            .filter(|(path, _)| path.contains(&fragment))
            .map(|(_, sent)| sent)
            .sum()
    }

    /// Waits until that many body bytes have left.
    pub fn wait_until_sent(&self, fragment: impl Display, bytes: u64) {
        let fragment = fragment.to_string();
        self.wait_until(&format!("{bytes} bytes of {fragment} sent"), || {
            self.sent(&fragment) >= bytes
        });
    }

    /// Waits until that many requests for `fragment` have arrived.
    pub fn wait_until_hit(&self, fragment: impl Display, hits: usize) {
        let fragment = fragment.to_string();
        self.wait_until(&format!("{hits} requests for {fragment}"), || {
            self.hits(&fragment) >= hits
        });
    }

    /// TCP connections that were ever made.
    pub fn connects(&self) -> usize {
        self.shared.lock().connects
    }

    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}; {:#?}",
                self.requests()
            );
            let state = self.shared.lock();
            drop(
                self.shared
                    .changed
                    .wait_timeout(state, Duration::from_millis(50))
                    .unwrap(),
            );
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if self.accepting.is_some() {
            self.stop();
        }
    }
}

pub fn blob_path(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn document(&self, path: &str, bytes: Vec<u8>, content_type: &str) {
        let document = Document {
            bytes,
            content_type: content_type.to_owned(),
        };
        self.lock()
            .documents
            .insert(path.to_owned(), Arc::new(document));
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept() else {
                return;
            };
            let mut state = self.lock();
            if state.stopped {
                return;
            }
            state.connects += 1;
            let number = state.connects;
            state
                .connections
                .insert(number, stream.try_clone().unwrap());
            drop(state);
            let shared = Arc::clone(self);
            thread::spawn(move || {
                let ended = wire::serve(&shared, &stream);
                shared.lock().connections.remove(&number);
                // The other side hanging up is no failure of the test.
                if ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
                    let _ = set_socket_linger(&stream, Some(Duration::ZERO));
                } else {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
        }
    }

    /// Records `request` and says how to answer it.
    pub fn script(&self, request: &Request) -> Script {
        let mut state = self.lock();
        state.requests.push(request.clone());
        self.changed.notify_all();
        let document = state.documents.get(&request.path).map(Arc::clone);
        // Without ranges every request gets to every byte.
        let ranges = !state.faults.iter().any(|rule| {
            matches!(rule.fault, Fault::NoRanges) && request.path.contains(&rule.fragment)
        });
        let range = request.range().filter(|_| ranges).unwrap_or(0..u64::MAX);
        let mut faults = Vec::new();
        for rule in &mut state.faults {
            let reached = rule.fault.offset().is_none_or(|at| match rule.fault {
                Fault::HoldAt(..) => at < range.end,
                _ => range.contains(&at) && request.method == "GET",
            });
            if rule.left > 0 && reached && request.path.contains(&rule.fragment) {
                rule.left -= 1;
                faults.push(rule.fault.clone());
            }
        }
        let challenge = match &state.auth {
            _ if request.path == "/token" => None,
            Some(Auth::Bearer { realm })
                if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) =>
            {
                let repository = request.path.trim_start_matches("/v2/");
                let repository = repository.split("/manifests/").next().unwrap();
                let repository = repository.split("/blobs/").next().unwrap();
                Some(format!(
                    r#"Bearer realm="{realm}",service="upstream",scope="repository:{repository}:pull""#
                ))
            }
            Some(Auth::Basic { header }) if request.header("authorization") != Some(header) => {
                Some(r#"Basic realm="upstream""#.to_owned())
            }
            _ => None,
        };
        Script {
            document,
            faults,
            challenge,
            latency: state.latency,
            rate: state.rate,
        }
    }

    pub fn count(&self, path: &str, bytes: usize) {
        *self.lock().sent.entry(path.to_owned()).or_default() += bytes as u64;
        self.changed.notify_all();
    }
}

// === impl Request ===

impl Request {
    /// The first header of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// `Range: bytes=a-b` as a half-open range; without an end to the largest number.
    pub fn range(&self) -> Option<std::ops::Range<u64>> {
        let (start, end) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let end = if end.is_empty() {
            u64::MAX
        } else {
            end.parse::<u64>().ok()? + 1
        };
        Some(start.parse().ok()?..end)
    }
}

// === impl Fault ===

impl Fault {
    pub fn status(status: u16) -> Self {
        Fault::Answer(status, Vec::new(), b"{}".to_vec())
    }

    /// What a firewall's log-in page looks like.
    pub fn html() -> Self {
        let page = b"<!doctype html><title>Sign in</title><p>Please sign in to use the network.";
        Fault::Answer(
            200,
            vec![("Content-Type", "text/html".to_owned())],
            page.to_vec(),
        )
    }

    fn offset(&self) -> Option<u64> {
        match self {
            Fault::CutAt(at)
            | Fault::ResetAt(at)
            | Fault::StallAt(at)
            | Fault::HoldAt(at, _)
            | Fault::FlipBit(at) => Some(*at),
            _ => None,
        }
    }
}

// === impl Gate ===

impl Gate {
    /// Waits until a body stands at the gate.
    pub fn reached(&self) {
        let state = self.state.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |(waiting, _)| *waiting == 0);
        assert!(
            !waited.unwrap().1.timed_out(),
            "nothing ever came to the gate"
        );
    }

    pub fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    pub fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        // Longer than any test waits, so that a forgotten gate cannot hang the run.
        drop(
            self.changed
                .wait_timeout_while(state, 4 * PATIENCE, |(_, open)| !*open)
                .unwrap(),
        );
    }
}
