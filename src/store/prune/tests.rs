//! Random fleets: whatever somebody may still need is there afterwards, and the rest is not.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use futures_util::FutureExt as _;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::mark::References;
use super::*;
use crate::oci::{Digest, MediaType, Repository, Tag};
use crate::store::TagEntry;
use crate::store::object::Name;
use crate::store::object::fake::{Fake, Mood, ago};

/// The window, in seconds.
const WINDOW: i64 = 30 * 86_400;
const OLD: i64 = WINDOW + 86_400;
const YOUNG: i64 = WINDOW / 2;

/// A store, and where everything is.
struct Fleet {
    fake: Arc<Fake>,
    shared: Arc<Shared>,
    repository: Repository,
}

impl Fleet {
    fn new() -> Self {
        let fake = Arc::new(Fake::default());
        Fleet {
            shared: Arc::new(Shared::new(Arc::clone(&fake) as _, None, "fleet")),
            fake,
            repository: crate::store::tests::repository("registry.example/demo/app"),
        }
    }

    fn blob(&self, bytes: impl Into<Bytes>, age: i64) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let put = self.shared.put_bytes(&digest, bytes);
        put.now_or_never().unwrap().unwrap();
        self.fake.age(&self.shared.name_of(&digest), age);
        digest
    }

    /// An image over `layers`, and its config.
    fn image(&self, name: &str, layers: &[Digest], age: i64) -> (Digest, Digest) {
        let config = self.blob(format!("{{\"config of\":\"{name}\"}}"), age);
        let layers: Vec<_> = layers
            .iter()
            .map(|digest| json!({ "digest": digest }))
            .collect();
        let manifest = json!({ "name": name, "config": { "digest": config }, "layers": layers });
        (self.blob(manifest.to_string(), age), config)
    }

    fn index(&self, manifests: &[Digest], age: i64) -> Digest {
        let manifests: Vec<_> = manifests
            .iter()
            .map(|digest| json!({ "digest": digest }))
            .collect();
        self.blob(json!({ "manifests": manifests }).to_string(), age)
    }

    fn small(&self, name: Name<'_>, bytes: Vec<u8>, path: &str, age: i64) {
        let put = self.shared.overwrite(name, bytes.into());
        put.now_or_never().unwrap().unwrap();
        self.fake.age(&format!("fleet/v1/{path}"), age);
    }

    /// A tag that pointed to `digest`, as it was found `age` seconds ago.
    fn tag(&self, tag: &str, digest: Digest, age: i64) {
        let kind = MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap();
        let seen = ago(age);
        let entry = TagEntry::new(digest, kind, 9, seen);
        let record = json!({ "variants": { "any": [entry] }, "checked": seen });
        let tag: Tag = tag.parse().unwrap();
        let path = format!("repos/{}/_tags/{tag}.json", self.repository);
        let bytes = serde_json::to_vec(&record).unwrap();
        self.small(Name::Tag(&self.repository, &tag), bytes, &path, age);
    }

    fn link(&self, digest: &Digest, age: i64) {
        let path = format!("repos/{}/_links/{}", self.repository, digest.hex());
        let name = Name::Link(&self.repository, digest);
        self.small(name, b"{}".to_vec(), &path, age);
    }

    fn pin(&self, hash: &str, closure: &serde_json::Value) {
        let pin = json!({ "image": hash, "closure": closure }).to_string();
        let path = format!("pins/{hash}.json");
        self.small(Name::Pin(hash), pin.into_bytes(), &path, OLD);
    }

    fn used(&self, digest: &Digest, age: i64) {
        let day = jiff::Timestamp::from_second(ago(age)).unwrap();
        let name = format!("{}-{}", day.strftime("%Y-%m-%d"), &digest.hex()[..8]);
        let bytes = serde_json::to_vec(&[digest]).unwrap();
        self.small(Name::Used(&name), bytes, &format!("used/{name}"), age);
    }

    async fn prune(&self, dry_run: bool) -> (Result<Pruned, PruneError>, Vec<String>) {
        let mut told = Vec::new();
        let tell = |doomed: &Doomed| told.push(doomed.name.clone());
        let pruned = prune(&self.shared, ago(WINDOW), dry_run, tell).await;
        (pruned, told)
    }

    async fn blobs(&self) -> BTreeSet<String> {
        let names = self.fake.names().await;
        names
            .into_iter()
            .filter(|name| name.contains("/blobs/"))
            .collect()
    }

    fn names(&self, digests: impl IntoIterator<Item = Digest>) -> BTreeSet<String> {
        digests
            .into_iter()
            .map(|digest| self.shared.name_of(&digest))
            .collect()
    }
}

#[tokio::test]
async fn what_nobody_used_goes_and_its_records_too() {
    let fleet = Fleet::new();
    let base = fleet.blob("base", OLD);
    // A manifest may be large, and a layer may look like one at first sight.
    let own = fleet.blob("{ \"looks\": like".repeat(10_000), OLD);
    let (kept, kept_config) = fleet.image(&"kept".repeat(20_000), &[base], OLD);
    let (gone, gone_config) = fleet.image("gone", &[base, own], OLD);
    fleet.tag("kept", kept, YOUNG);
    fleet.tag("gone", gone, OLD);
    for digest in [kept, gone, own, base] {
        fleet.link(&digest, OLD);
    }
    fleet.used(&gone, OLD);
    let before = fleet.fake.names().await;

    let (pruned, would) = fleet.prune(true).await;
    assert_eq!(fleet.fake.names().await, before, "a dry run takes nothing");
    let (really, went) = fleet.prune(false).await;
    assert_eq!(really.unwrap(), pruned.unwrap());
    assert_eq!(would.iter().collect::<HashSet<_>>(), went.iter().collect());
    let after = fleet.fake.names().await;
    let difference: Vec<_> = before.iter().filter(|name| !after.contains(name)).collect();
    assert_eq!(difference.len(), went.len());
    assert_eq!(
        went[0],
        fleet.shared.name_of(&gone),
        "the manifest goes first"
    );
    assert_eq!(fleet.blobs().await, fleet.names([kept, kept_config, base]));
    assert!(!went.contains(&fleet.shared.name_of(&base)));
    for part in ["_tags/gone.json", &format!("_links/{}", own.hex()), "used/"] {
        assert!(
            went.iter().any(|name| name.contains(part)),
            "{part}: {went:?}"
        );
    }
    assert_eq!(went.len(), 3 + 2 + 1 + 1, "{went:?}");
    assert!(went.contains(&fleet.shared.name_of(&gone_config)));
}

#[tokio::test]
async fn nothing_goes_when_a_root_cannot_be_read() {
    for (what, path) in [("a pin", "pins/ab.json"), ("a note", "used/9999-01-01-ab")] {
        let fleet = Fleet::new();
        fleet.blob("nobody's", OLD);
        let name = if path.starts_with("pins") {
            Name::Pin("ab")
        } else {
            Name::Used(&path[5..])
        };
        fleet.small(name, b"nonsense".to_vec(), path, OLD);
        let before = fleet.fake.names().await;
        let (pruned, told) = fleet.prune(false).await;
        let error = pruned.unwrap_err();
        assert!(
            matches!(error, PruneError::Unreadable(_)),
            "{what}: {error}"
        );
        assert!(error.to_string().contains(path), "{error}");
        assert_eq!(
            (fleet.fake.names().await, told.len()),
            (before, 0),
            "{what}"
        );
    }
}

#[tokio::test]
async fn nothing_goes_when_a_manifest_on_the_way_is_wrong_or_cannot_be_read() {
    let fleet = Fleet::new();
    let layer = fleet.blob("layer", OLD);
    let (image, _) = fleet.image("image", &[layer], OLD);
    fleet.tag("v1", image, YOUNG);
    fleet.blob("nobody's", OLD);
    let before = fleet.fake.names().await;
    fleet.fake.is(Mood::Unreadable);
    fleet.prune(false).await.0.unwrap_err();
    fleet.fake.is(Mood::Fine);
    // Somebody changed it: it does not say any more what it kept.
    let name = fleet.shared.name_of(&image);
    fleet.fake.put(&name, "{}").await;
    fleet.fake.age(&name, OLD);
    let (pruned, _) = fleet.prune(false).await;
    assert!(pruned.unwrap_err().to_string().contains(&image.to_string()));
    assert_eq!(fleet.fake.names().await, before);
}

#[tokio::test]
async fn what_is_pinned_while_it_is_about_to_go_stays() {
    let fleet = Fleet::new();
    let layer = fleet.blob("layer", OLD);
    let (image, config) = fleet.image("image", &[layer], OLD);
    let other = fleet.blob("nobody's", OLD);
    let mut marks = mark::Marks::new(ago(WINDOW));
    marks.mark(&fleet.shared).await.unwrap();
    assert!(marks.is_doomed(&image));
    fleet.pin(
        "ab",
        &json!([{ "digest": image, "size": 1 }, { "digest": layer, "size": 1 }, config]),
    );
    sweep::blobs(&fleet.shared, &mut marks, false, &mut |_| {})
        .await
        .unwrap();
    assert_eq!(fleet.blobs().await, fleet.names([image, layer, config]));
    assert!(!fleet.blobs().await.contains(&fleet.shared.name_of(&other)));
}

#[test]
fn a_manifest_is_read_generously() {
    let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::sha256(text));
    let unknown = json!({ "manifests": [{ "digest": a }], "new": { "list": [{ "x": b }] },
                          "subject": { "digest": c }, "layers": "none" });
    let references = References::of(unknown.to_string().as_bytes());
    assert_eq!(
        BTreeSet::from_iter(references.all),
        BTreeSet::from([a, b, c])
    );
    assert_eq!(
        BTreeSet::from_iter(references.manifests),
        BTreeSet::from([a, c])
    );
    for text in [
        "",
        "[1]",
        "{",
        "{\"manifests\": 5, \"config\": null}",
        "\u{0}",
    ] {
        assert_eq!(
            References::of(text.as_bytes()),
            References::default(),
            "{text}"
        );
    }
}

/// Why somebody may still need an image.
#[derive(Clone, Copy, Debug)]
enum Reason {
    Nobody,
    Tagged(i64),
    Pinned,
    Used(i64),
    Claimed,
}

fn age() -> impl Strategy<Value = i64> {
    prop_oneof![Just(OLD), Just(YOUNG)]
}

fn reason() -> impl Strategy<Value = Reason> {
    prop_oneof![
        3 => Just(Reason::Nobody),
        2 => age().prop_map(Reason::Tagged),
        1 => Just(Reason::Pinned),
        2 => age().prop_map(Reason::Used),
        1 => Just(Reason::Claimed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Images over shared layers, some in indexes, each needed for some reason or none.
    #[test]
    fn what_is_needed_stays_and_nothing_else(
        layers in vec(age(), 1..8),
        images in vec((vec(any::<prop::sample::Index>(), 0..4), age(), reason()), 1..10),
        indexes in vec((vec(any::<prop::sample::Index>(), 1..4), age(), reason()), 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let fleet = Fleet::new();
        let digests: Vec<Digest> = layers.iter().enumerate()
            .map(|(n, age)| fleet.blob(format!("layer {n}"), *age)).collect();
        let mut ages: BTreeMap<Digest, i64> = digests.iter().copied().zip(layers).collect();
        // What each manifest leads to, itself included.
        let mut closures: Vec<(Digest, HashSet<Digest>, i64, Reason)> = Vec::new();
        for (n, (picks, age, reason)) in images.iter().enumerate() {
            let layers: Vec<Digest> = picks.iter().map(|pick| *pick.get(&digests)).collect();
            let (image, config) = fleet.image(&n.to_string(), &layers, *age);
            ages.extend([(image, *age), (config, *age)]);
            let closure = layers.into_iter().chain([image, config]).collect();
            closures.push((image, closure, *age, *reason));
        }
        let count = closures.len();
        for (picks, age, reason) in &indexes {
            let picks: BTreeSet<usize> = picks.iter().map(|pick| pick.index(count)).collect();
            let manifests: Vec<Digest> = picks.iter().map(|at| closures[*at].0).collect();
            let index = fleet.index(&manifests, *age);
            // Two of the same are one object, which is as old as it was written last.
            ages.insert(index, *age);
            let mut closure: HashSet<Digest> = picks.iter().flat_map(|at| closures[*at].1.clone()).collect();
            closure.insert(index);
            closures.push((index, closure, *age, *reason));
        }
        for (n, (digest, closure, _, reason)) in closures.iter().enumerate() {
            match reason {
                Reason::Nobody => {}
                Reason::Tagged(age) => fleet.tag(&format!("t{n}"), *digest, *age),
                Reason::Pinned => {
                    let closure: Vec<_> = closure.iter().collect();
                    fleet.pin(&format!("{n:064}"), &json!(closure));
                }
                Reason::Used(age) => fleet.used(digest, *age),
                Reason::Claimed => {
                    let path = format!("claims/{}", digest.hex());
                    fleet.small(Name::Claim(digest), b"{}".to_vec(), &path, YOUNG);
                }
            }
        }
        let needed = |(digest, _, _, reason): &&(Digest, HashSet<Digest>, i64, Reason)| {
            ages[digest] == YOUNG || match reason {
                Reason::Nobody => false,
                Reason::Tagged(age) | Reason::Used(age) => *age == YOUNG,
                Reason::Pinned | Reason::Claimed => true,
            }
        };
        let mut expected: HashSet<Digest> =
            closures.iter().filter(needed).flat_map(|(_, closure, ..)| closure.clone()).collect();
        expected.extend(ages.iter().filter(|(_, age)| **age == YOUNG).map(|(digest, _)| *digest));
        runtime.block_on(async {
            let (pruned, _) = fleet.prune(false).await;
            let kept = pruned.unwrap().kept;
            assert_eq!(fleet.blobs().await, fleet.names(expected.clone()));
            assert_eq!(kept, expected.len() as u64);
            // There is nothing left to do.
            let (again, told) = fleet.prune(false).await;
            assert_eq!((again.unwrap().objects, told), (0, Vec::new()));
        });
    }
}
