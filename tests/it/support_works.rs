//! The tools of the tests, tried without the product: a broken tool must not look like a pass.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::at;
use crate::support::canary::{CANARY, basic, secret, shown};
use crate::support::client::{Client, End};
use crate::support::herd::stampede;
use crate::support::image::{Image, random};
use crate::support::listeners::{Bystander, Relay};
use crate::support::network::in_own_network;
use crate::support::programs::{Containerd, Registry, podman, run, skopeo};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Framing, TOKEN, Upstream};
use crate::support::{KIB, MIB};

#[test]
fn the_upstream_serves_ranges_and_counts() {
    let upstream = Upstream::start();
    let bytes = random(300 * KIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = format!("/v2/demo/app/blobs/{digest}");
    let client = Client::new(upstream.address());

    client.get(&path).assert_whole(&bytes);
    client
        .range(&path, "bytes=1000-1999")
        .assert_part(&bytes, 1000..2000);
    client
        .range(&path, "bytes=1000-")
        .assert_part(&bytes, 1000..bytes.len());
    client.range(&path, "bytes=400000-").assert(416);
    assert_eq!(client.head(&path).header("content-length"), Some("307200"));
    client.get("/v2/demo/other/blobs/x").assert(404);

    assert_eq!(upstream.sent(digest), (300 + 300) * 1024);
    assert_eq!(upstream.hits(digest), 5);
    assert_eq!(
        upstream.seen(digest)[1].header("range"),
        Some("bytes=1000-1999")
    );
}

#[test]
fn the_upstream_fails_as_told() {
    let upstream = Upstream::start();
    let bytes = random(200 * KIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = format!("/v2/demo/app/blobs/{digest}");
    let client = Client::new(upstream.address());

    upstream.once(digest, Fault::CutAt(100_000));
    let cut = client.get(&path);
    assert_eq!((cut.end, cut.body.len()), (End::Short, 100_000));
    upstream.once(digest, Fault::ResetAt(100_000));
    assert_eq!(client.get(&path).end, End::Reset);
    upstream.once(digest, Fault::FlipBit(150_000));
    // A range that does not reach the byte leaves the fault for the next request.
    client
        .range(&path, "bytes=0-1000")
        .assert_part(&bytes, 0..1001);
    let flipped = client.get(&path);
    assert_eq!(
        flipped.body.iter().zip(&bytes).position(|(a, b)| a != b),
        Some(150_000)
    );
    upstream.once(digest, Fault::Framing(Framing::Chunked));
    let chunked = client.get(&path).assert_whole(&bytes);
    assert!(chunked.header("content-length").is_none());
    upstream.once(digest, Fault::Framing(Framing::CloseDelimited));
    client.get(&path).assert_whole(&bytes);
    upstream.once(digest, Fault::Framing(Framing::LengthOffBy(10)));
    assert_eq!(client.get(&path).end, End::Short);
    upstream.once(digest, Fault::status(500));
    client.get(&path).assert(500);
    upstream.once(digest, Fault::NoRanges);
    client.range(&path, "bytes=5-").assert_whole(&bytes);
    client.get(&path).assert_whole(&bytes);
}

#[test]
fn a_gate_holds_what_is_behind_it() {
    let upstream = Upstream::start();
    let bytes = random(200 * KIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = format!("/v2/demo/app/blobs/{digest}");
    let client = Client::new(upstream.address());

    let gate = upstream.hold(digest, 50_000);
    let mut answer = client.open("GET", &path, &[]);
    assert!(answer.take(50_000) == bytes[..50_000]);
    gate.reached();
    assert_eq!(upstream.sent(digest), 50_000);
    gate.open();
    let rest = answer.finish();
    assert!(rest.end == End::Complete && rest.body == bytes[50_000..]);
}

#[test]
fn the_upstream_asks_for_tokens() {
    let upstream = Upstream::start();
    upstream.require_token();
    let client = Client::new(upstream.address());
    let refused = client.get("/v2/").assert(401);
    assert!(
        refused
            .header("www-authenticate")
            .unwrap()
            .contains("/token\"")
    );
    assert_eq!(client.get("/token").json()["token"], TOKEN);
    let token = format!("Bearer {TOKEN}");
    client
        .send("GET", "/v2/", &[("Authorization", &token)])
        .assert(200);
}

#[test]
fn a_stampede_counts_every_byte() {
    let upstream = Upstream::start();
    let bytes = random(4 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = format!("/v2/demo/app/blobs/{digest}");
    for share in stampede(upstream.address(), &path, 8, &bytes) {
        assert_eq!((share.status, share.bytes), (200, bytes.len() as u64));
    }
    assert_eq!(upstream.sent(digest), 8 * bytes.len() as u64);
}

#[test]
fn a_stopped_upstream_and_relay_refuse() {
    let mut upstream = Upstream::start();
    let mut relay = Relay::to(upstream.address());
    let client = Client::new(relay.address);
    client.get("/v2/").assert(200);
    assert!(relay.bytes() > 0);
    relay.stop();
    assert!(client.connect().is_err());
    let direct = Client::new(upstream.address());
    direct.get("/v2/").assert(200);
    upstream.stop();
    assert!(direct.connect().is_err());
}

#[test]
#[should_panic(expected = "was called")]
fn a_bystander_notices_a_call() {
    let bystander = Bystander::start();
    drop(TcpStream::connect(bystander.address).unwrap());
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while std::time::Instant::now() < deadline {
        bystander.assert_never_called();
        std::thread::yield_now();
    }
}

/// Images that we make are images to everybody: docker-registry takes one, skopeo, podman and
/// containerd unpack it.
#[test]
fn images_are_valid() {
    let registry = Registry::start();
    let image = Image::with_layers(&[20 * KIB, 30 * KIB]);
    registry.push("demo/hello", "1", &image);
    let directory = tempfile::TempDir::new().unwrap();
    let from = format!("docker://{}/demo/hello:1", registry.address);
    let to = format!("dir:{}", directory.path().join("copy").display());
    run(skopeo().args(["copy", "-q", "--src-tls-verify=false", &from, &to])).assert_success();
    let name = format!("{}/demo/hello:1", registry.address);
    run(podman(directory.path()).args(["pull", "-q", "--tls-verify=false", &name]))
        .assert_success();

    let origin = format!("http://{}", registry.address);
    let node = directory.path().join("certs.d/registry.example");
    std::fs::create_dir_all(&node).unwrap();
    let hosts = format!("server = \"{origin}\"\n[host.\"{origin}\"]\n");
    std::fs::write(node.join("hosts.toml"), hosts).unwrap();
    let containerd = Containerd::start();
    let certs_d = directory.path().join("certs.d");
    containerd
        .pull(&certs_d, "registry.example/demo/hello:1")
        .assert_success();
    let digest = containerd.digest_of("registry.example/demo/hello:1");
    assert_eq!(digest, Some(image.manifest.digest().to_string()));
    containerd
        .pull(&certs_d, "registry.example/demo/none:1")
        .assert_failure();
}

#[test]
fn a_network_of_its_own_is_one() {
    let metadata = "169.254.169.254:80";
    in_own_network(
        "support_works::a_network_of_its_own_is_one",
        &["169.254.169.254/32"],
        || {
            let inside = Bystander::on(metadata);
            drop(TcpStream::connect(inside.address).unwrap());
            let elsewhere = TcpStream::connect("192.0.2.1:80").unwrap_err();
            assert_eq!(elsewhere.kind(), ErrorKind::NetworkUnreachable);
        },
    );
}

/// What the search for secrets says of `act`.
fn found(act: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err("nothing was found");
    panic.downcast_ref::<String>().unwrap().clone()
}

/// The search of the whole suite for secrets, where there is something to be found.
#[test]
fn a_secret_that_shows_is_found() {
    for user in ["", "u", "us", "use"] {
        let header = basic(user, CANARY);
        assert!(shown(format!("authorization: {header};").as_bytes()).is_some());
    }
    for quiet in ["canary-7f3", "Basic dXNlcjpwYXNzd29yZA==", ""] {
        assert_eq!(shown(quiet.as_bytes()), None);
    }

    // An upstream whose words are repeated, in an answer and in the log.
    let upstream = Upstream::start();
    let words = format!(
        r#"{{"errors":[{{"code":"UNKNOWN","message":"{}"}}]}}"#,
        secret!("x")
    );
    let broken = Fault::Answer(500, Vec::new(), words.into_bytes());
    upstream.always("/manifests/", broken);
    let proxy = Proxy::start(&upstream);
    let path = at("demo/app/manifests/1");
    let said = found(|| drop(proxy.get(&path)));
    assert!(said.contains("shows in an error"), "{said}");
    let said = found(|| drop(proxy));
    assert!(said.contains("shows in the log"), "{said}");

    // A rule that is named by a secret, in the metrics and in what a command prints.
    let rule = format!(
        "[[policy.rules]]\nid = \"{CANARY}\"\nimages = [\"**\"]\neffect = \"audit\"\nreason = \"r\""
    );
    let upstream = Upstream::start();
    upstream.manifest("demo/app", "1", &crate::support::image::Manifest::unique());
    let proxy = Setup::new(&upstream).rules(&rule).start();
    proxy.get(&path).assert(200);
    let explain = ["explain", "registry.example/demo/app:1"];
    let said = found(|| drop(proxy.run(|setup| setup, &explain)));
    assert!(said.contains("shows in what a command prints"), "{said}");
    let said = found(|| drop(proxy));
    assert!(said.contains("shows in /metrics"), "{said}");
}
