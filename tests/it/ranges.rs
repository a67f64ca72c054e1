//! Parts of blobs: the same answer whether the blob is cached, on its way or not yet begun,
//! because clients that fetch in parallel break when it changes in between.

use portcullis::oci::Digest;

use crate::support::image::random;
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;
use crate::support::{MIB, at};

const LEN: usize = 20 * MIB;

fn blob(upstream: &Upstream) -> (Vec<u8>, Digest, String) {
    let bytes = random(LEN);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

/// Every kind of range, first on a blob that nobody asked for yet, then on one that is cached.
#[test]
fn cold_and_cached_answers_agree() {
    let cases = [
        ("bytes=0-", 0..LEN),
        ("bytes=0-0", 0..1),
        ("bytes=0-65535", 0..65536),
        ("bytes=9000000-9999999", 9_000_000..10_000_000),
        ("bytes=12345678-", 12_345_678..LEN),
        ("bytes=-1", LEN - 1..LEN),
        ("bytes=-100000", LEN - 100_000..LEN),
        ("bytes=20000000-99999999", 20_000_000..LEN),
    ];
    for (range, part) in cases {
        let upstream = Upstream::start();
        let proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream);
        proxy.range(&path, range).assert_part(&bytes, part.clone());
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
        assert_eq!(upstream.sent(digest), LEN as u64, "{range}");
        let asked = upstream.hits(digest);
        proxy.range(&path, range).assert_part(&bytes, part);
        assert_eq!(upstream.hits(digest), asked, "{range}");
    }
}

#[test]
fn what_cannot_be_satisfied_is_416() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream);
    let total = format!("bytes */{LEN}");
    for cached in [false, true] {
        for range in [
            format!("bytes={LEN}-"),
            format!("bytes={}-{}", LEN + 5, LEN + 9),
        ] {
            let answer = proxy.range(&path, &range).assert(416);
            assert_eq!(
                answer.header("content-range"),
                Some(total.as_str()),
                "cached: {cached}"
            );
        }
        proxy.range(&path, "bytes=-0").assert(416);
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
    }
}

/// RFC 9110: a Range that is not understood is ignored.
#[test]
fn what_is_no_single_range_is_ignored() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, _, path) = blob(&upstream);
    let many = format!("bytes={}", vec!["0-0"; 500].join(","));
    for range in [
        "bytes=0-1,5-6",
        &many,
        "bytes=9-5",
        "bytes=a-b",
        "lines=1-2",
        "bytes=",
        "bytes=-",
    ] {
        proxy.range(&path, range).assert_whole(&bytes);
    }
}

/// containerd 2.1 and newer with parallel fetching on: `bytes=0-` first, then open-ended ranges of
/// which only a chunk is read before the connection is dropped.
#[test]
fn containerd_in_parallel_mode_fetches_everything_once() {
    const CHUNK: usize = 4 * MIB;
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream);
    let chunk = |n: usize| {
        let range = format!("bytes={}-", n * CHUNK);
        let mut answer = proxy.client().open("GET", &path, &[("Range", &range)]);
        assert_eq!(answer.status, 206, "{range}");
        let told = format!("bytes {}-{}/{LEN}", n * CHUNK, LEN - 1);
        assert_eq!(answer.header("content-range"), Some(told.as_str()));
        assert!(
            answer.take(CHUNK) == bytes[n * CHUNK..(n + 1) * CHUNK],
            "{range}"
        );
    };
    std::thread::scope(|scope| {
        for n in 0..LEN / CHUNK {
            scope.spawn(move || chunk(n));
        }
    });
    proxy.wait_until_stored(&digest);
    assert_eq!(upstream.sent(digest), LEN as u64);
}

#[test]
fn manifests_answer_whole_to_a_range() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = crate::support::image::Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let path = at("demo/app/manifests/1");
    let answer = proxy.range(&path, "bytes=0-");
    assert!(matches!(answer.status, 200 | 206), "{answer:?}");
    assert!(answer.body == manifest.bytes);
}
