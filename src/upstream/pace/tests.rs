use futures_util::future::join_all;
use http::HeaderName;
use tokio::time::advance;

use super::*;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{HeldLabels, RegistryLabels};

fn with_floor(floor: u64) -> Pace {
    counted(floor, &Arc::default())
}

fn counted(floor: u64, metrics: &Arc<Metrics>) -> Pace {
    let meter = Meter::new(Arc::clone(metrics), "r.example".into());
    Pace::new("r.example".into(), floor, meter)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pairs = pairs.iter();
    let pair = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), value.parse().unwrap())
    };
    pairs.map(pair).collect()
}

fn limit(pace: &Pace, wait: Option<&str>) {
    let headers = wait.map_or_else(HeaderMap::new, |wait| headers(&[("retry-after", wait)]));
    pace.learn(Lane::Gets, StatusCode::TOO_MANY_REQUESTS, &headers);
}

fn answered(pace: &Pace, lane: Lane) {
    pace.learn(lane, StatusCode::OK, &HeaderMap::new());
}

/// The time that is left, where requests are refused.
async fn refused(pace: &Pace, lane: Lane) -> Option<Duration> {
    match pace.admit(lane).await {
        Err(UpstreamErrorKind::RateLimited { retry_after }) => retry_after,
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_for_its_time() {
    for (said, seconds) in [
        (Some("7"), 7),
        (None, 60),
        (Some("soon"), 60),
        (Some("0"), 1),
        (Some("Sun, 06 Nov 1994 08:49:37 GMT"), 1),
        (Some("99999999"), 900),
    ] {
        let pace = with_floor(0);
        limit(&pace, said);
        let wait = Duration::from_secs(seconds);
        for lane in [Lane::Gets, Lane::Blobs, Lane::Heads] {
            assert_eq!(refused(&pace, lane).await, Some(wait), "{said:?}");
        }
        advance(wait.saturating_sub(Duration::from_millis(1))).await;
        let left = Some(Duration::from_millis(1));
        assert_eq!(refused(&pace, Lane::Gets).await, left, "{said:?}");
        assert!(pace.limit().is_some());
        advance(Duration::from_millis(1)).await;
        assert!(pace.limit().is_none());
        assert_eq!(refused(&pace, Lane::Gets).await, None, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shorter_limit_does_not_shorten_a_longer_one() {
    let pace = with_floor(0);
    limit(&pace, Some("60"));
    limit(&pace, Some("7"));
    let wait = Some(Duration::from_secs(60));
    assert_eq!(refused(&pace, Lane::Gets).await, wait);
}

/// Five hundred come at once, to an upstream that nobody has heard of or whose limit has just
/// ended: one of them asks.
#[tokio::test(start_paused = true)]
async fn one_finds_out_for_a_crowd() {
    for (limited_before, limited_now) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let pace = with_floor(0);
        if limited_before {
            limit(&pace, Some("7"));
            advance(Duration::from_secs(7)).await;
        }
        let scout = pace.admit(Lane::Gets).await.unwrap();
        assert!(scout.is_some());
        let crowd = join_all((0..500).map(|_| refused(&pace, Lane::Gets)));
        let news = async {
            tokio::task::yield_now().await;
            if limited_now {
                limit(&pace, Some("9"));
            } else {
                answered(&pace, Lane::Gets);
            }
            drop(scout);
        };
        let began = Instant::now();
        let (crowd, ()) = futures_util::join!(crowd, news);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let expected = limited_now.then_some(Duration::from_secs(9));
        assert!(crowd.iter().all(|wait| *wait == expected), "{crowd:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_crowd_does_not_wait_long_for_a_slow_answer() {
    let pace = with_floor(0);
    let _scout = pace.admit(Lane::Gets).await.unwrap().unwrap();
    let began = Instant::now();
    assert!(pace.admit(Lane::Gets).await.unwrap().is_none());
    assert_eq!(began.elapsed(), PATIENCE, "nobody knows of a limit");

    let pace = with_floor(0);
    limit(&pace, Some("7"));
    advance(Duration::from_secs(7)).await;
    let _scout = pace.admit(Lane::Gets).await.unwrap().unwrap();
    let began = Instant::now();
    assert_eq!(refused(&pace, Lane::Gets).await, Some(SHORTEST));
    assert_eq!(began.elapsed(), PATIENCE, "there was one, and may be still");
}

#[tokio::test(start_paused = true)]
async fn who_finds_out_nothing_is_followed_by_the_next() {
    let pace = with_floor(0);
    let scout = pace.admit(Lane::Gets).await.unwrap().unwrap();
    let next = pace.admit(Lane::Gets);
    let (next, ()) = futures_util::join!(next, async { drop(scout) });
    assert!(next.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn after_a_quiet_moment_somebody_finds_out_again() {
    for lane in [Lane::Gets, Lane::Heads, Lane::Blobs] {
        let pace = with_floor(0);
        answered(&pace, Lane::Gets);
        let most = lane.quiet().saturating_sub(Duration::from_millis(1));
        advance(most).await;
        assert!(pace.admit(lane).await.unwrap().is_none());
        advance(Duration::from_millis(1)).await;
        assert!(pace.admit(lane).await.unwrap().is_some(), "{lane:?}");
    }
}

/// Docker Hub answers HEADs and blobs when it gives no manifest any more.
#[tokio::test(start_paused = true)]
async fn a_head_or_a_blob_says_nothing_about_manifests() {
    let pace = with_floor(0);
    limit(&pace, Some("7"));
    // On their way since before the limit.
    answered(&pace, Lane::Gets);
    advance(Duration::from_secs(7)).await;
    let open = async |lane| pace.admit(lane).await.unwrap().is_none();
    for lane in [Lane::Heads, Lane::Blobs] {
        assert!(!open(lane).await);
        answered(&pace, lane);
        assert!(open(lane).await);
        assert!(!open(Lane::Gets).await);
    }
    limit(&pace, Some("7"));
    advance(Duration::from_secs(7)).await;
    answered(&pace, Lane::Gets);
    for lane in [Lane::Heads, Lane::Blobs, Lane::Gets] {
        assert!(open(lane).await);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_shown_and_kept_below_the_floor() {
    let metrics: Arc<Metrics> = Arc::default();
    let pace = counted(20, &metrics);
    let labels = RegistryLabels {
        registry: "r.example".into(),
    };
    let left = |left: &str| {
        let headers = headers(&[
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", left),
        ]);
        pace.learn(Lane::Heads, StatusCode::OK, &headers);
        let allowed = metrics
            .upstream_ratelimit_limit
            .get_or_create(&labels)
            .get();
        let left = metrics
            .upstream_ratelimit_remaining
            .get_or_create(&labels)
            .get();
        (allowed, left, pace.must_spare())
    };
    assert!(!pace.must_spare(), "nothing is known");
    assert_eq!(left("76;w=21600"), (100, 76, false));
    assert_eq!(left("20;w=21600"), (100, 20, false));
    assert_eq!(left("19;w=21600"), (100, 19, true));
    assert_eq!(left("0"), (100, 0, true));
    assert_eq!(left("nonsense"), (100, 0, true), "as it was");
    // Nobody says how it goes on, so one asks now and then.
    advance(LONGEST_WAIT).await;
    assert!(!pace.must_spare());
    assert!(pace.must_spare());
    assert_eq!(left("100;w=21600"), (100, 100, false));

    let off = with_floor(0);
    off.learn(
        Lane::Gets,
        StatusCode::OK,
        &headers(&[("ratelimit-remaining", "0;w=21600")]),
    );
    assert!(!off.must_spare());
}

#[tokio::test(start_paused = true)]
async fn small_requests_wait_for_their_turn_and_not_for_ever() {
    let metrics: Arc<Metrics> = Arc::default();
    let pace = counted(0, &metrics);
    let soon = || Instant::now() + Duration::from_secs(25);
    let turns = join_all((0..SMALL).map(|_| pace.turn(soon()))).await;
    let error = pace.turn(soon()).await.unwrap_err();
    assert_eq!(error, UpstreamErrorKind::Busy { retry_after: BUSY });
    let held = HeldLabels {
        registry: "r.example".into(),
        reason: Held::Busy,
    };
    assert_eq!(metrics.upstream_held.get_or_create(&held).get(), 1);
    drop(turns);
    let _turn = pace.turn(soon()).await.unwrap();
}
