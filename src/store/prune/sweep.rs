//! What goes.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::mark::{AT_ONCE, Marks, read};
use super::{Doomed, PruneError, Pruned};
use crate::oci::Digest;
use crate::store::TagRecord;
use crate::store::object::{Listed, Shared, SharedError, Tree};

/// Blobs after which pins are looked at anew: somebody may pin what is about to go.
const BATCH: usize = 256;

impl Pruned {
    fn count(&mut self, doomed: &Doomed, tell: &mut impl FnMut(&Doomed)) {
        self.objects += 1;
        self.bytes += doomed.size;
        tell(doomed);
    }
}

impl From<&Listed> for Doomed {
    fn from(listed: &Listed) -> Self {
        Doomed {
            name: listed.path().to_owned(),
            size: listed.size,
            modified: listed.modified,
        }
    }
}

/// Takes the blobs away that nothing marked; what refers to others goes before them.
pub(super) async fn blobs(
    shared: &Arc<Shared>,
    marks: &mut Marks,
    dry_run: bool,
    tell: &mut impl FnMut(&Doomed),
) -> Result<Pruned, PruneError> {
    let mut doomed: Vec<(u8, Digest)> = {
        let doomed = marks
            .blobs
            .iter()
            .map(|(digest, blob)| (*digest, blob.size));
        let doomed = doomed.filter(|(digest, _)| marks.is_doomed(digest));
        let ranked = doomed.map(|(digest, size)| async move {
            Ok::<_, PruneError>((rank(shared, digest, size).await?, digest))
        });
        let ranked: Vec<_> = ranked.collect();
        stream::iter(ranked)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?
    };
    doomed.sort_unstable();
    if !dry_run {
        // Reading took its time.
        marks.mark(shared).await?;
    }
    let mut pruned = Pruned::default();
    for batch in doomed.chunks(BATCH) {
        if !dry_run {
            marks.mark_pins(shared).await?;
        }
        // A manifest must be gone before the first of its layers goes.
        for same in batch.chunk_by(|(a, _), (b, _)| a == b) {
            let going = same.iter().filter(|(_, digest)| marks.is_doomed(digest));
            let going: Vec<Doomed> = {
                let gone = going.map(|(_, digest)| async {
                    if !dry_run {
                        shared.delete_blob(digest).await?;
                    }
                    Ok::<_, SharedError>(doomed_blob(shared, marks, digest))
                });
                let gone: Vec<_> = gone.collect();
                stream::iter(gone)
                    .buffer_unordered(AT_ONCE)
                    .try_collect()
                    .await?
            };
            for doomed in &going {
                pruned.count(doomed, tell);
            }
        }
    }
    Ok(pruned)
}

/// Indexes, manifests, everything else.
async fn rank(shared: &Shared, digest: Digest, size: u64) -> Result<u8, PruneError> {
    match read(shared, digest, size).await {
        Ok(references) if !references.manifests.is_empty() => Ok(0),
        Ok(references) if references.has_blobs => Ok(1),
        // Nobody needs what is wrong and goes anyway.
        Ok(_) | Err(PruneError::Unreadable(_)) => Ok(2),
        Err(error) => Err(error),
    }
}

fn doomed_blob(shared: &Shared, marks: &Marks, digest: &Digest) -> Doomed {
    let blob = marks.blobs.get(digest);
    Doomed {
        name: shared.name_of(digest),
        size: blob.map_or(0, |blob| blob.size),
        modified: blob.map_or(0, |blob| blob.modified),
    }
}

/// Takes links, led digests and tags away that are old and of which no blob is left.
pub(super) async fn records(
    shared: &Arc<Shared>,
    marks: &Marks,
    dry_run: bool,
    tell: &mut impl FnMut(&Doomed),
    pruned: &mut Pruned,
) -> Result<(), PruneError> {
    let left = |digest: &Digest| marks.blobs.contains_key(digest) && !marks.is_doomed(digest);
    let mut listed = shared
        .list(Tree::Repositories)
        .try_filter(|listed| std::future::ready(marks.is_old(listed.modified)))
        .map_ok(|listed| async move {
            let goes = match listed.directory() {
                "_links" | "_led" => listed.digest().is_some_and(|digest| !left(&digest)),
                "_tags" => match shared.get_listed(&listed).await? {
                    // What changes just now is in use, and what cannot be understood is left to
                    // people.
                    Some(document) if document.version == listed.version => {
                        serde_json::from_slice::<TagRecord>(&document.bytes)
                            .is_ok_and(|record| !record.since(i64::MIN).any(|e| left(&e.digest)))
                    }
                    _ => false,
                },
                _ => false,
            };
            if goes && !dry_run {
                shared.delete_listed(&listed).await?;
            }
            Ok::<_, SharedError>(goes.then_some(listed))
        })
        .try_buffer_unordered(AT_ONCE);
    while let Some(gone) = listed.try_next().await? {
        if let Some(listed) = gone {
            pruned.count(&Doomed::from(&listed), tell);
        }
    }
    Ok(())
}

/// Takes away what is old in a tree that nothing refers to.
pub(super) async fn old(
    shared: &Arc<Shared>,
    tree: Tree,
    before: i64,
    dry_run: bool,
    tell: &mut impl FnMut(&Doomed),
    pruned: &mut Pruned,
) -> Result<(), PruneError> {
    let mut listed = shared.list(tree);
    while let Some(listed) = listed.try_next().await? {
        if listed.modified < before {
            if !dry_run {
                shared.delete_listed(&listed).await?;
            }
            pruned.count(&Doomed::from(&listed), tell);
        }
    }
    Ok(())
}
