//! What is known of one connection from outside of its task, and how it gets to be known.
//!
//! The socket notes bytes ([`Watched`]), a request notes its begin and its end ([`InHand`]). In
//! return the connection learns its [`Verdict`] here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// From the first byte of a request (or the connection) to the end of its head.
const HEAD: Duration = Duration::from_secs(10);
/// Between two requests: longer than clients keep a connection, shorter than load balancers do.
const IDLE: Duration = Duration::from_secs(90);
/// Without a byte going out while there are some to send.
const STALL: Duration = Duration::from_mins(1);

/// What is known of one connection from outside of its task.
#[derive(Debug)]
pub(super) struct Pulse {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct State {
    verdict: Verdict,
    /// Requests whose answers are not handed over yet.
    requests: usize,
    /// Whether there ever was a request.
    used: bool,
    /// Since when a request's head is on its way.
    head: Option<Instant>,
    /// Since when bytes wait to go out.
    stalled: Option<Instant>,
    /// When anything last happened.
    last: Instant,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Live,
    /// Ends after the request in hand, at once when there is none.
    Finish,
    /// Ends now.
    Cut,
}

/// A socket that notes its progress.
#[derive(Debug)]
pub(super) struct Watched<IO> {
    io: IO,
    pulse: Arc<Pulse>,
    /// In HTTP/2 bytes come between requests too, so they start no head.
    heads: bool,
}

/// A request from its head to the end of its answer's body.
#[derive(Debug)]
pub(super) struct InHand(Arc<Pulse>);

/// A body that ends the request in hand when it is dropped.
#[derive(Debug)]
pub(super) struct Guarded<B> {
    body: B,
    _request: InHand,
}

// === impl Pulse ===

impl Pulse {
    pub(super) fn new(verdict: Verdict) -> Self {
        let now = Instant::now();
        let state = State {
            verdict,
            requests: 0,
            used: false,
            head: Some(now),
            stalled: None,
            last: now,
        };
        Pulse {
            state: Mutex::new(state),
            waker: AtomicWaker::new(),
        }
    }

    /// The verdict; the task of `cx` is woken when it changes. A connection that is to finish
    /// lives until its first request has come: the client may have sent it already.
    pub(super) fn verdict(&self, cx: &Context<'_>) -> Verdict {
        self.waker.register(cx.waker());
        let state = self.lock();
        match state.verdict {
            Verdict::Finish if !state.used => Verdict::Live,
            verdict => verdict,
        }
    }

    /// TLS is set up: the time for the first request's head starts.
    pub(super) fn secured(&self) {
        self.lock().head = Some(Instant::now());
    }

    /// A request's head is here.
    pub(super) fn begin(self: &Arc<Self>) -> InHand {
        let mut state = self.lock();
        state.requests += 1;
        state.used = true;
        state.head = None;
        drop(state);
        InHand(Arc::clone(self))
    }

    /// Whether the request in hand is the last one here.
    pub(super) fn is_finishing(&self) -> bool {
        self.lock().verdict != Verdict::Live
    }

    /// Harsher verdicts stay.
    pub(super) fn judge(&self, verdict: Verdict) {
        let mut state = self.lock();
        state.verdict = state.verdict.max(verdict);
        drop(state);
        self.waker.wake();
    }

    /// Whether there ever was a request.
    pub(super) fn is_used(&self) -> bool {
        self.lock().used
    }

    /// Whether it has made no progress for too long.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.lock().is_overdue(now)
    }

    fn read(&self) {
        let mut state = self.lock();
        if state.requests == 0 && state.head.is_none() {
            state.head = Some(Instant::now());
        }
    }

    fn wrote<T>(&self, result: &Poll<io::Result<T>>) {
        let mut state = self.lock();
        if result.is_pending() {
            state.stalled.get_or_insert_with(Instant::now);
        } else {
            state.stalled = None;
            state.last = Instant::now();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_overdue(&self, now: Instant) -> bool {
        let longer_than = |limit: Duration, since: Instant| now.duration_since(since) >= limit;
        match (self.stalled, self.head) {
            (Some(since), _) => longer_than(STALL, since),
            // Time to answer is limited elsewhere.
            _ if self.requests > 0 => false,
            (None, Some(since)) => longer_than(HEAD, since),
            (None, None) => longer_than(IDLE, self.last),
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests -= 1;
        state.last = Instant::now();
    }
}

// === impl Watched ===

impl<IO> Watched<IO> {
    pub(super) fn new(io: IO, pulse: Arc<Pulse>, heads: bool) -> Self {
        Watched { io, pulse, heads }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        if self.heads && buf.filled().len() > before {
            self.pulse.read();
        }
        result
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.pulse.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.pulse.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// TLS holds bytes back until here; a plain socket never does.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        // Done means nothing unless bytes were stuck before.
        if result.is_pending() || self.pulse.lock().stalled.is_some() {
            self.pulse.wrote(&result);
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl Guarded ===

impl<B> Guarded<B> {
    pub(super) fn new(body: B, request: InHand) -> Self {
        Guarded {
            body,
            _request: request,
        }
    }
}

impl<B: http_body::Body<Data = Bytes> + Unpin> http_body::Body for Guarded<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
