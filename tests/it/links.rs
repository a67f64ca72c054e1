//! Who may see which bytes: a digest in the cache is served through a repository only after the
//! upstream has said yes to that digest in that repository.

use portcullis::oci::Digest;

use crate::support::client::End;
use crate::support::image::{Manifest, random};
use crate::support::proxy::Proxy;
use crate::support::upstream::{Upstream, blob_path};
use crate::support::{MIB, at};

/// A blob that `demo/owner` has and the proxy has cached through it.
fn cached(upstream: &Upstream, proxy: &Proxy) -> (Vec<u8>, Digest) {
    let bytes = random(2 * MIB);
    let digest = upstream.blob("demo/owner", bytes.clone());
    proxy
        .get(&at(&format!("demo/owner/blobs/{digest}")))
        .assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    (bytes, digest)
}

#[test]
fn another_repository_needs_the_upstreams_yes() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest) = cached(&upstream, &proxy);

    // The upstream says no.
    let path = at(&format!("demo/stranger/blobs/{digest}"));
    proxy.get(&path).assert_error(404, "BLOB_UNKNOWN");
    proxy.head(&path).assert(404);
    proxy
        .range(&path, "bytes=0-9")
        .assert_error(404, "BLOB_UNKNOWN");

    // The upstream says yes: one HEAD, no bytes.
    upstream.blob("demo/friend", bytes.clone());
    let path = at(&format!("demo/friend/blobs/{digest}"));
    for _ in 0..3 {
        proxy.get(&path).assert_whole(&bytes);
    }
    let asked = upstream.seen("demo/friend");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].method, "HEAD");
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

#[test]
fn where_head_is_refused_one_byte_proves_it() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest) = cached(&upstream, &proxy);
    upstream.blob("demo/friend", bytes.clone());
    // Once: the HEAD. The GET that follows is answered.
    upstream.once("demo/friend", crate::support::upstream::Fault::status(405));
    proxy
        .get(&at(&format!("demo/friend/blobs/{digest}")))
        .assert_whole(&bytes);
    assert!(
        upstream.sent(blob_path("demo/friend", &digest)) <= 2,
        "more than a byte"
    );
}

#[test]
fn without_the_upstream_there_is_no_yes() {
    let mut upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest) = cached(&upstream, &proxy);
    upstream.stop();
    let answer = proxy.get(&at(&format!("demo/stranger/blobs/{digest}")));
    answer.assert_error(502, "UNAVAILABLE");
    proxy
        .get(&at(&format!("demo/owner/blobs/{digest}")))
        .assert_whole(&bytes);
}

/// Somebody's own manifest names a digest that is not theirs: naming is not having.
#[test]
fn a_manifest_that_mentions_a_digest_proves_nothing() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest) = cached(&upstream, &proxy);
    let manifest = Manifest::referring_to(&[(digest, bytes.len())]);
    upstream.manifest("demo/launderer", "1", &manifest);
    proxy
        .get(&at("demo/launderer/manifests/1"))
        .assert_whole(&manifest.bytes);
    let path = at(&format!("demo/launderer/blobs/{digest}"));
    proxy.get(&path).assert_error(404, "BLOB_UNKNOWN");
    assert_eq!(upstream.hits(blob_path("demo/launderer", &digest)), 1);
}

#[test]
fn a_joiner_of_a_running_fill_proves_its_own_link() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let bytes = random(24 * MIB);
    let digest = upstream.blob("demo/owner", bytes.clone());
    upstream.blob("demo/friend", bytes.clone());
    let gate = upstream.hold(blob_path("demo/owner", &digest), 8 * MIB as u64);
    let mut owner = proxy.open(&at(&format!("demo/owner/blobs/{digest}")));
    owner.take(MIB);

    proxy
        .get(&at(&format!("demo/stranger/blobs/{digest}")))
        .assert_error(404, "BLOB_UNKNOWN");
    let mut friend = proxy.open(&at(&format!("demo/friend/blobs/{digest}")));
    assert!(friend.take(MIB) == bytes[..MIB]);

    gate.open();
    for rest in [owner.finish(), friend.finish()] {
        assert!(
            rest.end == End::Complete && rest.body == bytes[MIB..],
            "{rest:?}"
        );
    }
    assert_eq!(upstream.sent(digest), bytes.len() as u64);
}

#[test]
fn manifests_need_a_yes_as_well() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    upstream.manifest("demo/owner", "1", &manifest);
    proxy
        .get(&at("demo/owner/manifests/1"))
        .assert_whole(&manifest.bytes);
    let digest = manifest.digest();
    // What the tag led to needs no second question.
    proxy
        .get(&at(&format!("demo/owner/manifests/{digest}")))
        .assert_whole(&manifest.bytes);
    assert_eq!(upstream.hits("demo/owner"), 1);

    let stranger = at(&format!("demo/stranger/manifests/{digest}"));
    proxy.get(&stranger).assert_error(404, "MANIFEST_UNKNOWN");
    proxy.head(&stranger).assert(404);
    upstream.manifest("demo/friend", "1", &manifest);
    let friend = at(&format!("demo/friend/manifests/{digest}"));
    proxy.get(&friend).assert_whole(&manifest.bytes);
}

/// Bytes that came as a blob are no manifest until the upstream says so.
#[test]
fn a_blob_is_no_manifest() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (_, digest) = cached(&upstream, &proxy);
    let path = at(&format!("demo/owner/manifests/{digest}"));
    proxy.get(&path).assert_error(404, "MANIFEST_UNKNOWN");
}

#[test]
fn registries_do_not_share_tags_or_links() {
    let upstream = Upstream::start();
    let other = Upstream::start();
    let proxy = crate::support::proxy::Setup::new(&upstream)
        .registry("other.example", &other.origin())
        .rules(
            r#"
            [[policy.rules]]
            id = "both"
            images = ["registry.example/**", "other.example/**"]
            effect = "allow"
            "#,
        )
        .start();
    let (ours, theirs) = (Manifest::unique(), Manifest::unique());
    upstream.manifest("demo/app", "1", &ours);
    other.manifest("demo/app", "1", &theirs);
    proxy
        .get("/v2/registry.example/demo/app/manifests/1")
        .assert_whole(&ours.bytes);
    proxy
        .get("/v2/other.example/demo/app/manifests/1")
        .assert_whole(&theirs.bytes);
    proxy
        .get("/v2/demo/app/manifests/1?ns=registry.example")
        .assert_whole(&ours.bytes);
    proxy
        .get("/v2/demo/app/manifests/1?ns=other.example")
        .assert_whole(&theirs.bytes);
    let path = format!("/v2/other.example/demo/app/manifests/{}", ours.digest());
    proxy.get(&path).assert_error(404, "MANIFEST_UNKNOWN");
}
