//! The size limit (fault row F30): who goes, who stays, what counts.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::*;

#[tokio::test]
async fn the_least_recently_used_go_first_also_after_a_restart() {
    let dir = Dir::new();
    let store = dir.open();
    let mut digests = Vec::new();
    for seed in 0..5 {
        digests.push(put(&store.disk, &content(seed, 1000)).await);
    }
    store.disk.touch(&digests[0]);
    store.disk.read(&digests[1], 1000).await.unwrap().unwrap();
    store.close().await.unwrap();
    drop(store);

    // 5000 bytes; the limit is 4000 and eviction stops at 3800.
    let store = dir.open_sized(4000);
    let left = |store: &Store| {
        (0..5)
            .filter(|n| store.disk.stat(&digests[*n]).is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(left(&store), [0, 1, 4]);
    assert_eq!(dir.metrics().store_evictions.get(), 2);
    assert!(!dir.layout().blob(&digests[2]).exists());
    put(&store.disk, &content(9, 2000)).await;
    assert_eq!(left(&store), [1]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_evicted_under_a_reader() {
    let dir = Dir::new();
    let store = dir.open_sized(1_000_000);
    let read = put(&store.disk, &content(1, 1000)).await;
    let other = put(&store.disk, &content(2, 1000)).await;
    store.disk.round(false, false).unwrap();
    let range = store.disk.open_blob(&read).await.unwrap().unwrap();
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(!store.disk.make_room(2000).await, "only one may go");
    assert_eq!(store.disk.stat(&other), None);
    assert_eq!(store.disk.stat(&read), Some(1000));

    // Its next reader may be on the way for a minute.
    drop(range);
    drop(store.disk.open_blob(&read).await.unwrap().unwrap());
    assert!(!store.disk.make_room(1000).await);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(store.disk.make_room(1000).await);
    assert_eq!(bytes_of(&store.disk, &read).await, None);
}

#[tokio::test]
async fn who_reads_a_blob_whose_name_goes_reads_on() {
    let dir = Dir::new();
    let store = dir.open();
    let bytes = content(1, 1000);
    let digest = put(&store.disk, &bytes).await;
    let found = store.disk.open_blob(&digest).await.unwrap().unwrap();
    std::fs::remove_file(dir.layout().blob(&digest)).unwrap();
    let mut read = vec![0; 1000];
    found.file().read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, bytes);
    // The handle is shared by later readers only while it is the file of that name.
    assert_eq!(bytes_of(&store.disk, &digest).await, None);
}

#[tokio::test]
async fn spools_count_against_the_limit() {
    let dir = Dir::new();
    let store = dir.open_sized(1 << 20);
    let blob = put(&store.disk, &content(1, 400_000)).await;
    assert!(store.disk.would_fit(1 << 20));
    assert!(!store.disk.would_fit((1 << 20) + 1));
    store.disk.round(false, false).unwrap();
    let _verified = verified(&store.disk, &content(2, 800_000)).await;
    store.disk.keep_below_limit();
    assert_eq!(store.disk.stat(&blob), None);
}
