//! Blob bodies: what was asked for, or an error.

use std::ops::Range;
use std::time::Duration;

use super::*;
use crate::upstream::{BlobResponse, UpstreamError};

async fn blob(server: &Server, range: Option<Range<u64>>) -> Result<BlobResponse, UpstreamError> {
    upstream(server, "")
        .blob(&repository("a"), &digest(), range)
        .await
}

async fn read(mut blob: BlobResponse) -> Result<Vec<u8>, UpstreamError> {
    let mut body = Vec::new();
    while let Some(chunk) = blob.body.chunk().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[tokio::test]
async fn a_whole_blob_is_asked_for_without_a_range() {
    let server = Server::start(|request| {
        assert_eq!(request.header("range"), None);
        Reply::new(200, vec![7; 100_000])
    })
    .await;
    let blob = blob(&server, None).await.unwrap();
    assert_eq!((blob.range.clone(), blob.total), (None, Some(100_000)));
    assert_eq!(read(blob).await.unwrap(), vec![7; 100_000]);
}

#[tokio::test]
async fn a_range_is_asked_for_and_may_end_early() {
    let server = Server::start(|request| {
        assert_eq!(request.header("range"), Some("bytes=5-104"));
        Reply::new(206, "hello").header("content-range", "bytes 5-9/10")
    })
    .await;
    let blob = blob(&server, Some(5..105)).await.unwrap();
    assert_eq!((blob.range.clone(), blob.total), (Some(5..10), Some(10)));
    assert_eq!(read(blob).await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_size_may_be_unknown() {
    let server =
        Server::start(|_| Reply::new(206, "x").header("content-range", "bytes 5-5/*")).await;
    let response = blob(&server, Some(5..6)).await.unwrap();
    assert_eq!((response.range, response.total), (Some(5..6), None));
    let server = Server::start(|_| Reply::new(200, "whole").length(None)).await;
    let response = blob(&server, Some(0..2)).await.unwrap();
    assert_eq!((response.range.clone(), response.total), (None, None));
    assert_eq!(read(response).await.unwrap(), b"whole");
}

#[tokio::test]
async fn the_whole_instead_of_a_range_is_told_apart() {
    let server = Server::start(|_| Reply::new(200, "0123456789")).await;
    let blob = blob(&server, Some(5..7)).await.unwrap();
    assert_eq!((blob.range.clone(), blob.total), (None, Some(10)));
    assert_eq!(read(blob).await.unwrap(), b"0123456789");
}

/// Security row T08.
#[tokio::test]
async fn any_other_part_is_refused() {
    let headers = [
        None,
        Some("bytes 0-4/10"),
        Some("bytes 6-9/10"),
        Some("bytes 5-10/20"),
        Some("bytes 5-9/7"),
        Some("bytes 9-5/10"),
        Some("bytes */10"),
        Some("items 5-9/10"),
        Some("bytes 5-9/99999999999999999999"),
        Some("nonsense"),
    ];
    for header in headers {
        let server = Server::start(move |_| {
            let reply = Reply::new(206, "hello");
            match header {
                Some(range) => reply.header("content-range", range),
                None => reply.header("content-type", "multipart/byteranges; boundary=x"),
            }
        })
        .await;
        let error = kind(blob(&server, Some(5..10)).await);
        assert!(
            matches!(error, UpstreamErrorKind::Invalid(_)),
            "{header:?}: {error:?}"
        );
        assert_eq!(server.seen().len(), 1);
    }
    let server =
        Server::start(|_| Reply::new(206, "hello").header("content-range", "bytes 0-4/5")).await;
    assert!(matches!(
        kind(blob(&server, None).await),
        UpstreamErrorKind::Invalid(_)
    ));
    let server = Server::start(|_| Reply::new(204, "")).await;
    assert!(matches!(
        kind(blob(&server, None).await),
        UpstreamErrorKind::Invalid(_)
    ));
}

#[tokio::test]
async fn a_part_has_the_length_that_it_announced() {
    // The Content-Length is right for the body, but neither is right for the range.
    for (body, expected) in [("hell", "Unavailable"), ("hello!", "Invalid")] {
        let server =
            Server::start(move |_| Reply::new(206, body).header("content-range", "bytes 0-4/10"))
                .await;
        let error = kind(read(blob(&server, Some(0..5)).await.unwrap()).await);
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
    }
}

#[tokio::test]
async fn a_cut_body_is_an_error_and_not_an_end() {
    let server = Server::start(|_| Reply::new(200, "half").length(Some(8)).then(Then::Close)).await;
    let error = kind(read(blob(&server, None).await.unwrap()).await);
    assert!(
        matches!(error, UpstreamErrorKind::Unavailable(_)),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_inside_a_body_ends_it() {
    let server = Server::start(|_| Reply::new(200, "half").length(Some(8)).then(Then::Stall)).await;
    let limits = Limits {
        idle: Duration::from_millis(50),
        ..Limits::default()
    };
    let upstream = upstream_with(&server, "", &limits);
    let mut blob = upstream
        .blob(&repository("a"), &digest(), None)
        .await
        .unwrap();
    assert_eq!(
        blob.body.chunk().await.unwrap().as_deref(),
        Some(&b"half"[..])
    );
    let error = kind(blob.body.chunk().await);
    let UpstreamErrorKind::TimedOut(text) = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("50ms"), "{text}");
}

#[tokio::test]
async fn a_blob_over_the_limit_is_refused_however_it_comes() {
    let limits = Limits {
        blob_size: 9,
        ..Limits::default()
    };
    let announced = Server::start(|_| Reply::new(200, "0123456789")).await;
    let part =
        Server::start(|_| Reply::new(206, "x").header("content-range", "bytes 0-0/10")).await;
    for (server, range) in [(&announced, None), (&part, Some(0..1))] {
        let upstream = upstream_with(server, "", &limits);
        let result = upstream.blob(&repository("a"), &digest(), range).await;
        assert!(matches!(kind(result), UpstreamErrorKind::Invalid(_)));
    }
    let unannounced = Server::start(|_| Reply::new(200, "0123456789").length(None)).await;
    let upstream = upstream_with(&unannounced, "", &limits);
    let blob = upstream
        .blob(&repository("a"), &digest(), None)
        .await
        .unwrap();
    assert!(matches!(
        kind(read(blob).await),
        UpstreamErrorKind::Invalid(_)
    ));
}

#[tokio::test]
async fn first_fetchers_go_before_extra_ones() {
    let server = Server::bystander().await;
    let upstream = upstream(&server, "");
    let mut held: Vec<_> = std::iter::from_fn(|| upstream.try_body_permit()).collect();
    assert_eq!(held.len(), 32);
    let mut first = std::pin::pin!(upstream.body_permit());
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    held.pop();
    assert!(upstream.try_body_permit().is_none());
    assert!(futures_util::poll!(first.as_mut()).is_ready());
    assert!(upstream.try_body_permit().is_some());
}
