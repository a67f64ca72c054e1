//! Several endpoints: which of them is asked, and what is said when none is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;

/// `registry.example` at these, in this order.
fn at(endpoints: &[String], more: &str) -> Arc<Upstream> {
    let toml = format!("[\"{NAME}\"]\ninsecure = true\nendpoints = {endpoints:?}\n{more}");
    upstreams(&toml, &Limits::default())
        .unwrap()
        .get(&registry(NAME))
        .unwrap()
}

/// A server that answers with its status of the moment.
async fn with_status() -> (Server, Arc<AtomicUsize>) {
    let status = Arc::new(AtomicUsize::new(200));
    let now = Arc::clone(&status);
    let server = Server::start(move |_| {
        let status = now.load(Ordering::SeqCst);
        Reply::new(u16::try_from(status).unwrap(), "{}")
    });
    (server.await, status)
}

/// Moves the clock on; requests need it to run.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_failed_endpoint_is_passed_over_until_it_answers_again() {
    let (first, status) = with_status().await;
    let second = Server::start(|_| Reply::new(200, "{}")).await;
    let upstream = at(&[first.url(), second.url()], "");
    let asked = || (first.seen().len(), second.seen().len());
    get(&upstream, "a").await.unwrap();
    assert_eq!(asked(), (1, 0));

    status.store(503, Ordering::SeqCst);
    for _ in 0..10 {
        get(&upstream, "a").await.unwrap();
    }
    assert_eq!(asked(), (2, 10), "one request found out");
    pass(Duration::from_secs(5)).await;
    get(&upstream, "a").await.unwrap();
    assert_eq!(
        asked(),
        (3, 11),
        "a probe that failed went on to the second"
    );

    status.store(200, Ordering::SeqCst);
    pass(Duration::from_secs(5)).await;
    get(&upstream, "a").await.unwrap();
    assert_eq!(asked(), (3, 12), "it is passed over for ten seconds now");
    pass(Duration::from_secs(5)).await;
    for _ in 0..3 {
        get(&upstream, "a").await.unwrap();
    }
    assert_eq!(asked(), (6, 12), "back to the first");
}

#[tokio::test]
async fn what_an_endpoint_says_is_an_answer() {
    for status in [400, 401, 403, 404, 410, 416, 429, 501] {
        let first = Server::start(move |_| Reply::new(status, "{}")).await;
        let second = Server::bystander().await;
        let upstream = at(&[first.url(), second.url()], "");
        kind(get(&upstream, "a").await);
        assert_eq!((first.seen().len(), second.connections()), (1, 0));
    }
}

/// Fault row F01: nobody waits for what is known to be down, and everybody hears since when.
#[tokio::test]
async fn an_upstream_that_is_down_is_not_asked_and_says_so() {
    let (server, status) = with_status().await;
    status.store(500, Ordering::SeqCst);
    let upstream = at(&[server.url()], "");
    let mut down = None;
    for _ in 0..3 {
        down = Some(kind(get(&upstream, "a").await));
    }
    assert_eq!(server.seen().len(), 5, "five failures in a row are enough");
    let Some(UpstreamErrorKind::Down { text, retry_after }) = down else {
        panic!("{down:?}")
    };
    assert!(text.contains("next try in 5 s: "), "{text}");
    let host = server.address.to_string();
    assert!(
        text.ends_with(&format!("{host} answered 500 Internal Server Error")),
        "{text}"
    );
    assert!(retry_after <= Duration::from_secs(5) && retry_after > Duration::from_secs(4));

    // One request finds out for all who come at once.
    pass(Duration::from_secs(5)).await;
    join_all((0..20).map(|_| get(&upstream, "a"))).await;
    assert_eq!(server.seen().len(), 6);
    status.store(200, Ordering::SeqCst);
    pass(Duration::from_secs(10)).await;
    get(&upstream, "a").await.unwrap();
    join_all((0..20).map(|_| get(&upstream, "a"))).await;
    assert_eq!(server.seen().len(), 6 + 21);
}

/// Whoever stands behind a redirect is not the endpoint.
#[tokio::test]
async fn a_broken_cdn_breaks_no_endpoint() {
    let cdn = Server::start(|_| Reply::new(503, "")).await;
    let to = format!("{}/bytes", cdn.url());
    let server = Server::start(move |request| {
        if request.target.contains("/blobs/") {
            Reply::redirect(to.clone())
        } else {
            Reply::new(200, "{}")
        }
    })
    .await;
    let listed = format!("redirect_hosts = [\"{}\"]", cdn.address);
    let upstream = at(&[server.url()], &listed);
    for _ in 0..10 {
        let blob = upstream.blob(&repository("a"), &digest(), None).await;
        assert!(matches!(kind(blob), UpstreamErrorKind::Unavailable(_)));
    }
    get(&upstream, "a").await.unwrap();
}

#[tokio::test]
async fn a_503_with_a_retry_after_is_not_asked_again_before() {
    let server = Server::start(|_| Reply::new(503, "").header("retry-after", "120")).await;
    let upstream = at(&[server.url()], "");
    for _ in 0..5 {
        let error = kind(get(&upstream, "a").await);
        let UpstreamErrorKind::Overloaded { retry_after, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(retry_after, Duration::from_secs(120));
    }
    assert_eq!(server.seen().len(), 5, "no request is repeated");
    let error = kind(get(&upstream, "a").await);
    let UpstreamErrorKind::Down { retry_after, .. } = error else {
        panic!("{error:?}")
    };
    assert!(retry_after > Duration::from_secs(55), "{retry_after:?}");
}

/// A download goes on at another endpoint, and where there is none it waits a moment for the only
/// one to come back; a new one does not.
#[tokio::test]
async fn a_download_that_has_begun_goes_on() {
    let part = |request: &Request| {
        let range = request
            .header("range")
            .unwrap()
            .trim_start_matches("bytes=");
        let (start, end) = range.split_once('-').unwrap();
        let length = end.parse::<usize>().unwrap() - start.parse::<usize>().unwrap() + 1;
        Reply::new(206, vec![7; length]).header("content-range", format!("bytes {range}/100"))
    };
    let (down, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let is_down = Arc::clone(&down);
    let first = Server::start(move |request| match is_down.load(Ordering::SeqCst) {
        0 => part(request),
        _ => Reply::hang_up(),
    })
    .await;
    let is_down = Arc::clone(&again);
    let second = Server::start(move |request| match is_down.load(Ordering::SeqCst) {
        0 => part(request),
        _ => Reply::hang_up(),
    })
    .await;
    let upstream = at(&[first.url(), second.url()], "");
    let (name, digest) = (repository("a"), digest());
    upstream.blob(&name, &digest, Some(0..10)).await.unwrap();
    down.store(1, Ordering::SeqCst);
    let rest = upstream.blob_again(&name, &digest, Some(10..20)).await;
    assert_eq!(rest.unwrap().range, Some(10..20));
    assert_eq!((first.seen().len(), second.seen().len()), (2, 1));

    again.store(1, Ordering::SeqCst);
    while !matches!(
        kind(upstream.blob(&name, &digest, Some(0..10)).await),
        UpstreamErrorKind::Down { .. }
    ) {}
    down.store(0, Ordering::SeqCst);
    let waiting = upstream.blob_again(&name, &digest, Some(20..30));
    let mut waiting = std::pin::pin!(waiting);
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let began = Instant::now();
    pass(Duration::from_secs(5)).await;
    assert_eq!(waiting.await.unwrap().range, Some(20..30));
    assert!(began.elapsed() < Duration::from_secs(8));
}
