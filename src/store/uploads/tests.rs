use super::*;
use crate::store::tests::{Dir, repository};

fn blob(number: u8) -> Item {
    Item::Blob(Digest::sha256(&[number]))
}

fn items() -> Vec<Item> {
    let here = repository("registry.example:5000/a/b_c");
    let digest = Digest::sha256(b"x");
    vec![
        blob(1),
        Item::Link(here.clone(), digest),
        Item::Led(here.clone(), digest),
        Item::Tag(here, "v1.0".parse().unwrap()),
    ]
}

fn open(dir: &Dir) -> Arc<Uploads> {
    Arc::new(Uploads::open(dir.layout(), dir.faults()).unwrap())
}

/// All that is due, in the order in which it is taken; it stays running.
fn take_all(uploads: &Arc<Uploads>) -> Vec<Taken> {
    std::iter::from_fn(|| uploads.take(true, true)).collect()
}

fn names(taken: &[Taken]) -> Vec<Item> {
    taken.iter().map(|taken| taken.item().clone()).collect()
}

fn journal(dir: &Dir) -> String {
    std::fs::read_to_string(dir.layout().uploads()).unwrap_or_default()
}

#[test]
fn lines_round_trip() {
    for item in items() {
        assert_eq!(item.to_string().parse(), Ok(item));
    }
    for line in [
        "",
        "blob",
        "blob x",
        "link docker.io sha256:00",
        "tag a/b",
        "x y z",
    ] {
        assert_eq!(line.parse::<Item>(), Err(()), "{line:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn small_things_go_first_and_failures_later() {
    let dir = Dir::new();
    let uploads = open(&dir);
    for item in items() {
        uploads.note(&item, None);
        uploads.note(&item, None);
    }
    assert!(uploads.take(false, false).is_none());
    let mut all = items();
    all.rotate_left(1);
    let mut taken = take_all(&uploads);
    assert_eq!(names(&taken), all);

    taken.remove(0).failed();
    drop(taken.remove(0));
    let again = take_all(&uploads);
    assert_eq!(names(&again), [all[1].clone()]);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let due = uploads.next_due().unwrap();
        waits.push((due - Instant::now()).as_secs());
        tokio::time::advance(due - Instant::now()).await;
        uploads.take(true, true).unwrap().failed();
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn what_is_noted_while_it_runs_runs_again_and_keeps_until_then() {
    let dir = Dir::new();
    let uploads = open(&dir);
    let kept: Arc<()> = Arc::default();
    let keep = || -> Keep { Box::new(Arc::clone(&kept)) };
    uploads.note(&blob(1), Some(keep()));
    let running = uploads.take(true, true).unwrap();
    uploads.note(&blob(1), Some(keep()));
    uploads.keep(&blob(1), keep());
    uploads.keep(&blob(2), keep());
    assert!(uploads.take(true, true).is_none(), "one at a time");
    assert_eq!(Arc::strong_count(&kept), 4);
    running.done(PublishResult::Done);
    assert_eq!(Arc::strong_count(&kept), 4);
    // Dropped as by a shutdown.
    drop(uploads.take(true, true).unwrap());
    uploads.take(true, true).unwrap().done(PublishResult::Done);
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(uploads.is_empty() && uploads.take(true, true).is_none());
}

#[test]
fn the_journal_has_what_waits() {
    let dir = Dir::new();
    let uploads = open(&dir);
    assert!(!uploads.journal_is_behind());
    for item in items() {
        uploads.note(&item, None);
    }
    assert!(uploads.journal_is_behind());
    uploads.write_journal();
    uploads.write_journal();
    assert_eq!(journal(&dir).lines().count(), 4);
    let torn = format!("{}garbage\nblob sha256:12", journal(&dir));
    std::fs::write(dir.layout().uploads(), torn).unwrap();

    let uploads = open(&dir);
    let found = take_all(&uploads);
    assert_eq!(found.len(), 4);
    assert!(items().iter().all(|item| names(&found).contains(item)));
    assert_eq!(uploads.blobs().len(), 1);
    for taken in found {
        taken.done(PublishResult::Done);
    }
    assert!(uploads.journal_is_behind());
    uploads.write_journal();
    assert_eq!(journal(&dir), "");
}

#[test]
fn a_blob_is_written_down_before_it_has_its_name() {
    let dir = Dir::new();
    let uploads = open(&dir);
    let commit = || {
        // Another's turn to tidy must not take it away.
        uploads.write_journal();
        assert_eq!(journal(&dir), format!("{}\n", blob(1)));
        assert!(uploads.take(true, true).is_none(), "it is not there yet");
        Ok::<_, ()>(())
    };
    uploads.commit(&blob(1), Box::new(()), commit).unwrap();
    uploads.write_journal();
    assert_eq!(journal(&dir).lines().count(), 1);
    let running = take_all(&uploads);
    assert_eq!(names(&running), [blob(1)]);
    uploads
        .commit(&blob(2), Box::new(()), || Err::<(), _>(()))
        .unwrap_err();
    assert!(uploads.take(true, true).is_none());
    assert_eq!(
        open(&dir).blobs().len(),
        2,
        "looked up and dropped by a start"
    );
}

#[test]
fn a_long_journal_is_written_anew() {
    let dir = Dir::new();
    let uploads = open(&dir);
    uploads.note(&blob(0), None);
    let kept = uploads.take(true, true).unwrap();
    let here = repository("docker.io/library/a");
    for number in 0..1100_u32 {
        let item = Item::Link(here.clone(), Digest::sha256(&number.to_le_bytes()));
        uploads.note(&item, None);
    }
    uploads.write_journal();
    assert_eq!(journal(&dir).lines().count(), 1101);
    for taken in take_all(&uploads) {
        taken.done(PublishResult::Done);
    }
    uploads.write_journal();
    assert_eq!(journal(&dir), format!("{}\n", blob(0)));
    drop(kept);
}

#[test]
fn what_is_too_much_is_dropped_and_counted() {
    let dir = Dir::new();
    let uploads = open(&dir);
    let here = repository("docker.io/library/a");
    for number in 0..=MOST {
        let item = Item::Led(here.clone(), Digest::sha256(&number.to_le_bytes()));
        uploads.note(&item, None);
    }
    let (kind, result) = (SharedKind::Led, PublishResult::Dropped);
    let dropped = dir
        .metrics()
        .shared_published
        .get_or_create(&PublishLabels { kind, result })
        .get();
    assert_eq!(dropped, 1);
    assert_eq!(
        dir.metrics().shared_waiting.get(),
        i64::try_from(MOST).unwrap()
    );
}
