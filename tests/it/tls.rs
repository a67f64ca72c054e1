//! Nodes that come by TLS: the same answers, and certificates that change while it runs.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::certificates::Certificates;
use crate::support::client::Client;
use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{MIB, PATIENCE, at};

fn scene() -> (Upstream, Proxy, TempDir, Certificates) {
    let upstream = Upstream::start();
    let directory = TempDir::new().unwrap();
    let files = Certificates::create(directory.path());
    let proxy = Setup::new(&upstream)
        .tls(&files.certificate, &files.key, &files.authority)
        .start();
    (upstream, proxy, directory, files)
}

#[test]
fn everything_is_as_without_tls() {
    let (upstream, proxy, _directory, _) = scene();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let bytes = random(20 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = at(&format!("demo/app/blobs/{digest}"));
    for _ in 0..2 {
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes);
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
    }
    proxy
        .range(&path, "bytes=100000-8000000")
        .assert_part(&bytes, 100_000..8_000_001);
    // The reason phrase arrives: HTTP/1.1 is what TLS offers.
    let answer = proxy
        .get("/v2/nowhere.example/app/manifests/1")
        .assert_error(403, "DENIED");
    assert!(answer.reason.contains("nowhere.example"));
}

#[test]
fn plain_http_on_the_tls_port_ends_at_once() {
    let (_upstream, proxy, _directory, _) = scene();
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        !answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        answer.escape_ascii()
    );
}

#[test]
fn a_renewed_certificate_is_used_without_a_restart() {
    let (_upstream, proxy, directory, old) = scene();
    proxy.get("/v2/").assert(200);
    let new = Certificates::create(directory.path());
    let client = Client::trusting(proxy.address, &new.authority);
    let deadline = Instant::now() + PATIENCE + PATIENCE;
    while !answers(&client) {
        assert!(
            Instant::now() < deadline,
            "the old certificate is still in use"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!answers(&Client::trusting(proxy.address, &old.authority)));

    // A pair that does not fit changes nothing.
    std::fs::write(&new.certificate, "no certificate").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(answers(&client), "a broken file took the listener down");
}

/// Whether the handshake succeeds and /v2/ is 200.
fn answers(client: &Client) -> bool {
    client
        .try_open("GET", "/v2/", &[])
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn a_handshake_that_never_comes_is_not_waited_for() {
    let (_upstream, proxy, _directory, _) = scene();
    let mut silent = TcpStream::connect(proxy.address).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    // Others are served meanwhile.
    proxy.get("/v2/").assert(200);
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}
