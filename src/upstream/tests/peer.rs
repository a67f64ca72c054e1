//! Requests between replicas: signed, and sent inside the peers' networks only.

use ::http::header::{AUTHORIZATION, RANGE};
use ::http::{HeaderMap, HeaderValue, Method};
use url::Url;

use super::gate::{Does, Gate};
use super::*;
use crate::telemetry::Secret;
use crate::telemetry::ledger::Purpose;
use crate::upstream::{PEER_BLOBS, PeerKey, Peers};

const PATH: &str = "/v2/_peer/blobs/sha256:00";
const NOW: i64 = 1_700_000_000;

fn key(secret: &str) -> PeerKey {
    let networks = vec!["127.0.0.0/8".parse().unwrap()];
    PeerKey::new(&Secret::new(secret.to_owned()), networks)
}

fn peers(networks: &[&str]) -> Peers {
    peers_in(&Egress::default(), networks, &Metrics::default())
}

fn peers_in(egress: &Egress, networks: &[&str], metrics: &Metrics) -> Peers {
    install_crypto();
    let networks = networks.iter().map(|network| network.parse().unwrap());
    let key = PeerKey::new(&Secret::new("hunter2".to_owned()), networks.collect());
    Peers::new(key, &Limits::default(), egress, metrics).unwrap()
}

fn signed(authorization: &str, range: &str) -> HeaderMap {
    let value = |text: &str| HeaderValue::try_from(text).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value(authorization)), (RANGE, value(range))])
}

/// Computed by hand with `openssl dgst -sha256 -hmac`, so that both sides cannot be wrong together.
#[test]
fn the_signature_is_that_of_the_description() {
    let by_hand = "4b2b9e49813a18c16dcb157490fea23116640848e3c5a6764877c882723a9838";
    let made = key("hunter2").authorization(&Method::GET, PATH, "bytes=0-9", NOW);
    assert_eq!(made, format!("Portcullis t={NOW},mac={by_hand}"));
}

#[test]
fn only_what_was_signed_is_genuine() {
    let ours = key("hunter2");
    let made = ours.authorization(&Method::GET, PATH, "bytes=0-9", NOW);
    let good = signed(&made, "bytes=0-9");
    let genuine = |headers: &HeaderMap, now| ours.verify(&Method::GET, PATH, headers, now);
    assert!(PeerKey::is_claimed(&good));
    for skew in [-300, 0, 300] {
        assert!(genuine(&good, NOW + skew), "{skew}");
    }
    for skew in [-301, 301, i64::MAX - NOW] {
        assert!(!genuine(&good, NOW + skew), "{skew}");
    }
    assert!(!ours.verify(&Method::HEAD, PATH, &good, NOW));
    assert!(!ours.verify(&Method::GET, "/v2/_peer/blobs/sha256:01", &good, NOW));
    assert!(!genuine(&signed(&made, "bytes=0-10"), NOW));
    assert!(!genuine(&signed(&made, ""), NOW));
    assert!(!key("hunter3").verify(&Method::GET, PATH, &good, NOW));
    for wrong in [
        "Portcullis",
        "Portcullis t=1",
        "Portcullis t=1700000000,mac=",
        "Portcullis t=1700000000,mac=0",
        "Portcullis t=1700000000,mac=zz",
        "Portcullis t=-9223372036854775808,mac=00",
        "Portcullis t=99999999999999999999,mac=00",
        &made.replace("t=17", "t=16"),
        &made.to_lowercase(),
    ] {
        let headers = signed(wrong, "bytes=0-9");
        assert!(PeerKey::is_claimed(&headers), "{wrong}");
        assert!(!genuine(&headers, NOW), "{wrong}");
    }
    let mut twice = good.clone();
    twice.append(RANGE, HeaderValue::from_static("bytes=0-9"));
    assert!(!genuine(&twice, NOW));
    let mut twice = good.clone();
    twice.append(AUTHORIZATION, HeaderValue::from_static("Basic x"));
    assert!(PeerKey::is_claimed(&twice) && !genuine(&twice, NOW));
    assert!(!PeerKey::is_claimed(&signed("Basic Portcullis", "")));
    assert!(!PeerKey::is_claimed(&HeaderMap::new()));
}

#[tokio::test]
async fn a_blob_is_asked_for_by_a_signed_range() {
    let server =
        Server::start(|_| Reply::new(206, "hello").header("content-range", "bytes 5-9/10")).await;
    let metrics = Metrics::default();
    let peers = peers_in(&Egress::default(), &["127.0.0.0/8"], &metrics);
    let url: Url = server.url().parse().unwrap();
    let answer = peers.blob(&url, &digest(), Some(5..105)).await.unwrap();
    let [row] = &metrics.ledger.snapshot().hosts[..] else {
        panic!("one host")
    };
    assert_eq!(
        (row.port, row.purpose),
        (server.address.port(), Purpose::Peer)
    );
    assert_eq!((row.requests, row.failures), (1, 0));
    assert_eq!((answer.range, answer.total), (Some(5..10), Some(10)));
    let [request] = &server.seen()[..] else {
        panic!("one request")
    };
    let headers = signed(
        request.header("authorization").unwrap(),
        request.header("range").unwrap(),
    );
    assert_eq!(request.target, format!("{PEER_BLOBS}{}", digest()));
    assert!(key("hunter2").is_genuine(&Method::GET, &request.target, &headers));
}

/// What a claim says is not believed: it may lead to no other host.
#[tokio::test]
async fn nothing_outside_the_networks_is_dialled() {
    let server = Server::bystander().await;
    let port = server.address.port();
    let metrics = Metrics::default();
    let peers = peers_in(&Egress::default(), &["10.0.0.0/8"], &metrics);
    for host in ["127.0.0.1", "localhost", "[::1]", "0x7f.1"] {
        let url: Url = format!("http://{host}:{port}").parse().unwrap();
        let refused = kind(peers.blob(&url, &digest(), None).await);
        let UpstreamErrorKind::HostRefused(text) = refused else {
            panic!("{host}: {refused:?}")
        };
        assert!(
            text.ends_with("is not inside the networks of [store.shared.peers]"),
            "{text}"
        );
    }
    for url in [
        "ftp://10.0.0.1/",
        "http://user@10.0.0.1/",
        "file:///etc/passwd",
    ] {
        let refused = kind(peers.blob(&url.parse().unwrap(), &digest(), None).await);
        assert!(
            matches!(refused, UpstreamErrorKind::HostRefused(_)),
            "{url}: {refused:?}"
        );
    }
    assert_eq!(server.connections(), 0);
    let rows = metrics.ledger.snapshot().hosts;
    assert!(rows.len() >= 5, "{rows:?}");
    assert!(rows.iter().all(|row| row.refused.is_some()), "{rows:?}");
}

/// Not even to a public address, which upstreams may have.
#[test]
fn the_guard_of_peers_knows_no_public_addresses() {
    use crate::upstream::egress::AddressGuard;
    let guard = AddressGuard {
        allowed: vec!["10.0.0.0/8".parse().unwrap()],
        public: false,
    };
    let found = ["20.1.2.3:1", "10.1.2.3:1"].map(|address| address.parse().unwrap());
    let left = guard.screen("x", found.into_iter()).unwrap();
    assert_eq!(left, [found[1]]);
    guard.screen("x", found[..1].iter().copied()).unwrap_err();
}

#[tokio::test]
async fn a_redirect_of_a_peer_leads_nowhere() {
    let other = Server::bystander().await;
    let location = other.url();
    let server = Server::start(move |_| Reply::redirect(location.clone())).await;
    let url: Url = server.url().parse().unwrap();
    let answer = peers(&["127.0.0.0/8"]).blob(&url, &digest(), None).await;
    assert!(matches!(kind(answer), UpstreamErrorKind::Invalid(_)));
    assert_eq!(other.connections(), 0);
}

/// Replicas are inside, where no egress proxy leads.
#[tokio::test]
async fn no_proxy_is_asked_for_a_replica() {
    let gate = Gate::start(None, |_| Does::HangUp).await;
    let server = Server::start(|_| Reply::new(404, "")).await;
    let url = Url::parse(&server.url()).unwrap();
    let peers = peers_in(&gate.egress(""), &["127.0.0.0/8"], &Metrics::default());
    let error = kind(peers.blob(&url, &digest(), None).await);
    assert_eq!(error, UpstreamErrorKind::NotFound);
    assert_eq!((server.seen().len(), gate.targets().len()), (1, 0));
}
