//! Pins: what is never evicted, and the files that remember it.
//!
//! *An image* is pinned with its closure: every manifest and blob of the chosen platforms, by
//! digest, so that a tag that moves changes nothing. *A pattern*, in the language of policy rules,
//! pins whatever is cached and matches, now or later, as long as that fits.
//!
//! ```text
//! v1/pins/<sha256 of image>.json     {"image", "platforms", "closure", "by", "at"}
//! v1/pins/<sha256 of pattern>.json   {"pattern", "by", "at"}
//! ```
//!
//! A file is there, durably, before anybody is told that something is pinned.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::StoreError;
use super::files::{Faults, Temporary, found, lock, sync_dir};
use super::layout::Layout;
use crate::oci::{Digest, Reference, Repository, Tag};
use crate::policy::{Hit, Pattern};

/// An image that is kept whole.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImagePin {
    /// In canonical form, with a tag or a digest.
    pub image: String,
    /// As they were asked for; empty: all that the index has.
    pub platforms: Vec<String>,
    /// Manifests before what they refer to.
    pub closure: Vec<PinnedBlob>,
    /// Who wanted it: `cache pin`, say.
    pub by: String,
    /// Since when, in unix seconds.
    pub at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PinnedBlob {
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PatternPin {
    /// As it was written.
    pub pattern: String,
    pub by: String,
    /// Since when, in unix seconds.
    pub at: i64,
}

/// What a file may say.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum File {
    Image(ImagePin),
    Pattern(PatternPin),
}

/// How firmly a blob is pinned; the greater the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strength {
    Pattern,
    Image,
}

/// All pins of a store.
#[derive(Debug)]
pub struct Pins {
    layout: Layout,
    faults: Arc<Faults>,
    named: Mutex<Named>,
    /// The closures of all images, and the repositories of these.
    closures: ArcSwap<HashMap<Digest, Vec<Arc<str>>>>,
    patterns: ArcSwap<Vec<(Arc<str>, Pattern)>>,
    matched: Mutex<Matched>,
}

#[derive(Debug, Default)]
struct Named {
    images: BTreeMap<String, Arc<ImagePin>>,
    patterns: BTreeMap<String, PatternPin>,
}

/// Which pattern keeps a digest: links and tags that match, not what they lead to.
#[derive(Debug, Default)]
struct Matched {
    all: HashMap<Digest, Arc<str>>,
    /// What was added since a scan began.
    new: HashMap<Digest, Arc<str>>,
}

/// A scan of what patterns match is under way.
pub(super) struct Scan {
    found: HashMap<Digest, Arc<str>>,
    patterns: Arc<Vec<(Arc<str>, Pattern)>>,
}

// === impl Pins ===

impl Pins {
    /// Reads the files. Blocks.
    pub(super) fn load(layout: &Layout, faults: &Arc<Faults>) -> Result<Self, StoreError> {
        let pins = Pins {
            layout: layout.clone(),
            faults: Arc::clone(faults),
            named: Mutex::default(),
            closures: ArcSwap::default(),
            patterns: ArcSwap::default(),
            matched: Mutex::default(),
        };
        let directory = layout.pins();
        let what = format!("read {}", directory.display());
        let files = read_all(&directory).map_err(StoreError::io(what))?;
        {
            let mut named = lock(&pins.named);
            for (path, bytes) in files {
                match serde_json::from_slice(&bytes) {
                    Ok(File::Image(pin)) => {
                        named.images.insert(pin.image.clone(), Arc::new(pin));
                    }
                    Ok(File::Pattern(pin)) => {
                        named.patterns.insert(pin.pattern.clone(), pin);
                    }
                    // Left where it is: it says what somebody wanted kept.
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "a pin cannot be read");
                    }
                }
            }
            pins.publish(&named);
        }
        Ok(pins)
    }

    /// Puts into force what `named` says.
    fn publish(&self, named: &Named) {
        let mut closures: HashMap<Digest, Vec<Arc<str>>> = HashMap::new();
        for pin in named.images.values() {
            let repository: Arc<str> = repository_of(&pin.image).into();
            for blob in &pin.closure {
                let repositories = closures.entry(blob.digest).or_default();
                if !repositories.contains(&repository) {
                    repositories.push(Arc::clone(&repository));
                }
            }
        }
        self.closures.store(Arc::new(closures));
        let compile = |text: &String| match Pattern::parse(text) {
            Ok(pattern) => Some((Arc::from(text.as_str()), pattern)),
            Err(error) => {
                tracing::error!(%error, "a pinned pattern cannot be read");
                None
            }
        };
        let patterns = named.patterns.keys().filter_map(compile);
        self.patterns.store(Arc::new(patterns.collect()));
    }

    /// Whether and how firmly a blob is pinned by itself; what a pinned manifest refers to is not
    /// looked for here.
    pub(super) fn strength(&self, digest: &Digest) -> Option<Strength> {
        if self.closures.load().contains_key(digest) {
            Some(Strength::Image)
        } else if self.has_patterns() && lock(&self.matched).all.contains_key(digest) {
            Some(Strength::Pattern)
        } else {
            None
        }
    }

    /// The images whose closure has the digest.
    #[must_use]
    pub fn images_with(&self, digest: &Digest) -> Vec<Arc<ImagePin>> {
        let has = |pin: &&Arc<ImagePin>| pin.closure.iter().any(|blob| blob.digest == *digest);
        lock(&self.named)
            .images
            .values()
            .filter(has)
            .cloned()
            .collect()
    }

    /// Whether an image of this repository is pinned and has the digest. Takes no lock.
    #[must_use]
    pub fn keeps(&self, repository: &Repository, digest: &Digest) -> bool {
        let closures = self.closures.load();
        let Some(repositories) = closures.get(digest) else {
            return false;
        };
        let name = repository.to_string();
        repositories.iter().any(|kept| **kept == *name)
    }

    /// A pattern that matches a link or a tag of this digest.
    #[must_use]
    pub fn pattern_with(&self, digest: &Digest) -> Option<Arc<str>> {
        lock(&self.matched).all.get(digest).cloned()
    }

    /// By the image's canonical name.
    #[must_use]
    pub fn image(&self, image: &str) -> Option<Arc<ImagePin>> {
        lock(&self.named).images.get(image).cloned()
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> (Vec<Arc<ImagePin>>, Vec<PatternPin>) {
        let named = lock(&self.named);
        let images = named.images.values().cloned().collect();
        (images, named.patterns.values().cloned().collect())
    }

    pub(super) fn has_patterns(&self) -> bool {
        !self.patterns.load().is_empty()
    }

    /// Bytes of all closures if `new` were there too, each blob once. What they replace does not
    /// count.
    pub(super) fn size_with(&self, new: &[ImagePin]) -> u64 {
        let named = lock(&self.named);
        let names: HashSet<&str> = new.iter().map(|pin| pin.image.as_str()).collect();
        let others = named.images.values().map(AsRef::as_ref);
        let others = others.filter(|pin: &&ImagePin| !names.contains(pin.image.as_str()));
        let blobs = others.chain(new).flat_map(|pin| &pin.closure);
        let sizes: HashMap<Digest, u64> = blobs.map(|blob| (blob.digest, blob.size)).collect();
        sizes
            .values()
            .fold(0, |sum, size| sum.saturating_add(*size))
    }
}

// === impl Pins: the files ===

impl Pins {
    /// Blocks until it would survive a power loss. The blobs must do so already.
    pub(super) fn add_image(&self, pin: ImagePin) -> Result<(), StoreError> {
        let mut named = lock(&self.named);
        self.write(&pin.image.clone(), &File::Image(pin.clone()))?;
        named.images.insert(pin.image.clone(), Arc::new(pin));
        self.publish(&named);
        Ok(())
    }

    /// Blocks until it would survive a power loss.
    pub(super) fn add_pattern(&self, pin: PatternPin) -> Result<(), StoreError> {
        let mut named = lock(&self.named);
        self.write(&pin.pattern.clone(), &File::Pattern(pin.clone()))?;
        named.patterns.insert(pin.pattern.clone(), pin);
        self.publish(&named);
        Ok(())
    }

    /// Unpins an image or a pattern, durably; false when there is no such pin. Blocks.
    pub(super) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let mut named = lock(&self.named);
        let known = named.images.contains_key(name) || named.patterns.contains_key(name);
        if known {
            let path = self.path(name);
            let remove = || {
                found(std::fs::remove_file(&path))?;
                sync_dir(&self.layout.pins())
            };
            let what = format!("remove {}", path.display());
            self.faults.noted(remove().map_err(StoreError::io(what)))?;
            named.images.remove(name);
            named.patterns.remove(name);
            self.publish(&named);
        }
        Ok(known)
    }

    fn write(&self, name: &str, file: &File) -> Result<(), StoreError> {
        let path = self.path(name);
        let write = || {
            let json = serde_json::to_vec(file).map_err(io::Error::other)?;
            let temporary = Temporary::write(&self.layout, &json)?;
            temporary.file().sync_all()?;
            temporary.name(&path)?;
            sync_dir(&self.layout.pins())?;
            // The directory itself may be new.
            sync_dir(&self.layout.v1())
        };
        let what = format!("write {}", path.display());
        self.faults.noted(write().map_err(StoreError::io(what)))
    }

    fn path(&self, name: &str) -> PathBuf {
        let hash = Digest::sha256(name.as_bytes());
        self.layout.pins().join(format!("{}.json", hash.hex()))
    }
}

fn read_all(directory: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let bytes = std::fs::read(&path)?;
            files.push((path, bytes));
        }
    }
    Ok(files)
}

// === impl Pins: patterns ===

impl Pins {
    /// The repository has a link to the digest from now on.
    pub(super) fn linked(&self, repository: &Repository, digest: &Digest) {
        self.note(repository, &Reference::Digest(*digest), digest);
    }

    /// The tag points to the digest from now on.
    pub(super) fn tagged(&self, repository: &Repository, tag: &Tag, digest: &Digest) {
        self.note(repository, &Reference::Tag(tag.clone()), digest);
    }

    fn note(&self, repository: &Repository, reference: &Reference, digest: &Digest) {
        let patterns = self.patterns.load();
        if let Some(pattern) = matching(&patterns, repository, Some(reference), Hit::Yes) {
            let mut matched = lock(&self.matched);
            matched.all.insert(*digest, Arc::clone(&pattern));
            matched.new.insert(*digest, pattern);
        }
    }

    /// Begins to find anew what patterns match; what is linked or tagged meanwhile is not lost.
    pub(super) fn begin_scan(&self) -> Scan {
        lock(&self.matched).new.clear();
        Scan {
            found: HashMap::new(),
            patterns: self.patterns.load_full(),
        }
    }

    pub(super) fn end_scan(&self, scan: Scan) {
        let mut matched = lock(&self.matched);
        let new = std::mem::take(&mut matched.new);
        matched.all = scan.found;
        matched.all.extend(new);
    }
}

// === impl Scan ===

impl Scan {
    /// Whether the repository has to be looked into.
    pub(super) fn may_match(&self, repository: &Repository) -> bool {
        matching(&self.patterns, repository, None, Hit::Unsure).is_some()
    }

    pub(super) fn see(&mut self, repository: &Repository, reference: &Reference, digest: Digest) {
        if let Some(pattern) = matching(&self.patterns, repository, Some(reference), Hit::Yes) {
            self.found.insert(digest, pattern);
        }
    }
}

/// Of an image's canonical name.
fn repository_of(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or_default();
    let version = path.rfind(':').filter(|at| path.rfind('/') < Some(*at));
    version.map_or(path, |at| &path[..at])
}

/// The first pattern that hits as well as `least`: `Unsure` is content with a name that matches.
fn matching(
    patterns: &[(Arc<str>, Pattern)],
    repository: &Repository,
    reference: Option<&Reference>,
    least: Hit,
) -> Option<Arc<str>> {
    if patterns.is_empty() {
        return None;
    }
    let name = repository.to_string();
    let hits = |(_, pattern): &&(Arc<str>, Pattern)| match pattern.hit(&name, reference) {
        Hit::Yes => true,
        Hit::Unsure => least == Hit::Unsure,
        Hit::No => false,
    };
    patterns.iter().find(hits).map(|(text, _)| Arc::clone(text))
}

#[cfg(test)]
mod tests;
