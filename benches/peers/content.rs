//! What the upstream serves: generated images of random bytes.
//!
//! Random, because nothing may compress and two runs must not share a digest. Blobs are files, so
//! that the upstream can send them from the page cache and a comparing client can read them back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use portcullis::oci::digest::{Algorithm, Digest, Hasher};

const MB: u64 = 1_000_000;

/// Layers of the typical image, in the order of its manifest.
const TYPICAL_LAYERS: [u64; 8] = [
    70 * MB,
    50 * MB,
    30 * MB,
    20 * MB,
    15 * MB,
    10 * MB,
    4 * MB,
    MB,
];
const TINY_TAGS: usize = 500;
const HOT_BLOB: u64 = 100 * MB;
const HERD_BLOB: u64 = 200 * MB;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Everything that the upstream answers, by path, and the paths that the scenarios ask for.
pub(crate) struct Content {
    pub(crate) image: Image,
    /// A blob that is asked for when every cache has it.
    pub(crate) hot_blob: String,
    /// A blob that is asked for when no cache has it.
    pub(crate) herd_blob: String,
    /// Manifests by tag, each of an image of its own.
    pub(crate) tiny_tags: Vec<String>,
    resources: HashMap<String, Resource>,
}

/// The paths of one pull.
pub(crate) struct Image {
    pub(crate) tag: String,
    pub(crate) manifest: String,
    /// Configuration first, then the layers.
    pub(crate) blobs: Vec<String>,
}

/// One manifest or blob.
pub(crate) struct Resource {
    pub(crate) media_type: &'static str,
    pub(crate) digest: Digest,
    pub(crate) length: u64,
    pub(crate) bytes: Bytes,
}

pub(crate) enum Bytes {
    Memory(Vec<u8>),
    File(File),
}

/// Makes the content below one directory.
struct Builder<'a> {
    directory: &'a Path,
    random: Random,
    resources: HashMap<String, Resource>,
}

/// xorshift64*: fast and good enough to defeat compression.
struct Random(u64);

// === impl Content ===

impl Content {
    /// Writes the blobs below `directory`: about half a gigabyte.
    pub(crate) fn generate(directory: &Path) -> Result<Self> {
        let mut builder = Builder {
            directory,
            random: Random::from_clock(),
            resources: HashMap::new(),
        };
        let image = builder.image("bench/typical", "v1", &TYPICAL_LAYERS)?;
        let (hot_blob, _) = builder.blob("bench/blobs", HOT_BLOB)?;
        let (herd_blob, _) = builder.blob("bench/blobs", HERD_BLOB)?;
        let tiny_tags = (0..TINY_TAGS)
            .map(|number| builder.tiny("bench/tiny", &format!("t{number}")))
            .collect();
        Ok(Content {
            image,
            hot_blob,
            herd_blob,
            tiny_tags,
            resources: builder.resources,
        })
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Resource> {
        self.resources.get(path)
    }

    /// The size of what stands at `paths`.
    #[expect(
        clippy::cast_precision_loss,
        reason = "all of it is far below 2^52 bytes"
    )]
    pub(crate) fn gigabytes(&self, paths: &[String]) -> f64 {
        let resources = paths.iter().filter_map(|path| self.get(path));
        resources.map(|resource| resource.length).sum::<u64>() as f64 / 1e9
    }
}

// === impl Builder ===

impl Builder<'_> {
    fn image(&mut self, repository: &str, tag: &str, layers: &[u64]) -> Result<Image> {
        let (config_path, config) = self.blob(repository, 2_000)?;
        let mut blobs = vec![config_path];
        let mut descriptors = Vec::new();
        for &length in layers {
            let (path, digest) = self.blob(repository, length)?;
            blobs.push(path);
            descriptors.push(layer(digest, length));
        }
        let (tag, manifest) = self.manifest(repository, tag, config, 2_000, &descriptors);
        Ok(Image {
            tag,
            manifest,
            blobs,
        })
    }

    /// A manifest whose blobs nobody asks for.
    fn tiny(&mut self, repository: &str, tag: &str) -> String {
        let digest = Digest::sha256(&self.random.bytes(32));
        self.manifest(repository, tag, digest, 100, &[layer(digest, 100)])
            .0
    }

    /// The paths of the manifest: by tag, by digest.
    fn manifest(
        &mut self,
        repository: &str,
        tag: &str,
        config: Digest,
        config_length: u64,
        layers: &[serde_json::Value],
    ) -> (String, String) {
        let bytes = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config,
                "size": config_length,
            },
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let digest = Digest::sha256(&bytes);
        let paths = [tag.to_owned(), digest.to_string()]
            .map(|reference| format!("/v2/{repository}/manifests/{reference}"));
        for path in &paths {
            self.resources.insert(
                path.clone(),
                Resource {
                    media_type: MANIFEST_TYPE,
                    digest,
                    length: bytes.len() as u64,
                    bytes: Bytes::Memory(bytes.clone()),
                },
            );
        }
        let [by_tag, by_digest] = paths;
        (by_tag, by_digest)
    }

    fn blob(&mut self, repository: &str, length: u64) -> Result<(String, Digest)> {
        let name = format!("{}-{length}", self.resources.len());
        let file: PathBuf = self.directory.join(name);
        let digest = self
            .fill(&file, length)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let path = format!("/v2/{repository}/blobs/{digest}");
        self.resources.insert(
            path.clone(),
            Resource {
                media_type: "application/octet-stream",
                digest,
                length,
                bytes: Bytes::File(File::open(&file)?),
            },
        );
        Ok((path, digest))
    }

    fn fill(&mut self, path: &Path, length: u64) -> Result<Digest> {
        let mut file = BufWriter::new(File::create(path)?);
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut left = usize::try_from(length)?;
        while left > 0 {
            let chunk = self.random.bytes(left.min(1 << 20));
            hasher.update(&chunk);
            file.write_all(&chunk)?;
            left -= chunk.len();
        }
        file.flush()?;
        Ok(hasher.finish())
    }
}

fn layer(digest: Digest, length: u64) -> serde_json::Value {
    serde_json::json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest,
        "size": length,
    })
}

// === impl Random ===

impl Random {
    fn from_clock() -> Self {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |elapsed| elapsed.subsec_nanos());
        Random(0x9E37_79B9_7F4A_7C15 ^ u64::from(nanos))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            bytes.extend_from_slice(&self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}
