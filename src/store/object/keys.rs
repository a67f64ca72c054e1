//! Where things lie in the shared store: the tree of the local disk, with one small object for each
//! link and each led digest, and what only replicas need.
//!
//! ```text
//! v1/blobs/<algorithm>/<2 hex>/<hex>
//! v1/repos/<registry>/<repository>/_tags/<tag>.json  _links/<hex>  _led/<hex>
//! v1/claims/<hex>  v1/pins/<sha256 of image>.json  v1/quarantine/<hex>-<unix seconds>
//! v1/used/<day>-<replica>  v1/pruned
//! ```
//!
//! sha256 and sha512 differ in length, so a hex says which it is.

use object_store::path::Path;

use crate::oci::{Algorithm, Digest, Repository, Tag};

/// The name of a small object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    Tag(&'a Repository, &'a Tag),
    Link(&'a Repository, &'a Digest),
    /// What led to this digest in this repository.
    Led(&'a Repository, &'a Digest),
    Claim(&'a Digest),
    /// By the sha256 of the image's name, in hex.
    Pin(&'a str),
    /// `<day>-<replica>`.
    Used(&'a str),
    /// When the last prune began, so that only one replica does it.
    Pruned,
}

/// Objects that can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tree {
    Blobs,
    /// Tags, links and led of all repositories.
    Repositories,
    Claims,
    Pins,
    Used,
    Quarantine,
}

/// The paths of one shared store. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    root: Path,
}

impl Keys {
    /// `prefix` is that of the configuration.
    pub(super) fn new(prefix: &str) -> Self {
        Keys {
            root: Path::from(prefix).join("v1"),
        }
    }

    pub(super) fn tree(&self, tree: Tree) -> Path {
        self.root.clone().join(match tree {
            Tree::Blobs => "blobs",
            Tree::Repositories => "repos",
            Tree::Claims => "claims",
            Tree::Pins => "pins",
            Tree::Used => "used",
            Tree::Quarantine => "quarantine",
        })
    }

    pub(super) fn blob(&self, digest: &Digest) -> Path {
        let hex = digest.hex();
        self.tree(Tree::Blobs)
            .join(digest.algorithm().as_str())
            .join(&hex[..2])
            .join(hex.as_str())
    }

    pub(super) fn small(&self, name: Name<'_>) -> Path {
        match name {
            Name::Tag(repository, tag) => self
                .repository(repository)
                .join("_tags")
                .join(format!("{tag}.json")),
            Name::Link(repository, digest) => self
                .repository(repository)
                .join("_links")
                .join(digest.hex()),
            Name::Led(repository, digest) => {
                self.repository(repository).join("_led").join(digest.hex())
            }
            Name::Claim(digest) => self.tree(Tree::Claims).join(digest.hex()),
            Name::Pin(hash) => self.tree(Tree::Pins).join(format!("{hash}.json")),
            Name::Used(name) => self.tree(Tree::Used).join(name),
            Name::Pruned => self.root.clone().join("pruned"),
        }
    }

    pub(super) fn quarantine(&self, digest: &Digest, now: i64) -> Path {
        self.tree(Tree::Quarantine)
            .join(format!("{}-{now}", digest.hex()))
    }

    fn repository(&self, repository: &Repository) -> Path {
        let mut path = self
            .tree(Tree::Repositories)
            .join(repository.registry.as_str());
        for part in repository.name.as_str().split('/') {
            path = path.join(part);
        }
        path
    }
}

/// The digest that a blob, a link, a led digest or a claim is named after.
pub(super) fn digest_of(path: &Path) -> Option<Digest> {
    let hex = path.filename()?;
    let algorithm = match hex.len() {
        64 => Algorithm::Sha256,
        128 => Algorithm::Sha512,
        _ => return None,
    };
    format!("{}:{hex}", algorithm.as_str()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_disk() {
        let keys = Keys::new("team/a");
        let digest = Digest::sha256(b"x");
        let hex = digest.hex();
        let repository = Repository {
            registry: "registry.example:5000".parse().unwrap(),
            name: "a/b_c/d".parse().unwrap(),
        };
        assert_eq!(
            keys.blob(&digest).as_ref(),
            format!("team/a/v1/blobs/sha256/{}/{hex}", &hex[..2])
        );
        let tag = "v1.0".parse().unwrap();
        assert_eq!(
            keys.small(Name::Tag(&repository, &tag)).as_ref(),
            "team/a/v1/repos/registry.example:5000/a/b_c/d/_tags/v1.0.json"
        );
        assert_eq!(Keys::new("").tree(Tree::Claims).as_ref(), "v1/claims");
        let link = keys.small(Name::Link(&repository, &digest));
        assert_eq!(digest_of(&link), Some(digest));
        assert_eq!(digest_of(&keys.small(Name::Pin("ab"))), None);
    }
}
