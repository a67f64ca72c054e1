//! `warm`: images that are here before anybody asks, with what signs them, and that stay.

use std::fs;

use portcullis::oci::Digest;
use serde_json::{Value, json};

use crate::support::image::{Image, Manifest, OCI_INDEX, descriptor, random};
use crate::support::kill::{any_below, kill, start, wait};
use crate::support::programs::Outcome;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Upstream};
use crate::support::{KIB, MIB, at};

fn warm(proxy: &Proxy, arguments: &[&str]) -> Outcome {
    let arguments = [&["warm", "-o", "json"], arguments].concat();
    proxy.run(|setup| setup, &arguments)
}

fn answer(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// Something that is about `subject`: an image with one layer.
fn referrer(upstream: &Upstream, subject: &Manifest) -> Manifest {
    let layer = random(KIB);
    let digest = upstream.blob("demo/app", layer.clone());
    let config = upstream.blob("demo/app", "{}");
    let document = json!({
        "schemaVersion": 2,
        "mediaType": subject_type(),
        "artifactType": "application/spdx+json",
        "config": descriptor("application/vnd.oci.empty.v1+json", &config, 2),
        "layers": [descriptor("application/octet-stream", &digest, layer.len())],
        "subject": descriptor(&subject.media_type, &subject.digest(), subject.bytes.len()),
        "annotations": { "org.example.of": "the far side" },
    });
    Manifest::new(subject_type(), &document)
}

fn subject_type() -> &'static str {
    "application/vnd.oci.image.manifest.v1+json"
}

/// An index of one platform.
fn index_of(image: &Image) -> Manifest {
    let manifest = &image.manifest;
    let mut entry = descriptor(
        &manifest.media_type,
        &manifest.digest(),
        manifest.bytes.len(),
    );
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let document = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
    Manifest::new(OCI_INDEX, &document)
}

#[test]
fn what_is_warm_is_served_offline_with_all_that_belongs_to_it() {
    let mut upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[MIB, 10 * KIB]);
    let index = index_of(&image);
    upstream.image("demo/app", "platform", &image);
    upstream.manifest("demo/app", "1", &index);
    // A bill of material as a referrer, a signature under cosign's tag.
    let bill = referrer(&upstream, &index);
    upstream.manifest("demo/app", "bill", &bill);
    let list = Manifest::index_of(&[&bill]);
    let referrers = format!("/v2/demo/app/referrers/{}", index.digest());
    upstream.document(&referrers, list.bytes.clone(), &list.media_type);
    let signature = Image::with_layers(&[KIB]);
    let tag = format!("sha256-{}.sig", index.digest().hex());
    upstream.image("demo/app", &tag, &signature);
    let other = Image::with_layers(&[KIB]);
    upstream.image("demo/other", "2", &other);

    let file = proxy.directory().join("images.txt");
    fs::write(&file, "# more\nregistry.example/demo/other:2\n").unwrap();
    let file = file.to_str().unwrap();
    let image_name = "registry.example/demo/app:1";
    let done = warm(&proxy, &[image_name, "--from", file]).assert_success();
    let done = answer(&done);
    assert_eq!(done["failed"], 0);
    assert_eq!(done["images"][0]["image"], image_name);
    assert_eq!(done["images"][0]["digest"], index.digest().to_string());
    assert_eq!(done["images"][1]["image"], "registry.example/demo/other:2");

    // Acknowledged is acknowledged.
    proxy.kill9();
    upstream.stop();
    proxy.start_again_with(|setup| setup.section("server", "offline = true"));
    let get = |path: &str| proxy.get(&at(&format!("demo/app/{path}")));
    get("manifests/1").assert_whole(&index.bytes);
    get(&format!("manifests/{}", image.manifest.digest())).assert_whole(&image.manifest.bytes);
    get(&format!("manifests/{}", bill.digest())).assert_whole(&bill.bytes);
    get(&format!("manifests/{tag}")).assert_whole(&signature.manifest.bytes);
    for blob in image.blobs().chain(signature.blobs()) {
        get(&format!("blobs/{}", Digest::sha256(blob))).assert_whole(blob);
    }
    let found = get(&format!("referrers/{}", index.digest()))
        .assert(200)
        .json();
    let expected = json!([{
        "mediaType": bill.media_type,
        "digest": bill.digest(),
        "size": bill.bytes.len(),
        "artifactType": "application/spdx+json",
        "annotations": { "org.example.of": "the far side" },
    }]);
    assert_eq!(found["manifests"], expected);
    let tags = get("tags/list").assert(200).json();
    assert_eq!(tags["tags"], json!(["1", tag]));

    // What is not here: a text for images, a plain no for what clients only try.
    let missing = get("manifests/2").assert_error(503, "UNAVAILABLE");
    assert!(missing.reason.contains("offline"), "{}", missing.reason);
    get(&format!("referrers/{}", signature.manifest.digest())).assert(404);
    let unsigned = format!("manifests/sha256-{}.sig", image.manifest.digest().hex());
    get(&unsigned).assert(404);
    let refused = warm(&proxy, &[image_name, "registry.example/demo/app:3"]).assert_failure();
    let refused = answer(&refused);
    assert_eq!(refused["failed"], 1, "what is here needs nobody: {refused}");
}

#[test]
fn one_that_fails_is_named_and_the_others_are_warm() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[KIB]);
    upstream.image("demo/app", "1", &image);
    upstream.image("demo/shaky", "1", &image);
    upstream.times(4, "demo/shaky/manifests/1", Fault::status(500));
    let images = [
        "registry.example/demo/none:1",
        "k8s.gcr.io/pause:3.9",
        "registry.example/demo/app:1",
        "registry.example/demo/shaky:1",
    ];
    let done = answer(&warm(&proxy, &images).assert_failure());
    assert_eq!(done["failed"], 2);
    let error = |at: usize| done["images"][at]["error"].as_str().map(str::to_owned);
    assert_eq!(done["images"][0]["image"], images[0]);
    assert!(error(0).is_some_and(|text| text.contains("no such manifest")));
    assert!(error(1).is_some_and(|text| text.contains("k8s.gcr.io")));
    assert_eq!((error(2), error(3)), (None, None));
}

/// Ten times, at whatever byte of it, the command or the server.
#[test]
fn kill_9_at_any_moment_of_warm_loses_nothing_that_was_acknowledged() {
    let upstream = Upstream::start();
    upstream.rate(30_000_000);
    let images = [
        Image::with_layers(&[MIB, 10 * KIB]),
        Image::with_layers(&[200 * KIB, 3 * MIB]),
        Image::with_layers(&[KIB]),
    ];
    let names = images.iter().enumerate().map(|(at, image)| {
        upstream.image(&format!("demo/app-{at}"), "1", image);
        format!("registry.example/demo/app-{at}:1")
    });
    let names: Vec<String> = names.collect();
    let arguments: Vec<&str> = names.iter().map(String::as_str).collect();
    let total = 4 * MIB + 200 * KIB;
    for victim in ["command", "server"].into_iter().cycle().take(10) {
        let moment = any_below(total);
        let mut proxy = Proxy::start(&upstream);
        let assert_all_here = |proxy: &Proxy| {
            let stored = proxy.stored();
            let blobs = images
                .iter()
                .flat_map(Image::blobs)
                .map(|blob| Digest::sha256(blob));
            let manifests = images.iter().map(|image| image.manifest.digest());
            for digest in blobs.chain(manifests) {
                assert!(
                    stored.contains(&digest),
                    "{victim} at {moment}: {digest} is lost"
                );
            }
            let pins = fs::read_dir(proxy.store().join("v1/pins")).unwrap().count();
            assert_eq!(pins, images.len(), "{victim} at {moment}");
        };
        let before = upstream.sent("demo/");
        let mut running = start(&proxy, &[&["warm"], &arguments[..]].concat());
        wait(&mut running, || {
            upstream.sent("demo/") - before >= moment as u64
        });
        let acknowledged = if victim == "server" {
            proxy.kill9();
            running.wait().unwrap().success()
        } else {
            let acknowledged = kill(running);
            proxy.kill9();
            acknowledged
        };
        if acknowledged {
            assert_all_here(&proxy);
        }
        proxy.start_again();
        let done = answer(&warm(&proxy, &arguments).assert_success());
        assert_eq!(done["failed"], 0, "{victim} at {moment}");
        proxy.kill9();
        assert_all_here(&proxy);
    }
}

#[test]
fn kill_9_during_warm_costs_what_was_on_its_way() {
    for victim in ["command", "server"] {
        let upstream = Upstream::start();
        let mut proxy = Proxy::start(&upstream);
        let (small, image) = (
            Image::with_layers(&[10 * KIB]),
            Image::with_layers(&[200 * KIB, 4 * MIB]),
        );
        upstream.image("demo/small", "1", &small);
        upstream.image("demo/app", "1", &image);
        let large = Digest::sha256(&image.layers[1]);
        let gate = upstream.hold(large, 2 * MIB as u64);
        let images = [
            "registry.example/demo/small:1",
            "registry.example/demo/app:1",
        ];
        let mut running = start(&proxy, &[&["warm"], &images[..]].concat());
        gate.reached();
        if victim == "command" {
            kill(running);
        } else {
            proxy.kill9();
            assert!(!running.wait().unwrap().success());
            proxy.start_again();
        }
        upstream.behave();
        let done = answer(&warm(&proxy, &images).assert_success());
        assert_eq!(done["failed"], 0);
        let again = upstream.sent(large) - image.layers[1].len() as u64;
        assert!(again <= 3 * MIB as u64, "{again} bytes were fetched again");
        proxy.kill9();
        for blob in image.blobs().chain(small.blobs()) {
            assert!(proxy.stored().contains(&Digest::sha256(blob)));
        }
    }
}

#[test]
fn the_configuration_keeps_images_warm() {
    let upstream = Upstream::start();
    let image = Image::with_layers(&[KIB]);
    upstream.image("demo/app", "1", &image);
    let lines = "images = [\"registry.example/demo/app:1\"]\nevery = \"1m\"";
    let proxy = Setup::new(&upstream).section("warm", lines).start();
    proxy.logs().wait_for("warmed what the configuration names");
    assert_eq!(proxy.metric("portcullis_warmed_total"), 1);
    assert_eq!(upstream.hits(Digest::sha256(&image.layers[0])), 1);
    assert_eq!(
        fs::read_dir(proxy.store().join("v1/pins")).unwrap().count(),
        1
    );
}

#[test]
fn what_was_missing_offline_is_a_list_that_the_connected_side_warms() {
    let upstream = Upstream::start();
    let mut far = Setup::new(&upstream)
        .section("server", "offline = true")
        .start();
    let image = Image::with_layers(&[KIB]);
    upstream.image("demo/app", "1", &image);
    let missing = |proxy: &Proxy| proxy.run(|setup| setup, &["status", "--missing"]);
    let path = at("demo/app/manifests/1");
    far.get(&path).assert_error(503, "UNAVAILABLE");
    let list = missing(&far).assert_success().stdout;
    assert_eq!(list, "registry.example/demo/app:1\n");

    // The list crosses the gap, and what it names comes back: here by the cable that comes for it.
    let file = far.directory().join("missing.txt");
    fs::write(&file, &list).unwrap();
    let near = Proxy::start(&upstream);
    warm(&near, &["--from", file.to_str().unwrap()]).assert_success();
    assert!(far.terminate().success());
    far.start_again_with(|setup| setup.section("tags", "fresh_for = \"1h\""));
    assert_eq!(missing(&far).stdout, list, "it outlives a restart");
    let status = far.run(|setup| setup, &["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&status.assert_success().stdout).unwrap();
    assert_eq!(
        (&status["offline"], &status["missing"]),
        (&json!(true), &json!(1))
    );
}

#[test]
fn what_has_come_is_missing_no_more() {
    let upstream = Upstream::start();
    let store = tempfile::tempdir().unwrap();
    let online = || Setup::new(&upstream).store_at(store.path()).start();
    let missing = |proxy: &Proxy| proxy.run(|setup| setup, &["status", "--missing"]).stdout;
    let image = Image::with_layers(&[KIB, 2 * KIB]);
    upstream.image("demo/app", "1", &image);
    // The manifest is here, its layers are not.
    let mut proxy = online();
    proxy.get(&at("demo/app/manifests/1")).assert(200);
    proxy.wait_until_stored(&image.manifest.digest());
    assert!(proxy.terminate().success());
    let mut proxy = Setup::new(&upstream)
        .store_at(store.path())
        .section("server", "offline = true")
        .start();
    let layer = Digest::sha256(&image.layers[0]);
    proxy
        .get(&at(&format!("demo/app/blobs/{layer}")))
        .assert_error(503, "UNAVAILABLE");
    let digest = image.manifest.digest();
    assert_eq!(
        missing(&proxy),
        format!("registry.example/demo/app@{digest}\n")
    );
    assert!(proxy.terminate().success());
    let proxy = online();
    warm(&proxy, &["registry.example/demo/app:1"]).assert_success();
    assert_eq!(missing(&proxy), "");
}
