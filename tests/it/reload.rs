//! Another policy without a restart, by signal and by file; a bad file changes nothing.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::process::Signal;

use crate::support::image::{Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{MIB, at, eventually};

const TAG: &str = "demo/app/manifests/1";
const CLOSED: &str = r#"
[[policy.rules]]
id = "closed"
images = ["registry.example/**"]
effect = "deny"
"#;
const OPEN: &str = r#"
[[policy.rules]]
id = "open"
images = ["registry.example/**"]
effect = "allow"
"#;

fn scene() -> (Upstream, Proxy, Manifest) {
    let upstream = Upstream::start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    let proxy = Setup::new(&upstream).rules(OPEN).start();
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    (upstream, proxy, manifest)
}

#[test]
fn a_signal_reloads_the_policy() {
    let (_upstream, mut proxy, _) = scene();
    proxy.configure(|setup| setup.rules(CLOSED));
    proxy.signal(Signal::HUP);
    eventually("a refusal", || proxy.get(&at(TAG)).status == 403);
    proxy.logs().wait_for("asked to reload the policy");
    assert!(proxy.terminate().success(), "a signal ended it");
}

/// As Kubernetes renews a `ConfigMap`: the file is a link through a directory that is swapped.
#[test]
fn a_new_file_is_found_through_links() {
    let (_upstream, mut proxy, manifest) = scene();
    let directory = proxy.directory().to_owned();
    let file = directory.join("portcullis.toml");
    let mount = |version: &str| {
        let data = directory.join(version);
        fs::create_dir(&data).unwrap();
        fs::rename(&file, data.join("portcullis.toml")).unwrap();
        symlink(&data, directory.join("data.new")).unwrap();
        fs::rename(directory.join("data.new"), directory.join("data")).unwrap();
        symlink(
            directory.join("data/portcullis.toml"),
            directory.join("file.new"),
        )
        .unwrap();
        fs::rename(directory.join("file.new"), &file).unwrap();
    };
    proxy.configure(|setup| setup.rules(CLOSED));
    mount("version-1");
    eventually("a refusal", || proxy.get(&at(TAG)).status == 403);
    // The link itself stays what it is.
    let open = fs::read_to_string(&file)
        .unwrap()
        .replace("\"deny\"", "\"allow\"");
    let data = directory.join("version-2");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("portcullis.toml"), open).unwrap();
    symlink(&data, directory.join("data.new")).unwrap();
    fs::rename(directory.join("data.new"), directory.join("data")).unwrap();
    eventually("an answer", || proxy.get(&at(TAG)).status == 200);
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
}

#[test]
fn a_bad_file_changes_nothing_and_is_loud() {
    let (_upstream, mut proxy, manifest) = scene();
    assert!(proxy.metric("portcullis_policy_loaded_at_seconds") > 1_700_000_000);
    assert_eq!(proxy.metric("portcullis_policy_reload_failed"), 0);
    let bad = CLOSED.replace("\"deny\"", "\"block\"");
    proxy.configure(|setup| setup.rules(&bad));
    let said = proxy
        .logs()
        .wait_for("the configuration file is unusable, the old policy holds");
    assert_eq!(said["level"], "ERROR");
    assert_eq!(said["key"], "policy.rules.0.effect");
    assert!(said["line"].is_u64() && said["column"].is_u64(), "{said}");
    assert!(
        said["error"]
            .as_str()
            .unwrap()
            .contains("\"block\" is no effect"),
        "{said}"
    );
    assert_eq!(proxy.metric("portcullis_policy_reload_failed"), 1);
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    // Nor does one that is fine but for another section, or none at all.
    proxy.configure(|setup| setup.rules(CLOSED).section("fill", "connections = 0"));
    proxy.logs().wait_for_text("must be 1 to 64");
    let file = proxy.directory().join("portcullis.toml");
    fs::remove_file(&file).unwrap();
    proxy.signal(Signal::HUP);
    proxy.logs().wait_for_text("portcullis.toml: No such file");
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);

    proxy.configure(|setup| setup.rules(CLOSED).section("fill", "window = \"1MiB\""));
    // That section is broken still: two lines of the same section.
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace("connections = 0", "connections = 7");
    fs::write(&file, text).unwrap();
    eventually("a refusal", || proxy.get(&at(TAG)).status == 403);
    assert_eq!(proxy.metric("portcullis_policy_reload_failed"), 0);
    // Only the policy is taken; what else has changed is named.
    let restart = proxy.logs().wait_for("changed too, but needs a restart");
    assert_eq!(restart["keys"], "fill");
}

#[test]
fn what_is_under_way_is_finished() {
    let (upstream, mut proxy, _) = scene();
    let bytes = random(4 * MIB);
    let digest = upstream.blob("demo/app", bytes.clone());
    let gate = upstream.hold(format!("blobs/{digest}"), MIB as u64);
    let path = at(&format!("demo/app/blobs/{digest}"));
    let mut answer = proxy.open(&path);
    assert_eq!(answer.status, 200);
    let mut body = answer.take(MIB / 2);
    proxy.configure(|setup| setup.rules(CLOSED));
    proxy.signal(Signal::HUP);
    eventually("a refusal", || proxy.get(&at(TAG)).status == 403);
    gate.open();
    body.extend(answer.finish().body);
    assert!(body == bytes, "the body was cut");
}
