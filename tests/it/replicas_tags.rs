//! Replicas on one shared store (Azurite): what one of them has learnt about tags, links and
//! manifests, all of them know; what was verified while the store was away arrives when it is back.

use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use crate::support::client::Client;
use crate::support::image::{Image, Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::{Azurite, Container, azurite};
use crate::support::upstream::Upstream;
use crate::support::{MIB, PATIENCE, at};

const TAG: &str = "demo/app/manifests/1";

/// Only `demo/app:1` is allowed.
const ONE_TAG: &str = r#"
    [[policy.rules]]
    id = "one"
    images = ["registry.example/demo/app:1"]
    effect = "allow"
    "#;

/// Replicas of one fleet.
struct Fleet {
    setup: Setup,
    container: Container,
}

impl Fleet {
    fn new(upstream: &Upstream, azurite: &Azurite) -> Self {
        let name = azurite.fresh_container();
        Fleet {
            setup: Setup::new(upstream).shared(azurite, &name),
            container: azurite.container(&name),
        }
    }

    fn with(mut self, change: impl FnOnce(Setup) -> Setup) -> Self {
        self.setup = change(self.setup);
        self
    }

    fn start(&self) -> Proxy {
        self.setup.clone().start()
    }

    /// Waits until names with all of these in them are there.
    fn wait_for(&self, fragments: &[String]) {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let names = self.container.names("");
            let missing = fragments
                .iter()
                .find(|fragment| !names.iter().any(|name| name.contains(*fragment)));
            let Some(missing) = missing else { return };
            assert!(Instant::now() < deadline, "{missing} is not in {names:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// An index with one image, as `demo/app:1`.
fn index(upstream: &Upstream) -> (Manifest, Image) {
    let image = Image::with_layers(&[100_000]);
    upstream.image("demo/app", "image", &image);
    let index = Manifest::index_of(&[&image.manifest]);
    upstream.manifest("demo/app", "1", &index);
    (index, image)
}

fn manifest_path(digest: &Digest) -> String {
    at(&format!("demo/app/manifests/{digest}"))
}

fn blob_path(digest: &Digest) -> String {
    at(&format!("demo/app/blobs/{digest}"))
}

#[test]
fn a_tag_on_one_replica_allows_its_digests_on_another() {
    let upstream = Upstream::start();
    let fleet = Fleet::new(&upstream, azurite()).with(|setup| setup.rules(ONE_TAG));
    let (a, b) = (fleet.start(), fleet.start());
    let (index, image) = index(&upstream);
    let (list, child) = (index.digest(), image.manifest.digest());

    // Nobody has led there yet.
    b.get(&manifest_path(&list)).assert_error(403, "DENIED");
    // As containerd does behind a load balancer: each request somewhere else, at once.
    a.head(&at(TAG)).assert(200);
    b.get(&manifest_path(&list)).assert_whole(&index.bytes);
    b.get(&manifest_path(&child))
        .assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        a.get(&blob_path(&Digest::sha256(blob))).assert_whole(blob);
    }
    assert_eq!(upstream.hits("demo/app/manifests/1"), 1);
    assert_eq!(upstream.hits(list), 0, "the index came with the tag");
    assert_eq!(upstream.hits(child), 1);
    // What no allowed tag leads to stays where it is.
    let other = Manifest::unique();
    upstream.manifest("demo/app", "2", &other);
    a.get(&manifest_path(&other.digest()))
        .assert_error(403, "DENIED");
}

#[test]
fn a_fresh_replica_answers_what_the_fleet_has_without_the_upstream() {
    let mut upstream = Upstream::start();
    let fleet = Fleet::new(&upstream, azurite());
    let (index, image) = index(&upstream);
    let a = fleet.start();
    a.get(&at(TAG)).assert_whole(&index.bytes);
    let child = image.manifest.digest();
    a.get(&manifest_path(&child))
        .assert_whole(&image.manifest.bytes);
    let mut wanted = vec![child.hex(), format!("_links/{}", child.hex())];
    for blob in image.blobs() {
        let digest = Digest::sha256(blob);
        a.get(&blob_path(&digest)).assert_whole(blob);
        wanted.push(format!("/{}/{}", &digest.hex()[..2], digest.hex()));
        wanted.push(format!("_links/{}", digest.hex()));
    }
    fleet.wait_for(&wanted);
    fleet.container.check();

    // Fresh enough: the upstream is not asked.
    let b = fleet.start();
    let asked = upstream.requests().len();
    let answer = b.get(&at(TAG)).assert_whole(&index.bytes);
    assert_eq!(answer.header("cache-status"), Some("portcullis; hit"));
    assert_eq!(upstream.requests().len(), asked);

    upstream.stop();
    let fleet = fleet.with(|setup| setup.section("tags", "fresh_for = \"0s\""));
    let c = fleet.start();
    let answer = c.get(&at(TAG)).assert_whole(&index.bytes);
    let stale = "portcullis; hit; detail=stale";
    assert_eq!(answer.header("cache-status"), Some(stale));
    c.get(&manifest_path(&index.digest()))
        .assert_whole(&index.bytes);
    c.get(&manifest_path(&child))
        .assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        let head = c.head(&blob_path(&Digest::sha256(blob))).assert(200);
        let length = blob.len().to_string();
        assert_eq!(head.header("content-length"), Some(length.as_str()));
    }
}

#[test]
fn one_replica_revalidates_a_tag_for_all() {
    let upstream = Upstream::start();
    let fleet = Fleet::new(&upstream, azurite());
    let (a, b) = (fleet.start(), fleet.start());
    let (first, second) = (Manifest::unique(), Manifest::unique());
    upstream.manifest("demo/app", "1", &first);
    a.get(&at(TAG)).assert_whole(&first.bytes);
    b.get(&at(TAG)).assert_whole(&first.bytes);
    assert_eq!(upstream.hits(TAG), 1);

    // A replica that believes nothing sees that it has moved; the others believe it.
    upstream.manifest("demo/app", "1", &second);
    let asking = |setup: Setup| setup.section("tags", "fresh_for = \"0s\"");
    let c = fleet.setup.clone();
    let c = asking(c).start();
    c.get(&at(TAG)).assert_whole(&second.bytes);
    let d = fleet.start();
    d.get(&at(TAG)).assert_whole(&second.bytes);
    let names = fleet.container.names("/_tags/");
    let record = fleet.container.read(&names[0]).unwrap();
    let record = String::from_utf8(record).unwrap();
    assert!(record.contains(&first.digest().hex()), "{record}");
    assert!(record.contains(&second.digest().hex()), "{record}");
}

#[test]
fn what_was_verified_while_the_store_was_away_arrives_later() {
    let upstream = Upstream::start();
    let mut azurite = Azurite::own();
    let fleet = Fleet::new(&upstream, &azurite);
    let mut a = fleet.start();
    let warm = upstream.blob("demo/app", random(MIB));
    a.get(&blob_path(&warm)).assert(200);
    fleet.wait_for(&[format!("/{}", warm.hex())]);
    azurite.stop();

    let (index, image) = index(&upstream);
    let started = Instant::now();
    a.get(&blob_path(&warm)).assert(200);
    a.get(&at(TAG)).assert_whole(&index.bytes);
    let child = image.manifest.digest();
    a.get(&manifest_path(&child))
        .assert_whole(&image.manifest.bytes);
    let mut wanted = vec![
        format!("_links/{}", child.hex()),
        format!("_led/{}", child.hex()),
        "_tags/1.json".to_owned(),
    ];
    for blob in image.blobs().chain([&index.bytes, &image.manifest.bytes]) {
        let digest = Digest::sha256(blob);
        if image.blobs().any(|file| file == blob) {
            a.get(&blob_path(&digest)).assert_whole(blob);
        }
        a.wait_until_stored(&digest);
        wanted.push(format!("/{}/{}", &digest.hex()[..2], digest.hex()));
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The journal knows, once links and tags are on disk.
    a.terminate();
    let journal = a.store().join("v1/uploads");
    let text = std::fs::read_to_string(&journal).unwrap();
    assert!(text.contains("tag registry.example/demo/app 1"), "{text}");
    a.start_again();
    let late = upstream.blob("demo/app", random(MIB));
    a.get(&blob_path(&late)).assert(200);
    a.wait_until_stored(&late);
    a.kill9();
    a.start_again();

    azurite.start();
    wanted.push(format!("/{}/{}", &late.hex()[..2], late.hex()));
    fleet.wait_for(&wanted);
    fleet.container.check();
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(&journal).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "something still waits");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nothing answers, nothing refuses: the worst way to be away.
#[test]
fn a_store_that_swallows_requests_costs_seconds_and_only_once() {
    let upstream = Upstream::start();
    let azurite = Azurite::own();
    let fleet = Fleet::new(&upstream, &azurite);
    let a = fleet.start();
    let tags: Vec<_> = (0..6)
        .map(|number| {
            let manifest = Manifest::unique();
            let repository = format!("demo/app{number}");
            upstream.manifest(&repository, "1", &manifest);
            (at(&format!("{repository}/manifests/1")), manifest)
        })
        .collect();
    azurite.suspend();
    let started = Instant::now();
    for (path, manifest) in &tags {
        a.get(path).assert_whole(&manifest.bytes);
    }
    // Each alone would wait 3 s for every look there.
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    for (path, manifest) in &tags {
        a.get(path).assert_whole(&manifest.bytes);
    }
    azurite.resume();
    let digests = tags.iter().map(|(_, manifest)| manifest.digest().hex());
    fleet.wait_for(&digests.collect::<Vec<_>>());
    fleet.container.check();
}

#[test]
fn clients_in_the_networks_are_sent_to_the_store() {
    let upstream = Upstream::start();
    let fleet = Fleet::new(&upstream, azurite());
    let plain = fleet.start();
    let bytes = random(MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let path = blob_path(&digest);
    plain.get(&path).assert_whole(&bytes);
    fleet.wait_for(&[format!("/{}/{}", &digest.hex()[..2], digest.hex())]);
    plain.get(&path).assert_whole(&bytes);

    let networks = |setup: Setup, networks: &str| {
        setup.section("store.shared", &format!("redirect = [\"{networks}\"]"))
    };
    let elsewhere = networks(fleet.setup.clone(), "10.0.0.0/8").start();
    elsewhere.get(&path).assert_whole(&bytes);
    let redirecting = networks(fleet.setup.clone(), "127.0.0.0/8")
        .rules(&format!("{ONE_TAG}\n{ALL_BUT_SECRET}"))
        .start();
    let answer = redirecting.get(&path).assert(307);
    let location = answer.header("location").unwrap().to_owned();
    assert!(location.contains("sig="), "{location}");
    assert_eq!(
        answer.header("cache-status"),
        Some("portcullis; hit; detail=redirect")
    );
    let (origin, rest) = location.split_at(location.find("/devstoreaccount1").unwrap());
    let address = origin.strip_prefix("http://").unwrap().parse().unwrap();
    let store = Client::new(address);
    assert_eq!(store.get(rest).assert(200).body, bytes);
    redirecting.range(&path, "bytes=10-19").assert(307);
    let part = store.send("GET", rest, &[("x-ms-range", "bytes=10-19")]);
    assert_eq!(part.assert(206).body, bytes[10..20]);
    // Everything else is answered here.
    let length = bytes.len().to_string();
    let head = redirecting.head(&path).assert(200);
    assert_eq!(head.header("content-length"), Some(length.as_str()));
    let cold = random(1000);
    let unknown = upstream.blob("demo/app", cold.clone());
    redirecting.get(&blob_path(&unknown)).assert_whole(&cold);
    let denied = at(&format!("demo/secret/blobs/{digest}"));
    redirecting.get(&denied).assert_error(403, "DENIED");
    let stranger = at(&format!("demo/stranger/blobs/{digest}"));
    redirecting.get(&stranger).assert_error(404, "BLOB_UNKNOWN");
    let logged = redirecting.logs().text();
    assert!(!logged.contains("sig="), "{logged}");
}

const ALL_BUT_SECRET: &str = r#"
    [[policy.rules]]
    id = "secret"
    images = ["registry.example/demo/secret"]
    effect = "deny"
    [[policy.rules]]
    id = "rest"
    images = ["registry.example/**"]
    effect = "allow"
    "#;
