//! What every kind of store must do, as one list that all of them pass: memory, Azurite, S3, the
//! local disk, and the disk in front of what replicas share.
//!
//! It stands here and not in `store/`, because the real stores are processes that tests start.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use portcullis::oci::{self, Algorithm, Digest, MediaType, Reference, Repository, Tag};
use portcullis::store::object::{self, Name, Tree};
use portcullis::store::{self, Seen, Shared, Store, TagEntry, TagRecord, Variant, Verifier, prune};
use portcullis::telemetry::Metrics;
use portcullis::upstream::{Egress, Limits, store_client};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::image::{Manifest, random};
use crate::support::stores::{azurite, block_on, moto, unique};
use crate::support::{KIB, MIB};

/// Three parts of an upload, the last of them short.
const LARGE: usize = 16 * MIB + 5;

macro_rules! list {
    ($($store:ident)* : $tests:tt) => { $( list!(@ $store $tests); )* };
    (@ $store:ident { $($test:ident)* }) => {
        mod $store {
            $(
                #[test]
                fn $test() {
                    let store = super::super::$store();
                    super::super::block_on(super::super::$test(store));
                }
            )*
        }
    };
}

mod blobs {
    list!(memory azure s3 disk tiered: {
        what_is_absent_is_no_error
        a_blob_is_read_whole_and_in_ranges
        a_large_blob_is_read_whole_and_in_ranges
        the_same_blob_twice_is_one
    });
}

/// What only replicas do with each other: on one disk there is one download of a digest.
mod objects {
    list!(memory azure s3: {
        the_same_blob_at_the_same_time_is_one
        a_blob_is_listed_until_it_is_deleted
        an_upload_that_is_cut_off_leaves_nothing
        an_upload_whose_file_is_short_leaves_nothing
        what_is_set_aside_is_not_read
        an_object_is_made_once
        an_object_is_replaced_only_as_it_was_read
        changes_by_many_at_once_are_all_there
        an_object_is_deleted_once_or_twice
        every_name_is_listed_in_its_tree
        what_nobody_used_is_pruned
    });
}

/// What outlives a restart on one disk is there on another replica too.
mod records {
    list!(disk tiered: {
        a_link_is_remembered
        what_led_to_a_digest_is_remembered
        a_tag_is_remembered_with_what_it_was
    });
}

mod forgetting {
    list!(disk: {
        a_link_is_there_until_it_is_taken_away
        a_tag_has_a_history
    });
}

// === the stores ===

/// As little as there can be.
fn memory() -> Arc<Shared> {
    let objects = Arc::new(object_store::memory::InMemory::new());
    Arc::new(Shared::new(objects, None, "fleet"))
}

fn azure() -> Arc<Shared> {
    open(&azurite().lines(&azurite().fresh_container()))
}

fn s3() -> Arc<Shared> {
    open(&moto().lines(&unique("bucket")))
}

/// From the lines of `[store.shared]`.
pub fn open(lines: &str) -> Arc<Shared> {
    let config: object::Config = toml::from_str(lines).unwrap();
    let client = store_client(&Limits::default(), &Egress::default(), false).unwrap();
    Arc::new(block_on(object::open(&config, client, &Arc::default())).unwrap())
}

/// The store of one replica, with its work behind the answers.
struct Local {
    store: Arc<Store>,
    shared: Option<Arc<Shared>>,
    directory: TempDir,
    stop: CancellationToken,
    work: JoinHandle<()>,
}

/// Two replicas: what one keeps, the other reads.
struct Tiered {
    one: Local,
    other: Local,
}

fn disk() -> Local {
    block_on(async { Local::open(TempDir::new().unwrap(), None) })
}

fn tiered() -> Tiered {
    let shared = azure();
    block_on(async {
        let replica = || Local::open(TempDir::new().unwrap(), Some(Arc::clone(&shared)));
        let (one, other) = (replica(), replica());
        Tiered { one, other }
    })
}

impl Local {
    fn open(directory: TempDir, shared: Option<Arc<Shared>>) -> Self {
        let config = store::Config {
            path: directory.path().join("store"),
            ..store::Config::default()
        };
        let store = Store::open(&config, shared.clone(), Arc::new(Metrics::default())).unwrap();
        let stop = CancellationToken::new();
        let (working, token) = (Arc::clone(&store), stop.clone());
        let work = tokio::spawn(async move { working.run(token).await });
        Local {
            store,
            shared,
            directory,
            stop,
            work,
        }
    }

    async fn end(self) -> (TempDir, Option<Arc<Shared>>) {
        self.stop.cancel();
        self.work.await.unwrap();
        self.store.close().await.unwrap();
        (self.directory, self.shared)
    }

    /// As after a restart.
    async fn again(self) -> Self {
        let (directory, shared) = self.end().await;
        Local::open(directory, shared)
    }

    async fn tag(&self, repository: &Repository, tag: &Tag) -> Option<Arc<TagRecord>> {
        if self.store.is_shared() {
            return self.store.fleets_tag(repository, tag).await;
        }
        self.store.tags.get(repository, tag).await
    }
}

/// What remembers: written to, then asked as [`later`](Records::later).
#[async_trait]
trait Records: Send + 'static {
    fn store(&self) -> &Store;
    async fn later(self) -> Local;
}

#[async_trait]
impl Records for Local {
    fn store(&self) -> &Store {
        &self.store
    }

    async fn later(self) -> Local {
        self.again().await
    }
}

#[async_trait]
impl Records for Tiered {
    fn store(&self) -> &Store {
        &self.one.store
    }

    /// The other replica, whose disk is empty, when the first is gone.
    async fn later(self) -> Local {
        self.one.end().await;
        self.other
    }
}

/// What all stores do with blobs.
#[async_trait]
trait Blobs: Send + Sync {
    async fn put(&self, bytes: &[u8]) -> Digest;
    async fn size(&self, digest: &Digest) -> Option<u64>;
    /// What there is of the range; no bytes where it starts past the end.
    async fn read(&self, digest: &Digest, range: Range<u64>) -> Option<Vec<u8>>;
}

#[async_trait]
impl Blobs for Arc<Shared> {
    async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let size = bytes.len() as u64;
        self.put_blob(&digest, &file(bytes), size).await.unwrap();
        digest
    }

    async fn size(&self, digest: &Digest) -> Option<u64> {
        self.stat(digest).await.unwrap()
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Option<Vec<u8>> {
        let asked = Shared::open(self, digest, Some(range.clone())).await;
        let mut body = match asked {
            Ok(body) => body?,
            // Which objects may say of a range that has nothing in it.
            Err(_) if self.stat(digest).await.unwrap()? <= range.start => return Some(Vec::new()),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(body.range.start, range.start);
        let mut bytes = Vec::new();
        while let Some(chunk) = body.chunk().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!(body.range.end - body.range.start, bytes.len() as u64);
        Some(bytes)
    }
}

#[async_trait]
impl Blobs for Tiered {
    /// Returns when it has arrived, which nobody who pulls waits for.
    async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = self.one.put(bytes).await;
        let arrived = async {
            while self.other.store.fleets_size(&digest).await.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let deadline = Duration::from_secs(30);
        tokio::time::timeout(deadline, arrived).await.unwrap();
        digest
    }

    async fn size(&self, digest: &Digest) -> Option<u64> {
        assert_eq!(self.other.store.disk.stat(digest), None);
        self.other.store.fleets_size(digest).await
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Option<Vec<u8>> {
        let there = self.other.shared.as_ref().unwrap();
        let (here, there) = (
            self.one.read(digest, range.clone()).await,
            there.read(digest, range).await,
        );
        assert!(here == there);
        there
    }
}

#[async_trait]
impl Blobs for Local {
    async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let disk = &self.store.disk;
        let (spool, _) = disk.spool(&digest).await.unwrap();
        spool.note_total(bytes.len() as u64);
        spool.write(0, &[Bytes::copy_from_slice(bytes)]).unwrap();
        spool.flush().unwrap();
        let mut verifier = Verifier::new(&digest);
        verifier.advance(&spool, bytes.len() as u64).unwrap();
        disk.commit(spool.verify(&verifier).unwrap()).await.unwrap();
        digest
    }

    async fn size(&self, digest: &Digest) -> Option<u64> {
        self.store.disk.stat(digest)
    }

    async fn read(&self, digest: &Digest, range: Range<u64>) -> Option<Vec<u8>> {
        let found = self.store.disk.open_blob(digest).await.unwrap()?;
        let part = found.slice(range);
        let mut bytes = vec![0; usize::try_from(part.len()).unwrap()];
        let at = part.range().start;
        part.file().read_exact_at(&mut bytes, at).unwrap();
        Some(bytes)
    }
}

fn file(bytes: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    Arc::new(file)
}

fn blob() -> Digest {
    Digest::sha256(&random(8))
}

fn manifest(image: &Manifest) -> oci::Manifest {
    let bytes = Bytes::from(image.bytes.clone());
    oci::Manifest::parse(bytes, Some(&image.media_type), Algorithm::Sha256).unwrap()
}

fn repository(text: &str) -> Repository {
    let (registry, name) = text.split_once('/').unwrap();
    Repository::new(registry.parse().unwrap(), name.parse().unwrap()).unwrap()
}

// === blobs ===

async fn what_is_absent_is_no_error(store: impl Blobs) {
    let digest = blob();
    assert_eq!(store.size(&digest).await, None);
    assert_eq!(store.read(&digest, 0..5).await, None);
}

async fn a_blob_is_read_whole_and_in_ranges(store: impl Blobs) {
    in_ranges(&store, &random(100 * KIB)).await;
}

async fn a_large_blob_is_read_whole_and_in_ranges(store: impl Blobs) {
    in_ranges(&store, &random(LARGE)).await;
}

async fn in_ranges(store: &impl Blobs, bytes: &[u8]) {
    let digest = store.put(bytes).await;
    let size = bytes.len() as u64;
    assert_eq!(store.size(&digest).await, Some(size));
    for range in [
        0..size,
        0..1,
        5..500,
        size / 2..size,
        size - 1..size,
        size - 3..size + 100,
    ] {
        let read = store.read(&digest, range.clone()).await.unwrap();
        let end = usize::try_from(range.end.min(size)).unwrap();
        let start = usize::try_from(range.start).unwrap();
        assert!(read == bytes[start..end], "{range:?}");
    }
    assert_eq!(store.read(&digest, size..size + 1).await, Some(Vec::new()));
}

async fn the_same_blob_twice_is_one(store: impl Blobs) {
    for bytes in [random(KIB), random(LARGE)] {
        let digest = store.put(&bytes).await;
        assert_eq!(store.put(&bytes).await, digest);
        let read = store.read(&digest, 0..bytes.len() as u64).await.unwrap();
        assert!(read == bytes);
    }
}

// === objects ===

async fn the_same_blob_at_the_same_time_is_one(store: Arc<Shared>) {
    for size in [KIB, LARGE] {
        let bytes = Arc::new(random(size));
        let mut tasks = JoinSet::new();
        for _ in 0..3 {
            let (store, bytes) = (Arc::clone(&store), Arc::clone(&bytes));
            tasks.spawn(async move { store.put(&bytes).await });
        }
        let digest = Digest::sha256(&bytes);
        for put in tasks.join_all().await {
            assert_eq!(put, digest);
        }
        let read = store.read(&digest, 0..size as u64).await.unwrap();
        assert!(read == *bytes);
    }
}

async fn a_blob_is_listed_until_it_is_deleted(store: Arc<Shared>) {
    let mut blobs = Vec::new();
    for size in [1, 10, 100] {
        let bytes = random(size);
        blobs.push((store.put(&bytes).await, size as u64));
    }
    let list = async || {
        let listed: Vec<_> = store.list(Tree::Blobs).try_collect().await.unwrap();
        let mut listed: Vec<_> = listed
            .iter()
            .map(|l| (l.digest().unwrap(), l.size))
            .collect();
        listed.sort();
        listed
    };
    blobs.sort();
    assert_eq!(list().await, blobs);
    let (gone, _) = blobs.remove(1);
    // Who comes second finds that it is done.
    for _ in 0..2 {
        store.delete_blob(&gone).await.unwrap();
        assert_eq!(store.stat(&gone).await.unwrap(), None);
        assert_eq!(list().await, blobs);
    }
}

async fn an_upload_that_is_cut_off_leaves_nothing(store: Arc<Shared>) {
    for milliseconds in [0, 1, 5, 20, 60] {
        let bytes = random(LARGE);
        let (digest, file) = (Digest::sha256(&bytes), file(&bytes));
        let put = store.put_blob(&digest, &file, bytes.len() as u64);
        let limit = Duration::from_millis(milliseconds);
        let ended = tokio::time::timeout(limit, put).await.is_ok();
        // The last request may be on its way when nobody waits for its answer any more.
        match store.read(&digest, 0..u64::MAX / 2).await {
            Some(read) => assert!(read == bytes, "cut off at {limit:?}"),
            None => assert!(!ended),
        }
        let whole: Vec<_> = store.list(Tree::Blobs).try_collect().await.unwrap();
        assert!(whole.iter().all(|listed| listed.size == bytes.len() as u64));
        // And it is no worse for who comes next.
        store.put(&bytes).await;
        assert_eq!(store.stat(&digest).await.unwrap(), Some(bytes.len() as u64));
    }
}

async fn an_upload_whose_file_is_short_leaves_nothing(store: Arc<Shared>) {
    let bytes = random(LARGE);
    let digest = Digest::sha256(&bytes);
    let short = file(&bytes[..LARGE / 2]);
    let error = store.put_blob(&digest, &short, LARGE as u64).await;
    error.unwrap_err();
    assert_eq!(store.stat(&digest).await.unwrap(), None);
    assert!(store.is_up(), "the file was wrong, not the store");
}

async fn what_is_set_aside_is_not_read(store: Arc<Shared>) {
    let digest = store.put(&random(KIB)).await;
    store.quarantine(&digest).await.unwrap();
    assert_eq!(store.stat(&digest).await.unwrap(), None);
    assert!(store.read(&digest, 0..5).await.is_none());
    let aside: Vec<_> = store.list(Tree::Quarantine).try_collect().await.unwrap();
    assert_eq!(aside.len(), 1);
    assert!(aside[0].name().starts_with(&digest.hex()));
    // What is not there any more is set aside already.
    store.quarantine(&digest).await.unwrap();
}

async fn an_object_is_made_once(store: Arc<Shared>) {
    let digest = blob();
    let name = Name::Claim(&digest);
    assert!(store.get(name).await.unwrap().is_none());
    let made = store.create(name, "first".into()).await.unwrap();
    assert!(store.create(name, "second".into()).await.unwrap().is_none());
    let found = store.get(name).await.unwrap().unwrap();
    assert_eq!(found.bytes, "first");
    assert_eq!(Some(found.version), made);
    // Of many at once, one.
    let digest = blob();
    let mut tasks = JoinSet::new();
    for n in 0..16 {
        let store = Arc::clone(&store);
        let made = async move {
            store
                .create(Name::Claim(&digest), n.to_string().into())
                .await
        };
        tasks.spawn(async move { made.await.unwrap().is_some() });
    }
    let made = tasks.join_all().await;
    assert_eq!(made.iter().filter(|made| **made).count(), 1);
}

async fn an_object_is_replaced_only_as_it_was_read(store: Arc<Shared>) {
    let digest = blob();
    let name = Name::Claim(&digest);
    let first = store.create(name, "1".into()).await.unwrap().unwrap();
    let second = store
        .replace(name, &first, "2".into())
        .await
        .unwrap()
        .unwrap();
    assert_ne!(first, second);
    assert_eq!(store.replace(name, &first, "x".into()).await.unwrap(), None);
    assert_eq!(store.get(name).await.unwrap().unwrap().bytes, "2");
    assert_eq!(store.get(name).await.unwrap().unwrap().version, second);
    store.overwrite(name, "3".into()).await.unwrap();
    assert_eq!(
        store.replace(name, &second, "x".into()).await.unwrap(),
        None
    );
    let third = store.get(name).await.unwrap().unwrap().version;
    store.delete(name).await.unwrap();
    assert_eq!(store.replace(name, &third, "x".into()).await.unwrap(), None);
    assert!(store.get(name).await.unwrap().is_none());
}

async fn changes_by_many_at_once_are_all_there(store: Arc<Shared>) {
    const TASKS: u32 = 16;
    let at = Arc::new((
        repository("registry.example/a/b"),
        "v1".parse::<Tag>().unwrap(),
    ));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (store, at) = (Arc::clone(&store), Arc::clone(&at));
        tasks.spawn(async move {
            let add = |before: Option<&Bytes>| {
                let mut all: BTreeSet<u32> = match before {
                    Some(bytes) => serde_json::from_slice(bytes).unwrap(),
                    None => BTreeSet::new(),
                };
                // What is there already needs no writing.
                let new = all.insert(task);
                new.then(|| serde_json::to_vec(&all).unwrap().into())
            };
            store.update(Name::Tag(&at.0, &at.1), add).await.unwrap();
            let kept = store.update(Name::Tag(&at.0, &at.1), add).await.unwrap();
            let kept: BTreeSet<u32> = serde_json::from_slice(&kept.unwrap()).unwrap();
            assert!(kept.contains(&task));
        });
    }
    tasks.join_all().await;
    let found = store.get(Name::Tag(&at.0, &at.1)).await.unwrap().unwrap();
    let found: BTreeSet<u32> = serde_json::from_slice(&found.bytes).unwrap();
    assert_eq!(found, (0..TASKS).collect());
}

async fn an_object_is_deleted_once_or_twice(store: Arc<Shared>) {
    let digest = blob();
    let name = Name::Claim(&digest);
    store.delete(name).await.unwrap();
    store.create(name, "1".into()).await.unwrap();
    store.delete(name).await.unwrap();
    store.delete(name).await.unwrap();
    assert!(store.get(name).await.unwrap().is_none());
    assert!(store.create(name, "2".into()).await.unwrap().is_some());
}

async fn every_name_is_listed_in_its_tree(store: Arc<Shared>) {
    let digest = blob();
    let repository = repository("registry.example:5000/a/b_c/d-e");
    let tag: Tag = "v1.0-_x".parse().unwrap();
    let names = [
        (Name::Tag(&repository, &tag), Tree::Repositories, "_tags"),
        (
            Name::Link(&repository, &digest),
            Tree::Repositories,
            "_links",
        ),
        (Name::Led(&repository, &digest), Tree::Repositories, "_led"),
        (Name::Claim(&digest), Tree::Claims, "claims"),
        (Name::Pin("ab"), Tree::Pins, "pins"),
        (Name::Used("2026-01-01-a"), Tree::Used, "used"),
    ];
    for (name, tree, directory) in names {
        assert!(store.create(name, Bytes::new()).await.unwrap().is_some());
        let listed: Vec<_> = store.list(tree).try_collect().await.unwrap();
        let found: Vec<_> = listed
            .iter()
            .filter(|l| l.directory() == directory)
            .collect();
        assert_eq!(found.len(), 1, "{name:?}: {listed:?}");
        let read = store.get_listed(found[0]).await.unwrap().unwrap();
        assert_eq!(read.version, found[0].version, "{name:?}");
        store.delete_listed(found[0]).await.unwrap();
        assert!(store.get(name).await.unwrap().is_none(), "{name:?}");
    }
}

/// To whoever prunes, everything here is older than the window, but for what a tag says.
async fn what_nobody_used_is_pruned(store: Arc<Shared>) {
    let window = jiff::Timestamp::now().as_second() + 1000;
    let repository = repository("registry.example/a");
    let base = store.put(&random(LARGE)).await;
    let mut images = Vec::new();
    for tag in ["kept", "pinned", "gone"] {
        let own = store.put(&random(KIB)).await;
        let manifest = Manifest::referring_to(&[(base, LARGE), (own, KIB)]);
        let image = store.put(&manifest.bytes).await;
        let seen = if tag == "kept" { window + 1 } else { 0 };
        let kind = MediaType::parse(&manifest.media_type).unwrap();
        let entry = TagEntry::new(image, kind, manifest.bytes.len() as u64, seen);
        let record = json!({ "variants": { "any": [entry] }, "checked": seen });
        let tag: Tag = tag.parse().unwrap();
        for (name, bytes) in [
            (Name::Tag(&repository, &tag), record.to_string()),
            (Name::Link(&repository, &own), "{}".to_owned()),
            (Name::Led(&repository, &own), "{}".to_owned()),
        ] {
            store.overwrite(name, bytes.into()).await.unwrap();
        }
        images.push((tag, image, own));
    }
    let (_, image, own) = &images[1];
    let pin = json!({ "image": "x", "closure": [{ "digest": image, "size": 9 }, own, base] });
    let pin = pin.to_string().into();
    store.overwrite(Name::Pin("ab"), pin).await.unwrap();

    let mut would = Vec::new();
    let tell = |doomed: &prune::Doomed| would.push(doomed.name.clone());
    let dry = prune::prune(&store, window, true, tell).await.unwrap();
    let mut gone = Vec::new();
    let tell = |doomed: &prune::Doomed| gone.push(doomed.name.clone());
    let pruned = prune::prune(&store, window, false, tell).await.unwrap();
    would.sort();
    gone.sort();
    assert_eq!((dry, would), (pruned, gone));
    assert_eq!((pruned.objects, pruned.kept), (5, 5));
    assert!(store.stat(&base).await.unwrap().is_some());
    for (tag, image, own) in &images {
        let stays = tag.as_str() != "gone";
        for digest in [image, own] {
            assert_eq!(store.stat(digest).await.unwrap().is_some(), stays, "{tag}");
        }
        for name in [Name::Tag(&repository, tag), Name::Link(&repository, own)] {
            assert_eq!(store.get(name).await.unwrap().is_some(), stays, "{tag}");
        }
    }
}

// === links, what led where, tags ===

async fn a_link_is_remembered(records: impl Records) {
    let (one, other) = (
        repository("registry.example/a"),
        repository("registry.example/b"),
    );
    let digest = blob();
    let kind = MediaType::parse("application/vnd.oci.image.index.v1+json");
    assert!(records.store().link(&one, &digest).await.is_none());
    records.store().add_link(&one, &digest, kind.as_ref()).await;
    let later = records.later().await;
    let found = later.store.link(&one, &digest).await.unwrap();
    assert_eq!(found.media_type, kind);
    assert!(later.store.link(&other, &digest).await.is_none());
}

async fn what_led_to_a_digest_is_remembered(records: impl Records) {
    let repository = repository("registry.example/a");
    let tag: Tag = "v1".parse().unwrap();
    let layer = blob();
    let image = manifest(&Manifest::referring_to(&[(layer, 8)]));
    let at = Some((&tag, Variant::Any));
    records
        .store()
        .add_manifest(&repository, at, &image, Seen::Soon)
        .await;
    let later = records.later().await;
    let led = async |by: Option<&Reference>, to: &Digest| {
        let allowed = |reference: &Reference| by == Some(reference);
        later.store.is_led(&repository, to, allowed).await
    };
    let by_tag = Reference::Tag(tag.clone());
    let by_digest = Reference::Digest(*image.digest());
    assert!(led(Some(&by_tag), image.digest()).await);
    assert!(led(Some(&by_digest), &layer).await);
    assert!(led(Some(&by_tag), &layer).await, "by way of the manifest");
    assert!(!led(None, &layer).await);
    assert!(!led(Some(&by_tag), &blob()).await);
}

async fn a_tag_is_remembered_with_what_it_was(records: impl Records) {
    let repository = repository("registry.example/a");
    let tag: Tag = "v1".parse().unwrap();
    let kind = MediaType::parse("application/vnd.oci.image.index.v1+json").unwrap();
    let digests = [(); 2].map(|()| blob());
    let store = records.store();
    for (digest, seen) in digests.iter().zip([100, 200]) {
        let entry = TagEntry::new(*digest, kind.clone(), 9, seen);
        let tags = &store.tags;
        tags.record(&repository, &tag, Variant::Any, entry).await;
    }
    let [_, newest] = &digests;
    store
        .confirm_tag(&repository, &tag, Variant::Any, newest)
        .await;
    let later = records.later().await;
    let record = later.tag(&repository, &tag).await.unwrap();
    let entries = record.entries(Variant::Any).iter();
    let found: Vec<_> = entries
        .map(|entry| (entry.digest, entry.first_seen))
        .collect();
    assert_eq!(found, [(digests[0], 100), (digests[1], 200)]);
    let current = record.current(Variant::Any).unwrap();
    assert_eq!(current.digest, *newest);
    let unknown: Tag = "v2".parse().unwrap();
    assert!(later.tag(&repository, &unknown).await.is_none());
}

async fn a_link_is_there_until_it_is_taken_away(local: Local) {
    let repository = repository("registry.example/a");
    let digest = blob();
    local.store.links.add_link(&repository, &digest, None).await;
    let local = local.again().await;
    assert!(local.store.link(&repository, &digest).await.is_some());
    local.store.links.remove_link(&repository, &digest).await;
    let local = local.again().await;
    assert!(local.store.link(&repository, &digest).await.is_none());
}

async fn a_tag_has_a_history(local: Local) {
    let repository = repository("registry.example/a");
    let tag: Tag = "v1".parse().unwrap();
    let kind = MediaType::parse("application/vnd.oci.image.index.v1+json").unwrap();
    let entry = |seed: &[u8], seen| TagEntry::new(Digest::sha256(seed), kind.clone(), 9, seen);
    assert!(local.store.tags.get(&repository, &tag).await.is_none());
    for (seed, seen) in [(b"1", 100), (b"2", 200), (b"1", 300)] {
        let entry = entry(seed, seen);
        local
            .store
            .tags
            .record(&repository, &tag, Variant::Any, entry)
            .await;
    }
    let local = local.again().await;
    let record = local.store.tags.get(&repository, &tag).await.unwrap();
    let current = record.current(Variant::Any).unwrap();
    assert_eq!(current.digest, Digest::sha256(b"1"));
    assert_eq!((current.first_seen, current.last_seen), (100, 300));
    assert_eq!(record.entries(Variant::Any).len(), 2);
    assert_eq!(local.store.tags.tags(&repository).await.unwrap(), [tag]);
}
