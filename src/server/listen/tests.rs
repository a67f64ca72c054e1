//! Real sockets, real files: what a client gets, byte by byte.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use http::Method;
use http::header::CONTENT_LENGTH;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::cache::Pieces;
use crate::server::client::{Client, assert_same, length};
use crate::server::tls::tests::Pair;
use crate::server::{body, respond, v2};
use crate::store::FileRange;
use crate::telemetry::metrics::{ReloadLabels, ReloadResult};

const MIB: usize = 1 << 20;

/// Every length at which something changes: nothing, one byte, copied or sent as a file, one
/// frame or two, several.
const LENGTHS: [usize; 9] = [
    0,
    1,
    64 << 10,
    (64 << 10) + 1,
    128 << 10,
    MIB - 1,
    MIB,
    MIB + 1,
    10 * MIB,
];

/// Answers `/FROM-TO` with these bytes of a file, after `/chunked` with an unknown length, after
/// `/short` with a length that is 10 bytes too large; `/wait` when `gate` opens.
struct Files {
    file: Arc<File>,
    gate: Semaphore,
}

struct Server {
    address: SocketAddr,
    content: Vec<u8>,
    connections: Arc<Connections>,
    handler: Arc<Files>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Handler for Files {
    type Body = body::Body;

    async fn handle(&self, request: Request<Incoming>, peer: &Peer) -> Response<body::Body> {
        if let Err(e) = v2::check(&request) {
            return respond::error(false, &e.into());
        }
        let path = request.uri().path().trim_start_matches('/');
        if path == "wait" {
            self.gate.acquire().await.unwrap().forget();
            return Response::new(body::Body::bytes("waited"));
        }
        let (kind, range) = path.split_once('/').unwrap_or(("", path));
        let (from, to) = range.split_once('-').unwrap();
        let range: Range<u64> = from.parse().unwrap()..to.parse().unwrap();
        let len = range.end - range.start + if kind == "short" { 10 } else { 0 };
        let pieces = Pieces::File(Some(FileRange::new(Arc::clone(&self.file), range)));
        let queue = peer.queue.clone();
        match kind {
            "chunked" => Response::new(body::Body::blob(pieces, None, queue)),
            _ if request.method() == Method::HEAD => {
                let mut response = Response::new(body::Body::empty());
                response.headers_mut().insert(CONTENT_LENGTH, len.into());
                response
            }
            _ => Response::new(body::Body::blob(pieces, Some(len), queue)),
        }
    }
}

impl Server {
    async fn start(tls: Option<Arc<Tls>>) -> Self {
        let content: Vec<u8> = (0..11 * MIB)
            .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
            .collect();
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&path, &content).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let handler = Arc::new(Files {
            file,
            gate: Semaphore::new(0),
        });
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(address, tls, (64, 64), Gauge::default())
            .await
            .unwrap();
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let server = Server {
            address: listener.address().unwrap(),
            content,
            connections: Arc::clone(&listener.connections),
            handler: Arc::clone(&handler),
            tracker: tracker.clone(),
            stop: stop.clone(),
        };
        tracker.spawn(listener.serve(handler, stop, tracker.clone()));
        server
    }

    async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// Every connection has ended when this returns.
    async fn stopped(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        assert_eq!(self.connections.in_use(), 0);
    }
}

async fn secured(dir: &Path, http2: bool) -> (Server, Arc<rustls::ClientConfig>) {
    let pair = Pair::write(dir, "portcullis.test");
    let tls = Tls::load(pair.config(), http2).unwrap();
    (Server::start(Some(tls)).await, pair.client())
}

async fn connect_tls(
    server: &Server,
    config: Arc<rustls::ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("portcullis.test").unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    TlsConnector::from(config).connect(name, stream).await
}

#[tokio::test]
async fn bodies_of_every_length_arrive_on_one_connection() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    for len in LENGTHS {
        let body = client.get(&format!("/0-{len}")).await;
        assert_same(&body, &server.content[..len]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn ranges_arrive_from_anywhere() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    for (from, to) in [
        (1, 2),
        (4095, 4097),
        (MIB - 1, 2 * MIB + 1),
        (3, 10 * MIB + 7),
    ] {
        let body = client.get(&format!("/{from}-{to}")).await;
        assert_same(&body, &server.content[from..to]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn a_slow_reader_gets_the_same_bytes() {
    let server = Server::start(None).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = Client::new(socket.connect(server.address).await.unwrap());
    client.step = 5000;
    client.send("GET", &format!("/7-{}", 3 * MIB)).await;
    let head = client.head().await;
    let mut body = Vec::new();
    while body.len() < length(&head) {
        // Others run, and the server finds the socket full, between any two reads.
        tokio::task::yield_now().await;
        let some = client.bytes(1.max(client.buffer.len())).await;
        body.extend_from_slice(&some);
    }
    assert_same(&body, &server.content[7..3 * MIB]);
    server.stopped().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    let ranges = [(0, 10), (5, 2 * MIB), (100, 100), (9, MIB + 9), (0, 70_000)];
    for (from, to) in ranges {
        client.send("GET", &format!("/{from}-{to}")).await;
        client.send("HEAD", &format!("/{from}-{to}")).await;
    }
    for (from, to) in ranges {
        let body = client.answer().await;
        assert_same(&body, &server.content[from..to]);
        assert_eq!(length(&client.head().await), to - from);
    }
    server.stopped().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_chunked() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    client.send("GET", &format!("/chunked/3-{}", 2 * MIB)).await;
    assert!(client.head().await.contains("transfer-encoding: chunked"));
    let mut body = Vec::new();
    loop {
        while !client.buffer.windows(2).any(|w| w == b"\r\n") {
            assert!(client.more().await);
        }
        let end = client.buffer.windows(2).position(|w| w == b"\r\n").unwrap();
        let line = client.bytes(end + 2).await;
        let len = usize::from_str_radix(str::from_utf8(&line[..end]).unwrap(), 16).unwrap();
        let chunk = client.bytes(len + 2).await;
        if len == 0 {
            break;
        }
        body.extend_from_slice(&chunk[..len]);
    }
    assert_same(&body, &server.content[3..2 * MIB]);
    assert_same(&client.get("/0-5").await, &server.content[..5]);
    server.stopped().await;
}

#[tokio::test]
async fn a_body_that_fails_ends_short_and_without_a_reset() {
    let server = Server::start(None).await;
    // More than the file has: sendfile(2), and the check before it, find its end.
    for (path, sent) in [("/short/0-5", 5), (&*format!("/0-{}", 12 * MIB), 11 * MIB)] {
        let mut client = server.connect().await;
        client.send("GET", path).await;
        assert!(length(&client.head().await) > sent);
        // A reset would be an error here.
        let body = client.rest().await;
        assert!(body.len() <= sent);
        assert_same(&body, &server.content[..body.len()]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn a_client_that_leaves_inside_a_body_leaves_nothing_behind() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    client.send("GET", &format!("/0-{}", 10 * MIB)).await;
    client.head().await;
    drop(client);
    server.tracker.close();
    while server.connections.in_use() > 0 {
        tokio::task::yield_now().await;
    }
    let mut client = server.connect().await;
    assert_same(&client.get("/0-9").await, &server.content[..9]);
    server.stopped().await;
}

#[tokio::test]
async fn tls_carries_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (server, config) = secured(dir.path(), false).await;
    let stream = connect_tls(&server, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut client = Client::new(stream);
    for len in LENGTHS {
        let body = client.get(&format!("/0-{len}")).await;
        assert_same(&body, &server.content[..len]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn http2_carries_the_same_bytes_where_it_is_offered() {
    let dir = tempfile::tempdir().unwrap();
    let (server, config) = secured(dir.path(), true).await;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured((*config).clone())
        .resolve("portcullis.test", server.address)
        .build()
        .unwrap();
    for len in LENGTHS {
        let url = format!("https://portcullis.test:{}/0-{len}", server.address.port());
        let response = client.get(url).send().await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        assert_same(&response.bytes().await.unwrap(), &server.content[..len]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn draining_finishes_what_is_in_hand_and_ends_the_rest() {
    let server = Server::start(None).await;
    let mut idle = server.connect().await;
    idle.get("/0-1").await;
    let fresh = server.connect().await;
    let mut busy = server.connect().await;
    busy.send("GET", "/wait").await;
    while server.connections.in_use() < 2 {
        tokio::task::yield_now().await;
    }

    server.connections.drain();
    assert_eq!(idle.rest().await, b"");
    // Whoever was connected already, or still comes, is answered once.
    for mut client in [fresh, server.connect().await] {
        client.send("GET", "/0-3").await;
        assert!(client.head().await.contains("connection: close"));
        assert_eq!(client.rest().await, &server.content[..3]);
    }
    assert_eq!(server.connections.in_use(), 1);
    server.handler.gate.add_permits(1);
    assert!(busy.head().await.contains("connection: close"));
    assert_eq!(busy.rest().await, b"waited");
    server.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn slow_heads_and_idle_connections_are_ended() {
    let server = Server::start(None).await;
    let start = tokio::time::Instant::now();
    let mut silent = server.connect().await;
    assert!(!silent.more().await);
    let waited = start.elapsed().as_secs();
    assert!(
        (10..=12).contains(&waited),
        "a connection without a request lived {waited} s"
    );

    let mut slow = server.connect().await;
    slow.get("/0-1").await;
    let start = tokio::time::Instant::now();
    slow.io.write_all(b"GET / HT").await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    slow.io.write_all(b"TP/1.1\r\n").await.unwrap();
    assert!(!slow.more().await);
    let waited = start.elapsed().as_secs();
    assert!((10..=12).contains(&waited), "half a head lived {waited} s");

    let mut idle = server.connect().await;
    idle.get("/0-1").await;
    let start = tokio::time::Instant::now();
    assert!(!idle.more().await);
    let waited = start.elapsed().as_secs();
    assert!(
        (90..=92).contains(&waited),
        "an idle connection lived {waited} s"
    );
    server.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stopped_is_ended_and_one_that_crawls_is_not() {
    let server = Server::start(None).await;
    let mut stopped = server.connect().await;
    stopped.send("GET", &format!("/0-{}", 10 * MIB)).await;
    let mut crawling = server.connect().await;
    crawling.send("GET", &format!("/0-{}", 10 * MIB)).await;
    let head = crawling.head().await;
    let mut body = 0;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(30)).await;
        body += crawling.bytes(crawling.buffer.len() + 2 * MIB).await.len();
    }
    assert_eq!(server.connections.in_use(), 1);
    body += crawling.bytes(length(&head) - body).await.len();
    assert_eq!(body, 10 * MIB);
    server.stopped().await;
}

#[tokio::test]
async fn a_request_that_takes_long_to_answer_is_waited_for() {
    tokio::time::pause();
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    client.send("GET", "/wait").await;
    tokio::time::sleep(Duration::from_mins(5)).await;
    server.handler.gate.add_permits(1);
    client.head().await;
    assert_eq!(client.bytes(6).await, b"waited");
    server.stopped().await;
}

/// Whatever the first request is, the second must not be answered as part of it or after it.
#[tokio::test]
async fn requests_that_others_may_read_differently_end_the_connection() {
    const CANARY: &str = "GET /0-3 HTTP/1.1\r\nHost: x\r\n\r\n";
    let corpus = [
        "Host: x\r\nContent-Length: 34\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\n12345\r\n0\r\n\r\n",
        "Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "Host: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Host: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "Host: x\r\nContent-Length: +5\r\n\r\n",
        "Host: x\r\nContent-Length: 5, 5\r\n\r\n",
        "Host: x\r\nContent-Length: 0x5\r\n\r\n",
        "Host: x\r\nContent-Length: -1\r\n\r\n",
        "Host: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "Host: x\r\nTransfer-Encoding: identity\r\n\r\n",
        "Host: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Host: x\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n",
        "Host: x\r\nX: a\0b\r\n\r\n",
        "Host: x\r\nno colon\r\n\r\n",
        "Host: x\r\nHost: y\r\n\r\n",
        "\r\n",
    ];
    let server = Server::start(None).await;
    let requests = corpus
        .iter()
        .map(|rest| format!("GET /0-3 HTTP/1.1\r\n{rest}{CANARY}"));
    let others = [
        format!("GET http://evil.test/0-3 HTTP/1.1\r\nHost: x\r\n\r\n{CANARY}"),
        format!("GET /0-3 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{CANARY}"),
        format!("GET /0-3 HTTP/2.0\r\nHost: x\r\n\r\n{CANARY}"),
    ];
    for request in requests.chain(others) {
        let mut client = server.connect().await;
        client.io.write_all(request.as_bytes()).await.unwrap();
        let answers = String::from_utf8(client.rest().await).unwrap();
        assert!(
            answers.matches("HTTP/1.").count() <= 1,
            "{request}\n{answers}"
        );
        assert!(!answers.contains("HTTP/1.1 200"), "{request}\n{answers}");
    }
    let mut client = server.connect().await;
    let request = format!("GET /0-3 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n{CANARY}");
    client.io.write_all(request.as_bytes()).await.unwrap();
    for _ in 0..2 {
        assert_eq!(client.answer().await, &server.content[..3]);
    }
    server.stopped().await;
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let server = Server::start(None).await;
    let mut client = server.connect().await;
    let request = format!(
        "GET /0-1 HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    client.io.write_all(request.as_bytes()).await.unwrap();
    assert!(client.head().await.starts_with("HTTP/1.1 431 "));
    server.stopped().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let old = Pair::write(dir.path(), "portcullis.test");
    let tls = Tls::load(old.config(), false).unwrap();
    let server = Server::start(Some(Arc::clone(&tls))).await;
    connect_tls(&server, old.client()).await.unwrap();

    let metrics = Arc::new(crate::telemetry::Metrics::default());
    tokio::time::pause();
    let watch = tokio::spawn(Arc::clone(&tls).watch(Arc::clone(&metrics)));
    let reloaded = async |result| {
        while metrics
            .tls_reloads
            .get_or_create(&ReloadLabels { result })
            .get()
            == 0
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    std::fs::write(dir.path().join("tls.key"), "no key").unwrap();
    reloaded(ReloadResult::Failed).await;
    connect_tls(&server, old.client()).await.unwrap();

    let new = Pair::write(dir.path(), "portcullis.test");
    reloaded(ReloadResult::Ok).await;
    connect_tls(&server, new.client()).await.unwrap();
    connect_tls(&server, old.client()).await.unwrap_err();
    watch.abort();
    server.stopped().await;
}
