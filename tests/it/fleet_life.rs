//! A random life of two replicas: pulls, purges, evictions, kills, claims whose holder dies, and a
//! store that hangs or is away. Every answer of a replica that lives is right, and at the end every
//! visible digest hashes, what is pinned is whole, and no claim is left behind.
//!
//! `PORTCULLIS_TEST_SEED` repeats a run, as far as processes can be repeated.

use std::thread;
use std::time::Instant;

use portcullis::oci::Digest;

use crate::fleet::Fleet;
use crate::support::client::{Answer, Client, Response};
use crate::support::image::{Image, random};
use crate::support::proxy::Proxy;
use crate::support::stores::Azurite;
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, at};

/// At least so many pulls, purges, kills and so on.
const OPERATIONS: usize = 2_000;
/// Requests at once.
const BATCH: usize = 10;
/// Half of what the images take, so that there always is something to evict.
const STORE: &str = "max_size = \"14MiB\"";
/// Images that are pinned: the first on the first replica, the second on the second.
const PINNED: usize = 2;

/// One request and what it must bring.
#[derive(Clone, Debug)]
struct Ask {
    replica: usize,
    path: String,
    bytes: Vec<u8>,
    /// A range of it.
    range: Option<(usize, usize)>,
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }
}

struct Life<'a> {
    fleet: Fleet<'a>,
    upstream: &'a Upstream,
    images: Vec<Image>,
    random: Random,
    operations: usize,
}

impl Life<'_> {
    /// Something of some image, from some replica.
    fn ask(&mut self) -> Ask {
        let replica = self.random.below(self.fleet.replicas.len());
        let number = self.random.below(self.images.len());
        let image = &self.images[number];
        let digest = image.manifest.digest();
        let (path, bytes) = match self.random.below(5) {
            0 => (format!("manifests/t{number}"), &image.manifest.bytes),
            1 => (format!("manifests/{digest}"), &image.manifest.bytes),
            _ => {
                let blobs: Vec<_> = image.blobs().collect();
                let blob = blobs[self.random.below(blobs.len())];
                (format!("blobs/{}", Digest::sha256(blob)), blob)
            }
        };
        let bytes = bytes.clone();
        let ranged = path.starts_with("blobs") && self.random.below(4) == 0;
        let range = ranged.then(|| {
            let start = self.random.below(bytes.len());
            (start, start + 1 + self.random.below(bytes.len() - start))
        });
        Ask {
            replica,
            path: at(&format!("demo/app/{path}")),
            bytes,
            range,
        }
    }

    /// Many requests at once, and something beside them. None of them fails but those of a replica
    /// that `beside` kills.
    fn pull(&mut self, killed: Option<usize>, beside: impl FnOnce(&mut Fleet<'_>)) {
        let asks: Vec<Ask> = (0..BATCH).map(|_| self.ask()).collect();
        self.operations += asks.len();
        let clients: Vec<Client> = self.fleet.replicas.iter().map(Proxy::client).collect();
        thread::scope(|scope| {
            for ask in asks {
                let client = &clients[ask.replica];
                scope.spawn(move || {
                    let found = ask.send(client);
                    match found {
                        Some(response) if killed != Some(ask.replica) => ask.judge(response),
                        None if killed != Some(ask.replica) => panic!("no answer to {}", ask.path),
                        // Short or not, wrong it must not be.
                        Some(response) if ask.range.is_none() => {
                            let whole = response.complete_digest();
                            assert!(whole.is_none_or(|d| d == Digest::sha256(&ask.bytes)));
                        }
                        _ => {}
                    }
                });
            }
            beside(&mut self.fleet);
        });
    }

    fn kill(&mut self) {
        let victim = self.random.below(self.fleet.replicas.len());
        self.pull(Some(victim), |fleet| fleet.replicas[victim].kill9());
        self.fleet.replicas[victim].start_again();
        self.operations += 2;
    }

    /// Its holder dies in the middle; the other replica waits for the claim to die too.
    fn orphan_a_claim(&mut self) {
        let victim = self.random.below(self.fleet.replicas.len());
        let other = (victim + 1) % self.fleet.replicas.len();
        let bytes = random(3 * MIB);
        let digest = self.upstream.blob("demo/app", bytes.clone());
        let gate = self.upstream.hold(digest, MIB as u64);
        let path = at(&format!("demo/app/blobs/{digest}"));
        thread::scope(|scope| {
            let client = self.fleet.replicas[victim].client();
            let holder = scope.spawn({
                let path = path.clone();
                move || client.try_open("GET", &path, &[]).map(Answer::finish)
            });
            gate.reached();
            let client = self.fleet.replicas[other].client();
            let follower = scope.spawn(move || client.get(&path));
            self.fleet.replicas[victim].kill9();
            gate.open();
            // The other ends as it may.
            let _ = holder.join().unwrap();
            follower.join().unwrap().assert_whole(&bytes);
        });
        self.upstream.behave();
        self.fleet.replicas[victim].start_again();
        self.operations += 3;
    }

    fn purge(&mut self) {
        let image = PINNED + self.random.below(self.images.len() - PINNED);
        let replica = self.random.below(self.fleet.replicas.len());
        let name = format!("registry.example/demo/app:t{image}");
        // That nothing is known of it is fine.
        let said = self.fleet.replicas[replica].run(|setup| setup, &["cache", "purge", &name]);
        assert!(
            said.status.success() || said.text.contains("nothing is known"),
            "{}",
            said.text
        );
        self.operations += 1;
    }

    fn check(&self) {
        self.fleet.wait_until_no_claim_is_left();
        self.fleet.container().check();
        for (replica, image) in self.fleet.replicas.iter().zip(&self.images[..PINNED]) {
            replica.check_store();
            let stored = replica.stored();
            for digest in image.blobs().map(|blob| Digest::sha256(blob)) {
                assert!(stored.contains(&digest), "{digest} is pinned and gone");
            }
            assert!(stored.contains(&image.manifest.digest()));
        }
        assert_eq!(self.fleet.container().names("/v1/pins/").len(), PINNED);
    }
}

impl Ask {
    fn send(&self, client: &Client) -> Option<Response> {
        let range = self
            .range
            .map(|(start, end)| format!("bytes={start}-{}", end - 1));
        let headers: Vec<_> = range
            .iter()
            .map(|range| ("Range", range.as_str()))
            .collect();
        let answer = client.try_open("GET", &self.path, &headers).ok()?;
        Some(answer.finish())
    }

    fn judge(&self, response: Response) {
        match self.range {
            Some((start, end)) => drop(response.assert_part(&self.bytes, start..end)),
            None => drop(response.assert_whole(&self.bytes)),
        }
    }
}

fn seed() -> u64 {
    let fresh = || u64::from_le_bytes(random(8).try_into().unwrap());
    match std::env::var("PORTCULLIS_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fresh() | 1,
    }
}

#[test]
fn a_random_life_ends_well() {
    let seed = seed();
    eprintln!("PORTCULLIS_TEST_SEED={seed}");
    let started = Instant::now();
    let upstream = Upstream::start();
    let base = random(600 * KIB);
    let images: Vec<Image> = (0..12)
        .map(|number| {
            let mut image = Image::with_layers(&[20 * KIB, 300 * KIB, (2 + number % 2) * MIB]);
            if number % 3 == 0 {
                image = image.over(&base);
            }
            upstream.image("demo/app", &format!("t{number}"), &image);
            image
        })
        .collect();
    // The store may be stopped by reference only between what uses it.
    let azurite = Azurite::own();
    let mut life = Life {
        fleet: Fleet::start_with(STORE, 2, &upstream, &azurite),
        upstream: &upstream,
        images,
        random: Random(seed),
        operations: 0,
    };
    for number in 0..PINNED {
        let name = format!("registry.example/demo/app:t{number}");
        let pin = life.fleet.replicas[number].run(|setup| setup, &["cache", "pin", &name]);
        pin.assert_success();
    }
    let (mut outages, mut orphans) = (0, 0);
    while life.operations < OPERATIONS {
        // Of what takes seconds there are one or two, whatever the seed.
        let late = life.operations > OPERATIONS / 2;
        match life.random.below(100) {
            0..3 => life.kill(),
            3..12 => life.purge(),
            dice if outages < 2 && (dice == 12 || late && outages == 0) => {
                outages += 1;
                azurite.suspend();
                life.pull(None, |_| {});
                life.kill();
                life.pull(None, |_| {});
                azurite.resume();
                life.operations += 2;
            }
            dice if orphans < 2 && (dice == 13 || late && orphans == 0) => {
                orphans += 1;
                life.orphan_a_claim();
            }
            _ => life.pull(None, |_| {}),
        }
    }
    let (operations, took) = (life.operations, started.elapsed());
    eprintln!("{operations} operations, {outages} outages, {orphans} orphaned claims: {took:?}");
    life.check();
}
