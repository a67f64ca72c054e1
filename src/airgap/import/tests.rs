//! Archives as they should be, and as they should not.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::airgap::bundle::{BUNDLE_FILE, CHECKSUMS_FILE, SIGNATURE_FILE, blob_path};
use crate::airgap::sign::SigningKey;
use crate::oci::{Image, Manifest, MediaType, Reference, Tag};
use crate::store::imports::Companion;
use crate::store::{Config, Variant};
use crate::telemetry::Metrics;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const NAME: &str = "registry.example/demo/app:1";
const LARGEST_BLOB: u64 = 8 << 20;

/// Entries of a tar: name, kind, claimed size, content.
type Entries = Vec<(Vec<u8>, u8, u64, Vec<u8>)>;

/// An image with a layer that goes through a spool and a signature that refers to it.
struct Sample {
    image: BundledImage,
    blobs: Vec<Vec<u8>>,
}

impl Sample {
    fn new(seed: u8) -> Self {
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

    fn bundle(&self) -> Bundle {
        Bundle::new(vec![self.image.clone()], None)
    }

    fn entries(&self, bundle: &Bundle, signature: Option<String>) -> Entries {
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

    fn good(&self) -> Entries {
        self.entries(&self.bundle(), None)
    }

    /// As another tool would write it, with `name` in its annotation.
    fn foreign(&self, name: Option<&str>) -> Entries {
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

fn manifest(document: &Value) -> Vec<u8> {
    // What tells the tests' manifests from other blobs.
    let mut members = vec![r#"{"schemaVersion":2"#.to_owned()];
    let rest = document.as_object().unwrap().iter();
    let rest = rest.filter(|(key, _)| *key != "schemaVersion");
    members.extend(rest.map(|(key, value)| format!("{}:{value}", json!(key))));
    (members.join(",") + "}").into_bytes()
}

fn manifest_about(subject: &[u8], config: &[u8]) -> Vec<u8> {
    manifest(&json!({
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", config),
        "layers": [],
        "subject": descriptor(OCI_MANIFEST, subject),
    }))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::sha256(bytes), "size": bytes.len() })
}

fn file(name: &str, bytes: &[u8]) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), b'0', bytes.len() as u64, bytes.to_vec())
}

fn directory(name: &str) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), b'5', 0, Vec::new())
}

fn special(name: &str, kind: u8) -> (Vec<u8>, u8, u64, Vec<u8>) {
    (name.into(), kind, 0, Vec::new())
}

fn extended(records: &[(&str, &str)]) -> (Vec<u8>, u8, u64, Vec<u8>) {
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

fn header(name: &[u8], kind: u8, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    header.set_mode(0o644);
    header.set_cksum();
    *header.as_bytes()
}

fn body(entries: &Entries) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, kind, size, content) in entries {
        tar.extend(header(name, *kind, *size));
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

fn tar(entries: &Entries) -> Vec<u8> {
    let mut tar = body(entries);
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// A store with nothing in it, in a directory with nothing else in it.
struct Place {
    directory: TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            path: directory.path().join("store"),
            max_size: Some(32 << 20),
            shared: None,
        };
        let store = Store::open(&config, None, Arc::new(Metrics::default())).unwrap();
        Place { directory, store }
    }

    async fn import(&self, tar: &[u8]) -> Result<Imported, AirgapError> {
        self.import_on(tar, None).await
    }

    async fn import_on(
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

    async fn digest_of(&self, tag: &str) -> Option<Digest> {
        let image: Image = NAME.parse().unwrap();
        let tag: Tag = tag.parse().unwrap();
        let record = self.store.tags.get(&image.repository, &tag).await?;
        Some(record.current(Variant::Any)?.digest)
    }

    /// Nothing of an import can be seen or is on its way, and no file is out of place.
    async fn assert_untouched(&self, what: &str) {
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

fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

fn files_beside(directory: &Path, name: &str) -> usize {
    files(directory).iter().filter(|file| *file != name).count()
}

#[tokio::test]
async fn what_is_as_it_should_be_comes_in() {
    let place = Place::new();
    let sample = Sample::new(1);
    let image: Image = NAME.parse().unwrap();
    for (entries, signed) in [(sample.good(), true), (sample.foreign(Some(NAME)), false)] {
        let imported = place.import(&tar(&entries)).await.unwrap();
        assert_eq!(imported.images.len(), 1);
        assert_eq!(imported.images[0].image, NAME);
        assert_eq!(imported.blobs, 4);
        assert_eq!(place.digest_of("1").await, Some(sample.image.digest));
        let pin = place.store.disk.pins().image(NAME).unwrap();
        assert_eq!(pin.closure.len(), 4);
        assert_eq!(imported.receipt.unwrap().blobs.len(), 4);
        for part in &sample.image.closure {
            let link = place
                .store
                .links
                .link(&image.repository, &part.digest)
                .await
                .unwrap();
            assert_eq!(link.media_type, part.media_type);
        }
        // The signature is found by what it signs, and by its tag where that came along.
        let led = place
            .store
            .links
            .led_by(&image.repository, &sample.image.closure[3].digest)
            .await;
        assert!(
            led.contains(&Reference::Digest(sample.image.digest)),
            "{led:?}"
        );
        let tag = sample.image.companions[0].tag.as_str();
        assert!(place.digest_of(tag).await.is_some() || !signed);
        assert_eq!(
            files(&place.directory.path().join("store/v1/imports")),
            [""; 0]
        );
    }
    // A second time nothing is new.
    assert_eq!(
        place.import(&tar(&sample.good())).await.unwrap().new_bytes,
        0
    );
}

#[tokio::test]
async fn a_record_that_was_written_is_finished_by_the_next_start() {
    let place = Place::new();
    let sample = Sample::new(1);
    let import = Import {
        id: Digest::sha256(b"import"),
        at: 1_700_000_000,
        images: vec![sample.image.clone()],
    };
    for bytes in &sample.blobs {
        let digest = Digest::sha256(bytes);
        place
            .store
            .disk
            .put(&digest, bytes.clone().into())
            .await
            .unwrap();
    }
    place.assert_untouched("blobs alone").await;
    // As a kill leaves it behind the commit point.
    let record = place.directory.path().join("store/v1/imports");
    let name = format!("{}.json", import.id.hex());
    std::fs::write(record.join(&name), serde_json::to_vec(&import).unwrap()).unwrap();
    std::fs::write(record.join("torn.json"), b"{").unwrap();
    place.store.finish_imports().await;
    assert_eq!(place.digest_of("1").await, Some(sample.image.digest));
    assert_eq!(place.store.disk.pins().image(NAME).unwrap().at, import.at);
    assert_eq!(files(&record), ["torn.json"]);
}

#[tokio::test]
async fn a_delta_needs_its_base() {
    let (old, new) = (Sample::new(1), Sample::new(2));
    let far = Place::new();
    far.import(&tar(&old.good())).await.unwrap();
    let (pins, _) = far.store.disk.pins().all();
    let receipt = Receipt::of(pins.iter().map(AsRef::as_ref));
    let text = serde_json::to_vec(&receipt).unwrap();
    assert_eq!(Receipt::parse(&text).unwrap(), receipt);
    // The same image again: nothing is left to carry.
    let nothing = Bundle::new(vec![old.image.clone()], Some(&receipt));
    assert!(nothing.blobs().is_empty() && !nothing.complete);
    let nothing = tar(&old.entries(&nothing, None));
    assert_eq!(far.import(&nothing).await.unwrap().bytes, 0);

    let empty = Place::new();
    let said = empty.import(&nothing).await.unwrap_err().to_string();
    for part in &old.image.closure {
        assert!(said.contains(&part.digest.to_string()), "{said}");
    }
    assert!(said.contains(&receipt.id.to_string()), "{said}");
    empty.assert_untouched("a delta without its base").await;

    let changed = Bundle::new(vec![new.image.clone()], Some(&receipt));
    assert_eq!(changed.blobs().len(), 4);
    far.import(&tar(&new.entries(&changed, None)))
        .await
        .unwrap();
    assert_eq!(far.digest_of("1").await, Some(new.image.digest));
}

fn keys(name: &str) -> (SigningKey, TrustedKey) {
    let kind = match name {
        "ed25519" => &rcgen::PKCS_ED25519,
        _ => &rcgen::PKCS_ECDSA_P256_SHA256,
    };
    let pair = rcgen::KeyPair::generate_for(kind).unwrap();
    let private = SigningKey::parse(pair.serialize_pem().as_bytes()).unwrap();
    let public = TrustedKey::parse(pair.public_key_pem().as_bytes()).unwrap();
    assert_eq!(TrustedKey::from_text(&public.to_text()).unwrap(), public);
    (private, public)
}

#[tokio::test]
async fn only_what_is_signed_is_trusted() {
    let sample = Sample::new(1);
    let bundle = sample.bundle();
    let head = bundle.head().unwrap();
    let (_, other) = keys("ed25519");
    for name in ["p256", "ed25519"] {
        let (private, public) = keys(name);
        let signature = private.sign(&head.bundle, &head.checksums).unwrap();
        let signed = sample.entries(&bundle, Some(signature));
        let place = Place::new();
        let imported = place.import_on(&tar(&signed), Some(public.clone())).await;
        assert!(imported.unwrap().verified);

        let changed = |name: &str| {
            let mut entries = signed.clone();
            let entry = entries
                .iter_mut()
                .find(|entry| entry.0 == name.as_bytes())
                .unwrap();
            let at = entry.3.len() / 2;
            entry.3[at] = if entry.3[at] == b'A' { b'B' } else { b'A' };
            entries
        };
        let place = Place::new();
        let mut attempts = vec![(sample.good(), public.clone())];
        for file in [BUNDLE_FILE, CHECKSUMS_FILE, SIGNATURE_FILE] {
            attempts.push((changed(file), public.clone()));
        }
        attempts.push((signed.clone(), other.clone()));
        attempts.push((sample.foreign(Some(NAME)), public));
        for (entries, key) in attempts {
            let said = place
                .import_on(&tar(&entries), Some(key))
                .await
                .unwrap_err();
            assert!(matches!(said, AirgapError::Untrusted(_)), "{said}");
            assert_eq!(
                place.store.catalog().await.unwrap().blobs().count(),
                0,
                "{said}"
            );
        }
        place.assert_untouched("untrusted").await;
        // Without a key nobody looks.
        assert!(!place.import(&tar(&signed)).await.unwrap().verified);
    }
}

/// What somebody with bad intentions, or a bad disk, may hand over.
#[expect(clippy::too_many_lines, reason = "one table")]
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let sample = Sample::new(1);
    let blob = blob_path(&Digest::sha256(&sample.blobs[1]));
    let with = |entry: (Vec<u8>, u8, u64, Vec<u8>)| {
        let mut entries = sample.good();
        entries.push(entry);
        tar(&entries)
    };
    let without = |name: &str| {
        let mut entries = sample.good();
        entries.retain(|entry| entry.0 != name.as_bytes());
        tar(&entries)
    };
    let content = |name: &str, bytes: &[u8]| {
        let mut entries = sample.good();
        for entry in entries
            .iter_mut()
            .filter(|entry| entry.0 == name.as_bytes())
        {
            *entry = file(name, bytes);
        }
        tar(&entries)
    };
    let behind_extended = |records: &[(&str, &str)]| {
        let mut entries = sample.good();
        let at = entries.len() - 1;
        entries.insert(at, extended(records));
        tar(&entries)
    };
    // A bundle.json that says something else, with checksums to match.
    let lying = |change: &dyn Fn(&mut BundledImage)| {
        let mut image = sample.image.clone();
        change(&mut image);
        let bundle = Bundle::new(vec![image], None);
        tar(&sample.entries(&bundle, None))
    };
    let text = |from: &str, to: &str| {
        let bundle = sample.bundle().head().unwrap().bundle;
        let bundle = String::from_utf8(bundle.to_vec()).unwrap();
        assert!(bundle.contains(from), "{from}");
        content(BUNDLE_FILE, bundle.replacen(from, to, 1).as_bytes())
    };
    let good = tar(&sample.good());
    let end = good.len();
    let mut damaged = good.clone();
    damaged[5] ^= 1;
    let mut late = sample.good();
    let bundle = late.remove(1);
    late.push(bundle);
    let mut wrong = sample.blobs[1].clone();
    wrong[3] ^= 1;
    let mut wrong_large = sample.blobs[2].clone();
    wrong_large[1 << 20] ^= 1;
    let large = blob_path(&Digest::sha256(&sample.blobs[2]));
    let image_and_index =
        manifest(&json!({ "mediaType": OCI_MANIFEST, "layers": [], "manifests": [] }));
    let mut foreign_without = sample.foreign(Some(NAME));
    foreign_without.retain(|entry| entry.0 != blob.as_bytes());
    let mut docker = vec![file("manifest.json", b"[]"), file("repositories", b"{}")];
    let docker_named = tar(&docker);
    docker.insert(0, file("0123abcd/layer.tar", b"x"));
    let mut huge = body(&sample.good());
    huge.extend(header(b"blobs/sha256/", b'0', 0));
    let claims = |name: &str, size: u64| {
        let mut tar = body(&vec![]);
        tar.extend(header(name.as_bytes(), b'0', size));
        tar
    };
    let unseen = blob_path(&Digest::sha256(b"unseen"));
    vec![
        ("climbs out", with(file("../evil", b"x")), "does not belong"),
        (
            "absolute",
            with(file("/etc/cron.d/evil", b"x")),
            "does not belong",
        ),
        (
            "climbs out of blobs",
            with(file("blobs/../../evil", b"x")),
            "does not belong",
        ),
        (
            "climbs out of a digest",
            with(file("blobs/sha256/../../../evil", b"x")),
            "does not belong",
        ),
        (
            "backslashes",
            with(file("blobs\\sha256\\evil", b"x")),
            "does not belong",
        ),
        (
            "another algorithm",
            with(file(&format!("blobs/sha1/{}", "a".repeat(40)), b"x")),
            "does not belong",
        ),
        (
            "capital letters",
            with(file(&format!("blobs/sha256/{}", "A".repeat(64)), b"x")),
            "does not belong",
        ),
        (
            "a name that is no text",
            with((b"blobs/\xff\xfe".to_vec(), b'0', 0, vec![])),
            "does not belong",
        ),
        ("a file that ends in a slash", huge, "does not belong"),
        (
            "an unknown file",
            with(file("install.sh", b"x")),
            "does not belong",
        ),
        (
            "an unknown directory",
            with(directory("etc/")),
            "does not belong",
        ),
        (
            "a directory above",
            with(directory("../")),
            "does not belong",
        ),
        (
            "a directory with content",
            with(("blobs/".into(), b'5', 512, vec![0; 512])),
            "does not belong",
        ),
        (
            "a symbolic link",
            with(special(&unseen, b'2')),
            "a symbolic link",
        ),
        ("a hard link", with(special(&unseen, b'1')), "a hard link"),
        (
            "a character device",
            with(special(&unseen, b'3')),
            "a device",
        ),
        ("a block device", with(special(&unseen, b'4')), "a device"),
        ("a pipe", with(special(&unseen, b'6')), "a pipe"),
        (
            "a contiguous file",
            with(special(&unseen, b'7')),
            "unknown kind",
        ),
        (
            "a sparse file",
            with(special(&unseen, b'S')),
            "a sparse file",
        ),
        (
            "a kind that nobody knows",
            with(special(&unseen, b'Z')),
            "unknown kind",
        ),
        (
            "a long name",
            with(("././@LongLink".into(), b'L', 8, b"../evil\0".to_vec())),
            "a name that no blob has",
        ),
        (
            "a long link",
            with(("././@LongLink".into(), b'K', 8, b"../evil\0".to_vec())),
            "a name that no blob has",
        ),
        (
            "a global header",
            with(("g".into(), b'g', 0, vec![])),
            "out of place",
        ),
        (
            "another path behind",
            behind_extended(&[("path", "../evil")]),
            "\"path\"",
        ),
        (
            "another link behind",
            behind_extended(&[("linkpath", "/etc/passwd")]),
            "\"linkpath\"",
        ),
        (
            "sparse by header",
            behind_extended(&[("GNU.sparse.major", "1")]),
            "GNU.sparse",
        ),
        ("two sizes", behind_extended(&[("size", "1")]), "\"size\""),
        (
            "a size that is none",
            behind_extended(&[("size", "-1")]),
            "\"size\"",
        ),
        (
            "attributes",
            behind_extended(&[("SCHILY.xattr.security.capability", "x")]),
            "SCHILY",
        ),
        (
            "a header of nonsense",
            with(("x".into(), b'x', 4, b"9999".to_vec())),
            "makes no sense",
        ),
        (
            "a header too large",
            with(("x".into(), b'x', 20 << 10, vec![b'x'; 20 << 10])),
            "too much",
        ),
        (
            "an extended header at the end",
            with(extended(&[("mtime", "1.5")])),
            "cut short",
        ),
        (
            "a blob beyond the limit",
            claims(&unseen, LARGEST_BLOB + 1),
            "limits.blob_size",
        ),
        (
            "a blob of a size that is a joke",
            claims(&unseen, u64::MAX / 2),
            "limits.blob_size",
        ),
        (
            "a bundle.json of a gigabyte",
            claims(BUNDLE_FILE, 1 << 30),
            "at most",
        ),
        ("a blob twice", with(file(&blob, &sample.blobs[1])), "twice"),
        (
            "a blob twice, once with a dot",
            with(file(&format!("./{blob}"), &sample.blobs[1])),
            "twice",
        ),
        (
            "bundle.json twice",
            {
                let mut entries = sample.good();
                entries.insert(1, entries[1].clone());
                tar(&entries)
            },
            "twice",
        ),
        ("cut in a header", good[..1000].to_vec(), "cut short"),
        ("cut in a blob", good[..end - 5000].to_vec(), "cut short"),
        ("no end", good[..end - 1024].to_vec(), "cut short"),
        ("half an end", good[..end - 512].to_vec(), "cut short"),
        (
            "more behind the end",
            [good.as_slice(), b"evil"].concat(),
            "follows its end",
        ),
        (
            "another tar behind the end",
            [good.as_slice(), good.as_slice()].concat(),
            "follows its end",
        ),
        (
            "no end of the end",
            [good.as_slice(), &vec![0; 5 << 20]].concat(),
            "follows its end",
        ),
        ("a header of another sum", damaged, "makes no sense"),
        (
            "no tar at all",
            b"\x1f\x8b\x08\x00 this is gzip, or says so".repeat(100),
            "makes no sense",
        ),
        ("nothing", Vec::new(), "cut short"),
        (
            "an empty tar",
            vec![0; 1024],
            "neither bundle.json nor index.json",
        ),
        ("other bytes", content(&blob, &wrong), "do not hash"),
        (
            "other bytes in a large blob",
            content(&large, &wrong_large),
            "do not hash",
        ),
        (
            "a longer blob than listed",
            content(&blob, b"longer than what bundle.json says it is"),
            "bytes, not",
        ),
        (
            "a blob that is not listed",
            with(file(&unseen, b"unseen")),
            "does not list",
        ),
        ("bundle.json behind blobs", tar(&late), "come before blobs"),
        (
            "no checksums.txt",
            without(CHECKSUMS_FILE),
            "no checksums.txt",
        ),
        (
            "another index.json",
            content(INDEX_FILE, b"{}"),
            "not the file of checksums.txt",
        ),
        (
            "no index.json",
            without(INDEX_FILE),
            "not the file of checksums.txt",
        ),
        (
            "a listed blob is missing",
            without(&blob),
            "neither in the archive nor here",
        ),
        (
            "a layer too few",
            lying(&|image| {
                image.closure.remove(2);
            }),
            "which its closure lacks",
        ),
        (
            "a stranger in the closure",
            lying(&|image| {
                let digest = Digest::sha256(b"unseen");
                let (media_type, subject) = (None, None);
                image.closure.push(Part {
                    digest,
                    size: 6,
                    media_type,
                    subject,
                });
            }),
            "neither in the archive nor here",
        ),
        (
            "a signature of something else",
            lying(&|image| {
                image.closure[3].subject = Some(Digest::sha256(b"unseen"));
            }),
            "about something else",
        ),
        (
            "a manifest of a kind that it is not",
            lying(&|image| {
                let index = MediaType::parse("application/vnd.oci.image.index.v1+json");
                image.closure[0].media_type = index;
            }),
            "it came as",
        ),
        (
            "a name that has another digest",
            lying(&|image| {
                let name = format!("registry.example/demo/app@{}", Digest::sha256(b"x"));
                image.image = name.parse().unwrap();
            }),
            "is not sha256:",
        ),
        (
            "a tag of nothing",
            lying(&|image| {
                image.companions[0].digest = Digest::sha256(b"unseen");
            }),
            "lacks its manifest",
        ),
        (
            "a format of the future",
            text("\"format\": 1", "\"format\": 2"),
            "use a newer one",
        ),
        (
            "more keys",
            text("\"format\": 1", "\"format\": 1, \"run\": \"evil\""),
            "unknown field",
        ),
        (
            "no name",
            text(NAME, "registry.example/../evil"),
            "bundle.json",
        ),
        (
            "both a delta and complete",
            text(
                "\"base\": null",
                &format!("\"base\": \"{}\"", Digest::sha256(b"")),
            ),
            "complete",
        ),
        (
            "bundle.json of nothing",
            content(BUNDLE_FILE, b"[]"),
            "bundle.json",
        ),
        (
            "what docker save wrote",
            tar(&docker),
            "skopeo copy docker-archive",
        ),
        (
            "what docker save wrote, with known names",
            docker_named,
            "skopeo copy docker-archive",
        ),
        (
            "a layout without names",
            tar(&sample.foreign(None)),
            "names no image in full",
        ),
        (
            "a layout with half a name",
            tar(&sample.foreign(Some("latest"))),
            "names no image in full",
        ),
        (
            "a layout that lacks a blob",
            tar(&foreign_without),
            "neither in the archive nor here",
        ),
        (
            "a layout with an index of nonsense",
            {
                let mut entries = sample.foreign(Some(NAME));
                entries.retain(|entry| entry.0 != b"index.json");
                entries.push(file("index.json", b"{\"manifests\": 5}"));
                tar(&entries)
            },
            "makes no sense",
        ),
        (
            "an image that is an index too",
            {
                let top = json!({ "manifests": [{
                "mediaType": OCI_MANIFEST, "digest": Digest::sha256(&image_and_index), "size": 1,
                "annotations": { "io.containerd.image.name": NAME } }] });
                tar(&vec![
                    file(
                        &blob_path(&Digest::sha256(&image_and_index)),
                        &image_and_index,
                    ),
                    file("index.json", top.to_string().as_bytes()),
                ])
            },
            "an image and an index at once",
        ),
    ]
}

/// Security row T56.
#[tokio::test]
async fn what_is_not_as_it_should_be_is_refused_and_leaves_nothing() {
    let corpus = hostile();
    assert!(corpus.len() >= 30, "{}", corpus.len());
    let mut others = Vec::new();
    let tar_of_the_good = tar(&Sample::new(1).good());
    for (what, tar, reason) in corpus {
        let place = Place::new();
        match place.import(&tar).await {
            Ok(_) => panic!("{what} was taken"),
            Err(error) if error.to_string().contains(reason) => {}
            Err(error) => others.push(format!("{what}: {error}")),
        }
        place.assert_untouched(what).await;
        // And after all that the good one comes in.
        place.import(&tar_of_the_good).await.unwrap();
    }
    assert!(others.is_empty(), "for other reasons: {others:#?}");
}

#[tokio::test]
async fn what_would_not_fit_is_refused_before_it_comes() {
    let place = Place::new();
    let mut sample = Sample::new(1);
    sample.image.closure[2].size = 64 << 20;
    let said = place
        .import(&tar(&sample.good()))
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("store.max_size"), "{said}");
    assert_eq!(place.store.catalog().await.unwrap().blobs().count(), 0);
}

#[tokio::test]
async fn harmless_extended_headers_pass() {
    let place = Place::new();
    let mut entries = Sample::new(1).foreign(Some(NAME));
    entries.insert(2, extended(&[("mtime", "1700000000.5"), ("uname", "root")]));
    place.import(&tar(&entries)).await.unwrap();
}

#[test]
fn manifests_of_the_tests_are_manifests() {
    let sample = Sample::new(1);
    let parse = |bytes: &[u8]| {
        let bytes = Bytes::copy_from_slice(bytes);
        Manifest::parse(bytes, Some(OCI_MANIFEST), crate::oci::Algorithm::Sha256).unwrap()
    };
    assert_eq!(parse(&sample.blobs[0]).children().unwrap().len(), 2);
    assert_eq!(parse(&sample.blobs[3]).subject(), Some(sample.image.digest));
}
