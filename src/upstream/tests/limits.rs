//! An upstream that limits our rate, and how many requests it sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::sync::Notify;

use super::*;

/// How long 429 is answered: while this is not 0.
async fn limiting(limits: &Arc<AtomicUsize>) -> Server {
    let limits = Arc::clone(limits);
    Server::start(move |_| match limits.load(Ordering::SeqCst) {
        0 => Reply::new(200, "{}"),
        _ => Reply::new(429, "").header("retry-after", "7"),
    })
    .await
}

async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The "done when" of the manners: 500 at once, all for different things, by every kind of request.
#[tokio::test]
async fn one_request_meets_the_limit_for_everybody() {
    let limits = Arc::new(AtomicUsize::new(1));
    let server = limiting(&limits).await;
    let upstream = upstream(&server, "");
    let crowd = async || {
        let one = |number: usize| {
            let upstream = Arc::clone(&upstream);
            let name = repository(&format!("a{number}"));
            async move {
                let result = match number % 5 {
                    0 => upstream.manifest(&name, &tag("1"), &[]).await.map(drop),
                    1 => upstream
                        .probe_manifest(&name, &tag("1"), &[])
                        .await
                        .map(drop),
                    2 => upstream.probe_blob(&name, &digest()).await.map(drop),
                    3 => upstream.blob(&name, &digest(), Some(0..1)).await.map(drop),
                    _ => upstream.tags(&name).await.map(drop),
                };
                result.map_err(|error| error.kind)
            }
        };
        join_all((0..500).map(one)).await
    };
    for window in 1..=3 {
        let answers = crowd().await;
        assert_eq!(server.seen().len(), window, "one in each window");
        for answer in answers {
            let Err(UpstreamErrorKind::RateLimited { retry_after }) = answer else {
                panic!("{answer:?}")
            };
            let wait = retry_after.unwrap();
            assert!(wait <= Duration::from_secs(7) && wait > Duration::from_secs(5));
        }
        assert_eq!(crowd().await.len(), 500);
        assert_eq!(server.seen().len(), window, "not before it is over");
        pass(Duration::from_secs(7)).await;
    }
    limits.store(0, Ordering::SeqCst);
    let answers = crowd().await;
    let limited =
        |answer: &&Result<_, _>| matches!(answer, Err(UpstreamErrorKind::RateLimited { .. }));
    assert_eq!(answers.iter().filter(limited).count(), 0);
}

/// Who gives no tokens is asked no more often than who gives no manifests.
#[tokio::test]
async fn the_limit_of_a_token_service_is_one_too() {
    let server = Server::start(|request| {
        if request.target.starts_with("/token") {
            return Reply::new(429, "").header("retry-after", "7");
        }
        let host = request.header("host").unwrap();
        Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let upstream = upstream(&server, "");
    let names: Vec<String> = (0..100).map(|number| format!("a{number}")).collect();
    for answer in join_all(names.iter().map(|name| get(&upstream, name))).await {
        let UpstreamErrorKind::RateLimited { retry_after } = kind(answer) else {
            panic!()
        };
        assert!(retry_after.unwrap() > Duration::from_secs(5));
    }
    assert_eq!((server.count("/token"), server.seen().len()), (1, 2));
}

#[tokio::test]
async fn a_download_that_has_begun_is_not_stopped_by_others_limits() {
    let limits = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&limits);
    let server = Server::start(move |request| {
        if request.target.contains("/manifests/") && now.load(Ordering::SeqCst) > 0 {
            return Reply::new(429, "").header("retry-after", "7");
        }
        let range = request.header("range").unwrap_or("bytes=0-9");
        let range = range.trim_start_matches("bytes=").to_owned();
        Reply::new(206, "0123456789").header("content-range", format!("bytes {range}/100"))
    })
    .await;
    let upstream = upstream(&server, "");
    let (name, digest) = (repository("a"), digest());
    upstream.blob(&name, &digest, Some(0..10)).await.unwrap();
    limits.store(1, Ordering::SeqCst);
    kind(get(&upstream, "a").await);
    let new = upstream.blob(&name, &digest, Some(0..10)).await;
    assert!(matches!(kind(new), UpstreamErrorKind::RateLimited { .. }));
    let rest = upstream.blob_again(&name, &digest, Some(10..20)).await;
    assert_eq!(rest.unwrap().range, Some(10..20));
}

#[tokio::test]
async fn at_most_64_small_requests_are_under_way() {
    let gate = Arc::new(Notify::new());
    let held = Arc::clone(&gate);
    let server = Server::start(move |request| {
        if request.target.contains("/first/") {
            Reply::new(200, "{}")
        } else {
            Reply::new(200, "{}").after(&held)
        }
    })
    .await;
    let upstream = upstream(&server, "");
    // Nobody has to find out any more whether there is a limit.
    get(&upstream, "first").await.unwrap();
    let names: Vec<String> = (0..100).map(|number| format!("a{number}")).collect();
    let mut crowd = join_all(names.iter().map(|name| get(&upstream, name))).boxed_local();
    let sent = async {
        while server.seen().len() < 1 + 64 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut crowd => panic!("nobody was let through"),
        () = sent => {}
    }
    // Whoever could have come in now would have.
    for _ in 0..100 {
        assert!(futures_util::poll!(&mut crowd).is_pending());
        tokio::task::yield_now().await;
    }
    assert_eq!(server.seen().len(), 1 + 64);
    for _ in 0..100 {
        gate.notify_one();
        tokio::task::yield_now().await;
    }
    let opening = async {
        loop {
            gate.notify_waiters();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        results = &mut crowd => assert!(results.iter().all(Result::is_ok)),
        () = opening => {}
    }
}
