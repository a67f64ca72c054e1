//! A store that fails and a store that hangs. What a store that works must do stands in
//! `tests/it/contract.rs`, where the real ones are.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use object_store::UpdateVersion;

use super::fake::{Fake, Mood};
use super::parts::PART;
use super::small::RACES;
use super::*;
use crate::oci::{Digest, Repository, Tag};

fn shared() -> (Arc<Fake>, Arc<Shared>) {
    let fake = Arc::new(Fake::default());
    let shared = Shared::new(Arc::clone(&fake) as _, None, "fleet");
    (fake, Arc::new(shared))
}

fn file(bytes: &[u8]) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    Arc::new(file)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_failed_three_times_is_left_alone_for_five_seconds() {
    let (fake, shared) = shared();
    let digest = Digest::sha256(b"x");
    let name = Name::Claim(&digest);
    // A no is an answer.
    for _ in 0..2 * FAILURES {
        assert!(shared.get(name).await.unwrap().is_none());
    }
    fake.is(Mood::Failing);
    for _ in 0..FAILURES {
        assert!(shared.is_up());
        let error = shared.get(name).await.unwrap_err();
        assert!(matches!(error, SharedError::Failed { .. }), "{error}");
    }
    assert!(!shared.is_up());
    let asked = fake.asked();
    let error = shared.get(name).await.unwrap_err();
    assert!(matches!(error, SharedError::Down), "{error}");
    let error = shared.list(Tree::Claims).try_next().await.unwrap_err();
    assert!(matches!(error, SharedError::Down), "{error}");
    assert_eq!(fake.asked(), asked);

    tokio::time::advance(DOWN).await;
    // One that still fails is left alone again, after one try.
    shared.get(name).await.unwrap_err();
    assert_eq!(fake.asked(), asked + 1);
    assert!(!shared.is_up());

    tokio::time::advance(DOWN).await;
    fake.is(Mood::Fine);
    assert!(shared.get(name).await.unwrap().is_none());
    fake.is(Mood::Failing);
    shared.get(name).await.unwrap_err();
    assert!(shared.is_up(), "an answer is a new start");
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_when_the_store_hangs() {
    let bytes = vec![7; 2 * PART + 1];
    let digest = Digest::sha256(&bytes);
    let file = file(&bytes);
    let size = bytes.len() as u64;
    let name = Name::Claim(&digest);
    let version = Version(UpdateVersion {
        e_tag: Some("1".into()),
        version: None,
    });
    macro_rules! ends {
        ($($call:expr),* $(,)?) => { $({
            let (fake, shared) = shared();
            fake.is(Mood::Hanging);
            let call = async { let _ = &shared; let call: Result<(), SharedError> = ($call)(&shared).await; call };
            let started = Instant::now();
            let error = call.await.expect_err(stringify!($call));
            assert!(matches!(error, SharedError::TimedOut(_)), "{error}");
            assert!(started.elapsed() <= 3 * HEADER, "{:?}: {error}", started.elapsed());
        })* };
    }
    ends!(
        async |s: &Shared| s.stat(&digest).await.map(drop),
        async |s: &Shared| s.open(&digest, None).await.map(drop),
        async |s: &Shared| s.read(&digest).await.map(drop),
        async |s: &Shared| s.put_bytes(&digest, Bytes::new()).await,
        async |s: &Shared| s.put_blob(&digest, &file, 9).await,
        async |s: &Shared| s.put_blob(&digest, &file, size).await,
        async |s: &Shared| s.delete_blob(&digest).await,
        async |s: &Shared| s.quarantine(&digest).await,
        async |s: &Shared| s.get(name).await.map(drop),
        async |s: &Shared| s.create(name, Bytes::new()).await.map(drop),
        async |s: &Shared| s.replace(name, &version, Bytes::new()).await.map(drop),
        async |s: &Shared| s.overwrite(name, Bytes::new()).await,
        async |s: &Shared| s.update(name, |_| Some(Bytes::new())).await.map(drop),
        async |s: &Shared| s.delete(name).await,
        async |s: &Arc<Shared>| s.list(Tree::Blobs).try_next().await.map(drop),
    );
}

#[tokio::test]
async fn who_is_refused_is_told_where_to_look() {
    let (fake, shared) = shared();
    fake.is(Mood::Refusing);
    let error = shared.stat(&Digest::sha256(b"x")).await.unwrap_err();
    let text = error.to_string();
    for part in [
        "store.shared.credential",
        "store.shared.secret",
        "clock",
        "look up fleet/v1/blobs",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn a_change_that_always_loses_gives_up() {
    let (_, shared) = shared();
    let repository = Repository::new("registry.example".parse().unwrap(), "a".parse().unwrap());
    let (repository, tag): (Repository, Tag) = (repository.unwrap(), "1".parse().unwrap());
    let name = Name::Tag(&repository, &tag);
    let mut rounds = 0_usize;
    let error = shared.update(name, |_| {
        // Somebody else is always faster.
        rounds += 1;
        let other = shared.overwrite(name, Bytes::from(vec![1; rounds]));
        futures_util::FutureExt::now_or_never(other)
            .expect("memory does not wait")
            .unwrap();
        Some(Bytes::from_static(b"ours"))
    });
    let error = error.await.unwrap_err();
    assert!(matches!(error, SharedError::Contended { .. }), "{error}");
    assert_eq!(rounds, RACES);
}
