//! From a listening socket to requests: accept, TLS, HTTP, and the end of a connection.
//!
//! The accept loop is our own because what there is to be had has no limits on heads, on idle and
//! stalled connections or on their number. A connection whose body fails is closed by FIN short
//! of its Content-Length, never reset: containerd resumes after the one and gives up after the
//! other.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::{Connections, Lease};
use super::pulse::{Guarded, Pulse, Verdict, Watched};
use super::sendfile::{Queue, Wire};
use super::tls::{self, Tls};
use crate::policy::Subject;

/// The request line and all headers together, in bytes.
const LONGEST_HEAD: u32 = 32 << 10;
/// How much of a body hyper takes before it writes, in bytes: what a slow reader costs us.
const BUFFER: usize = 64 << 10;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait when the process has no file descriptors left.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What answers the requests of a listener.
pub(super) trait Handler: Send + Sync + 'static {
    type Body: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>
        + Send
        + Unpin
        + 'static;

    fn handle(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Of its certificate, where one is asked for.
    pub(super) subject: Option<Arc<Subject>>,
    /// Where bodies can go from file to socket.
    pub(super) queue: Option<Queue>,
}

/// A bound socket and the connections that came by it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    tls: Option<Arc<Tls>>,
    permits: Arc<Semaphore>,
    pub(super) connections: Arc<Connections>,
}

/// What every connection of a listener is served with.
struct Acceptor<H> {
    handler: Arc<H>,
    tls: Option<Arc<Tls>>,
    tracker: TaskTracker,
}

/// One connection, as its requests see it.
struct Session<H> {
    handler: Arc<H>,
    peer: Peer,
    pulse: Arc<Pulse>,
}

/// Spawns hyper's HTTP/2 streams where all of our tasks are counted.
#[derive(Clone)]
struct Executor(TaskTracker);

// === impl Listener ===

impl Listener {
    /// `most` connections in all, `per_client` of one address; `open` counts them.
    pub(super) async fn bind(
        address: SocketAddr,
        tls: Option<Arc<Tls>>,
        (most, per_client): (usize, usize),
        open: Gauge,
    ) -> io::Result<Self> {
        let socket = TcpListener::bind(address)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))?;
        Ok(Listener {
            socket,
            tls,
            permits: Arc::new(Semaphore::new(most)),
            connections: Connections::new(per_client, open),
        })
    }

    /// Whether it speaks TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until `stop`, then ends every connection. Each runs as a task of `tracker`.
    pub(super) async fn serve<H: Handler>(
        self,
        handler: Arc<H>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) {
        let accept = async {
            loop {
                let permit = Arc::clone(&self.permits).acquire_owned().await;
                let (stream, address) = self.accept().await;
                let client = address.ip().to_canonical();
                let Some(lease) = self.connections.enter(client) else {
                    tracing::debug!(%client, "too many connections of one client");
                    continue;
                };
                let by = Acceptor {
                    handler: Arc::clone(&handler),
                    tls: self.tls.clone(),
                    tracker: tracker.clone(),
                };
                tracker.spawn(async move {
                    Session::serve(stream, client, &lease, by).await;
                    drop((lease, permit));
                });
            }
        };
        tokio::select! {
            () = accept => {}
            () = self.connections.reap() => {}
            () = stop.cancelled() => {}
        }
        self.connections.cut();
    }

    async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok(accepted) => return accepted,
                Err(e) if is_the_clients(&e) => {}
                Err(error) => {
                    // Most likely out of file descriptors: only time helps, and asking again at
                    // once would only burn it.
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// The client went away between its connection and our accept.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

// === impl Session ===

impl<H: Handler> Session<H> {
    async fn serve(stream: TcpStream, client: IpAddr, lease: &Lease, by: Acceptor<H>) {
        // Answers are written whole; waiting to join them with others only delays them.
        let _ = stream.set_nodelay(true);
        let pulse = Arc::clone(&lease.pulse);
        let session = |queue, subject| {
            let peer = Peer {
                address: client,
                subject,
                queue,
            };
            Arc::new(Session {
                handler: by.handler,
                peer,
                pulse: Arc::clone(&pulse),
            })
        };
        let result = match by.tls {
            None => {
                let (wire, queue) = Wire::new(stream);
                session(Some(queue), None).http1(wire).await
            }
            Some(tls) => {
                let handshake = tokio::time::timeout(HANDSHAKE, tls.acceptor().accept(stream));
                let stream = match handshake.await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::debug!(%client, %error, "TLS handshake failed");
                        return;
                    }
                    Err(_) => return,
                };
                pulse.secured();
                let (_, connection) = stream.get_ref();
                let http2 = connection.alpn_protocol() == Some(b"h2");
                let session = session(None, tls::subject(connection.peer_certificates()));
                if http2 {
                    session.http2(stream, Executor(by.tracker)).await
                } else {
                    session.http1(stream).await
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%client, %error, "connection ended early");
        }
    }

    async fn http1<IO>(self: Arc<Self>, io: IO) -> hyper::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let pulse = Arc::clone(&self.pulse);
        let io = TokioIo::new(Watched::new(io, Arc::clone(&pulse), true));
        let service = service_fn(move |request| Arc::clone(&self).answer(request));
        let connection = http1::Builder::new()
            // Time is the pulse's business.
            .header_read_timeout(None)
            .max_header_size(LONGEST_HEAD as usize)
            .max_buf_size(BUFFER)
            .serve_connection(io, service);
        drive(connection, &pulse).await
    }

    async fn http2<IO>(self: Arc<Self>, io: IO, executor: Executor) -> hyper::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let pulse = Arc::clone(&self.pulse);
        let io = TokioIo::new(Watched::new(io, Arc::clone(&pulse), false));
        let service = service_fn(move |request| Arc::clone(&self).answer(request));
        let connection = http2::Builder::new(executor)
            .max_concurrent_streams(128)
            .max_header_list_size(LONGEST_HEAD)
            // Rapid reset (CVE-2023-44487) and its relatives.
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(256)
            .serve_connection(io, service);
        drive(connection, &pulse).await
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Guarded<H::Body>>, Infallible> {
        let in_hand = self.pulse.begin();
        let http1 = request.version() < Version::HTTP_2;
        let mut response = self.handler.handle(request, &self.peer).await;
        if http1 && self.pulse.is_finishing() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Guarded::new(body, in_hand)))
    }
}

/// Runs a connection to its end, or to the end that its pulse's verdict gives it.
async fn drive<C: GracefulConnection>(connection: C, pulse: &Pulse) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let mut finishing = false;
    poll_fn(|cx| {
        loop {
            match pulse.verdict(cx) {
                Verdict::Cut => return Poll::Ready(Ok(())),
                Verdict::Finish if !finishing => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Finish | Verdict::Live => {}
            }
            let result = connection.as_mut().poll(cx);
            // The first request of a connection may have come, and made it one to finish, just now.
            if result.is_ready() || finishing || pulse.verdict(cx) == Verdict::Live {
                return result;
            }
        }
    })
    .await
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

#[cfg(test)]
mod tests;
