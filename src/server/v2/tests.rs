//! The API on the wire, over a cache that is offline and holds one image.

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use url::Url;

use super::*;
use crate::cache;
use crate::fill::{self, Fills};
use crate::oci::{Digest, MediaType, Repository};
use crate::policy::{self, Engine};
use crate::server::client::{Client, length};
use crate::server::{Addresses, Config, Limits, Server};
use crate::store::{self, Store};
use crate::telemetry::Secret;
use crate::telemetry::metrics::{PeerLabels, PeerResult};
use crate::upstream::{self, Egress, Peers, UpstreamErrorKind, Upstreams};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Running {
    addresses: Addresses,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    _ready: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

/// 100 KiB, so that it goes out as a file.
fn blob() -> Bytes {
    (0..100 << 10)
        .map(|i: u32| i.to_le_bytes()[usize::from(i.is_multiple_of(3))])
        .collect()
}

async fn cached(store: &Store) {
    let repository = Repository::new("quay.io".parse().unwrap(), "a/b".parse().unwrap()).unwrap();
    let media_type = MediaType::parse(TYPE).unwrap();
    for (bytes, media_type) in [
        (blob(), None),
        (Bytes::from_static(MANIFEST), Some(&media_type)),
    ] {
        let digest = Digest::sha256(&bytes);
        store.disk.put(&digest, bytes).await.unwrap();
        store.links.add_link(&repository, &digest, media_type).await;
    }
}

fn peer_key(network: &str) -> PeerKey {
    let secret = Secret::new("what replicas know".to_owned());
    PeerKey::new(&secret, vec![network.parse().unwrap()])
}

async fn start() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let (metrics, tracker) = (Arc::new(Metrics::default()), TaskTracker::new());
    let path = dir.path().to_owned();
    let config = store::Config {
        path,
        ..store::Config::default()
    };
    let store = Store::open(&config, None, Arc::clone(&metrics)).unwrap();
    cached(&store).await;
    let shutdown = CancellationToken::new();
    let cache = Cache::new(cache::Parts {
        policy: Engine::compile(&policy::Config::default()).unwrap(),
        grants: policy::Grants::default(),
        upstreams: Upstreams::new(
            &BTreeMap::new(),
            &upstream::Limits::default(),
            &Egress::default(),
            &metrics,
        )
        .unwrap(),
        fills: Fills::new(
            fill::Config::default(),
            Arc::clone(&store.disk),
            None,
            Arc::clone(&metrics),
            tracker.clone(),
            shutdown.clone(),
        ),
        store,
        config: cache::Config::default(),
        offline: true,
        manifest_limit: 4 << 20,
        metrics: Arc::clone(&metrics),
        tracker: tracker.clone(),
    })
    .unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let config = Config {
        listen: any,
        admin: any,
        ..Config::default()
    };
    let (ready, receiver) = watch::channel(true);
    let server = Server::bind(
        &config,
        Limits::default(),
        cache,
        Some(peer_key("127.0.0.0/8")),
        Arc::clone(&metrics),
        receiver,
    )
    .await;
    let server = server.unwrap();
    let addresses = server.addresses().unwrap();
    let (stop, tasks) = (shutdown.clone(), tracker.clone());
    tracker.spawn(async move { server.run(stop, &tasks).await });
    Running {
        addresses,
        metrics,
        shutdown,
        tracker,
        _ready: ready,
        _dir: dir,
    }
}

impl Running {
    async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.addresses.data).await.unwrap())
    }

    /// Head and body of the answer to a request with these further header lines.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (String, String) {
        let mut client = self.connect().await;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n");
        client.io.write_all(request.as_bytes()).await.unwrap();
        let head = client.head().await;
        (
            head,
            String::from_utf8_lossy(&client.rest().await).into_owned(),
        )
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn status_line(head: &str) -> &str {
    head.lines().next().unwrap()
}

#[tokio::test]
async fn a_cached_blob_is_answered_whole_and_in_ranges() {
    let running = start().await;
    let (blob, digest) = (blob(), Digest::sha256(&blob()));
    let path = format!("/v2/quay.io/a/b/blobs/{digest}");
    let mut client = running.connect().await;
    for method in ["GET", "HEAD", "GET"] {
        client.send(method, &path).await;
        let head = client.head().await;
        assert_eq!(status_line(&head), "HTTP/1.1 200 OK");
        assert_eq!(length(&head), blob.len());
        assert_eq!(
            header(&head, "docker-content-digest"),
            Some(&*digest.to_string())
        );
        assert_eq!(
            header(&head, "content-type"),
            Some("application/octet-stream")
        );
        assert_eq!(header(&head, "accept-ranges"), Some("bytes"));
        assert_eq!(header(&head, "cache-status"), Some("portcullis; hit"));
        assert_eq!(header(&head, "x-request-id").unwrap().len(), 16);
        assert_eq!(
            header(&head, "docker-distribution-api-version"),
            Some("registry/2.0")
        );
        if method == "GET" {
            assert_eq!(client.bytes(blob.len()).await, blob);
        }
    }
    for (range, content_range, bytes) in [
        ("bytes=0-", "bytes 0-102399/102400", &blob[..]),
        ("bytes=7-", "bytes 7-102399/102400", &blob[7..]),
        ("bytes=7-9", "bytes 7-9/102400", &blob[7..10]),
        ("bytes=-9", "bytes 102391-102399/102400", &blob[102_391..]),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n");
        client.io.write_all(request.as_bytes()).await.unwrap();
        let head = client.head().await;
        assert_eq!(status_line(&head), "HTTP/1.1 206 Partial Content");
        assert_eq!(header(&head, "content-range"), Some(content_range));
        assert_eq!(client.bytes(length(&head)).await, bytes);
    }
    let (head, _) = running.ask("GET", &path, "Range: bytes=102400-\r\n").await;
    assert!(
        status_line(&head).starts_with("HTTP/1.1 416 the blob has 102400 bytes"),
        "{head}"
    );
    assert_eq!(header(&head, "content-range"), Some("bytes */102400"));
    let known = format!("If-None-Match: \"{digest}\"\r\n");
    let (head, body) = running.ask("GET", &path, &known).await;
    assert_eq!(
        (status_line(&head), &*body),
        ("HTTP/1.1 304 Not Modified", "")
    );
}

#[tokio::test]
async fn a_cached_manifest_is_answered_as_it_was_stored() {
    let running = start().await;
    let digest = Digest::sha256(MANIFEST);
    let path = format!("/v2/a/b/manifests/{digest}?ns=quay.io");
    for (method, content) in [("GET", MANIFEST), ("HEAD", b"")] {
        let (head, body) = running.ask(method, &path, "Range: bytes=0-\r\n").await;
        assert_eq!(status_line(&head), "HTTP/1.1 200 OK", "{body}");
        assert_eq!(header(&head, "content-type"), Some(TYPE));
        assert_eq!(length(&head), MANIFEST.len());
        assert_eq!(
            header(&head, "docker-content-digest"),
            Some(&*digest.to_string())
        );
        assert_eq!(header(&head, "oci-namespace"), Some("quay.io"));
        assert_eq!(body.as_bytes(), content);
    }
}

#[tokio::test]
async fn a_refusal_is_readable_on_head_and_get() {
    let running = start().await;
    let path = "/v2/pause/manifests/3.9?ns=k8s.gcr.io";
    let (head, none) = running.ask("HEAD", path, "").await;
    let (get, body) = running.ask("GET", path, "").await;
    assert_eq!(status_line(&head), status_line(&get));
    assert!(
        status_line(&head).starts_with("HTTP/1.1 403 k8s.gcr.io"),
        "{head}"
    );
    assert!(
        status_line(&head).contains("registry.k8s.io/pause:3.9"),
        "{head}"
    );
    assert_eq!((length(&head), &*none), (body.len(), ""));
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    let message = json["errors"][0]["message"].as_str().unwrap();
    assert!(status_line(&get).ends_with(message), "{message}");
    assert_eq!(json["errors"][0]["code"], "DENIED");
}

#[tokio::test]
async fn nothing_can_be_written_and_nothing_tunnelled() {
    let running = start().await;
    let digest = Digest::sha256(MANIFEST);
    for method in ["PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
        for path in [
            "manifests/1",
            "blobs/uploads/",
            &format!("blobs/{digest}"),
            "tags/list",
        ] {
            let path = format!("/v2/quay.io/a/b/{path}");
            let (head, _) = running.ask(method, &path, "Content-Length: 0\r\n").await;
            assert!(
                status_line(&head).starts_with("HTTP/1.1 405 "),
                "{method} {path}: {head}"
            );
            assert_eq!(header(&head, "allow"), Some("GET, HEAD"));
        }
    }
    let with_body = "PUT /v2/a/b/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
    let tunnel = "CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n";
    for request in [with_body, tunnel] {
        let mut client = running.connect().await;
        client.io.write_all(request.as_bytes()).await.unwrap();
        let head = client.head().await;
        assert!(status_line(&head).starts_with("HTTP/1.1 405 "), "{head}");
    }
}

#[tokio::test]
async fn an_upgrade_is_ignored_and_the_connection_closed() {
    let running = start().await;
    let mut client = running.connect().await;
    let upgrade = "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                   Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n\
                   PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    client.io.write_all(upgrade.as_bytes()).await.unwrap();
    let head = client.head().await;
    assert_eq!(status_line(&head), "HTTP/1.1 200 OK");
    assert_eq!(header(&head, "connection"), Some("close"));
    assert_eq!(client.rest().await, b"{}");
}

#[tokio::test]
async fn offline_says_so_where_it_is_read() {
    let running = start().await;
    let (head, _) = running
        .ask("HEAD", "/v2/quay.io/a/b/manifests/none", "")
        .await;
    assert!(status_line(&head).starts_with("HTTP/1.1 503 "), "{head}");
    assert!(status_line(&head).contains("offline"), "{head}");
    let path = format!("/v2/quay.io/a/b/referrers/{}", Digest::sha256(MANIFEST));
    let (head, _) = running.ask("GET", &path, "").await;
    assert!(status_line(&head).starts_with("HTTP/1.1 404 "), "{head}");
}

#[tokio::test]
async fn the_nodes_address_answers_probes_and_nothing_of_the_operators() {
    let running = start().await;
    for path in ["/healthz", "/readyz"] {
        let (head, body) = running.ask("GET", path, "").await;
        assert_eq!((status_line(&head), &*body), ("HTTP/1.1 200 OK", "ok\n"));
        assert_eq!(header(&head, "x-request-id"), None);
    }
    for path in ["/metrics", "/", "/api/v1/status", "/debug/pprof"] {
        let (head, _) = running.ask("GET", path, "").await;
        assert!(
            status_line(&head).starts_with("HTTP/1.1 404 "),
            "{path}: {head}"
        );
    }
    let text = running.metrics.encode();
    let probes = r#"portcullis_requests_total{route="Health",status="200"} 2"#;
    assert!(text.contains(probes), "{text}");
}

#[tokio::test]
async fn a_stopping_server_is_not_ready_and_ends_when_it_is_quiet() {
    let running = start().await;
    let mut idle = running.connect().await;
    idle.send("GET", "/v2/").await;
    assert_eq!(idle.answer().await, b"{}");
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    running.shutdown.cancel();
    assert_eq!(idle.rest().await, b"");
    let (head, _) = running.ask("GET", "/readyz", "").await;
    assert!(status_line(&head).starts_with("HTTP/1.1 503 "), "{head}");
    // Whoever still comes is answered.
    assert_eq!(
        status_line(&running.ask("GET", "/v2/", "").await.0),
        "HTTP/1.1 200 OK"
    );
    running.tracker.close();
    running.tracker.wait().await;
    let waited = start.elapsed().as_secs();
    assert!((2..=5).contains(&waited), "it took {waited} s");
    TcpStream::connect(running.addresses.data)
        .await
        .unwrap_err();
}

/// What the asker's side sends is what this side takes: `upstream::tests::peer` has the details.
#[tokio::test]
async fn a_replica_gets_what_is_here_and_no_more() {
    let running = start().await;
    let (limits, egress) = (upstream::Limits::default(), Egress::default());
    let peers = |key| Peers::new(key, &limits, &egress, &running.metrics).unwrap();
    let ours = peers(peer_key("127.0.0.0/8"));
    let url: Url = format!("http://{}", running.addresses.data)
        .parse()
        .unwrap();
    let digest = Digest::sha256(&blob());

    let mut whole = ours.blob(&url, &digest, None).await.unwrap();
    assert_eq!((whole.range, whole.total), (None, Some(100 << 10)));
    let mut bytes = Vec::new();
    while let Some(chunk) = whole.body.chunk().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, blob());
    let part = ours.blob(&url, &digest, Some(10..20)).await.unwrap();
    assert_eq!((part.range, part.total), (Some(10..20), Some(100 << 10)));

    let nowhere = ours.blob(&url, &Digest::sha256(b"nowhere"), None).await;
    assert_eq!(nowhere.unwrap_err().kind, UpstreamErrorKind::NotFound);
    let secret = Secret::new("another secret".to_owned());
    let other = peers(PeerKey::new(&secret, vec!["127.0.0.0/8".parse().unwrap()]));
    let refused = other.blob(&url, &digest, None).await;
    assert_eq!(refused.unwrap_err().kind, UpstreamErrorKind::Refused);

    let count = |result| {
        let labels = PeerLabels { result };
        running.metrics.peer_requests.get_or_create(&labels).get()
    };
    let counts = [
        PeerResult::Served,
        PeerResult::NotFound,
        PeerResult::Refused,
    ]
    .map(count);
    assert_eq!(counts, [2, 1, 1]);
    running.shutdown.cancel();
    running.tracker.close();
}
