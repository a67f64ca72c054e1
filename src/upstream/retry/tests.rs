use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{RetryLabels, RetryResult};

fn retries() -> Retries {
    counted(&Arc::default())
}

fn counted(metrics: &Arc<Metrics>) -> Retries {
    let meter = Meter::new(Arc::clone(metrics), "r.example".into());
    Retries::new("r.example".into(), meter)
}

fn unavailable() -> UpstreamErrorKind {
    UpstreamErrorKind::Unavailable("down".into())
}

/// How often something is tried that always fails like this.
async fn tries(retries: &Retries, error: UpstreamErrorKind) -> u32 {
    let tries = AtomicU32::new(0);
    let result: Result<(), _> = retries
        .run(|| {
            tries.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err(error.clone()))
        })
        .await;
    assert_eq!(result, Err(error));
    tries.into_inner()
}

#[tokio::test(start_paused = true)]
async fn only_what_may_pass_is_tried_again() {
    let retries = retries();
    assert_eq!(tries(&retries, unavailable()).await, 3);
    let timed_out = UpstreamErrorKind::TimedOut("slow".into());
    assert_eq!(tries(&retries, timed_out).await, 3);
    let retry_after = Duration::from_secs(1);
    for error in [
        UpstreamErrorKind::NotFound,
        UpstreamErrorKind::Refused,
        UpstreamErrorKind::Invalid("html".into()),
        UpstreamErrorKind::RateLimited { retry_after: None },
        UpstreamErrorKind::Busy { retry_after },
        UpstreamErrorKind::Down {
            text: "down".into(),
            retry_after,
        },
    ] {
        assert_eq!(tries(&retries, error).await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn tries_are_spread() {
    let mut waited = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        tries(&retries(), unavailable()).await;
        waited.push(began.elapsed());
    }
    assert!(
        waited.iter().all(|waited| *waited <= 3 * JITTER),
        "{waited:?}"
    );
    waited.sort_unstable();
    // Full jitter: anything between nothing and all of it.
    assert!(waited[10] < JITTER && waited[90] > 2 * JITTER, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_wants_time_gets_it_or_no_second_try() {
    let overloaded = |seconds| UpstreamErrorKind::Overloaded {
        text: "503".into(),
        retry_after: Duration::from_secs(seconds),
    };
    let began = Instant::now();
    assert_eq!(tries(&retries(), overloaded(2)).await, 3);
    assert!(began.elapsed() >= Duration::from_secs(4));
    assert_eq!(tries(&retries(), overloaded(3)).await, 1);
}

/// Fault row F09: when everything fails, a tenth more requests go out, not three times as many.
#[tokio::test(start_paused = true)]
async fn a_storm_stays_within_the_budget() {
    let metrics: Arc<Metrics> = Arc::default();
    let retries = counted(&metrics);
    let sent = join_all((0..1000).map(|_| tries(&retries, unavailable()))).await;
    let again = sent.iter().sum::<u32>() - 1000;
    assert!((100..=110).contains(&again), "{again}");
    let counted = |result| {
        let registry = "r.example".into();
        let labels = RetryLabels { registry, result };
        metrics.upstream_retries.get_or_create(&labels).get()
    };
    assert_eq!(counted(RetryResult::Sent), u64::from(again));
    assert!(counted(RetryResult::OverBudget) >= 890);
    assert!(retries.spent.load(Ordering::Relaxed));
    // It comes back with time.
    tokio::time::advance(2 * BUDGET_OVER).await;
    assert_eq!(tries(&retries, unavailable()).await, 3);
    assert!(!retries.spent.load(Ordering::Relaxed));
}
