//! An upstream that fails in the middle: the pull goes on unseen, and little is fetched twice.

use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use crate::support::client::End;
use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Framing, Upstream};
use crate::support::{MIB, PATIENCE, at};

const LEN: usize = 32 * MIB;
const HALF: u64 = LEN as u64 / 2;

struct Scene {
    upstream: Upstream,
    proxy: Proxy,
    bytes: Vec<u8>,
    digest: Digest,
    path: String,
}

fn scene() -> Scene {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section(
            "limits",
            "idle = \"1s\"\nfirst_byte = \"2s\"\nanswer = \"5s\"",
        )
        .start();
    let bytes = random(LEN);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = at(&format!("demo/app/blobs/{digest}"));
    Scene {
        upstream,
        proxy,
        bytes,
        digest,
        path,
    }
}

impl Scene {
    /// One client pulls; it sees nothing of the fault, and at most 1 % comes twice.
    #[track_caller]
    fn pull_unharmed(&self) {
        self.proxy.get(&self.path).assert_whole(&self.bytes);
        let sent = self.upstream.sent(self.digest);
        assert!(sent <= LEN as u64 * 101 / 100, "{sent} of {LEN} bytes");
        self.proxy.wait_until_stored(&self.digest);
        self.proxy.get(&self.path).assert_whole(&self.bytes);
    }
}

#[test]
fn cut_in_the_middle() {
    let scene = scene();
    scene.upstream.once(scene.digest, Fault::CutAt(HALF));
    scene.pull_unharmed();
}

#[test]
fn reset_in_the_middle() {
    let scene = scene();
    scene
        .upstream
        .once(scene.digest, Fault::ResetAt(HALF + 12_345));
    scene.pull_unharmed();
}

#[test]
fn stalled_in_the_middle() {
    let scene = scene();
    scene
        .upstream
        .once(scene.digest, Fault::StallAt(HALF + 12_345));
    scene.pull_unharmed();
}

#[test]
fn cut_again_and_again() {
    let scene = scene();
    for n in 1..8 {
        scene
            .upstream
            .once(scene.digest, Fault::CutAt(n * 4_000_000));
    }
    scene.upstream.once(scene.digest, Fault::CutAt(HALF + 1));
    scene.upstream.once(scene.digest, Fault::CutAt(HALF + 1));
    scene
        .upstream
        .once(scene.digest, Fault::CutAt(LEN as u64 - 1));
    scene.pull_unharmed();
}

#[test]
fn one_error_is_tried_again() {
    let scene = scene();
    scene.upstream.once(scene.digest, Fault::status(500));
    scene.pull_unharmed();
}

#[test]
fn a_length_that_lies_once() {
    for lie in [1000, -1000] {
        let scene = scene();
        scene
            .upstream
            .once(scene.digest, Fault::Framing(Framing::LengthOffBy(lie)));
        scene.pull_unharmed();
    }
}

#[test]
fn ranges_without_a_length() {
    for framing in [Framing::Chunked, Framing::CloseDelimited] {
        let scene = scene();
        scene.upstream.always(scene.digest, Fault::Framing(framing));
        scene.pull_unharmed();
    }
}

#[test]
fn a_content_range_that_lies() {
    for lie in [
        "bytes 5-10/99",
        "bytes 0-/33554432",
        "nonsense",
        "bytes 1-33554431/33554432",
    ] {
        let scene = scene();
        scene
            .upstream
            .once(scene.digest, Fault::Header("Content-Range", lie.to_owned()));
        let answer = scene.proxy.get(&scene.path);
        // Served from another try, or refused: never taken for something else.
        if answer.status == 200 {
            answer.assert_whole(&scene.bytes);
        } else {
            answer.assert_error(502, "UNAVAILABLE");
            assert!(scene.proxy.stored().is_empty());
        }
    }
}

/// A cut without ranges cannot be resumed by asking for the rest; the client still gets all of it.
#[test]
fn cut_without_ranges() {
    let scene = scene();
    scene.upstream.no_ranges();
    scene.upstream.once(scene.digest, Fault::CutAt(HALF));
    scene.proxy.get(&scene.path).assert_whole(&scene.bytes);
}

/// An upstream that never gets past a point: the client's body ends short with FIN, so that it can
/// come back, and the next pull asks only for what is missing.
#[test]
fn an_upstream_that_gives_up_leaves_a_short_body() {
    let scene = scene();
    scene.upstream.times(40, scene.digest, Fault::CutAt(HALF));
    let answer = scene.proxy.get(&scene.path);
    assert_eq!((answer.status, answer.end), (200, End::Short), "{answer:?}");
    assert!(
        answer.body == scene.bytes[..answer.body.len()],
        "other bytes"
    );
    assert!(scene.proxy.stored().is_empty());
    scene.upstream.behave();
    let deadline = Instant::now() + PATIENCE;
    while scene.proxy.get(&scene.path).complete_digest() != Some(scene.digest) {
        assert!(Instant::now() < deadline, "never recovered");
        std::thread::sleep(Duration::from_millis(100));
    }
    let sent = scene.upstream.sent(scene.digest);
    assert!(sent <= LEN as u64 * 101 / 100, "{sent} of {LEN} bytes");
}

#[test]
fn a_rate_limit_is_passed_on_and_remembered() {
    let scene = scene();
    let manifest = Manifest::unique();
    scene.upstream.manifest("demo/app", "1", &manifest);
    let limit = Fault::Answer(429, vec![("Retry-After", "7".to_owned())], b"{}".to_vec());
    scene.upstream.always("/v2/demo", limit);
    for (path, fragment) in [
        (at("demo/app/manifests/1"), "manifests"),
        (scene.path.clone(), "blobs"),
    ] {
        let answer = scene.proxy.get(&path).assert_error(429, "TOOMANYREQUESTS");
        let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=7).contains(&wait), "{answer:?}");
        // containerd asks six times in a row, whatever Retry-After says.
        let asked = scene.upstream.hits(fragment);
        for _ in 0..5 {
            scene.proxy.get(&path).assert(429);
        }
        assert_eq!(scene.upstream.hits(fragment), asked, "{fragment}");
    }
}

#[test]
fn an_upstream_that_is_down_is_502() {
    let mut scene = scene();
    scene.upstream.stop();
    scene
        .proxy
        .get(&scene.path)
        .assert_error(502, "UNAVAILABLE");
    scene
        .proxy
        .get(&at("demo/app/manifests/1"))
        .assert_error(502, "UNAVAILABLE");
    scene.proxy.head(&at("demo/app/manifests/1")).assert(502);
    scene
        .proxy
        .get(&at("demo/app/tags/list"))
        .assert_error(502, "UNAVAILABLE");
}

#[test]
fn an_upstream_that_never_answers_is_504() {
    let scene = scene();
    scene.upstream.latency(Duration::from_secs(20));
    let started = Instant::now();
    scene
        .proxy
        .get(&at("demo/app/manifests/1"))
        .assert_error(504, "UNAVAILABLE");
    scene
        .proxy
        .get(&scene.path)
        .assert_error(504, "UNAVAILABLE");
    // `limits.answer` is 5 s for each of the two.
    assert!(
        started.elapsed() < Duration::from_secs(14),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn errors_keep_their_meaning() {
    let scene = scene();
    for (status, expected, code) in [
        (401, 403, "DENIED"),
        (403, 403, "DENIED"),
        (404, 404, "MANIFEST_UNKNOWN"),
        (418, 502, "UNAVAILABLE"),
        (500, 502, "UNAVAILABLE"),
        (503, 502, "UNAVAILABLE"),
    ] {
        let challenge = vec![("WWW-Authenticate", "Digest realm=\"x\"".to_owned())];
        let path = format!("demo/s{status}/manifests/1");
        scene
            .upstream
            .always(&path, Fault::Answer(status, challenge, b"secret".to_vec()));
        let answer = scene.proxy.get(&at(&path)).assert_error(expected, code);
        assert!(!answer.reason.contains("secret"), "{answer:?}");
        let head = scene.proxy.head(&at(&path)).assert(expected);
        // After a few failures nobody asks any more.
        let still_asked = !head.reason.contains("down since");
        assert!(!still_asked || head.reason == answer.reason, "{head:?}");
    }
}
