//! Ends that nobody planned, and those that somebody did: what was there is there afterwards, what
//! was half there is gone on with, and what is wrong is never served.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use portcullis::oci::Digest;

use crate::support::client::Answer;
use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, at};

fn blob(upstream: &Upstream, len: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(len);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

fn file_of(proxy: &Proxy, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    proxy
        .store()
        .join(format!("v1/blobs/sha256/{}/{hex}", &hex[..2]))
}

#[test]
fn after_kill_9_only_what_is_missing_is_fetched() {
    const LEN: usize = 64 * MIB;
    for ranges in [true, false] {
        let upstream = Upstream::start();
        if !ranges {
            upstream.no_ranges();
        }
        let mut proxy = Proxy::start(&upstream);
        let (bytes, digest, path) = blob(&upstream, LEN);
        let _gate = upstream.hold(digest, LEN as u64 / 2);
        let mut client = proxy.open(&path);
        assert!(client.take(LEN / 2) == bytes[..LEN / 2]);
        proxy.kill9();

        upstream.behave();
        proxy.start_again();
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
        if ranges {
            // The journal may be one step behind the data.
            let again = upstream.sent(digest) - LEN as u64;
            assert!(again <= 2 * MIB as u64, "{again} bytes were fetched again");
        }
        assert!(
            proxy.spooled().is_empty(),
            "left behind: {:?}",
            proxy.spooled()
        );
        let asked = upstream.hits(digest);
        proxy.get(&path).assert_whole(&bytes);
        assert_eq!(upstream.hits(digest), asked);
    }
}

/// Killed at moments that only the upstream's count chooses; what is visible always hashes, and
/// the next pull of everything succeeds.
#[test]
fn kill_9_at_any_moment_leaves_no_wrong_blob() {
    let upstream = Upstream::start();
    upstream.rate(40_000_000);
    let mut proxy = Setup::new(&upstream)
        .section("fill", "window = \"1MiB\"")
        .start();
    let sizes = [
        10 * KIB,
        60 * KIB,
        70 * KIB,
        300 * KIB,
        MIB,
        3 * MIB,
        5 * MIB,
    ];
    for round in 0..8 {
        let blobs: Vec<_> = sizes.iter().map(|size| blob(&upstream, *size)).collect();
        let total: usize = sizes.iter().sum();
        let moment = upstream.sent("blobs") + u64::from(random(1)[0]) * total as u64 / 256;
        let pulls: Vec<_> = blobs
            .iter()
            .map(|(_, _, path)| {
                let (client, path) = (proxy.client(), path.clone());
                // Whatever the client got when the proxy died is checked by nobody.
                std::thread::spawn(move || client.try_open("GET", &path, &[]).map(Answer::finish))
            })
            .collect();
        upstream.wait_until_sent("blobs", moment);
        proxy.kill9();
        for pull in pulls {
            let _ = pull.join().unwrap();
        }
        proxy.check_store();
        proxy.start_again();
        for (bytes, _, path) in &blobs {
            proxy.get(path).assert_whole(bytes);
        }
        proxy.check_store();
        eprintln!("round {round}: killed at {moment}");
    }
}

/// Everything that a pull needs is there after either kind of end, with the upstream gone.
#[test]
fn what_was_cached_is_served_without_the_upstream() {
    for clean in [true, false] {
        let mut upstream = Upstream::start();
        let mut proxy = Setup::new(&upstream)
            .section("tags", "fresh_for = \"1h\"")
            .start();
        let manifest = Manifest::unique();
        upstream.manifest("demo/app", "1", &manifest);
        let (bytes, digest, path) = blob(&upstream, 3 * MIB);
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes);
        proxy.get(&path).assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
        proxy.wait_until_stored(&manifest.digest());
        proxy.wait_until_written("demo/app/_links", &digest.to_string());
        proxy.wait_until_written("demo/app/_links", &manifest.digest().to_string());
        proxy.wait_until_written("demo/app/_tags/1.json", &manifest.digest().to_string());
        if clean {
            assert!(proxy.terminate().success());
        } else {
            proxy.kill9();
        }
        upstream.stop();
        proxy.start_again();
        proxy.get(&path).assert_whole(&bytes);
        proxy.range(&path, "bytes=5-9").assert_part(&bytes, 5..10);
        let by_digest = at(&format!("demo/app/manifests/{}", manifest.digest()));
        proxy.get(&by_digest).assert_whole(&manifest.bytes);
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes);
        proxy.head(&at("demo/app/manifests/1")).assert(200);
    }
}

/// A file that changed while we were away, or that a power cut emptied, is never served.
#[test]
fn a_damaged_file_is_fetched_again() {
    for clean in [true, false] {
        let upstream = Upstream::start();
        let mut proxy = Proxy::start(&upstream);
        let blobs: Vec<_> = (0..3).map(|_| blob(&upstream, 2 * MIB)).collect();
        for (bytes, digest, path) in &blobs {
            proxy.get(path).assert_whole(bytes);
            proxy.wait_until_stored(digest);
        }
        if clean {
            assert!(proxy.terminate().success());
        } else {
            proxy.kill9();
        }
        let files: Vec<_> = blobs
            .iter()
            .map(|(_, digest, _)| file_of(&proxy, digest))
            .collect();
        for file in &files {
            fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        let flipped = [blobs[0].0[1_000_000] ^ 1];
        let open = |file| OpenOptions::new().write(true).open(file).unwrap();
        open(&files[0]).write_all_at(&flipped, 1_000_000).unwrap();
        open(&files[1]).set_len(0).unwrap();
        open(&files[2]).set_len(1_500_000).unwrap();
        proxy.start_again();
        for (bytes, digest, path) in &blobs {
            proxy.get(path).assert_whole(bytes);
            proxy.wait_until_stored(digest);
            assert_eq!(upstream.sent(digest), 4 * MIB as u64, "clean: {clean}");
        }
    }
}

#[test]
fn a_file_that_vanished_is_only_a_miss() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, MIB);
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    fs::remove_file(file_of(&proxy, &digest)).unwrap();
    proxy.get(&path).assert_whole(&bytes);
}

#[test]
fn a_store_has_one_owner() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let second = proxy.run(|setup| setup, &["serve"]);
    let text = second.assert_failure().text;
    assert!(text.contains("in use"), "{text}");
}

/// A state file that a crash or an older version left unreadable is no reason not to start.
#[test]
fn unreadable_state_is_rebuilt() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let (bytes, digest, path) = blob(&upstream, MIB);
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    assert!(proxy.terminate().success());
    let index = proxy.store().join("v1/index");
    assert!(index.exists(), "no index was written");
    fs::write(&index, random(5000)).unwrap();
    proxy.start_again();
    proxy.get(&path).assert_whole(&bytes);
    assert_eq!(upstream.sent(digest), MIB as u64);
}
