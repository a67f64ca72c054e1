//! Which registry a request means, and everything that is not a request we answer.

use std::io::Write as _;

use crate::support::at;
use crate::support::client::{Answer, Client};
use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

fn scene() -> (Upstream, Proxy, Manifest) {
    let upstream = Upstream::start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let proxy = Proxy::start(&upstream);
    (upstream, proxy, manifest)
}

#[test]
fn the_version_check_is_200() {
    let (_upstream, proxy, _) = scene();
    for path in ["/v2/", "/v2"] {
        let answer = proxy.get(path).assert(200);
        assert_eq!(answer.body, b"{}");
        let version = answer.header("docker-distribution-api-version");
        assert_eq!(version, Some("registry/2.0"), "{path}");
        proxy.head(path).assert(200);
    }
}

#[test]
fn every_form_leads_to_the_same_manifest() {
    let (upstream, proxy, manifest) = scene();
    for path in [
        "/v2/registry.example/demo/app/manifests/1",
        "/v2/demo/app/manifests/1?ns=registry.example",
        "/v2/demo/app/manifests/1?ns=REGISTRY.example",
        "/v2/registry.example/demo/app/manifests/1?ns=registry.example",
        "/v2/REGISTRY.EXAMPLE/demo/app/manifests/1",
        "/v2/registry.example:443/demo/app/manifests/1",
    ] {
        let answer = proxy.get(path).assert_whole(&manifest.bytes);
        let namespace = path.contains("ns=").then_some("registry.example");
        assert_eq!(answer.header("oci-namespace"), namespace, "{path}");
    }
    assert_eq!(
        upstream.requests().len(),
        1,
        "one tag under many names was fetched again"
    );
}

#[test]
fn without_a_registry_the_host_or_the_default_decides() {
    let upstream = Upstream::start();
    let other = Upstream::start();
    let proxy = Setup::new(&upstream)
        .registry("other.example", &other.origin())
        .section(
            "server",
            "default_registry = \"registry.example\"\n\
             hosts = { \"hub.corp.example\" = \"other.example\" }",
        )
        .rules("[policy]\ndefault = \"allow\"\n")
        .start();
    let (ours, theirs) = (Manifest::unique(), Manifest::unique());
    upstream.manifest("demo/app", "1", &ours);
    other.manifest("demo/app", "1", &theirs);
    let path = "/v2/demo/app/manifests/1";
    proxy.get(path).assert_whole(&ours.bytes);
    for host in ["hub.corp.example", "HUB.corp.example:5000"] {
        proxy
            .send("GET", path, &[("Host", host)])
            .assert_whole(&theirs.bytes);
    }
    for host in ["localhost", "portcullis", "10.1.2.3:5000"] {
        proxy
            .send("GET", path, &[("Host", host)])
            .assert_whole(&ours.bytes);
    }
    // A name that nobody gave us (DNS rebinding).
    proxy
        .send("GET", path, &[("Host", "evil.example")])
        .assert_error(403, "DENIED");
}

#[test]
fn a_registry_must_be_named_once() {
    let (upstream, proxy, _) = scene();
    for query in [
        "ns=registry.example&ns=registry.example",
        "ns=registry.example&ns=evil.example",
        "ns=",
        "ns",
        "ns=%00",
        "ns=registry.example%0d%0aX-Evil:%201",
        "ns=http://registry.example",
        "ns=registry.example/x",
        "ns=%C3%A9.example",
        "ns=registry.example:99999",
        "ns=registry.example:80:80",
    ] {
        let answer = proxy.get(&format!("/v2/demo/app/manifests/1?{query}"));
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// A registry in the path that is not the one in `ns` is part of the repository's name there.
#[test]
fn ns_decides_alone() {
    let (upstream, proxy, _) = scene();
    let answer = proxy.get("/v2/evil.example/demo/app/manifests/1?ns=registry.example");
    assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    let asked = upstream.requests();
    assert!(
        asked
            .iter()
            .all(|request| request.path.contains("evil.example/demo/app"))
    );
}

#[test]
fn bad_names_never_leave() {
    let (upstream, proxy, _) = scene();
    let hex = "a".repeat(64);
    let long = "a/".repeat(130) + "a";
    let names: &[&str] = &[
        "..",
        "../..",
        "demo/..",
        "demo/../..",
        "%2e%2e",
        "demo/%2e%2e/app",
        "demo%2f..%2fapp",
        "demo//app",
        "/demo/app",
        "demo/app/",
        "A/b",
        "demo/_b",
        "demo/b_",
        "demo/a___b",
        "-a",
        "a-",
        "demo/.a",
        "demo/a..b",
        "a\\b",
        "demo/%00",
        "demo/a%00b",
        "demo/%C3%A9",
        "demo/a%5Cb",
        "demo/a%20b",
        "demo/a+b",
        "demo/a;b",
        "demo/a:b",
        "demo/~a",
        &long,
    ];
    for name in names {
        for rest in ["manifests/1", "tags/list", &format!("blobs/sha256:{hex}")] {
            let path = at(&format!("{name}/{rest}"));
            let answer = proxy.get(&path);
            assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
        }
    }
    let tags = [
        "..",
        ".a",
        "-a",
        "a%2fb",
        "a b",
        "%00",
        "a%0d%0ab",
        "",
        &"a".repeat(129),
    ];
    for tag in tags {
        let answer = proxy.client().raw(
            format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                at(&format!("demo/app/manifests/{tag}"))
            )
            .as_bytes(),
        );
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(status, "400" | "404"), "{tag:?}: {answer}");
    }
    for digest in [
        format!("sha256:{}", "A".repeat(64)),
        format!("sha256:{}", "a".repeat(63)),
        format!("sha256:{}", "a".repeat(65)),
        format!("sha1:{}", "a".repeat(40)),
        format!("sha512:{hex}"),
        "sha256:../../../../etc/passwd".to_owned(),
        format!("sha256%3A..%2f{}", "a".repeat(61)),
        "sha256:".to_owned(),
        "latest".to_owned(),
    ] {
        for kind in ["blobs", "referrers"] {
            let answer = proxy.get(&at(&format!("demo/app/{kind}/{digest}")));
            assert!(
                matches!(answer.status, 400 | 404),
                "{kind}/{digest}: {answer:?}"
            );
        }
    }
    assert_eq!(upstream.requests().len(), 0, "{:?}", upstream.requests());
}

#[test]
fn errors_in_names_have_their_codes() {
    let (_upstream, proxy, _) = scene();
    proxy
        .get(&at("demo/APP/manifests/1"))
        .assert_error(400, "NAME_INVALID");
    proxy
        .get(&at("demo/app/manifests/.bad"))
        .assert_error(400, "NAME_INVALID");
    proxy
        .get(&at("demo/app/blobs/sha256:zz"))
        .assert_error(400, "DIGEST_INVALID");
    proxy
        .get(&at("demo/app/manifests/sha256:zz"))
        .assert_error(400, "DIGEST_INVALID");
}

#[test]
fn what_is_not_part_of_the_interface_is_404() {
    let (upstream, proxy, _) = scene();
    for path in [
        "/",
        "/v1/",
        "/v2/_catalog",
        "/v2/_catalog?n=1",
        "/metrics",
        "/api/v1/status",
        "/debug",
        "/v2/demo/app/manifests/1/v2/demo/app/manifests/1/x",
        "/foo/v2/demo/app/manifests/1",
        "/v2/registry.example/demo/app/uploads/",
        "/favicon.ico",
    ] {
        let answer = proxy.get(path);
        assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[test]
fn nothing_can_be_written() {
    let (upstream, proxy, _) = scene();
    let paths = [
        at("demo/app/manifests/1"),
        at("demo/app/blobs/uploads/"),
        at(&format!("demo/app/blobs/sha256:{}", "a".repeat(64))),
        at("demo/app/tags/list"),
        "/v2/".to_owned(),
    ];
    for method in [
        "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND",
    ] {
        for path in &paths {
            let answer = proxy.send(method, path, &[]).assert(405);
            assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method} {path}");
            assert_eq!(answer.code(), "UNSUPPORTED", "{method} {path}");
        }
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// Bodies on GET and framing that two parsers could read in two ways: one answer, then the end.
#[test]
fn smuggled_requests_are_not_answered() {
    let (_upstream, proxy, manifest) = scene();
    let path = at("demo/app/manifests/1");
    proxy.get(&path).assert_whole(&manifest.bytes);
    let canary = "GET /v2/canary HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = canary.len();
    for headers in [
        format!("Content-Length: {length}"),
        "Content-Length: 5".to_owned(),
        "Transfer-Encoding: chunked".to_owned(),
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        "Transfer-Encoding: identity, chunked".to_owned(),
        "Transfer-Encoding: xchunked".to_owned(),
        "Content-Length: +5".to_owned(),
        "X: y\r\n continued: folded".to_owned(),
    ] {
        for method in ["GET", "HEAD"] {
            let request =
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{canary}");
            let answers = proxy.client().raw(request.as_bytes());
            assert_eq!(
                answers.matches("HTTP/1.1 ").count(),
                1,
                "{headers}: {answers}"
            );
            assert!(answers.starts_with("HTTP/1.1 400"), "{headers}: {answers}");
        }
    }
}

#[test]
fn it_is_no_open_proxy() {
    let (upstream, proxy, _) = scene();
    let origin = upstream.origin();
    for request in [
        format!("GET {origin}/v2/demo/app/manifests/1 HTTP/1.1\r\nHost: x\r\n"),
        format!("CONNECT {} HTTP/1.1\r\nHost: x\r\n", upstream.address()),
        "GET * HTTP/1.1\r\nHost: x\r\n".to_owned(),
    ] {
        let request = format!("{request}Connection: close\r\n\r\n");
        let answer = proxy.client().raw(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 4"), "{request}: {answer}");
    }
    let upgrade = format!(
        "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        at("demo/app/manifests/1")
    );
    let answer = proxy.client().raw(upgrade.as_bytes());
    assert!(!answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(upstream.requests().len() <= 1);
}

#[test]
fn a_connection_serves_many_requests() {
    let (upstream, proxy, manifest) = scene();
    let bytes = random(300_000);
    let digest = upstream.blob("demo/app", bytes.clone());
    let mut requests = Vec::new();
    for _ in 0..3 {
        for (method, path) in [
            ("GET", at("demo/app/manifests/1")),
            ("HEAD", at("demo/app/manifests/1")),
            ("GET", at(&format!("demo/app/blobs/{digest}"))),
            ("GET", at("demo/app/manifests/none")),
            ("HEAD", "/v2/nowhere.example/app/manifests/1".to_owned()),
            ("PUT", at("demo/app/manifests/1")),
        ] {
            requests.push((method, path));
        }
    }
    let mut stream = proxy.client().connect().unwrap();
    let mut answers = Vec::new();
    for (method, path) in &requests {
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = Answer::read(std::io::BufReader::new(stream), method).unwrap();
        let length: usize = answer.header("content-length").unwrap().parse().unwrap();
        let body = answer.take(if *method == "HEAD" { 0 } else { length });
        answers.push((answer.status, body));
        stream = answer.into_stream();
    }
    for (n, (status, body)) in answers.iter().enumerate() {
        let expected = [200, 200, 200, 404, 403, 405][n % 6];
        assert_eq!(*status, expected, "{:?}", requests[n]);
        match n % 6 {
            0 => assert!(*body == manifest.bytes),
            2 => assert!(*body == bytes),
            _ => {}
        }
    }
}

#[test]
fn health_metrics_and_administration_have_their_places() {
    let (_upstream, proxy, manifest) = scene();
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    let admin = Client::new(proxy.admin);
    for client in [proxy.client(), admin.clone()] {
        client.get("/healthz").assert(200);
        client.get("/readyz").assert(200);
    }
    let metrics = admin.get("/metrics").assert(200);
    let text = String::from_utf8(metrics.body).unwrap();
    assert!(text.contains("portcullis_requests_total{"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert!(
        !text.contains("demo/app"),
        "a name from a request became a label: {text}"
    );
    proxy.get("/metrics").assert(404);
    let content = admin.get(&at("demo/app/manifests/1"));
    assert!(
        matches!(content.status, 400 | 404),
        "content on the admin port: {content:?}"
    );
}

#[test]
fn every_answer_has_a_request_id_that_the_log_has_too() {
    let (_upstream, proxy, _) = scene();
    for path in [
        at("demo/app/manifests/1"),
        at("demo/app/manifests/none"),
        "/v2/".to_owned(),
    ] {
        let answer = proxy.get(&path);
        let id = answer
            .headers
            .iter()
            .find(|(name, _)| name.contains("request-id"));
        let (_, id) = id.unwrap_or_else(|| panic!("no request id: {answer:?}"));
        proxy.logs().wait_for_text(id);
    }
}

/// What a client sends becomes at most one line of the log, whatever is in it.
#[test]
fn the_log_cannot_be_forged() {
    let (_upstream, proxy, _) = scene();
    let agent = "\u{1b}]0;x\u{7}{\"level\":\"ERROR\"}";
    proxy.send(
        "GET",
        &at("demo/app/manifests/forged"),
        &[("User-Agent", agent)],
    );
    proxy.get(&at("demo/app/manifests/1"));
    for line in proxy.logs().text().lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "not one JSON document: {line:?}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
    }
}
