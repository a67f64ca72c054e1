use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn parse(document: &str, content_type: &str) -> Result<Manifest, InvalidManifest> {
    let bytes = Bytes::copy_from_slice(document.as_bytes());
    Manifest::parse(bytes, Some(content_type), Algorithm::Sha256)
}

fn descriptor(media_type: &str, fill: char) -> Value {
    let digest = format!("sha256:{}", fill.to_string().repeat(64));
    json!({ "mediaType": media_type, "digest": digest, "size": 7 })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE,
        "config": descriptor("application/vnd.oci.image.config.v1+json", 'a'),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 'b')],
        "subject": descriptor(OCI_IMAGE, 'f'),
        "annotations": { "a": "\\\"{[[[" },
    })
}

fn index() -> Value {
    json!({
        "schemaVersion": 2,
        "manifests": [
            descriptor(OCI_IMAGE, 'c'),
            descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", 'd'),
            { "digest": format!("sha256:{}", "e".repeat(64)), "size": 0 },
        ],
    })
}

#[test]
fn an_image_refers_to_config_and_layers() {
    let text = image().to_string();
    let manifest = parse(&text, OCI_IMAGE).unwrap();
    assert_eq!(manifest.bytes(), text.as_bytes());
    assert_eq!(*manifest.digest(), Digest::sha256(text.as_bytes()));
    let children = manifest.children().unwrap();
    let hex: Vec<_> = children.iter().map(|child| child.digest.hex()).collect();
    assert_eq!(hex, ["a".repeat(64), "b".repeat(64)]);
    assert!(
        children
            .iter()
            .all(|child| !child.is_manifest && child.size == 7)
    );
}

#[test]
fn an_index_refers_to_manifests_and_sometimes_to_layers() {
    for media_type in [
        OCI_INDEX,
        DOCKER_LIST,
        "Application/vnd.OCI.image.index.v1+json",
    ] {
        let children = parse(&index().to_string(), media_type)
            .unwrap()
            .children()
            .unwrap();
        let manifests: Vec<_> = children.iter().map(|child| child.is_manifest).collect();
        assert_eq!(manifests, [true, false, true]);
    }
}

#[test]
fn parameters_are_dropped_and_sha512_works() {
    let bytes = Bytes::from(image().to_string());
    let content_type = format!("{OCI_IMAGE}; charset=utf-8");
    let manifest = Manifest::parse(bytes.clone(), Some(&content_type), Algorithm::Sha512).unwrap();
    assert_eq!(manifest.media_type().as_str(), OCI_IMAGE);
    assert_eq!(*manifest.digest(), Digest::of(Algorithm::Sha512, &bytes));
}

#[test]
fn the_type_comes_from_the_header_or_the_body() {
    assert_eq!(
        parse(&index().to_string(), OCI_INDEX)
            .unwrap()
            .media_type()
            .as_str(),
        OCI_INDEX
    );
    let bare =
        |document: Value| Manifest::parse(document.to_string().into(), None, Algorithm::Sha256);
    assert_eq!(bare(image()).unwrap().media_type().as_str(), OCI_IMAGE);
    assert!(bare(index()).is_err());
}

#[test]
fn types_that_nobody_knows_pass() {
    let unknown = "application/vnd.example.thing+json";
    for document in [
        "{}",
        r#"{"layers":"none","config":7}"#,
        r#" {"manifests":{}} "#,
    ] {
        assert_eq!(parse(document, unknown).unwrap().children().unwrap(), []);
    }
}

#[test]
fn null_is_absent() {
    let text = r#"{"schemaVersion":2,"manifests":null,"layers":null}"#;
    assert_eq!(parse(text, OCI_INDEX).unwrap().children().unwrap(), []);
}

/// Security rows T03, T06 and T46.
#[test]
fn what_must_not_pass() {
    let with = |mut document: Value, key: &str, value: Value| {
        document[key] = value;
        document.to_string()
    };
    let sized = |size: &str| {
        image()
            .to_string()
            .replace(r#""size":7"#, &format!(r#""size":{size}"#))
    };
    let twice = |field: &str| {
        format!(
            "{{{field},{}",
            image().to_string().strip_prefix('{').unwrap()
        )
    };
    let deep = format!("{}{}", r#"{"a":"#.repeat(33), "}".repeat(33));
    let page = "<!DOCTYPE html><html><body>Blocked</body></html>";
    for (document, content_type) in [
        (page.to_owned(), "text/html"),
        (page.to_owned(), OCI_IMAGE),
        (image().to_string(), "text/html; charset=utf-8"),
        (image().to_string(), OCI_INDEX),
        (image().to_string(), "application/octet-stream"),
        (image().to_string(), "nonsense"),
        (image().to_string(), ""),
        (with(image(), "manifests", json!([])), OCI_IMAGE),
        (with(index(), "layers", json!([])), OCI_INDEX),
        (with(index(), "config", json!({})), OCI_INDEX),
        (with(image(), "mediaType", json!(7)), OCI_IMAGE),
        (with(image(), "mediaType", json!("a\r\nb/c")), OCI_IMAGE),
        (with(image(), "layers", json!({})), OCI_IMAGE),
        (with(image(), "layers", json!([{ "size": 1 }])), OCI_IMAGE),
        (
            with(image(), "config", json!({ "digest": "sha1:aa", "size": 1 })),
            OCI_IMAGE,
        ),
        (sized("-1"), OCI_IMAGE),
        (sized("9223372036854775808"), OCI_IMAGE),
        (sized("18446744073709551616"), OCI_IMAGE),
        (sized("1.5"), OCI_IMAGE),
        (twice(r#""layers":[]"#), OCI_IMAGE),
        (twice(&format!(r#""mediaType":"{OCI_IMAGE}""#)), OCI_IMAGE),
        (deep, OCI_INDEX),
        ("[".repeat(1_000_000), OCI_INDEX),
        ("[]".to_owned(), OCI_INDEX),
        ("null".to_owned(), OCI_INDEX),
        (String::new(), OCI_INDEX),
        (format!("{}x", image()), OCI_IMAGE),
    ] {
        let start: String = document.chars().take(200).collect();
        assert!(
            parse(&document, content_type).is_err(),
            "{content_type:?}: {start}"
        );
    }
}

#[test]
fn two_thousand_descriptors_and_no_more() {
    let layers = |count| {
        let mut image = image();
        image["layers"] = vec![descriptor("application/x", 'a'); count].into();
        parse(&image.to_string(), OCI_IMAGE)
    };
    assert_eq!(layers(1999).unwrap().children().unwrap().len(), 2000);
    assert!(layers(2000).is_err());
}

#[test]
fn media_types_are_plain_tokens() {
    for (text, parsed) in [
        ("application/json", Some("application/json")),
        (" a/b ; q=1;x=y", Some("a/b")),
        ("a", None),
        ("a/", None),
        ("/b", None),
        ("a/b/c", None),
        ("a /b", None),
        ("*/*", None),
        ("a/b\r\nx: y", None),
        ("a/\u{e9}", None),
    ] {
        assert_eq!(
            MediaType::parse(text).as_ref().map(MediaType::as_str),
            parsed,
            "{text:?}"
        );
    }
    assert!(MediaType::parse(&format!("a/{}", "b".repeat(128))).is_none());
}

proptest! {
    #[test]
    fn no_document_panics_and_none_is_changed(document: String, known: bool) {
        let media_type = if known { OCI_IMAGE } else { "application/x" };
        if let Ok(manifest) = parse(&document, media_type) {
            prop_assert_eq!(manifest.bytes(), document.as_bytes());
            prop_assert!(manifest.children().is_ok());
        }
    }

    #[test]
    fn half_a_document_is_none(cut in 1_usize..600) {
        let text = image().to_string();
        let cut = text.len().saturating_sub(cut);
        prop_assert!(parse(&text[..cut], OCI_IMAGE).is_err());
    }
}

#[test]
fn platforms_are_read_compared_and_written() {
    let platform = |text: &str| text.parse::<Platform>().unwrap();
    for text in ["linux/amd64", "linux/arm64/v8", "windows/amd64"] {
        assert_eq!(platform(text).to_string(), text);
    }
    for text in [
        "",
        "linux",
        "linux/",
        "/amd64",
        "linux/amd64/",
        "a/b/c/d",
        "linux/a b",
    ] {
        assert!(text.parse::<Platform>().is_err(), "{text:?}");
    }
    for (wanted, this, takes) in [
        ("linux/amd64", "linux/amd64", true),
        ("linux/arm", "linux/arm/v7", true),
        ("linux/arm/v6", "linux/arm/v7", false),
        ("linux/arm64", "linux/arm64/v8", true),
        ("linux/arm64/v8", "linux/arm64", true),
        ("linux/amd64", "windows/amd64", false),
        ("linux/amd64", "unknown/unknown", false),
    ] {
        let found = platform(wanted).takes(&platform(this));
        assert_eq!(found, takes, "{wanted} of {this}");
    }
}

#[test]
fn a_platform_that_makes_no_sense_is_none() {
    let entry = |platform: &str| {
        let digest = Digest::sha256(b"x");
        let entry = format!(r#"{{"digest":"{digest}","size":1,"platform":{platform}}}"#);
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = format!(r#"{{"mediaType":"{media_type}","manifests":[{entry}]}}"#);
        let index = Manifest::parse(index.into(), None, Algorithm::Sha256).unwrap();
        index.children().unwrap().remove(0).platform
    };
    let platform = entry(r#"{"os":"linux","architecture":"arm64","variant":"v8","x":[1]}"#);
    assert_eq!(platform.unwrap().to_string(), "linux/arm64/v8");
    for platform in ["7", "null", r#"{"os":1,"architecture":"a"}"#, "{}"] {
        assert_eq!(entry(platform), None, "{platform}");
    }
}
