//! Clients: HTTP/1.1 on blocking sockets, which drop bodies inside the kernel (`MSG_TRUNC`), so
//! that two cores are enough for them, the peer and the upstream.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

/// A kept-alive connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What becomes of a body.
#[derive(Clone, Copy)]
pub(crate) enum Sink<'a> {
    Drop,
    /// Every byte must be that of the file.
    Compare(&'a File),
}

/// Shared by the clients of one load, counted while bodies run.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) bytes: AtomicU64,
    pub(crate) requests: AtomicU64,
    /// Clients end at their next byte.
    pub(crate) stop: AtomicBool,
}

/// One complete answer.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// When the first byte of the body came; of the header, if there is no body.
    pub(crate) first_byte: Instant,
    pub(crate) end: Instant,
}

#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) head_only: bool,
    pub(crate) path: String,
}

/// What many clients got done in a time.
pub(crate) struct Throughput {
    pub(crate) requests: f64,
    pub(crate) gigabytes: f64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Long enough for every peer; a hang must end the run, not the patience.
const SILENCE: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 20;

const ACCEPT: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

// === impl Client ===

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Client {
            stream,
            buffer: vec![0; BUFFER],
        })
    }

    /// Asks and reads the answer to its end. Any status but 200 is an error, and so is a body that
    /// is not as long as its Content-Length.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        sink: Sink<'_>,
        progress: &Progress,
    ) -> Result<Answer> {
        self.stream.write_all(&request.wire("keep-alive"))?;
        let (head, mut start, mut have) = self.read_head()?;
        let length = if request.head_only {
            0
        } else {
            content_length(&head)?
        };
        let mut first_byte = Instant::now();
        let mut received = 0;
        loop {
            if have > 0 {
                if received == 0 {
                    first_byte = Instant::now();
                }
                if let Sink::Compare(file) = sink {
                    compare(&self.buffer[start..start + have], file, received)?;
                }
                received += have as u64;
                progress.bytes.fetch_add(have as u64, Ordering::Relaxed);
            }
            if received >= length {
                break;
            }
            if progress.stop.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            let wanted = BUFFER.min(usize::try_from(length - received).unwrap_or(BUFFER));
            start = 0;
            have = self.receive(wanted, sink)?;
        }
        progress.requests.fetch_add(1, Ordering::Relaxed);
        Ok(Answer {
            first_byte,
            end: Instant::now(),
        })
    }

    fn receive(&mut self, wanted: usize, sink: Sink<'_>) -> Result<usize> {
        let flags = match sink {
            Sink::Drop => RecvFlags::TRUNC,
            Sink::Compare(_) => RecvFlags::empty(),
        };
        match recv(&self.stream, &mut self.buffer[..wanted], flags)? {
            (_, 0) => Err(Error::new(ErrorKind::UnexpectedEof, "the body ended early")),
            (_, length) => Ok(length),
        }
    }

    /// The header, where the body begins in the buffer, and how much of it is there already.
    fn read_head(&mut self) -> Result<(String, usize, usize)> {
        let mut filled = 0;
        loop {
            // A small limit: what comes with the header must be copied.
            let window = &mut self.buffer[filled..(filled + 4096).min(BUFFER)];
            let (_, length) = recv(&self.stream, window, RecvFlags::empty())?;
            if length == 0 {
                return Err(Error::new(ErrorKind::UnexpectedEof, "no answer"));
            }
            filled += length;
            let seen = &self.buffer[..filled];
            if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                let body = end + 4;
                let head = String::from_utf8_lossy(&seen[..body]).into_owned();
                if !head.starts_with("HTTP/1.1 200") {
                    let line = head.lines().next().unwrap_or_default();
                    return Err(Error::other(format!("answered {line}")));
                }
                return Ok((head, body, filled - body));
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // What was not read would turn the close into a reset, which some peers log at length.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

// === impl Request ===

impl Request {
    pub(crate) fn get(path: &str) -> Self {
        Request {
            head_only: false,
            path: path.to_owned(),
        }
    }

    pub(crate) fn head(path: &str) -> Self {
        Request {
            head_only: true,
            path: path.to_owned(),
        }
    }

    /// The request as it goes over the wire.
    pub(crate) fn wire(&self, connection: &str) -> Vec<u8> {
        let method = if self.head_only { "HEAD" } else { "GET" };
        let path = &self.path;
        format!(
            "{method} {path} HTTP/1.1\r\nHost: registry.bench\r\nAccept: {ACCEPT}\r\n\
             Connection: {connection}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// One request on a connection of its own.
pub(crate) fn ask_once(address: SocketAddr, request: &Request) -> Result<Answer> {
    Client::connect(address)?.ask(request, Sink::Drop, &Progress::default())
}

/// `clients` of them run `client` over and over for `time`; `cpu` is read at both ends. The first
/// error of any ends the load.
pub(crate) fn hammer<C>(
    clients: usize,
    time: Duration,
    cpu: impl Fn() -> f64,
    client: C,
) -> Result<Throughput>
where
    C: Fn(&Progress, &Barrier) -> Result<()> + Sync,
{
    let progress = Arc::new(Progress::default());
    let ready = Barrier::new(clients + 1);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|_| scope.spawn(|| client(&progress, &ready)))
            .collect();
        ready.wait();
        let (begin, cpu_begin) = (Instant::now(), cpu());
        thread::sleep(time);
        let throughput = Throughput {
            requests: count(&progress.requests),
            gigabytes: count(&progress.bytes) / 1e9,
            seconds: begin.elapsed().as_secs_f64(),
            cpu_seconds: cpu() - cpu_begin,
        };
        progress.stop.store(true, Ordering::Relaxed);
        for worker in workers {
            match worker.join() {
                Ok(Err(error)) if error.kind() != ErrorKind::Interrupted => return Err(error),
                Ok(_) => {}
                Err(_) => return Err(Error::other("a client panicked")),
            }
        }
        Ok(throughput)
    })
}

/// Asks the same until the load ends: the client of [`hammer`] for plain HTTP.
pub(crate) fn ask_until_stopped(
    address: SocketAddr,
    request: &Request,
    progress: &Progress,
    ready: &Barrier,
) -> Result<()> {
    let client = Client::connect(address);
    ready.wait();
    let mut client = client?;
    while !progress.stop.load(Ordering::Relaxed) {
        client.ask(request, Sink::Drop, progress)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

fn compare(bytes: &[u8], file: &File, offset: u64) -> Result<()> {
    let mut expected = vec![0; bytes.len()];
    file.read_exact_at(&mut expected, offset)?;
    if bytes == expected {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::InvalidData,
            format!("wrong bytes behind offset {offset}"),
        ))
    }
}

fn content_length(head: &str) -> Result<u64> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| Error::other("an answer without Content-Length"))
}
