//! What a bundle consists of.
//!
//! ```text
//! oci-layout      {"imageLayoutVersion":"1.0.0"}
//! bundle.json     format, images with their closures, what was left out
//! checksums.txt   for `sha256sum -c`: every other file but itself and bundle.sig
//! bundle.sig      when it is signed: see sign.rs
//! index.json      for other tools: a descriptor for each image, with its full name, and for each
//!                 signature and the like, without a name
//! blobs/<algorithm>/<hex>
//! ```
//!
//! in this order, blobs sorted, all times and owners 0, and nothing in it says when or where it was
//! made. Blobs under sha512 are not in checksums.txt, which could not check them; their names do.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::oci::{Algorithm, Digest, Hasher};
use crate::store::imports::BundledImage;
use crate::store::pins::ImagePin;

pub const LAYOUT_FILE: &str = "oci-layout";
pub const BUNDLE_FILE: &str = "bundle.json";
pub const CHECKSUMS_FILE: &str = "checksums.txt";
pub const SIGNATURE_FILE: &str = "bundle.sig";
pub const INDEX_FILE: &str = "index.json";

/// The full name, where tools look for it.
pub const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

const FORMAT: u32 = 1;
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// `bundle.json`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    format: u32,
    /// Every blob of every image is in it.
    pub complete: bool,
    /// The id of the receipt that says what was left out.
    pub base: Option<Digest>,
    /// Sorted by name.
    pub images: Vec<BundledImage>,
    /// Of the closures, what is not in it.
    pub omitted: BTreeSet<Digest>,
}

/// What a far side holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    format: u32,
    /// The sha256 of the digests below, one a line.
    pub id: Digest,
    /// For people.
    pub images: Vec<String>,
    pub blobs: BTreeSet<Digest>,
}

/// The files in front of the blobs, ready to be written.
#[derive(Clone, Debug)]
pub struct Head {
    pub bundle: Bytes,
    pub checksums: Bytes,
    index: Bytes,
}

/// Why a file is no bundle.json or no receipt.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBundle {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, and this program knows only {FORMAT}: use a newer one")]
    Format(u32),
    #[error("{0}")]
    Content(String),
}

/// Only this much is read of what may be newer.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

// === impl Bundle ===

impl Bundle {
    /// Leaves out what `receipt` has.
    #[must_use]
    pub fn new(mut images: Vec<BundledImage>, receipt: Option<&Receipt>) -> Self {
        images.sort_by_cached_key(BundledImage::name);
        images.dedup_by_key(|image| image.name());
        let parts = images.iter().flat_map(|image| &image.closure);
        let held = |digest: &Digest| receipt.is_some_and(|receipt| receipt.blobs.contains(digest));
        let omitted = parts.map(|part| part.digest).filter(held).collect();
        Bundle {
            format: FORMAT,
            complete: receipt.is_none(),
            base: receipt.map(|receipt| receipt.id),
            images,
            omitted,
        }
    }

    /// # Errors
    /// When the text is not what this module writes, or contradicts itself.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidBundle> {
        check_format(text)?;
        let bundle: Bundle = serde_json::from_slice(text)?;
        let wrong = |what: String| Err(InvalidBundle::Content(what));
        if bundle.complete != (bundle.base.is_none() && bundle.omitted.is_empty()) {
            return wrong("it says both that it is complete and that it is not".to_owned());
        }
        let (mut names, mut sizes) = (HashSet::new(), BTreeMap::new());
        for image in &bundle.images {
            let name = image.name();
            let manifest = |digest| {
                let mut parts = image.closure.iter();
                parts.any(|part| part.digest == digest && part.media_type.is_some())
            };
            if image
                .image
                .digest
                .is_some_and(|named| named != image.digest)
            {
                return wrong(format!("{name} is not {}", image.digest));
            }
            if image.closure.first().map(|part| part.digest) != Some(image.digest) {
                return wrong(format!(
                    "the closure of {name} does not begin with {}",
                    image.digest
                ));
            }
            let companions = image.companions.iter().map(|companion| companion.digest);
            if let Some(digest) = companions
                .chain([image.digest])
                .find(|digest| !manifest(*digest))
            {
                return wrong(format!("the closure of {name} lacks its manifest {digest}"));
            }
            for part in &image.closure {
                if *sizes.entry(part.digest).or_insert(part.size) != part.size {
                    return wrong(format!("{} has two sizes", part.digest));
                }
            }
            if !names.insert(name.clone()) {
                return wrong(format!("{name} is in it twice"));
            }
        }
        if let Some(stray) = bundle
            .omitted
            .iter()
            .find(|digest| !sizes.contains_key(digest))
        {
            return wrong(format!("it leaves out {stray}, which no image has"));
        }
        Ok(bundle)
    }

    /// What the tar has, with sizes in bytes.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<Digest, u64> {
        let parts = self.images.iter().flat_map(|image| &image.closure);
        parts
            .filter(|part| !self.omitted.contains(&part.digest))
            .map(|part| (part.digest, part.size))
            .collect()
    }

    /// # Errors
    /// Never for what has a JSON form, which this has.
    pub fn head(&self) -> Result<Head, InvalidBundle> {
        let bundle = Bytes::from(pretty(self)?);
        let index = Bytes::from(pretty(&self.index())?);
        let mut checksums = String::new();
        let mut sum = |name: &str, hex: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(checksums, "{hex}  {name}");
        };
        let files = [
            (LAYOUT_FILE, LAYOUT.as_bytes()),
            (BUNDLE_FILE, &bundle),
            (INDEX_FILE, &index),
        ];
        for (name, bytes) in files {
            sum(name, &Digest::sha256(bytes).hex());
        }
        for digest in self.blobs().keys() {
            if digest.algorithm() == Algorithm::Sha256 {
                sum(&blob_path(digest), &digest.hex());
            }
        }
        Ok(Head {
            bundle,
            checksums: checksums.into(),
            index,
        })
    }

    /// Of what is in the tar.
    fn index(&self) -> Value {
        let mut named = Vec::new();
        // The same signature may belong to images of several tags.
        let mut others = BTreeMap::new();
        for image in &self.images {
            let name = image.name().to_string();
            let repository = image.image.repository.to_string();
            for part in image
                .closure
                .iter()
                .filter(|part| !self.omitted.contains(&part.digest))
            {
                let Some(media_type) = &part.media_type else {
                    continue;
                };
                let descriptor = |annotations: Value| {
                    json!({
                        "mediaType": media_type.as_str(),
                        "digest": part.digest,
                        "size": part.size,
                        "annotations": annotations,
                    })
                };
                if part.digest == image.digest {
                    let names = NAME_ANNOTATIONS.map(|key| (key, name.as_str()));
                    named.push(descriptor(json!(BTreeMap::from(names))));
                }
                let tags = image.companions.iter();
                for companion in tags.filter(|companion| companion.digest == part.digest) {
                    let tag = companion.tag.as_str();
                    let annotations =
                        json!({ "io.portcullis.repository": repository, "io.portcullis.tag": tag });
                    others.insert(
                        (part.digest, repository.clone(), tag),
                        descriptor(annotations),
                    );
                }
                if let Some(subject) = part.subject {
                    let annotations = json!({
                        "io.portcullis.repository": repository,
                        "io.portcullis.subject": subject,
                    });
                    others.insert(
                        (part.digest, repository.clone(), ""),
                        descriptor(annotations),
                    );
                }
            }
        }
        named.extend(others.into_values());
        json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": named })
    }
}

// === impl Head ===

impl Head {
    /// In the order of the tar. `plain`: only what an image layout has to have.
    pub(super) fn files(
        self,
        signature: Option<String>,
        plain: bool,
    ) -> Vec<(&'static str, Bytes)> {
        let mut files = vec![(LAYOUT_FILE, Bytes::from_static(LAYOUT.as_bytes()))];
        if !plain {
            files.push((BUNDLE_FILE, self.bundle));
            files.push((CHECKSUMS_FILE, self.checksums));
            files.extend(signature.map(|signature| (SIGNATURE_FILE, signature.into())));
        }
        files.push((INDEX_FILE, self.index));
        files
    }
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

// === impl Receipt ===

impl Receipt {
    #[must_use]
    pub fn of<'a>(pins: impl IntoIterator<Item = &'a ImagePin>) -> Self {
        let (mut images, mut blobs) = (Vec::new(), BTreeSet::new());
        for pin in pins {
            images.push(pin.image.clone());
            blobs.extend(pin.closure.iter().map(|blob| blob.digest));
        }
        Receipt {
            format: FORMAT,
            id: id_of(&blobs),
            images,
            blobs,
        }
    }

    /// # Errors
    /// When it is none, or was changed.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidBundle> {
        check_format(text)?;
        let receipt: Receipt = serde_json::from_slice(text)?;
        if receipt.id != id_of(&receipt.blobs) {
            let what = "its id is not that of its blobs: it was changed or cut short";
            return Err(InvalidBundle::Content(what.to_owned()));
        }
        Ok(receipt)
    }
}

fn id_of(blobs: &BTreeSet<Digest>) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for digest in blobs {
        hasher.update(
            format!(
                "{digest}
"
            )
            .as_bytes(),
        );
    }
    hasher.finish()
}

fn check_format(text: &[u8]) -> Result<(), InvalidBundle> {
    match serde_json::from_slice::<Versioned>(text)?.format {
        FORMAT => Ok(()),
        other => Err(InvalidBundle::Format(other)),
    }
}

/// For people too.
fn pretty(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
