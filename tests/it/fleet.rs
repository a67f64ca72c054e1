//! Several replicas on one store, beside a prune, without an upstream, and in a random life of
//! pulls, purges, kills and outages that ends well.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use portcullis::store::prune;

use crate::contract::open;
use crate::support::canary::secret;
use crate::support::image::{Image, Manifest};
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::{Azurite, Container, azurite, block_on};
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, PATIENCE, at};

/// Replicas in front of one upstream, over one container.
pub struct Fleet<'a> {
    azurite: &'a Azurite,
    name: String,
    /// More lines of `[store]`.
    store: &'static str,
    pub replicas: Vec<Proxy>,
}

impl<'a> Fleet<'a> {
    fn start(replicas: usize, upstream: &Upstream, azurite: &'a Azurite) -> Self {
        Fleet::start_with("", replicas, upstream, azurite)
    }

    pub fn start_with(
        store: &'static str,
        replicas: usize,
        upstream: &Upstream,
        azurite: &'a Azurite,
    ) -> Self {
        let mut fleet = Fleet {
            azurite,
            name: azurite.fresh_container(),
            store,
            replicas: Vec::new(),
        };
        for _ in 0..replicas {
            fleet.add(upstream);
        }
        fleet
    }

    /// One more, with an empty disk.
    fn add(&mut self, upstream: &Upstream) -> &Proxy {
        // Others have to know the port before it is bound. Nobody else is likely to get it so soon.
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let peers = format!(
            "advertise = \"http://127.0.0.1:{port}\"\nnetworks = [\"127.0.0.0/8\"]\n\
             secret = \"{}\"",
            secret!("of-the-replicas")
        );
        let setup = Setup::new(upstream)
            .shared(self.azurite, &self.name)
            .listen_on(port)
            .section("store.shared.peers", &peers)
            .section("store", self.store);
        self.replicas.push(setup.start());
        &self.replicas[self.replicas.len() - 1]
    }

    pub fn container(&self) -> Container {
        self.azurite.container(&self.name)
    }

    /// Waits until everything of the images is in the shared store: blobs, tags and links.
    fn wait_until_published(&self, images: &[&Image]) {
        let deadline = Instant::now() + 2 * PATIENCE;
        let container = self.container();
        let mut missing: Vec<Digest> = images.iter().flat_map(|image| digests(image)).collect();
        loop {
            let names = container.names("/v1/");
            let there = |part: &str, digest: &Digest| {
                let end = format!("/{}", digest.hex());
                names
                    .iter()
                    .any(|name| name.contains(part) && name.ends_with(&end))
            };
            missing.retain(|digest| !there("/blobs/", digest) || !there("/_links/", digest));
            if missing.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{missing:?} never arrived: {names:#?}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn wait_until_no_claim_is_left(&self) {
        let deadline = Instant::now() + 2 * PATIENCE;
        while let Some(name) = self.container().names("/v1/claims/").first() {
            assert!(Instant::now() < deadline, "{name} is left behind");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The manifest, the config, the layers.
fn digests(image: &Image) -> Vec<Digest> {
    let blobs = image.blobs().map(|blob| Digest::sha256(blob));
    std::iter::once(image.manifest.digest())
        .chain(blobs)
        .collect()
}

/// As a node does it: the tag, the manifest by its digest, config and layers.
fn pull(proxy: &Proxy, tag: &str, image: &Image) {
    let found = proxy
        .head(&at(&format!("demo/app/manifests/{tag}")))
        .assert(200);
    let digest = image.manifest.digest().to_string();
    assert_eq!(found.header("docker-content-digest"), Some(&*digest));
    pull_by_digest(proxy, image);
}

fn pull_by_digest(proxy: &Proxy, image: &Image) {
    let digest = image.manifest.digest();
    let manifest = proxy.get(&at(&format!("demo/app/manifests/{digest}")));
    manifest.assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        let path = at(&format!("demo/app/blobs/{}", Digest::sha256(blob)));
        proxy.get(&path).assert_whole(blob);
    }
}

fn image(upstream: &Upstream, tag: &str, layers: &[usize]) -> Image {
    let image = Image::with_layers(layers);
    upstream.image("demo/app", tag, &image);
    image
}

/// Prunes as if everything had been there for long.
fn prune_all(fleet: &Fleet<'_>) -> prune::Pruned {
    let store = open(&fleet.azurite.lines(&fleet.name));
    let window = jiff::Timestamp::now().as_second() + 100_000;
    block_on(prune::prune(&store, window, false, |_| {})).unwrap()
}

#[test]
fn a_pull_beside_a_prune_succeeds() {
    let upstream = Upstream::start();
    let fleet = Fleet::start(2, &upstream, azurite());
    let images: Vec<_> = (0..4)
        .map(|n| {
            (
                n.to_string(),
                image(&upstream, &n.to_string(), &[20 * KIB, 9 * MIB]),
            )
        })
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        for replica in &fleet.replicas {
            let (images, done) = (&images, Arc::clone(&done));
            scope.spawn(move || {
                let mut rounds = 0;
                while rounds < 3 || !done.load(Ordering::SeqCst) {
                    for (tag, image) in images {
                        pull(replica, tag, image);
                    }
                    rounds += 1;
                }
            });
        }
        for _ in 0..5 {
            prune_all(&fleet);
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_pin_on_one_replica_holds_against_every_prune() {
    let upstream = Upstream::start();
    let fleet = Fleet::start(1, &upstream, azurite());
    let image = image(&upstream, "v1", &[KIB, 300 * KIB]);
    let cache = |verb| {
        let arguments = ["cache", verb, "registry.example/demo/app:v1"];
        fleet.replicas[0]
            .run(|setup| setup, &arguments)
            .assert_success();
    };
    cache("pin");
    fleet.wait_until_published(&[&image]);
    prune_all(&fleet);
    let mut expected: Vec<Digest> = digests(&image);
    expected.sort();
    assert_eq!(fleet.container().stored(), expected);
    cache("unpin");
    let pruned = prune_all(&fleet);
    assert_eq!(
        (fleet.container().names("/v1/"), pruned.kept),
        (Vec::new(), 0)
    );
    // Here it still is.
    pull(&fleet.replicas[0], "v1", &image);
}

/// A replica that is asked again would believe what the shared store says, and nothing would be gone.
#[test]
fn what_is_purged_is_not_known_to_the_shared_store_either() {
    let upstream = Upstream::start();
    let fleet = Fleet::start(1, &upstream, azurite());
    let (other, image) = (
        image(&upstream, "v0", &[KIB]),
        image(&upstream, "v1", &[KIB, 300 * KIB]),
    );
    pull(&fleet.replicas[0], "v0", &other);
    pull(&fleet.replicas[0], "v1", &image);
    fleet.wait_until_published(&[&other, &image]);
    let arguments = ["cache", "purge", "registry.example/demo/app:v1"];
    let said = fleet.replicas[0].run(|setup| setup, &arguments);
    let said = said.assert_success().stdout;
    assert!(said.contains("4 blobs"), "{said}");
    let names = fleet.container().names("/v1/repos/");
    assert!(names.iter().any(|name| name.ends_with("/_tags/v0.json")));
    assert!(
        !names.iter().any(|name| name.ends_with("/_tags/v1.json")),
        "{names:?}"
    );
    for digest in digests(&image) {
        let link = format!("/_links/{}", digest.hex());
        assert!(!names.iter().any(|name| name.ends_with(&link)), "{names:?}");
    }
    let asked = upstream.hits("manifests/v1");
    pull(&fleet.replicas[0], "v1", &image);
    assert_eq!(upstream.hits("manifests/v1"), asked + 1);
}

#[test]
fn a_new_replica_with_an_empty_disk_needs_no_upstream() {
    let mut upstream = Upstream::start();
    let mut fleet = Fleet::start(3, &upstream, azurite());
    let image = image(&upstream, "v1", &[KIB, 300 * KIB, 12 * MIB]);
    let index = Manifest::index_of(&[&image.manifest]);
    upstream.manifest("demo/app", "multi", &index);
    for replica in &fleet.replicas {
        replica
            .get(&at("demo/app/manifests/multi"))
            .assert_whole(&index.bytes);
        pull(replica, "v1", &image);
    }
    fleet.wait_until_published(&[&image]);
    for digest in digests(&image) {
        let sent = upstream.sent(format!("/blobs/{digest}"));
        assert!(
            sent <= 12 * MIB as u64 + 64 * KIB as u64,
            "{digest}: {sent}"
        );
    }
    upstream.stop();
    let fourth = fleet.add(&upstream);
    pull(fourth, "v1", &image);
    fourth
        .get(&at("demo/app/manifests/multi"))
        .assert_whole(&index.bytes);
    fleet.wait_until_no_claim_is_left();
    fleet.container().check();
}
