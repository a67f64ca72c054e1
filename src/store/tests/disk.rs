//! Blobs: kept, found again, distrusted, swept.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::super::files::unix_now;
use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn hashed(store: &Store) -> u64 {
    store.disk.hashed.load(Ordering::Relaxed)
}

/// Changes one byte and nothing else about the file that a size could show.
fn flip(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3).unwrap();
    file.write_all_at(&[!byte[0]], 3).unwrap();
    // Some kernels' clocks are too coarse to show a change that follows the writing so closely.
    file.set_modified(SystemTime::now() + Duration::from_secs(1))
        .unwrap();
}

#[tokio::test]
async fn what_is_put_can_be_read() {
    let dir = Dir::new();
    let store = dir.open();
    let bytes = content(1, 1000);
    let digest = Digest::of(crate::oci::Algorithm::Sha512, &bytes);
    assert_eq!(store.disk.stat(&digest), None);
    assert_eq!(store.disk.read(&digest, 1000).await.unwrap(), None);
    for _ in 0..2 {
        store.disk.put(&digest, bytes.clone()).await.unwrap();
    }
    assert_eq!(store.disk.stat(&digest), Some(1000));
    assert_eq!(
        store.disk.read(&digest, 1000).await.unwrap().as_ref(),
        Some(&bytes)
    );
    assert_eq!(
        store.disk.read(&digest, 999).await.unwrap(),
        None,
        "larger than the limit"
    );
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));
    assert_eq!(
        (
            dir.metrics().store_blobs.get(),
            dir.metrics().store_size.get()
        ),
        (1, 1000)
    );

    let other = Digest::sha256(b"other");
    let wrong = store.disk.put(&other, bytes).await;
    assert!(matches!(wrong, Err(StoreError::WrongBytes(digest)) if digest == other));
    assert_eq!(store.disk.stat(&other), None);
    assert!(names_in(&dir.layout().spool()).is_empty());
}

#[tokio::test]
async fn a_commit_takes_the_spool() {
    let dir = Dir::new();
    let store = dir.open();
    let bytes = content(1, 100_000);
    let digest = commit(&store.disk, &bytes).await;
    assert!(names_in(&dir.layout().spool()).is_empty());
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));

    // Again, and from a file that an upstream's wrong size had made too long.
    assert_eq!(commit(&store.disk, &bytes).await, digest);
    let longer = content(2, 1000);
    let verified = verified(&store.disk, &longer).await;
    verified.file().set_len(5000).unwrap();
    let reader = Arc::clone(verified.file());
    store.disk.commit(verified).await.unwrap();
    let digest = Digest::sha256(&longer);
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&longer));
    let mut first = [0; 10];
    reader.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, longer[..10]);
    assert!(names_in(&dir.layout().spool()).is_empty());
    assert_eq!(dir.metrics().store_size.get(), 101_000);
}

#[tokio::test]
async fn nothing_is_hashed_after_a_clean_end() {
    let dir = Dir::new();
    let store = dir.open();
    let bytes = content(1, 50_000);
    let digest = commit(&store.disk, &bytes).await;
    store.close().await.unwrap();
    drop(store);

    let store = dir.open();
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));
    assert_eq!(hashed(&store), 0);
    drop(store);

    // That one did not end well: the mark was used up by the start before.
    let store = dir.open();
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));
    assert_eq!(hashed(&store), 1);
    // Once is enough, and it counts for the next clean end.
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));
    store.close().await.unwrap();
    drop(store);
    let store = dir.open();
    assert_eq!(bytes_of(&store.disk, &digest).await.as_ref(), Some(&bytes));
    assert_eq!(hashed(&store), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hash_serves_all_who_wait() {
    let dir = Dir::new();
    let bytes = content(1, 8 << 20);
    let digest = commit(&dir.open().disk, &bytes).await;
    let store = dir.open();
    let asked = (0..20).map(|_| {
        let disk = Arc::clone(&store.disk);
        tokio::spawn(async move { disk.open_blob(&digest).await.unwrap().unwrap().range() })
    });
    for range in futures_util::future::join_all(asked).await {
        assert_eq!(range.unwrap(), 0..8 << 20);
    }
    assert_eq!(hashed(&store), 1);
}

/// Fault row F28.
#[tokio::test]
async fn a_flipped_byte_is_found_after_an_unclean_end() {
    let dir = Dir::new();
    let digests = {
        let store = dir.open();
        [
            put(&store.disk, &content(1, 5000)).await,
            put(&store.disk, &content(2, 5000)).await,
        ]
    };
    for digest in &digests {
        flip(&dir.layout().blob(digest));
    }
    let store = dir.open();
    assert_eq!(bytes_of(&store.disk, &digests[0]).await, None);
    assert_eq!(store.disk.read(&digests[1], 5000).await.unwrap(), None);
    assert_eq!(dir.metrics().store_quarantined.get(), 2);
    assert_eq!(names_in(&dir.layout().quarantine()).len(), 2);
    assert_eq!(dir.metrics().store_blobs.get(), 0);

    // It is a miss, so somebody fetches it again.
    put(&store.disk, &content(1, 5000)).await;
    assert_eq!(
        bytes_of(&store.disk, &digests[0]).await,
        Some(content(1, 5000))
    );
}

/// Fault rows F27 and F29, threat T12: behind the back of a running store.
#[tokio::test]
async fn a_file_that_changed_is_not_served() {
    let dir = Dir::new();
    let store = dir.open();
    let mut digests = Vec::new();
    for seed in 0..4 {
        digests.push(put(&store.disk, &content(seed, 5000)).await);
    }
    let path = |number: usize| dir.layout().blob(&digests[number]);
    flip(&path(0));
    File::options()
        .write(true)
        .open(path(1))
        .unwrap()
        .set_len(0)
        .unwrap();
    std::fs::remove_file(path(2)).unwrap();
    for digest in &digests[..3] {
        assert_eq!(bytes_of(&store.disk, digest).await, None);
        assert_eq!(store.disk.stat(digest), None);
    }
    assert_eq!(dir.metrics().store_quarantined.get(), 2);

    // A new time on right bytes costs a hash, no more.
    let file = File::options().write(true).open(path(3)).unwrap();
    file.set_modified(SystemTime::now() - DAY).unwrap();
    assert_eq!(
        bytes_of(&store.disk, &digests[3]).await,
        Some(content(3, 5000))
    );
}

#[tokio::test]
async fn an_empty_file_is_only_right_for_the_empty_digest() {
    let dir = Dir::new();
    let (empty, other) = {
        let store = dir.open();
        (
            put(&store.disk, &Bytes::new()).await,
            put(&store.disk, &content(1, 10)).await,
        )
    };
    std::fs::write(dir.layout().blob(&other), "").unwrap();
    let store = dir.open();
    assert_eq!(store.disk.stat(&other), None, "nobody is told a size of 0");
    assert_eq!(store.disk.stat(&empty), Some(0));
    assert_eq!(bytes_of(&store.disk, &empty).await, Some(Bytes::new()));
}

/// Fault row F44.
#[test]
fn a_store_has_one_owner() {
    let dir = Dir::new();
    let store = dir.open();
    let error = open(dir.path(), 1, &Arc::default()).unwrap_err();
    assert!(matches!(error, StoreError::Locked(_)));
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    drop(store);
    open(dir.path(), 1, &Arc::default()).unwrap();
}

/// Fault row F42.
#[tokio::test]
async fn a_damaged_index_is_set_aside() {
    let dir = Dir::new();
    let store = dir.open();
    let digest = put(&store.disk, &content(1, 1000)).await;
    store.close().await.unwrap();
    drop(store);
    for damage in ["", "\0\0\0\0", "portcullis index 9 clean\n"] {
        std::fs::write(dir.layout().index(), damage).unwrap();
        let store = dir.open();
        assert_eq!(bytes_of(&store.disk, &digest).await, Some(content(1, 1000)));
        assert_eq!(hashed(&store), 1);
        let aside = dir.layout().index().with_extension("bad");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), damage);
    }
}

#[tokio::test(start_paused = true)]
async fn upkeep_makes_durable_and_writes_the_index() {
    let dir = Dir::new();
    let store = dir.open();
    let token = CancellationToken::new();
    let running = tokio::spawn({
        let (store, token) = (Arc::clone(&store), token.clone());
        async move { store.run(token).await }
    });
    let digest = put(&store.disk, &content(1, 1000)).await;
    let here = repository("docker.io/library/a");
    store.links.add_link(&here, &digest, None).await;
    tokio::time::sleep(Duration::from_secs(62)).await;
    token.cancel();
    running.await.unwrap();
    assert!(store.disk.unsynced.lock().unwrap().is_empty());
    let index = std::fs::read_to_string(dir.layout().index()).unwrap();
    assert!(index.starts_with("portcullis index 1 dirty\n"), "{index}");
    assert!(index.contains(&digest.to_string()), "{index}");
    assert!(dir.layout().links(&here).exists());
}

#[tokio::test(start_paused = true)]
async fn the_scrub_finds_what_nobody_asks_for() {
    let dir = Dir::new();
    let [right, wrong] = {
        let store = dir.open();
        [
            put(&store.disk, &content(1, 5000)).await,
            put(&store.disk, &content(2, 5000)).await,
        ]
    };
    flip(&dir.layout().blob(&wrong));
    let store = dir.open();
    let token = CancellationToken::new();
    let scrubbing = token.run_until_cancelled(store.disk.scrub());
    let ended = async {
        // Time is paused: this ends when the scrub has nothing left to do but to wait as well.
        tokio::time::sleep(Duration::from_secs(60)).await;
        token.cancel();
    };
    tokio::join!(scrubbing, ended);
    assert_eq!(store.disk.stat(&wrong), None);
    assert_eq!(dir.metrics().store_quarantined.get(), 1);
    assert_eq!(bytes_of(&store.disk, &right).await, Some(content(1, 5000)));
    assert_eq!(hashed(&store), 2, "what was scrubbed is trusted");
}

#[tokio::test]
async fn leftovers_go() {
    let dir = Dir::new();
    let (old, fresh, wanted) = {
        let store = dir.open();
        let old = verified(&store.disk, &content(1, 1000)).await;
        let wanted = verified(&store.disk, &content(2, 1000)).await;
        for spool in [&old, &wanted] {
            spool.file().set_modified(SystemTime::now() - DAY).unwrap();
        }
        store.disk.spool(wanted.digest()).await.unwrap();
        (old, verified(&store.disk, &content(3, 1000)).await, wanted)
    };
    let layout = dir.layout();
    std::fs::write(layout.spool().join("7.tmp"), "half").unwrap();
    std::fs::write(layout.spool().join("sha256-00.map"), "held 0 1").unwrap();
    let now = unix_now();
    for age in [0, 86_500] {
        std::fs::write(
            layout.quarantine().join(format!("{}-sha256-00", now - age)),
            "",
        )
        .unwrap();
    }
    let _store = dir.open();
    assert!(!old.data_path().exists() && !old.map_path().exists());
    assert!(wanted.data_path().exists() && wanted.map_path().exists());
    assert!(fresh.data_path().exists() && fresh.map_path().exists());
    assert_eq!(names_in(&layout.spool()).len(), 4);
    assert_eq!(names_in(&layout.quarantine()), [format!("{now}-sha256-00")]);
}

#[test]
fn the_configuration_is_read() {
    let config: Config = toml::from_str("").unwrap();
    assert_eq!(config.path, Path::new("./portcullis-data"));
    assert!(config.max_size.is_none() && config.shared.is_none());
    let config: Config = toml::from_str("path = \"/x\"\nmax_size = \"2KiB\"").unwrap();
    assert_eq!((config.path, config.max_size), ("/x".into(), Some(2048)));
    assert!(toml::from_str::<Config>("max_sise = \"2KiB\"").is_err());
}

/// Every method is used from tasks on several threads.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: T) {}
    let dir = Dir::new();
    let store = dir.open();
    let (digest, here) = (Digest::sha256(b""), repository("docker.io/library/a"));
    send(store.disk.open_blob(&digest));
    send(store.disk.read(&digest, 1));
    send(store.links.add_link(&here, &digest, None));
    send(store.links.led_by(&here, &digest));
    send(store.run(CancellationToken::new()));
    send(store.close());
}
