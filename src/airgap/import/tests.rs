//! Archives as they should be, and as they should not.

mod hostile;
mod sample;

use serde_json::json;

use super::*;
use crate::airgap::bundle::{BUNDLE_FILE, CHECKSUMS_FILE, SIGNATURE_FILE, blob_path};
use crate::airgap::sign::SigningKey;
use crate::oci::{Image, Manifest, MediaType, Reference};
use sample::*;

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
