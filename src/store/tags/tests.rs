use proptest::prelude::*;

use super::*;
use crate::store::tests::{Dir, repository};

const TYPES: [&str; 2] = ["application/a", "application/b"];

fn entry(number: u8, seen: i64) -> TagEntry {
    let media_type = MediaType::parse(TYPES[0]).unwrap();
    TagEntry::new(Digest::sha256(&[number]), media_type, 7, seen)
}

fn digests(record: &TagRecord) -> Vec<Digest> {
    record
        .entries(Variant::Any)
        .iter()
        .map(|entry| entry.digest)
        .collect()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn record() -> impl Strategy<Value = TagRecord> {
    let variant = prop_oneof![Just(Variant::Any), Just(Variant::Image)];
    let sighting = (variant, 0..5u8, 0..2usize, 0..2u64, 0..6i64);
    prop::collection::vec(sighting, 0..12).prop_map(|sightings| {
        let mut record = TagRecord::default();
        for (variant, number, media_type, size, seen) in sightings {
            let digest = Digest::sha256(&[number]);
            let media_type = MediaType::parse(TYPES[media_type]).unwrap();
            record.see(variant, TagEntry::new(digest, media_type, size, seen));
        }
        record
    })
}

proptest! {
    #[test]
    fn replicas_agree(a in record(), b in record(), c in record()) {
        prop_assert_eq!(a.merge(&b), b.merge(&a));
        prop_assert_eq!(a.merge(&b).merge(&c), a.merge(&b.merge(&c)));
        prop_assert_eq!(a.merge(&a), a.clone());
        prop_assert_eq!(a.merge(&b).merge(&b), a.merge(&b));
    }
}

#[test]
fn merging_keeps_the_earliest_and_the_latest() {
    let (mut a, mut b) = (TagRecord::default(), TagRecord::default());
    a.see(Variant::Any, entry(1, 10));
    a.see(Variant::Any, entry(2, 20));
    b.see(Variant::Any, entry(2, 15));
    b.see(Variant::Any, entry(1, 30));
    let both = a.merge(&b);
    assert_eq!(digests(&both), [entry(2, 0).digest, entry(1, 0).digest]);
    assert_eq!(both.checked, 30);
    let current = both.current(Variant::Any).unwrap();
    assert_eq!((current.first_seen, current.last_seen), (10, 30));
    assert_eq!(both.entries(Variant::Any)[0].first_seen, 15);
    assert_eq!(both.current(Variant::Image), None);
}

#[test]
fn a_tag_that_is_moved_back_points_back() {
    let mut record = TagRecord::default();
    for (number, seen) in [(1, 10), (2, 20), (1, 30)] {
        record.see(Variant::Any, entry(number, seen));
    }
    let current = record.current(Variant::Any).unwrap();
    assert_eq!(current.digest, entry(1, 0).digest);
    assert_eq!(current.first_seen, 10);
}

/// Fault row F39: a clock that was a year ahead, and two moves within one second.
#[test]
fn what_was_seen_last_is_newest_whatever_the_clock_says() {
    let mut record = TagRecord::default();
    for (number, seen) in [(1, 1000), (2, 1000), (3, 50), (4, 50), (2, 50)] {
        record.see(Variant::Any, entry(number, seen));
        let current = record.current(Variant::Any).unwrap();
        assert_eq!(current.digest, entry(number, 0).digest);
        assert_eq!(record.checked, seen);
        let latest = record.entries(Variant::Any).iter();
        let latest = latest.map(|entry| entry.last_seen).max().unwrap();
        assert!(latest < seen + CLOCKS_DIFFER, "{latest} at {seen}");
        // The order stays when the list is sorted again.
        assert_eq!(record.merge(&TagRecord::default()), record);
    }
    record.checked = i64::MAX;
    let order = digests(&record);
    let record = record.restored(20);
    assert_eq!(digests(&record), order);
    assert_eq!(record.checked, 20);
    assert_eq!(record.current(Variant::Any).unwrap().last_seen, 20);
}

/// Records have whole seconds, and another replica may have kept a copy from between two moves.
#[test]
fn a_tag_that_moves_within_one_second_has_moved_for_all_replicas() {
    let mut record = TagRecord::default();
    let mut copies = Vec::new();
    for number in [1, 2, 3, 1] {
        record.see(Variant::Any, entry(number, 1000));
        for copy in &copies {
            let both: TagRecord = record.merge(copy);
            let current = both.current(Variant::Any).unwrap();
            assert_eq!(current.digest, entry(number, 0).digest);
        }
        copies.push(record.clone());
    }
}

/// Sixty-four entries, from the first to the last, with no large hole in between.
#[test]
fn a_long_history_is_thinned_out() {
    let mut record = TagRecord::default();
    for hour in 0..1000 {
        let name = Digest::sha256(&i64::to_le_bytes(hour));
        let media_type = MediaType::parse(TYPES[0]).unwrap();
        record.see(Variant::Any, TagEntry::new(name, media_type, 7, hour));
    }
    let entries = record.entries(Variant::Any);
    assert_eq!(entries.len(), MOST_ENTRIES);
    assert_eq!((entries[0].last_seen, entries[63].last_seen), (0, 999));
    let holes = entries
        .windows(2)
        .map(|pair| pair[1].last_seen - pair[0].last_seen);
    assert!(holes.max().unwrap() <= 3 * 1000 / 64, "{entries:?}");
}

#[tokio::test]
async fn records_survive_and_tags_are_listed() {
    let dir = Dir::new();
    let here = repository("docker.io/library/a");
    let tags = dir.tags();
    assert_eq!(tags.get(&here, &tag("v1")).await, None);
    assert!(tags.tags(&here).await.unwrap().is_empty());
    tags.record(&here, &tag("v1"), Variant::Any, entry(1, 10))
        .await;
    tags.record(&here, &tag("v1"), Variant::Image, entry(2, 11))
        .await;
    tags.checked(&here, &tag("v1"), Variant::Any, &entry(1, 0).digest, 20)
        .await;
    tags.checked(&here, &tag("v1"), Variant::Any, &entry(9, 0).digest, 30)
        .await;
    tags.record(&here, &tag("v2"), Variant::Any, entry(3, 12))
        .await;
    assert_eq!(tags.tags(&here).await.unwrap(), [tag("v1"), tag("v2")]);
    let before = tags.get(&here, &tag("v1")).await.unwrap();
    assert_eq!(before.checked, 20);
    assert_eq!(before.current(Variant::Any).unwrap().first_seen, 10);

    let tags = dir.tags();
    assert_eq!(tags.get(&here, &tag("v1")).await, Some(before));
    assert!(tags.get(&here, &tag("v2")).await.is_some());
}

/// Fault row F42.
#[tokio::test]
async fn a_damaged_record_is_set_aside() {
    let dir = Dir::new();
    let here = repository("docker.io/library/a");
    let path = dir.layout().tag(&here, &tag("v1"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for damage in [
        "",
        "{",
        "\0\0\0\0",
        r#"{"variants": {"any": [{"digest": "x"}]}}"#,
    ] {
        std::fs::write(&path, damage).unwrap();
        let tags = dir.tags();
        assert_eq!(tags.get(&here, &tag("v1")).await, None, "{damage:?}");
        assert!(tags.tags(&here).await.unwrap().is_empty());
        assert_eq!(
            std::fs::read_to_string(path.with_extension("json.bad")).unwrap(),
            damage
        );
        tags.record(&here, &tag("v1"), Variant::Any, entry(1, 10))
            .await;
        tags.flush().await;
        assert!(dir.tags().get(&here, &tag("v1")).await.is_some());
    }
}

#[test]
fn the_file_reads_as_documented() {
    let mut record = TagRecord::default();
    record.see(Variant::Any, entry(1, 10));
    let digest = entry(1, 0).digest;
    let json = serde_json::json!({
        "variants": {"any": [{
            "digest": digest, "media_type": TYPES[0], "size": 7, "first_seen": 10, "last_seen": 10,
        }]},
        "checked": 10,
    });
    assert_eq!(serde_json::to_value(&record).unwrap(), json);
}
