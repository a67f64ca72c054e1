//! Bundles across an air gap: what one proxy exports, another imports and serves offline, by the
//! same names and with the same digests, whatever happens in between.

use std::fs;
use std::path::{Path, PathBuf};

use portcullis::oci::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::image::{Image, Manifest, OCI_INDEX, OCI_MANIFEST, descriptor, random};
use crate::support::kill::{any_below, kill, start, wait};
use crate::support::programs::{Containerd, Outcome, Registry, program, run, skopeo};
use crate::support::proxy::{Proxy, Setup};
use crate::support::stores::azurite;
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, at, eventually};

const APP: &str = "registry.example/demo/app:1";
const TOOL: &str = "registry.example/demo/tool:1";
const BASE: &str = "registry.example/demo/base:1";

fn portcullis(proxy: &Proxy, arguments: &[&str]) -> Outcome {
    proxy.run(|setup| setup, arguments)
}

/// The answer of a command that goes well.
fn answer(proxy: &Proxy, arguments: &[&str]) -> Value {
    let outcome = portcullis(proxy, &[arguments, &["-o", "json"]].concat()).assert_success();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The far side: no network, nothing in its cache.
fn far() -> Proxy {
    // Nobody listens there, and nobody is to find that out.
    Setup::registry_at("http://127.0.0.1:9")
        .section("server", "offline = true")
        .start()
}

/// What the far side serves of an image: its manifests and blobs.
fn assert_served(proxy: &Proxy, repository: &str, tag: &str, images: &[&Image], top: &Manifest) {
    let found = proxy.get(&at(&format!("{repository}/manifests/{tag}")));
    found.assert_whole(&top.bytes);
    for image in images {
        let manifest = image.manifest.digest();
        let found = proxy.get(&at(&format!("{repository}/manifests/{manifest}")));
        found.assert_whole(&image.manifest.bytes);
        for blob in image.blobs() {
            let path = at(&format!("{repository}/blobs/{}", Digest::sha256(blob)));
            proxy.get(&path).assert_whole(blob);
        }
    }
}

/// Three images: one for two platforms, one with a signature in both ways, one large.
struct Scene {
    upstream: Upstream,
    near: Proxy,
    index: Manifest,
    platforms: [Image; 2],
    tool: Image,
    signature: Manifest,
    base: Image,
    directory: TempDir,
}

impl Scene {
    fn start() -> Self {
        let upstream = Upstream::start();
        let near = Setup::new(&upstream)
            .section("tags", "fresh_for = \"1h\"")
            .start();
        let platforms = [Image::with_layers(&[MIB]), Image::with_layers(&[MIB])];
        let entry = |image: &Image, architecture: &str| {
            let manifest = &image.manifest;
            let size = manifest.bytes.len();
            let mut entry = descriptor(&manifest.media_type, &manifest.digest(), size);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entry
        };
        let manifests = [entry(&platforms[0], "amd64"), entry(&platforms[1], "arm64")];
        let document =
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let index = Manifest::new(OCI_INDEX, &document);
        for (n, image) in platforms.iter().enumerate() {
            upstream.image("demo/app", &format!("platform-{n}"), image);
        }
        upstream.manifest("demo/app", "1", &index);

        let tool = Image::with_layers(&[100 * KIB, 10 * KIB]);
        upstream.image("demo/tool", "1", &tool);
        let signature = signature_of(&upstream, "demo/tool", &tool.manifest);
        let base = Image::with_layers(&[5 * MIB, 200 * KIB]);
        upstream.image("demo/base", "1", &base);
        Scene {
            upstream,
            near,
            index,
            platforms,
            tool,
            signature,
            base,
            directory: TempDir::new().unwrap(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn export(&self, name: &str, more: &[&str]) -> (PathBuf, Value) {
        let path = self.file(name);
        let arguments = ["export", "--to", text(&path)];
        let said = answer(&self.near, &[&arguments, more].concat());
        (path, said)
    }

    fn assert_served_by(&self, far: &Proxy) {
        let [amd64, arm64] = &self.platforms;
        assert_served(far, "demo/app", "1", &[amd64, arm64], &self.index);
        assert_served(far, "demo/tool", "1", &[&self.tool], &self.tool.manifest);
        assert_served(far, "demo/base", "1", &[&self.base], &self.base.manifest);
        let signed = self.tool.manifest.digest();
        for reference in [
            self.signature.digest().to_string(),
            format!("sha256-{}.sig", signed.hex()),
        ] {
            let found = far.get(&at(&format!("demo/tool/manifests/{reference}")));
            found.assert_whole(&self.signature.bytes);
        }
    }
}

/// A signature that both the referrers API and cosign's tag lead to.
fn signature_of(upstream: &Upstream, repository: &str, signed: &Manifest) -> Manifest {
    let bytes = random(KIB);
    let blob = upstream.blob(repository, bytes.clone());
    let config = upstream.blob(repository, "{}");
    let size = signed.bytes.len();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", &config, 2),
        "layers": [descriptor("application/octet-stream", &blob, bytes.len())],
        "subject": descriptor(&signed.media_type, &signed.digest(), size),
    });
    let signature = Manifest::new(OCI_MANIFEST, &document);
    let tag = format!("sha256-{}.sig", signed.digest().hex());
    upstream.manifest(repository, &tag, &signature);
    let list = Manifest::index_of(&[&signature]);
    let path = format!("/v2/{repository}/referrers/{}", signed.digest());
    upstream.document(&path, list.bytes.clone(), &list.media_type);
    signature
}

#[test]
fn what_is_exported_is_served_on_the_far_side() {
    let mut scene = Scene::start();
    // cosign's tag is in the cache because somebody asked for it.
    let tag = format!("sha256-{}.sig", scene.tool.manifest.digest().hex());
    scene
        .near
        .get(&at(&format!("demo/tool/manifests/{tag}")))
        .assert(200);
    let (first, said) = scene.export("first.tar", &[TOOL, APP, BASE]);
    assert_eq!(said["complete"], true);
    assert_eq!(said["images"].as_array().unwrap().len(), 3);
    let (second, _) = scene.export("second.tar", &[BASE, APP, TOOL]);
    assert!(
        fs::read(&first).unwrap() == fs::read(&second).unwrap(),
        "two exports differ"
    );

    // Pinned, the same images are exported without a name, without a server, and without a network.
    for image in [APP, TOOL, BASE] {
        answer(&scene.near, &["cache", "pin", image]);
    }
    scene.upstream.stop();
    assert!(scene.near.terminate().success());
    let (pinned, _) = scene.export("pinned.tar", &[]);
    assert!(
        fs::read(&first).unwrap() == fs::read(&pinned).unwrap(),
        "pins are exported otherwise"
    );
    let checked = program("sh")
        .args([
            "-c",
            "tar -xf first.tar && sha256sum --quiet -c checksums.txt",
        ])
        .current_dir(scene.directory.path())
        .status();
    assert!(checked.unwrap().success());

    for running in [true, false] {
        let mut far = far();
        if !running {
            assert!(far.terminate().success());
        }
        let outcome = portcullis(&far, &["import", text(&first)]).assert_success();
        assert!(outcome.text.contains("unverified"), "{}", outcome.text);
        if !running {
            far.start_again();
        }
        scene.assert_served_by(&far);
        far.kill9();
        far.start_again();
        scene.assert_served_by(&far);
        let images = answer(&far, &["cache", "ls"]);
        for image in images["images"].as_array().unwrap() {
            let is_signature = image["image"].as_str().unwrap().contains("sha256-");
            let expected = json!([true, !is_signature]);
            assert_eq!(
                json!([image["complete"], image["pinned"]]),
                expected,
                "{image}"
            );
        }
        // Again: nothing new, nothing else.
        assert_eq!(answer(&far, &["import", text(&second)])["new_bytes"], 0);
    }
}

#[test]
fn other_tools_take_a_full_bundle_and_we_take_theirs() {
    let scene = Scene::start();
    let (bundle, _) = scene.export("bundle.tar", &[APP, TOOL, BASE]);
    let inspect = run(skopeo()
        .args(["inspect", "--raw"])
        .arg(format!("oci-archive:{}:{TOOL}", text(&bundle))));
    assert!(inspect.assert_success().stdout.as_bytes() == scene.tool.manifest.bytes);

    let containerd = Containerd::start();
    containerd
        .images(&["import", "--snapshotter", "native", text(&bundle)])
        .assert_success();
    for (image, manifest) in [
        (APP, &scene.index),
        (TOOL, &scene.tool.manifest),
        (BASE, &scene.base.manifest),
    ] {
        assert_eq!(
            containerd.digest_of(image),
            Some(manifest.digest().to_string()),
            "{image}"
        );
    }
    let listed = containerd.images(&["list", "-q"]).assert_success().stdout;
    assert_eq!(listed.lines().count(), 3, "{listed}");

    // What they write comes in.
    let theirs = scene.file("ctr.tar");
    containerd
        .images(&[
            "export",
            "--platform",
            "linux/amd64",
            text(&theirs),
            APP,
            BASE,
        ])
        .assert_success();
    let far_side = far();
    let said = answer(&far_side, &["import", text(&theirs)]);
    assert_eq!(said["images"].as_array().unwrap().len(), 2, "{said}");
    // An index need not be whole.
    let amd64 = &scene.platforms[0];
    assert_served(&far_side, "demo/app", "1", &[amd64], &scene.index);
    assert_served(
        &far_side,
        "demo/base",
        "1",
        &[&scene.base],
        &scene.base.manifest,
    );

    let registry = Registry::start();
    registry.push("demo/hello", "1", &scene.tool);
    let theirs = scene.file("skopeo.tar");
    let name = "registry.example/demo/hello:1";
    let to = format!("oci-archive:{}:{name}", text(&theirs));
    let from = format!("docker://{}/demo/hello:1", registry.address);
    let options = ["copy", "-q", "--preserve-digests", "--src-tls-verify=false"];
    run(skopeo().args(options).args([from, to])).assert_success();
    answer(&far_side, &["import", text(&theirs)]);
    assert_served(
        &far_side,
        "demo/hello",
        "1",
        &[&scene.tool],
        &scene.tool.manifest,
    );
}

/// What one replica imports all of them have, as if it had been pulled; none of them needs anybody
/// but the store for it.
#[test]
fn an_import_reaches_the_other_replicas() {
    let scene = Scene::start();
    let (bundle, said) = scene.export("bundle.tar", &[APP, TOOL, BASE]);
    let name = azurite().fresh_container();
    // Nobody listens there: what is served came from the shared store.
    let replica = || {
        Setup::registry_at("http://127.0.0.1:9")
            .section("server", "offline = true")
            .shared(azurite(), &name)
            .start()
    };
    let (first, second) = (replica(), replica());
    answer(&first, &["import", text(&bundle)]);
    let container = azurite().container(&name);
    let blobs = usize::try_from(said["blobs"].as_u64().unwrap()).unwrap();
    eventually("all blobs in the shared store", || {
        container.names("v1/blobs/").len() == blobs && container.names("v1/pins/").len() == 3
    });
    scene.assert_served_by_all_but_tags(&second);

    // What is missing there is missing, and said at once.
    let layer = Digest::sha256(&scene.base.layers[0]);
    let hex = layer.hex();
    container.delete(&format!("fleet/v1/blobs/sha256/{}/{hex}", &hex[..2]));
    let third = replica();
    let path = at(&format!("demo/base/blobs/{layer}"));
    let missing = third.get(&path).assert_error(503, "UNAVAILABLE");
    assert!(missing.reason.contains("offline"), "{}", missing.reason);
    scene.assert_served_by_all_but_tags(&second);
}

/// For a node that starts before any registry does.
#[test]
fn a_node_takes_what_is_written_for_containerd() {
    let scene = Scene::start();
    let to = scene.file("node.tar");
    let more = ["--containerd", "--platform", "linux/amd64", APP];
    let (node, _) = scene.export("node.tar", &more);
    let list = run(program("tar").args(["-tf", text(&node)]))
        .assert_success()
        .stdout;
    assert!(
        list.lines()
            .all(|name| name == "oci-layout" || name == "index.json" || name.starts_with("blobs/")),
        "{list}"
    );
    let containerd = Containerd::start();
    containerd
        .images(&["import", "--snapshotter", "native", text(&to)])
        .assert_success();
    assert_eq!(
        containerd.digest_of(APP),
        Some(scene.index.digest().to_string())
    );
    let said = portcullis(&scene.near, &["export", "--containerd", "--to", "x.tar"]);
    said.assert_failure();
}

#[test]
fn a_delta_carries_what_changed_and_needs_its_base() {
    let scene = Scene::start();
    for image in [APP, TOOL, BASE] {
        answer(&scene.near, &["cache", "pin", image]);
    }
    let (full, _) = scene.export("full.tar", &["--zstd", "--split", "2MiB"]);
    assert!(scene.file("full.tar.002").exists() && !full.exists());
    let far_side = far();
    let receipt = scene.file("receipt.json");
    let arguments = ["import", text(&full), "--receipt", text(&receipt)];
    answer(&far_side, &arguments);
    scene.assert_served_by_all_but_tags(&far_side);

    // The tool changes, the rest stays.
    let changed = Image::with_layers(&[MIB, 10 * KIB]);
    scene.upstream.image("demo/tool", "2", &changed);
    answer(
        &scene.near,
        &["cache", "pin", "registry.example/demo/tool:2"],
    );
    let (delta, said) = scene.export("delta.tar", &["--since", text(&receipt)]);
    assert_eq!(
        (&said["complete"], said["images"].as_array().unwrap().len()),
        (&json!(false), 4)
    );
    let news: usize = changed.blobs().map(Vec::len).sum::<usize>() + changed.manifest.bytes.len();
    let size = fs::metadata(&delta).unwrap().len();
    assert!(
        size * 100 < news as u64 * 105,
        "{size} bytes for {news} that changed"
    );

    let empty = far();
    let refused = portcullis(&empty, &["import", text(&delta)])
        .assert_failure()
        .text;
    assert!(
        refused.contains("delta") && refused.contains(&said["base"].as_str().unwrap().to_owned()),
        "{refused}"
    );
    assert!(refused.contains("sha256:"), "{refused}");
    empty.get(&at("demo/tool/manifests/2")).assert(503);

    answer(&far_side, &["import", text(&delta)]);
    assert_served(&far_side, "demo/tool", "2", &[&changed], &changed.manifest);
    scene.assert_served_by_all_but_tags(&far_side);
    let cut = scene.file("cut.json");
    let mut text_of = fs::read_to_string(&receipt).unwrap();
    text_of = text_of.replacen("sha256:", "sha256:0", 1);
    fs::write(&cut, text_of).unwrap();
    let arguments = ["export", "--to", "x.tar", "--since", text(&cut)];
    portcullis(&scene.near, &arguments).assert_failure();
}

impl Scene {
    /// Without the signature's tag, which nobody asked for.
    fn assert_served_by_all_but_tags(&self, far: &Proxy) {
        let [amd64, arm64] = &self.platforms;
        assert_served(far, "demo/app", "1", &[amd64, arm64], &self.index);
        assert_served(far, "demo/tool", "1", &[&self.tool], &self.tool.manifest);
        assert_served(far, "demo/base", "1", &[&self.base], &self.base.manifest);
    }
}

/// Keys as openssl makes them, signatures that openssl can check.
#[test]
fn signatures_are_those_of_openssl() {
    let scene = Scene::start();
    let openssl = |arguments: &[&str]| {
        run(program("openssl")
            .args(arguments)
            .current_dir(scene.directory.path()))
    };
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", "ed25519.pem"]).assert_success();
    openssl(&[
        "ecparam",
        "-genkey",
        "-name",
        "prime256v1",
        "-out",
        "p256.pem",
    ])
    .assert_success();
    for key in ["ed25519", "p256"] {
        let (private, public) = (format!("{key}.pem"), format!("{key}.pub"));
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]).assert_success();
    }
    let (unsigned, _) = scene.export("unsigned.tar", &[TOOL]);
    let trusted = |file: &Path, key: &str| {
        let key = scene.file(&format!("{key}.pub"));
        let far = far();
        let outcome = portcullis(&far, &["import", text(file), "--trust", text(&key)]);
        if !outcome.status.success() {
            assert_eq!(far.stored(), [], "something was taken");
        }
        outcome
    };
    for key in ["ed25519", "p256"] {
        let private = scene.file(&format!("{key}.pem"));
        let (signed, said) = scene.export(&format!("{key}.tar"), &["--sign", text(&private), TOOL]);
        assert_eq!(said["signed"], true);
        let outcome = trusted(&signed, key).assert_success();
        assert!(!outcome.text.contains("unverified"), "{}", outcome.text);
        let other = if key == "p256" { "ed25519" } else { "p256" };
        let refused = trusted(&signed, other).assert_failure().text;
        assert!(refused.contains("not by the key"), "{refused}");

        let script = format!(
            "tar -xf {key}.tar && sha256sum bundle.json checksums.txt > signed.txt && \
             base64 -d bundle.sig > signature && {}",
            if key == "p256" {
                "openssl dgst -sha256 -verify p256.pub -signature signature signed.txt"
            } else {
                "openssl pkeyutl -verify -pubin -inkey ed25519.pub -rawin -in signed.txt -sigfile signature"
            }
        );
        let mut shell = program("sh");
        run(shell
            .args(["-c", &script])
            .current_dir(scene.directory.path()))
        .assert_success();
    }
    let refused = trusted(&unsigned, "p256").assert_failure().text;
    assert!(refused.contains("not signed"), "{refused}");
    let key = scene.file("p256.pub");
    let arguments = ["export", "--to", "x.tar", "--sign", text(&key), TOOL];
    let refused = portcullis(&scene.near, &arguments).assert_failure().text;
    assert!(refused.contains("openssl genpkey"), "{refused}");
}

#[test]
fn kill_9_during_an_export_leaves_no_bundle_and_a_second_try_makes_it() {
    let mut scene = Scene::start();
    let (good, _) = scene.export("good.tar", &[APP, TOOL, BASE]);
    let good = fs::read(good).unwrap();
    let to = scene.file("bundle.tar");
    let partial = scene.file("bundle.tar.partial");
    let arguments = ["export", "--to", text(&to), APP, TOOL, BASE];
    let fixed = [("command", 0), ("command", 1), ("server", 1)];
    let random = ["command", "server"].into_iter().cycle().take(7);
    let random = random.map(|victim| (victim, any_below(good.len())));
    for (victim, bytes) in fixed.into_iter().chain(random) {
        let _ = fs::remove_file(&to);
        let mut export = start(&scene.near, &arguments);
        let written = || fs::metadata(&partial).is_ok_and(|file| file.len() >= bytes as u64);
        wait(&mut export, || bytes == 0 || written());
        if victim == "server" {
            scene.near.kill9();
            export.wait().unwrap();
            scene.near.start_again();
        } else {
            kill(export);
        }
        // There whole or not at all.
        assert!(
            !to.exists() || fs::read(&to).unwrap() == good,
            "{victim} at {bytes}"
        );
    }
    answer(&scene.near, &arguments);
    assert!(fs::read(&to).unwrap() == good);
    assert!(!partial.exists());
    // However they ended, nothing is held for them any more.
    let layer = Digest::sha256(&scene.base.layers[0]).to_string();
    eventually("an end of all exports", || {
        let why = portcullis(&scene.near, &["cache", "why", &layer]).assert_success();
        !why.text.contains("export")
    });
}

#[test]
fn kill_9_during_an_import_shows_nothing_or_everything_and_a_second_try_finishes() {
    let scene = Scene::start();
    let (bundle, said) = scene.export("bundle.tar", &[APP, TOOL, BASE]);
    let blobs = usize::try_from(said["blobs"].as_u64().unwrap()).unwrap();
    let tags = [
        ("demo/app", &scene.index),
        ("demo/tool", &scene.tool.manifest),
        ("demo/base", &scene.base.manifest),
    ];
    let fixed = [
        ("server", Some(1)),
        ("command", Some(blobs - 1)),
        ("server", Some(blobs)),
        ("server", None),
    ];
    let random = ["command", "server"].into_iter().cycle().take(6);
    let random = random.map(|victim| (victim, Some(any_below(blobs))));
    for (victim, moment) in fixed.into_iter().chain(random) {
        let mut far = far();
        let imports = far.store().join("v1/imports");
        let recorded = || fs::read_dir(&imports).unwrap().count() > 0;
        let mut import = start(&far, &["import", text(&bundle)]);
        wait(&mut import, || match moment {
            Some(count) => far.stored().len() >= count,
            None => recorded(),
        });
        if victim == "server" {
            far.kill9();
            import.wait().unwrap();
        } else {
            kill(import);
            assert!(far.terminate().success());
        }
        far.start_again();
        let served: Vec<bool> = tags
            .iter()
            .map(|(repository, manifest)| {
                let found = far.get(&at(&format!("{repository}/manifests/1")));
                match found.status {
                    200 => {
                        found.assert_whole(&manifest.bytes);
                        true
                    }
                    status => {
                        assert_eq!(status, 503, "{victim} at {moment:?}");
                        false
                    }
                }
            })
            .collect();
        assert!(served.iter().all(|found| *found == served[0]), "{served:?}");
        assert!(!recorded(), "unfinished");
        if served[0] {
            scene.assert_served_by_all_but_tags(&far);
        }
        answer(&far, &["import", text(&bundle)]);
        scene.assert_served_by_all_but_tags(&far);
        let spool = far.spooled();
        assert!(spool.is_empty(), "left behind: {spool:?}");
    }
}

#[test]
fn what_cannot_be_exported_or_imported_is_refused_with_the_reason() {
    let scene = Scene::start();
    let near = &scene.near;
    let refused = |arguments: &[&str]| portcullis(near, arguments).assert_failure().text;
    let said = refused(&["export", "--to", "x.tar"]);
    assert!(said.contains("nothing is pinned here"), "{said}");
    let said = refused(&["export", "--to", "x.tar", "registry.example/demo/none:1"]);
    assert!(said.contains("no such manifest"), "{said}");
    let said = refused(&["export", "--to", "x.tar", "k8s.gcr.io/pause:3.9"]);
    assert!(said.contains("not allowed"), "{said}");
    let said = refused(&["export", "--to", "nowhere/x.tar", TOOL]);
    assert!(said.contains("nowhere/x.tar"), "{said}");
    let said = refused(&["import", "none.tar"]);
    assert!(said.contains("none.tar"), "{said}");
    let (bundle, _) = scene.export("bundle.tar", &[BASE]);
    let bytes = fs::read(&bundle).unwrap();
    // Refused at once, while most of it has not been read.
    let mut wrong = bytes.clone();
    wrong[5] ^= 1;
    fs::write(&bundle, &wrong).unwrap();
    let said = refused(&["import", text(&bundle)]);
    assert!(said.contains("refused"), "{said}");
    fs::write(&bundle, &bytes[..bytes.len() / 2]).unwrap();
    let said = refused(&["import", text(&bundle)]);
    assert!(said.contains("cut short"), "{said}");
    near.get(&at("demo/base/manifests/1"))
        .assert_whole(&scene.base.manifest.bytes);
}
