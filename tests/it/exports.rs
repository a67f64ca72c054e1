//! `portcullis policy export`: what is written decides as the proxy does, in real engines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis::cluster::export::{self, Action, Format, Options};
use portcullis::cluster::judge::{Judge, Outcome};
use portcullis::cluster::mention::{Mention, Written};
use portcullis::cluster::{node, workload};
use portcullis::oci::OwnNames;
use portcullis::policy::Engine;
use portcullis::upstream::Served;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cases::{pod, vectors};
use crate::support::engines::{CUSTOM_GROUPS, Cluster, Review, Verdict, documents, text, texts};
use crate::support::programs::{Outcome as Ran, run};
use crate::support::proxy::command;

const FORMATS: [&str; 4] = ["vap", "gatekeeper", "azure-policy", "kyverno"];

/// A configuration, and everybody's opinion of what it says.
struct Scene {
    directory: TempDir,
    policy: Engine,
    names: OwnNames,
}

impl Scene {
    fn new(config: &str) -> Self {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("portcullis.toml"), config).unwrap();
        let config: portcullis::config::Config = toml::from_str(config).unwrap();
        Scene {
            directory,
            policy: Engine::compile(&config.policy).unwrap(),
            names: config.server.own_names(),
        }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let config = self.directory.path().join("portcullis.toml");
        run(&mut command(
            &config,
            &[&["policy", "export"], arguments].concat(),
        ))
    }

    fn export(&self, format: &str, arguments: &[&str]) -> String {
        let arguments = [&["-o", format], arguments].concat();
        self.run(&arguments).assert_success().stdout
    }

    fn cluster(&self, format: &str, arguments: &[&str]) -> Cluster {
        cluster(format, &self.export(format, arguments))
    }

    /// What admission says about an object, in the words of the exports.
    fn expected(&self, object: &Value) -> Verdict {
        let (nodes, error) = node::from_json(&object.to_string());
        assert_eq!(error, None);
        let mut verdict = Verdict::default();
        for Mention { written, .. } in nodes.iter().flat_map(workload::mentions) {
            let served = Served::by_name(std::iter::empty());
            let judge = Judge {
                policy: &self.policy,
                names: &self.names,
                served: &served,
            };
            let judgement = judge.judge(&written);
            let message = judgement.message.clone().unwrap_or_default();
            match (judgement.outcome, written) {
                (Outcome::Allowed, _) => {}
                (Outcome::Refused, _) => unreachable!("nothing was pulled before"),
                (Outcome::Warning, _) => verdict.warned.push(message),
                (Outcome::Violation, _) => verdict.denied.push(message),
                (Outcome::Unreadable, Written::Image(_)) => {
                    // What exactly is wrong with it is not said.
                    let (image, _) = message.split_once(" is not allowed: ").unwrap();
                    verdict
                        .denied
                        .push(format!("{image} is not allowed: it is no image"));
                }
                (Outcome::Unreadable, _) => {
                    let line = "(no text) is not allowed: it is no image";
                    verdict.denied.push(line.to_owned());
                }
            }
        }
        verdict
    }
}

fn cluster(format: &str, text: &str) -> Cluster {
    match format {
        "vap" => Cluster::vap(&documents(text)),
        "gatekeeper" => Cluster::gatekeeper(&documents(text)),
        "azure-policy" => Cluster::azure(&serde_json::from_str(text).unwrap()),
        "kyverno" => Cluster::kyverno(&documents(text)),
        other => panic!("{other}"),
    }
}

/// What an API server is sent when somebody applies `object`: never a list.
fn reviewed(object: &Value) -> Vec<Value> {
    match object["items"].as_array() {
        Some(items) if object["kind"] == "List" => items.iter().flat_map(reviewed).collect(),
        _ => vec![object.clone()],
    }
}

/// One line may hold several, and digests may be longer than in an answer of 200 characters.
fn assert_lines(said: &[String], expected: &[String], about: &str) {
    let mut rest = said.join("; ");
    let mut expected = expected.to_vec();
    expected.sort_by_key(|line| std::cmp::Reverse(line.len()));
    expected.dedup();
    for line in &expected {
        let short = shortened(&rest);
        let text = if rest.contains(line.as_str()) {
            &rest
        } else {
            &short
        };
        assert!(
            text.contains(line.as_str()),
            "{about}\n{line}\nis not in\n{said:?}"
        );
        rest = text.replace(line.as_str(), "");
    }
    assert_eq!(
        rest.trim_matches([';', ' ']),
        "",
        "{about}\n{said:?}\n{expected:?}"
    );
}

fn shortened(text: &str) -> String {
    let digest = regex::Regex::new("(@sha(256|512):[0-9a-f]{12})[0-9a-f]+").unwrap();
    digest.replace_all(text, "$1").into_owned()
}

#[test]
fn every_case_in_every_format() {
    let mut judged = 0;
    let mut passed_over = Vec::new();
    for table in vectors().tables {
        let scene = Scene::new(&table.config());
        for format in FORMATS {
            let cluster = scene.cluster(format, &[]);
            for (image, expect) in table.anonymous_images() {
                let about = format!("{format}, {}: {image}", table.name);
                let object = pod(&json!(image));
                let verdict = cluster.judge(Review::create(&object));
                let effect = match (verdict.denied.len(), verdict.warned.len()) {
                    (0, 0) => "allow",
                    (0, _) => "audit",
                    (_, 0) => "deny",
                    _ => panic!("{about}: {verdict:?}"),
                };
                let wanted = if expect.invalid {
                    Some("deny")
                } else {
                    expect.effect.as_deref()
                };
                assert_eq!(Some(effect), wanted, "{about}: {verdict:?}");
                let expected = scene.expected(&object);
                assert_lines(&verdict.denied, &expected.denied, &about);
                assert_lines(&verdict.warned, &expected.warned, &about);
                judged += 1;
            }
            for (workload, case, expect) in table.workloads() {
                let mut violations = Vec::new();
                let mut said = Verdict::default();
                for mut object in reviewed(workload) {
                    let about = format!("{format}: {}", case.name);
                    let group = object["apiVersion"]
                        .as_str()
                        .unwrap()
                        .split('/')
                        .next()
                        .unwrap();
                    if format == "kyverno" && CUSTOM_GROUPS.contains(&group) {
                        // Not matched; the pods that come of it are.
                        assert!(!cluster.is_matched(Review::create(&object)), "{about}");
                        passed_over.push(case.name.clone());
                        let template = object["spec"]["template"].take();
                        object =
                            json!({ "apiVersion": "v1", "kind": "Pod", "spec": template["spec"] });
                    }
                    let verdict = cluster.judge(Review::create(&object));
                    let expected = scene.expected(&object);
                    assert_lines(&verdict.denied, &expected.denied, &about);
                    violations.extend(expected.denied);
                    said.denied.extend(verdict.denied);
                    said.warned.extend(verdict.warned);
                }
                let about = format!("{format}: {}: {said:?}", case.name);
                assert_eq!(
                    said.denied.is_empty(),
                    expect.violations.is_empty(),
                    "{about}"
                );
                assert_eq!(said.warned, [""; 0], "{about}");
                violations.sort();
                violations.dedup();
                assert_eq!(violations.len(), expect.violations.len(), "{about}");
                judged += 1;
            }
        }
    }
    assert!(judged >= 4 * 160, "only {judged}");
    assert_eq!(
        passed_over,
        [
            "an Argo Rollout, by its shape",
            "a Knative Service, by its shape"
        ]
    );
}

const RULES: &str = r#"
    [policy]
    default = "allow"
    rules = [
        { id = "frozen", images = ["k8s.gcr.io/**"], effect = "deny" },
        { id = "leaving", images = ["quay.io/old/**"], effect = "audit" },
    ]"#;
const FROZEN: &str = "k8s.gcr.io/pause:3.9 is not allowed: rule frozen refuses it";
const LEAVING: &str = "quay.io/old/a:1 is served, but audited: rule leaving is about it";

fn pod_of(images: &[&str], ephemeral: &[&str]) -> Value {
    let list = |images: &[&str]| -> Vec<Value> {
        images
            .iter()
            .map(|image| json!({ "name": "c", "image": image }))
            .collect()
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n" },
        "spec": { "containers": list(images), "ephemeralContainers": list(ephemeral) },
    })
}

#[test]
fn an_update_is_judged_by_what_it_brings() {
    let scene = Scene::new(RULES);
    let (old, good) = ("k8s.gcr.io/old:1", "registry.k8s.io/pause:3.9");
    let before = pod_of(&[old, good], &[]);
    for format in FORMATS {
        let cluster = scene.cluster(format, &[]);
        let denied = |review| cluster.judge(review).denied;
        assert_eq!(denied(Review::create(&before)).len(), 1, "{format}");
        assert_eq!(
            denied(Review::update(&before, &before)),
            [""; 0],
            "{format}"
        );
        assert_eq!(denied(Review::delete(&before)), [""; 0], "{format}");
        let after = pod_of(&[old, "k8s.gcr.io/pause:3.9"], &[]);
        assert_eq!(
            denied(Review::update(&before, &after)),
            [FROZEN],
            "{format}"
        );
        let debugged = pod_of(&[old, good], &["k8s.gcr.io/pause:3.9"]);
        assert_eq!(
            denied(Review::debug(&before, &debugged)),
            [FROZEN],
            "{format}"
        );
    }
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

#[test]
fn actions_and_namespaces_are_those_that_were_asked_for() {
    let scene = Scene::new(RULES);
    let both = pod_of(&["k8s.gcr.io/pause:3.9", "quay.io/old/a:1"], &[]);
    for format in FORMATS {
        let strict = scene.cluster(format, &[]).judge(Review::create(&both));
        let verdict = |denied: &[&str], warned: &[&str]| Verdict {
            denied: owned(denied),
            warned: owned(warned),
        };
        assert_eq!(strict, verdict(&[FROZEN], &[LEAVING]), "{format}");
        let lenient = scene.cluster(format, &["--action", "audit"]);
        let lenient = lenient.judge(Review::create(&both));
        assert_eq!(lenient, verdict(&[], &[FROZEN, LEAVING]), "{format}");
        let excluding = ["--exclude-namespace", "other", "--exclude-namespace", "n"];
        let elsewhere = scene.cluster(format, &excluding);
        assert_eq!(
            elsewhere.judge(Review::create(&both)),
            verdict(&[], &[]),
            "{format}"
        );
    }
}

#[test]
fn a_message_fits_whatever_is_refused() {
    let scene = Scene::new(RULES);
    let digest = "0".repeat(64);
    let images: Vec<_> = (0..40)
        .map(|n| format!("k8s.gcr.io/pause-{n}@sha256:{digest}"))
        .collect();
    let images: Vec<_> = images.iter().map(String::as_str).collect();
    let many = pod_of(&images, &[]);
    for format in ["vap", "kyverno"] {
        let [message] = &*scene
            .cluster(format, &[])
            .judge(Review::create(&many))
            .denied
        else {
            panic!("{format} says more than one thing");
        };
        assert!(
            message.len() <= 5 * 1024 && message.ends_with("; and 39 more"),
            "{message}"
        );
    }
    let lines = scene
        .cluster("gatekeeper", &[])
        .judge(Review::create(&many))
        .denied;
    assert_eq!(lines.len(), 40);
}

#[test]
fn it_says_what_it_needs_and_what_it_leaves_out() {
    let scene = Scene::new(RULES);
    for (arguments, said) in [
        (&[][..], "say for whom: -o vap"),
        (&["-o", "json"], "say for whom"),
        (&["-o", "sarif"], "only audit knows this output"),
        (
            &["-o", "vap", "--exclude-namespace", "Kube_System"],
            "a namespace has 1 to 63",
        ),
        (&["-o", "vap", "--action", "warn"], "deny, audit"),
    ] {
        let outcome = scene.run(arguments).assert_failure();
        assert!(
            outcome.text.contains(said),
            "{arguments:?}: {}",
            outcome.text
        );
        assert_eq!(outcome.stdout, "");
    }
    let config = scene.directory.path().join("portcullis.toml");
    let outcome = run(&mut command(&config, &["explain", "nginx", "-o", "vap"])).assert_failure();
    assert!(
        outcome.text.contains("only policy export knows"),
        "{}",
        outcome.text
    );

    // Nothing that a rule says is dropped silently.
    let mut told = Vec::new();
    for table in vectors().tables {
        let outcome = Scene::new(&table.config())
            .run(&["-o", "vap"])
            .assert_success();
        let notes = outcome
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("note: rule "));
        for note in notes {
            assert!(
                outcome.stdout.contains(&format!("# Note: rule {note}.\n")),
                "{note}"
            );
            told.push((
                table.name.clone(),
                note.split(' ').next().unwrap().to_owned(),
            ));
        }
    }
    let told: Vec<_> = told
        .iter()
        .map(|(table, rule)| (&**table, &**rule))
        .collect();
    assert_eq!(
        told,
        [
            ("conditions", "settled"),
            ("clients", "quarantine"),
            ("clients", "build"),
            ("certificates", "team-a"),
            ("certificates", "corp"),
        ]
    );
}

// === by the schemas of others ===

/// Strict: what Kubernetes does not know is an error too.
#[test]
fn the_api_server_takes_it() {
    let directory = TempDir::new().unwrap();
    let mut files = Vec::new();
    for (number, table) in vectors().tables.into_iter().enumerate() {
        let scene = Scene::new(&table.config());
        for (kind, arguments) in [
            ("plain", &[][..]),
            (
                "full",
                &["--action", "audit", "--exclude-namespace", "kube-system"],
            ),
        ] {
            let file = directory.path().join(format!("{number}-{kind}.yaml"));
            fs::write(&file, scene.export("vap", arguments)).unwrap();
            files.push(file);
        }
    }
    files.push(example("vap.yaml"));
    let output = Command::new(validator())
        .args(["-k", "1.34", "--strict"])
        .args(&files)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    // It would have said so.
    let broken = directory.path().join("broken.yaml");
    let text = fs::read_to_string(&files[0]).unwrap();
    fs::write(&broken, text.replace("failurePolicy:", "failurePolice:")).unwrap();
    let output = Command::new(validator())
        .args(["-k", "1.34", "--strict"])
        .arg(&broken)
        .output()
        .unwrap();
    assert!(!output.status.success());
}

fn validator() -> PathBuf {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kubernetes-validate");
    let path = home.join("bin/kubernetes-validate");
    assert!(
        path.exists(),
        "{} is not there: run tests/setup/schemas.sh, or `make test`, which does",
        path.display()
    );
    path
}

/// "Azure Policy definition structure" and "Understand Azure Policy for Kubernetes clusters".
#[test]
fn azure_has_the_documented_shape() {
    let scene = Scene::new(RULES);
    let definition = scene.export("azure-policy", &["--exclude-namespace", "shop"]);
    let definition: Value = serde_json::from_str(&definition).unwrap();
    let properties = &definition["properties"];
    assert_eq!(properties["mode"], "Microsoft.Kubernetes.Data");
    assert_eq!(properties["policyType"], "Custom");
    for (key, longest) in [("displayName", 128), ("description", 512)] {
        assert!(
            (1..=longest).contains(&text(&properties[key]).len()),
            "{key}"
        );
    }
    let rule = &properties["policyRule"];
    let condition = json!({
        "field": "type",
        "in": ["Microsoft.Kubernetes/connectedClusters", "Microsoft.ContainerService/managedClusters"],
    });
    assert_eq!(rule["if"], condition);
    let details = &rule["then"]["details"];
    let keys: Vec<_> = details
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys,
        [
            "apiGroups",
            "excludedNamespaces",
            "kinds",
            "labelSelector",
            "namespaces",
            "source",
            "templateInfo",
            "values",
            "warn"
        ]
    );
    let template = details["templateInfo"].as_object().unwrap();
    assert_eq!(template.len(), 2);
    assert_eq!(template["sourceType"], "Base64Encoded");
    // Every parameter is used, and no other; its default is one that it allows and of its type.
    let parameters = properties["parameters"].as_object().unwrap();
    let written = rule.to_string();
    let used = written.matches("[parameters('").count();
    assert_eq!(used, parameters.len());
    for (name, parameter) in parameters {
        assert!(
            written.contains(&format!("\"[parameters('{name}')]\"")),
            "{name}"
        );
        let default = &parameter["defaultValue"];
        let is_typed = match text(&parameter["type"]) {
            "String" => default.is_string(),
            "Array" => default.is_array(),
            "Boolean" => default.is_boolean(),
            "Object" => default.is_object(),
            other => panic!("{name} is a {other}"),
        };
        assert!(is_typed, "{name}");
        if let Some(allowed) = parameter["allowedValues"].as_array() {
            assert!(allowed.contains(default), "{name}");
        }
        assert!(parameter["metadata"]["displayName"].is_string(), "{name}");
    }
    assert_eq!(rule["then"]["effect"], "[parameters('effect')]");
    let effects = texts(&parameters["effect"]["allowedValues"]);
    assert_eq!(effects, ["Audit", "Deny", "Disabled"]);
    let excluded = texts(&parameters["excludedNamespaces"]["defaultValue"]);
    assert!(excluded.contains(&"kube-system".to_owned()) && excluded.contains(&"shop".to_owned()));
    for kind in ["Pod", "Deployment", "CronJob"] {
        assert!(texts(&details["kinds"]).contains(&kind.to_owned()));
    }
    // The largest that a definition may be is 1 MB; the built-in ones are far below.
    assert!(definition.to_string().len() < 256 * 1024);
}

// === the examples ===

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/export")
        .join(name)
}

/// `docs/export/` has what the product writes; `UPDATE_DOCS=1` writes it anew.
#[test]
fn the_examples_are_what_is_written() {
    let scene = Scene::new(&fs::read_to_string(example("portcullis.toml")).unwrap());
    for (format, name) in [
        ("vap", "vap.yaml"),
        ("gatekeeper", "gatekeeper.yaml"),
        ("kyverno", "kyverno.yaml"),
        ("azure-policy", "azure-policy.json"),
    ] {
        let text = scene.export(format, &["--exclude-namespace", "kube-system"]);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(example(name), &text).unwrap();
        }
        let written = fs::read_to_string(example(name)).unwrap_or_default();
        assert!(
            written == text,
            "docs/export/{name} is out of date: run the tests with UPDATE_DOCS=1"
        );
    }
}

// === whatever the rules, whatever the image ===

fn any_pattern() -> impl Strategy<Value = String> {
    let registry = select(&[
        "docker.io",
        "quay.io",
        "*.io",
        "reg.example:5000",
        "localhost",
        "**",
        "images.corp.example:5000",
    ]);
    let path = select(&[
        "**",
        "a",
        "a/**",
        "library/*",
        "*",
        "a/*/c",
        "**/b",
        "a/**/b/**",
    ]);
    let version = select(&["", "", "", ":1", ":latest", ":v*", "@*"]);
    let digest = "0".repeat(64);
    let pattern = (registry, path, version)
        .prop_map(|(registry, path, version)| format!("{registry}/{path}{version}"));
    prop_oneof![
        8 => pattern,
        1 => Just("**".to_owned()),
        1 => Just(format!("**@sha256:{digest}")),
    ]
}

fn any_rule() -> impl Strategy<Value = String> {
    let list = |patterns: Vec<String>| {
        patterns
            .iter()
            .map(|text| format!("{text:?}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let images = prop::collection::vec(any_pattern(), 1..3);
    let except = prop::collection::vec(any_pattern(), 0..2);
    let says = select(&[
        "effect = \"allow\"",
        "effect = \"allow\"",
        "effect = \"deny\"",
        "effect = \"deny\", reason = \"it's old\", instead = \"quay.io/new/**\", contact = \"us\"",
        "effect = \"audit\", instead = \"quay.io/one:2\"",
        "effect = \"allow\", require = \"digest\"",
        "effect = \"audit\", require = \"digest\", reason = \"pins only\"",
        "effect = \"rewrite\", instead = \"quay.io/moved/**\"",
        "effect = \"rewrite\", instead = \"docker.io/**\"",
        "effect = \"rewrite\", instead = \"localhost:5001/x:9\"",
        "effect = \"allow\", clients = [\"10.0.0.0/8\"]",
    ]);
    (images, except, says).prop_map(move |(images, except, says)| {
        format!(
            "images = [{}], except = [{}], {says}",
            list(images),
            list(except)
        )
    })
}

fn any_config() -> impl Strategy<Value = String> {
    let rules = prop::collection::vec(any_rule(), 1..6);
    let server = select(&[
        "",
        "[server]\nurl = \"https://images.corp.example:5000\"\n",
        "[server]\nurl = \"http://images.corp.example\"\ndefault_registry = \"quay.io\"\nhosts = { \"docker.io\" = \"quay.io\", \"reg.example:5000\" = \"word\" }\n",
    ]);
    (rules, any::<bool>(), server).prop_map(|(rules, open, server)| {
        let default = if open { "allow" } else { "deny" };
        let rules: Vec<_> = rules
            .iter()
            .enumerate()
            .map(|(n, rule)| format!("{{ id = \"r{n}\", {rule} }}"))
            .collect();
        format!(
            "{server}[policy]\ndefault = {default:?}\nrules = [{}]\n",
            rules.join(",\n")
        )
    })
}

/// Images in all the ways in which they are written, and some that are none.
fn any_image() -> impl Strategy<Value = String> {
    let registry = select(&[
        "",
        "",
        "docker.io/",
        "INDEX.docker.io/",
        "registry-1.docker.io:443/",
        "quay.io/",
        "QUAY.io./",
        "quay.io:0443/",
        "reg.example:5000/",
        "reg.example:05000/",
        "reg.example:500000/",
        "localhost/",
        "LOCALHOST/",
        "localhost:5001/",
        "images.corp.example:5000/",
        "Images.corp.example:5000/quay.io/",
        "images.corp.example/",
        "images.corp.example:5000/quay.io/v2/",
        "127.1/",
        "0x7f.1:80/",
        "1.2.3.4:5000/",
        "word./",
        "a-.b/",
        "x@y/",
        "a_b.io/",
        "a/",
    ]);
    let path = prop::collection::vec(
        select(&[
            "a", "b", "c", "library", "a.b", "x__y", "a--b", "A", "", "v2", "a..b", "old",
        ]),
        1..5,
    );
    let tag = select(&[
        "",
        "",
        ":1",
        ":latest",
        ":v1.2",
        ":",
        ":-1",
        ":sha256-00",
        ":1:2",
    ]);
    let digest = select(&[
        "",
        "",
        "",
        "@sha256:0",
        "@sha256:1",
        "@sha256:A",
        "@",
        "@sha512:0",
        "@md5:0",
    ]);
    (registry, path, tag, digest).prop_map(|(registry, path, tag, digest)| {
        let digest = match digest.strip_prefix("@sha256:") {
            Some(digit) if digest.len() == 9 => format!("@sha256:{}", digit.repeat(64)),
            _ => digest.replace("@sha512:0", &format!("@sha512:{}", "0".repeat(128))),
        };
        format!("{registry}{}{tag}{digest}", path.join("/"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_rules_say_the_same_of_any_image(config in any_config(), images in prop::collection::vec(any_image(), 12)) {
        let parsed: portcullis::config::Config = toml::from_str(&config).unwrap();
        // Rules may lead nowhere, which is found when they are loaded.
        let Ok(policy) = Engine::compile(&parsed.policy) else { return Ok(()) };
        let scene = Scene { directory: TempDir::new().unwrap(), policy, names: parsed.server.own_names() };
        let options = Options { action: Action::Deny, excluded_namespaces: Vec::new() };
        for (name, format) in [("vap", Format::Vap), ("gatekeeper", Format::Gatekeeper)] {
            let text = export::export(&scene.policy, &scene.names, format, &options).unwrap().text;
            let cluster = cluster(name, &text);
            for image in &images {
                let object = pod(&json!(image));
                let verdict = cluster.judge(Review::create(&object));
                let expected = scene.expected(&object);
                let about = format!("{name}: {image}\n{config}");
                prop_assert_eq!(verdict.denied.len(), expected.denied.len(), "{}\n{:?}\n{:?}", about, verdict, expected);
                prop_assert_eq!(verdict.warned.len(), expected.warned.len(), "{}\n{:?}\n{:?}", about, verdict, expected);
                // Longer ones are cut for status lines, and what led where is not looked at twice.
                let mut lines = expected.denied.iter().chain(&expected.warned);
                if lines.all(|line| line.len() < 150 && !line.contains("only some versions")) {
                    assert_lines(&verdict.denied, &expected.denied, &about);
                    assert_lines(&verdict.warned, &expected.warned, &about);
                }
            }
        }
    }
}
