//! The whole way across an air gap: two networks that nothing leads out of. In one there is a registry
//! and a proxy that warms; in the other a proxy that is offline, and a node. What crosses are files.

use std::fs;
use std::path::{Path, PathBuf};

use portcullis::oci::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::KIB;
use crate::support::MIB;
use crate::support::image::{Image, Manifest, OCI_INDEX, OCI_MANIFEST, descriptor, random};
use crate::support::network::Island;
use crate::support::programs::{Containerd, Registry, program, run};
use crate::support::proxy::{Proxy, Setup};

/// Where what people name comes from; `docker.io` has its library in front of short names.
const REGISTRIES: [&str; 4] = [
    "docker.io",
    "registry.k8s.io",
    "quay.io",
    "registry.example",
];
const IMAGES: usize = 20;
/// The first ones are for two platforms.
const FOR_TWO_PLATFORMS: usize = 10;
/// Has a signature and a bill of material.
const SIGNED: usize = 3;
/// Has a layer of a gigabyte.
const LARGE: usize = IMAGES - 1;
/// Are others the second time.
const CHANGED: [usize; 3] = [1, 5, 12];

/// An image as people name it.
struct Shipped {
    registry: &'static str,
    repository: String,
    top: Manifest,
    /// For each platform.
    images: Vec<Image>,
}

// === impl Shipped ===

impl Shipped {
    fn new(at: usize, layers: &[usize]) -> Self {
        let registry = REGISTRIES[at % REGISTRIES.len()];
        let owner = if registry == "docker.io" {
            "library"
        } else {
            "team"
        };
        let mut images = vec![Image::with_layers(layers)];
        if at < FOR_TWO_PLATFORMS {
            images.push(Image::with_layers(layers));
        }
        let top = match &images[..] {
            [amd64, arm64] => index_of(&[("amd64", amd64), ("arm64", arm64)]),
            [image, ..] => image.manifest.clone(),
            [] => unreachable!("there is one"),
        };
        Shipped {
            registry,
            repository: format!("{owner}/app-{at}"),
            top,
            images,
        }
    }

    fn large() -> Self {
        let mut shipped = Shipped::new(LARGE, &[KIB]);
        let image = Image::with_layers(&[KIB]).over(&random(MIB).repeat(954));
        shipped.top = image.manifest.clone();
        shipped.images = vec![image];
        shipped
    }

    fn name(&self) -> String {
        format!("{}/{}:v1", self.registry, self.repository)
    }

    fn push(&self, registry: &Registry) {
        for image in &self.images {
            for blob in image.blobs() {
                registry.put_blob(&self.repository, blob);
            }
            let digest = image.manifest.digest().to_string();
            registry.put_manifest(&self.repository, &digest, &image.manifest);
        }
        registry.put_manifest(&self.repository, "v1", &self.top);
    }

    /// Of everything that it is made of, in bytes.
    fn size(&self) -> usize {
        let size =
            |image: &Image| image.manifest.bytes.len() + image.blobs().map(Vec::len).sum::<usize>();
        let index = if self.images.len() > 1 {
            self.top.bytes.len()
        } else {
            0
        };
        self.images.iter().map(size).sum::<usize>() + index
    }
}

fn index_of(images: &[(&str, &Image)]) -> Manifest {
    let entry = |(architecture, image): &(&str, &Image)| {
        let manifest = &image.manifest;
        let (digest, size) = (manifest.digest(), manifest.bytes.len());
        let mut entry = descriptor(&manifest.media_type, &digest, size);
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let entries: Vec<Value> = images.iter().map(entry).collect();
    let document = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    Manifest::new(OCI_INDEX, &document)
}

/// A referrer of `subject` with one blob; a registry without the referrers API has it in the list
/// that its tag leads to.
fn referrer(subject: &Manifest, artifact_type: &str, blob: &[u8]) -> Manifest {
    let empty = b"{}";
    let config = descriptor(
        "application/vnd.oci.empty.v1+json",
        &Digest::sha256(empty),
        empty.len(),
    );
    let layer = descriptor(artifact_type, &Digest::sha256(blob), blob.len());
    let size = subject.bytes.len();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config,
        "layers": [layer],
        "subject": descriptor(&subject.media_type, &subject.digest(), size),
    });
    Manifest::new(OCI_MANIFEST, &document)
}

fn setup(registry: &str) -> Setup {
    let mut setup = Setup::listening().rules(
        "[policy]\ndefault = \"deny\"\n[[policy.rules]]\nid = \"these\"\neffect = \"allow\"\n\
         images = [\"docker.io/**\", \"registry.k8s.io/**\", \"quay.io/**\", \"registry.example/**\"]\n",
    );
    for name in REGISTRIES {
        setup = setup.registry(name, registry);
    }
    setup
}

fn answer(proxy: &Proxy, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["-o", "json"]].concat();
    let said = proxy.run(|setup| setup, &arguments).assert_success();
    serde_json::from_str(&said.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The certs.d tree as a node gets it.
fn certs_d(proxy: &Proxy) -> PathBuf {
    let out = proxy.directory().join("certs.d");
    let url = format!("url = \"http://{}\"", proxy.address);
    let arguments = ["nodes", "hosts", "--out", text(&out)];
    proxy
        .run(|setup| setup.section("server", &url), &arguments)
        .assert_success();
    out
}

/// A node pulls by the names that people write.
fn assert_pulled<'a>(
    proxy: &Proxy,
    node: &Containerd,
    shipped: impl IntoIterator<Item = &'a Shipped>,
) {
    let certs_d = certs_d(proxy);
    for shipped in shipped {
        let name = shipped.name();
        node.pull(&certs_d, &name).assert_success();
        assert_eq!(
            node.digest_of(&name),
            Some(shipped.top.digest().to_string()),
            "{name}"
        );
    }
}

/// There is no way from here to anywhere.
fn assert_cut_off() {
    let links = run(program("ip").args(["-o", "link"]))
        .assert_success()
        .stdout;
    assert!(
        links.lines().count() == 1 && links.contains("lo:"),
        "{links}"
    );
    let routes = run(program("ip").args(["route"])).assert_success().stdout;
    assert_eq!(routes, "");
}

#[test]
fn twenty_images_cross_between_two_networks_that_share_no_route() {
    let (near_side, far_side) = (Island::start(), Island::start());
    let files = TempDir::new().unwrap();
    let file = |name: &str| files.path().join(name);
    let mut shipped: Vec<Shipped> = (0..LARGE)
        .map(|at| Shipped::new(at, &[30 * KIB, 200 * KIB]))
        .collect();
    shipped.push(Shipped::large());
    let signed = &shipped[SIGNED];
    let artifacts = [
        (
            "application/vnd.dev.cosign.artifact.sig.v1+json",
            random(KIB),
        ),
        ("application/spdx+json", random(20 * KIB)),
    ];
    let referrers = (artifacts.each_ref()).map(|(kind, blob)| referrer(&signed.top, kind, blob));

    // Collected where there is a registry.
    let (full, receipt, delta) = (file("full.tar"), file("receipt.json"), file("delta.tar"));
    let (registry, near) = near_side.inside(|| {
        assert_cut_off();
        let registry = Registry::start();
        for shipped in &shipped {
            shipped.push(&registry);
        }
        let repository = &signed.repository;
        registry.put_blob(repository, b"{}");
        for ((_, blob), referrer) in artifacts.iter().zip(&referrers) {
            registry.put_blob(repository, blob);
            registry.put_manifest(repository, &referrer.digest().to_string(), referrer);
        }
        let list = Manifest::index_of(&referrers.each_ref());
        let tag = format!("sha256-{}", signed.top.digest().hex());
        registry.put_manifest(repository, &tag, &list);

        let near = setup(&format!("http://{}", registry.address))
            .section("tags", "fresh_for = \"0s\"")
            .start();
        let names: Vec<String> = shipped.iter().map(Shipped::name).collect();
        fs::write(file("images.txt"), names.join("\n")).unwrap();
        let warmed = answer(&near, &["warm", "--from", text(&file("images.txt"))]);
        assert_eq!(warmed["failed"], 0, "{warmed}");
        let exported = answer(&near, &["export", "--to", text(&full)]);
        assert_eq!(exported["images"].as_array().unwrap().len(), IMAGES);
        (registry, near)
    });

    // Served where there is none, to a node that only knows the names.
    let (far, node) = far_side.inside(|| {
        assert_cut_off();
        let far = setup("http://127.0.0.1:9")
            .section("server", "offline = true")
            .start();
        answer(&far, &["import", text(&full), "--receipt", text(&receipt)]);
        let node = Containerd::start();
        assert_pulled(&far, &node, &shipped);
        let at = |rest: &str| format!("/v2/{}/{}/{rest}", signed.registry, signed.repository);
        let found = far.get(&at(&format!("referrers/{}", signed.top.digest())));
        let found = found.assert(200).json();
        let mut listed: Vec<&str> = (found["manifests"].as_array().unwrap().iter())
            .map(|entry| entry["digest"].as_str().unwrap())
            .collect();
        let mut expected = referrers
            .each_ref()
            .map(|referrer| referrer.digest().to_string());
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
        for ((_, blob), referrer) in artifacts.iter().zip(&referrers) {
            let path = at(&format!("manifests/{}", referrer.digest()));
            far.get(&path).assert_whole(&referrer.bytes);
            let path = at(&format!("blobs/{}", Digest::sha256(blob)));
            far.get(&path).assert_whole(blob);
        }
        (far, node)
    });

    // Three of them change.
    let news: Vec<Shipped> = CHANGED
        .iter()
        .map(|at| Shipped::new(*at, &[MIB, 2 * MIB]))
        .collect();
    near_side.inside(|| {
        for shipped in &news {
            shipped.push(&registry);
        }
        let warmed = answer(&near, &["warm", "--from", text(&file("images.txt"))]);
        assert_eq!(warmed["failed"], 0, "{warmed}");
        let arguments = ["export", "--to", text(&delta), "--since", text(&receipt)];
        let exported = answer(&near, &arguments);
        assert_eq!(exported["images"].as_array().unwrap().len(), IMAGES);
    });
    let changed: usize = news.iter().map(Shipped::size).sum();
    let carried = usize::try_from(fs::metadata(&delta).unwrap().len()).unwrap();
    eprintln!("a delta of {carried} bytes for {changed} that changed");
    assert!(carried * 100 <= changed * 105, "{carried} for {changed}");
    far_side.inside(|| {
        answer(&far, &["import", text(&delta)]);
        assert_pulled(&far, &node, &news);
    });
}
