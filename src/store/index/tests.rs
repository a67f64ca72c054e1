use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Insert { blob: u8, size: u64 },
    Touch { blob: u8 },
    Open { blob: u8 },
    Close { blob: u8 },
    Remove { blob: u8 },
    Wait { seconds: u64 },
    Hold { blob: u8 },
    Release { blob: u8 },
    Take { blob: u8 },
    Reload,
}

/// What the index should be: blobs in order of use, and what is held how often.
#[derive(Default)]
struct Model {
    blobs: Vec<Blob>,
    held: Vec<u8>,
}

struct Blob {
    name: u8,
    size: u64,
    /// Held by a reader.
    file: Option<Arc<File>>,
    opened: Option<Instant>,
}

impl Model {
    fn use_it(&mut self, blob: u8) -> Option<usize> {
        let position = self.blobs.iter().position(|known| known.name == blob)?;
        let used = self.blobs.remove(position);
        self.blobs.push(used);
        Some(self.blobs.len() - 1)
    }

    /// Whether the blob may go, or None when it is not here.
    fn is_idle(&self, blob: u8, now: Instant) -> Option<bool> {
        let blob = self.blobs.iter().find(|known| known.name == blob)?;
        let recent = blob
            .opened
            .is_some_and(|at| now - at < Duration::from_secs(60));
        Some(blob.file.is_none() && !recent && !self.held.contains(&blob.name))
    }
}

fn digest(blob: u8) -> Digest {
    Digest::sha256(&[blob])
}

fn stamp(size: u64) -> Stamp {
    format!("1 {size} 2.3 4.5").parse().unwrap()
}

fn step() -> impl Strategy<Value = Step> {
    let blob = 0..8u8;
    prop_oneof![
        4 => (blob.clone(), 0..100u64).prop_map(|(blob, size)| Step::Insert { blob, size }),
        2 => blob.clone().prop_map(|blob| Step::Touch { blob }),
        2 => blob.clone().prop_map(|blob| Step::Open { blob }),
        2 => blob.clone().prop_map(|blob| Step::Close { blob }),
        1 => blob.clone().prop_map(|blob| Step::Remove { blob }),
        2 => (0..90u64).prop_map(|seconds| Step::Wait { seconds }),
        1 => blob.clone().prop_map(|blob| Step::Hold { blob }),
        1 => blob.clone().prop_map(|blob| Step::Release { blob }),
        3 => blob.clone().prop_map(|blob| Step::Take { blob }),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn does_as_the_model_does(steps in prop::collection::vec(step(), 0..60)) {
        let handle = tempfile::tempfile().unwrap();
        let file = || Arc::new(handle.try_clone().unwrap());
        let (mut index, mut model) = (Index::default(), Model::default());
        let mut now = Instant::now();
        for step in steps {
            match step {
                Step::Insert { blob, size } => {
                    index.insert(digest(blob), stamp(size), &file(), 0);
                    model.blobs.retain(|known| known.name != blob);
                    model.blobs.push(Blob { name: blob, size, file: None, opened: None });
                }
                Step::Touch { blob } => {
                    index.touch(&digest(blob), 0);
                    model.use_it(blob);
                }
                Step::Open { blob } => {
                    if let Some(position) = model.use_it(blob) {
                        let file = file();
                        index.opened(&digest(blob), &file, now, 0);
                        model.blobs[position].file = Some(file);
                        model.blobs[position].opened = Some(now);
                    }
                }
                Step::Close { blob } => {
                    for known in model.blobs.iter_mut().filter(|known| known.name == blob) {
                        known.file = None;
                    }
                }
                Step::Remove { blob } => {
                    index.remove(&digest(blob));
                    model.blobs.retain(|known| known.name != blob);
                }
                Step::Wait { seconds } => now += Duration::from_secs(seconds),
                Step::Hold { blob } => {
                    index.hold(digest(blob), "test");
                    model.held.push(blob);
                }
                Step::Release { blob } => {
                    index.release(&digest(blob), "test");
                    if let Some(position) = model.held.iter().position(|held| *held == blob) {
                        model.held.remove(position);
                    }
                }
                Step::Take { blob } => {
                    let turn = index.get(&digest(blob)).map_or(0, |entry| entry.turn);
                    let stale = index.take_idle(&digest(blob), turn + 1, now);
                    let out = matches!(stale, Taken::Out { .. });
                    prop_assert!(!out, "it was used since");
                    let taken = match index.take_idle(&digest(blob), turn, now) {
                        Taken::Absent => None,
                        Taken::Busy => Some(false),
                        Taken::Out { .. } => Some(true),
                    };
                    prop_assert_eq!(taken, model.is_idle(blob, now));
                    if taken == Some(true) {
                        model.blobs.retain(|known| known.name != blob);
                    }
                }
                Step::Reload => {
                    let saved = Saved::parse(&encode(true, &index.lines())).unwrap();
                    index = Index::default();
                    model.held.clear();
                    for line in saved.lines {
                        let size = line.stamp.unwrap().size;
                        index.restore(line, size);
                    }
                    for known in &mut model.blobs {
                        (known.file, known.opened) = (None, None);
                    }
                }
            }
            let lines = index.lines().into_iter().map(|line| line.digest);
            let expected = model.blobs.iter().map(|known| digest(known.name));
            prop_assert_eq!(lines.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            let size: u64 = model.blobs.iter().map(|known| known.size).sum();
            prop_assert_eq!(index.size(), size);
        }
    }
}

#[test]
fn lines_that_make_no_sense_are_skipped() {
    let lines = [
        Line {
            digest: digest(1),
            used: 5,
            hashed: 4,
            stamp: Some(stamp(7)),
            children: None,
        },
        Line {
            digest: digest(2),
            used: 6,
            hashed: 0,
            stamp: None,
            children: Some(Arc::default()),
        },
        Line {
            digest: digest(3),
            used: 6,
            hashed: 0,
            stamp: Some(stamp(7)),
            children: Some([digest(1), digest(2)].into()),
        },
    ];
    let text = encode(false, &lines);
    assert_eq!(
        Saved::parse(&text),
        Some(Saved {
            clean: false,
            lines: lines.to_vec()
        })
    );
    assert!(Saved::parse(&encode(true, &lines)).unwrap().clean);

    let torn = &text[..text.len() - 3];
    assert_eq!(Saved::parse(torn).unwrap().lines, lines[..2]);
    for text in [
        "",
        "portcullis index 2 clean\n",
        "portcullis index 1 dir",
        "\0\0\0",
    ] {
        assert_eq!(Saved::parse(text), None, "{text:?}");
    }
}

#[test]
fn the_longest_unhashed_are_due_first() {
    let mut index = Index::default();
    for (blob, hashed) in [(1, 30), (2, 10), (3, 20), (4, 50)] {
        let line = Line {
            digest: digest(blob),
            used: 0,
            hashed,
            stamp: None,
            children: None,
        };
        index.restore(line, 1);
    }
    assert_eq!(index.due(30, 2), [digest(2), digest(3)]);
    index.put_off(&digest(2), 60);
    assert_eq!(index.due(40, 9), [digest(3), digest(1)]);
}

/// Version 1 wrote no children; its files load, and it loads ours where it trusts the blob.
#[test]
fn an_index_without_children_is_read() {
    let text = format!(
        "{MAGIC}{CLEAN}\n{} 5 4 1 7 2.3 4.5\n{} 6 0 -\n",
        digest(1),
        digest(2)
    );
    let saved = Saved::parse(&text).unwrap();
    assert_eq!(saved.lines.len(), 2);
    let mut index = Index::default();
    for line in saved.lines {
        assert_eq!(line.children, None);
        index.restore(line, 7);
    }
    index.remove(&digest(2));
    assert_eq!(index.next_unread(), Some(digest(1)));
    assert_eq!(index.next_unread(), None, "each is looked into once");
}

#[test]
fn what_a_new_manifest_holds_is_in_use() {
    let mut index = Index::default();
    let file = Arc::new(tempfile::tempfile().unwrap());
    for blob in 1..4 {
        index.insert(digest(blob), stamp(1), &file, 0);
    }
    drop(file);
    let turn = |index: &Index, blob| index.get(&digest(blob)).unwrap().turn;
    let (shared, other) = (turn(&index, 1), turn(&index, 2));
    index.refers(&digest(3), [digest(1), digest(9)].into());
    let later = Instant::now() + 2 * IN_USE;
    assert!(matches!(
        index.take_idle(&digest(1), shared, later),
        Taken::Busy
    ));
    assert!(matches!(
        index.take_idle(&digest(2), other, later),
        Taken::Out { .. }
    ));
}
