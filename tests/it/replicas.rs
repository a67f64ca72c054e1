//! Replicas that share a store: one of them fetches, the others follow it, and none of them has to
//! live.

use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use rustix::process::Signal;

use crate::support::canary::secret;
use crate::support::client::End;
use crate::support::herd::{Share, stampede};
use crate::support::image::random;
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::{Container, azurite};
use crate::support::upstream::Upstream;
use crate::support::{MIB, PATIENCE, at};

const SECRET: &str = secret!("of-the-replicas");

/// Replicas in front of one upstream, over one container.
struct Fleet<const N: usize> {
    replicas: [Proxy; N],
    container: Container,
}

impl<const N: usize> Fleet<N> {
    fn start(upstream: &Upstream) -> Self {
        Fleet::start_with(upstream, |setup| setup)
    }

    fn start_with(upstream: &Upstream, change: impl Fn(Setup) -> Setup) -> Self {
        let name = azurite().fresh_container();
        let replicas = std::array::from_fn(|_| {
            let setup = Setup::new(upstream).shared(azurite(), &name);
            change(peers(setup)).start()
        });
        Fleet {
            replicas,
            container: azurite().container(&name),
        }
    }

    /// Which replica has the claim of a digest; waits for one. None: the store was too slow for any
    /// of them to make one.
    fn holder(&self, digest: &Digest) -> Option<usize> {
        let began = Instant::now();
        loop {
            let names = self.container.names(&format!("v1/claims/{}", digest.hex()));
            let claim = names.first().and_then(|name| self.container.read(name));
            let claim = String::from_utf8(claim.unwrap_or_default()).unwrap();
            let of = |replica: &Proxy| claim.contains(&replica.address.to_string());
            if let Some(holder) = self.replicas.iter().position(of) {
                return Some(holder);
            }
            if began.elapsed() > PATIENCE / 3 && self.store_was_slow() {
                return None;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "nobody claims {digest}: {claim}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// As many clients of each replica as that, all at once.
    fn pull(
        &self,
        path: &str,
        each: usize,
        bytes: &[u8],
        beside: impl FnOnce(),
    ) -> Vec<Vec<Share>> {
        thread::scope(|scope| {
            let herds: Vec<_> = (self.replicas.iter())
                .map(|replica| scope.spawn(|| stampede(replica.address, path, each, bytes)))
                .collect();
            beside();
            herds.into_iter().map(|herd| herd.join().unwrap()).collect()
        })
    }

    /// Says that it was, where the upstream was asked for more than it would be otherwise.
    fn must_have_been_slow(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.store_was_slow() {
            assert!(Instant::now() < deadline, "the upstream was asked in vain");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the store took longer to answer than a pull waits. On a busy machine Azurite does,
    /// and then replicas rightly ask the upstream beside each other. The log comes a moment later
    /// than the answers.
    fn store_was_slow(&self) -> bool {
        let slow = |replica: &Proxy| replica.logs().text().contains("the shared store is slow");
        self.replicas.iter().any(slow)
    }

    fn wait_until_no_claim_is_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(name) = self.container.names("/v1/claims/").first() {
            assert!(Instant::now() < deadline, "{name} is left behind");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn peers(setup: Setup) -> Setup {
    // Others have to know the port before it is bound. Nobody else is likely to get it so soon.
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let lines = format!(
        "advertise = \"http://127.0.0.1:{port}\"\nnetworks = [\"127.0.0.0/8\"]\n\
         secret = \"{SECRET}\""
    );
    setup.listen_on(port).section("store.shared.peers", &lines)
}

fn blob(upstream: &Upstream, len: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(len);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

fn in_store(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("fleet/v1/blobs/sha256/{}/{hex}", &hex[..2])
}

/// In percent, rounded up.
fn share_of(bytes: &[u8], sent: u64) -> u64 {
    (sent * 100).div_ceil(bytes.len() as u64)
}

fn assert_all(shares: &[Share], bytes: &[u8], whose: &str) {
    for (n, share) in shares.iter().enumerate() {
        let got = (share.status, share.bytes);
        assert_eq!(got, (200, bytes.len() as u64), "client {n} of {whose}");
    }
}

/// Plays `scene` until the store was fast enough for it to show what it is about.
fn with_a_fast_store(scene: impl Fn() -> bool) {
    assert!(
        (0..8).any(|_| scene()),
        "Azurite never answers within 250 ms"
    );
}

#[test]
fn three_replicas_fetch_a_cold_blob_once() {
    with_a_fast_store(three_replicas);
}

fn three_replicas() -> bool {
    let upstream = Upstream::start();
    upstream.rate(50_000_000);
    let fleet = Fleet::<3>::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 200 * MIB);
    let shares = fleet.pull(&path, 10, &bytes, || {}).concat();
    assert_all(&shares, &bytes, "all");
    let slowest = shares.iter().map(|share| share.done).max().unwrap();
    let direct = Duration::from_micros(bytes.len() as u64 / 50);
    eprintln!("slowest of 30 clients: {slowest:?}; one direct connection: {direct:?}");
    let sent = upstream.sent(digest);
    for replica in &fleet.replicas {
        replica.wait_until_stored(&digest);
    }
    fleet.wait_until_no_claim_is_left();
    if fleet.store_was_slow() {
        return false;
    }
    assert_eq!(sent, bytes.len() as u64, "{:?}", upstream.seen(digest));
    true
}

#[test]
fn a_killed_holder_costs_seconds_and_no_pull() {
    with_a_fast_store(a_killed_holder);
}

fn a_killed_holder() -> bool {
    let upstream = Upstream::start();
    // What the holder has and the others have not yet is lost with it. That is a matter of
    // milliseconds, unless thirty clients leave no processor time for the others to follow.
    upstream.rate(6_000_000);
    let mut fleet = Fleet::<3>::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 200 * MIB);
    let mut holder = None;
    let shares = fleet.pull(&path, 10, &bytes, || {
        upstream.wait_until_sent(digest, bytes.len() as u64 / 2);
        holder = fleet.holder(&digest);
        if let Some(holder) = holder {
            fleet.replicas[holder].signal(Signal::KILL);
        }
    });
    let Some(holder) = holder else {
        return false;
    };
    for (at, shares) in shares.iter().enumerate().filter(|(at, _)| *at != holder) {
        assert_all(shares, &bytes, &format!("replica {at}, a survivor"));
    }
    let slowest = shares.concat().iter().map(|share| share.done).max();
    let sent = share_of(&bytes, upstream.sent(digest));
    eprintln!("slowest client: {slowest:?}; {sent} % from the upstream");
    let slow = fleet.store_was_slow();
    assert!(slow || sent <= 105, "{sent} % from the upstream");
    // What the killed one had is on its disk, and it need not ask for the rest.
    fleet.replicas[holder].wait();
    fleet.replicas[holder].start_again();
    fleet.replicas[holder].get(&path).assert_whole(&bytes);
    fleet.wait_until_no_claim_is_left();
    !slow
}

/// It wakes up, finds its claim taken, and follows who has it.
#[test]
fn a_stopped_holder_follows_its_successor() {
    with_a_fast_store(a_stopped_holder);
}

fn a_stopped_holder() -> bool {
    let upstream = Upstream::start();
    let fleet = Fleet::<2>::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, 64 * MIB);
    let gate = upstream.hold(digest, 32 * MIB as u64);
    let mut first = fleet.replicas[0].open(&path);
    assert!(first.take(MIB) == bytes[..MIB]);
    match fleet.holder(&digest) {
        Some(holder) => assert_eq!(holder, 0),
        None => return false,
    }
    let mut second = fleet.replicas[1].open(&path);
    assert!(second.take(MIB) == bytes[..MIB]);
    gate.reached();
    if fleet.store_was_slow() {
        gate.open();
        return false;
    }
    fleet.replicas[0].signal(Signal::STOP);
    let deadline = Instant::now() + PATIENCE;
    while fleet.holder(&digest) == Some(0) {
        assert!(Instant::now() < deadline, "nobody takes over");
        thread::sleep(Duration::from_millis(50));
    }
    fleet.replicas[0].signal(Signal::CONT);
    // At once, also where the store is slow by now.
    fleet.replicas[0].logs().wait_for("fetching the rest from");
    gate.open();
    for rest in [first.finish(), second.finish()] {
        assert!(
            rest.end == End::Complete && rest.body == bytes[MIB..],
            "{rest:?}"
        );
    }
    let sent = share_of(&bytes, upstream.sent(digest));
    // What stood at the gate for the first, up to four windows, has left in part before its
    // connections were found closed; fetching the rest twice would be 200.
    let slow = fleet.store_was_slow();
    assert!(slow || sent < 175, "{sent} % from the upstream");
    fleet.wait_until_no_claim_is_left();
    !slow
}

#[test]
fn what_is_in_the_shared_store_comes_from_there() {
    with_a_fast_store(from_the_shared_store);
}

fn from_the_shared_store() -> bool {
    let upstream = Upstream::start();
    let fleet = Fleet::<1>::start(&upstream);
    for len in [100, 3 * MIB, 20 * MIB] {
        let (bytes, digest, path) = blob(&upstream, len);
        fleet.container.write(&in_store(&digest), bytes.clone());
        fleet.replicas[0].get(&path).assert_whole(&bytes);
        fleet.replicas[0].wait_until_stored(&digest);
        if upstream.sent(digest) != 0 {
            fleet.must_have_been_slow();
        }
        if fleet.store_was_slow() {
            return false;
        }
        let asked = upstream.seen(digest);
        let methods: Vec<_> = asked
            .iter()
            .map(|request| request.method.as_str())
            .collect();
        assert_eq!(methods, ["HEAD"], "only its right to it is asked for");
    }
    fleet.wait_until_no_claim_is_left();
    true
}

#[test]
fn who_has_no_right_to_a_blob_moves_none_of_it() {
    let upstream = Upstream::start();
    let fleet = Fleet::<1>::start(&upstream);
    let bytes = random(3 * MIB);
    let digest = Digest::sha256(&bytes);
    fleet.container.write(&in_store(&digest), bytes);
    let path = at(&format!("demo/app/blobs/{digest}"));
    fleet.replicas[0]
        .get(&path)
        .assert_error(404, "BLOB_UNKNOWN");
    let admin = crate::support::client::Client::new(fleet.replicas[0].admin);
    let metrics = String::from_utf8(admin.get("/metrics").body).unwrap();
    let line = "portcullis_near_received_bytes_total{source=\"Shared\"} 0";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_flipped_byte_in_the_shared_store_is_never_served_complete() {
    with_a_fast_store(a_flipped_byte);
}

fn a_flipped_byte() -> bool {
    let upstream = Upstream::start();
    let fleet = Fleet::<1>::start(&upstream);
    for (len, wrong) in [(40_000, 7), (20 * MIB, 0), (20 * MIB, 20 * MIB - 1)] {
        let (bytes, digest, path) = blob(&upstream, len);
        let mut flipped = bytes.clone();
        flipped[wrong] ^= 1;
        fleet.container.write(&in_store(&digest), flipped);
        let got = fleet.replicas[0].get(&path);
        assert!(
            got.end != End::Complete || got.body == bytes,
            "wrong bytes to the end"
        );
        fleet.replicas[0].wait_until_stored(&digest);
        fleet.replicas[0].get(&path).assert_whole(&bytes);
        // Fetched again, once.
        if upstream.sent(digest) != bytes.len() as u64 {
            fleet.must_have_been_slow();
        }
        if fleet.store_was_slow() {
            return false;
        }
        let aside = format!("fleet/v1/quarantine/{}", digest.hex());
        let deadline = Instant::now() + PATIENCE;
        while fleet.container.names(&aside).is_empty() {
            assert!(Instant::now() < deadline, "it is not set aside");
            thread::sleep(Duration::from_millis(50));
        }
    }
    true
}

/// Larger than the disk may hold: it passes through, from near as from far.
#[test]
fn a_large_layer_flows_from_the_shared_store_through_a_small_disk() {
    with_a_fast_store(a_large_layer);
}

fn a_large_layer() -> bool {
    let upstream = Upstream::start();
    let fleet = Fleet::<1>::start_with(&upstream, |setup| {
        setup.section("store", "max_size = \"16MiB\"")
    });
    let (bytes, digest, path) = blob(&upstream, 100 * MIB);
    fleet.container.write(&in_store(&digest), bytes.clone());
    fleet.replicas[0].get(&path).assert_whole(&bytes);
    if upstream.sent(digest) != 0 {
        fleet.must_have_been_slow();
    }
    !fleet.store_was_slow()
}

/// Who is no replica gets nothing by saying so.
#[test]
fn a_request_in_the_name_of_a_replica_is_no_way_in() {
    let upstream = Upstream::start();
    let fleet = Fleet::<1>::start(&upstream);
    let replica = &fleet.replicas[0];
    let (bytes, digest, path) = blob(&upstream, MIB);
    replica.get(&path).assert_whole(&bytes);
    replica.wait_until_stored(&digest);
    let asked = upstream.requests().len();
    let own = format!("/v2/_peer/blobs/{digest}");
    let zeros = "0".repeat(64);
    for authorization in [
        "Portcullis",
        "portcullis t=1,mac=00",
        &format!("Portcullis t=1,mac={zeros}"),
    ] {
        for path in [own.as_str(), path.as_str(), "/v2/"] {
            let headers = [("Authorization", authorization)];
            replica
                .send("GET", path, &headers)
                .assert_error(403, "DENIED");
        }
    }
    // Without that header it is a name that no repository can have.
    replica.get(&own).assert(400);
    assert_eq!(upstream.requests().len(), asked);
}
