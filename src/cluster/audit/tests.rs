use super::*;
use crate::cluster::inputs;
use crate::oci::OwnNames;
use crate::policy::Engine;
use crate::upstream::Served;

const RULES: &str = r#"
    rules = [
        { id = "frozen", images = ["k8s.gcr.io/**"], effect = "deny", reason = "k8s.gcr.io is frozen", instead = "registry.k8s.io/**", contact = "platform@corp.example" },
        { id = "public", images = ["registry.k8s.io/**", "quay.io/**", "private.example/**"], effect = "allow" },
    ]"#;

const OBJECTS: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    spec:
      initContainers:
      - name: init
        image: quay.io/corp/init:1
      containers:
      - name: pause
        image: k8s.gcr.io/pause:3.9
      - name: app
        image: private.example/app:1
---
apiVersion: v1
kind: Pod
metadata: {name: loose}
spec:
  containers:
  - {name: a, image: nginx}
  - {name: b, image: K8S.gcr.io/pause:3.9}
  - {name: c, image: 3.9}
";

fn audit(files: &[(&str, &str)]) -> Audit {
    let policy = Engine::compile(&toml::from_str(RULES).unwrap()).unwrap();
    let names = OwnNames::default();
    let served = Served::by_name(std::iter::empty());
    let judge = Judge {
        policy: &policy,
        names: &names,
        served: &served,
    };
    let inputs = files
        .iter()
        .map(|(name, text)| inputs::read(name, text.as_bytes()));
    Audit::new(inputs, &judge)
}

fn images<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<&'a str> {
    findings
        .map(|finding| finding.judgement.image.as_str())
        .collect()
}

#[test]
fn findings_are_images_with_all_their_places() {
    let audit = audit(&[
        ("a b.yaml", OBJECTS),
        ("Dockerfile", "FROM k8s.gcr.io/pause:3.9"),
    ]);
    assert_eq!(
        images(audit.violations()),
        [
            "(a number)",
            "docker.io/library/nginx:latest",
            "k8s.gcr.io/pause:3.9"
        ]
    );
    assert_eq!(images(audit.unserved()), ["private.example/app:1"]);
    assert_eq!(images(audit.warnings()), [""; 0]);
    let pause = audit.violations().last().unwrap();
    let lines: Vec<_> = pause.places.iter().map(|place| place.line).collect();
    assert_eq!(lines, [Some(12), Some(22), Some(1)]);

    let json = audit.json();
    assert_eq!(json["violations"].as_array().unwrap().len(), 3);
    assert_eq!(json["violations"][2]["rule"], "frozen");
    assert_eq!(
        json["violations"][2]["instead"],
        "registry.k8s.io/pause:3.9"
    );
    assert_eq!(
        json["violations"][2]["places"][0],
        json!({
            "file": "a b.yaml", "line": 12, "apiVersion": "apps/v1", "kind": "Deployment",
            "namespace": "shop", "name": "web", "container": "pause",
            "path": "spec.template.spec.containers[0].image",
        })
    );
    assert_eq!(json["images"].as_array().unwrap().len(), 5);
    assert_eq!(
        json["images"][4],
        json!({ "image": "quay.io/corp/init:1", "outcome": "allowed", "served": true, "places": 1 })
    );
}

#[test]
fn the_table_is_for_people() {
    let text = audit(&[("a.yaml", OBJECTS)]).text();
    let expected = "\
violation  (a number)
  reason   a number stands where an image belongs
  at       a.yaml:23  Pod loose  container c  spec.containers[2].image

violation  docker.io/library/nginx:latest
  reason   no rule allows it
  at       a.yaml:21  Pod loose  container a  spec.containers[0].image

violation  k8s.gcr.io/pause:3.9
  reason   k8s.gcr.io is frozen
  instead  registry.k8s.io/pause:3.9
  contact  platform@corp.example
  rule     frozen
  at       a.yaml:12  Deployment shop/web  container pause  spec.template.spec.containers[0].image
  at       a.yaml:22  Pod loose  container b  spec.containers[1].image

unserved   private.example/app:1
  reason   its registry is neither known nor in [upstreams]
  rule     public
  at       a.yaml:14  Deployment shop/web  container app  spec.template.spec.containers[1].image

5 images in 6 places: 3 violations, 0 warnings, 1 unserved
";
    assert_eq!(text, expected);
    let many = "FROM k8s.gcr.io/pause:3.9\n".repeat(25);
    let text = audit(&[("Dockerfile", &many)]).text();
    assert!(text.contains("... and 15 more places\n"), "{text}");
}

#[test]
fn no_text_speaks_to_the_terminal() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\e[2J\"}\nspec: {containers: [{image: \"k8s.gcr.io/a\\e[2J\"}]}";
    let text = audit(&[("a\u{1b}.yaml", text)]).text();
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

/// What the schema demands of what we write, as far as it can be said here; the whole of it was
/// checked with a JSON Schema validator.
#[test]
fn sarif_has_rules_places_and_fingerprints() {
    let sarif = audit(&[
        ("./a b.yaml", OBJECTS),
        ("-", ""),
        ("/x/Dockerfile", "FROM nginx"),
    ])
    .sarif();
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let ids: Vec<_> = rules
        .iter()
        .map(|rule| rule["id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        [
            "frozen",
            "portcullis/default",
            "portcullis/no-image",
            "portcullis/not-served"
        ]
    );
    assert_eq!(run["invocations"][0]["executionSuccessful"], false);
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 6);
    let mut fingerprints = std::collections::HashSet::new();
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let location = &result["locations"][0]["physicalLocation"];
        assert!(location["region"]["startLine"].as_u64().unwrap() > 0);
        let fingerprint = result["partialFingerprints"]["image/v1"].as_str().unwrap();
        assert!(fingerprints.insert(fingerprint.to_owned()));
    }
    let pause = results
        .iter()
        .find(|result| result["ruleId"] == "frozen")
        .unwrap();
    assert_eq!(pause["level"], "error");
    assert_eq!(
        pause["message"]["text"],
        "k8s.gcr.io/pause:3.9 is not allowed: k8s.gcr.io is frozen; \
         use registry.k8s.io/pause:3.9 instead; contact platform@corp.example"
    );
    assert_eq!(
        pause["locations"][0],
        json!({
            "physicalLocation": { "artifactLocation": { "uri": "a%20b.yaml" }, "region": { "startLine": 12 } },
            "logicalLocations": [{ "fullyQualifiedName": "Deployment shop/web spec.template.spec.containers[0].image" }],
        })
    );
    let text = sarif.to_string();
    assert!(text.contains("\"uri\":\"file:///x/Dockerfile\""), "{text}");
}

#[test]
fn a_fingerprint_outlives_moved_lines_and_tells_twins_apart() {
    let fingerprints = |text: &str| {
        let sarif = audit(&[("a.yaml", text)]).sarif();
        let results = sarif["runs"][0]["results"].as_array().unwrap().clone();
        let prints = results
            .iter()
            .map(|result| result["partialFingerprints"]["image/v1"].to_string());
        prints.collect::<Vec<_>>()
    };
    let before = fingerprints(OBJECTS);
    assert_eq!(before, fingerprints(&format!("# moved\n\n{OBJECTS}")));
    let twice = fingerprints(&format!("{OBJECTS}---\n{OBJECTS}"));
    let distinct: std::collections::HashSet<_> = twice.iter().collect();
    assert_eq!(
        (twice.len(), distinct.len()),
        (2 * before.len(), 2 * before.len())
    );
    assert!(before.iter().all(|print| twice.contains(print)));
}

#[test]
fn reports_are_made_for_each_namespace() {
    let audit = audit(&[("a.yaml", OBJECTS)]);
    let list = audit.report(ReportKind::PolicyReport);
    let [cluster, shop] = list["items"].as_array().unwrap().as_slice() else {
        panic!("{list:#}");
    };
    assert_eq!(cluster["kind"], "ClusterPolicyReport");
    assert_eq!(cluster["metadata"]["namespace"], Value::Null);
    assert_eq!(
        cluster["summary"],
        json!({ "pass": 0, "fail": 3, "warn": 0, "error": 0, "skip": 0 })
    );
    assert_eq!(shop["apiVersion"], "wgpolicyk8s.io/v1alpha2");
    assert_eq!(
        (&shop["kind"], &shop["source"]),
        (&json!("PolicyReport"), &Value::Null)
    );
    assert_eq!(shop["metadata"]["namespace"], "shop");
    assert_eq!(
        shop["summary"],
        json!({ "pass": 1, "fail": 1, "warn": 1, "error": 0, "skip": 0 })
    );
    assert_eq!(
        shop["results"][0],
        json!({
            "source": "portcullis", "policy": "portcullis", "rule": "frozen", "category": "images",
            "severity": "high", "result": "fail", "scored": true,
            "message": "k8s.gcr.io/pause:3.9 is not allowed: k8s.gcr.io is frozen; \
                        use registry.k8s.io/pause:3.9 instead; contact platform@corp.example",
            "resources": [{ "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web" }],
            "properties": {
                "image": "k8s.gcr.io/pause:3.9", "instead": "registry.k8s.io/pause:3.9",
                "contact": "platform@corp.example", "container": "pause", "file": "a.yaml",
                "line": "12", "path": "spec.template.spec.containers[0].image",
            },
        })
    );
    let open = audit.report(ReportKind::OpenReports);
    assert_eq!(open["items"][0]["kind"], "ClusterReport");
    assert_eq!(open["items"][1]["apiVersion"], "openreports.io/v1alpha1");
    assert_eq!(open["items"][1]["source"], "portcullis");
}

#[test]
fn a_report_stays_below_what_a_cluster_stores() {
    let many = "FROM k8s.gcr.io/pause:3.9\n".repeat(2500);
    let list = audit(&[("Dockerfile", &many)]).report(ReportKind::OpenReports);
    let items = list["items"].as_array().unwrap();
    let names: Vec<_> = items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "portcullis-audit",
            "portcullis-audit-2",
            "portcullis-audit-3"
        ]
    );
    assert!(items.iter().all(|item| item.to_string().len() < 1 << 20));
    assert_eq!(items[2]["summary"]["fail"], 500);
}

#[test]
fn the_order_of_files_changes_no_finding() {
    let files = [
        ("a.yaml", OBJECTS),
        ("Dockerfile", "FROM quay.io/z:1\nFROM a:1"),
    ];
    let (forth, back) = (audit(&files), audit(&[files[1], files[0]]));
    assert_eq!(images(forth.findings.iter()), images(back.findings.iter()));
}
