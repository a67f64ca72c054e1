//! Manifests: the bytes as they came, with their own digest and type, whoever asks and how.

use std::sync::Mutex;

use portcullis::oci::{Algorithm, Digest};

use crate::support::at;
use crate::support::image::{Image, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What GET must say about a manifest, and HEAD just the same.
#[track_caller]
fn assert_head_and_get(proxy: &Proxy, path: &str, manifest: &Manifest) {
    let digest = manifest.digest().to_string();
    let length = manifest.bytes.len().to_string();
    let get = proxy.get(path).assert_whole(&manifest.bytes);
    let head = proxy.head(path).assert(200);
    assert!(head.body.is_empty());
    for answer in [get, head] {
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(digest.as_str()),
            "{answer:?}"
        );
        assert_eq!(
            answer.header("content-type"),
            Some(manifest.media_type.as_str())
        );
        assert_eq!(
            answer.header("content-length"),
            Some(length.as_str()),
            "{answer:?}"
        );
        assert!(answer.header("content-encoding").is_none(), "{answer:?}");
    }
}

#[test]
fn head_and_get_agree_cold_and_cached() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Manifest::unique();
    let index = Manifest::index_of(&[&image]);
    let mut docker = Manifest::new(
        DOCKER_MANIFEST,
        &serde_json::json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "layers": [],
            "config": { "mediaType": "a/b", "digest": Digest::sha256(b"{}"), "size": 2 } }),
    );
    // Not as we would write it: bytes are bytes.
    docker.bytes.splice(0..1, *b"{\n\t ");
    docker.bytes.push(b'\n');
    for (tag, manifest) in [("image", &image), ("index", &index), ("docker", &docker)] {
        upstream.manifest("demo/app", tag, manifest);
        for _ in 0..2 {
            assert_head_and_get(&proxy, &at(&format!("demo/app/manifests/{tag}")), manifest);
            let path = at(&format!("demo/app/manifests/{}", manifest.digest()));
            assert_head_and_get(&proxy, &path, manifest);
        }
    }
    assert_eq!(index.media_type, OCI_INDEX);
}

#[test]
fn parameters_of_the_type_are_dropped() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    let typed = format!("{OCI_MANIFEST}; charset=utf-8");
    upstream.document("/v2/demo/app/manifests/1", manifest.bytes.clone(), &typed);
    assert_head_and_get(&proxy, &at("demo/app/manifests/1"), &manifest);
}

#[test]
fn a_sha512_manifest_works_as_well() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifest = Manifest::unique();
    let digest = Digest::of(Algorithm::Sha512, &manifest.bytes).to_string();
    let path = format!("demo/app/manifests/{digest}");
    upstream.document(&format!("/v2/{path}"), manifest.bytes.clone(), OCI_MANIFEST);
    for _ in 0..2 {
        let answer = proxy.get(&at(&path)).assert_whole(&manifest.bytes);
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(digest.as_str())
        );
    }
    assert_eq!(upstream.hits("manifests"), 1);
}

#[test]
fn the_upstream_is_asked_for_every_type() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    upstream.manifest("demo/app", "1", &Manifest::unique());
    let accept = [
        ("Accept", "application/vnd.example.rare+json"),
        ("Accept", "*/*"),
    ];
    proxy
        .send("GET", &at("demo/app/manifests/1"), &accept)
        .assert(200);
    let request = &upstream.seen("manifests/1")[0];
    let asked: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| name == "accept")
        .collect();
    let asked = format!("{asked:?}");
    for wanted in [
        OCI_MANIFEST,
        OCI_INDEX,
        DOCKER_MANIFEST,
        "manifest.list.v2+json",
        "rare+json",
    ] {
        assert!(asked.contains(wanted), "{wanted} is not in {asked}");
    }
}

/// By digest there is nothing to choose from.
#[test]
fn accept_is_ignored_by_digest() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let index = Manifest::index_of(&[]);
    upstream.manifest("demo/app", "1", &index);
    let path = at(&format!("demo/app/manifests/{}", index.digest()));
    for _ in 0..2 {
        proxy
            .send("GET", &path, &[("Accept", DOCKER_MANIFEST)])
            .assert_whole(&index.bytes);
    }
}

/// A client that knows only images gets an image where the upstream can make one of an index, and
/// spoils nothing for the others.
#[test]
fn a_client_without_indexes_has_a_variant_of_its_own() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Manifest::unique();
    let index = Manifest::index_of(&[&image]);
    upstream.manifest("demo/app", "1", &index);
    let path = at("demo/app/manifests/1");
    proxy.get(&path).assert_whole(&index.bytes);
    // From here on the upstream answers as it would to such a client.
    upstream.manifest("demo/app", "1", &image);
    let old = [("Accept", OCI_MANIFEST), ("Accept", DOCKER_MANIFEST)];
    proxy.send("GET", &path, &old).assert_whole(&image.bytes);
    let asked = upstream.seen("manifests/1").pop().unwrap();
    assert!(
        asked
            .headers
            .iter()
            .all(|(_, value)| !value.contains("index")),
        "{asked:?}"
    );
    proxy.get(&path).assert_whole(&index.bytes);
    proxy.send("GET", &path, &old).assert_whole(&image.bytes);
    assert_eq!(upstream.hits("manifests/1"), 2);
}

#[test]
fn a_whole_image_is_fetched_once() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[100, 100_000, 3_000_000]);
    upstream.image("demo/app", "1", &image);
    for _ in 0..2 {
        assert_head_and_get(&proxy, &at("demo/app/manifests/1"), &image.manifest);
        for blob in image.blobs() {
            let digest = Digest::sha256(blob);
            proxy
                .get(&at(&format!("demo/app/blobs/{digest}")))
                .assert_whole(blob);
            proxy.wait_until_stored(&digest);
        }
    }
    for blob in image.blobs() {
        assert_eq!(upstream.sent(Digest::sha256(blob)), blob.len() as u64);
    }
}

#[test]
fn five_hundred_cold_tags_are_five_hundred_requests() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let manifests: Vec<_> = (0..500).map(|_| Manifest::unique()).collect();
    for (n, manifest) in manifests.iter().enumerate() {
        upstream.document(
            &format!("/v2/demo/app/manifests/t{n}"),
            manifest.bytes.clone(),
            OCI_MANIFEST,
        );
    }
    let next = Mutex::new(manifests.iter().enumerate());
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some((n, manifest)) = next.lock().unwrap().next() else {
                        break;
                    };
                    let path = at(&format!("demo/app/manifests/t{n}"));
                    proxy.get(&path).assert_whole(&manifest.bytes);
                }
            });
        }
    });
    assert_eq!(upstream.requests().len(), 500);
    // Connections to the upstream are kept.
    assert!(
        upstream.connects() <= 64,
        "{} connections",
        upstream.connects()
    );
}
