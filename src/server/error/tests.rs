use std::fmt::Write as _;
use std::sync::Arc;

use super::*;
use crate::oci::{Image, InvalidDigest};
use crate::policy::{Client, Grants, Refusal};

const PAGE: &str = "docs/errors.md";

/// A cause, what the person who meets it can do, and an answer that shows it.
type Row = (&'static str, &'static str, ApiError);

#[expect(clippy::needless_pass_by_value, reason = "reads better in the table")]
fn from_cache(error: CacheError) -> ApiError {
    ApiError::cache(&error, RequestId::EXAMPLE)
}

fn from_upstream(kind: UpstreamErrorKind) -> ApiError {
    from_cache(CacheError::Upstream(UpstreamError {
        registry: "quay.io".to_owned(),
        kind,
    }))
}

fn not_granted() -> Refusal {
    let mut grants = Grants::default();
    let (registry, repositories) = ("registry.example".parse().unwrap(), ["**".to_owned()]);
    grants.add(&registry, "10.1.0.0/16", &repositories).unwrap();
    let image: Image = "registry.example/team-a/app".parse().unwrap();
    let refusal = grants.refusal(&Client::default(), &image.repository);
    refusal.unwrap()
}

/// Every answer that is not what was asked for.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn rows() -> Vec<Row> {
    let refusal = Refusal {
        message: "k8s.gcr.io is frozen since 3 April 2023: use registry.k8s.io/pause:3.9"
            .to_owned(),
        rule: Some("frozen-k8s-gcr".to_owned()),
        reason: Some("k8s.gcr.io is frozen since 3 April 2023".to_owned()),
        instead: Some("registry.k8s.io/pause:3.9".to_owned()),
        contact: None,
        served_from: None,
    };
    let held_back = Refusal {
        rule: Some("settled".to_owned()),
        served_from: Some("2026-11-05T12:30:00Z".to_owned()),
        ..Refusal::new(
            "quay.io/a:1 is not served yet: it will be from 2026-11-05T12:30:00Z on, \
             3d after it was first seen"
                .to_owned(),
        )
    };
    vec![
        (
            "policy refuses the image",
            "use what the text names instead, or ask its contact",
            from_cache(CacheError::Denied(Arc::new(refusal))),
        ),
        (
            "policy wants the tag to have been seen for a while (`min_age`)",
            "wait, or pin an older digest",
            from_cache(CacheError::Denied(Arc::new(held_back))),
        ),
        (
            "the repository is granted to other clients",
            "ask whoever runs the proxy for one of the upstream's `grants`",
            from_cache(CacheError::Denied(Arc::new(not_granted()))),
        ),
        (
            "the registry is neither known nor configured",
            "add an `[upstreams]` entry",
            from_cache(CacheError::NotServed("registry.example".parse().unwrap())),
        ),
        (
            "the Host header names nobody we are",
            "use the proxy's own name, or add it to `server.hosts`",
            ApiError::route(&RouteError::Host),
        ),
        (
            "the upstream refuses us (401 or 403)",
            "check the spelling; give the upstream a login",
            from_upstream(UpstreamErrorKind::Refused),
        ),
        (
            "the upstream refuses our login where it is exchanged",
            "do what the text says; `docs/credentials.md` has the steps",
            from_cache(CacheError::Upstream(UpstreamError {
                registry: "corp.azurecr.io".to_owned(),
                kind: UpstreamErrorKind::LoginRefused(
                    "exchange: corp.azurecr.io answered 401 to our identity, which needs the role \
                     AcrPull on that registry"
                        .to_owned(),
                ),
            })),
        ),
        (
            "bad repository name or tag",
            "correct the name",
            ApiError::route(&RouteError::Name(InvalidName::Repository)),
        ),
        (
            "bad digest",
            "correct the digest",
            ApiError::route(&RouteError::Name(InvalidName::Digest(InvalidDigest::Shape))),
        ),
        (
            "`ns` twice, empty or no registry",
            "correct `hosts.toml`",
            ApiError::route(&RouteError::Namespace),
        ),
        (
            "`n`, `last` or `artifactType` is wrong",
            "correct the query",
            ApiError::route(&RouteError::Query),
        ),
        (
            "the path has odd segments",
            "correct the name",
            ApiError::route(&RouteError::Path),
        ),
        (
            "the proxy's URL has a path in `hosts.toml`",
            "correct `hosts.toml`",
            ApiError::route(&RouteError::Misplaced),
        ),
        (
            "a request with a body",
            "send none",
            BadRequest::Body.into(),
        ),
        (
            "an absolute request target",
            "this is a registry, not a forward proxy",
            BadRequest::AbsoluteForm.into(),
        ),
        (
            "no Host header, or two",
            "send one",
            BadRequest::Host.into(),
        ),
        (
            "the request target is too long",
            "shorten the name",
            ApiError::route(&RouteError::TooLong),
        ),
        (
            "too many headers",
            "send fewer",
            BadRequest::ManyHeaders.into(),
        ),
        (
            "a blob of unknown length, asked for with HTTP/1.0",
            "use HTTP/1.1",
            BadRequest::Http10.into(),
        ),
        (
            "a request in the name of another replica that is not signed as one",
            "give all replicas the same secret, networks and clocks",
            ApiError::peer_refused(),
        ),
        (
            "the upstream has no such manifest",
            "check the tag",
            from_cache(CacheError::ManifestUnknown),
        ),
        (
            "the upstream has no such blob",
            "pull again by tag",
            from_cache(CacheError::BlobUnknown),
        ),
        (
            "the upstream has no such repository",
            "check the name",
            from_cache(CacheError::NameUnknown),
        ),
        (
            "the upstream has nothing there",
            "check the name",
            from_upstream(UpstreamErrorKind::NotFound),
        ),
        (
            "not a path of the API",
            "check the URL",
            ApiError::route(&RouteError::NotFound),
        ),
        (
            "push, delete or anything but a read",
            "use the registry itself",
            ApiError::route(&RouteError::Method),
        ),
        (
            "the range lies outside the blob",
            "ask for less",
            ApiError::unsatisfiable(1024),
        ),
        (
            "the upstream limits our rate",
            "wait; give the upstream a login",
            from_upstream(UpstreamErrorKind::RateLimited {
                retry_after: Some(Duration::from_secs(30)),
            }),
        ),
        (
            "offline, a referrers list or signature is not in the cache",
            "none needed: clients go on",
            from_cache(CacheError::Offline { listing: true }),
        ),
        (
            "offline, the image is not in the cache",
            "import it, or warm it while online",
            from_cache(CacheError::Offline { listing: false }),
        ),
        (
            "too busy here",
            "wait; raise `[limits]`",
            from_cache(CacheError::Busy {
                retry_after: Duration::from_millis(1500),
            }),
        ),
        (
            "the upstream is down",
            "see whether the registry is up and the egress open",
            from_upstream(UpstreamErrorKind::Unavailable(
                "cannot connect to quay.io: connection refused".to_owned(),
            )),
        ),
        (
            "the upstream is down, and was not asked again",
            "see whether the registry is up and the egress open; the next try is as the text says",
            from_upstream(UpstreamErrorKind::Down {
                text:
                    "down since 2026-11-22T09:14:57Z, next try in 4 s: cannot connect to quay.io \
                       (connection refused)"
                        .to_owned(),
                retry_after: Duration::from_secs(4),
            }),
        ),
        (
            "the upstream is overloaded and wants time",
            "wait",
            from_upstream(UpstreamErrorKind::Overloaded {
                text: "quay.io answered 503 Service Unavailable".to_owned(),
                retry_after: Duration::from_secs(30),
            }),
        ),
        (
            "too many requests to one upstream wait already",
            "wait; look for why the upstream is slow",
            from_upstream(UpstreamErrorKind::Busy {
                retry_after: Duration::from_secs(5),
            }),
        ),
        (
            "the login for the upstream cannot be had",
            "look at the program or the identity service that the text names",
            from_upstream(UpstreamErrorKind::LoginUnavailable(
                "the credential helper docker-credential-pass ended with exit code 1".to_owned(),
            )),
        ),
        (
            "the upstream has less than it said",
            "pull again; tell the registry",
            from_upstream(UpstreamErrorKind::RangeNotSatisfiable),
        ),
        (
            "the upstream breaks the protocol",
            "look for a captive portal or a rewriting proxy in between",
            from_upstream(UpstreamErrorKind::Invalid(
                "a manifest with content type text/html".to_owned(),
            )),
        ),
        (
            "the upstream sends us to a host that is not on its list",
            "add the host if you trust it",
            from_upstream(UpstreamErrorKind::HostRefused(
                "redirects to cdn.example, which redirect_hosts of this upstream does not list"
                    .to_owned(),
            )),
        ),
        (
            "the egress proxy is down, refuses the host or wants a login",
            "do at the proxy what the text says; see [egress-proxy.md](egress-proxy.md)",
            from_upstream(UpstreamErrorKind::NoWayOut(
                "the egress proxy 10.0.0.4:3128 refused CONNECT to quay.io:443 (403): allow the \
                 host there"
                    .to_owned(),
            )),
        ),
        (
            "the bytes do not have their digest",
            "pull again; tell the registry",
            from_cache(CacheError::WrongBytes(
                "quay.io sent bytes that do not have the digest asked for".to_owned(),
            )),
        ),
        (
            "the upstream is too slow",
            "pull again; raise `[limits]`",
            from_upstream(UpstreamErrorKind::TimedOut(
                "no answer within 15 s".to_owned(),
            )),
        ),
        (
            "no answer within `limits.answer`",
            "pull again",
            from_cache(CacheError::TooSlow("the upstream's answer".to_owned())),
        ),
        (
            "our disk, our bug",
            "look for the request id in the log",
            from_cache(CacheError::Internal(
                "cannot write /var/lib/portcullis/v1/blobs".to_owned(),
            )),
        ),
    ]
}

fn page() -> String {
    let mut page = String::from(
        "# Every error, and what to do\n\n\
         Written by a test from `src/server/error.rs`; change it there and run the tests with\n\
         `UPDATE_DOCS=1`. The text stands in the reason phrase of the status line, on HEAD and GET\n\
         alike, and as `message` in the JSON body of a GET. Texts here are examples.\n\n\
         | status | code | cause | text | what to do |\n|---|---|---|---|---|\n",
    );
    for (cause, remedy, error) in rows() {
        let ApiError {
            status,
            code,
            message,
            retry_after,
            ..
        } = &error;
        let retry = retry_after.map_or_else(String::new, |s| format!(" (Retry-After: {s})"));
        let (status, code) = (status.as_u16(), code.as_str());
        let _ = writeln!(
            page,
            "| {status}{retry} | {code} | {cause} | `{message}` | {remedy} |"
        );
    }
    page
}

#[test]
fn the_page_shows_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page(),
        "{PAGE} is out of date: run the tests with UPDATE_DOCS=1"
    );
}

#[test]
fn every_error_has_a_text_that_fits_a_status_line() {
    for (cause, _, error) in rows() {
        let text = &error.message;
        assert!(
            (5..=LONGEST_MESSAGE).contains(&text.chars().count()),
            "{cause}: {text}"
        );
        assert!(
            !text.to_lowercase().starts_with("denied"),
            "{cause}: clients write that in front"
        );
        assert!(!text.contains(char::is_control), "{cause}: {text:?}");
        assert!(
            hyper::ext::ReasonPhrase::try_from(text.as_bytes()).is_ok(),
            "{cause}"
        );
    }
}

#[test]
fn no_answer_draws_credentials_and_4xx_codes_are_the_specifications() {
    use ErrorCode as Code;
    for (cause, _, error) in rows() {
        assert_ne!(error.status, StatusCode::UNAUTHORIZED, "{cause}");
        let ours = matches!(error.code, Code::Unavailable | Code::Unknown);
        assert_eq!(
            ours,
            error.status.is_server_error() && error.status != 505,
            "{cause}"
        );
    }
}

#[test]
fn a_refusal_says_why_and_what_instead() {
    let (_, _, error) = &rows()[0];
    assert_eq!(error.status, StatusCode::FORBIDDEN);
    let detail = error.detail.as_ref().unwrap();
    assert_eq!(detail["rule"], "frozen-k8s-gcr");
    assert_eq!(detail["instead"], "registry.k8s.io/pause:3.9");
    assert_eq!(detail["contact"], Value::Null);
}

#[test]
fn a_bug_shows_its_request_id_and_nothing_else() {
    let error = from_cache(CacheError::Internal("/secret/path is full".to_owned()));
    assert!(
        error.message.contains("0123456789abcdef"),
        "{}",
        error.message
    );
    assert!(!error.message.contains("secret"), "{}", error.message);
}

#[test]
fn retry_after_is_in_whole_seconds_and_never_zero() {
    let busy = |millis| {
        let retry_after = Duration::from_millis(millis);
        from_cache(CacheError::Busy { retry_after }).retry_after
    };
    assert_eq!(busy(0), Some(1));
    assert_eq!(busy(1000), Some(1));
    assert_eq!(busy(1001), Some(2));
    assert_eq!(
        from_upstream(UpstreamErrorKind::RateLimited { retry_after: None }).retry_after,
        Some(60)
    );
}

#[test]
fn a_line_has_no_room_for_tricks() {
    assert_eq!(
        one_line("a\r\nX-Evil: 1\0\u{1b}[31m b"),
        "a X-Evil: 1 [31m b"
    );
    assert_eq!(one_line("right\u{202e}left\u{feff}"), "right left");
    assert_eq!(one_line("  übel \t  ist  es "), "übel ist es");
    let long = one_line(&"ä".repeat(100_000));
    assert_eq!(long.chars().count(), LONGEST_MESSAGE);
    assert!(long.ends_with("..."));
    assert_eq!(
        one_line(&"x".repeat(LONGEST_MESSAGE)),
        "x".repeat(LONGEST_MESSAGE)
    );
}
