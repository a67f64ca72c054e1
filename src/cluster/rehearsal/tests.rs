use std::fmt::Write as _;

use super::*;
use crate::cluster::audit::Finding;
use crate::oci::OwnNames;
use crate::policy::Engine;
use crate::upstream::Served;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Lines of the record, short: `image`, what a tag answered, and `client was count` of each client.
fn record(pulls: &[(&str, Option<&str>, &[&str])]) -> Recorded {
    let mut lines = String::new();
    for (image, digest, clients) in pulls {
        let clients = clients.iter().map(|client| {
            let words: Vec<_> = client.split(' ').collect();
            let mut line = serde_json::json!({
                "count": words[2].parse::<u64>().unwrap(), "first": 100, "last": 200,
                "verdict": { "was": words[1], "rule": "old" },
            });
            match words[0].strip_prefix("mtls:") {
                Some(subject) => line["subject"] = subject.into(),
                None => line["address"] = words[0].into(),
            }
            line
        });
        let mut line = serde_json::json!({
            "image": image, "count": 100, "first": 100, "last": 200, "clients": clients.collect::<Vec<_>>(),
        });
        if let Some(digest) = digest {
            line["digest"] = (*digest).into();
        }
        writeln!(lines, "{line}").unwrap();
    }
    let recorded = Recorded::read(&lines);
    assert_eq!(recorded.pulls.len(), pulls.len());
    recorded
}

fn rehearse(policy: &str, recorded: &Recorded) -> Audit {
    let policy = Engine::compile(&toml::from_str(policy).unwrap()).unwrap();
    let judge = Judge {
        policy: &policy,
        names: &OwnNames::default(),
        served: &Served::by_name(std::iter::empty()),
    };
    Audit::rehearse(recorded, &judge)
}

/// `image: client client`
fn lines<'a>(findings: impl Iterator<Item = &'a Finding>) -> Vec<String> {
    let clients = |finding: &Finding| {
        let places = finding.places.iter();
        let clients = places.map(|place| place.pulled.clone().unwrap().client);
        clients.collect::<Vec<_>>().join(" ")
    };
    findings
        .map(|finding| format!("{}: {}", finding.judgement.image, clients(finding)))
        .collect()
}

#[test]
fn each_client_is_judged_as_itself() {
    let recorded = record(&[(
        "quay.io/a:1",
        None,
        &[
            "10.1.0.1 allowed 1",
            "10.2.0.1 audited 2",
            "mtls:CN=team-a allowed 3",
            "10.2.0.2 refused 4",
        ],
    )]);
    let audit = rehearse(
        r#"
        [[rules]]
        id = "some"
        images = ["quay.io/**"]
        clients = ["10.1.0.0/16", "mtls:CN=team-a"]
        effect = "allow"
        "#,
        &recorded,
    );
    assert_eq!(lines(audit.violations()), ["quay.io/a:1: 10.2.0.1"]);
    assert_eq!(lines(audit.refused()), ["quay.io/a:1: 10.2.0.2"]);
    assert_eq!(
        audit.notes,
        ["90 pulls are of clients that are no longer on record"]
    );
    assert!(audit.text().ends_with(
        "1 image pulled by 4 clients: 1 violation, 0 warnings, 0 unserved, 1 refused as before, 0 refused no more\n"
    ), "{}", audit.text());
}

#[test]
fn what_was_refused_may_be_served() {
    let recorded = record(&[
        ("quay.io/a:1", None, &["10.1.0.1 refused 1"]),
        ("quay.io/b:1", None, &["10.1.0.1 allowed 1"]),
        ("nowhere.example/b:1", None, &["10.1.0.1 not-served 1"]),
    ]);
    let audit = rehearse("default = \"allow\"", &recorded);
    assert_eq!(lines(audit.freed()), ["quay.io/a:1: 10.1.0.1"]);
    assert_eq!(lines(audit.unserved()), ["nowhere.example/b:1: 10.1.0.1"]);
    assert_eq!(lines(audit.violations()), [""; 0]);
    assert_eq!(audit.json()["freed"].as_array().unwrap().len(), 1);
}

#[test]
fn a_digest_is_allowed_by_the_tags_on_record() {
    let by_digest = format!("quay.io/a@{DIGEST}");
    let recorded = record(&[
        ("quay.io/a:1", Some(DIGEST), &["10.1.0.1 allowed 1"]),
        (&by_digest, None, &["10.1.0.1 allowed 1"]),
    ]);
    let allows = |pattern: &str| {
        let policy =
            format!("[[rules]]\nid = \"some\"\nimages = [\"{pattern}\"]\neffect = \"allow\"");
        lines(rehearse(&policy, &recorded).violations())
    };
    assert_eq!(allows("quay.io/a:1"), [""; 0]);
    assert_eq!(allows("quay.io/a:2").len(), 2);
    assert_eq!(allows(&by_digest), ["quay.io/a:1: 10.1.0.1"]);
}
