//! The record of pulls: what is on it, that it lasts, and what a policy that is not live yet would do
//! to it.

use std::net::Ipv4Addr;
use std::path::Path;

use portcullis::oci::Digest;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::image::{Image, Manifest};
use crate::support::programs::{Outcome, run};
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::upstream::Upstream;
use crate::support::{KIB, at, eventually};

const RULES: &str = r#"
[[policy.rules]]
id = "frozen"
images = ["k8s.gcr.io/**"]
effect = "deny"
[[policy.rules]]
id = "moved"
images = ["registry.example/old/**"]
effect = "rewrite"
instead = "registry.example/demo/**"
[[policy.rules]]
id = "look"
images = ["registry.example/demo/watched"]
effect = "audit"
[[policy.rules]]
id = "examples"
images = ["registry.example/**", "nowhere.example/**"]
effect = "allow"
"#;

const NEW: &str = r#"
[[policy.rules]]
id = "team"
images = ["registry.example/demo/**"]
clients = ["127.0.0.2"]
effect = "allow"
[[policy.rules]]
id = "thawed"
images = ["k8s.gcr.io/**"]
effect = "allow"
"#;

/// An image for two platforms, and one that a node of either pulls.
struct Scene {
    _upstream: Upstream,
    proxy: Proxy,
    index: Manifest,
    image: Image,
}

impl Scene {
    fn start() -> Self {
        let upstream = Upstream::start();
        let image = Image::with_layers(&[10 * KIB]);
        let other = Image::with_layers(&[10 * KIB]);
        let index = Manifest::index_of(&[&image.manifest, &other.manifest]);
        for name in ["app", "watched"] {
            let repository = format!("demo/{name}");
            upstream.image(&repository, "amd64", &image);
            upstream.image(&repository, "arm64", &other);
            upstream.manifest(&repository, "1", &index);
        }
        Scene {
            proxy: Setup::new(&upstream).rules(RULES).start(),
            _upstream: upstream,
            index,
            image,
        }
    }

    fn node(&self, number: u8) -> Client {
        self.proxy.client().from(Ipv4Addr::new(127, 0, 0, number))
    }

    /// As containerd does it.
    fn pull(&self, node: u8, repository: &str, reference: &str) {
        let node = self.node(node);
        let path = |kind: &str, what: &str| at(&format!("{repository}/{kind}/{what}"));
        node.head(&path("manifests", reference)).assert(200);
        for manifest in [&self.index, &self.image.manifest] {
            let digest = manifest.digest().to_string();
            node.get(&path("manifests", &digest))
                .assert_whole(&manifest.bytes);
        }
        let blobs = self.image.layers.iter().chain([&self.image.config]);
        for blob in blobs {
            let digest = Digest::sha256(blob).to_string();
            node.get(&path("blobs", &digest)).assert_whole(blob);
        }
    }

    /// `audit --pulls` with these rules.
    fn audit(&self, rules: &str, arguments: &[&str]) -> Outcome {
        let arguments = [&["audit", "--pulls"], arguments].concat();
        self.proxy.run(|setup| setup.rules(rules), &arguments)
    }

    fn audit_json(&self, rules: &str) -> Value {
        parse(&self.audit(rules, &["-o", "json"]))
    }

    /// Each target, with what each client was told and how often it asked.
    fn recorded(&self) -> Vec<String> {
        let found = self.audit_json("[policy]\ndefault = \"deny\"\n");
        let mut recorded = Vec::new();
        for list in ["violations", "refused"] {
            for finding in found[list].as_array().unwrap() {
                for place in finding["places"].as_array().unwrap() {
                    let from = place["was_from"].as_str();
                    recorded.push(format!(
                        "{} {} {} {} {}{}",
                        finding["image"].as_str().unwrap(),
                        place["client"].as_str().unwrap(),
                        place["was"].as_str().unwrap(),
                        place["was_by"].as_str().unwrap_or("-"),
                        place["pulls"],
                        from.map(|from| format!(" from {from}")).unwrap_or_default(),
                    ));
                }
            }
        }
        recorded.sort();
        recorded
    }
}

fn parse(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", outcome.text))
}

fn images(findings: &Value) -> Vec<&str> {
    let findings = findings.as_array().unwrap().iter();
    findings
        .map(|finding| finding["image"].as_str().unwrap())
        .collect()
}

#[test]
fn one_pull_is_one_target() {
    let scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    scene.pull(3, "demo/app", "1");
    scene.pull(2, "old/app", "1");
    scene.pull(2, "demo/watched", "1");
    // Somebody pins what others pull by tag.
    let pinned = scene.index.digest().to_string();
    scene.pull(4, "demo/app", &pinned);
    // Refused, not served, and not there: the last is no pull.
    let node = scene.node(2);
    for _ in 0..2 {
        node.head("/v2/k8s.gcr.io/pause/manifests/3.9").assert(403);
        node.get("/v2/nowhere.example/app/manifests/1").assert(403);
    }
    node.get(&at("demo/none/manifests/1")).assert(404);
    node.get(&at("demo/app/tags/list"));
    // An operator is no client.
    let image = "registry.example/demo/app:amd64";
    scene
        .proxy
        .run(|setup| setup, &["cache", "pin", image])
        .assert_success();

    let pinned = format!("registry.example/demo/app@{pinned} 127.0.0.4 allowed examples 1");
    let mut expected = [
        "k8s.gcr.io/pause:3.9 127.0.0.2 refused frozen 1",
        "nowhere.example/app:1 127.0.0.2 not-served - 1",
        "registry.example/demo/app:1 127.0.0.2 allowed examples 1",
        "registry.example/demo/app:1 127.0.0.3 allowed examples 1",
        "registry.example/demo/watched:1 127.0.0.2 audited look 1",
        "registry.example/old/app:1 127.0.0.2 allowed examples 1 from registry.example/demo/app:1",
        &pinned,
    ];
    expected.sort_unstable();
    assert_eq!(scene.recorded(), expected);
    assert_eq!(scene.proxy.metric("portcullis_pulls"), 6);
}

#[test]
fn the_record_survives_a_restart_and_a_kill() {
    let mut scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    let recorded = scene.recorded();
    assert_eq!(recorded.len(), 1);
    assert!(scene.proxy.terminate().success());
    // Without a server the store itself is asked, and left as it was.
    assert_eq!(scene.recorded(), recorded);
    scene.proxy.start_again();
    assert_eq!(scene.recorded(), recorded);

    scene.pull(3, "demo/watched", "1");
    let file = scene.proxy.store().join("v1/pulls");
    let written = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("the record on disk", || written().contains("demo/watched"));
    scene.proxy.kill9();
    assert_eq!(scene.recorded().len(), 2);
    scene.proxy.start_again();
    assert_eq!(scene.recorded().len(), 2);
    let _ = scene.audit(RULES, &[]).assert_success();
}

#[test]
fn a_rehearsal_says_what_would_break_and_for_whom() {
    let scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    scene.pull(3, "demo/app", "1");
    scene.pull(3, "demo/watched", "1");
    let node = scene.node(2);
    node.get("/v2/k8s.gcr.io/pause/manifests/3.9").assert(403);
    // What is live breaks nothing, and lists what is audited.
    let outcome = scene.audit(RULES, &["-o", "json"]).assert_success();
    let live = parse(&outcome);
    assert_eq!(
        images(&live["warnings"]),
        ["registry.example/demo/watched:1"]
    );
    assert_eq!(images(&live["refused"]), ["k8s.gcr.io/pause:3.9"]);
    assert_eq!(live["violations"], json!([]));

    let outcome = scene.audit(NEW, &["-o", "json"]);
    assert_eq!(outcome.status.code(), Some(2), "{}", outcome.text);
    let found = parse(&outcome);
    let broken = [
        "registry.example/demo/app:1",
        "registry.example/demo/watched:1",
    ];
    assert_eq!(images(&found["violations"]), broken);
    for finding in found["violations"].as_array().unwrap() {
        let places = finding["places"].as_array().unwrap();
        assert_eq!(places.len(), 1, "{finding}");
        assert_eq!(places[0]["client"], "127.0.0.3");
        assert_eq!(places[0]["pulls"], 1);
        assert!(places[0]["last"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(images(&found["freed"]), ["k8s.gcr.io/pause:3.9"]);

    let text = scene.audit(NEW, &[]).text;
    for part in [
        "violation  registry.example/demo/app:1\n",
        "  reason   no rule allows it\n",
        "  by       127.0.0.3  1 pull, last ",
        ", allowed then by rule examples\n",
        "3 images pulled by 2 clients: 2 violations, 0 warnings, 1 unserved, \
         0 refused as before, 1 refused no more\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let sarif = parse(&scene.audit(NEW, &["-o", "sarif"]));
    let result = &sarif["runs"][0]["results"][1];
    let location = &result["locations"][0];
    assert_eq!(
        location["logicalLocations"][0]["fullyQualifiedName"],
        "client 127.0.0.3"
    );
    let report = parse(&scene.audit(NEW, &["-o", "policyreport"]));
    assert_eq!(report["items"][0]["kind"], "ClusterPolicyReport");
    assert_eq!(report["items"][0]["summary"]["fail"], 2);
    let results = report["items"][0]["results"].as_array().unwrap();
    assert!(
        results
            .iter()
            .any(|result| result["properties"]["client"] == "127.0.0.3")
    );
}

/// By digest nodes would be refused where only tags are allowed, were it not for the tag's record.
#[test]
fn a_pinned_digest_may_be_one_that_an_allowed_tag_answers() {
    let scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    scene.pull(3, "demo/app", &scene.index.digest().to_string());
    let only = |tag: &str| {
        format!(
            "[[policy.rules]]\nid = \"tags\"\nimages = [\"registry.example/demo/app:{tag}\"]\neffect = \"allow\"\n"
        )
    };
    scene.audit(&only("1"), &[]).assert_success();
    let found = scene.audit_json(&only("2"));
    assert_eq!(images(&found["violations"]).len(), 2);
}

#[test]
fn an_allow_list_is_proposed_that_lets_all_of_it_pass() {
    let mut scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    scene.pull(2, "old/app", "1");
    scene.pull(3, "demo/watched", &scene.index.digest().to_string());
    let node = scene.node(2);
    node.get("/v2/k8s.gcr.io/pause/manifests/3.9").assert(403);
    let suggest = |proxy: &Proxy, arguments: &[&str]| {
        let arguments = [&["policy", "suggest"], arguments].concat();
        proxy.run(|setup| setup, &arguments).assert_success()
    };
    let suggested = suggest(&scene.proxy, &[]).stdout;
    let json = parse(&suggest(&scene.proxy, &["-o", "json"]));
    let section: Value = toml::from_str(&suggested).unwrap();
    assert_eq!(json["policy"], section["policy"]);
    let rules: Vec<_> = section["policy"]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| format!("{} {}", rule["id"], rule["images"]).replace('"', ""))
        .collect();
    assert_eq!(
        rules,
        [
            "frozen [k8s.gcr.io/**]",
            "moved [registry.example/old/**]",
            "look [registry.example/demo/watched]",
            "examples [registry.example/demo/app]",
        ],
        "{suggested}"
    );
    let examples = &json["images"][1];
    assert_eq!(
        (&examples["pulls"], &examples["clients"], &examples["wider"]),
        (&json!(2), &json!(1), &json!(false))
    );
    assert!(
        suggested.contains("# 2 pulls by 1 client, last 20"),
        "{suggested}"
    );

    // It is a whole configuration, and the record is that of another one's store.
    let file = scene.proxy.directory().join("suggested.toml");
    std::fs::write(&file, &suggested).unwrap();
    run(&mut command(&file, &["check"])).assert_success();
    let store = scene.proxy.store();
    let rehearse = |store: &Path| {
        let arguments = ["audit", "--pulls", "--store", store.to_str().unwrap()];
        run(&mut command(&file, &arguments))
    };
    rehearse(&store).assert_success();
    // What it lets pass is pulled, and nothing else.
    assert!(scene.proxy.terminate().success());
    rehearse(&store).assert_success();
    scene
        .proxy
        .start_again_with(|setup| setup.rules(&suggested));
    scene.pull(5, "demo/app", "1");
    scene.pull(5, "old/app", "1");
    scene.pull(5, "demo/watched", "1");
    let other = scene.node(5).get(&at("demo/other/manifests/1"));
    other.assert_error(403, "DENIED");
}

#[test]
fn what_is_no_store_is_said() {
    let scene = Scene::start();
    let nowhere = scene.proxy.directory().join("nowhere");
    let outcome = scene.audit(RULES, &["--store", nowhere.to_str().unwrap()]);
    assert_eq!(outcome.status.code(), Some(1));
    assert!(outcome.text.contains("no cache at"), "{}", outcome.text);
    for wrong in [&["x.yaml"][..], &["--store"]] {
        assert_eq!(scene.audit(RULES, wrong).status.code(), Some(1));
    }
}

/// Many at once, on the way that has to be fast.
#[test]
fn many_clients_at_once_are_all_counted() {
    const NODES: u8 = 12;
    let scene = Scene::start();
    scene.pull(2, "demo/app", "1");
    std::thread::scope(|threads| {
        for node in 100..100 + NODES {
            let scene = &scene;
            threads.spawn(move || scene.pull(node, "demo/app", "1"));
        }
    });
    assert_eq!(scene.recorded().len(), usize::from(NODES) + 1);
}
