//! Two and more replicas on one shared store.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::oci::{Algorithm, Manifest, MediaType, Reference, Repository, Tag};
use crate::store::files::unix_now;
use crate::store::object::Shared;
use crate::store::records::Record;
use crate::store::tags::CLOCKS_DIFFER;
use crate::store::tests::replicas::{Cloud, Replica, Weather};
use crate::store::tests::{Dir, commit, content, repository};
use crate::store::{Seen, TagEntry, TagRecord, Variant};
use crate::telemetry::metrics::{LookupLabels, LookupResult, PublishLabels, SharedKind};

const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn here() -> Repository {
    repository("docker.io/library/a")
}

fn tag() -> Tag {
    "v1".parse().unwrap()
}

fn layer() -> Digest {
    Digest::sha256(b"layer")
}

fn manifest() -> Manifest {
    let config = Digest::sha256(b"config");
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{TYPE}",
        "config":{{"mediaType":"a/b","digest":"{config}","size":6}},
        "layers":[{{"mediaType":"a/b","digest":"{}","size":5}}]}}"#,
        layer()
    );
    Manifest::parse(Bytes::from(text), Some(TYPE), Algorithm::Sha256).unwrap()
}

async fn add_manifest(replica: &Replica) -> bool {
    add_manifest_seen(replica, Seen::Soon).await
}

async fn add_manifest_seen(replica: &Replica, seen: Seen) -> bool {
    let tag = tag();
    let manifest = manifest();
    let by = Some((&tag, Variant::Any));
    replica
        .store
        .add_manifest(&here(), by, &manifest, seen)
        .await
}

/// Everything that an answer by tag is made of, on a replica that was told nothing.
async fn knows_all(replica: &Replica) -> bool {
    let (store, digest) = (&replica.store, *manifest().digest());
    let by_tag = |leader: &Reference| *leader == Reference::Tag(tag());
    let link = store.link(&here(), &digest).await;
    let record = store.fleets_tag(&here(), &tag()).await;
    link.is_some_and(|link| link.media_type == MediaType::parse(TYPE))
        && record.is_some_and(|record| record.current(Variant::Any).unwrap().digest == digest)
        && store.is_led(&here(), &layer(), by_tag).await
        && store.fleets_manifest(&digest, 1 << 20).await.as_ref() == Some(manifest().bytes())
}

fn published(replica: &Replica, kind: SharedKind, result: PublishResult) -> u64 {
    let labels = PublishLabels { kind, result };
    let metrics = replica.metrics();
    metrics.shared_published.get_or_create(&labels).get()
}

fn looked_up(replica: &Replica, kind: SharedKind, result: LookupResult) -> u64 {
    let labels = LookupLabels { kind, result };
    let metrics = replica.metrics();
    metrics.shared_lookups.get_or_create(&labels).get()
}

#[tokio::test(start_paused = true)]
async fn what_one_learns_all_see_at_once() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    assert!(!knows_all(&b).await);
    assert!(add_manifest(&a).await, "its bytes are there");
    assert!(knows_all(&b).await, "with no time in between");
    let denied = |_: &Reference| false;
    assert!(!b.store.is_led(&here(), &layer(), denied).await);

    // What was found is kept.
    cloud.set(Weather::Down);
    let link = b.store.link(&here(), manifest().digest()).await;
    assert!(link.is_some());
    assert!(
        b.store
            .is_led(&here(), &layer(), |leader| *leader == Reference::Tag(tag()))
            .await
    );
    assert!(b.store.tags.get(&here(), &tag()).await.is_some());
    assert_eq!(looked_up(&b, SharedKind::Link, LookupResult::Hit), 1);

    // And never sent back.
    cloud.set(Weather::Fine);
    assert_eq!(b.waiting(), 0);
    drop((a.stop().await, b.stop().await));
}

/// A slow store must not make other replicas refuse what an allowed tag led to.
#[tokio::test(start_paused = true)]
async fn an_answer_waits_longer_where_others_would_refuse_what_they_do_not_see() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    cloud.set(Weather::Slow(Duration::from_millis(900)));
    assert!(add_manifest_seen(&a, Seen::First).await);
    cloud.set(Weather::Fine);
    assert!(knows_all(&b).await, "with no time in between");

    cloud.set(Weather::Slow(Duration::from_mins(1)));
    let started = Instant::now();
    let c = Replica::start(&cloud);
    add_manifest_seen(&c, Seen::First).await;
    assert!(started.elapsed() <= Duration::from_secs(4));
    cloud.set(Weather::Fine);
    drop((a.stop().await, b.stop().await));
}

#[tokio::test(start_paused = true)]
async fn an_answer_waits_half_a_second_at_most_and_not_when_it_is_down() {
    let cloud = Cloud::new();
    let a = Replica::start(&cloud);
    cloud.set(Weather::Slow(Duration::from_millis(900)));
    let started = Instant::now();
    assert!(!add_manifest(&a).await);
    assert_eq!(started.elapsed(), Duration::from_millis(500));
    a.settled().await;

    cloud.set(Weather::Down);
    while a.shared.is_up() {
        assert_eq!(a.store.link(&here(), &layer()).await, None);
    }
    let (requests, started) = (cloud.requests(), Instant::now());
    assert!(!add_manifest(&a).await);
    assert_eq!(a.store.link(&here(), &layer()).await, None);
    assert!(
        a.store.fleets_tag(&here(), &tag()).await.is_some(),
        "what we know"
    );
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(cloud.requests(), requests);
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_one_finds_out_for_all() {
    let cloud = Cloud::new();
    let shared = cloud.shared();
    cloud.set(Weather::Slow(Duration::from_secs(60)));
    let ask = async || {
        let started = Instant::now();
        let answer = shared.stat(&layer()).await;
        (answer.is_ok(), started.elapsed())
    };
    let waited = (false, Duration::from_secs(3));
    for _ in 0..3 {
        assert_eq!(ask().await, waited);
    }
    assert!(!shared.is_up());
    tokio::time::advance(Duration::from_secs(5)).await;
    let answers = futures_util::future::join3(ask(), ask(), ask()).await;
    let at_once = (false, Duration::ZERO);
    assert_eq!(answers, (waited, at_once, at_once));

    cloud.set(Weather::Fine);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(ask().await.0 && ask().await.0);
}

#[tokio::test(start_paused = true)]
async fn what_came_while_it_was_down_arrives_when_it_is_back() {
    let cloud = Cloud::new();
    let a = Replica::start(&cloud);
    cloud.set(Weather::Down);
    // 9 MiB go in two parts.
    let blobs = [content(1, 100), content(2, 9 << 20)];
    for blob in &blobs {
        commit(&a.store.disk, blob).await;
    }
    assert!(!add_manifest(&a).await);
    let digest = *manifest().digest();
    a.store
        .disk
        .put(&digest, manifest().bytes().clone())
        .await
        .unwrap();
    a.store.publish_blob(&digest);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let requests = cloud.requests();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(cloud.requests() - requests < 60, "it waits cheaply");
    assert!(a.waiting() >= 6, "{}", a.waiting());

    cloud.set(Weather::Fine);
    a.settled().await;
    let b = Replica::start(&cloud);
    assert!(knows_all(&b).await);
    for blob in &blobs {
        let digest = Digest::sha256(blob);
        let name = cloud.names(&digest.hex()).await;
        assert_eq!(cloud.read(&name[0]).await, blob);
    }
    assert!(published(&a, SharedKind::Blob, PublishResult::Failed) > 0);
    assert_eq!(published(&a, SharedKind::Blob, PublishResult::Done), 3);
}

#[tokio::test(start_paused = true)]
async fn neither_a_kill_nor_a_stop_forgets_what_waits() {
    let cloud = Cloud::new();
    cloud.set(Weather::Down);
    let a = Replica::start(&cloud);
    let first = commit(&a.store.disk, &content(1, 1000)).await;
    let a = Replica::start_in(a.kill().await, 1 << 40, &cloud);
    assert_eq!(a.waiting(), 1);
    let second = commit(&a.store.disk, &content(2, 1000)).await;
    a.store.add_link(&here(), &second, None).await;
    let dir = a.stop().await;
    std::fs::remove_file(dir.layout().blob(&first)).unwrap();
    let third = commit_alone(&dir, &content(3, 1000)).await;

    cloud.set(Weather::Fine);
    let a = Replica::start_in(dir, 1 << 40, &cloud);
    a.settled().await;
    assert_eq!(cloud.names("/blobs/").await.len(), 1, "{first} is gone");
    assert_eq!(cloud.names(&second.hex()).await.len(), 2, "with its link");
    assert_eq!(published(&a, SharedKind::Blob, PublishResult::Gone), 1);
    a.until(|| {
        std::fs::read_to_string(a.layout().uploads())
            .unwrap()
            .is_empty()
    })
    .await;
    // What was kept while nobody shared anything is not looked for.
    assert!(cloud.names(&third.hex()).await.is_empty());
}

/// Without a shared store.
async fn commit_alone(dir: &Dir, bytes: &Bytes) -> Digest {
    let store = dir.open();
    let digest = commit(&store.disk, bytes).await;
    store.close().await.unwrap();
    digest
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_not_evicted() {
    let cloud = Cloud::new();
    cloud.set(Weather::Down);
    let a = Replica::start_in(Dir::new(), 2500, &cloud);
    let mut digests = Vec::new();
    for seed in 0..4 {
        digests.push(commit(&a.store.disk, &content(seed, 1000)).await);
        tokio::time::advance(Duration::from_secs(120)).await;
    }
    let here = |store: &Store| {
        let found = digests.iter().filter(|d| store.disk.stat(d).is_some());
        found.count()
    };
    assert_eq!(here(&a.store), 4);
    // Nor by a start.
    let a = Replica::start_in(a.stop().await, 2500, &cloud);
    assert_eq!(here(&a.store), 4);

    cloud.set(Weather::Fine);
    a.settled().await;
    assert_eq!(cloud.names("/blobs/").await.len(), 4);
    tokio::time::sleep(Duration::from_secs(120)).await;
    a.until(|| here(&a.store) == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_guard_lives_until_the_blob_has_arrived() {
    let cloud = Cloud::new();
    let a = Replica::start(&cloud);
    let guard: Arc<()> = Arc::default();
    cloud.set(Weather::Down);
    let digest = commit(&a.store.disk, &content(1, 1000)).await;
    a.store
        .disk
        .until_published(&digest, Box::new(Arc::clone(&guard)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(Arc::strong_count(&guard), 2);
    cloud.set(Weather::Fine);
    a.until(|| Arc::strong_count(&guard) == 1).await;
    assert_eq!(cloud.names("/blobs/").await.len(), 1);
    a.store
        .disk
        .until_published(&digest, Box::new(Arc::clone(&guard)));
    assert_eq!(Arc::strong_count(&guard), 1, "nothing waits");
}

#[tokio::test(start_paused = true)]
async fn what_is_there_is_not_sent_again_unless_it_is_wrong() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    let digest = commit(&a.store.disk, &content(1, 1000)).await;
    a.settled().await;
    commit(&b.store.disk, &content(1, 1000)).await;
    b.settled().await;
    assert_eq!(cloud.uploads(), 1);
    assert_eq!(published(&b, SharedKind::Blob, PublishResult::Present), 1);

    let name = cloud.names("/blobs/").await.remove(0);
    cloud.write(&name, &content(1, 999)).await;
    // One that did not see it there a moment ago.
    let b = Replica::start_in(b.stop().await, 1 << 40, &cloud);
    b.store.publish_blob(&digest);
    b.settled().await;
    assert_eq!(cloud.read(&name).await, content(1, 1000));
    assert_eq!(cloud.names("/quarantine/").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_does_not_hash_is_set_aside() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    assert!(add_manifest(&a).await);
    let name = cloud.names("/blobs/").await.remove(0);
    let mut wrong = cloud.read(&name).await.to_vec();
    wrong[7] ^= 1;
    cloud.write(&name, &wrong.into()).await;
    let digest = *manifest().digest();
    assert_eq!(b.store.fleets_manifest(&digest, 1 << 20).await, None);
    assert!(cloud.names("/blobs/").await.is_empty());
    assert_eq!(cloud.names("/quarantine/").await.len(), 1);
    assert_eq!(looked_up(&b, SharedKind::Blob, LookupResult::Wrong), 1);
}

#[tokio::test(start_paused = true)]
async fn damaged_objects_are_misses_and_are_written_anew() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    assert!(add_manifest(&a).await);
    for name in cloud.names("/repos/").await {
        cloud
            .write(&name, &Bytes::from_static(b"{\"parents\":[\"?\""))
            .await;
    }
    assert!(!knows_all(&b).await);
    let a = Replica::start_in(a.stop().await, 1 << 40, &cloud);
    // Proved again by an upstream, on a replica that had known nothing.
    assert!(add_manifest(&b).await);
    let c = Replica::start(&cloud);
    assert!(knows_all(&c).await);
    drop(a);
}

#[tokio::test(start_paused = true)]
async fn a_long_way_up_is_climbed_and_a_circle_ends() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    let digest = |number: u8| Digest::sha256(&[number]);
    let led = async |child: Digest, parent: Reference| {
        let (links, repository) = (&a.store.links, here());
        links.add_led(&repository, &parent, &[child]).await;
        let parents = links.parents(&repository, &child).await;
        let name = Name::Led(&repository, &child);
        let ours = LedRecord { parents };
        records::publish(&a.shared, name, &ours, true)
            .await
            .unwrap();
    };
    for number in 0..6 {
        led(digest(number), Reference::Digest(digest(number + 1))).await;
    }
    led(digest(6), Reference::Digest(digest(0))).await;
    let by_tag = |leader: &Reference| leader.tag().is_some();
    assert!(!b.store.is_led(&here(), &digest(0), by_tag).await);
    led(digest(6), Reference::Tag(tag())).await;
    assert!(b.store.is_led(&here(), &digest(0), by_tag).await);
}

// === redirect ===

#[tokio::test(start_paused = true)]
async fn a_signed_url_is_given_for_what_is_there() {
    let cloud = Cloud::new();
    let a = Replica::start(&cloud);
    let digest = Digest::sha256(&content(1, 1000));
    assert_eq!(a.store.elsewhere(&digest).await, None);
    commit(&a.store.disk, &content(1, 1000)).await;
    a.settled().await;
    let url = a.store.elsewhere(&digest).await.unwrap();
    assert!(url.path().ends_with(&digest.hex()), "{url}");
    assert_eq!(url.query(), Some("sig=canary&ttl=300"));
    let name = cloud.names("/blobs/").await.remove(0);
    cloud.write(&name, &content(1, 999)).await;
    let dir = Dir::new();
    let idle = dir.open_shared(1 << 40, cloud.shared());
    commit(&idle.disk, &content(1, 1000)).await;
    assert_eq!(idle.elsewhere(&digest).await, None, "another size");
    cloud.set(Weather::Down);
    assert_eq!(a.store.elsewhere(&digest).await, None);
}

// === tags ===

fn entry(number: u8, seen: i64) -> TagEntry {
    let media_type = MediaType::parse(TYPE).unwrap();
    TagEntry::new(Digest::sha256(&[number]), media_type, 7, seen)
}

async fn tell(shared: &Shared, ours: &TagRecord) -> TagRecord {
    let (repository, tag) = (here(), tag());
    let name = Name::Tag(&repository, &tag);
    let published = records::publish(shared, name, ours, ours.is_new()).await;
    published.unwrap().0
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_decides_nothing() {
    let cloud = Cloud::new();
    let (a, b) = (Replica::start(&cloud), Replica::start(&cloud));
    let (now, tag) = (unix_now(), tag());
    let year = 365 * 24 * 3600;
    let tags = &a.store.tags;
    tags.record(&here(), &tag, Variant::Any, entry(1, now + year))
        .await;
    tell(&a.shared, &tags.get(&here(), &tag).await.unwrap()).await;
    let seen = b.store.fleets_tag(&here(), &tag).await.unwrap();
    let latest = seen.current(Variant::Any).unwrap().last_seen;
    assert!(latest > now + CLOCKS_DIFFER, "for the cache to see");

    // The upstream has named another since.
    b.store
        .tags
        .record(&here(), &tag, Variant::Any, entry(2, now))
        .await;
    b.store
        .confirm_tag(&here(), &tag, Variant::Any, &entry(2, 0).digest)
        .await;
    b.settled().await;
    let c = Replica::start(&cloud);
    let seen = c.store.fleets_tag(&here(), &tag).await.unwrap();
    let current = seen.current(Variant::Any).unwrap();
    assert_eq!(current.digest, entry(2, 0).digest);
    assert!(current.last_seen <= unix_now() && seen.checked <= unix_now());
    assert_eq!(seen.entries(Variant::Any).len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Writers that come between each other lose nothing that any of them has said.
    #[test]
    fn no_update_is_lost(
        writers in prop::collection::vec(
            prop::collection::vec((0..40u8, 1..1000i64), 1..8),
            2..6,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        let cloud = Cloud::new();
        let mut tasks = JoinSet::new();
        for sightings in writers.clone() {
            let shared = cloud.shared();
            tasks.spawn_on(async move {
                let mut ours = TagRecord::default();
                for (number, seen) in sightings {
                    ours = ours.merge(&TagRecord::of(Variant::Any, entry(number, seen)));
                    tokio::task::yield_now().await;
                    tell(&shared, &ours).await;
                }
                ours
            }, runtime.handle());
        }
        let (said, there) = runtime.block_on(async {
            let all = tasks.join_all().await;
            let said = all.iter().fold(TagRecord::default(), |all, ours| all.join(ours.clone()));
            (said, tell(&cloud.shared(), &TagRecord::default()).await)
        });
        prop_assert_eq!(&said, &there);
    }

    #[test]
    fn a_record_has_at_most_64_entries(numbers in prop::collection::vec(0..=255u8, 1..200)) {
        let mut record = TagRecord::default();
        for (seen, number) in numbers.iter().enumerate() {
            let seen = TagRecord::of(Variant::Any, entry(*number, i64::try_from(seen).unwrap()));
            record = record.join(seen);
        }
        let entries = record.entries(Variant::Any);
        prop_assert!(entries.len() <= 64);
        prop_assert_eq!(entries.last().unwrap().digest, entry(*numbers.last().unwrap(), 0).digest);
    }
}
