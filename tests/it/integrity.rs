//! Wrong bytes and foreign hosts: no client gets a complete wrong answer, nothing wrong is kept,
//! and what must not be called is not called.

use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use crate::support::canary::secret;
use crate::support::client::End;
use crate::support::image::{Manifest, OCI_MANIFEST, random};
use crate::support::listeners::Bystander;
use crate::support::network::in_own_network;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Framing, Upstream, blob_path};
use crate::support::{KIB, MIB, PATIENCE, at};

const LEN: usize = 4 * MIB;

fn blob(upstream: &Upstream, len: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(len);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

/// Never a complete answer, however often and in whatever parts it is asked for; nothing stored.
#[track_caller]
fn assert_never_complete(proxy: &Proxy, digest: &Digest, path: &str) {
    for _ in 0..3 {
        let answer = proxy.get(path);
        match answer.status {
            200 => assert_ne!(answer.end, End::Complete, "{answer:?}"),
            502 => drop(answer.assert_error(502, "UNAVAILABLE")),
            _ => panic!("{answer:?}"),
        }
    }
    // What a client does after a short body: it comes back for the rest.
    for range in [format!("bytes={}-", LEN - 1), format!("bytes={}-", LEN / 2)] {
        let answer = proxy.range(path, &range);
        assert!(
            answer.status == 502 || answer.end != End::Complete,
            "{range}: {answer:?}"
        );
    }
    assert!(!proxy.stored().contains(digest), "a wrong blob was stored");
}

#[test]
fn a_flipped_bit_never_reaches_the_end() {
    for flipped in [0, 1000, LEN as u64 / 2, LEN as u64 - 1] {
        let upstream = Upstream::start();
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, LEN);
        upstream.always(digest, Fault::FlipBit(flipped));
        let answer = proxy.get(&path);
        if answer.status == 200 {
            assert_eq!(answer.end, End::Short, "{answer:?}");
            assert!(
                answer.body.len() <= LEN - 64 * KIB,
                "the tail went out unverified"
            );
        } else {
            answer.assert_error(502, "UNAVAILABLE");
        }
        // The tail of a blob that is known to be bad is nobody's.
        proxy
            .range(&path, &format!("bytes={}-", LEN - 10))
            .assert_error(502, "UNAVAILABLE");
        assert_never_complete(&proxy, &digest, &path);

        // And when the upstream is well again, so are we.
        upstream.behave();
        let deadline = Instant::now() + PATIENCE;
        while proxy.get(&path).complete_digest() != Some(digest) {
            assert!(Instant::now() < deadline, "never recovered");
            std::thread::sleep(Duration::from_millis(100));
        }
        proxy.get(&path).assert_whole(&bytes);
    }
}

#[test]
fn a_small_wrong_blob_is_502_at_once() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (_, digest, path) = blob(&upstream, 10 * KIB);
    upstream.always(digest, Fault::FlipBit(5));
    let answer = proxy.get(&path).assert_error(502, "UNAVAILABLE");
    assert!(
        answer.header("docker-content-digest").is_none(),
        "{answer:?}"
    );
    assert!(proxy.stored().is_empty());
}

#[test]
fn a_truncated_body_is_never_complete() {
    // A shorter document whose length is told right, and ends that come too early.
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, LEN);
    let short = bytes[..LEN - 100_000].to_vec();
    upstream.document(&blob_path("demo/app", &digest), short, "x/y");
    assert_never_complete(&proxy, &digest, &path);

    for framing in [
        Framing::Chunked,
        Framing::CloseDelimited,
        Framing::LengthOffBy(100),
    ] {
        let upstream = Upstream::start();
        let proxy = Proxy::start(&upstream);
        let (_, digest, path) = blob(&upstream, LEN);
        upstream.no_ranges();
        upstream.always(digest, Fault::Framing(framing));
        upstream.always(digest, Fault::CutAt(LEN as u64 / 2));
        assert_never_complete(&proxy, &digest, &path);
    }
}

#[test]
fn a_lying_content_length_is_never_complete() {
    for lie in [-1, -100_000, 1, 100_000] {
        let upstream = Upstream::start();
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, LEN);
        upstream.no_ranges();
        upstream.always(digest, Fault::Framing(Framing::LengthOffBy(lie)));
        let answer = proxy.get(&path);
        // All bytes may have come before the lie showed; then they are the right ones.
        assert!(
            answer.complete_digest().is_none_or(|found| found == digest),
            "{lie}: {answer:?}"
        );
        assert!(
            answer.status != 200 || bytes.starts_with(&answer.body),
            "{lie}: other bytes"
        );
    }
}

#[test]
fn html_is_no_manifest_and_no_blob() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("tags", "fresh_for = \"0s\"")
        .start();
    upstream.always("/captive/", Fault::html());
    proxy
        .get(&at("captive/app/manifests/1"))
        .assert_error(502, "UNAVAILABLE");
    proxy.head(&at("captive/app/manifests/1")).assert(502);
    let digest = Digest::sha256(b"x");
    proxy
        .get(&at(&format!("captive/app/manifests/{digest}")))
        .assert_error(502, "UNAVAILABLE");
    proxy
        .get(&at(&format!("captive/app/blobs/{digest}")))
        .assert_error(502, "UNAVAILABLE");
    assert!(proxy.stored().is_empty());

    // A tag that is known is not moved by it.
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    upstream.always("/demo/", Fault::html());
    let answer = proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    let digest = manifest.digest().to_string();
    assert_eq!(
        answer.header("docker-content-digest"),
        Some(digest.as_str())
    );
}

#[test]
fn a_content_encoding_is_refused() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    upstream.always(
        "/v2/demo",
        Fault::Header("Content-Encoding", "gzip".to_owned()),
    );
    let (_, digest, path) = blob(&upstream, LEN);
    upstream.manifest("demo/app", "1", &Manifest::unique());
    let accepts = [("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];
    proxy
        .send("GET", &path, &accepts)
        .assert_error(502, "UNAVAILABLE");
    let manifest = at("demo/app/manifests/1");
    proxy
        .send("GET", &manifest, &accepts)
        .assert_error(502, "UNAVAILABLE");
    assert!(proxy.stored().is_empty());
    for request in upstream
        .seen(digest)
        .iter()
        .chain(&upstream.seen("manifests"))
    {
        assert_eq!(
            request.header("accept-encoding"),
            Some("identity"),
            "{request:?}"
        );
    }
}

#[test]
fn a_manifest_with_another_digest_is_refused() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (asked, other) = (Manifest::unique(), Manifest::unique());
    let path = format!("demo/app/manifests/{}", asked.digest());
    upstream.document(&format!("/v2/{path}"), other.bytes.clone(), OCI_MANIFEST);
    let answer = proxy.get(&at(&path)).assert_error(502, "UNAVAILABLE");
    assert!(
        answer.header("docker-content-digest").is_none(),
        "{answer:?}"
    );
    assert!(proxy.stored().is_empty());
}

#[test]
fn what_is_no_manifest_is_refused() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifests: [(&str, String, &str); 7] = [
        ("array", "[]".to_owned(), OCI_MANIFEST),
        ("text", "hello".to_owned(), OCI_MANIFEST),
        ("empty", String::new(), OCI_MANIFEST),
        ("cut", r#"{"schemaVersion":2,"#.to_owned(), OCI_MANIFEST),
        (
            "type",
            r#"{"schemaVersion":2,"mediaType":"a/b"}"#.to_owned(),
            OCI_MANIFEST,
        ),
        (
            "both",
            r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#.to_owned(),
            OCI_MANIFEST,
        ),
        (
            "deep",
            format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000)),
            OCI_MANIFEST,
        ),
    ];
    for (tag, body, media_type) in manifests {
        upstream.document(&format!("/v2/demo/app/manifests/{tag}"), body, media_type);
        proxy
            .get(&at(&format!("demo/app/manifests/{tag}")))
            .assert_error(502, "UNAVAILABLE");
    }
    // Too large to be read at all.
    let large = format!(r#"{{"schemaVersion":2,"a":"{}"}}"#, "x".repeat(5 * MIB));
    upstream.document("/v2/demo/app/manifests/large", large, OCI_MANIFEST);
    proxy
        .get(&at("demo/app/manifests/large"))
        .assert_error(502, "UNAVAILABLE");
    assert!(proxy.stored().is_empty());
}

#[test]
fn a_realm_on_a_foreign_host_is_not_called() {
    let upstream = Upstream::start();
    let bystander = Bystander::start();
    let proxy = Setup::new(&upstream)
        .upstream(concat!(
            "username = \"corp\"\nshare_with = \"everyone\"\npassword = \"",
            secret!("password"),
            "\""
        ))
        .start();
    upstream.manifest("demo/app", "1", &Manifest::unique());
    for realm in [
        format!("http://{}/token", bystander.address),
        format!("http://localhost:{}/token", bystander.address.port()),
        format!("http://registry.example@{}/token", bystander.address),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "file:///etc/passwd".to_owned(),
        "nonsense".to_owned(),
        String::new(),
    ] {
        upstream.require_token_of(&realm);
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_error(502, "UNAVAILABLE");
    }
    bystander.assert_never_called();
    // What the upstream itself saw carries no password either: it never asked for Basic.
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    assert!(proxy.stored().is_empty());
}

#[test]
fn a_redirect_to_a_foreign_host_is_not_followed() {
    let upstream = Upstream::start();
    let bystander = Bystander::start();
    let proxy = Proxy::start(&upstream);
    for origin in [
        format!("http://{}", bystander.address),
        format!("http://localhost:{}", bystander.address.port()),
        format!("https://{}", bystander.address),
        "http://169.254.169.254".to_owned(),
        "http://[::ffff:169.254.169.254]".to_owned(),
        "http://2852039166".to_owned(),
        "file://".to_owned(),
        "http://user@".to_owned(),
    ] {
        let (_, digest, path) = blob(&upstream, 100 * KIB);
        upstream.always(digest, Fault::Redirect(origin.clone()));
        proxy.get(&path).assert_error(502, "UNAVAILABLE");
        proxy.head(&path).assert(502);
    }
    bystander.assert_never_called();
    assert!(proxy.stored().is_empty());
}

/// With the real address of the metadata service on our own loopback, so that a call would arrive.
#[test]
fn the_metadata_service_hears_nothing() {
    in_own_network(
        "integrity::the_metadata_service_hears_nothing",
        &["169.254.169.254/32"],
        || {
            let metadata = Bystander::on("169.254.169.254:80");
            let upstream = Upstream::start();
            let proxy = Proxy::start(&upstream);
            let (_, digest, path) = blob(&upstream, 100 * KIB);
            upstream.always(digest, Fault::Redirect("http://169.254.169.254".to_owned()));
            proxy.get(&path).assert_error(502, "UNAVAILABLE");
            upstream.require_token_of("http://169.254.169.254/token");
            proxy
                .get(&at("demo/app/manifests/1"))
                .assert_error(502, "UNAVAILABLE");
            metadata.assert_never_called();
            assert!(proxy.stored().is_empty());
        },
    );
}

/// `urls` in a descriptor name hosts that nobody listed (CVE-2020-15157).
#[test]
fn foreign_layers_are_not_fetched() {
    let upstream = Upstream::start();
    let bystander = Bystander::start();
    let proxy = Proxy::start(&upstream);
    let digest = Digest::sha256(b"elsewhere");
    let manifest = Manifest::new(
        OCI_MANIFEST,
        &serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "a/b", "digest": digest, "size": 9 },
            "layers": [{ "mediaType": "a/b", "digest": digest, "size": 9,
                         "urls": [format!("http://{}/x", bystander.address)] }],
        }),
    );
    upstream.manifest("demo/app", "1", &manifest);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    proxy
        .get(&at(&format!("demo/app/blobs/{digest}")))
        .assert_error(404, "BLOB_UNKNOWN");
    bystander.assert_never_called();
}

#[test]
fn the_upstreams_headers_stay_outside() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let (bytes, _, path) = blob(&upstream, 100 * KIB);
    let hostile = [
        "Set-Cookie",
        "Location",
        "WWW-Authenticate",
        "X-Evil",
        "Server",
        "Alt-Svc",
        "Access-Control-Allow-Origin",
        "Strict-Transport-Security",
        "Link",
        "Refresh",
    ];
    for name in hostile {
        upstream.always("/v2/demo", Fault::Header(name, "canary".to_owned()));
    }
    for answer in [
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes),
        proxy.get(&path).assert_whole(&bytes),
    ] {
        assert!(
            answer
                .headers
                .iter()
                .all(|(_, value)| !value.contains("canary")),
            "{answer:?}"
        );
    }
}

#[test]
fn the_clients_headers_stay_inside() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let (bytes, _, path) = blob(&upstream, 100 * KIB);
    let hostile = [
        ("Authorization", concat!("Bearer ", secret!("of-a-client"))),
        ("Cookie", "canary=1"),
        ("X-Forwarded-Host", "canary.example"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("Referer", "http://canary.example"),
        ("X-Meta-Source-Client", "canary"),
        ("User-Agent", "canary"),
        (
            "Proxy-Authorization",
            concat!("Basic ", secret!("of-a-client")),
        ),
    ];
    proxy
        .send("GET", &at("demo/app/manifests/1"), &hostile)
        .assert_whole(&manifest.bytes);
    proxy.send("GET", &path, &hostile).assert_whole(&bytes);
    for request in upstream.requests() {
        let seen = format!("{request:?}");
        assert!(
            !seen.contains("canary") && !seen.contains("DELETE"),
            "{seen}"
        );
    }
}

#[test]
fn a_digest_header_is_ours_not_the_upstreams() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    let digest = manifest.digest().to_string();
    let other = Digest::sha256(b"a lie").to_string();
    let long = "x".repeat(3000);
    for (tag, lie) in [
        ("a", other.as_str()),
        ("b", "sha256:zz"),
        ("c", &long),
        ("d", ""),
    ] {
        upstream.manifest("demo/app", tag, &manifest);
        let path = format!("demo/app/manifests/{tag}");
        upstream.always(
            &path,
            Fault::Header("Docker-Content-Digest", lie.to_owned()),
        );
        for answer in [
            proxy.head(&at(&path)).assert(200),
            proxy.get(&at(&path)).assert(200),
        ] {
            assert_eq!(
                answer.header("docker-content-digest"),
                Some(digest.as_str()),
                "{lie}"
            );
        }
    }
}
