//! A registry to be slow on purpose: it waits before each answer, holds every connection to a
//! rate, may refuse to know ranges, and counts what it sends.
//!
//! One thread per connection and `sendfile`, so that it costs little beside what is measured.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::content::{Bytes, Content, Resource};

/// A running upstream. It lives as long as the process.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// How the upstream answers from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Behaviour {
    /// Before each response header.
    pub(crate) latency: Duration,
    /// Bytes per second of each connection.
    pub(crate) rate: Option<u32>,
    /// False: a `Range` header is overlooked.
    pub(crate) ranges: bool,
}

/// What was asked for and sent, since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    requests: u64,
    bytes: HashMap<String, u64>,
}

struct Shared {
    content: Arc<Content>,
    behaviour: Mutex<Behaviour>,
    tally: Mutex<Tally>,
}

struct Request {
    head_only: bool,
    path: String,
    range: Option<(u64, Option<u64>)>,
    close: bool,
}

/// Holds one connection to its rate: a token bucket that never saves up more than one burst.
struct Pacer {
    due: Instant,
}

/// What a paced connection sends between two sleeps, as a part of a second.
const BURSTS_PER_SECOND: u32 = 200;

// === impl Upstream ===

impl Upstream {
    pub(crate) fn start(content: Arc<Content>, behaviour: Behaviour) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            content,
            behaviour: Mutex::new(behaviour),
            tally: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&accepting);
                // A peer that hangs up is part of the game: its connection just ends.
                thread::spawn(move || shared.connection(&stream));
            }
        });
        Ok(Upstream { address, shared })
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// What happened since the last call, once nothing has happened for a while: some peers go on
    /// fetching when their clients have all they asked for.
    pub(crate) fn take_tally(&self) -> Tally {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut seen = lock(&self.shared.tally).total();
        loop {
            thread::sleep(Duration::from_millis(250));
            let total = lock(&self.shared.tally).total();
            if total == seen || Instant::now() > deadline {
                return std::mem::take(&mut lock(&self.shared.tally));
            }
            seen = total;
        }
    }
}

// === impl Tally ===

impl Tally {
    fn total(&self) -> u64 {
        self.requests + self.bytes.values().sum::<u64>()
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a run is far below 2^52 requests"
    )]
    pub(crate) fn requests(&self) -> f64 {
        self.requests as f64
    }

    /// Body bytes sent for `path`.
    #[expect(clippy::cast_precision_loss, reason = "a run is far below 2^52 bytes")]
    pub(crate) fn bytes(&self, path: &str) -> f64 {
        self.bytes.get(path).copied().unwrap_or(0) as f64
    }
}

// === impl Shared ===

impl Shared {
    fn connection(&self, stream: &TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut pacer = Pacer {
            due: Instant::now(),
        };
        while let Some(request) = Request::read(&mut reader)? {
            let behaviour = *lock(&self.behaviour);
            lock(&self.tally).requests += 1;
            thread::sleep(behaviour.latency);
            self.answer(stream, &request, behaviour, &mut pacer)?;
            if request.close {
                break;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        behaviour: Behaviour,
        pacer: &mut Pacer,
    ) -> Result<()> {
        let Some(resource) = self.content.get(&request.path) else {
            let status = match request.path.as_str() {
                "/v2" | "/v2/" => "200 OK",
                _ => "404 Not Found",
            };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(());
        };
        let asked = request.range.filter(|_| behaviour.ranges);
        let mut head = String::new();
        let range = match asked {
            None => {
                head.push_str("HTTP/1.1 200 OK\r\n");
                0..resource.length
            }
            Some((first, _)) if first >= resource.length => {
                let length = resource.length;
                write!(
                    stream,
                    "HTTP/1.1 416 Range Not Satisfiable\r\n\
                     Content-Range: bytes */{length}\r\nContent-Length: 0\r\n\r\n"
                )?;
                return Ok(());
            }
            Some((first, last)) => {
                let end = last.map_or(resource.length, |last| resource.length.min(last + 1));
                write!(
                    head,
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{}/{}\r\n",
                    end.saturating_sub(1),
                    resource.length
                )?;
                first..end
            }
        };
        if behaviour.ranges {
            head.push_str("Accept-Ranges: bytes\r\n");
        }
        write!(
            head,
            "Content-Type: {}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
             ETag: \"{}\"\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\r\n",
            resource.media_type,
            range.end - range.start,
            resource.digest,
            resource.digest,
        )?;
        stream.write_all(head.as_bytes())?;
        if request.head_only {
            return Ok(());
        }
        self.body(stream, request, resource, range, behaviour.rate, pacer)
    }

    fn body(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        resource: &Resource,
        range: Range<u64>,
        rate: Option<u32>,
        pacer: &mut Pacer,
    ) -> Result<()> {
        let chunk = rate.map_or(1 << 20, |rate| u64::from(rate / BURSTS_PER_SECOND));
        let mut offset = range.start;
        while offset < range.end {
            let wanted = usize::try_from(chunk.min(range.end - offset))?;
            let sent = match &resource.bytes {
                Bytes::Memory(bytes) => {
                    let start = usize::try_from(offset)?;
                    stream.write(&bytes[start..start + wanted])?
                }
                Bytes::File(file) => {
                    let mut position = offset;
                    rustix::fs::sendfile(stream, file, Some(&mut position), wanted)?
                }
            } as u64;
            offset += sent;
            self.count(&request.path, sent);
            if let Some(rate) = rate {
                pacer.sent(sent, rate);
            }
        }
        Ok(())
    }

    fn count(&self, path: &str, sent: u64) {
        let mut tally = lock(&self.tally);
        if let Some(bytes) = tally.bytes.get_mut(path) {
            *bytes += sent;
        } else {
            tally.bytes.insert(path.to_owned(), sent);
        }
    }
}

// === impl Request ===

impl Request {
    /// The next request of a connection; `None` when the client has hung up.
    fn read(reader: &mut BufReader<&TcpStream>) -> Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let head_only = words.next() == Some("HEAD");
        let target = words.next().unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let (mut range, mut close) = (None, false);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "range" => range = parse_range(value.trim()),
                "connection" => close = value.trim().eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Ok(Some(Request {
            head_only,
            path,
            range,
            close,
        }))
    }
}

/// `bytes=first-` or `bytes=first-last`; the other forms are left alone, as RFC 9110 allows.
fn parse_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let last = match last {
        "" => None,
        digits => Some(digits.parse().ok()?),
    };
    Some((first.parse().ok()?, last))
}

// === impl Pacer ===

impl Pacer {
    fn sent(&mut self, bytes: u64, rate: u32) {
        let now = Instant::now();
        let burst = Duration::from_secs(1) / BURSTS_PER_SECOND;
        // A late wake-up is made up for by at most a few bursts; an idle time is not saved up.
        self.due = self.due.max(now.checked_sub(4 * burst).unwrap_or(now));
        #[expect(
            clippy::cast_precision_loss,
            reason = "a chunk is far below 2^52 bytes"
        )]
        let cost = Duration::from_secs_f64(bytes as f64 / f64::from(rate));
        self.due += cost;
        thread::sleep(self.due.saturating_duration_since(now));
    }
}

/// A thread that panicked has already been reported; the counters are still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
