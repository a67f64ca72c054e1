//! Names that move: how often the upstream is asked, and what is answered when it does not answer.

use std::time::Duration;

use portcullis::oci::Digest;
use serde_json::json;

use crate::support::image::{Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Upstream};
use crate::support::{at, eventually};

const TAG: &str = "demo/app/manifests/1";

/// An upstream with `demo/app:1`, and a proxy with these `[tags]`.
fn scene(tags: &str) -> (Upstream, Proxy, Manifest) {
    let upstream = Upstream::start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let proxy = Setup::new(&upstream).section("tags", tags).start();
    (upstream, proxy, manifest)
}

fn methods(upstream: &Upstream, fragment: &str) -> Vec<String> {
    upstream
        .seen(fragment)
        .into_iter()
        .map(|request| request.method)
        .collect()
}

#[test]
fn a_cold_tag_is_one_get() {
    let (upstream, proxy, manifest) = scene("fresh_for = \"1h\"");
    // As containerd does it: HEAD by tag, GET by digest, and HEAD again at the next pull.
    let head = proxy.head(&at(TAG)).assert(200);
    let digest = manifest.digest().to_string();
    assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
    proxy
        .get(&at(&format!("demo/app/manifests/{digest}")))
        .assert_whole(&manifest.bytes);
    for _ in 0..3 {
        proxy.head(&at(TAG)).assert(200);
        let answer = proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
        assert_eq!(answer.header("cache-status"), Some("portcullis; hit"));
    }
    assert_eq!(methods(&upstream, "/v2/demo"), ["GET"]);
    // Nothing but what was asked for: no ping either.
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn many_at_once_are_one_get() {
    let (upstream, proxy, manifest) = scene("fresh_for = \"1h\"");
    upstream.latency(Duration::from_millis(500));
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| proxy.get(&at(TAG)).assert_whole(&manifest.bytes));
        }
    });
    assert_eq!(methods(&upstream, "/v2/demo"), ["GET"]);
}

#[test]
fn revalidation_is_one_head_for_everybody() {
    let (upstream, proxy, manifest) = scene("fresh_for = \"0s\"");
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    upstream.latency(Duration::from_millis(1500));
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| proxy.get(&at(TAG)).assert_whole(&manifest.bytes));
        }
    });
    assert_eq!(methods(&upstream, "/v2/demo"), ["GET", "HEAD"]);
}

#[test]
fn a_tag_that_moved_is_followed() {
    let (upstream, proxy, old) = scene("fresh_for = \"0s\"");
    proxy.get(&at(TAG)).assert_whole(&old.bytes);
    let new = Manifest::unique();
    upstream.manifest("demo/app", "1", &new);
    eventually("the new manifest", || proxy.get(&at(TAG)).body == new.bytes);
    // Who knows the old digest still gets it.
    proxy
        .get(&at(&format!("demo/app/manifests/{}", old.digest())))
        .assert_whole(&old.bytes);
}

#[test]
fn a_fresh_tag_does_not_move() {
    let (upstream, proxy, old) = scene("fresh_for = \"1h\"");
    proxy.get(&at(TAG)).assert_whole(&old.bytes);
    upstream.manifest("demo/app", "1", &Manifest::unique());
    proxy.get(&at(TAG)).assert_whole(&old.bytes);
}

#[test]
fn a_stale_tag_is_served_while_the_upstream_is_down() {
    let (mut upstream, mut proxy, manifest) = scene("fresh_for = \"0s\"");
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    for status in [500, 503, 429, 401] {
        upstream.always("/v2/demo", Fault::status(status));
        let answer = proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
        let stale = "portcullis; hit; detail=stale";
        assert_eq!(answer.header("cache-status"), Some(stale), "{status}");
        upstream.behave();
    }
    upstream.stop();
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    assert!(proxy.terminate().success());
    proxy.start_again();
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    // But not for ever.
    assert!(proxy.terminate().success());
    proxy.start_again_with(|setup| setup.section("tags", "stale_for = \"2ms\""));
    proxy.get(&at(TAG)).assert_error(502, "UNAVAILABLE");
}

#[test]
fn a_tag_that_was_deleted_is_gone() {
    let (upstream, proxy, manifest) = scene("fresh_for = \"0s\"\nmissing_for = \"1ms\"");
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    upstream.remove(&format!("/v2/{TAG}"));
    eventually("404", || proxy.get(&at(TAG)).status == 404);
}

#[test]
fn a_404_is_believed_for_a_while() {
    let (upstream, mut proxy, _) = scene("missing_for = \"1h\"");
    for _ in 0..3 {
        proxy
            .get(&at("demo/app/manifests/none"))
            .assert_error(404, "MANIFEST_UNKNOWN");
        proxy.head(&at("demo/app/manifests/none")).assert(404);
    }
    assert_eq!(methods(&upstream, "/manifests/none"), ["GET"]);
    assert!(proxy.terminate().success());
    proxy.start_again();
    let late = Manifest::unique();
    upstream.manifest("demo/app", "none", &late);
    proxy
        .get(&at("demo/app/manifests/none"))
        .assert_whole(&late.bytes);
}

#[test]
fn an_immutable_tag_is_asked_for_once() {
    let (upstream, proxy, _) =
        scene("fresh_for = \"0s\"\nimmutable = [\"registry.example/**:v*.*.*\"]");
    let (fixed, moving) = (Manifest::unique(), Manifest::unique());
    upstream.manifest("demo/app", "v1.2.3", &fixed);
    upstream.manifest("demo/app", "v1", &moving);
    for _ in 0..3 {
        proxy
            .get(&at("demo/app/manifests/v1.2.3"))
            .assert_whole(&fixed.bytes);
        proxy
            .get(&at("demo/app/manifests/v1"))
            .assert_whole(&moving.bytes);
    }
    assert_eq!(upstream.hits("manifests/v1.2.3"), 1);
    assert!(upstream.seen("/manifests/v1").len() > 2);
}

#[test]
fn the_list_of_tags_is_sorted_and_paged() {
    let (upstream, proxy, _) = scene("fresh_for = \"1h\"");
    let tags = json!({ "name": "demo/app", "tags": ["b", "c", "a", "10", "9", "A"] });
    upstream.document(
        "/v2/demo/app/tags/list",
        tags.to_string(),
        "application/json",
    );
    let path = at("demo/app/tags/list");
    let list = |query: &str| proxy.get(&format!("{path}{query}")).assert(200);
    let tags = |query: &str| list(query).json()["tags"].clone();
    assert_eq!(tags(""), json!(["10", "9", "A", "a", "b", "c"]));
    assert_eq!(tags("?n=2"), json!(["10", "9"]));
    assert_eq!(tags("?n=2&last=9"), json!(["A", "a"]));
    assert_eq!(tags("?last=b"), json!(["c"]));
    assert_eq!(tags("?n=0"), json!([]));
    assert_eq!(tags("?n=100"), json!(["10", "9", "A", "a", "b", "c"]));
    assert_eq!(list("").json()["name"], "registry.example/demo/app");

    // Following the links comes to the end, and stays at the proxy.
    let (mut next, mut seen) = (format!("{path}?n=4"), Vec::new());
    loop {
        let page = proxy.get(&next).assert(200);
        seen.extend(page.json()["tags"].as_array().unwrap().clone());
        let Some(link) = page.header("link") else {
            break;
        };
        assert!(link.ends_with(">; rel=\"next\""), "{link}");
        next = link
            .trim_start_matches('<')
            .split('>')
            .next()
            .unwrap()
            .to_owned();
        assert!(next.starts_with(&path), "{next}");
    }
    assert_eq!(json!(seen), json!(["10", "9", "A", "a", "b", "c"]));
    assert!(list("?n=0").header("link").is_none());
    assert!(list("?n=6").header("link").is_none());
    assert_eq!(
        upstream.hits("/tags/list"),
        1,
        "inside fresh_for it is asked for once"
    );
    for query in ["?n=-1", "?n=x", "?last=.."] {
        proxy.get(&format!("{path}{query}")).assert(400);
    }
    proxy
        .get(&format!("{path}?n=9223372036854775808"))
        .assert(200);
}

#[test]
fn the_upstreams_pages_are_followed_within_bounds() {
    let (upstream, proxy, _) = scene("");
    let page = r#"{"name":"demo/app","tags":["a"]}"#;
    upstream.document("/v2/demo/app/tags/list", page, "application/json");
    // It links to itself for ever.
    let link = Fault::Header(
        "Link",
        "</v2/demo/app/tags/list?n=1>; rel=\"next\"".to_owned(),
    );
    upstream.always("/tags/list", link);
    let answer = proxy.get(&at("demo/app/tags/list"));
    assert!(matches!(answer.status, 200 | 502), "{answer:?}");
    assert!(upstream.hits("/tags/list") <= 100);
}

#[test]
fn an_unknown_repository_has_no_tags() {
    let (_upstream, proxy, _) = scene("");
    proxy
        .get(&at("demo/nothing/tags/list"))
        .assert_error(404, "NAME_UNKNOWN");
}

#[test]
fn referrers_are_passed_on_or_empty() {
    let (upstream, proxy, manifest) = scene("fresh_for = \"1h\"");
    let digest = manifest.digest();
    let path = at(&format!("demo/app/referrers/{digest}"));
    let empty = proxy.get(&path).assert(200);
    assert_eq!(empty.header("content-type"), Some(OCI_INDEX));
    assert_eq!(empty.json()["manifests"], json!([]));
    assert_eq!(empty.json()["schemaVersion"], 2);

    let (signed, listed) = (Manifest::unique(), Manifest::unique());
    let entry = |manifest: &Manifest, kind: &str| {
        json!({ "mediaType": OCI_MANIFEST, "digest": manifest.digest(),
                "size": manifest.bytes.len(), "artifactType": kind })
    };
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [entry(&signed, "example/signature"), entry(&listed, "example/sbom")] });
    let other = Digest::sha256(b"with referrers");
    let path = format!("demo/app/referrers/{other}");
    upstream.document(&format!("/v2/{path}"), index.to_string(), OCI_INDEX);
    let all = proxy.get(&at(&path)).assert(200);
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    assert!(all.header("oci-filters-applied").is_none());
    let some = proxy
        .get(&at(&format!("{path}?artifactType=example%2Fsbom")))
        .assert(200);
    assert_eq!(
        some.json()["manifests"],
        json!([entry(&listed, "example/sbom")])
    );
    assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(
        upstream.hits(other),
        1,
        "inside fresh_for it is asked for once"
    );
    proxy
        .get(&at("demo/app/referrers/sha256:zz"))
        .assert_error(400, "DIGEST_INVALID");
}
