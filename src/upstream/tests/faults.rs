//! Upstreams that are down, slow, overloaded or not who they say they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::http::{HeaderMap, HeaderValue};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::*;
use crate::telemetry::metrics::{RegistryLabels, UpstreamLabels, UpstreamOutcome, UpstreamRequest};
use crate::upstream::retry::retry_after;

/// The address of nobody: bound once, then given back.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn an_outage_is_tried_three_times_and_may_pass() {
    for (good_try, works) in [(1, true), (3, true), (4, false)] {
        for hang_up in [false, true] {
            let tries = AtomicUsize::new(0);
            let server = Server::start(move |_| match tries.fetch_add(1, Ordering::SeqCst) + 1 {
                number if number >= good_try => Reply::new(200, "{}"),
                _ if hang_up => Reply::hang_up(),
                _ => Reply::new(502, ""),
            })
            .await;
            let result = get(&upstream(&server, ""), "a").await;
            assert_eq!(result.is_ok(), works, "{result:?}");
            assert_eq!(server.seen().len(), good_try.min(3));
        }
    }
}

#[tokio::test]
async fn endpoints_are_tried_in_order_for_outages_only() {
    let down = Server::start(|_| Reply::new(500, "")).await;
    let backup = Server::start(|request| {
        if request.target.contains("missing") {
            Reply::new(404, "")
        } else {
            Reply::new(200, "{}")
        }
    })
    .await;
    let last = Server::bystander().await;
    let toml = format!(
        "[\"{NAME}\"]\ninsecure = true\nendpoints = [\"http://{}\", \"{}\", \"{}\", \"{}\"]",
        nobody().await,
        down.url(),
        backup.url(),
        last.url()
    );
    let upstream = upstreams(&toml, &Limits::default())
        .unwrap()
        .get(&registry(NAME))
        .unwrap();
    get(&upstream, "a").await.unwrap();
    assert_eq!(
        kind(get(&upstream, "missing").await),
        UpstreamErrorKind::NotFound
    );
    assert_eq!(
        (down.seen().len(), backup.seen().len(), last.connections()),
        (1, 2, 0)
    );
}

#[tokio::test]
async fn a_refused_connection_names_class_and_host() {
    let address = nobody().await;
    let toml = format!("[\"{NAME}\"]\ninsecure = true\nendpoints = [\"http://{address}\"]");
    let upstream = upstreams(&toml, &Limits::default())
        .unwrap()
        .get(&registry(NAME))
        .unwrap();
    assert_eq!(
        kind(get(&upstream, "a").await),
        UpstreamErrorKind::Unavailable(format!("cannot connect to {address} (connection refused)"))
    );
}

#[tokio::test]
async fn silence_before_the_header_is_bounded_per_try_and_in_all() {
    let server = Server::start(|_| Reply::new(200, "").length(Some(1)).then(Then::Stall)).await;
    // A manifest's body is part of the answer, so `answer` ends it before `idle` does.
    let limits = Limits {
        answer: Duration::from_millis(200),
        ..Limits::default()
    };
    let began = Instant::now();
    let error = kind(get(&upstream_with(&server, "", &limits), "a").await);
    assert_eq!(
        error,
        UpstreamErrorKind::TimedOut("no answer within 200ms".into())
    );
    assert!(began.elapsed() < Duration::from_secs(5));

    // Accepts connections, by the kernel's queue, and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let toml = format!("[\"{NAME}\"]\ninsecure = true\nendpoints = [\"http://{address}\"]");
    let limits = Limits {
        first_byte: Duration::from_millis(50),
        ..Limits::default()
    };
    let upstream = upstreams(&toml, &limits)
        .unwrap()
        .get(&registry(NAME))
        .unwrap();
    let error = kind(get(&upstream, "a").await);
    let UpstreamErrorKind::TimedOut(text) = error else {
        panic!("{error:?}")
    };
    assert_eq!(
        text,
        format!("{address} did not begin to answer within 50ms")
    );
}

#[tokio::test]
async fn a_rate_limit_is_not_tried_again() {
    let server = Server::start(|_| Reply::new(429, "").header("retry-after", "7")).await;
    let retry_after = Some(Duration::from_secs(7));
    let error = kind(get(&upstream(&server, ""), "a").await);
    assert_eq!(error, UpstreamErrorKind::RateLimited { retry_after });
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn retry_after_has_two_forms_and_a_cap() {
    let parse = |value: &str| {
        let value = HeaderValue::from_str(value).unwrap();
        retry_after(&HeaderMap::from_iter([(
            ::http::header::RETRY_AFTER,
            value,
        )]))
    };
    let longest = Some(Duration::from_secs(900));
    assert_eq!(parse("7"), Some(Duration::from_secs(7)));
    assert_eq!(parse("0"), Some(Duration::ZERO));
    assert_eq!(parse("99999999"), longest);
    assert_eq!(parse("99999999999999999999999"), longest);
    assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
    assert_eq!(parse("Tue, 31 Dec 2199 23:59:59 GMT"), longest);
    for nonsense in ["", "soon", "-7", "7.5", "1e3", "Sun, 06 Nov"] {
        assert_eq!(parse(nonsense), None, "{nonsense}");
    }
    assert_eq!(retry_after(&HeaderMap::new()), None);
}

#[tokio::test]
async fn requests_and_bytes_are_counted_under_the_key() {
    install_crypto();
    let server = Server::start(|request| match &*request.target {
        "/token?scope=repository%3Aa%3Apull" => Reply::new(200, "{\"token\":\"t0ken\"}"),
        "/v2/a/manifests/latest" if request.header("authorization").is_some() => {
            Reply::new(200, "x".repeat(1000))
        }
        "/v2/a/manifests/latest" => {
            let host = request.header("host").unwrap();
            Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
        }
        _ => Reply::new(503, ""),
    })
    .await;
    let metrics = Arc::new(Metrics::default());
    let url = server.url();
    let toml = format!("[\"{NAME}\"]\nendpoints = [\"{url}\"]\ninsecure = true\n");
    let entries = toml::from_str(&toml).unwrap();
    let upstreams =
        Upstreams::new(&entries, &Limits::default(), &Egress::default(), &metrics).unwrap();
    let upstream = upstreams.get(&registry(NAME)).unwrap();
    get(&upstream, "a").await.unwrap();
    get(&upstream, "down").await.unwrap_err();

    let requests = |kind, outcome| {
        let labels = UpstreamLabels {
            registry: NAME.into(),
            kind,
            outcome,
        };
        metrics.upstream_requests.get_or_create(&labels).get()
    };
    assert_eq!(requests(UpstreamRequest::Manifest, UpstreamOutcome::Ok), 1);
    assert_eq!(requests(UpstreamRequest::Token, UpstreamOutcome::Ok), 1);
    assert_eq!(
        requests(UpstreamRequest::Manifest, UpstreamOutcome::Unavailable),
        3
    );
    let labels = RegistryLabels {
        registry: NAME.into(),
    };
    assert!(metrics.upstream_received.get_or_create(&labels).get() >= 1000);
}

/// A private CA, and a server certificate by it for 127.0.0.1.
pub(super) fn certificates() -> (String, Arc<rustls::ServerConfig>) {
    install_crypto();
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    (ca.pem(), Arc::new(config))
}

#[tokio::test]
async fn tls_is_verified_against_the_given_ca() {
    let (pem, config) = certificates();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, pem).unwrap();
    let server = Server::start_tls(config, |_| Reply::new(200, "{}")).await;
    let address = server.address;
    let entry = format!("[\"{NAME}\"]\nendpoints = [\"https://{address}\"]\n");
    let with_ca = format!("{entry}ca_files = [{file:?}]");
    let get_with = async |toml: &str| {
        let upstreams = upstreams(toml, &Limits::default()).unwrap();
        get(&upstreams.get(&registry(NAME)).unwrap(), "a").await
    };
    get_with(&with_ca).await.unwrap();

    let error = kind(get_with(&entry).await);
    let UpstreamErrorKind::Unavailable(text) = error else {
        panic!("{error:?}")
    };
    assert!(
        text.starts_with(&format!("TLS with {address} failed (")),
        "{text}"
    );
    assert_eq!(server.seen().len(), 1);
}
