//! The disk: how much of it is used, and what happens when there is none left.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;
use tempfile::TempDir;

use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, PATIENCE, at};

fn blob(upstream: &Upstream, len: usize) -> (Vec<u8>, Digest, String) {
    let bytes = random(len);
    let digest = upstream.blob("demo/app", bytes.clone());
    (bytes, digest, at(&format!("demo/app/blobs/{digest}")))
}

/// A small file system of its own; unmounted at the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "mounting a tmpfs needs root: {output:?}"
        );
        SmallDisk(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}

fn stored_size(proxy: &Proxy) -> u64 {
    let size = |digest: &Digest| {
        let hex = digest.hex();
        let file = proxy
            .store()
            .join(format!("v1/blobs/sha256/{}/{hex}", &hex[..2]));
        file.metadata().map_or(0, |metadata| metadata.len())
    };
    proxy.stored().iter().map(size).sum()
}

#[test]
fn least_recently_used_goes_first() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("store", "max_size = \"8MiB\"")
        .start();
    let (favourite, digest, path) = blob(&upstream, MIB);
    proxy.get(&path).assert_whole(&favourite);
    proxy.wait_until_stored(&digest);
    let others: Vec<_> = (0..20).map(|_| blob(&upstream, MIB)).collect();
    for (bytes, other, other_path) in &others {
        proxy.get(other_path).assert_whole(bytes);
        proxy.wait_until_stored(other);
        proxy.get(&path).assert_whole(&favourite);
    }
    let deadline = Instant::now() + PATIENCE;
    while stored_size(&proxy) > 8 * MIB as u64 {
        assert!(
            Instant::now() < deadline,
            "{} bytes are kept",
            stored_size(&proxy)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        upstream.sent(digest),
        MIB as u64,
        "what is always used was evicted"
    );
    // The newest is there, the oldest is not and comes again.
    let (bytes, newest, newest_path) = &others[19];
    proxy.get(newest_path).assert_whole(bytes);
    assert_eq!(upstream.sent(newest), MIB as u64);
    let (bytes, oldest, oldest_path) = &others[0];
    proxy.get(oldest_path).assert_whole(bytes);
    assert_eq!(upstream.sent(oldest), 2 * MIB as u64);
}

#[test]
fn last_use_survives_a_restart() {
    for clean in [true, false] {
        let upstream = Upstream::start();
        let mut proxy = Setup::new(&upstream)
            .section("store", "max_size = \"8MiB\"")
            .start();
        let blobs: Vec<_> = (0..6).map(|_| blob(&upstream, MIB)).collect();
        for (bytes, digest, path) in &blobs {
            proxy.get(path).assert_whole(bytes);
            proxy.wait_until_stored(digest);
        }
        // The first becomes the last.
        proxy.get(&blobs[0].2).assert_whole(&blobs[0].0);
        if clean {
            assert!(proxy.terminate().success());
        } else {
            // An unclean end may lose the last use; it may not lose the blobs or the store's size.
            proxy.kill9();
        }
        proxy.start_again();
        for _ in 0..4 {
            let (bytes, digest, path) = blob(&upstream, MIB);
            proxy.get(&path).assert_whole(&bytes);
            proxy.wait_until_stored(&digest);
        }
        let deadline = Instant::now() + PATIENCE;
        while stored_size(&proxy) > 8 * MIB as u64 {
            assert!(
                Instant::now() < deadline,
                "{} bytes are kept",
                stored_size(&proxy)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        if clean {
            proxy.get(&blobs[0].2).assert_whole(&blobs[0].0);
            assert_eq!(
                upstream.sent(blobs[0].1),
                MIB as u64,
                "the last use was forgotten"
            );
        }
    }
}

#[test]
fn eviction_leaves_readers_alone() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("store", "max_size = \"40MiB\"")
        .start();
    let (bytes, digest, path) = blob(&upstream, 32 * MIB);
    proxy.get(&path).assert_whole(&bytes);
    proxy.wait_until_stored(&digest);
    let mut reader = proxy.open(&path);
    reader.take(MIB);
    for _ in 0..4 {
        let (other, _, path) = blob(&upstream, 16 * MIB);
        proxy.get(&path).assert_whole(&other);
    }
    let rest = reader.finish();
    assert!(rest.body == bytes[MIB..], "{rest:?}");
}

/// More than the disk holds flows through all the same, and leaves nothing wrong behind.
#[test]
fn a_full_disk_does_not_stop_a_pull() {
    let disk = SmallDisk::mount("16m");
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .store_at(&disk.path().join("store"))
        .start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let (bytes, digest, path) = blob(&upstream, 64 * MIB);
    for _ in 0..2 {
        proxy.get(&path).assert_whole(&bytes);
        assert!(!proxy.stored().contains(&digest));
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes);
    }
    // What fits is kept again.
    let (small, digest, path) = blob(&upstream, MIB);
    proxy.get(&path).assert_whole(&small);
    proxy.wait_until_stored(&digest);
    proxy.get(&path).assert_whole(&small);
    assert_eq!(upstream.sent(digest), MIB as u64);
}

/// Not even a byte is left when the server starts on it.
#[test]
fn a_disk_without_a_byte_left_does_not_stop_a_pull() {
    let disk = SmallDisk::mount("4m");
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .store_at(&disk.path().join("store"))
        .start();
    let mut filler = std::fs::File::create(disk.path().join("filler")).unwrap();
    let _ = std::io::copy(&mut std::io::repeat(0), &mut filler);
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let (bytes, digest, path) = blob(&upstream, 10 * MIB);
    let (small, _, small_path) = blob(&upstream, 10 * KIB);
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&manifest.bytes);
    proxy.get(&small_path).assert_whole(&small);
    proxy.get(&path).assert_whole(&bytes);
    assert!(!proxy.stored().contains(&digest));
    proxy.client().get("/healthz").assert(200);
}

/// A wrong blob stays wrong when it slides past a full disk: its end goes to nobody.
#[test]
fn a_full_disk_does_not_let_wrong_bytes_through() {
    let disk = SmallDisk::mount("16m");
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .store_at(&disk.path().join("store"))
        .start();
    let (_, digest, path) = blob(&upstream, 48 * MIB);
    upstream.always(digest, crate::support::upstream::Fault::FlipBit(30_000_000));
    let answer = proxy.get(&path);
    assert!(answer.complete_digest().is_none(), "{answer:?}");
    assert!(!proxy.stored().contains(&digest));
}

/// A blob larger than the whole cache may be is not kept, and throws nothing out.
#[test]
fn a_blob_larger_than_the_cache_flows_through() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("store", "max_size = \"8MiB\"")
        .start();
    let (small, digest, small_path) = blob(&upstream, MIB);
    proxy.get(&small_path).assert_whole(&small);
    proxy.wait_until_stored(&digest);
    let (bytes, large, path) = blob(&upstream, 24 * MIB);
    proxy.get(&path).assert_whole(&bytes);
    assert!(!proxy.stored().contains(&large));
    proxy.get(&small_path).assert_whole(&small);
    assert_eq!(upstream.sent(digest), MIB as u64);
}
