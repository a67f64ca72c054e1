//! What goes from the shared store, and what stays: mark and sweep, beside running replicas.
//!
//! *Roots* are what tags pointed to within the window, every pin, what any replica says it used
//! within the window ([`super::used`]), and claims. Whatever they lead to is marked. Then goes, in
//! this order, what is older than the window by the store's own clock and not marked: indexes,
//! manifests, other blobs; links, led digests and tags of which nothing is left; old notes of use
//! and what was set aside.
//!
//! Nothing goes when anything that leads on cannot be read. What is younger than the window always
//! stays, and keeps what it refers to: it may be half of an image that is being uploaded.

mod mark;
mod pins;
mod schedule;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use pins::PublishError;
pub use schedule::run;

use super::object::{Shared, SharedError, Tree};

/// What one run took away, or would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Pruned {
    pub objects: u64,
    pub bytes: u64,
    /// Blobs that stay.
    pub kept: u64,
}

/// One object that goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Doomed {
    /// Its name in the store.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// When it was last written, in unix seconds by the store's clock.
    pub modified: i64,
}

/// Why a run ended early. What it took away until then was right to go.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(
        "{0} cannot be understood, so it is not known what it keeps; nothing was pruned: look at \
         it, and take it away if it is broken"
    )]
    Unreadable(String),
}

/// Takes away what was not used since `before` (unix seconds), and tells each; with `dry_run` only
/// tells. Memory: about 150 bytes for each blob in the store.
///
/// # Errors
///
/// At the first thing that cannot be read or taken away. Cancel-safe: the next run goes on.
pub async fn prune(
    shared: &Arc<Shared>,
    before: i64,
    dry_run: bool,
    mut tell: impl FnMut(&Doomed),
) -> Result<Pruned, PruneError> {
    let mut marks = mark::Marks::new(before);
    marks.mark(shared).await?;
    let kept = marks.kept();
    let mut pruned = sweep::blobs(shared, &mut marks, dry_run, &mut tell).await?;
    pruned.kept = kept;
    sweep::records(shared, &marks, dry_run, &mut tell, &mut pruned).await?;
    for tree in [Tree::Used, Tree::Quarantine] {
        sweep::old(shared, tree, before, dry_run, &mut tell, &mut pruned).await?;
    }
    Ok(pruned)
}
