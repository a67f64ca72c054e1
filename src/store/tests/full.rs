//! A disk that is full (fault row F19): on a file system of a few megabytes, mounted by a child
//! process in a mount namespace of its own.

use std::process::Command;

use super::*;

const MOUNTED: &str = "PORTCULLIS_TEST_MOUNTED";

#[test]
fn a_full_disk_evicts_and_then_says_so() {
    if let Ok(path) = std::env::var(MOUNTED) {
        tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(fill(Path::new(&path)));
        return;
    }
    let dir = Dir::new();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$1\" && exec \"$2\" --exact \"$3\" --nocapture";
    let test = format!(
        "{}::a_full_disk_evicts_and_then_says_so",
        crash::module(module_path!())
    );
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-ec", script, "sh"])
        .args([
            dir.path(),
            &std::env::current_exe().unwrap(),
            Path::new(&test),
        ])
        .env(MOUNTED, dir.path())
        .output()
        .expect("the test needs unshare(1) of util-linux");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "in a mount namespace: {said}");
    assert!(said.contains("1 passed"), "the test was not found: {said}");
}

async fn fill(path: &Path) {
    let metrics = Arc::default();
    let store = open(path, 1 << 40, &metrics).unwrap();
    let mut digests = Vec::new();
    for seed in 0..10 {
        digests.push(put(&store.disk, &content(seed, 1 << 20)).await);
        // Until then the file is held open.
        store.disk.round(false, false).unwrap();
    }
    assert!(metrics.store_evictions.get() >= 6);
    assert_eq!(metrics.store_errors.get(), 0);
    assert_eq!(
        bytes_of(&store.disk, &digests[9]).await,
        Some(content(9, 1 << 20))
    );

    // Nothing may go while everything is being read.
    let mut readers = Vec::new();
    for digest in &digests {
        readers.extend(store.disk.open_blob(digest).await.unwrap());
    }
    let bytes = content(99, 2 << 20);
    let digest = Digest::sha256(&bytes);
    let error = store.disk.put(&digest, bytes).await.unwrap_err();
    let full = std::io::ErrorKind::StorageFull;
    assert!(
        matches!(&error, StoreError::Io { source, .. } if source.kind() == full),
        "{error}"
    );
    assert_eq!(store.disk.stat(&digest), None);
    assert!(names_in(&Layout::new(path).spool()).is_empty());
    assert_eq!(metrics.store_errors.get(), 1);
    assert!(!store.disk.make_room(1).await);
    for digest in &digests[8..] {
        assert!(bytes_of(&store.disk, digest).await.is_some());
    }
}
