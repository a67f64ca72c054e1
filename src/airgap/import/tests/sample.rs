//! Archives made entry by entry, and a store to import them into.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::*;
use crate::airgap::bundle::blob_path;
use crate::oci::{Image, MediaType, Tag};
use crate::store::imports::Companion;
use crate::store::{Config, Variant};
use crate::telemetry::Metrics;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const NAME: &str = "registry.example/demo/app:1";
pub(super) const LARGEST_BLOB: u64 = 8 << 20;

/// Entries of a tar: name, kind, claimed size, content.
pub(super) type Entries = Vec<(Vec<u8>, u8, u64, Vec<u8>)>;

/// An image with a layer that goes through a spool and a signature that refers to it.
pub(super) struct Sample {
    pub(super) image: BundledImage,
    pub(super) blobs: Vec<Vec<u8>>,
}

impl Sample {
    pub(super) fn new(seed: u8) -> Self {
        let config = format!(r#"{{"seed":{seed}}}"#).into_bytes();
        let layer = (0..(1_u32 << 20) + 1000).map(|n| (n % 251).to_le_bytes()[0] ^ seed);
        let layer: Vec<u8> = layer.collect();
        let manifest = manifest(&json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }));
        let signature = manifest_about(&manifest, &config);
        let blobs = vec![manifest, config, layer, signature];
        let part = |bytes: &Vec<u8>, subject| Part {
            digest: Digest::sha256(bytes),
            size: bytes.len() as u64,
            media_type: bytes
                .starts_with(b"{\"schema")
                .then(|| MediaType::parse(OCI_MANIFEST).unwrap()),
            subject,
        };
        let root = Digest::sha256(&blobs[0]);
        let image = BundledImage {
            image: NAME.parse().unwrap(),
            digest: root,
            platforms: Vec::new(),
            companions: vec![Companion {
                tag: format!("sha256-{}.sig", root.hex()).parse().unwrap(),
                digest: Digest::sha256(&blobs[3]),
            }],
            closure: vec![
                part(&blobs[0], None),
                part(&blobs[1], None),
                part(&blobs[2], None),
                part(&blobs[3], Some(root)),
            ],
        };
        Sample { image, blobs }
    }

    pub(super) fn bundle(&self) -> Bundle {
        Bundle::new(vec![self.image.clone()], None)
    }

    pub(super) fn entries(&self, bundle: &Bundle, signature: Option<String>) -> Entries {
        let files = bundle.head().unwrap().files(signature, false);
        let mut entries: Entries = Vec::new();
        for (name, bytes) in files {
            entries.push(file(name, &bytes));
        }
        let mut blobs: Vec<_> = self
            .blobs
            .iter()
            .map(|bytes| (Digest::sha256(bytes), bytes))
            .collect();
        blobs.sort();
        blobs.retain(|(digest, _)| bundle.blobs().contains_key(digest));
        entries.extend(
            blobs
                .iter()
                .map(|(digest, bytes)| file(&blob_path(digest), bytes)),
        );
        entries
    }

    pub(super) fn good(&self) -> Entries {
        self.entries(&self.bundle(), None)
    }

    /// As another tool would write it, with `name` in its annotation.
    pub(super) fn foreign(&self, name: Option<&str>) -> Entries {
        let mut top = descriptor(OCI_MANIFEST, &self.blobs[0]);
        if let Some(name) = name {
            top["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        let index = json!({ "schemaVersion": 2, "manifests": [top, descriptor(OCI_MANIFEST, &self.blobs[3])] });
        let mut entries = vec![directory("blobs/"), directory("blobs/sha256/")];
        let blobs = self.blobs.iter();
        entries.extend(blobs.map(|bytes| file(&blob_path(&Digest::sha256(bytes)), bytes)));
        entries.push(file("index.json", index.to_string().as_bytes()));
        entries.push(file("manifest.json", b"[]"));
        entries.push(file("oci-layout", b"{}"));
        entries
    }
}

pub(super) fn manifest(document: &Value) -> Vec<u8> {
    // What tells the tests' manifests from other blobs.
    let mut members = vec![r#"{"schemaVersion":2"#.to_owned()];
    let rest = document.as_object().unwrap().iter();
    let rest = rest.filter(|(key, _)| *key != "schemaVersion");
    members.extend(rest.map(|(key, value)| format!("{}:{value}", json!(key))));
    (members.join(",") + "}").into_bytes()
}

pub(super) fn manifest_about(subject: &[u8], config: &[u8]) -> Vec<u8> {
    manifest(&json!({
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", config),
        "layers": [],
        "subject": descriptor(OCI_MANIFEST, subject),
    }))
}

pub(super) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len() })
}

pub(super) fn file(name: &str, bytes: &[u8]) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), b'0', bytes.len() as u64, bytes.to_vec())
}

pub(super) fn directory(name: &str) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), b'5', 0, Vec::new())
}

pub(super) fn special(name: &str, kind: u8) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), kind, 0, Vec::new())
}

pub(super) fn extended(records: &[(&str, &str)]) -> (Vec<u8>, u8, u64, Vec<u8>) {
    let record = |(key, value): &(&str, &str)| {
        let rest = format!(" {key}={value}\n");
        let fits = |n: &usize| n.to_string().len() + rest.len() == *n;
        format!("{}{rest}", (1..1000).find(fits).unwrap())
    };
    let bytes = records
        .iter()
        .map(record)
        .collect::<Vec<_>>()
        .concat()
        .into_bytes();
    ("PaxHeaders/x".into(), b'x', bytes.len() as u64, bytes)
}

pub(super) fn header(name: &[u8], kind: u8, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    header.set_mode(0o644);
    header.set_cksum();
    *header.as_bytes()
}

pub(super) fn body(entries: &Entries) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, kind, size, content) in entries {
        tar.extend(header(name, *kind, *size));
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

pub(super) fn tar(entries: &Entries) -> Vec<u8> {
    let mut tar = body(entries);
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A store with nothing in it, in a directory with nothing else in it.
pub(super) struct Place {
    pub(super) directory: TempDir,
    pub(super) store: Arc<Store>,
}

impl Place {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            path: directory.path().join("store"),
            max_size: Some(32 << 20),
            shared: None,
        };
        let store = Store::open(&config, None, Arc::new(Metrics::default())).unwrap();
        Place { directory, store }
    }

    pub(super) async fn import(&self, tar: &[u8]) -> Result<Imported, AirgapError> {
        self.import_on(tar, None).await
    }

    pub(super) async fn import_on(
        &self,
        tar: &[u8],
        trust: Option<TrustedKey>,
    ) -> Result<Imported, AirgapError> {
        let (sender, source) = mpsc::channel(1);
        let terms = Terms {
            trust,
            largest_blob: LARGEST_BLOB,
            receipt: true,
        };
        let report: Report = Arc::new(|_| {});
        let send = async move {
            for chunk in tar.chunks(100_000) {
                // It may have had enough.
                let _ = sender.send(Ok(Bytes::copy_from_slice(chunk))).await;
            }
        };
        tokio::join!(import(Arc::clone(&self.store), source, terms, report), send).0
    }

    pub(super) async fn digest_of(&self, tag: &str) -> Option<Digest> {
        let image: Image = NAME.parse().unwrap();
        let tag: Tag = tag.parse().unwrap();
        let record = self.store.tags.get(&image.repository, &tag).await?;
        Some(record.current(Variant::Any)?.digest)
    }

    /// Nothing of an import can be seen or is on its way, and no file is out of place.
    pub(super) async fn assert_untouched(&self, what: &str) {
        let catalog = self.store.catalog().await.unwrap();
        assert!(catalog.names().is_empty(), "{what}: {:?}", catalog.names());
        assert!(self.store.disk.pins().all().0.is_empty(), "{what}: pinned");
        let v1 = self.directory.path().join("store/v1");
        for directory in ["spool", "imports", "repos"] {
            assert_eq!(files(&v1.join(directory)), [""; 0], "{what}: {directory}");
        }
        assert_eq!(files_beside(self.directory.path(), "store"), 0, "{what}");
        for blob in catalog.blobs() {
            let bytes = self.store.disk.read(&blob.digest, u64::MAX).await.unwrap();
            assert!(bytes.is_some(), "{what}: {} is wrong", blob.digest);
        }
    }
}

pub(super) fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

pub(super) fn files_beside(directory: &Path, name: &str) -> usize {
    files(directory).iter().filter(|file| *file != name).count()
}
