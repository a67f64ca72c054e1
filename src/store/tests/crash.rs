//! `kill -9` at any moment (fault row F25): a child process works on a store and is killed, again
//! and again; what it leaves must always be a store in which everything visible is right.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::files::Temporary;
use super::super::tags::{TagEntry, Variant};
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
    let mut seen = 0;
    for round in 0..KILLS {
        kill_somewhere(RandomState::new().hash_one(round), dir.path());
        seen += runtime.block_on(examine(&dir));
    }
    assert!(seen > 0, "the child has done nothing");
}

/// Starts a child and kills it some steps and some microseconds later.
fn kill_somewhere(random: u64, path: &Path) {
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
    }
    // Orders nothing: without it the kill would always hit the beginning of a step.
    std::thread::sleep(Duration::from_micros((random >> 32) % 5000));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Says how many blobs there were.
async fn examine(dir: &Dir) -> usize {
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
    store.links.digests(&here).await;
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
        match number % 8 {
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
        out.write_all(b"+").and_then(|()| out.flush()).unwrap();
    }
    unreachable!("there are many steps")
}
