//! Where things lie below `store.path`. `v1` is the format: what is not understood there is left
//! alone, and another format would be another directory.
//!
//! Names become paths without escaping: [`Digest`], [`Repository`] and [`Tag`] can hold nothing
//! that climbs out of a directory, and no part of a repository's name starts with `_`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::{Algorithm, Digest, Repository, Tag};

/// The paths of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: Arc<Path>,
}

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Layout { root: root.into() }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    pub(super) fn v1(&self) -> PathBuf {
        self.root.join("v1")
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("v1/index")
    }

    pub(super) fn gone(&self) -> PathBuf {
        self.root.join("v1/gone")
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("v1/pins")
    }

    pub(super) fn ledger(&self) -> PathBuf {
        self.root.join("v1/ledger.json")
    }

    pub(super) fn imports(&self) -> PathBuf {
        self.root.join("v1/imports")
    }

    pub(super) fn import(&self, id: &Digest) -> PathBuf {
        self.imports().join(format!("{}.json", id.hex()))
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join("v1/uploads")
    }

    pub(super) fn pulls(&self) -> PathBuf {
        self.root.join("v1/pulls")
    }

    /// The directory of what is known of all repositories.
    pub(super) fn repositories(&self) -> PathBuf {
        self.root.join("v1/repos")
    }

    /// The directory of all blobs of one algorithm.
    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("v1/blobs").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.blobs(digest.algorithm());
        path.push(&hex[..2]);
        path.push(hex);
        path
    }

    pub(super) fn spool(&self) -> PathBuf {
        self.root.join("v1/spool")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("v1/quarantine")
    }

    pub(super) fn links(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_links")
    }

    pub(super) fn led(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_led")
    }

    pub(super) fn tags(&self, repository: &Repository) -> PathBuf {
        self.repository(repository).join("_tags")
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.tags(repository).join(format!("{tag}.json"))
    }

    fn repository(&self, repository: &Repository) -> PathBuf {
        let mut path = self.repositories();
        path.push(repository.registry.as_str());
        path.push(repository.name.as_str());
        path
    }
}
