//! The programs that people have: Debian's containerd, skopeo and podman pull from Debian's
//! docker-registry through the proxy, over plain HTTP and over TLS with a private authority.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::certificates::Certificates;
use crate::support::image::Image;
use crate::support::listeners::Relay;
use crate::support::programs::{Containerd, Registry, podman, run, skopeo};
use crate::support::proxy::{Proxy, Setup};
use crate::support::{KIB, MIB};

const RULES: &str = r#"
[[policy.rules]]
id = "frozen-k8s-gcr"
images = ["k8s.gcr.io/**"]
effect = "deny"
reason = "k8s.gcr.io is frozen since 3 April 2023"
instead = "registry.k8s.io/**"
[[policy.rules]]
id = "examples"
images = ["registry.example/**"]
effect = "allow"
"#;

/// A registry with an image, a counted way to it, and the proxy at its end.
struct Scene {
    registry: Registry,
    way: Relay,
    proxy: Proxy,
    image: Image,
    certificates: Option<Certificates>,
    directory: TempDir,
}

impl Scene {
    fn start(tls: bool) -> Self {
        let registry = Registry::start();
        let image = Image::with_layers(&[10 * KIB, 300 * KIB, 12 * MIB]);
        registry.push("demo/hello", "1", &image);
        let way = Relay::to(registry.address);
        let directory = TempDir::new().unwrap();
        let mut setup = Setup::registry_at(&format!("http://{}", way.address))
            .section("tags", "fresh_for = \"1h\"")
            .rules(RULES);
        let certificates = tls.then(|| Certificates::create(&directory.path().join("tls")));
        if let Some(files) = &certificates {
            setup = setup.tls(&files.certificate, &files.key, &files.authority);
        }
        Scene {
            registry,
            way,
            proxy: setup.start(),
            image,
            certificates,
            directory,
        }
    }

    /// The certs.d tree as a node gets it.
    fn certs_d(&self) -> PathBuf {
        let out = self.directory.path().join("certs.d");
        let scheme = if self.certificates.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("url = \"{scheme}://{}\"", self.proxy.address);
        let mut arguments = vec!["nodes", "hosts", "--out", out.to_str().unwrap()];
        if let Some(files) = &self.certificates {
            arguments.extend(["--ca", files.authority_file.to_str().unwrap()]);
        }
        self.proxy
            .run(|setup| setup.section("server", &url), &arguments)
            .assert_success();
        out
    }

    fn stop_upstream(&mut self) {
        self.way.stop();
        self.registry.stop();
    }

    /// How skopeo and podman name an image behind the proxy.
    fn by_path(&self, rest: &str) -> String {
        format!("{}/{rest}", self.proxy.address)
    }
}

fn containerd_pulls(tls: bool) {
    const IMAGE: &str = "registry.example/demo/hello:1";
    let mut scene = Scene::start(tls);
    let certs_d = scene.certs_d();

    // Each node is new: what it has, it has from the proxy.
    let first = Containerd::start();
    first.pull(&certs_d, IMAGE).assert_success();
    let digest = scene.image.manifest.digest().to_string();
    assert_eq!(first.digest_of(IMAGE), Some(digest.clone()));

    let asked = scene.way.bytes();
    assert!(asked > 0, "the registry was never asked");
    let second = Containerd::start();
    second.pull(&certs_d, IMAGE).assert_success();
    first.pull(&certs_d, IMAGE).assert_success();
    assert_eq!(
        scene.way.bytes(),
        asked,
        "the second pull asked the registry"
    );

    scene.stop_upstream();
    let third = Containerd::start();
    third.pull(&certs_d, IMAGE).assert_success();
    assert_eq!(third.digest_of(IMAGE), Some(digest));

    let refused = third
        .pull(&certs_d, "k8s.gcr.io/pause:3.9")
        .assert_failure();
    for part in [
        "403",
        "k8s.gcr.io is frozen since 3 April 2023",
        "registry.k8s.io/pause",
    ] {
        assert!(
            refused.text.contains(part),
            "{part:?} is not in {}",
            refused.text
        );
    }
}

#[test]
fn containerd_pulls_over_plain_http() {
    containerd_pulls(false);
}

#[test]
fn containerd_pulls_over_tls_with_a_private_authority() {
    containerd_pulls(true);
}

fn skopeo_and_podman_pull(tls: bool) {
    let mut scene = Scene::start(tls);
    let image = scene.by_path("registry.example/demo/hello:1");
    let frozen = scene.by_path("k8s.gcr.io/pause:3.9");
    // Both look for ca.crt in a directory.
    let trust = scene
        .certificates
        .as_ref()
        .map(|files| files.authority_file.parent().unwrap());
    let trust = trust.map(Path::to_owned);
    let copy = |name: &str, image: &str| {
        let mut command = skopeo();
        command.args(["copy", "-q"]);
        match &trust {
            Some(directory) => command.arg("--src-cert-dir").arg(directory),
            None => command.arg("--src-tls-verify=false"),
        };
        let to = format!("dir:{}", scene.directory.path().join(name).display());
        run(command.arg(format!("docker://{image}")).arg(to))
    };
    let pull = |name: &str, image: &str| {
        let mut command = podman(&scene.directory.path().join(name));
        command.args(["pull", "-q"]);
        match &trust {
            Some(directory) => command.arg("--cert-dir").arg(directory),
            None => command.arg("--tls-verify=false"),
        };
        run(command.arg(image))
    };

    copy("copy-1", &image).assert_success();
    pull("storage-1", &image).assert_success();
    let asked = scene.way.bytes();
    copy("copy-2", &image).assert_success();
    pull("storage-2", &image).assert_success();
    assert_eq!(scene.way.bytes(), asked, "a second pull asked the registry");

    let copied = scene.directory.path().join("copy-2/manifest.json");
    assert!(std::fs::read(copied).unwrap() == scene.image.manifest.bytes);

    scene.way.stop();
    scene.registry.stop();
    copy("copy-3", &image).assert_success();
    pull("storage-3", &image).assert_success();

    for refused in [copy("copy-4", &frozen), pull("storage-4", &frozen)] {
        let text = refused.assert_failure().text;
        assert!(
            text.contains("k8s.gcr.io is frozen since 3 April 2023"),
            "{text}"
        );
        assert!(text.contains("registry.k8s.io/pause"), "{text}");
    }
}

#[test]
fn skopeo_and_podman_pull_by_path_over_plain_http() {
    skopeo_and_podman_pull(false);
}

#[test]
fn skopeo_and_podman_pull_by_path_over_tls() {
    skopeo_and_podman_pull(true);
}
