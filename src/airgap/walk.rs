//! From an image's manifest to everything that belongs to it. No I/O: who calls has the manifests.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::oci::{Digest, Manifest};

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// In an order that depends on nothing but the manifests: the roots first, each manifest before
    /// what it refers to.
    pub(super) reached: Vec<Digest>,
    /// Needed, but not there.
    pub(super) missing: Vec<Digest>,
}

/// Goes down from `roots`, and to what has one of the manifests on the way as its subject.
/// `manifests` are all that may belong to it, `is_there` says whether a blob is to be had.
///
/// An index need not have all its manifests, but one of them; an image needs all its layers but
/// those that are to be had elsewhere.
pub(super) fn walk(
    roots: &[Digest],
    manifests: &HashMap<Digest, Manifest>,
    is_there: impl Fn(&Digest) -> bool,
) -> Walk {
    let mut walk = Walk::default();
    let mut seen: HashSet<Digest> = HashSet::new();
    let mut referrers: HashMap<Digest, Vec<Digest>> = HashMap::new();
    for (digest, manifest) in manifests {
        if let Some(subject) = manifest.subject() {
            referrers.entry(subject).or_default().push(*digest);
        }
    }
    for list in referrers.values_mut() {
        list.sort_unstable();
    }
    let mut next: VecDeque<Digest> = roots
        .iter()
        .copied()
        .filter(|root| seen.insert(*root))
        .collect();
    while let Some(digest) = next.pop_front() {
        let Some(manifest) = manifests.get(&digest) else {
            walk.missing.push(digest);
            continue;
        };
        walk.reached.push(digest);
        // Only what could be parsed is among them.
        let children = manifest.children().unwrap_or_default();
        let (images, files): (Vec<_>, Vec<_>) =
            children.into_iter().partition(|child| child.is_manifest);
        for file in files {
            if is_there(&file.digest) {
                if seen.insert(file.digest) {
                    walk.reached.push(file.digest);
                }
            } else if !file.is_foreign() && seen.insert(file.digest) {
                walk.missing.push(file.digest);
            }
        }
        let here = images
            .iter()
            .filter(|image| manifests.contains_key(&image.digest));
        let here: Vec<Digest> = here.map(|image| image.digest).collect();
        if here.is_empty() {
            walk.missing
                .extend(images.first().map(|image| image.digest));
        }
        let about = referrers.get(&digest).into_iter().flatten().copied();
        next.extend(
            here.into_iter()
                .chain(about)
                .filter(|digest| seen.insert(*digest)),
        );
    }
    walk
}
