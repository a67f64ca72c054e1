//! Valid images made in memory: layers are plain tar archives of random bytes, so that no two
//! tests share a digest and no cache can answer for another test.

use portcullis::oci::Digest;
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A manifest or index: bytes and type.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
}

#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Manifest,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

// === impl Manifest ===

impl Manifest {
    pub fn new(media_type: &str, document: &Value) -> Self {
        Manifest {
            bytes: document.to_string().into_bytes(),
            media_type: media_type.to_owned(),
        }
    }

    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.bytes)
    }

    /// A manifest that is like no other and refers to the given blobs, which need not exist.
    pub fn referring_to(blobs: &[(Digest, usize)]) -> Self {
        let layers: Vec<_> = blobs
            .iter()
            .map(|(digest, size)| descriptor(OCI_LAYER, digest, *size))
            .collect();
        let document = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &Digest::sha256(b"{}"), 2),
            "layers": layers,
            "annotations": { "org.example.unique": random(8) },
        });
        Manifest::new(OCI_MANIFEST, &document)
    }

    pub fn unique() -> Self {
        Manifest::referring_to(&[])
    }

    pub fn index_of(manifests: &[&Manifest]) -> Self {
        let manifests: Vec<_> = manifests
            .iter()
            .map(|m| descriptor(&m.media_type, &m.digest(), m.bytes.len()))
            .collect();
        let document =
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        Manifest::new(OCI_INDEX, &document)
    }
}

// === impl Image ===

impl Image {
    /// One layer of random bytes for each given size.
    pub fn with_layers(sizes: &[usize]) -> Self {
        let layers: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(n, size)| tar(&format!("layer-{n}.bin"), &random(*size)))
            .collect();
        Image::of(layers)
    }

    /// The same over one more layer, which others may stand on too.
    pub fn over(self, base: &[u8]) -> Self {
        let mut layers = vec![tar("base.bin", base)];
        layers.extend(self.layers);
        Image::of(layers)
    }

    fn of(layers: Vec<Vec<u8>>) -> Self {
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|l| Digest::sha256(l).to_string())
            .collect();
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["/layer-0.bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| descriptor(OCI_LAYER, &Digest::sha256(layer), layer.len()))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &Digest::sha256(&config), config.len()),
            "layers": descriptors,
        });
        Image {
            manifest: Manifest::new(OCI_MANIFEST, &manifest),
            config,
            layers,
        }
    }

    /// Config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// An OCI image layout with this image as `tag`, for tools to copy from.
    pub fn write_layout(&self, directory: &std::path::Path, tag: &str) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for blob in self.blobs().chain([&self.manifest.bytes]) {
            std::fs::write(blobs.join(Digest::sha256(blob).hex()), blob).unwrap();
        }
        let mut entry = descriptor(
            OCI_MANIFEST,
            &self.manifest.digest(),
            self.manifest.bytes.len(),
        );
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        std::fs::write(
            directory.join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
    }
}

pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// Bytes that nobody has seen before: a seed from the kernel, then xorshift.
pub fn random(len: usize) -> Vec<u8> {
    let mut seed = [0; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut seed)
        .unwrap();
    let mut state = u64::from_le_bytes(seed) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tar archive with one file (POSIX.1-1988 "ustar").
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000755\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    // Padding to whole blocks, and two empty blocks at the end.
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}
