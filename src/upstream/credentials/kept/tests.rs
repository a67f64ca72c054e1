//! Renewed before its end, once for all, and not at any price.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::sync::Notify;
use tokio::time::advance;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Counts what it gives.
#[derive(Default)]
struct Service {
    given: AtomicUsize,
    down: std::sync::atomic::AtomicBool,
}

impl Service {
    async fn give(&self) -> Result<(usize, Option<Duration>), UpstreamErrorKind> {
        tokio::task::yield_now().await;
        let number = self.given.fetch_add(1, Ordering::SeqCst) + 1;
        if self.down.load(Ordering::SeqCst) {
            return Err(UpstreamErrorKind::LoginUnavailable(format!(
                "down {number}"
            )));
        }
        Ok((number, Some(HOUR)))
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_before_its_end_by_one_for_all() {
    let (kept, service) = (Kept::default(), Service::default());
    let get = || kept.get(|| service.give());
    let all = join_all((0..50).map(|_| get())).await;
    assert!(all.into_iter().all(|one| one == Ok(1)));
    // Five minutes and a second before its end.
    advance(Duration::from_secs(3600 - 301)).await;
    assert_eq!(get().await, Ok(1));
    advance(Duration::from_secs(1)).await;
    let all = join_all((0..50).map(|_| get())).await;
    // One renews it; the others go on with what there is.
    assert_eq!(all.iter().filter(|one| **one == Ok(2)).count(), 1);
    assert_eq!(service.given.load(Ordering::SeqCst), 2);
    assert_eq!(get().await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn while_it_cannot_be_renewed_it_serves_until_its_end() {
    let (kept, service) = (Kept::default(), Service::default());
    let get = || kept.get(|| service.give());
    get().await.unwrap();
    service.down.store(true, Ordering::SeqCst);
    advance(Duration::from_secs(3600 - 100)).await;
    for _ in 0..10 {
        assert_eq!(get().await, Ok(1));
    }
    assert_eq!(
        service.given.load(Ordering::SeqCst),
        2,
        "one try in five seconds"
    );
    advance(Duration::from_secs(100)).await;
    let all = join_all((0..50).map(|_| get())).await;
    let failure = UpstreamErrorKind::LoginUnavailable("down 3".into());
    assert!(all.into_iter().all(|one| one == Err(failure.clone())));
    service.down.store(false, Ordering::SeqCst);
    advance(FAILED_FOR).await;
    assert_eq!(get().await, Ok(4));
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_goes_unless_it_has_just_come() {
    let (kept, service) = (Kept::default(), Service::default());
    let get = || kept.get(|| service.give());
    get().await.unwrap();
    assert!(!kept.refuse(|held| *held == 1));
    advance(JUST_NOW).await;
    assert!(kept.refuse(|held| *held == 1));
    assert_eq!(get().await, Ok(2));
    assert!(kept.refuse(|held| *held == 1), "it is another one by now");
    assert_eq!(get().await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_blip_is_tried_again_soon() {
    let kept = Kept::default();
    let blip = || async { Err::<(u8, _), _>(UpstreamErrorKind::Unavailable("reset".into())) };
    assert!(kept.get(blip).await.is_err());
    assert!(kept.get(|| async { Ok((7, None)) }).await.is_err());
    advance(BLIP).await;
    assert_eq!(kept.get(|| async { Ok((7, None)) }).await, Ok(7));
}

/// A client that hangs up in the middle leaves the work to the next.
#[tokio::test(start_paused = true)]
async fn who_goes_away_holds_nobody_up() {
    let kept = Arc::new(Kept::default());
    let started = Arc::new(Notify::new());
    let (one, event) = (Arc::clone(&kept), Arc::clone(&started));
    let first = tokio::spawn(async move {
        one.get(|| async {
            event.notify_one();
            std::future::pending().await
        })
        .await
    });
    started.notified().await;
    first.abort();
    assert_eq!(kept.get(|| async { Ok((7, None)) }).await, Ok(7));
    advance(100 * HOUR).await;
    assert_eq!(kept.get(|| async { Ok((8, None)) }).await, Ok(7));
}
