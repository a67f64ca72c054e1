//! A blob that nobody has asked for before: everybody streams at once, and it is fetched once.

use std::time::Duration;

use portcullis::oci::{Algorithm, Digest};

use crate::support::client::End;
use crate::support::herd::stampede;
use crate::support::image::random;
use crate::support::proxy::Proxy;
use crate::support::upstream::{Fault, Framing, Upstream};
use crate::support::{KIB, MIB, at};

/// A blob in `registry.example/demo/app`, and where the proxy has it.
fn blob(upstream: &Upstream, len: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(len);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

#[test]
fn comes_whole_and_is_kept() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    for len in [
        0,
        1,
        100,
        64 * KIB - 1,
        64 * KIB,
        64 * KIB + 1,
        3 * MIB,
        20 * MIB,
    ] {
        let (bytes, digest, path) = blob(&upstream, len);
        let cold = proxy.get(&path).assert_whole(&bytes);
        assert_eq!(
            cold.header("docker-content-digest"),
            Some(digest.to_string().as_str())
        );
        assert_eq!(
            cold.header("content-length"),
            Some(len.to_string().as_str())
        );
        assert_eq!(
            cold.header("cache-status"),
            Some("portcullis; fwd=miss; stored")
        );
        assert!(cold.header("content-encoding").is_none());
        proxy.wait_until_stored(&digest);
        let asked = upstream.hits(digest);
        let cached = proxy.get(&path).assert_whole(&bytes);
        assert_eq!(cached.header("cache-status"), Some("portcullis; hit"));
        assert_eq!(
            upstream.hits(digest),
            asked,
            "the second pull asked the upstream"
        );
        assert_eq!(upstream.sent(digest), len as u64);
    }
}

#[test]
fn a_sha512_digest_works_as_well() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let bytes = random(2 * MIB);
    let digest = Digest::of(Algorithm::Sha512, &bytes);
    upstream.document(
        &format!("/v2/demo/app/blobs/{digest}"),
        bytes.clone(),
        "x/y",
    );
    let path = at(&format!("demo/app/blobs/{digest}"));
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    proxy.get(&path).assert_whole(&bytes);
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

#[test]
fn a_late_joiner_streams_from_the_first_byte() {
    for ranges in [true, false] {
        let upstream = Upstream::start();
        if !ranges {
            upstream.no_ranges();
        }
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, 24 * MIB);
        let gate = upstream.hold(digest, 8 * MIB as u64);
        let mut first = proxy.open(&path);
        assert!(first.take(8 * MIB) == bytes[..8 * MIB]);
        gate.reached();

        let mut late = proxy.open(&path);
        assert_eq!(late.status, 200);
        assert_eq!(
            late.header("cache-status"),
            Some("portcullis; fwd=miss; collapsed")
        );
        assert!(
            late.take(8 * MIB) == bytes[..8 * MIB],
            "the late joiner has to wait"
        );

        gate.open();
        for rest in [first.finish(), late.finish()] {
            assert!(
                rest.end == End::Complete && rest.body == bytes[8 * MIB..],
                "{rest:?}"
            );
        }
        assert_eq!(
            upstream.sent(digest),
            bytes.len() as u64,
            "ranges: {ranges}"
        );
    }
}

#[test]
fn a_range_of_a_running_fill_streams_too() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 24 * MIB);
    let gate = upstream.hold(digest, 8 * MIB as u64);
    let mut first = proxy.open(&path);
    assert!(first.take(MIB) == bytes[..MIB]);
    proxy
        .range(&path, "bytes=1000000-1999999")
        .assert_part(&bytes, 1_000_000..2_000_000);
    gate.open();
    let rest = first.finish();
    assert!(
        rest.end == End::Complete && rest.body == bytes[MIB..],
        "{rest:?}"
    );
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

#[test]
fn a_client_that_leaves_stops_nobody() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 24 * MIB);
    let gate = upstream.hold(digest, 8 * MIB as u64);
    let mut leader = proxy.open(&path);
    leader.take(MIB);
    let mut follower = proxy.open(&path);
    follower.take(MIB);
    drop(leader);
    gate.open();
    let rest = follower.finish();
    assert!(
        rest.end == End::Complete && rest.body == bytes[MIB..],
        "{rest:?}"
    );
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

/// A reader that stands still holds up neither the download nor anybody else.
#[test]
fn a_client_that_does_not_read_slows_nobody() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 64 * MIB);
    let mut still = proxy.open(&path);
    still.take(1);
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
    let rest = still.finish();
    assert!(
        rest.end == End::Complete && rest.body == bytes[1..],
        "{rest:?}"
    );
}

#[test]
fn a_large_blob_comes_over_several_connections() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 64 * MIB);
    let gate = upstream.hold(digest, 0);
    let client = proxy.client();
    let pull = std::thread::spawn({
        let path = path.clone();
        move || client.get(&path)
    });
    // None of them is answered before all four are there.
    upstream.wait_until_hit(digest, 4);
    gate.open();
    pull.join().unwrap().assert_whole(&bytes);
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

#[test]
fn fifty_clients_share_one_download() {
    for ranges in [true, false] {
        let upstream = Upstream::start();
        upstream.latency(Duration::from_millis(30));
        upstream.rate(50_000_000);
        if !ranges {
            upstream.no_ranges();
        }
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, 64 * MIB);
        let shares = stampede(proxy.address, &path, 50, &bytes);
        for (n, share) in shares.iter().enumerate() {
            assert_eq!(
                (share.status, share.bytes),
                (200, bytes.len() as u64),
                "client {n}"
            );
        }
        let limit = if ranges {
            bytes.len() * 101 / 100
        } else {
            bytes.len()
        } as u64;
        let sent = upstream.sent(digest);
        assert!(
            sent <= limit,
            "{sent} of {} bytes, ranges: {ranges}",
            bytes.len()
        );
        let first = shares.iter().map(|share| share.first_byte);
        let (soonest, latest) = (first.clone().min(), first.max());
        eprintln!("ranges: {ranges}; first bytes after {soonest:?} to {latest:?}");
        eprintln!(
            "slowest done after {:?}",
            shares.iter().map(|share| share.done).max()
        );
    }
}

#[test]
fn head_costs_no_bytes() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 3 * MIB);
    let head = proxy.head(&path).assert(200);
    assert_eq!(
        head.header("content-length"),
        Some((3 * MIB).to_string().as_str())
    );
    assert_eq!(
        head.header("docker-content-digest"),
        Some(digest.to_string().as_str())
    );
    assert_eq!(upstream.sent(digest), 0);
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    let asked = upstream.hits(digest);
    let head = proxy.head(&path).assert(200);
    assert_eq!(
        head.header("content-length"),
        Some((3 * MIB).to_string().as_str())
    );
    assert_eq!(upstream.hits(digest), asked);
}

#[test]
fn head_of_a_blob_that_is_not_there_is_404() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let path = at(&format!("demo/app/blobs/{}", Digest::sha256(b"nowhere")));
    proxy.head(&path).assert(404);
    proxy.get(&path).assert_error(404, "BLOB_UNKNOWN");
}

/// An upstream that tells no length: clients get the bytes all the same, and no false end.
#[test]
fn a_blob_of_unknown_length_comes_whole() {
    for framing in [Framing::Chunked, Framing::CloseDelimited] {
        let upstream = Upstream::start();
        upstream.no_ranges();
        upstream.always("/blobs/", Fault::Framing(framing));
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, 3 * MIB);
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
        let cached = proxy.get(&path).assert_whole(&bytes);
        assert!(cached.header("content-length").is_some());
        assert_eq!(upstream.sent(digest), bytes.len() as u64, "{framing:?}");
    }
}
