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
    Evict { bytes: u64 },
    Reload,
}

/// What the index should be: blobs in order of use.
#[derive(Default)]
struct Model {
    blobs: Vec<Blob>,
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

    fn evict(&mut self, bytes: u64, now: Instant) -> Vec<u8> {
        let (mut freed, mut evicted) = (0, Vec::new());
        self.blobs.retain(|blob| {
            let recent = blob
                .opened
                .is_some_and(|at| now - at < Duration::from_secs(60));
            let goes = freed < bytes && blob.file.is_none() && !recent;
            if goes {
                freed += blob.size;
                evicted.push(blob.name);
            }
            !goes
        });
        evicted
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
        1 => blob.prop_map(|blob| Step::Remove { blob }),
        2 => (0..90u64).prop_map(|seconds| Step::Wait { seconds }),
        3 => (0..300u64).prop_map(|bytes| Step::Evict { bytes }),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn evicts_as_the_model_does(steps in prop::collection::vec(step(), 0..60)) {
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
                Step::Evict { bytes } => {
                    let evicted = index.evict(bytes, now).into_iter().map(|(digest, _)| digest);
                    let expected = model.evict(bytes, now).into_iter().map(digest);
                    prop_assert_eq!(evicted.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
                }
                Step::Reload => {
                    let saved = Saved::parse(&encode(true, &index.lines())).unwrap();
                    index = Index::default();
                    for line in saved.lines {
                        index.restore(line, line.stamp.unwrap().size);
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
        },
        Line {
            digest: digest(2),
            used: 6,
            hashed: 0,
            stamp: None,
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
    assert_eq!(Saved::parse(torn).unwrap().lines, lines[..1]);
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
        };
        index.restore(line, 1);
    }
    assert_eq!(index.due(30, 2), [digest(2), digest(3)]);
    index.put_off(&digest(2), 60);
    assert_eq!(index.due(40, 9), [digest(3), digest(1)]);
}
