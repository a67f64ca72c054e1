//! What slides by, for those who keep it elsewhere.

use super::fake::Passed;
use super::*;

/// There is nobody near.
const UPSTREAM: Stop = Stop {
    source: None,
    outdated_after: None,
};
const SIZE: usize = 80 * 1024 * 1024;

/// A slide of a blob larger than its window, the only client of which takes `pace` over each piece
/// and leaves after `leaves_at` bytes, and who reads along takes `along`. A chunk takes its source
/// an eighth of `latency`, in ms.
async fn slide(
    manner: Manner,
    (latency, leaves_at): (u64, usize),
    pace: Duration,
    along: Duration,
) -> (Vec<u8>, Passed) {
    let case = Case {
        latency,
        chunk: 1024 * 1024,
        no_room: true,
        window: 8 << 20,
        ..scenes::plain_case(SIZE, Vec::new())
    };
    let dir = tempfile::tempdir().unwrap();
    let mut near = FakeNear::new([UPSTREAM], &case);
    near.pace = along;
    let near = Arc::new(near);
    let process = Process::start(dir.path(), &case, Some(&near));
    let content = content(SIZE);
    let digest = Digest::sha256(&content);
    let source = Arc::new(Fake::new("source".into(), manner, &content, &case)) as Arc<dyn Source>;
    let joined = process
        .fills
        .join_or_start(&digest, &source, true, Some(0))
        .unwrap();
    let Join::Started(mut joined) = joined else {
        panic!("nothing was running");
    };
    joined.opened().await.unwrap();
    let mut reader = joined.read(0..u64::MAX);
    let mut bytes = Vec::new();
    while bytes.len() < leaves_at
        && let Some(Ok(piece)) = reader.next().await
    {
        read(&piece, &mut bytes);
        sleep(pace).await;
    }
    drop(reader);
    let mut passed = near.passed().await;
    assert_eq!(passed.len(), 1);
    process.end().await;
    (bytes, passed.remove(0))
}

const TO_THE_END: (u64, usize) = (10, usize::MAX);
const AT_ONCE: Duration = Duration::ZERO;
const SLOWLY: Duration = Duration::from_secs(1);

#[test]
fn who_keeps_up_gets_all_of_it() {
    for (pace, along) in [(AT_ONCE, AT_ONCE), (SLOWLY, AT_ONCE), (SLOWLY, SLOWLY)] {
        let scene = slide(Manner::Honest, TO_THE_END, pace, along);
        let (read, passed) = scenes::paused().block_on(scene);
        assert!(read == content(SIZE));
        assert!(passed.unwrap() == read);
    }
}

#[test]
fn nobody_waits_for_who_does_not_keep_up() {
    let slower = 10 * SLOWLY;
    let scene = slide(Manner::Honest, TO_THE_END, SLOWLY, slower);
    let started = scenes::paused().block_on(async {
        let started = tokio::time::Instant::now();
        let (read, passed) = scene.await;
        assert!(read == content(SIZE));
        assert!(matches!(passed, Err(FillError::TooSlow)), "{passed:?}");
        started.elapsed()
    });
    assert!(started < 2 * SLOWLY * 80, "{started:?}");
}

#[test]
fn what_does_not_hash_never_ends_well() {
    let scene = slide(Manner::Corrupt, TO_THE_END, AT_ONCE, AT_ONCE);
    let (_, passed) = scenes::paused().block_on(scene);
    assert!(matches!(passed, Err(FillError::WrongBytes { .. })));
}

/// Nobody else reads a download that all its clients have left.
#[test]
fn it_ends_with_the_last_client() {
    let scene = slide(Manner::Honest, (10_000, 10 * 1024 * 1024), AT_ONCE, AT_ONCE);
    let (_, passed) = scenes::paused().block_on(scene);
    assert!(passed.is_err(), "a client left, and the download went on");
}

/// All of nothing is here at once, and the hash has yet to say that it is the wrong nothing.
#[test]
fn nothing_is_not_taken_for_the_blob() {
    let case = scenes::plain_case(0, Vec::new());
    let (dir, empty) = (tempfile::tempdir().unwrap(), Bytes::new());
    scenes::paused().block_on(async {
        let near = Arc::new(FakeNear::new([UPSTREAM], &case));
        let process = Process::start(dir.path(), &case, Some(&near));
        let spools = dir.path().join("v1/spool");
        std::fs::remove_dir_all(&spools).unwrap();
        std::fs::write(&spools, "no room").unwrap();
        let source = Arc::new(Fake::new("source".into(), Manner::NoRanges, &empty, &case));
        let source = source as Arc<dyn Source>;
        let digest = Digest::sha256(b"something");
        let joined = process
            .fills
            .join_or_start(&digest, &source, true, Some(0))
            .unwrap();
        let Join::Started(mut joined) = joined else {
            panic!("nothing was running");
        };
        let failed = joined.opened().await.unwrap_err();
        assert!(matches!(failed, FillError::WrongBytes { .. }), "{failed}");
        let passed = near.passed().await;
        assert!(matches!(passed[..], [Err(_)]), "{passed:?}");
    });
}
