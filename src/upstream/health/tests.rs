use std::sync::Arc;

use tokio::time::{advance, timeout};

use super::*;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RegistryLabels;

fn health(endpoints: usize) -> Health {
    counted(endpoints, &Arc::default())
}

fn counted(endpoints: usize, metrics: &Arc<Metrics>) -> Health {
    let urls = (1..=endpoints).map(|n| format!("https://e{n}.example"));
    let urls: Vec<Url> = urls.map(|url| url.parse().unwrap()).collect();
    Health::new(&urls, Meter::new(Arc::clone(metrics), "r.example".into()))
}

/// Which endpoint is asked first; what becomes of that is not told.
fn first(health: &Health) -> Option<usize> {
    let pass = health.admit(0)?;
    assert!(!pass.probe);
    Some(pass.at)
}

fn fail(health: &Health) {
    health.admit(0).unwrap().failed("cannot connect", None);
}

fn answer(health: &Health) {
    health.admit(0).unwrap().answered();
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_the_only_endpoint() {
    let health = health(1);
    for _ in 0..4 {
        fail(&health);
    }
    answer(&health);
    for _ in 0..5 {
        assert_eq!(first(&health), Some(0), "an answer in between counts");
        fail(&health);
    }
    assert_eq!(first(&health), None);
    let UpstreamErrorKind::Down { text, retry_after } = health.down() else {
        panic!()
    };
    assert_eq!(retry_after, Duration::from_secs(5));
    assert!(text.starts_with("down since 20"), "{text}");
    assert!(
        text.ends_with("Z, next try in 5 s: cannot connect"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn one_probe_finds_out_after_a_break_that_doubles() {
    let health = health(1);
    for _ in 0..5 {
        fail(&health);
    }
    for pause in [5, 10, 20, 40, 60, 60] {
        advance(Duration::from_secs(pause).saturating_sub(Duration::from_millis(1))).await;
        assert!(health.admit(0).is_none(), "before {pause} s");
        advance(Duration::from_millis(1)).await;
        let probe = health.admit(0).unwrap();
        assert!(health.admit(0).is_none(), "there is one probe");
        probe.failed("still", None);
    }
    advance(LONGEST_BREAK).await;
    health.admit(0).unwrap().answered();
    assert_eq!(first(&health), Some(0));
    // All is forgiven.
    for _ in 0..5 {
        fail(&health);
    }
    advance(FIRST_BREAK).await;
    assert!(health.admit(0).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_says_nothing_has_failed() {
    let health = health(1);
    for _ in 0..5 {
        fail(&health);
    }
    advance(FIRST_BREAK).await;
    drop(health.admit(0).unwrap());
    assert!(health.admit(0).is_none());
    advance(FIRST_BREAK * 2).await;
    assert!(health.admit(0).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_failure_is_enough_where_there_is_another_endpoint() {
    let health = health(2);
    fail(&health);
    assert_eq!(first(&health), Some(1), "the second is asked");
    advance(FIRST_BREAK).await;
    let probe = health.admit(0).unwrap();
    assert_eq!((probe.at, first(&health)), (0, Some(1)));
    probe.answered();
    assert_eq!(first(&health), Some(0), "the first is the first again");

    // The last one that is left is treated as the only one.
    fail(&health);
    for _ in 0..5 {
        assert_eq!(first(&health), Some(1));
        fail(&health);
    }
    assert!(health.admit(0).is_none());
}

#[tokio::test(start_paused = true)]
async fn more_failures_than_answers_open_it_too() {
    let tell = |health: &Health, failed: bool| {
        if failed { fail(health) } else { answer(health) }
    };
    let even = health(1);
    for n in 0..1000 {
        tell(&even, n % 2 == 1);
    }
    assert_eq!(first(&even), Some(0), "half of them");
    let odd = health(1);
    for n in 0..19 {
        tell(&odd, n % 3 != 0);
    }
    assert_eq!(first(&odd), Some(0), "19 are not enough");
    tell(&odd, true);
    assert_eq!(first(&odd), None);
    let slow = health(1);
    for n in 0..100 {
        advance(Duration::from_secs(1)).await;
        tell(&slow, n % 3 != 0);
    }
    assert_eq!(first(&slow), Some(0), "there are ten within the window");
}

/// What was asked before an endpoint opened may come back at any time after.
#[tokio::test(start_paused = true)]
async fn stragglers_change_nothing() {
    let health = health(1);
    let (good, bad) = (health.admit(0).unwrap(), health.admit(0).unwrap());
    for _ in 0..5 {
        fail(&health);
    }
    good.answered();
    bad.failed("late", None);
    assert!(health.admit(0).is_none());
    advance(FIRST_BREAK).await;
    assert!(health.admit(0).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_ask_for_a_longer_break_and_not_for_ever() {
    for (asked_for, pause) in [(1, 5), (30, 30), (900, 60)] {
        let health = health(1);
        let rest = Some(Duration::from_secs(asked_for));
        for _ in 0..5 {
            health.admit(0).unwrap().failed("503", rest);
        }
        advance(Duration::from_secs(pause).saturating_sub(Duration::from_millis(1))).await;
        assert!(health.admit(0).is_none());
        advance(Duration::from_millis(1)).await;
        assert!(health.admit(0).is_some(), "{pause}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_patience_waits_for_the_break_or_the_probe() {
    let health = health(1);
    assert!(health.recovers(Instant::now()).await, "nothing to wait for");
    for _ in 0..5 {
        fail(&health);
    }
    let second = Duration::from_secs(1);
    assert!(!health.recovers(Instant::now() + second).await);
    let began = Instant::now();
    assert!(health.recovers(began + FIRST_BREAK).await);
    assert_eq!(began.elapsed(), FIRST_BREAK);

    let probe = health.admit(0).unwrap();
    assert!(!health.recovers(Instant::now() + second).await);
    let waiting = health.recovers(Instant::now() + second);
    let (back, ()) = futures_util::join!(waiting, async { probe.answered() });
    assert!(back);

    for _ in 0..5 {
        fail(&health);
    }
    advance(FIRST_BREAK).await;
    let probe = health.admit(0).unwrap();
    let waiting = health.recovers(Instant::now() + second * 60);
    let failing = async { probe.failed("again", None) };
    let (back, ()) = futures_util::join!(timeout(second * 11, waiting), failing);
    assert_eq!(back, Ok(true), "after the next break");
}

#[tokio::test(start_paused = true)]
async fn open_endpoints_are_counted_while_they_are_there() {
    let metrics = Arc::default();
    let (one, other) = (counted(1, &metrics), counted(2, &metrics));
    let labels = RegistryLabels {
        registry: "r.example".into(),
    };
    let open = || metrics.upstream_endpoints_open.get_or_create(&labels).get();
    for _ in 0..5 {
        fail(&one);
    }
    fail(&other);
    assert_eq!(open(), 2);
    advance(FIRST_BREAK).await;
    one.admit(0).unwrap().failed("still", None);
    other.admit(0).unwrap().answered();
    assert_eq!(open(), 1);
    drop((one, other));
    assert_eq!(open(), 0);
    let breaks = metrics.upstream_endpoint_breaks.get_or_create(&labels);
    assert_eq!(breaks.get(), 2);
}
