//! `portcullis audit`: what it finds, how it ends, and that its manual shows the truth.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cases::{pod, vectors};
use crate::support::programs::{Outcome, run};
use crate::support::proxy::command;

const POD: &str =
    "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: k8s.gcr.io/pause:3.9}]}\n";

/// Runs in a directory with these files.
fn audit(files: &[(&str, &str)], arguments: &[&str]) -> Outcome {
    let directory = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    audit_in(directory.path(), arguments)
}

fn audit_in(directory: &Path, arguments: &[&str]) -> Outcome {
    let config = directory.join("portcullis.toml");
    if !config.exists() {
        fs::write(&config, "").unwrap();
    }
    run(command(&config, &[&["audit"], arguments].concat()).current_dir(directory))
}

fn parse(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", outcome.text))
}

fn images(findings: &Value) -> Vec<String> {
    let findings = findings.as_array().unwrap().iter();
    findings
        .map(|finding| finding["image"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_exit_code_says_how_it_went() {
    let good = POD.replace("k8s.gcr.io", "registry.k8s.io");
    let files = [
        ("good.yaml", good.as_str()),
        ("bad.yaml", POD),
        ("broken.yaml", "a: ["),
    ];
    for (arguments, code) in [
        (&["good.yaml"][..], 0),
        (&["good.yaml", "bad.yaml"], 2),
        (&["bad.yaml", "broken.yaml"], 1),
        (&["bad.yaml", "nowhere.yaml"], 1),
        (&["."], 1),
        (&[], 1),
        (&["good.yaml", "-o", "csv"], 1),
    ] {
        let outcome = audit(&files, arguments);
        assert_eq!(
            outcome.status.code(),
            Some(code),
            "{arguments:?}: {}",
            outcome.text
        );
    }
    // What could be read is reported all the same.
    let outcome = audit(
        &files,
        &["nowhere.yaml", "broken.yaml", "bad.yaml", "-o", "json"],
    );
    let json = parse(&outcome);
    assert_eq!(images(&json["violations"]), ["k8s.gcr.io/pause:3.9"]);
    assert_eq!(json["errors"].as_array().unwrap().len(), 2);
    assert!(
        outcome.text.contains("nowhere.yaml: No such file"),
        "{}",
        outcome.text
    );
}

#[test]
fn stdin_is_read() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("portcullis.toml");
    fs::write(&config, "").unwrap();
    let mut child = command(&config, &["audit", "-", "-o", "sarif"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(POD.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let sarif: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "frozen-k8s-gcr");
    let location = &result["locations"][0]["physicalLocation"];
    assert_eq!(location["artifactLocation"]["uri"], "stdin");
    assert_eq!(location["region"]["startLine"], 3);
}

#[test]
fn reports_are_for_audit_only() {
    let outcome = audit(&[("a.yaml", POD)], &["a.yaml", "-o", "openreports"]);
    assert_eq!(
        parse(&outcome)["items"][0]["apiVersion"],
        "openreports.io/v1alpha1"
    );
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("portcullis.toml");
    fs::write(&config, "").unwrap();
    let outcome = run(&mut command(&config, &["explain", "nginx", "-o", "sarif"])).assert_failure();
    assert!(outcome.text.contains("only audit"), "{}", outcome.text);
}

/// Policies are tried out where the secrets are not.
#[test]
fn no_secret_is_needed() {
    let config = "[upstreams.\"private.example\"]\nusername = \"u\"\npassword = { file = \"/nowhere\" }\n\
                  share_with = \"everyone\"";
    let pod = POD.replace("k8s.gcr.io", "private.example");
    let files = [("portcullis.toml", config), ("a.yaml", pod.as_str())];
    let outcome = audit(&files, &["a.yaml", "-o", "json"]).assert_success();
    assert_eq!(images(&parse(&outcome)["unserved"]), [""; 0]);
}

#[test]
fn the_shared_workloads_agree() {
    let directory = TempDir::new().unwrap();
    let mut judged = 0;
    for table in vectors().tables {
        fs::write(directory.path().join("portcullis.toml"), table.config()).unwrap();
        for (workload, case, expect) in table.workloads() {
            let file = directory.path().join("workload.json");
            fs::write(file, workload.to_string()).unwrap();
            let outcome = audit_in(directory.path(), &["workload.json", "-o", "json"]);
            let json = parse(&outcome);
            let name = &case.name;
            assert_eq!(images(&json["violations"]), expect.violations, "{name}");
            assert_eq!(images(&json["unserved"]), expect.unserved, "{name}");
            let code = if expect.violations.is_empty() { 0 } else { 2 };
            assert_eq!(outcome.status.code(), Some(code), "{name}");
            judged += 1;
        }
    }
    assert!(judged >= 50, "only {judged}");
}

/// Each image in a pod of its own.
#[test]
fn the_shared_images_agree() {
    let mut judged = 0;
    for table in vectors().tables {
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("portcullis.toml"), table.config()).unwrap();
        let mut cases = BTreeMap::new();
        for (number, (image, expect)) in table.anonymous_images().enumerate() {
            let file = format!("{number}.json");
            fs::write(directory.path().join(&file), pod(&json!(image)).to_string()).unwrap();
            cases.insert(file, (image, expect));
        }
        if cases.is_empty() {
            continue;
        }
        let files = cases.keys().map(String::as_str);
        let arguments: Vec<_> = files.chain(["-o", "json"]).collect();
        let found = parse(&audit_in(directory.path(), &arguments));
        let listed = |list: &str, file: &str| {
            let mut findings = found[list].as_array().unwrap().iter();
            let is_here = |finding: &&Value| {
                let mut places = finding["places"].as_array().unwrap().iter();
                places.any(|place| place["file"] == file)
            };
            findings.find(is_here).cloned()
        };
        for (file, (image, expect)) in cases {
            let (violation, warning) = (listed("violations", &file), listed("warnings", &file));
            let effect = match (&violation, &warning) {
                (Some(_), _) => "deny",
                (None, Some(_)) => "audit",
                (None, None) => "allow",
            };
            let expected = if expect.invalid {
                "deny"
            } else {
                expect.effect.as_deref().unwrap()
            };
            let about = format!("{}: {image}", table.name);
            assert_eq!(effect, expected, "{about}");
            if let Some(finding) = violation.or(warning).filter(|_| !expect.invalid) {
                assert_eq!(finding["rule"].as_str(), expect.rule.as_deref(), "{about}");
                if let Some(instead) = expect.instead {
                    assert_eq!(finding["instead"], *instead, "{about}");
                }
            }
            judged += 1;
        }
    }
    assert!(judged >= 80, "only {judged}");
}

/// Every file and every `$` command of docs/audit.md, and what it is said to print.
#[test]
fn the_manual_shows_what_happens() {
    let manual = include_str!("../../docs/audit.md");
    let directory = TempDir::new().unwrap();
    let mut commands = 0;
    for block in manual.split("\n```").skip(1).step_by(2) {
        let (info, text) = block.split_once('\n').unwrap();
        let text = format!("{text}\n");
        if let Some((_, name)) = info.split_once(' ') {
            fs::write(directory.path().join(name), text).unwrap();
        } else if let Some(text) = text.strip_prefix("$ portcullis audit ") {
            let (arguments, expected) = text.split_once('\n').unwrap();
            let arguments: Vec<_> = arguments.split(' ').collect();
            let outcome = audit_in(directory.path(), &arguments);
            assert_eq!(outcome.stdout, expected);
            commands += 1;
        }
    }
    assert_eq!(commands, 1);
}
