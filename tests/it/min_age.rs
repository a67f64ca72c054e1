//! `min_age`: a tag answers what it has been seen with for a while, and says from when on it will.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde_json::Value;

use crate::support::image::{Image, Manifest};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{KIB, at};

const TAG: &str = "demo/app/manifests/1";
const THREE_DAYS: Duration = Duration::from_hours(72);

fn scene() -> (Upstream, Proxy, Manifest) {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream)
        .section("tags", "fresh_for = \"0s\"")
        .rules(
            r#"
            [[policy.rules]]
            id = "settled"
            images = ["registry.example/**"]
            effect = "allow"
            min_age = "3d"
            contact = "platform@corp.example"
            "#,
        )
        .start();
    let manifest = Manifest::unique();
    upstream.manifest("demo/app", "1", &manifest);
    (upstream, proxy, manifest)
}

/// Stops the program, lets all that it has seen of the tag be four days older, and starts it.
fn four_days_pass(proxy: &mut Proxy) {
    assert!(proxy.terminate().success());
    let path = proxy
        .store()
        .join("v1/repos/registry.example/demo/app/_tags/1.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for entry in record["variants"]["any"].as_array_mut().unwrap() {
        let seen = entry["first_seen"].as_i64().unwrap();
        entry["first_seen"] = (seen - 4 * 24 * 60 * 60).into();
    }
    std::fs::write(&path, record.to_string()).unwrap();
    proxy.start_again();
}

#[test]
fn a_tag_that_was_never_seen_is_refused_with_a_date() {
    let (upstream, mut proxy, manifest) = scene();
    let before = SystemTime::now();
    let answer = proxy.get(&at(TAG)).assert_error(403, "DENIED");
    assert_eq!(proxy.head(&at(TAG)).assert(403).reason, answer.reason);
    let detail = &answer.json()["errors"][0]["detail"];
    let from = detail["served_from"].as_str().unwrap();
    assert!(
        answer.reason.contains(from) && answer.reason.contains("not served yet"),
        "{}",
        answer.reason
    );
    assert!(
        answer.reason.ends_with("contact platform@corp.example"),
        "{}",
        answer.reason
    );
    assert_eq!(detail["rule"], "settled");
    let from = SystemTime::from(from.parse::<Timestamp>().unwrap());
    let second = Duration::from_secs(1);
    assert!(
        from >= before + THREE_DAYS - second && from <= SystemTime::now() + THREE_DAYS + second
    );

    // A digest is what it is, however new.
    let by_digest = at(&format!("demo/app/manifests/{}", manifest.digest()));
    proxy.get(&by_digest).assert_whole(&manifest.bytes);
    proxy.get(&at(TAG)).assert_error(403, "DENIED");

    four_days_pass(&mut proxy);
    proxy.get(&at(TAG)).assert_whole(&manifest.bytes);
    assert_eq!(
        proxy
            .head(&at(TAG))
            .assert(200)
            .header("docker-content-digest"),
        Some(&*manifest.digest().to_string())
    );
    drop(upstream);
}

#[test]
fn a_tag_that_moved_answers_the_old_digest_until_the_new_one_is_old_enough() {
    let (mut upstream, mut proxy, old) = scene();
    proxy.get(&at(TAG)).assert_error(403, "DENIED");
    four_days_pass(&mut proxy);
    let new = Manifest::unique();
    upstream.manifest("demo/app", "1", &new);
    for _ in 0..3 {
        proxy.get(&at(TAG)).assert_whole(&old.bytes);
    }
    let moved = proxy.logs().wait_for("tag moved");
    assert_eq!(moved["from"], old.digest().to_string());
    assert_eq!(moved["to"], new.digest().to_string());
    assert_eq!(proxy.metric("portcullis_tag_moves_total"), 1);
    // The new one's time has begun, though nobody got it.
    four_days_pass(&mut proxy);
    proxy.get(&at(TAG)).assert_whole(&new.bytes);
    // And the upstream being down changes nothing about that.
    upstream.stop();
    proxy.get(&at(TAG)).assert_whole(&new.bytes);
}

#[test]
fn what_an_operator_warms_is_old_enough_for_everybody() {
    let (upstream, mut proxy, _) = scene();
    let image = Image::with_layers(&[KIB]);
    upstream.image("demo/app", "1", &image);
    proxy.get(&at(TAG)).assert_error(403, "DENIED");
    let pin = ["cache", "pin", "registry.example/demo/app:1"];
    proxy.run(|setup| setup, &pin).assert_failure();
    let warm = ["warm", "registry.example/demo/app:1"];
    proxy.run(|setup| setup, &warm).assert_success();
    proxy.get(&at(TAG)).assert_whole(&image.manifest.bytes);
    // What comes after it has to wait, and the word outlives a restart.
    upstream.manifest("demo/app", "1", &Manifest::unique());
    proxy.get(&at(TAG)).assert_whole(&image.manifest.bytes);
    assert!(proxy.terminate().success());
    proxy.start_again();
    proxy.get(&at(TAG)).assert_whole(&image.manifest.bytes);
}
