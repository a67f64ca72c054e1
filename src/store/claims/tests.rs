use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::*;

/// Replicas over one store.
fn replicas<const N: usize>(objects: &Arc<InMemory>) -> [Arc<Claims>; N] {
    std::array::from_fn(|at| {
        let shared = Shared::new(Arc::clone(objects) as Arc<dyn ObjectStore>, None, "");
        Claims::new(
            Arc::new(shared),
            Some(format!("http://10.0.0.{at}:5000").parse().unwrap()),
            Arc::new(Metrics::default()),
            TaskTracker::new(),
        )
    })
}

fn digest() -> Digest {
    Digest::sha256(b"x")
}

async fn mine(claims: &Arc<Claims>) -> Claim {
    match claims.take(&digest()).await.unwrap() {
        Standing::Mine(claim) => claim,
        Standing::Theirs(holder) => panic!("{holder:?} has it"),
    }
}

async fn theirs(claims: &Arc<Claims>) -> Holder {
    match claims.take(&digest()).await.unwrap() {
        Standing::Mine(_) => panic!("nobody has it"),
        Standing::Theirs(holder) => holder,
    }
}

async fn there(objects: &InMemory) -> bool {
    let path = format!("v1/claims/{}", digest().hex());
    objects.head(&path.as_str().into()).await.is_ok()
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn one_has_it_and_gives_it_back() {
    let objects = Arc::new(InMemory::new());
    let [a, b] = replicas(&objects);
    let claim = mine(&a).await;
    let holder = theirs(&b).await;
    assert_eq!(holder.replica, a.replica);
    assert_eq!(holder.address, a.address);
    // Renewed for as long as it is held, and shared within the replica.
    for _ in 0..20 {
        seconds(1).await;
        assert_eq!(theirs(&b).await.replica, a.replica);
    }
    let second = mine(&a).await;
    drop(claim);
    seconds(5).await;
    assert_eq!(theirs(&b).await.replica, a.replica, "somebody has it still");
    drop(second);
    seconds(1).await;
    assert!(!there(&objects).await, "it was not given back");
    assert!(lock(&a.held).is_empty());
    mine(&b).await;
}

#[tokio::test(start_paused = true)]
async fn one_of_those_who_wait_takes_over_what_a_dead_one_left() {
    let objects = Arc::new(InMemory::new());
    let [a, b, c] = replicas(&objects);
    stopped(&a).await;
    for _ in 0..5 {
        assert_eq!(theirs(&b).await.replica, a.replica);
        assert_eq!(theirs(&c).await.replica, a.replica);
        seconds(1).await;
    }
    seconds(1).await;
    let digest = digest();
    let (first, second) = tokio::join!(b.take(&digest), c.take(&digest));
    let winners = [first.unwrap(), second.unwrap()]
        .into_iter()
        .filter(|standing| matches!(standing, Standing::Mine(_)))
        .collect::<Vec<_>>();
    assert_eq!(winners.len(), 1);
    let labels = ClaimLabels {
        event: ClaimEvent::TakenOver,
    };
    let taken = [&b, &c].map(|claims| claims.metrics.claims.get_or_create(&labels).get());
    assert_eq!(taken.iter().sum::<u64>(), 1);
}

/// A claim that is not renewed, as when its process is stopped or killed.
async fn stopped(claims: &Arc<Claims>) -> Version {
    let digest = digest();
    let created = claims.shared.create(Name::Claim(&digest), claims.body(0));
    created.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_was_stopped_finds_that_it_has_lost() {
    let objects = Arc::new(InMemory::new());
    let [a, b] = replicas(&objects);
    let version = stopped(&a).await;
    theirs(&b).await;
    seconds(7).await;
    let _new = mine(&b).await;

    let claim = a.hold(&digest(), version, ClaimEvent::Made);
    claim.lost().await;
    assert_eq!(theirs(&a).await.replica, b.replica);
    drop(claim);
    seconds(3).await;
    assert_eq!(
        theirs(&a).await.replica,
        b.replica,
        "it gave back another's"
    );
}

/// A renewal whose answer got lost has another version than the one that is remembered.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_no_lost_claim() {
    let objects = Arc::new(InMemory::new());
    let [a, b] = replicas(&objects);
    let claim = mine(&a).await;
    let digest = digest();
    let name = Name::Claim(&digest);
    a.shared.overwrite(name, a.body(77)).await.unwrap();
    seconds(10).await;
    assert!(!claim.0.lost.is_cancelled());
    assert_eq!(theirs(&b).await.replica, a.replica);
    // Nor is one that somebody swept away.
    a.shared.delete(name).await.unwrap();
    seconds(3).await;
    assert_eq!(theirs(&b).await.replica, a.replica);
}

#[tokio::test(start_paused = true)]
async fn what_killed_replicas_left_is_swept_away() {
    let objects = Arc::new(InMemory::new());
    let [a, b, c] = replicas(&objects);
    let stop = CancellationToken::new();
    let sweeper = TaskTracker::new();
    sweeper.spawn({
        let (b, stop) = (Arc::clone(&b), stop.clone());
        async move { b.run(stop).await }
    });
    stopped(&a).await;
    let other = Digest::sha256(b"y");
    let Ok(Standing::Mine(living)) = c.take(&other).await else {
        panic!("nobody has it")
    };
    seconds(61).await;
    assert!(!there(&objects).await, "it is there still");
    assert!(
        matches!(a.take(&other).await, Ok(Standing::Theirs(_))),
        "a living one is gone"
    );
    drop(living);
    stop.cancel();
    sweeper.close();
    sweeper.wait().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_claim_dies_like_one() {
    let objects = Arc::new(InMemory::new());
    let [a] = replicas(&objects);
    let digest = digest();
    let name = Name::Claim(&digest);
    a.shared
        .overwrite(name, Bytes::from_static(b"}"))
        .await
        .unwrap();
    assert_eq!(theirs(&a).await.address, None);
    seconds(7).await;
    mine(&a).await;
}
