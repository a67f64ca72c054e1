//! What is refused, and how: before anything is looked up, on every route, with a reason that
//! containerd shows.

use portcullis::oci::Digest;

use crate::support::certificates::Certificates;
use crate::support::image::{Image, Manifest, random};
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

/// Docker, podman and skopeo get a manifest by its tag, and never ask for it by digest.
#[test]
fn a_digest_that_is_refused_is_not_to_be_had_by_tag() {
    let upstream = Upstream::start();
    let (bad, good) = (Manifest::unique(), Manifest::unique());
    let rules = format!(
        "[[policy.rules]]\nid = \"cve\"\nimages = [\"registry.example/demo/app@{}\"]\neffect = \"deny\"\n\
         reason = \"this build leaks keys\"\n{ALLOW_ALL}",
        bad.digest()
    );
    let proxy = Setup::new(&upstream)
        .section("tags", "fresh_for = \"0s\"")
        .rules(&rules)
        .start();
    upstream.manifest("demo/app", "1", &bad);
    for path in ["1".to_owned(), bad.digest().to_string()] {
        let reason = assert_denied(&proxy, &at(&format!("demo/app/manifests/{path}")));
        assert!(reason.contains("this build leaks keys"), "{reason}");
    }
    upstream.manifest("demo/app", "1", &good);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&good.bytes);
}

/// The rest of the rules of a test: everything is allowed.
const ALLOW_ALL: &str = r#"
[[policy.rules]]
id = "all"
images = ["**"]
effect = "allow"
"#;

#[test]
fn an_audited_image_is_served_with_a_warning() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules(
            r#"
            [[policy.rules]]
            id = "soon"
            images = ["registry.example/old/**"]
            effect = "audit"
            reason = "it will be \"refused\" in May"
            instead = "registry.example/new/**"
            contact = "platform@corp.example"
            [[policy.rules]]
            id = "examples"
            images = ["registry.example/**"]
            effect = "allow"
            "#,
        )
        .start();
    let (old, new) = (Manifest::unique(), Manifest::unique());
    upstream.manifest("old/app", "1", &old);
    upstream.manifest("new/app", "1", &new);
    let warning = "299 - \"registry.example/old/app:1 is served, but audited: it will be \\\"refused\\\" in May; \
                   use registry.example/new/app:1 instead; contact platform@corp.example\"";
    // From the upstream and from the cache.
    for _ in 0..2 {
        let get = proxy
            .get(&at("old/app/manifests/1"))
            .assert_whole(&old.bytes);
        assert_eq!(get.header("warning"), Some(warning));
    }
    let head = proxy.head(&at("old/app/manifests/1")).assert(200);
    assert_eq!(head.header("warning"), Some(warning));
    let by_digest = proxy.get(&at(&format!("old/app/manifests/{}", old.digest())));
    assert!(
        by_digest
            .assert_whole(&old.bytes)
            .header("warning")
            .is_some()
    );
    let clean = proxy
        .get(&at("new/app/manifests/1"))
        .assert_whole(&new.bytes);
    assert_eq!(clean.header("warning"), None);
    assert_eq!(proxy.metric("portcullis_audits_total{rule=\"soon\"}"), 4);
    assert_eq!(proxy.logs().wait_for("audited")["rule"], "soon");
}

/// As containerd pulls it: HEAD by tag, then everything by digest, always under the name that the
/// pod has.
#[test]
fn a_rewritten_image_keeps_its_name_and_comes_from_elsewhere() {
    let (upstream, frozen) = (Upstream::start(), Upstream::start());
    let rules = r#"
        [[policy.rules]]
        id = "moved"
        images = ["frozen.example/**"]
        effect = "rewrite"
        instead = "registry.example/mirror/**"
    "#;
    let mut proxy = Setup::new(&upstream)
        .registry("frozen.example", &frozen.origin())
        .rules(&format!("{rules}{ALLOW_ALL}"))
        .start();
    let image = Image::with_layers(&[100 * KIB]);
    upstream.image("mirror/a/pause", "3.9", &image);
    let digest = image.manifest.digest().to_string();
    let blob = Digest::sha256(&image.layers[0]);
    let ns = |rest: &str| format!("/v2/a/pause/{rest}?ns=frozen.example");

    let head = proxy.head(&ns("manifests/3.9")).assert(200);
    assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(head.header("oci-namespace"), Some("frozen.example"));
    let by_digest = proxy.get(&ns(&format!("manifests/{digest}")));
    by_digest.assert_whole(&image.manifest.bytes);
    let body = proxy
        .get(&ns(&format!("blobs/{blob}")))
        .assert_whole(&image.layers[0]);
    assert_eq!(body.header("oci-namespace"), Some("frozen.example"));
    // By path it is the same, and so is a list.
    proxy
        .get("/v2/frozen.example/a/pause/manifests/3.9")
        .assert_whole(&image.manifest.bytes);
    upstream.document(
        "/v2/mirror/a/pause/tags/list",
        r#"{"name":"mirror/a/pause","tags":["3.9"]}"#,
        "application/json",
    );
    let tags = proxy.get(&ns("tags/list")).assert(200).json();
    assert_eq!(tags["name"], "a/pause");
    assert_eq!(frozen.connects(), 0, "a rewritten registry was called");

    // Links, tags and bytes are those of the other place: its own name finds them cached.
    proxy.wait_until_stored(&blob);
    let asked = upstream.requests().len();
    for path in [
        "manifests/3.9".to_owned(),
        format!("manifests/{digest}"),
        format!("blobs/{blob}"),
    ] {
        proxy
            .get(&at(&format!("mirror/a/pause/{path}")))
            .assert(200);
    }
    assert_eq!(upstream.requests().len(), asked);
    assert!(proxy.metric("portcullis_rewrites_total{rule=\"moved\"}") >= 5);
    assert!(proxy.terminate().success());
    let repositories = proxy.store().join("v1/repos");
    assert!(
        repositories
            .join("registry.example/mirror/a/pause")
            .is_dir()
    );
    assert!(!repositories.join("frozen.example").exists());
}

#[test]
fn what_a_rewrite_leads_to_may_be_refused() {
    let (upstream, frozen) = (Upstream::start(), Upstream::start());
    let rules = r#"
        [[policy.rules]]
        id = "moved"
        images = ["frozen.example/**"]
        effect = "rewrite"
        instead = "registry.example/**"
        [[policy.rules]]
        id = "releases"
        images = ["registry.example/app:v*"]
        effect = "allow"
        [[policy.rules]]
        id = "rest"
        images = ["registry.example/**"]
        effect = "deny"
        reason = "only releases of app"
    "#;
    let proxy = Setup::new(&upstream)
        .registry("frozen.example", &frozen.origin())
        .rules(rules)
        .start();
    let image = Image::with_layers(&[100 * KIB]);
    upstream.image("app", "v1", &image);
    upstream.image("app", "nightly", &image);
    let blob = Digest::sha256(&image.layers[0]);
    let ns = |rest: &str| format!("/v2/app/{rest}?ns=frozen.example");
    let reason = assert_denied(&proxy, &ns("manifests/nightly"));
    assert!(
        reason.starts_with("frozen.example/app:nightly")
            && reason.ends_with("only releases of app"),
        "{reason}"
    );
    assert_denied(&proxy, &ns(&format!("blobs/{blob}")));
    proxy
        .get(&ns("manifests/v1"))
        .assert_whole(&image.manifest.bytes);
    // The tag led there, at the place that it leads to.
    proxy
        .get(&ns(&format!("manifests/{}", image.manifest.digest())))
        .assert_whole(&image.manifest.bytes);
    proxy
        .get(&ns(&format!("blobs/{blob}")))
        .assert_whole(&image.layers[0]);
    assert_denied(&proxy, &ns("manifests/nightly"));
}

#[test]
fn only_pinned_references_are_served_where_a_digest_is_required() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules(
            r#"
            [[policy.rules]]
            id = "pinned"
            images = ["registry.example/**"]
            effect = "allow"
            require = "digest"
            "#,
        )
        .start();
    let image = Image::with_layers(&[10 * KIB]);
    upstream.image("demo/app", "1", &image);
    let reason = assert_denied(&proxy, &at("demo/app/manifests/1"));
    assert!(
        reason.contains("pin it as registry.example/demo/app:1@sha256:..."),
        "{reason}"
    );
    assert_eq!(upstream.connects(), 0, "asked before policy was");
    proxy
        .get(&at(&format!(
            "demo/app/manifests/{}",
            image.manifest.digest()
        )))
        .assert_whole(&image.manifest.bytes);
    let blob = Digest::sha256(&image.layers[0]);
    proxy
        .get(&at(&format!("demo/app/blobs/{blob}")))
        .assert_whole(&image.layers[0]);
}

#[test]
fn rules_know_clients_by_their_network() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .rules(
            r#"
            [[policy.rules]]
            id = "build"
            images = ["registry.example/**"]
            effect = "allow"
            clients = ["127.1.0.0/16"]
            "#,
        )
        .start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let path = at("demo/app/manifests/1");
    let get = |address: [u8; 4]| proxy.client().from(address.into()).get(&path);
    get([127, 0, 0, 1]).assert_error(403, "DENIED");
    get([127, 2, 0, 1]).assert_error(403, "DENIED");
    assert_eq!(upstream.connects(), 0);
    get([127, 1, 2, 3]).assert_whole(&manifest.bytes);
    // What is cached for one client is no gift to another.
    get([127, 0, 0, 1]).assert_error(403, "DENIED");
}

#[test]
fn rules_know_clients_by_their_certificate() {
    let upstream = Upstream::start();
    let directory = tempfile::TempDir::new().unwrap();
    let files = Certificates::create(directory.path());
    let authority = files.authority_file.display();
    let proxy = Setup::new(&upstream)
        .tls(&files.certificate, &files.key, &files.authority)
        .section("server.tls", &format!("client_ca = \"{authority}\""))
        .rules(
            r#"
            [[policy.rules]]
            id = "team-a"
            images = ["registry.example/**"]
            effect = "allow"
            clients = ["mtls:CN=team-a,O=corp"]
            "#,
        )
        .start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let path = at("demo/app/manifests/1");
    let get = |subject: &[(&str, &str)]| {
        let (certificate, key) = files.client(subject);
        proxy
            .client()
            .presenting(&certificate, &key, &files.authority)
            .get(&path)
    };
    get(&[("CN", "team-b"), ("O", "corp")]).assert_error(403, "DENIED");
    get(&[("CN", "team-a")]).assert_error(403, "DENIED");
    get(&[("CN", "team-a,O=corp")]).assert_error(403, "DENIED");
    assert_eq!(upstream.connects(), 0);
    get(&[("O", "corp"), ("CN", "team-a")]).assert_whole(&manifest.bytes);
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
