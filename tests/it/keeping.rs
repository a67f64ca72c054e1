//! What is kept and what goes: pins through evictions, kills and upstreams that are gone, and the
//! commands that look after the cache, with a server and without one.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::process::Stdio;
use std::time::Instant;

use portcullis::oci::Digest;
use serde_json::{Value, json};

use crate::support::image::{Image, Manifest, OCI_INDEX, descriptor, random};
use crate::support::programs::Outcome;
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::upstream::Upstream;
use crate::support::{KIB, MIB, PATIENCE, at};

const IMAGE: &str = "registry.example/demo/app:1";

fn cache(proxy: &Proxy, arguments: &[&str]) -> Outcome {
    let arguments = [&["cache"], arguments].concat();
    proxy.run(|setup| setup, &arguments)
}

/// The answer of a command that goes well.
fn answer(proxy: &Proxy, arguments: &[&str]) -> Value {
    let outcome = cache(proxy, &[arguments, &["-o", "json"]].concat()).assert_success();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"))
}

/// An image that a client pulled: manifest by tag, then all blobs.
fn pull(proxy: &Proxy, repository: &str, tag: &str, image: &Image) {
    let manifest = proxy.get(&at(&format!("{repository}/manifests/{tag}")));
    manifest.assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        let digest = Digest::sha256(blob);
        proxy
            .get(&at(&format!("{repository}/blobs/{digest}")))
            .assert_whole(blob);
        proxy.wait_until_stored(&digest);
    }
    proxy.wait_until_stored(&image.manifest.digest());
}

/// Pulls 1 MiB blobs that nobody needs until `count` of them have been.
fn crowd(proxy: &Proxy, upstream: &Upstream, count: usize) {
    for _ in 0..count {
        let bytes = random(MIB);
        let digest = upstream.blob("demo/other", bytes.clone());
        proxy
            .get(&at(&format!("demo/other/blobs/{digest}")))
            .assert_whole(&bytes);
        proxy.wait_until_stored(&digest);
    }
}

fn file_of(proxy: &Proxy, digest: &Digest) -> std::path::PathBuf {
    let hex = digest.hex();
    proxy
        .store()
        .join(format!("v1/blobs/sha256/{}/{hex}", &hex[..2]))
}

/// An index for two platforms, and what it leads to.
fn two_platforms(upstream: &Upstream) -> (Manifest, [Image; 2]) {
    let images = [Image::with_layers(&[MIB]), Image::with_layers(&[MIB])];
    let entry = |image: &Image, architecture: &str| {
        let manifest = &image.manifest;
        let mut entry = descriptor(
            &manifest.media_type,
            &manifest.digest(),
            manifest.bytes.len(),
        );
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let manifests = [entry(&images[0], "amd64"), entry(&images[1], "arm64")];
    let document = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
    let index = Manifest::new(OCI_INDEX, &document);
    for (n, image) in images.iter().enumerate() {
        upstream.image("demo/app", &format!("platform-{n}"), image);
    }
    upstream.manifest("demo/app", "1", &index);
    (index, images)
}

#[test]
fn a_pinned_image_outlives_the_rest_and_the_upstream() {
    for running in [true, false] {
        let mut upstream = Upstream::start();
        let mut proxy = Setup::new(&upstream)
            .section("store", "max_size = \"8MiB\"")
            .section("tags", "fresh_for = \"1h\"")
            .start();
        let image = Image::with_layers(&[2 * MIB, 100 * KIB]);
        upstream.image("demo/app", "1", &image);
        if !running {
            assert!(proxy.terminate().success());
        }
        let pinned = answer(&proxy, &["pin", "registry.example/demo/app:1"]);
        assert_eq!(pinned["image"], IMAGE);
        assert_eq!(pinned["blobs"], 4);
        if !running {
            proxy.start_again();
        }
        crowd(&proxy, &upstream, 12);
        proxy.kill9();
        upstream.stop();
        proxy.start_again();
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&image.manifest.bytes);
        for blob in image.blobs() {
            let path = at(&format!("demo/app/blobs/{}", Digest::sha256(blob)));
            proxy.get(&path).assert_whole(blob);
        }
        let images = answer(&proxy, &["ls"]);
        let listed = images["images"].as_array().unwrap();
        let listed = listed
            .iter()
            .find(|listed| listed["image"] == IMAGE)
            .unwrap();
        assert_eq!(
            (&listed["pinned"], &listed["complete"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(
            answer(&proxy, &["unpin", "registry.example/demo/app:1"])["unpinned"],
            IMAGE
        );
        cache(&proxy, &["unpin", IMAGE]).assert_failure();
    }
}

#[test]
fn only_the_chosen_platforms_are_fetched() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let (index, [amd64, arm64]) = two_platforms(&upstream);
    let none = cache(&proxy, &["pin", IMAGE, "--platform", "linux/s390x"]).assert_failure();
    assert!(
        none.text.contains("linux/amd64, linux/arm64"),
        "{}",
        none.text
    );
    assert_eq!(
        answer(&proxy, &["pin", IMAGE, "--platform", "linux/amd64"])["blobs"],
        4
    );
    let stored = proxy.stored();
    assert!(stored.contains(&index.digest()) && stored.contains(&amd64.manifest.digest()));
    assert!(!stored.contains(&arm64.manifest.digest()));
    let listed = cache(&proxy, &["ls"]).assert_success().stdout;
    assert!(listed.contains("1 of 2 manifests"), "{listed}");
    // All of them, and nothing twice.
    assert_eq!(answer(&proxy, &["pin", IMAGE])["blobs"], 7);
    for blob in amd64.blobs().chain(arm64.blobs()) {
        assert_eq!(upstream.sent(Digest::sha256(blob)), blob.len() as u64);
    }
    let listed = cache(&proxy, &["ls"]).assert_success().stdout;
    assert!(listed.contains(IMAGE) && listed.contains("all"), "{listed}");
}

/// Signatures that the upstream lists are part of the image.
#[test]
fn referrers_are_pinned_too() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[10 * KIB]);
    upstream.image("demo/app", "1", &image);
    let signature = random(KIB);
    let digest = upstream.blob("demo/app", signature.clone());
    let config = upstream.blob("demo/app", "{}");
    let referrer = json!({
        "schemaVersion": 2,
        "mediaType": image.manifest.media_type,
        "config": descriptor("application/vnd.oci.empty.v1+json", &config, 2),
        "layers": [descriptor("application/octet-stream", &digest, signature.len())],
        "subject": descriptor(&image.manifest.media_type, &image.manifest.digest(), image.manifest.bytes.len()),
    });
    let referrer = Manifest::new(&image.manifest.media_type, &referrer);
    upstream.manifest("demo/app", "signature", &referrer);
    let list = Manifest::index_of(&[&referrer]);
    let path = format!("/v2/demo/app/referrers/{}", image.manifest.digest());
    upstream.document(&path, list.bytes.clone(), &list.media_type);
    assert_eq!(answer(&proxy, &["pin", IMAGE])["blobs"], 3 + 3);
    assert!(proxy.stored().contains(&digest) && proxy.stored().contains(&referrer.digest()));
}

#[test]
fn what_cannot_be_pinned_is_refused_with_the_reason() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("store", "max_size = \"4MiB\"")
        .start();
    let image = Image::with_layers(&[3 * MIB, 3 * MIB]);
    upstream.image("demo/app", "1", &image);
    let said = cache(&proxy, &["pin", IMAGE]).assert_failure().text;
    assert!(said.contains("store.max_size is 4194304"), "{said}");
    assert_eq!(
        upstream.sent(Digest::sha256(&image.layers[0])),
        0,
        "fetched in vain"
    );
    let said = cache(&proxy, &["pin", "registry.example/demo/none:1"])
        .assert_failure()
        .text;
    assert!(
        said.contains("registry.example/demo/none:1: no such manifest"),
        "{said}"
    );
    let said = cache(&proxy, &["pin", "k8s.gcr.io/pause:3.9"])
        .assert_failure()
        .text;
    assert!(said.contains("not allowed"), "{said}");
    cache(&proxy, &["pin", "not an image"]).assert_failure();
    cache(&proxy, &["pin", "registry.example/**x"]).assert_failure();
    assert_eq!(
        answer(&proxy, &["ls"])["images"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|image| image["pinned"] == true)
            .count(),
        0
    );
}

/// Killed while it fetches: the command, the server. Nothing is pinned and nothing is wrong; the
/// next try goes on from there.
#[test]
fn kill_9_during_a_pin_leaves_nothing_half() {
    for victim in ["command", "server"] {
        let upstream = Upstream::start();
        let mut proxy = Proxy::start(&upstream);
        let image = Image::with_layers(&[200 * KIB, 4 * MIB]);
        upstream.image("demo/app", "1", &image);
        let large = Digest::sha256(&image.layers[1]);
        let gate = upstream.hold(large, 2 * MIB as u64);
        let config = proxy.directory().join("portcullis.toml");
        let mut pin = command(&config, &["cache", "pin", IMAGE])
            .current_dir(proxy.directory())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        gate.reached();
        if victim == "command" {
            pin.kill().unwrap();
            pin.wait().unwrap();
        } else {
            proxy.kill9();
            assert!(
                !pin.wait().unwrap().success(),
                "it says that nothing came of it"
            );
            proxy.start_again();
        }
        let is_pinned =
            |proxy: &Proxy| fs::read_dir(proxy.store().join("v1/pins")).unwrap().count() > 0;
        assert!(!is_pinned(&proxy));
        upstream.behave();
        answer(&proxy, &["pin", IMAGE]);
        assert!(is_pinned(&proxy));
        let again = upstream.sent(large) - image.layers[1].len() as u64;
        assert!(again <= 3 * MIB as u64, "{again} bytes were fetched again");
        proxy.kill9();
        assert!(is_pinned(&proxy));
        for blob in image.blobs().chain([&image.manifest.bytes]) {
            assert!(proxy.stored().contains(&Digest::sha256(blob)));
        }
    }
}

#[test]
fn a_pattern_keeps_what_it_matches() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("store", "max_size = \"8MiB\"")
        .start();
    let images = [Image::with_layers(&[MIB]), Image::with_layers(&[MIB])];
    pull_both(&upstream, &proxy, &images, 0);
    assert_eq!(
        answer(&proxy, &["pin", "registry.example/demo/app-*"])["blobs"],
        3
    );
    pull_both(&upstream, &proxy, &images, 1);
    crowd(&proxy, &upstream, 12);
    for image in &images {
        for blob in image.blobs() {
            assert!(proxy.stored().contains(&Digest::sha256(blob)), "evicted");
        }
    }
    let layer = Digest::sha256(&images[1].layers[0]).to_string();
    let why = cache(&proxy, &["why", &layer]).assert_success().stdout;
    assert!(
        why.contains("pinned by the pattern registry.example/demo/app-*"),
        "{why}"
    );
    let said = cache(&proxy, &["purge", "registry.example/demo/app-1:1"])
        .assert_failure()
        .text;
    assert!(
        said.contains("cache unpin registry.example/demo/app-*"),
        "{said}"
    );
    answer(&proxy, &["unpin", "registry.example/demo/app-*"]);
    answer(&proxy, &["purge", "registry.example/demo/app-1:1"]);
}

fn pull_both(upstream: &Upstream, proxy: &Proxy, images: &[Image], n: usize) {
    let repository = format!("demo/app-{n}");
    upstream.image(&repository, "1", &images[n]);
    pull(proxy, &repository, "1", &images[n]);
}

#[test]
fn why_tells() {
    let upstream = Upstream::start();
    let mut proxy = Setup::new(&upstream)
        .section("store", "max_size = \"8MiB\"")
        .start();
    let image = Image::with_layers(&[MIB]);
    upstream.image("demo/app", "1", &image);
    pull(&proxy, "demo/app", "1", &image);
    let layer = Digest::sha256(&image.layers[0]).to_string();
    let why = answer(&proxy, &["why", &layer]);
    assert_eq!(
        (&why["verdict"], &why["in_use"]),
        (&json!("kept"), &json!(true)),
        "read just now"
    );
    assert_eq!(why["images"][0]["image"], IMAGE);
    assert!(proxy.terminate().success());

    // Without a server, and without its readers.
    let why = cache(&proxy, &["why", &layer]).assert_success().stdout;
    assert!(
        why.contains("is here until room is needed") && why.contains("to go"),
        "{why}"
    );
    proxy.start_again();
    crowd(&proxy, &upstream, 12);
    let gone = cache(&proxy, &["why", &layer]).assert_success().stdout;
    assert!(
        gone.contains("evicted:") && gone.contains("store.max_size is 8.0 MiB"),
        "{gone}"
    );
    let manifest = answer(&proxy, &["why", &image.manifest.digest().to_string()]);
    assert_eq!(
        manifest["verdict"], "gone",
        "no manifest without its layers"
    );
    let never = answer(&proxy, &["why", &Digest::sha256(b"never").to_string()]);
    assert_eq!(never["verdict"], "unknown");
    cache(&proxy, &["why", "sha256:12"]).assert_failure();
}

#[test]
fn verify_finds_a_flipped_bit() {
    for running in [true, false] {
        let upstream = Upstream::start();
        let mut proxy = Proxy::start(&upstream);
        let image = Image::with_layers(&[2 * MIB]);
        upstream.image("demo/app", "1", &image);
        pull(&proxy, "demo/app", "1", &image);
        let clean = answer(&proxy, &["verify"]);
        assert_eq!(
            (&clean["blobs"][0], &clean["wrong"]),
            (&json!(3), &json!([]))
        );
        if !running {
            assert!(proxy.terminate().success());
        }
        let layer = Digest::sha256(&image.layers[0]);
        let file = fs::OpenOptions::new()
            .write(true)
            .open(file_of(&proxy, &layer))
            .unwrap();
        file.write_all_at(&[image.layers[0][MIB] ^ 1], MIB as u64)
            .unwrap();
        drop(file);
        let found = cache(&proxy, &["verify", "--rate", "1GB"]);
        assert_eq!(found.status.code(), Some(2), "{found:?}");
        assert!(found.stdout.contains(&layer.to_string()), "{found:?}");
        assert_eq!(
            fs::read_dir(proxy.store().join("v1/quarantine"))
                .unwrap()
                .count(),
            1
        );
        assert!(cache(&proxy, &["verify"]).status.success());
        let why = cache(&proxy, &["why", &layer.to_string()]).stdout;
        assert!(why.contains("it did not hash"), "{why}");
        if !running {
            proxy.start_again();
        }
        let path = at(&format!("demo/app/blobs/{layer}"));
        proxy.get(&path).assert_whole(&image.layers[0]);
        proxy.wait_until_stored(&layer);
    }
}

#[test]
fn purge_takes_what_no_other_image_needs() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[MIB, 10 * KIB]);
    upstream.image("demo/app", "1", &image);
    pull(&proxy, "demo/app", "1", &image);
    let shared = Digest::sha256(&image.layers[1]);
    let other = Manifest::referring_to(&[(shared, image.layers[1].len())]);
    upstream.manifest("demo/app", "2", &other);
    proxy
        .get(&at("demo/app/manifests/2"))
        .assert_whole(&other.bytes);
    proxy.wait_until_stored(&other.digest());

    let said = cache(&proxy, &["purge", &shared.to_string()])
        .assert_failure()
        .text;
    assert!(said.contains("registry.example/demo/app:"), "{said}");
    let asked = upstream.hits("manifests/1");
    let purged = answer(&proxy, &["purge", IMAGE]);
    assert_eq!(
        (&purged["images"], &purged["blobs"]),
        (&json!([IMAGE]), &json!(3))
    );
    let mut left = proxy.stored();
    left.sort();
    let mut expected = vec![shared, other.digest()];
    expected.sort();
    assert_eq!(left, expected);
    let said = cache(&proxy, &["purge", IMAGE]).assert_failure().text;
    assert!(said.contains("nothing is known of"), "{said}");
    // It comes again, from the upstream.
    pull(&proxy, "demo/app", "1", &image);
    assert!(upstream.hits("manifests/1") > asked);

    answer(&proxy, &["pin", IMAGE]);
    let layer = Digest::sha256(&image.layers[0]);
    let said = cache(&proxy, &["purge", IMAGE]).assert_failure().text;
    assert!(said.contains(&format!("cache unpin {IMAGE}")), "{said}");
    answer(&proxy, &["unpin", IMAGE]);
    answer(&proxy, &["purge", &image.manifest.digest().to_string()]);
    assert!(!proxy.stored().contains(&layer));
    let why = answer(&proxy, &["why", &layer.to_string()]);
    assert_eq!(why["gone"][0]["reason"]["kind"], "purged");
}

#[test]
fn history_shows_where_a_tag_has_been() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("tags", "fresh_for = \"0s\"")
        .start();
    let manifests = [Manifest::unique(), Manifest::unique()];
    for manifest in &manifests {
        upstream.manifest("demo/app", "1", manifest);
        proxy
            .get(&at("demo/app/manifests/1"))
            .assert_whole(&manifest.bytes);
    }
    let history = answer(&proxy, &["history", IMAGE]);
    let digests: Vec<_> = history["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["digest"].clone())
        .collect();
    assert_eq!(
        digests,
        [json!(manifests[1].digest()), json!(manifests[0].digest())]
    );
    let table = cache(&proxy, &["history", IMAGE]).assert_success().stdout;
    assert!(
        table.contains("FIRST SEEN") && table.lines().count() == 3,
        "{table}"
    );
    cache(&proxy, &["history", "registry.example/demo/app:2"]).assert_failure();
}

#[test]
fn the_socket_is_the_owners_and_a_stale_one_is_replaced() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let socket = proxy.store().join("control.sock");
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    proxy.kill9();
    assert!(socket.exists());
    // Nobody listens: the command takes the store itself.
    let blobs = answer(&proxy, &["ls", "--blobs"]);
    assert_eq!(blobs, json!({ "blobs": [] }));
    proxy.start_again();
    answer(&proxy, &["ls"]);
    // Nothing but its own API, and requests are bounded.
    let socket = socket.to_str().unwrap();
    for (path, body, status) in [
        ("/metrics", "", "404"),
        ("/api/v1/why?name=../../etc/passwd", "", "400"),
        (
            "/api/v1/purge",
            &*format!("{{\"name\":\"{}\"}}", "x".repeat(100_000)),
            "413",
        ),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let method = if body.is_empty() { "GET" } else { "POST" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = std::io::Write::write_all(&mut stream, request.as_bytes());
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(&mut stream, &mut said);
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{path}: {said}"
        );
    }
}

#[test]
fn a_command_makes_no_store_where_there_is_none() {
    let directory = tempfile::TempDir::new().unwrap();
    let config = directory.path().join("portcullis.toml");
    fs::write(&config, "[store]\npath = \"nowhere\"").unwrap();
    let mut command = command(&config, &["cache", "ls"]);
    let said =
        crate::support::programs::run(command.current_dir(directory.path())).assert_failure();
    assert!(
        said.text.contains("there is no cache at nowhere"),
        "{}",
        said.text
    );
    assert!(!directory.path().join("nowhere").exists());
}

/// From the start of the process to the first answer.
#[test]
fn a_hundred_thousand_blobs_are_no_reason_to_wait() {
    const BLOBS: u64 = 100_000;
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[KIB]);
    upstream.image("demo/app", "1", &image);
    pull(&proxy, "demo/app", "1", &image);
    assert!(proxy.terminate().success());
    let root = proxy.store().join("v1/blobs/sha256");
    for number in 0..BLOBS {
        let bytes = number.to_le_bytes();
        let hex = Digest::sha256(&bytes).hex();
        let shard = root.join(&hex[..2]);
        if number < 4096 {
            fs::create_dir_all(&shard).unwrap();
        }
        fs::write(shard.join(hex), bytes).unwrap();
    }
    for round in ["after a copy", "after a clean end", "after a kill"] {
        let start = Instant::now();
        proxy.start_again();
        proxy.client().get("/healthz").assert(200);
        let path = at(&format!("demo/app/manifests/{}", image.manifest.digest()));
        proxy.get(&path).assert_whole(&image.manifest.bytes);
        let took = start.elapsed();
        let memory = fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
        let memory = memory
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap()
            .to_owned();
        eprintln!("{round}: {took:?} to the first answer, {memory}");
        // A debug build on a machine that others use; the figures are in docs/architecture.md.
        assert!(took < PATIENCE / 2, "{round}: {took:?}");
        match round {
            "after a clean end" => proxy.kill9(),
            _ => assert!(proxy.terminate().success()),
        }
    }
}

#[test]
fn status_shows_what_is_being_downloaded_and_goes_on_while_it_is_watched() {
    let upstream = Upstream::start();
    let mut proxy = Proxy::start(&upstream);
    let digest = upstream.blob("demo/app", random(4 * MIB));
    let gate = upstream.hold(digest, 2 * MIB as u64);
    let mut client = proxy.open(&at(&format!("demo/app/blobs/{digest}")));
    client.take(MIB);
    gate.reached();
    let said = proxy.run(|setup| setup, &["status", "-o", "json"]);
    let said: Value = serde_json::from_str(&said.assert_success().stdout).unwrap();
    let [download] = &said["downloads"].as_array().unwrap()[..] else {
        panic!("one download: {said}")
    };
    assert_eq!(download["digest"], digest.to_string());
    assert_eq!(download["size"], 4 * MIB);
    assert_eq!(download["readers"], 1);
    assert_eq!(download["source"], "registry.example/demo/app");
    let held = download["bytes"].as_u64().unwrap();
    assert!((MIB as u64..4 * MIB as u64).contains(&held), "{held}");
    let text = proxy
        .run(|setup| setup, &["status"])
        .assert_success()
        .stdout;
    assert!(text.contains("registry.example/demo/app"), "{text}");

    // A line a look, until the server ends.
    let config = proxy.directory().join("portcullis.toml");
    let mut watch = command(&config, &["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut downloads = || -> Value {
        let line = lines.next().unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["downloads"].take()
    };
    assert_eq!(downloads()[0]["digest"], digest.to_string());
    gate.open();
    client.finish();
    while downloads() != json!([]) {}
    assert!(proxy.terminate().success());
    let end = watch.wait_with_output().unwrap();
    let said = String::from_utf8(end.stderr).unwrap();
    assert!(
        !end.status.success() && said.contains("no server runs"),
        "{said}"
    );
}
