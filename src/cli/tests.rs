#![allow(clippy::disallowed_methods, reason = "tests write files of their own")]

use clap::CommandFactory as _;

use super::*;

/// A configuration file that lives as long as the test.
fn source(text: &str) -> Source {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portcullis.toml");
    std::fs::write(&path, text).unwrap();
    Source::find(Some(&path)).unwrap()
}

fn explain(text: &str, image: &str) -> Report {
    match Arguments::try_parse_from(["portcullis", "explain", image])
        .unwrap()
        .command
    {
        Command::Explain(explain) => explain.run(&source(text)).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_arguments_are_sound() {
    Arguments::command().debug_assert();
    for arguments in [
        &["serve", "--offline", "--config", "x.toml"][..],
        &["--config", "x.toml", "check", "-o", "json"],
        &["cache", "ls", "--blobs", "-o", "json"],
        &["cache", "pin", "a", "--platform", "linux/amd64,linux/arm64"],
        &["cache", "verify", "--rate", "10MB"],
        &[
            "nodes",
            "hosts",
            "--out",
            "certs.d",
            "--output",
            "json",
            "--fallback",
            "--default",
        ],
    ] {
        let arguments = ["portcullis"].iter().chain(arguments);
        assert!(Arguments::try_parse_from(arguments).is_ok());
    }
    for arguments in [
        &["explain"][..],
        &["nodes", "hosts"],
        &["cache", "why"],
        &["cache", "verify", "--rate", "fast"],
        &["check", "-o", "yaml"],
    ] {
        let arguments = ["portcullis"].iter().chain(arguments);
        assert!(Arguments::try_parse_from(arguments).is_err());
    }
}

#[test]
fn explain_says_what_a_pull_would_meet() {
    let rules = r#"
        [[policy.rules]]
        id = "no-latest"
        images = ["**:latest"]
        effect = "deny"
        [[policy.rules]]
        id = "some"
        images = ["quay.io/**", "ghcr.io/a:1", "nowhere.example/**"]
        effect = "allow"
    "#;
    for (image, lines) in [
        (
            "quay.io/a:1",
            &[
                "quay.io/a:1",
                "allow     by rule some",
                "upstream  https://quay.io",
            ][..],
        ),
        (
            "quay.io/a",
            &[
                "deny      by rule no-latest",
                "answer    403 quay.io/a:latest is not allowed: rule no-latest refuses it",
                "digest    allowed: who asks for the digest behind the tag gets it",
                "upstream  none: what is refused is not asked for",
            ],
        ),
        (
            "ghcr.io/a:1",
            &["digest    allowed when an allowed tag led to it"],
        ),
        (
            "ghcr.io/b:1",
            &["deny      by default", "rule      some: no pattern matches"],
        ),
        (
            "nowhere.example/a:1",
            &[
                "allow",
                "upstream  none: 403, this registry is not served here",
            ],
        ),
    ] {
        let text = explain(rules, image).text;
        for line in lines {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
    }
}

#[test]
fn explain_follows_rewrites_and_names_conditions() {
    let far = |number| {
        format!(
            "[[policy.rules]]\nid = \"far-{number}\"\nimages = [\"ghcr.io/{number}\"]\neffect = \"deny\"\n"
        )
    };
    let rules = r#"
        [[policy.rules]]
        id = "moved"
        images = ["k8s.gcr.io/**"]
        effect = "rewrite"
        instead = "registry.k8s.io/**"
        [[policy.rules]]
        id = "build"
        images = ["quay.io/**"]
        effect = "allow"
        clients = ["10.1.0.0/16"]
        [[policy.rules]]
        id = "soon"
        images = ["quay.io/**"]
        effect = "audit"
        reason = "not for long"
        [[policy.rules]]
        id = "settled"
        images = ["registry.k8s.io/**"]
        effect = "allow"
        min_age = "3d"
    "#;
    let rules = (0..9).map(far).collect::<String>() + rules;
    let text = explain(&rules, "k8s.gcr.io/pause:3.9").text;
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines[..8],
        [
            "k8s.gcr.io/pause:3.9",
            "allow     by rule settled",
            "min_age   3d: the answer is what the tag was first seen with longer ago than that; refused until then",
            "rule      9 others: no pattern matches",
            "rule      moved: k8s.gcr.io/** matches",
            "rewrite   to registry.k8s.io/pause:3.9 by rule moved",
            "rule      12 others: no pattern matches",
            "rule      settled: registry.k8s.io/** matches; it wants a tag to be 3d old",
        ]
    );
    assert!(text.contains("upstream  https://registry.k8s.io"), "{text}");

    let text = explain(&rules, "quay.io/a:1").text;
    for line in [
        "audit     by rule soon",
        "warning   quay.io/a:1 is served, but audited: not for long",
        "rule      build: is about certain clients only",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let arguments = [
        "portcullis",
        "explain",
        "--client",
        "10.1.2.3",
        "quay.io/a:1",
    ];
    let Command::Explain(explain) = Arguments::try_parse_from(arguments).unwrap().command else {
        panic!("another command");
    };
    let report = explain.run(&source(&rules)).unwrap();
    assert!(
        report.text.contains("allow     by rule build"),
        "{}",
        report.text
    );
    let nobody = [
        "portcullis",
        "explain",
        "--client",
        "somebody",
        "quay.io/a:1",
    ];
    assert!(Arguments::try_parse_from(nobody).is_err());
}

/// Policies are tried out where the secrets are not.
#[test]
fn explain_needs_no_secrets() {
    let text = "[upstreams.\"quay.io\"]\nusername = \"u\"\npassword = { file = \"/nowhere/secret\" }\n\
                share_with = \"everyone\"";
    let report = explain(text, "k8s.gcr.io/pause:3.9");
    assert!(
        report.text.contains("registry.k8s.io/pause:3.9"),
        "{}",
        report.text
    );
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("/nowhere/secret")),
        "{:?}",
        report.notes
    );
    assert!(
        explain(text, "quay.io/a")
            .text
            .contains("not known on this machine")
    );
}

#[test]
fn check_tells_faults_from_notes() {
    let report = check::run(&source("[fill]\nconnections = 0")).unwrap();
    assert_eq!(report.json["faults"][0]["line"], 2);
    assert_eq!(report.json["faults"][0]["key"], "fill.connections");
    assert!(
        report
            .text
            .contains("portcullis.toml: line 2, column 15: fill.connections: ")
    );
    assert_eq!(
        format!("{:?}", report.code),
        format!("{:?}", ExitCode::FAILURE)
    );

    let rewrite = "[[policy.rules]]\nid = \"a\"\nimages = [\"quay.io/a\"]\neffect = \"rewrite\"\n\
                   instead = \"nowhere.example/a\"\n[policy]\ndefault = \"allow\"";
    let report = check::run(&source(rewrite)).unwrap();
    assert!(
        report.notes[0].starts_with("rule a rewrites to nowhere.example, which is not served"),
        "{:?}",
        report.notes
    );

    let rule = "[[policy.rules]]\nid = \"a\"\nimages = [\"quay.io/a:1\"]\neffect = \"deny\"";
    let report = check::run(&source(rule)).unwrap();
    assert!(report.text.ends_with(": good\n"), "{}", report.text);
    assert!(
        report.notes[0].starts_with("rule a refuses quay.io/a:1 by tag"),
        "{:?}",
        report.notes
    );
    assert_eq!(
        format!("{:?}", report.code),
        format!("{:?}", ExitCode::SUCCESS)
    );
}
