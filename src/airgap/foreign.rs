//! Image layouts of other tools: `skopeo copy .. oci-archive:FILE:NAME`, `ctr images export`.
//!
//! Their index.json names images, in an annotation; a name counts when it is a full one, because
//! nothing else says where an image is from. What belongs to it is what its manifest leads to, and
//! whatever in the same layout has a part of that as its subject.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use serde::Deserialize;

use super::AirgapError;
use super::bundle::NAME_ANNOTATIONS;
use super::walk::walk;
use crate::oci::{Digest, Image, Manifest, MediaType};
use crate::store::Store;
use crate::store::imports::{BundledImage, LARGEST_MANIFEST, Part};

/// Manifests of one layout.
const MOST_MANIFESTS: usize = 20_000;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    media_type: Option<String>,
    digest: Digest,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

/// The images that an index.json names. Manifests are those that `came` with it, with their sizes in
/// bytes; other blobs may have been in the store before.
///
/// # Errors
/// When there is no full name, or something is missing.
pub(super) async fn images(
    store: &Store,
    index: &[u8],
    came: &HashMap<Digest, u64>,
) -> Result<Vec<BundledImage>, AirgapError> {
    let size = |digest: &Digest| {
        let here = || store.disk.stat(digest);
        came.get(digest).copied().or_else(here)
    };
    let index: Index = serde_json::from_slice(index)
        .map_err(|error| AirgapError::Bundle(format!("its index.json makes no sense: {error}")))?;
    let mut manifests = HashMap::new();
    let mut next: VecDeque<(Digest, Option<String>)> = VecDeque::new();
    let tops = index.manifests.iter();
    next.extend(tops.map(|named| (named.digest, named.media_type.clone())));
    let mut seen: HashSet<Digest> = HashSet::new();
    while let Some((digest, media_type)) = next.pop_front() {
        if !seen.insert(digest) {
            continue;
        }
        if seen.len() > MOST_MANIFESTS {
            return Err(AirgapError::Bundle("it has too many manifests".to_owned()));
        }
        if !came.contains_key(&digest) {
            continue;
        }
        let bytes = store.disk.read(&digest, LARGEST_MANIFEST).await?;
        let bytes = bytes.ok_or(AirgapError::Gone(digest))?;
        let manifest = parse(bytes, media_type.as_deref(), &digest)?;
        let children = manifest.children().unwrap_or_default();
        let images = children.into_iter().filter(|child| child.is_manifest);
        next.extend(images.map(|child| {
            let media_type = child.media_type.as_ref().map(MediaType::to_string);
            (child.digest, media_type)
        }));
        manifests.insert(digest, manifest);
    }
    let mut images: HashMap<String, BundledImage> = HashMap::new();
    for named in &index.manifests {
        for image in full_names(named) {
            let image = image_of(image, named.digest, &manifests, size)?;
            let name = image.name().to_string();
            let other = images.insert(name.clone(), image);
            if other.is_some_and(|other| other.digest != named.digest) {
                return Err(AirgapError::Bundle(format!("{name} is two images in it")));
            }
        }
    }
    if images.is_empty() {
        return Err(AirgapError::Bundle(
            "it names no image in full, as registry.example/app:1; \
             `skopeo copy SOURCE oci-archive:FILE:NAME` writes such a name"
                .to_owned(),
        ));
    }
    let mut images: Vec<BundledImage> = images.into_values().collect();
    images.sort_by_cached_key(BundledImage::name);
    Ok(images)
}

/// A manifest as bytes say that it is one.
pub(super) fn parse(
    bytes: Bytes,
    media_type: Option<&str>,
    digest: &Digest,
) -> Result<Manifest, AirgapError> {
    let manifest = Manifest::parse(bytes, media_type, digest.algorithm());
    manifest.map_err(|error| AirgapError::Bundle(format!("{digest}: {error}")))
}

fn full_names(named: &Named) -> Vec<Image> {
    let texts = NAME_ANNOTATIONS
        .iter()
        .filter_map(|key| named.annotations.get(*key));
    let mut images: Vec<Image> = texts.filter_map(|text| full_name(text)).collect();
    images.dedup();
    images
}

/// With a registry, and a tag or a digest.
fn full_name(text: &str) -> Option<Image> {
    let (registry, _) = text.split_once('/')?;
    let is_registry = registry.contains(['.', ':']) || registry == "localhost";
    let image: Image = text.parse().ok().filter(|_| is_registry)?;
    (image.tag.is_some() || image.digest.is_some()).then_some(image)
}

fn image_of(
    image: Image,
    root: Digest,
    manifests: &HashMap<Digest, Manifest>,
    size: impl Fn(&Digest) -> Option<u64>,
) -> Result<BundledImage, AirgapError> {
    if let Some(named) = image.digest.filter(|named| *named != root) {
        return Err(AirgapError::Bundle(format!(
            "{image} has the digest {root}, not {named}"
        )));
    }
    let found = walk(&[root], manifests, |digest| size(digest).is_some());
    if !found.missing.is_empty() {
        let (digests, base) = (found.missing, None);
        return Err(AirgapError::Missing { digests, base });
    }
    let part = |digest: &Digest| {
        let manifest = manifests.get(digest);
        let subject = manifest.and_then(Manifest::subject);
        Part {
            digest: *digest,
            size: size(digest).unwrap_or_default(),
            media_type: manifest.map(|manifest| manifest.media_type().clone()),
            subject: subject.filter(|subject| manifests.contains_key(subject)),
        }
    };
    Ok(BundledImage {
        closure: found.reached.iter().map(part).collect(),
        image,
        digest: root,
        platforms: Vec::new(),
        companions: Vec::new(),
    })
}
