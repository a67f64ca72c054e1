//! A manifest or index: the exact bytes, their type, their digest.
//!
//! The bytes are the truth and are never written anew; what is read from them here only decides
//! whether they may pass, and what they refer to. The type travels in a header beside them, so a
//! document that could be read as an image and as an index (CVE-2021-41190), or that says another
//! type than its header, is refused. Types that we do not know pass: what they refer to is then
//! not known either.
//!
//! Source: OCI image-spec, manifest.md and image-index.md.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::HeaderValue;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Algorithm, Digest};

/// How deep a document may nest; real ones need six.
const DEEPEST: usize = 32;

/// How many descriptors a document may have; the largest known indexes have a few hundred.
const MOST_DESCRIPTORS: usize = 2000;

/// A media type without parameters: `application/vnd.oci.image.manifest.v1+json`. Always a safe
/// value of a header.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

/// Bytes of a manifest that passed, with the type they came as.
#[derive(Clone, Debug)]
pub struct Manifest {
    bytes: Bytes,
    media_type: MediaType,
    digest: Digest,
    headers: Headers,
    /// What it names, read once.
    children: OnceLock<Arc<[Digest]>>,
    subject: OnceLock<Option<Digest>>,
}

/// What every answer with a manifest says of it in its header, made once.
#[derive(Clone, Debug)]
pub struct Headers {
    pub content_type: HeaderValue,
    /// `Docker-Content-Digest`
    pub digest: HeaderValue,
    pub etag: HeaderValue,
}

/// What a manifest says of something that it refers to: an entry of `manifests`, `layers` or
/// `blobs`, or the `config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    pub media_type: Option<MediaType>,
    /// Bytes, as claimed.
    pub size: u64,
    /// To be had under `/manifests/`; else under `/blobs/`.
    pub is_manifest: bool,
    /// What an index says its entry is for.
    pub platform: Option<Platform>,
}

/// What an image runs on: `linux/amd64`, `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

/// A text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a platform is written as linux/amd64 or linux/arm64/v8")]
pub struct InvalidPlatform;

/// Why a document is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error("not a manifest: {0}")]
    Shape(String),
}

/// What decides whether a document passes, whatever its type.
#[derive(Deserialize)]
struct Shape {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    subject: Option<IgnoredAny>,
}

/// A document of a known type. Names given twice are refused by serde, and `null` is absent.
#[derive(Deserialize)]
struct Document {
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    /// Of the artifact manifest, which the specification had for a while.
    blobs: Option<Vec<RawDescriptor>>,
}

/// What a manifest says of its place among referrers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referring<'a> {
    subject: Option<Subject>,
    #[serde(borrow)]
    artifact_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    config: Option<Config<'a>>,
    #[serde(borrow)]
    annotations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Subject {
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
}

/// An entry of the list of referrers.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    media_type: &'a str,
    digest: &'a Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    digest: Digest,
    size: u64,
    /// Read on its own: one that makes no sense is no reason to refuse the document.
    platform: Option<Box<RawValue>>,
}

// === impl MediaType ===

impl MediaType {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a Content-Type: drops its parameters (`; charset=utf-8`) and refuses what is not
    /// `type/subtype` of RFC 6838, section 4.2.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.split(';').next().unwrap_or_default().trim();
        let (kind, subtype) = text.split_once('/')?;
        (is_media_name(kind) && is_media_name(subtype)).then(|| MediaType(text.into()))
    }

    /// Letters' case means nothing in a media type.
    fn is(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name)
    }

    /// Of a list of manifests, one for each platform.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.is("application/vnd.oci.image.index.v1+json")
            || self.is("application/vnd.docker.distribution.manifest.list.v2+json")
    }

    /// The types whose documents we can read.
    fn is_manifest(&self) -> bool {
        [
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.artifact.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ]
        .iter()
        .any(|name| self.is(name))
    }
}

impl FromStr for MediaType {
    type Err = InvalidManifest;

    fn from_str(text: &str) -> Result<Self, InvalidManifest> {
        MediaType::parse(text).ok_or_else(|| invalid("not a media type"))
    }
}

fn is_media_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=127).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(b))
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Manifest ===

impl Manifest {
    /// Judges a document that an upstream sent and hashes it with `algorithm`.
    ///
    /// # Errors
    /// When it is not a JSON object, is HTML, has no type or two types, could be an image and an
    /// index alike, nests deeper than 32, or is of a known type and its descriptors are not
    /// readable or more than 2000.
    pub fn parse(
        bytes: Bytes,
        content_type: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Self, InvalidManifest> {
        let header = match content_type.map(MediaType::parse) {
            Some(None) => return Err(invalid("the Content-Type is not a media type")),
            // Captive portals and firewalls answer 200 with a page of their own.
            Some(Some(html)) if html.is("text/html") => return Err(invalid("it is an HTML page")),
            Some(header) => header,
            None => None,
        };
        check_depth(&bytes)?;
        let shape: Shape = read(&bytes)?;
        let stated = match shape.media_type.as_deref().map(MediaType::parse) {
            Some(None) => return Err(invalid("mediaType is not a media type")),
            Some(stated) => stated,
            None => None,
        };
        let media_type = match (header, stated) {
            (Some(header), Some(stated)) if !header.is(stated.as_str()) => {
                return Err(invalid(format!(
                    "it came as {header} and says it is {stated}"
                )));
            }
            (Some(media_type), _) | (None, Some(media_type)) => media_type,
            (None, None) => return Err(invalid("it has neither Content-Type nor mediaType")),
        };
        if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
            return Err(invalid("it is an image and an index at once"));
        }
        let digest = Digest::of(algorithm, &bytes);
        let mut manifest = Manifest::from_store(bytes, media_type, digest);
        manifest.children = OnceLock::from(digests(&manifest.children()?));
        if shape.subject.is_none() {
            manifest.subject = OnceLock::from(None);
        }
        Ok(manifest)
    }

    /// For bytes that come out of our own store, with the media type recorded at the first
    /// verified fetch.
    #[must_use]
    pub fn from_store(bytes: Bytes, media_type: MediaType, digest: Digest) -> Self {
        let (plain, etag) = digest.header_values();
        let headers = Headers {
            // A media type is always a safe value.
            content_type: HeaderValue::from_str(media_type.as_str())
                .unwrap_or(HeaderValue::from_static("")),
            digest: plain,
            etag,
        };
        Manifest {
            bytes,
            media_type,
            digest,
            headers,
            children: OnceLock::new(),
            subject: OnceLock::new(),
        }
    }

    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    #[must_use]
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// What it refers to: config, layers, manifests, blobs, in this order, without its subject.
    /// Empty for types that we do not know.
    ///
    /// # Errors
    /// For a known type with unreadable descriptors or more than 2000; never for what
    /// [`Manifest::parse`] let pass.
    pub fn children(&self) -> Result<Vec<Descriptor>, InvalidManifest> {
        if !self.media_type.is_manifest() {
            return Ok(Vec::new());
        }
        let document: Document = read(&self.bytes)?;
        let files = document
            .config
            .into_iter()
            .chain(document.layers.into_iter().flatten());
        let files = files
            .chain(document.blobs.into_iter().flatten())
            .map(|raw| raw.check(false));
        let manifests = document
            .manifests
            .into_iter()
            .flatten()
            .map(|raw| raw.check(true));
        let children = files.chain(manifests).collect::<Result<Vec<_>, _>>()?;
        if children.len() > MOST_DESCRIPTORS {
            return Err(invalid(format!(
                "it has more than {MOST_DESCRIPTORS} descriptors"
            )));
        }
        Ok(children)
    }

    /// The digests of its children; none where these cannot be read.
    #[must_use]
    pub fn child_digests(&self) -> &[Digest] {
        let read = || digests(&self.children().unwrap_or_default());
        self.children.get_or_init(read)
    }

    /// The manifest that this one is about, a signature's image for example.
    #[must_use]
    pub fn subject(&self) -> Option<Digest> {
        let read = || Some(self.referring()?.subject?.digest);
        *self.subject.get_or_init(read)
    }

    /// Memory that it takes, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let children = self.children.get().map_or(0, |children| children.len());
        size_of::<Self>() + self.bytes.len() + children * size_of::<Digest>()
    }

    /// The descriptor by which this manifest stands in the list of its subject's referrers, as
    /// JSON; None for one that is about nothing.
    ///
    /// Source: OCI distribution-spec, "Listing Referrers".
    #[must_use]
    pub fn as_referrer(&self) -> Option<String> {
        let referring = self.referring()?;
        referring.subject.as_ref()?;
        let of_config = || referring.config.and_then(|config| config.media_type);
        let entry = Entry {
            media_type: self.media_type.as_str(),
            digest: &self.digest,
            size: self.bytes.len(),
            artifact_type: referring.artifact_type.or_else(of_config),
            annotations: referring.annotations,
        };
        serde_json::to_string(&entry).ok()
    }

    fn referring(&self) -> Option<Referring<'_>> {
        if !self.media_type.is_manifest() {
            return None;
        }
        serde_json::from_slice(&self.bytes).ok()
    }
}

fn digests(children: &[Descriptor]) -> Arc<[Digest]> {
    children.iter().map(|child| child.digest).collect()
}

impl Descriptor {
    /// Its registry need not have it: layers of that kind come from elsewhere.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        let media_type = self.media_type.as_ref().map_or("", MediaType::as_str);
        media_type.contains(".foreign.") || media_type.contains(".nondistributable.")
    }
}

impl RawDescriptor {
    /// An index may list things that are no manifests (build caches do): then the type says so.
    fn check(self, listed_as_manifest: bool) -> Result<Descriptor, InvalidManifest> {
        let media_type = self.media_type.as_deref().and_then(MediaType::parse);
        let is_manifest = match &media_type {
            Some(media_type) => media_type.is_manifest(),
            None => listed_as_manifest,
        };
        // Sizes are signed where clients are written in Go.
        if i64::try_from(self.size).is_err() {
            return Err(invalid("a descriptor's size is not a size"));
        }
        Ok(Descriptor {
            digest: self.digest,
            media_type,
            size: self.size,
            is_manifest,
            platform: self
                .platform
                .and_then(|raw| serde_json::from_str(raw.get()).ok()),
        })
    }
}

// === impl Platform ===

impl Platform {
    /// Whether an entry for `this` is what is wanted. A variant counts only where it was asked
    /// for; the first variant of arm64, v8, is often left out.
    #[must_use]
    pub fn takes(&self, this: &Platform) -> bool {
        let variant =
            |platform: &Platform| match (&platform.variant, platform.architecture.as_str()) {
                (None, "arm64") => Some("v8".to_owned()),
                (variant, _) => variant.clone(),
            };
        self.os == this.os
            && self.architecture == this.architecture
            && (self.variant.is_none() || variant(self) == variant(this))
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let part = |text: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            let fine = (1..=64).contains(&text.len()) && text.chars().all(allowed);
            fine.then(|| text.to_owned()).ok_or(InvalidPlatform)
        };
        let (os, rest) = text.split_once('/').ok_or(InvalidPlatform)?;
        let (architecture, variant) = match rest.split_once('/') {
            Some((architecture, variant)) => (architecture, Some(part(variant)?)),
            None => (rest, None),
        };
        Ok(Platform {
            os: part(os)?,
            architecture: part(architecture)?,
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Reads a JSON object; serde would also take an array for a struct.
fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, InvalidManifest> {
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("it is not a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))
}

/// Counts brackets outside of strings, before any recursion meets them.
fn check_depth(bytes: &[u8]) -> Result<(), InvalidManifest> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(invalid(format!("it nests deeper than {DEEPEST}")));
        }
    }
    Ok(())
}

fn invalid(why: impl Into<String>) -> InvalidManifest {
    InvalidManifest::Shape(why.into())
}

#[cfg(test)]
mod tests;
