//! How upstreams are treated: several endpoints, what is down, and rate limits.

use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use crate::support::herd::at_once;
use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::azurite;
use crate::support::upstream::{Fault, Upstream};
use crate::support::{MIB, PATIENCE, at, eventually};

const STALE: &str = "portcullis; hit; detail=stale";
const CLIENTS: usize = 500;

fn limit(seconds: u32) -> Fault {
    let wait = vec![("Retry-After", seconds.to_string())];
    Fault::Answer(429, wait, b"{}".to_vec())
}

fn cold(number: usize) -> String {
    at(&format!("cold/app{number}/manifests/1"))
}

/// `registry.example` at several endpoints.
fn endpoints(upstreams: &[&Upstream]) -> Setup {
    let endpoints: Vec<_> = upstreams.iter().map(|upstream| upstream.origin()).collect();
    let lines =
        format!("endpoints = {endpoints:?}\nallow_addresses = [\"127.0.0.0/8\"]\ninsecure = true");
    Setup::listening()
        .section("upstreams.\"registry.example\"", &lines)
        .rules(
            "[[policy.rules]]\nid = \"examples\"\nimages = [\"registry.example/**\"]\n\
             effect = \"allow\"",
        )
}

/// What is asked by a crowd in front of an upstream that limits our rate.
struct Crowd {
    requests: Vec<(&'static str, String)>,
    /// Of these there is something stale.
    tags: usize,
}

/// Tags that are stale, and five times as much that is not here or not proved.
fn crowd(tag: impl Fn(usize) -> String, blob: &Digest, manifest: &Digest) -> Crowd {
    let mut requests = Vec::new();
    for number in 0..CLIENTS / 10 {
        let unknown = Digest::sha256(number.to_string().as_bytes());
        let verb = if number % 2 == 0 { "GET" } else { "HEAD" };
        requests.push((verb, tag(number)));
        for _ in 0..3 {
            requests.push(("GET", tag(number % 5)));
        }
        requests.push((verb, cold(number)));
        requests.push((verb, at(&format!("stranger/app{number}/blobs/{blob}"))));
        requests.push((verb, at(&format!("cold/app/blobs/{unknown}"))));
        let stranger = at(&format!("stranger/app{number}/manifests/{manifest}"));
        requests.push((verb, stranger));
        requests.push(("GET", at(&format!("cold/app{number}/tags/list"))));
        requests.push(("GET", at(&format!("cold/app{number}/referrers/{unknown}"))));
    }
    let tags = CLIENTS / 10 * 4;
    Crowd { requests, tags }
}

impl Crowd {
    /// Everybody gets something stale, or hears at once how long to stay away.
    #[track_caller]
    fn ask(&self, proxy: &Proxy, longest: u64) {
        let answers = at_once(proxy.address, &self.requests);
        let (mut stale, mut limited, mut slowest) = (0, 0, Duration::ZERO);
        for (answer, took) in answers {
            slowest = slowest.max(took);
            if answer.status == 200 {
                assert_eq!(answer.header("cache-status"), Some(STALE), "{answer:?}");
                stale += 1;
                continue;
            }
            assert_eq!(answer.status, 429, "{answer:?}");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=longest).contains(&wait), "{answer:?}");
            limited += 1;
        }
        eprintln!("{stale} stale, {limited} limited, the slowest after {slowest:?}");
        assert_eq!((stale, limited), (self.tags, CLIENTS - self.tags));
        // Where nobody else computes it is well below a second.
        assert!(slowest < Duration::from_secs(20), "{slowest:?}");
    }
}

/// Every kind of request for 300 different things, by 500 clients at once: whoever comes first finds
/// out for all, and nobody asks again before the upstream's time is over.
#[test]
fn five_hundred_clients_meet_a_rate_limit_once() {
    let upstream = Upstream::start();
    let setup = Setup::new(&upstream).section("tags", "fresh_for = \"0s\"");
    let mut proxy = setup.start();
    let manifest = Manifest::unique();
    let tag = |number: usize| at(&format!("demo/app/manifests/{number}"));
    for number in 0..CLIENTS / 10 {
        upstream.manifest("demo/app", &number.to_string(), &manifest);
        proxy.get(&tag(number)).assert_whole(&manifest.bytes);
    }
    let bytes = random(MIB);
    let blob = upstream.blob("demo/app", bytes.clone());
    let blob_path = at(&format!("demo/app/blobs/{blob}"));
    proxy.get(&blob_path).assert_whole(&bytes);
    proxy.wait_until_stored(&blob);
    assert!(proxy.terminate().success());
    proxy.start_again();

    let crowd = crowd(tag, &blob, &manifest.digest());
    let before = upstream.requests().len();
    let asked = || upstream.requests().len() - before;
    upstream.always("/v2/", limit(30));
    crowd.ask(&proxy, 30);
    assert_eq!(asked(), 1, "{:?}", &upstream.requests()[before..]);
    crowd.ask(&proxy, 30);
    assert_eq!(asked(), 1, "not before the upstream's time is over");
    // What needs no upstream is served as ever.
    proxy.get(&blob_path).assert_whole(&bytes);
    let stale = proxy.metric("portcullis_stale_total{reason=\"RateLimited\"}");
    assert_eq!(stale, 2 * i64::try_from(crowd.tags).unwrap());
    let held =
        "portcullis_upstream_held_total{registry=\"registry.example\",reason=\"RateLimited\"}";
    assert!(proxy.metric(held) >= 900, "{}", proxy.metric(held));
    let log = proxy.logs().text();
    assert_eq!(
        log.matches("the upstream limits our rate").count(),
        1,
        "{log}"
    );
    assert_eq!(asked(), 1);
}

/// When the time is over, one request finds out whether the limit is.
#[test]
fn each_window_costs_one_request() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    upstream.always("/v2/", limit(2));
    let paths: Vec<_> = (0..10).map(|number| ("GET", cold(number))).collect();
    let began = Instant::now();
    let mut crowds = 0;
    while upstream.requests().len() < 3 {
        assert!(began.elapsed() < PATIENCE);
        for (answer, _) in at_once(proxy.address, &paths) {
            assert_eq!(answer.status, 429, "{answer:?}");
        }
        crowds += 1;
    }
    assert_eq!(upstream.requests().len(), 3);
    // Two windows have passed whole.
    assert!(began.elapsed() >= Duration::from_secs(4), "{crowds} crowds");
    assert!(crowds >= 3);
    upstream.behave();
    let manifest = Manifest::unique();
    upstream.manifest("cold/app0", "1", &manifest);
    eventually("an answer", || proxy.get(&cold(0)).body == manifest.bytes);
}

/// What the upstream has said yes to is served from the shared store, whatever it says now.
#[test]
fn what_is_near_is_served_under_a_rate_limit() {
    let (upstream, container) = (Upstream::start(), azurite().fresh_container());
    let setup = || Setup::new(&upstream).shared(azurite(), &container);
    let bytes = random(2 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = at(&format!("demo/app/blobs/{digest}"));
    let first = setup().start();
    first.get(&path).assert_whole(&bytes);
    let hex = digest.hex();
    let name = format!("fleet/v1/blobs/sha256/{}/{hex}", &hex[..2]);
    let stored = azurite().container(&container);
    eventually("an upload", || stored.names("/v1/blobs/").contains(&name));

    let second = setup().start();
    upstream.always("/v2/", limit(60));
    second.get(&cold(0)).assert_error(429, "TOOMANYREQUESTS");
    let before = upstream.requests().len();
    let head = second.head(&path).assert(200);
    assert_eq!(
        head.header("content-length"),
        Some(&*bytes.len().to_string())
    );
    second.get(&path).assert_whole(&bytes);
    // Another repository has to be proved first, and the other blob is nowhere near.
    for path in [
        at(&format!("demo/stranger/blobs/{digest}")),
        at(&format!("demo/app/blobs/{}", Digest::sha256(b"far"))),
    ] {
        second.get(&path).assert_error(429, "TOOMANYREQUESTS");
        second.head(&path).assert(429);
    }
    assert_eq!(upstream.requests().len(), before);
}

/// Docker Hub says how much is left: below the floor that is kept for what is not here.
#[test]
fn below_the_floor_tags_are_not_revalidated() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .upstream("ratelimit_floor = 20")
        .section("tags", "fresh_for = \"0s\"")
        .start();
    let says = |left: &str| {
        upstream.behave();
        upstream.always(
            "/v2/",
            Fault::Header("ratelimit-limit", "100;w=21600".into()),
        );
        upstream.always("/v2/", Fault::Header("ratelimit-remaining", left.into()));
    };
    let manifest = Manifest::unique();
    for tag in ["1", "2", "3"] {
        upstream.manifest("demo/app", tag, &manifest);
    }
    let get = |tag: &str| {
        let answer = proxy.get(&at(&format!("demo/app/manifests/{tag}")));
        let answer = answer.assert_whole(&manifest.bytes);
        let status = answer.header("cache-status").unwrap().to_owned();
        (status, upstream.hits("/manifests/"))
    };
    says("20;w=21600");
    assert_eq!(get("1"), ("portcullis; fwd=miss; stored".into(), 1));
    assert_eq!(get("1"), ("portcullis; hit".into(), 2));
    says("19;w=21600");
    assert_eq!(get("2"), ("portcullis; fwd=miss; stored".into(), 3));
    assert_eq!(get("1"), (STALE.into(), 3));
    let gauge = |name: &str| {
        proxy.metric(&format!(
            "portcullis_upstream_ratelimit_{name}{{registry=\"registry.example\"}}"
        ))
    };
    assert_eq!((gauge("limit"), gauge("remaining")), (100, 19));
    assert_eq!(proxy.metric("portcullis_stale_total{reason=\"Spared\"}"), 1);
    says("100;w=21600");
    assert_eq!(get("1"), (STALE.into(), 3), "nobody knows yet");
    assert_eq!(get("3"), ("portcullis; fwd=miss; stored".into(), 4));
    assert_eq!(get("1"), ("portcullis; hit".into(), 5));
}

/// The first endpoint dies in the middle of a blob; the client sees nothing of it.
#[test]
fn a_download_goes_on_at_the_next_endpoint() {
    let (mut first, second) = (Upstream::start(), Upstream::start());
    let bytes = random(24 * MIB);
    let digest = first.blob("demo/app", bytes.clone());
    second.blob("demo/app", bytes.clone());
    let proxy = endpoints(&[&first, &second]).start();
    let gate = first.hold(digest, 12 * MIB as u64);
    let mut answer = proxy.open(&at(&format!("demo/app/blobs/{digest}")));
    assert!(answer.take(MIB) == bytes[..MIB]);
    gate.reached();
    first.wait_until_sent(digest, 12 * MIB as u64);
    first.stop();
    gate.open();
    let rest = answer.finish();
    assert!(rest.body == bytes[MIB..], "{rest:?}");
    let sent = first.sent(digest) + second.sent(digest);
    assert!(sent <= bytes.len() as u64 * 101 / 100, "{sent} bytes");
    // From now on the first is passed over.
    proxy.get(&cold(0)).assert(404);
    let registry = "{registry=\"registry.example\"}";
    let failovers = format!("portcullis_upstream_failovers_total{registry}");
    assert!(
        proxy.metric(&failovers) >= 2,
        "{}",
        proxy.metric(&failovers)
    );
    let open = format!("portcullis_upstream_endpoints_open{registry}");
    assert_eq!(proxy.metric(&open), 1);
}

/// What is cached is served; the rest is refused at once, with the truth about it.
#[test]
fn an_upstream_that_is_down_costs_nobody_time() {
    let mut upstream = Upstream::start();
    let setup = Setup::new(&upstream).section("tags", "fresh_for = \"0s\"");
    let proxy = setup.start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let tag = at("demo/app/manifests/1");
    proxy.get(&tag).assert_whole(&manifest.bytes);
    upstream.stop();
    let answer = proxy.get(&cold(0)).assert_error(502, "UNAVAILABLE");
    assert!(answer.reason.contains("cannot connect to"), "{answer:?}");
    eventually("an open endpoint", || {
        proxy.get(&cold(0)).reason.contains("down since 20")
    });
    for number in 0..50 {
        let answer = proxy.get(&cold(number));
        if answer.reason.contains("down since") {
            assert_eq!(answer.status, 502);
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            let text = format!(", next try in {wait} s: cannot connect to ");
            assert!(answer.reason.contains(&text), "{answer:?}");
        }
        proxy.get(&tag).assert_whole(&manifest.bytes);
    }
    let log = proxy.logs().text();
    assert_eq!(
        log.matches("an endpoint is passed over").count(),
        1,
        "{log}"
    );
    let held = "portcullis_upstream_held_total{registry=\"registry.example\",reason=\"Down\"}";
    assert!(proxy.metric(held) > 0);
}

/// Registries that stream, redirect and forbid caches; what has a digest is cached all the same.
#[test]
fn an_odd_registry_is_pulled_from_once() {
    let (upstream, cdn) = (Upstream::start(), Upstream::start());
    let proxy = Setup::new(&upstream)
        .upstream(&format!("redirect_hosts = [\"{}\"]", cdn.address()))
        .section("tags", "fresh_for = \"1h\"")
        .start();
    let (manifest, bytes) = (Manifest::unique(), random(2 * MIB));
    cdn.manifest("demo/app", "1", &manifest);
    let digest = cdn.blob("demo/app", bytes.clone());
    let (tag, blob) = (
        at("demo/app/manifests/1"),
        at(&format!("demo/app/blobs/{digest}")),
    );
    upstream.always("/demo/", Fault::Redirect(cdn.origin()));
    let framing = crate::support::upstream::Framing::Chunked;
    cdn.always("/demo/", Fault::Framing(framing));
    cdn.always("/demo/", Fault::NoRanges);
    cdn.always(
        "/demo/",
        Fault::Header("Cache-Control", "private, no-store".into()),
    );
    cdn.always(
        "/demo/",
        Fault::Header("Docker-Content-Digest", "sha256:0".into()),
    );
    let head = proxy.head(&tag).assert(200);
    assert_eq!(
        head.header("docker-content-digest"),
        Some(&*manifest.digest().to_string())
    );
    proxy.head(&blob).assert(200);
    proxy.get(&blob).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    let before = cdn.requests().len();
    for _ in 0..3 {
        proxy.get(&tag).assert_whole(&manifest.bytes);
        proxy.get(&blob).assert_whole(&bytes);
    }
    assert_eq!(cdn.requests().len(), before);
    assert_eq!(cdn.hits("/blobs/"), 2, "a HEAD and a GET");
}

/// No type, or one that says nothing: the document may say it itself, but not another than the
/// header.
#[test]
fn the_type_of_a_manifest_may_be_missing_and_not_wrong() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let untyped = Fault::Answer(200, Vec::new(), manifest.bytes.clone());
    upstream.once("manifests/1", untyped);
    let answer = proxy.get(&at("demo/app/manifests/1"));
    let answer = answer.assert_whole(&manifest.bytes);
    assert_eq!(answer.header("content-type"), Some(&*manifest.media_type));
    upstream.manifest("demo/app", "2", &manifest);
    upstream.always(
        "manifests/2",
        Fault::Header("Content-Type", "text/plain".into()),
    );
    let answer = proxy.get(&at("demo/app/manifests/2"));
    let answer = answer.assert_error(502, "UNAVAILABLE");
    assert!(
        answer.reason.contains("it came as text/plain"),
        "{answer:?}"
    );
}
