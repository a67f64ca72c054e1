//! An HTTP/1.1 server on loopback that answers as a test tells it to, and remembers what came.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// What a server says to one request.
type Script = dyn Fn(&Request) -> Reply + Send + Sync;

pub(in crate::upstream) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    connections: Arc<Mutex<usize>>,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Request {
    pub(super) method: String,
    /// Path and query.
    pub(in crate::upstream) target: String,
    /// Names in lower case, in the order of their coming.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

pub(in crate::upstream) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The length to announce; None announces none and ends the body by closing.
    length: Option<usize>,
    then: Then,
    /// Nothing is sent before this.
    after: Option<Arc<Notify>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Wait for the next request.
    KeepAlive,
    Close,
    /// Neither send nor close anything more.
    Stall,
    /// Send nothing at all, not even this reply, and close.
    HangUp,
}

// === impl Server ===

impl Server {
    pub(in crate::upstream) async fn start(
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Arc::new(script), None).await
    }

    pub(super) async fn start_tls(
        config: Arc<rustls::ServerConfig>,
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::listen(Arc::new(script), Some(config.into())).await
    }

    /// A server that nobody should ever find.
    pub(in crate::upstream) async fn bystander() -> Self {
        Self::start(|_| Reply::new(200, "you should not be here")).await
    }

    async fn listen(script: Arc<Script>, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let (log, count) = (Arc::clone(&seen), Arc::clone(&connections));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                *count.lock().unwrap() += 1;
                let (script, log, tls) = (Arc::clone(&script), Arc::clone(&log), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &*script, &log).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &*script, &log).await;
                            }
                        }
                    }
                });
            }
        });
        Server {
            address,
            seen,
            connections,
        }
    }

    pub(in crate::upstream) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests whose path begins with `prefix`.
    pub(in crate::upstream) fn count(&self, prefix: &str) -> usize {
        self.seen()
            .iter()
            .filter(|request| request.target.starts_with(prefix))
            .count()
    }

    pub(in crate::upstream) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    log: &Mutex<Vec<Request>>,
) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = Request::read(&mut stream).await {
        log.lock().unwrap().push(request.clone());
        let reply = script(&request);
        if let Some(after) = &reply.after {
            after.notified().await;
        }
        if reply.then == Then::HangUp {
            return;
        }
        if stream
            .write_all(&reply.bytes(request.method == "HEAD"))
            .await
            .is_err()
        {
            return;
        }
        let _ = stream.flush().await;
        match reply.then {
            Then::KeepAlive => {}
            Then::Stall => std::future::pending().await,
            Then::Close | Then::HangUp => {
                let _ = stream.shutdown().await;
                return;
            }
        }
    }
}

// === impl Request ===

impl Request {
    pub(super) async fn read(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines.first()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let header = |line: &String| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_lowercase(), value.to_owned()))
        };
        let headers = lines[1..].iter().filter_map(header).collect();
        let mut request = Request {
            method,
            target,
            headers,
            body: String::new(),
        };
        if let Some(length) = request.header("content-length") {
            let mut body = vec![0; length.parse().ok()?];
            stream.read_exact(&mut body).await.ok()?;
            request.body = String::from_utf8(body).ok()?;
        }
        Some(request)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

// === impl Reply ===

impl Reply {
    pub(in crate::upstream) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let length = Some(body.len());
        Reply {
            status,
            headers: Vec::new(),
            body,
            length,
            then: Then::KeepAlive,
            after: None,
        }
    }

    pub(in crate::upstream) fn redirect(location: impl Into<String>) -> Self {
        Reply::new(307, "<html>".repeat(2000)).header("location", location)
    }

    pub(super) fn challenge(challenge: impl Into<String>) -> Self {
        Reply::new(401, "{}").header("www-authenticate", challenge)
    }

    /// A reply with no header and no body: the connection just ends.
    pub(super) fn hang_up() -> Self {
        Reply::new(200, "").then(Then::HangUp)
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn length(mut self, length: Option<usize>) -> Self {
        self.length = length;
        if length.is_none() {
            self.then = Then::Close;
        }
        self
    }

    pub(super) fn after(mut self, event: &Arc<Notify>) -> Self {
        self.after = Some(Arc::clone(event));
        self
    }

    pub(super) fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    fn bytes(&self, head_only: bool) -> Vec<u8> {
        use std::fmt::Write as _;
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(length) = self.length {
            let _ = write!(head, "content-length: {length}\r\n");
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}
