use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::time::Instant;

use super::*;
use crate::store::object::fake::{Fake, Mood};
use crate::store::{self, Store};
use crate::telemetry::Secret;
use crate::upstream::{Egress, Limits, PeerKey};

type Objects = Arc<dyn ObjectStore>;

const LARGE: Option<u64> = Some(2 << 20);

fn digest() -> Digest {
    Digest::sha256(b"x")
}

/// A replica over `objects`, with what it counts.
pub(super) fn replica(objects: &Objects, name: &str) -> Nearby {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (metrics, tracker) = (Arc::new(Metrics::default()), TaskTracker::new());
    let shared = Arc::new(Shared::new(Arc::clone(objects), None, ""));
    let address = format!("http://{name}:5000").parse().unwrap();
    let claims = Claims::new(
        Arc::clone(&shared),
        Some(address),
        Arc::clone(&metrics),
        tracker.clone(),
    );
    let key = PeerKey::new(&Secret::new("secret".to_owned()), Vec::new());
    let peers = Peers::new(key, &Limits::default(), &Egress::default(), &metrics).unwrap();
    let peers = Arc::new(peers);
    let dir = tempfile::tempdir().unwrap();
    let config = store::Config {
        path: dir.path().to_owned(),
        ..store::Config::default()
    };
    let store = Store::open(&config, None, Arc::clone(&metrics)).unwrap();
    let disk = Arc::clone(&store.disk);
    Nearby::new(
        shared,
        disk,
        Some(Fleet { claims, peers }),
        &metrics,
        &tracker,
    )
}

fn memory() -> Objects {
    Arc::new(InMemory::new())
}

/// The store takes that long for every answer.
fn slow(objects: InMemory, wait: Duration) -> Objects {
    let config = ThrottleConfig {
        wait_get_per_call: wait,
        wait_put_per_call: wait,
        ..ThrottleConfig::default()
    };
    Arc::new(ThrottledStore::new(objects, config))
}

fn name_of(nearest: &Nearest) -> Option<String> {
    let source = nearest.source.as_ref()?;
    Some(source.name().to_owned())
}

async fn is_claimed(objects: &Objects) -> bool {
    let path = format!("v1/claims/{}", digest().hex());
    objects.head(&path.as_str().into()).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn one_fetches_and_the_others_follow() {
    let objects = memory();
    let [a, b] = ["a", "b"].map(|name| replica(&objects, name));
    let holder = a.locate(&digest(), LARGE, &[]).await;
    assert!(holder.source.is_none() && holder.vigil.is_some());
    let follower = b.locate(&digest(), None, &[]).await;
    let name = name_of(&follower).unwrap();
    assert!(name.ends_with("at http://a:5000/"), "{name}");
    // The blob is stored, the claim given back.
    let hex = digest().hex();
    let path = format!("v1/blobs/sha256/{}/{hex}", &hex[..2]);
    objects
        .put(&path.as_str().into(), "x".into())
        .await
        .unwrap();
    drop(holder);
    let late = b.locate(&digest(), None, &[]).await;
    assert_eq!(name_of(&late).as_deref(), Some(SHARED));
}

#[tokio::test(start_paused = true)]
async fn what_is_small_is_not_claimed_nor_what_nobody_could_follow() {
    let objects = memory();
    let small = Some(WORTH_A_CLAIM - 1);
    let nearest = replica(&objects, "a").locate(&digest(), small, &[]).await;
    assert!(nearest.source.is_none() && nearest.vigil.is_none());
    let mut alone = replica(&objects, "a");
    alone.fleet = None;
    let nearest = alone.locate(&digest(), LARGE, &[]).await;
    assert!(nearest.source.is_none());
    assert!(!is_claimed(&objects).await);
}

/// A pull does not wait for a slow store, but what it says in the end counts: at once, because a
/// second question would be answered as late as the first.
#[tokio::test(start_paused = true)]
async fn a_late_answer_is_taken_up() {
    let objects = slow(InMemory::new(), Duration::from_secs(1));
    let [a, b] = ["a", "b"].map(|name| replica(&objects, name));
    let answer = async |nearby: &Nearby| {
        let started = Instant::now();
        let first = nearby.locate(&digest(), LARGE, &[]).await;
        assert_eq!(started.elapsed(), ASK);
        assert!(first.source.is_none());
        first.vigil.unwrap().outdated().await.unwrap()
    };
    let holder = answer(&a).await;
    assert!(holder.source.is_none() && holder.vigil.is_some());
    sleep(Duration::from_secs(5)).await;
    assert!(is_claimed(&objects).await);
    let follower = answer(&b).await;
    let name = name_of(&follower).unwrap();
    assert!(name.ends_with("at http://a:5000/"), "{name}");
}

/// A store that fails when a fill begins may be back while it runs.
#[tokio::test(start_paused = true)]
async fn who_got_no_answer_asks_again() {
    let fake = Arc::new(Fake::default());
    let objects: Objects = Arc::clone(&fake) as Objects;
    let a = replica(&objects, "a");
    fake.is(Mood::Failing);
    let unanswered = a.locate(&digest(), LARGE, &[]).await;
    assert!(unanswered.source.is_none());
    fake.is(Mood::Fine);
    assert!(unanswered.vigil.unwrap().outdated().await.is_none());
    let holder = a.locate(&digest(), LARGE, &[]).await;
    assert!(holder.vigil.is_some() && is_claimed(&objects).await);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_costs_a_quarter_of_a_second() {
    let objects = slow(InMemory::new(), Duration::from_hours(1));
    let started = Instant::now();
    let nearest = replica(&objects, "a").locate(&digest(), LARGE, &[]).await;
    assert_eq!(started.elapsed(), ASK);
    assert!(nearest.source.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_lost_a_living_holder_goes_to_the_upstream() {
    let objects = memory();
    let [a, b] = ["a", "b"].map(|name| replica(&objects, name));
    let holder = a.locate(&digest(), LARGE, &[]).await;
    let failed = name_of(&b.locate(&digest(), LARGE, &[]).await).unwrap();
    let started = Instant::now();
    let nearest = b.locate(&digest(), LARGE, &[failed]).await;
    assert!(nearest.source.is_none() && nearest.vigil.is_none());
    assert!(started.elapsed() <= Duration::from_secs(6));
    drop(holder);
}

#[tokio::test(start_paused = true)]
async fn who_lost_a_dead_holder_takes_its_place() {
    let objects = memory();
    let [b, c] = ["b", "c"].map(|name| replica(&objects, name));
    // Nobody renews it.
    let claim = r#"{"replica":"a","address":"http://a:5000/","counter":7}"#;
    let path = format!("v1/claims/{}", digest().hex());
    objects
        .put(&path.as_str().into(), claim.into())
        .await
        .unwrap();
    let failed = [name_of(&b.locate(&digest(), LARGE, &[]).await).unwrap()];
    c.locate(&digest(), LARGE, &[]).await;
    let started = Instant::now();
    let look = |nearby: Nearby| {
        let failed = failed.clone();
        async move { nearby.locate(&digest(), LARGE, &failed).await }
    };
    let (one, other) = tokio::join!(look(b), look(c));
    assert!(started.elapsed() < Duration::from_secs(9));
    let names = [name_of(&one), name_of(&other)];
    assert_eq!(
        names.iter().flatten().count(),
        1,
        "one follows the other: {names:?}"
    );
    assert!(one.vigil.is_some() && other.vigil.is_some());
}
