//! Requests that make no sense; the rest is driven through the real program (`tests/it/keeping.rs`).

use super::*;

#[test]
fn what_goes_wrong_has_a_status_and_a_text() {
    let refused = |error: KeepError| Refused::from(error).into_response().status().as_u16();
    assert_eq!(refused(KeepError::NotHere("x".into())), 404);
    let (what, by) = ("x".to_owned(), "y".to_owned());
    assert_eq!(refused(KeepError::Pinned { what, by }), 409);
    assert!(parse::<Digest>("sha256:1").is_err());
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_now_and_then() {
    let (lines, mut receiver) = mpsc::channel(2);
    let teller = Teller {
        lines,
        told: Arc::default(),
    };
    for number in 0..100 {
        teller.progress(&number);
    }
    assert_eq!(receiver.recv().await.unwrap(), "{\"progress\":0}\n");
    assert!(receiver.try_recv().is_err());
    tokio::time::advance(TELL).await;
    teller.progress(&7);
    assert_eq!(receiver.recv().await.unwrap(), "{\"progress\":7}\n");
    // A listener who does not listen keeps nobody waiting.
    for _ in 0..10 {
        tokio::time::advance(TELL).await;
        teller.progress(&8);
    }
}
