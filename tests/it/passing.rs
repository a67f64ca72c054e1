//! Layers that the local disk has no room for: they slide by, and the shared store has them after
//! that, without any client waiting for it.

use portcullis::oci::Digest;

use crate::fleet::Fleet;
use crate::support::image::random;
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::{Azurite, Container, azurite};
use crate::support::upstream::{Fault, Upstream};
use crate::support::{MIB, at, eventually};

const SMALL: &str = "max_size = \"16MiB\"";
/// With the parts that are under way this fits into a slide's window, so that any store keeps up.
const SIZE: usize = 80 * MIB;
/// And this does not.
const LARGER: usize = 120 * MIB;
/// Bytes a second that a store takes, too.
const RATE: u64 = 25 << 20;

fn layer(upstream: &Upstream, size: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(size);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

/// One proxy that nobody could follow.
fn alone(upstream: &Upstream, azurite: &Azurite) -> (Proxy, Container) {
    let name = azurite.fresh_container();
    let setup = Setup::new(upstream).section("store", SMALL);
    let proxy = setup.shared(azurite, &name).start();
    (proxy, azurite.container(&name))
}

/// But for what was on its way when the size became known.
#[track_caller]
fn assert_fetched_once(upstream: &Upstream, digest: &Digest) {
    let (sent, size) = (upstream.sent(digest), SIZE as u64);
    assert!(sent <= size + size / 100, "{sent} of {size}");
}

fn is_kept(container: &Container, digest: &Digest) -> bool {
    container.stored().contains(digest)
}

#[test]
fn a_layer_larger_than_any_disk_is_fetched_once_for_all_replicas() {
    let mut upstream = Upstream::start();
    upstream.rate(RATE);
    let fleet = Fleet::start_with(SMALL, 2, &upstream, azurite());
    let (bytes, digest, path) = layer(&upstream, SIZE);
    fleet.replicas[0].get(&path).assert_whole(&bytes);
    let container = fleet.container();
    eventually("it is kept", || is_kept(&container, &digest));
    fleet.wait_until_no_claim_is_left();
    container.check();
    upstream.stop();
    for replica in &fleet.replicas {
        replica.get(&path).assert_whole(&bytes);
        assert_eq!(replica.stored(), [], "no disk has room for it");
    }
    assert_fetched_once(&upstream, &digest);
}

#[test]
fn it_is_kept_where_nobody_could_follow() {
    let upstream = Upstream::start();
    upstream.rate(RATE);
    let (proxy, container) = alone(&upstream, azurite());
    let (bytes, digest, path) = layer(&upstream, SIZE);
    proxy.get(&path).assert_whole(&bytes);
    eventually("it is kept", || is_kept(&container, &digest));
    proxy.get(&path).assert_whole(&bytes);
    assert_fetched_once(&upstream, &digest);
}

#[test]
fn no_pull_waits_for_a_store_that_does_not_take_it() {
    let azurite = Azurite::own();
    let upstream = Upstream::start();
    let (proxy, container) = alone(&upstream, &azurite);
    let (bytes, digest, path) = layer(&upstream, LARGER);
    let gate = upstream.hold(digest, 20 * MIB as u64);
    std::thread::scope(|scope| {
        let pull = scope.spawn(|| proxy.get(&path));
        gate.reached();
        azurite.suspend();
        gate.open();
        pull.join().unwrap().assert_whole(&bytes);
    });
    azurite.resume();
    proxy.logs().wait_for_text("not kept in the shared store");
    assert!(!is_kept(&container, &digest));
    // The next pull tries again.
    upstream.behave();
    upstream.rate(RATE);
    eventually("the store is used again", || {
        proxy.get(&path).assert_whole(&bytes);
        is_kept(&container, &digest)
    });
}

#[test]
fn what_does_not_hash_is_not_kept() {
    let upstream = Upstream::start();
    upstream.rate(RATE);
    let (proxy, container) = alone(&upstream, azurite());
    let (bytes, digest, path) = layer(&upstream, SIZE);
    upstream.once(digest, Fault::FlipBit(50 * MIB as u64));
    let broken = proxy.open(&path).finish();
    assert!(broken.body.len() < bytes.len(), "its end went out");
    proxy.logs().wait_for_text("not kept in the shared store");
    assert_eq!(container.stored(), []);
}
