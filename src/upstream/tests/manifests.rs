//! Manifests, their probes, and referrers.

use std::sync::{Arc, Mutex};

use super::*;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn nothing_goes_out_but_what_is_meant_to() {
    let server = Server::start(|_| {
        Reply::new(200, "{}")
            .header("content-type", INDEX)
            .header("warning", "299 - \"old\"")
            .header("warning", "110 - \"not for us\"")
            .header("warning", format!("299 - \"{}\"", "x".repeat(5000)))
    })
    .await;
    let accept = [INDEX.to_owned(), MANIFEST.to_owned()];
    let manifest = upstream(&server, "")
        .manifest(&repository("library/nginx"), &tag("1.27"), &accept)
        .await
        .unwrap();
    assert_eq!(&manifest.bytes[..], b"{}");
    assert_eq!(manifest.content_type.as_deref(), Some(INDEX));
    assert_eq!(manifest.warnings, ["299 - \"old\""]);

    let mut seen = server.seen().remove(0);
    seen.headers.sort();
    let expected = [
        ("accept", format!("{INDEX}, {MANIFEST}")),
        ("accept-encoding", "identity".into()),
        ("host", server.address.to_string()),
        (
            "user-agent",
            concat!("portcullis/", env!("CARGO_PKG_VERSION")).into(),
        ),
    ];
    assert_eq!(
        seen.headers,
        expected.map(|(name, value)| (name.to_owned(), value))
    );
    assert_eq!(
        (&*seen.method, &*seen.target),
        ("GET", "/v2/library/nginx/manifests/1.27")
    );
}

#[tokio::test]
async fn answers_keep_their_meaning() {
    let status = Arc::new(Mutex::new(0));
    let script = Arc::clone(&status);
    let server = Server::start(move |_| {
        let body = r#"{"errors":[{"code":"X","message":"out of paper"}]}"#;
        Reply::new(*script.lock().unwrap(), body)
    })
    .await;
    let ask = async |code| {
        *status.lock().unwrap() = code;
        // One that has not heard of the rate limit.
        kind(get(&upstream(&server, ""), "a").await)
    };
    assert_eq!(ask(401).await, UpstreamErrorKind::Refused);
    assert_eq!(ask(403).await, UpstreamErrorKind::Refused);
    assert_eq!(ask(404).await, UpstreamErrorKind::NotFound);
    assert_eq!(ask(416).await, UpstreamErrorKind::RangeNotSatisfiable);
    assert_eq!(
        ask(429).await,
        UpstreamErrorKind::RateLimited { retry_after: None }
    );
    for code in [300, 304, 400, 410, 501] {
        assert!(
            matches!(ask(code).await, UpstreamErrorKind::Invalid(_)),
            "{code}"
        );
    }
    // All of these were asked once; an outage is asked again, and only its text is passed on.
    assert_eq!(server.seen().len(), 10);
    let UpstreamErrorKind::Unavailable(text) = ask(503).await else {
        panic!()
    };
    assert!(
        text.contains("503") && text.contains("out of paper"),
        "{text}"
    );
    assert_eq!(server.seen().len(), 13);
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_refused_with_or_without_a_length() {
    for announced in [true, false] {
        let server = Server::start(move |_| {
            let reply = Reply::new(200, vec![b' '; 3000]);
            if announced {
                reply.length(Some(5 << 30))
            } else {
                reply.length(None)
            }
        })
        .await;
        let limits = Limits {
            manifest_size: 2999,
            ..Limits::default()
        };
        let upstream = upstream_with(&server, "", &limits);
        let UpstreamErrorKind::Invalid(text) = kind(get(&upstream, "a").await) else {
            panic!()
        };
        assert!(text.contains("more than"), "{text}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn compressed_bytes_are_refused() {
    let server =
        Server::start(|_| Reply::new(200, "\x1f\u{8b}").header("content-encoding", "gzip")).await;
    let upstream = upstream(&server, "");
    assert!(matches!(
        kind(get(&upstream, "a").await),
        UpstreamErrorKind::Invalid(_)
    ));
    let blob = upstream.blob(&repository("a"), &digest(), None).await;
    assert!(matches!(kind(blob), UpstreamErrorKind::Invalid(_)));
}

#[tokio::test]
async fn a_probe_reads_the_header_and_takes_no_digest_that_is_none() {
    let server = Server::start(|request| {
        assert_eq!(request.method, "HEAD");
        let said = if request.target.contains("good") {
            digest().to_string()
        } else {
            "x".into()
        };
        Reply::new(200, "")
            .length(Some(1234))
            .header("content-type", MANIFEST)
            .header("docker-content-digest", said)
    })
    .await;
    let upstream = upstream(&server, "");
    let probe = upstream
        .probe_manifest(&repository("good"), &tag("1"), &[])
        .await
        .unwrap();
    assert_eq!(probe.digest, Some(digest()));
    assert_eq!(probe.content_type.as_deref(), Some(MANIFEST));
    assert_eq!(probe.size, Some(1234));
    let probe = upstream
        .probe_manifest(&repository("bad"), &tag("1"), &[])
        .await
        .unwrap();
    assert_eq!(probe.digest, None);
}

#[tokio::test]
async fn where_head_is_refused_a_get_answers() {
    let server = Server::start(
        |request| match (&*request.method, request.header("range")) {
            ("HEAD", _) => Reply::new(405, ""),
            ("GET", Some("bytes=0-0")) if request.target.contains("/empty/") => {
                Reply::new(416, "").header("content-range", "bytes */0")
            }
            ("GET", Some("bytes=0-0")) => {
                Reply::new(206, "x").header("content-range", "bytes 0-0/777")
            }
            _ => Reply::new(200, "{}"),
        },
    )
    .await;
    let upstream = upstream(&server, "");
    let probe = upstream
        .probe_blob(&repository("a"), &digest())
        .await
        .unwrap();
    assert_eq!(probe.size, Some(777));
    let probe = upstream
        .probe_blob(&repository("empty/a"), &digest())
        .await
        .unwrap();
    assert_eq!(probe.size, Some(0));
    let probe = upstream
        .probe_manifest(&repository("a"), &tag("1"), &[])
        .await
        .unwrap();
    assert_eq!(probe.size, Some(2));
}

#[tokio::test]
async fn referrers_are_read_to_the_last_page_or_none() {
    let server = Server::start(|request| match request.target.split('/').nth(2) {
        Some("with") => Reply::new(200, "{}").header("content-type", INDEX),
        Some("paged") if request.target.ends_with("?page=2") => Reply::new(200, "second"),
        Some("paged") => Reply::new(200, "first").header(
            "link",
            "<https://elsewhere.example/v2/x?page=2>; rel=\"next\"",
        ),
        Some("circle") => Reply::new(200, "same").header("link", "<?page=2>; rel=\"next\""),
        Some("broken") if request.target.ends_with("?page=2") => Reply::new(404, ""),
        Some("broken") => Reply::new(200, "first").header("link", "<?page=2>; rel=\"next\""),
        Some("without") => Reply::new(404, "page not found"),
        _ => Reply::new(403, ""),
    })
    .await;
    let upstream = upstream(&server, "");
    let ask = async |name| upstream.referrers(&repository(name), &digest()).await;
    assert_eq!(ask("with").await.unwrap().unwrap(), ["{}"]);
    assert_eq!(ask("without").await.unwrap(), None);
    assert_eq!(ask("paged").await.unwrap().unwrap(), ["first", "second"]);
    assert_eq!(ask("circle").await.unwrap().unwrap(), ["same", "same"]);
    let error = kind(ask("broken").await);
    assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error:?}");
    assert_eq!(kind(ask("denied").await), UpstreamErrorKind::Refused);
}
