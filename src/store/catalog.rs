//! What is here, seen as images: every repository's tags and links joined with the blobs.
//!
//! Made anew for each question of an operator, from the files and a copy of the index; no pull
//! comes near it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::disk::Disk;
use super::files::{blocking, found, lock};
use super::index::Known;
use super::layout::Layout;
use super::links::{Link, Links};
use super::tags::{TagRecord, Tags, Variant};
use super::{Store, StoreError};
use crate::oci::{Digest, MediaType, Reference, Repository, Tag};
use crate::policy::{Hit, Pattern};

/// Levels of directories in a repository's name: more than fit into its 255 bytes.
const DEEPEST: usize = 128;

/// One look at the whole store.
#[derive(Debug)]
pub struct Catalog {
    blobs: HashMap<Digest, Known>,
    shelves: Vec<Shelf>,
}

/// What is known of one repository.
#[derive(Debug)]
struct Shelf {
    repository: Repository,
    links: HashMap<Digest, Link>,
    tags: Vec<(Tag, Arc<TagRecord>)>,
}

/// A name for a manifest that is here or was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub repository: Repository,
    /// A digest where no tag names it.
    pub reference: Reference,
    pub digest: Digest,
}

/// A blob that is here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlobState {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Last use, in unix seconds.
    pub used: i64,
    /// Its bytes are known to hash; else they will be hashed before they are served.
    pub trusted: bool,
}

/// How much of an image is here.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageState {
    /// `registry/repository:tag`, or with a digest where no tag names it.
    pub image: String,
    pub digest: Digest,
    /// Bytes that are here of everything it leads to.
    pub size: u64,
    /// Last use of any of it, in unix seconds.
    pub used: i64,
    /// Whether everything that it leads to is here.
    pub complete: bool,
    /// Of an index: manifests that are here, and all that it lists.
    pub manifests: Option<(usize, usize)>,
    /// Configurations and layers that are not here though their manifest is.
    pub missing: Vec<Digest>,
    pub pinned: bool,
}

/// What only some images need.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OnlyOf {
    /// Blobs that are here.
    pub blobs: Vec<Digest>,
    /// Digests that the repository itself has no other use for.
    pub links: Vec<Digest>,
}

/// Everything below a manifest.
#[derive(Debug, Default)]
pub struct Below {
    /// The manifest first, if it is here, each before what it refers to.
    pub here: Vec<Digest>,
    /// Referred to, but not here; with those who refer to it.
    pub missing: Vec<(Digest, Digest)>,
}

// === impl Store ===

impl Store {
    /// Looks at everything. Takes time and memory with the number of blobs and tags.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        self.links.flush().await;
        self.tags.flush().await;
        let disk = Arc::clone(&self.disk);
        blocking(move || disk.catalog()).await
    }
}

// === impl Disk ===

impl Disk {
    /// Blocks.
    fn catalog(&self) -> Result<Catalog, StoreError> {
        let known = lock(&self.index).known(Instant::now());
        Ok(Catalog {
            blobs: known.into_iter().map(|blob| (blob.digest, blob)).collect(),
            shelves: self.shelves(|_| true)?,
        })
    }

    /// Finds anew what pinned patterns match. Blocks.
    pub(super) fn scan_patterns(&self) -> Result<(), StoreError> {
        let mut scan = self.pins.begin_scan();
        if self.pins.has_patterns() {
            for shelf in self.shelves(|repository| scan.may_match(repository))? {
                for digest in shelf.links.keys() {
                    scan.see(&shelf.repository, &Reference::Digest(*digest), *digest);
                }
                for (tag, record) in &shelf.tags {
                    for digest in current(record) {
                        scan.see(&shelf.repository, &Reference::Tag(tag.clone()), digest);
                    }
                }
            }
        }
        self.pins.end_scan(scan);
        Ok(())
    }

    fn shelves(&self, wanted: impl Fn(&Repository) -> bool) -> Result<Vec<Shelf>, StoreError> {
        let read = || {
            let mut shelves = Vec::new();
            for repository in repositories(&self.layout)? {
                if wanted(&repository) {
                    shelves.push(Shelf {
                        links: Links::on_disk(&self.layout, &repository, &self.faults),
                        tags: Tags::on_disk(&self.layout, &repository, &self.faults)?,
                        repository,
                    });
                }
            }
            Ok(shelves)
        };
        self.faults
            .noted(read().map_err(StoreError::io("read v1/repos")))
    }
}

/// All repositories of which anything is known, in order. Blocks.
fn repositories(layout: &Layout) -> io::Result<Vec<Repository>> {
    let mut found = Vec::new();
    for registry in directories(&layout.repositories())? {
        walk(
            &layout.repositories().join(&registry),
            &registry,
            "",
            0,
            &mut found,
        )?;
    }
    found.sort();
    Ok(found)
}

fn walk(
    directory: &Path,
    registry: &str,
    name: &str,
    depth: usize,
    found: &mut Vec<Repository>,
) -> io::Result<()> {
    for part in std::fs::read_dir(directory)? {
        let part = part?;
        let file = part.file_name();
        let Some(text) = file.to_str() else { continue };
        if matches!(text, "_links" | "_tags") {
            let repository = registry.parse().ok().zip(name.parse().ok());
            found.extend(
                repository.and_then(|(registry, name)| Repository::new(registry, name).ok()),
            );
        } else if !text.starts_with('_') && depth < DEEPEST && part.file_type()?.is_dir() {
            let slash = if name.is_empty() { "" } else { "/" };
            walk(
                &part.path(),
                registry,
                &format!("{name}{slash}{text}"),
                depth + 1,
                found,
            )?;
        }
    }
    found.dedup();
    Ok(())
}

fn directories(path: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = found(std::fs::read_dir(path))? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// What a tag points to, for either kind of client.
fn current(record: &TagRecord) -> impl Iterator<Item = Digest> {
    let any = record.current(Variant::Any).map(|entry| entry.digest);
    let image = record.current(Variant::Image).map(|entry| entry.digest);
    any.into_iter()
        .chain(image.filter(|digest| Some(*digest) != any))
}

// === impl Catalog ===

impl Catalog {
    /// Every blob that is here, in no order.
    pub fn blobs(&self) -> impl Iterator<Item = BlobState> {
        self.blobs.values().map(BlobState::of)
    }

    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<BlobState> {
        self.blobs.get(digest).map(BlobState::of)
    }

    /// The names of images: all tags, and linked manifests that nothing else leads to.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        let children: HashSet<&Digest> = self
            .blobs
            .values()
            .flat_map(|blob| blob.children.iter())
            .collect();
        let mut names = Vec::new();
        for shelf in &self.shelves {
            let mut tagged = HashSet::new();
            for (tag, record) in &shelf.tags {
                for digest in current(record) {
                    tagged.insert(digest);
                    names.push(shelf.name(Reference::Tag(tag.clone()), digest));
                }
            }
            for (digest, link) in &shelf.links {
                let is_here = self.blobs.contains_key(digest);
                let is_root = !tagged.contains(digest) && !children.contains(digest);
                if link.media_type.is_some() && is_here && is_root {
                    names.push(shelf.name(Reference::Digest(*digest), *digest));
                }
            }
        }
        names.sort();
        names
    }

    /// How much of each image is here. `pinned` says whether an image of this name is.
    #[must_use]
    pub fn images(&self, pinned: impl Fn(&Name) -> bool) -> Vec<ImageState> {
        let types = self.media_types();
        let state = |name: Name| {
            let below = self.below(&name.digest);
            let is_index =
                |digest: &Digest| types.get(digest).is_some_and(|found| found.is_index());
            let of_index = self
                .blobs
                .get(&name.digest)
                .filter(|_| is_index(&name.digest));
            let manifests = of_index.map(|index| {
                let here = index
                    .children
                    .iter()
                    .filter(|child| self.blobs.contains_key(child));
                (here.count(), index.children.len())
            });
            let here = below
                .here
                .iter()
                .filter_map(|digest| self.blobs.get(digest));
            let missing = below.missing.iter().filter(|(_, holder)| !is_index(holder));
            ImageState {
                image: name.to_string(),
                digest: name.digest,
                size: here.clone().map(|blob| blob.size).sum(),
                used: here.map(|blob| blob.used).max().unwrap_or(0),
                complete: below.missing.is_empty(),
                manifests,
                missing: missing.map(|(digest, _)| *digest).collect(),
                pinned: pinned(&name),
            }
        };
        self.names().into_iter().map(state).collect()
    }

    fn media_types(&self) -> HashMap<Digest, &MediaType> {
        let links = self.shelves.iter().flat_map(|shelf| &shelf.links);
        links
            .filter_map(|(digest, link)| Some((*digest, link.media_type.as_ref()?)))
            .collect()
    }

    /// What `root` leads to.
    #[must_use]
    pub fn below(&self, root: &Digest) -> Below {
        let mut below = Below::default();
        let mut seen = HashSet::from([*root]);
        let mut next = std::collections::VecDeque::from([(*root, *root)]);
        while let Some((digest, holder)) = next.pop_front() {
            let Some(blob) = self.blobs.get(&digest) else {
                below.missing.push((digest, holder));
                continue;
            };
            below.here.push(digest);
            let new = blob.children.iter().filter(|child| seen.insert(**child));
            next.extend(new.map(|child| (*child, digest)));
        }
        below
    }

    /// The manifests that are here and lead to `digest`, directly or through others.
    #[must_use]
    pub fn above(&self, digest: &Digest) -> HashSet<Digest> {
        let mut holders: HashMap<Digest, Vec<Digest>> = HashMap::new();
        for blob in self.blobs.values() {
            for child in blob.children.iter() {
                holders.entry(*child).or_default().push(blob.digest);
            }
        }
        let mut above = HashSet::new();
        let mut next = vec![*digest];
        while let Some(digest) = next.pop() {
            let direct = holders.get(&digest).into_iter().flatten();
            next.extend(direct.filter(|holder| above.insert(**holder)));
        }
        above
    }

    /// What would be of no use to any image that is here if these names were gone: blobs, and
    /// the repository's links. The names are of one repository, or of one digest.
    #[must_use]
    pub fn only_of(&self, names: &[Name]) -> OnlyOf {
        let mut all: Vec<Digest> = Vec::new();
        for name in names {
            let below = self.below(&name.digest);
            all.extend(below.here);
            all.extend(below.missing.into_iter().map(|(digest, _)| digest));
        }
        let repositories: HashSet<&Repository> =
            names.iter().map(|name| &name.repository).collect();
        let (mut needed, mut read) = (HashSet::new(), HashSet::new());
        for other in self.names().iter().filter(|other| !names.contains(other)) {
            let below = self.below(&other.digest).here;
            if repositories.contains(&other.repository) {
                read.extend(below.iter().copied());
            }
            needed.extend(below);
        }
        // A manifest that another repository gives by digest is an image there.
        for shelf in self
            .shelves
            .iter()
            .filter(|shelf| !repositories.contains(&shelf.repository))
        {
            let manifests = shelf
                .links
                .iter()
                .filter(|(_, link)| link.media_type.is_some());
            for (digest, _) in manifests.filter(|(digest, _)| all.contains(digest)) {
                needed.extend(self.below(digest).here);
            }
        }
        let blobs = all
            .iter()
            .filter(|digest| !needed.contains(digest))
            .copied();
        OnlyOf {
            blobs: blobs
                .filter(|digest| self.blobs.contains_key(digest))
                .collect(),
            links: all
                .iter()
                .filter(|digest| !read.contains(digest))
                .copied()
                .collect(),
        }
    }

    /// The blobs that a pattern matches, by a link or a tag of theirs or of what leads to them.
    #[must_use]
    pub fn matched(&self, pattern: &Pattern) -> Vec<BlobState> {
        let mut kept = HashSet::new();
        for shelf in &self.shelves {
            let name = shelf.repository.to_string();
            let hits = |reference: Reference| pattern.hit(&name, Some(&reference)) == Hit::Yes;
            let links = shelf.links.keys().copied();
            let linked = links.filter(|digest| hits(Reference::Digest(*digest)));
            let tags = shelf
                .tags
                .iter()
                .filter(|(tag, _)| hits(Reference::Tag(tag.clone())));
            let tagged = tags.flat_map(|(_, record)| current(record));
            for root in linked.chain(tagged) {
                kept.extend(self.below(&root).here);
            }
        }
        self.blobs()
            .filter(|blob| kept.contains(&blob.digest))
            .collect()
    }

    /// The repositories that may read the digest.
    pub fn linked(&self, digest: &Digest) -> impl Iterator<Item = &Repository> {
        let links = self
            .shelves
            .iter()
            .filter(move |shelf| shelf.links.contains_key(digest));
        links.map(|shelf| &shelf.repository)
    }

    pub(super) fn take_known(self) -> Vec<Known> {
        self.blobs.into_values().collect()
    }
}

impl BlobState {
    fn of(known: &Known) -> Self {
        BlobState {
            digest: known.digest,
            size: known.size,
            used: known.used,
            trusted: known.trusted,
        }
    }
}

impl Shelf {
    fn name(&self, reference: Reference, digest: Digest) -> Name {
        Name {
            repository: self.repository.clone(),
            reference,
            digest,
        }
    }
}

// === impl Name ===

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}
