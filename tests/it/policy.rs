//! What is refused, and how: before anything is looked up, on every route, with a reason that
//! containerd shows.

use portcullis::oci::Digest;

use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{KIB, at};

const RULES: &str = r#"
[policy]
default = "deny"
[[policy.rules]]
id = "frozen"
images = ["frozen.example/**", "registry.example/frozen/**"]
effect = "deny"
reason = "frozen.example is frozen since 3 April 2023"
instead = "registry.example/**"
contact = "platform@corp.example"
[[policy.rules]]
id = "examples"
images = ["registry.example/**"]
effect = "allow"
"#;

fn scene() -> (Upstream, Upstream, Proxy) {
    let (upstream, frozen) = (Upstream::start(), Upstream::start());
    let proxy = Setup::new(&upstream)
        .registry("frozen.example", &frozen.origin())
        .registry("unlisted.example", &frozen.origin())
        .rules(RULES)
        .start();
    (upstream, frozen, proxy)
}

/// Every route there is to something in a repository.
fn routes(name: &str) -> Vec<String> {
    let digest = Digest::sha256(b"something");
    vec![
        format!("{name}/manifests/1"),
        format!("{name}/manifests/{digest}"),
        format!("{name}/blobs/{digest}"),
        format!("{name}/tags/list"),
        format!("{name}/referrers/{digest}"),
    ]
}

/// The refusal, on GET and on HEAD.
#[track_caller]
fn assert_denied(proxy: &Proxy, path: &str) -> String {
    let get = proxy.get(path).assert_error(403, "DENIED");
    let head = proxy.head(path).assert(403);
    assert_eq!(head.reason, get.reason, "{path}");
    assert!(head.body.is_empty());
    let length = get.body.len().to_string();
    assert_eq!(
        head.header("content-length"),
        Some(length.as_str()),
        "{path}"
    );
    assert!(get.reason.is_ascii() && !get.reason.to_lowercase().starts_with("denied"));
    get.reason
}

#[test]
fn a_refusal_says_why_and_what_instead() {
    let (_upstream, frozen, proxy) = scene();
    for path in routes("/v2/frozen.example/app") {
        let reason = assert_denied(&proxy, &path);
        for part in [
            "frozen since 3 April 2023",
            "registry.example/app",
            "platform@corp.example",
        ] {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
        let detail = &proxy.get(&path).json()["errors"][0]["detail"];
        assert_eq!(detail["rule"], "frozen");
        assert_eq!(
            detail["reason"],
            "frozen.example is frozen since 3 April 2023"
        );
        assert_eq!(detail["contact"], "platform@corp.example");
        assert!(
            detail["instead"]
                .as_str()
                .unwrap()
                .starts_with("registry.example/"),
            "{detail}"
        );
    }
    assert_eq!(frozen.connects(), 0, "a refused registry was called");
}

#[test]
fn every_spelling_is_refused() {
    let (_upstream, frozen, proxy) = scene();
    for path in [
        "/v2/app/manifests/1?ns=frozen.example",
        "/v2/app/manifests/1?ns=FROZEN.example",
        "/v2/app/manifests/1?ns=frozen.example.",
        "/v2/app/manifests/1?ns=frozen.example%3A443",
        "/v2/FROZEN.example/app/manifests/1",
        "/v2/frozen.example./app/manifests/1",
        "/v2/frozen.example:443/app/manifests/1",
        "/v2/frozen.example/app/manifests/1?ns=frozen.example",
        "/v2/registry.example/frozen/app/manifests/1",
    ] {
        let answer = proxy.get(path);
        assert!(matches!(answer.status, 400 | 403), "{path}: {answer:?}");
    }
    assert_eq!(frozen.connects(), 0, "a refused registry was called");
}

#[test]
fn what_no_rule_allows_is_refused() {
    let (_upstream, other, proxy) = scene();
    for path in routes("/v2/unlisted.example/app") {
        assert_denied(&proxy, &path);
    }
    assert_eq!(other.connects(), 0, "a refused registry was called");
}

#[test]
fn what_is_not_served_is_refused() {
    let (_upstream, _, proxy) = scene();
    for path in routes("/v2/nowhere.example/app") {
        let reason = assert_denied(&proxy, &path);
        assert!(reason.contains("nowhere.example"), "{reason}");
    }
    // Even where a rule would allow it: the world is closed.
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules("[policy]\ndefault = \"allow\"\n")
        .start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    let reason = assert_denied(&proxy, "/v2/nowhere.example/app/manifests/1");
    assert!(reason.contains("not served"), "{reason}");
}

/// Internal names and addresses, with the widest policy there is.
#[test]
fn internal_targets_are_refused_in_blocklist_mode() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules("[policy]\ndefault = \"allow\"\n")
        .start();
    for name in [
        "10.0.0.1:8080",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "%5B::1%5D",
        "localhost",
        "kubernetes.default.svc",
        "169.254.169.254",
        "168.63.129.16",
        "metadata.internal",
        "%5B::ffff:169.254.169.254%5D",
        "0.0.0.0",
        "registry.example:80",
        "user@registry.example",
    ] {
        let answer = proxy.get(&format!("/v2/app/manifests/1?ns={name}"));
        assert!(matches!(answer.status, 400 | 403), "{name}: {answer:?}");
    }
    assert_eq!(upstream.connects(), 0);
}

#[test]
fn a_refusal_comes_before_the_cache() {
    let (upstream, _, mut proxy) = scene();
    let manifest = Manifest::unique();
    upstream.manifest("later/app", "1", &manifest);
    let bytes = random(100 * KIB);
    let digest = upstream.blob("later/app", bytes.clone());
    let paths = [
        at("later/app/manifests/1"),
        at(&format!("later/app/manifests/{}", manifest.digest())),
        at(&format!("later/app/blobs/{digest}")),
    ];
    for path in &paths {
        proxy.get(path).assert(200);
    }
    proxy.wait_until_stored(&digest);
    assert!(proxy.terminate().success());
    let asked = upstream.requests().len();
    let closed = RULES.replace("registry.example/frozen/**", "registry.example/later/**");
    proxy.start_again_with(|setup| setup.rules(&closed));
    for path in &paths {
        assert_denied(&proxy, path);
    }
    proxy
        .range(&paths[2], "bytes=0-9")
        .assert_error(403, "DENIED");
    assert_eq!(upstream.requests().len(), asked);

    assert!(proxy.terminate().success());
    proxy.start_again_with(|setup| setup.rules(RULES));
    for path in &paths[1..] {
        proxy.get(path).assert(200);
    }
    assert_eq!(
        upstream.requests().len(),
        asked,
        "the cache was lost on the way"
    );
}

#[test]
fn a_tag_can_be_allowed_and_its_digest_follows() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules(
            r#"
            [[policy.rules]]
            id = "releases"
            images = ["registry.example/demo/app:v*"]
            effect = "allow"
            "#,
        )
        .start();
    let bytes = random(100 * KIB);
    let layer = upstream.blob("demo/app", bytes.clone());
    let release = Manifest::referring_to(&[(layer, bytes.len())]);
    let nightly = Manifest::unique();
    upstream.manifest("demo/app", "v1", &release);
    upstream.manifest("demo/app", "nightly", &nightly);
    // Nobody led anybody there yet.
    let by_digest = at(&format!("demo/app/manifests/{}", release.digest()));
    let blob = at(&format!("demo/app/blobs/{layer}"));
    assert_denied(&proxy, &by_digest);
    assert_denied(&proxy, &blob);
    proxy
        .get(&at("demo/app/manifests/v1"))
        .assert_whole(&release.bytes);
    proxy.get(&by_digest).assert_whole(&release.bytes);
    proxy.get(&blob).assert_whole(&bytes);

    assert_denied(&proxy, &at("demo/app/manifests/nightly"));
    assert_denied(
        &proxy,
        &at(&format!("demo/app/manifests/{}", nightly.digest())),
    );
}

/// With no file at all: the well-known registries, and a reason for the frozen one.
#[test]
fn the_built_in_policy_refuses_k8s_gcr_io() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream).rules("").start();
    let reason = assert_denied(&proxy, "/v2/pause/manifests/3.9?ns=k8s.gcr.io");
    assert!(
        reason.contains("frozen") && reason.contains("registry.k8s.io"),
        "{reason}"
    );
    assert_denied(&proxy, "/v2/app/manifests/1?ns=nowhere.example");
}
