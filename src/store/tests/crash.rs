//! `kill -9` at any moment (fault row F25): a child process works on a store and is killed, again
//! and again; what it leaves must always be a store in which everything visible is right.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::files::Temporary;
use super::super::tags::{TagEntry, Variant};
use super::evict::{image_pin, manifest};
use super::*;
use crate::oci::{MediaType, Reference, Tag};

const VICTIM: &str = "PORTCULLIS_TEST_VICTIM";
const KILLS: u64 = 25;
const MAX_SIZE: u64 = 3 << 20;

/// The name of a module as the test runner has it.
pub(super) fn module(path: &str) -> &str {
    path.split_once("::").unwrap().1
}

#[test]
fn whatever_moment_it_is_killed_at_every_blob_hashes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Ok(path) = std::env::var(VICTIM) {
        runtime.block_on(work(Path::new(&path)));
    }
    let dir = Dir::new();
    let (mut seen, mut pinned) = (0, BTreeSet::new());
    for round in 0..KILLS {
        kill_somewhere(RandomState::new().hash_one(round), dir.path(), &mut pinned);
        seen += runtime.block_on(examine(&dir, &pinned));
    }
    assert!(seen > 0 && !pinned.is_empty(), "the child has done nothing");
}

/// Starts a child and kills it some steps and some microseconds later. What it acknowledged goes to
/// `pinned`.
fn kill_somewhere(random: u64, path: &Path, pinned: &mut BTreeSet<String>) {
    let test = format!(
        "{}::whatever_moment_it_is_killed_at_every_blob_hashes",
        module(module_path!())
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..random % 40 {
        let mut step = Vec::new();
        said.read_until(b'+', &mut step).unwrap();
        assert_eq!(
            step.last(),
            Some(&b'+'),
            "the child ended: {:?}",
            child.wait()
        );
        note(pinned, &step);
    }
    // Orders nothing: without it the kill would always hit the beginning of a step.
    std::thread::sleep(Duration::from_micros((random >> 32) % 5000));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = Vec::new();
    said.read_to_end(&mut rest).unwrap();
    rest.split_inclusive(|byte| *byte == b'+')
        .for_each(|step| note(pinned, step));
}

/// A step that says a name has pinned an image.
fn note(pinned: &mut BTreeSet<String>, step: &[u8]) {
    let text = std::str::from_utf8(step).unwrap_or_default();
    let name = text
        .strip_suffix('+')
        .and_then(|text| text.split('!').nth(1));
    pinned.extend(name.map(str::to_owned));
}

/// Says how many blobs there were.
async fn examine(dir: &Dir, pinned: &BTreeSet<String>) -> usize {
    let store = dir.open_sized(MAX_SIZE);
    let layout = dir.layout();
    for name in names_in(&layout.spool()) {
        assert!(!name.contains(Temporary::SUFFIX), "{name} was left");
    }
    let digests: Vec<Digest> = store
        .disk
        .with_index(|index| index.lines().iter().map(|line| line.digest).collect());
    for digest in &digests {
        let bytes = bytes_of(&store.disk, digest)
            .await
            .expect("what is visible is there");
        assert_eq!(Digest::sha256(&bytes), *digest);
    }
    assert_eq!(dir.metrics().store_quarantined.get(), 0);
    assert_eq!(dir.metrics().store_errors.get(), 0);
    let here = repository("docker.io/library/a");
    for tag in store.tags.tags(&here).await.unwrap() {
        assert!(
            store.tags.get(&here, &tag).await.is_some(),
            "{tag} is damaged"
        );
    }
    for image in pinned {
        let pin = store
            .disk
            .pins()
            .image(image)
            .expect("a pin that was acknowledged");
        for blob in &pin.closure {
            let bytes = bytes_of(&store.disk, &blob.digest).await;
            assert!(bytes.is_some(), "{} of {image} is gone", blob.digest);
            assert!(store.links.link(&here, &blob.digest).await.is_some());
        }
    }
    // Sometimes the child finds a clean store, sometimes not.
    if digests.len().is_multiple_of(2) {
        store.close().await.unwrap();
    }
    digests.len()
}

/// The child: does a bit of everything for ever, and says `+` after each step.
async fn work(path: &Path) -> ! {
    let metrics = Arc::default();
    let mut store = open(path, MAX_SIZE, &metrics).unwrap();
    let here = repository("docker.io/library/a");
    let random = RandomState::new();
    for step in 0_u64.. {
        let number = random.hash_one(step);
        let length = usize::try_from((number >> 32) % 400_000).unwrap();
        let mut said = String::new();
        match number % 9 {
            8 => {
                let layer = put(&store.disk, &content(number, length / 10)).await;
                let image = put(&store.disk, &manifest(number, &[layer])).await;
                // As one that is pinned is held.
                let _holds = [image, layer].map(|digest| store.disk.hold(&digest, "a test"));
                for digest in [&image, &layer] {
                    store.links.add_link(&here, digest, None).await;
                }
                let name = catalog::Name {
                    repository: here.clone(),
                    reference: Reference::Digest(image),
                    digest: image,
                };
                let pin = image_pin(&format!("image-{}", number % 5), &[image, layer]);
                // Another commit may have had it evicted before it was held.
                if store
                    .pin_image(vec![name.clone()], pin.clone())
                    .await
                    .is_ok()
                {
                    said = format!("!{}!", pin.image);
                }
            }
            0..3 => {
                let digest = put(&store.disk, &content(number, length / 10)).await;
                store.links.add_link(&here, &digest, None).await;
                let media_type = MediaType::parse("application/json").unwrap();
                let tag: Tag = format!("v{}", number % 40).parse().unwrap();
                let entry = TagEntry::new(digest, media_type, 1, i64::try_from(step).unwrap());
                store.tags.record(&here, &tag, Variant::Any, entry).await;
                store
                    .links
                    .add_led(&here, &Reference::Tag(tag), &[digest])
                    .await;
            }
            3..6 => drop(commit(&store.disk, &content(number, length)).await),
            6 => {
                store.links.flush().await;
                store.tags.flush().await;
                store.disk.round(true, true).unwrap();
            }
            _ => {
                store.close().await.unwrap();
                if number & 8 == 0 {
                    // Dropped first: there is one owner at a time.
                    drop(store);
                    store = open(path, MAX_SIZE, &metrics).unwrap();
                }
            }
        }
        let mut out = std::io::stdout();
        said.push('+');
        out.write_all(said.as_bytes())
            .and_then(|()| out.flush())
            .unwrap();
    }
    unreachable!("there are many steps")
}
