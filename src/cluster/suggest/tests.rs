use super::*;
use crate::policy::Effect;

fn recorded(images: &[&str]) -> Recorded {
    let line = |image: &&str| {
        format!(
            "{{\"image\":\"{image}\",\"count\":3,\"first\":1760000000,\"last\":1760090000,\"clients\":[\
             {{\"address\":\"10.0.0.1\",\"count\":2,\"first\":1760000000,\"last\":1760000000,\"verdict\":{{\"was\":\"allowed\"}}}},\
             {{\"address\":\"10.0.0.2\",\"count\":1,\"first\":1760000000,\"last\":1760090000,\"verdict\":{{\"was\":\"refused\"}}}}]}}\n"
        )
    };
    let recorded = Recorded::read(&images.iter().map(line).collect::<String>());
    assert_eq!(recorded.pulls.len(), images.len());
    recorded
}

/// The TOML, the JSON and the notes.
fn suggest(policy: &str, images: &[&str]) -> (String, Value, Vec<String>) {
    let present: Config = toml::from_str(policy).unwrap();
    let engine = Engine::compile(&present).unwrap();
    let recorded = recorded(images);
    let suggested = Suggested::new(&recorded, &present, &engine, true);
    (suggested.toml(), suggested.json(), suggested.notes)
}

#[test]
fn every_image_says_why_it_is_there() {
    const PULLED: &[&str] = &["nginx:1", "ghcr.io/a/x:1", "ghcr.io/a/y:1", "ghcr.io/a/z:1"];
    let (text, json, _) = suggest("default = \"allow\"", PULLED);
    assert_eq!(
        text,
        r#"# Proposed from 8 pulls of 4 images from 2025-10-09 to 2025-10-09.
# A repository stands for all its tags and digests. What is not here is refused.

[policy]
default = "deny"

[[policy.rules]]
id = "pulled-docker.io"
images = [
    "docker.io/library/nginx",  # 2 pulls by 1 client, last 2025-10-09
]
effect = "allow"

[[policy.rules]]
id = "pulled-ghcr.io"
images = [
    "ghcr.io/a/**",  # 6 pulls by 1 client, last 2025-10-09; wider than what was pulled: x, y, z
]
effect = "allow"
"#
    );
    assert_eq!(json["images"][1]["wider"], true);
    assert_eq!(
        json["images"][1]["repositories"],
        serde_json::json!(["ghcr.io/a/x", "ghcr.io/a/y", "ghcr.io/a/z"])
    );
}

#[derive(serde::Deserialize)]
struct File {
    policy: Config,
}

#[test]
fn a_rule_is_read_as_it_was_written() {
    const POLICY: &str = r#"
        [[rules]]
        id = "odd"
        images = ["quay.io/bad/**", "**:latest"]
        except = ["quay.io/bad/good"]
        effect = "deny"
        reason = "a \"quote\", a \\ and = ] # more"
        instead = "quay.io/good/**"
        contact = "'us'"
        clients = ["mtls:CN=a\\,b", "10.0.0.0/8"]
        [[rules]]
        id = "settled"
        images = ["quay.io/**"]
        effect = "allow"
        min_age = "36h"
        [[rules]]
        id = "pinned"
        images = ["ghcr.io/**"]
        effect = "audit"
        require = "digest"
        "#;
    const DIGEST: &str =
        "ghcr.io/a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let (text, _, _) = suggest(POLICY, &["quay.io/a:1", DIGEST]);
    let proposed = toml::from_str::<File>(&text).unwrap().policy;
    let read = |policy: &str| toml::from_str::<Config>(policy).unwrap();
    let mut present = read(POLICY);
    present.rules[1].images = vec!["quay.io/a".to_owned()];
    present.rules[2].images = vec!["ghcr.io/a".to_owned()];
    for (at, rest) in [(2, "settled-rest"), (4, "pinned-rest")] {
        let images = read(POLICY).rules[at / 2].images.clone();
        let rule = RuleConfig {
            id: rest.to_owned(),
            images,
            effect: Effect::Deny,
            require: None,
            min_age: None,
            ..present.rules[at - 1].clone()
        };
        present.rules.insert(at, rule);
    }
    assert_eq!(
        format!("{:?}", proposed.rules),
        format!("{:?}", present.rules),
        "{text}"
    );
    Engine::compile(&proposed).unwrap();
}

#[test]
fn nothing_pulled_is_nothing_allowed() {
    let (text, json, _) = suggest("default = \"allow\"", &[]);
    assert!(text.ends_with("\n[policy]\ndefault = \"deny\"\n"), "{text}");
    assert_eq!(json["images"], serde_json::json!([]));
}

#[test]
fn what_is_refused_today_is_named() {
    const POLICY: &str = r#"
        default = "allow"
        rules = [{ id = "bad", images = ["quay.io/**"], effect = "deny" }]"#;
    let (_, _, notes) = suggest(POLICY, &["quay.io/a:1", "nginx:1"]);
    assert_eq!(
        notes,
        ["quay.io/a:1 was served, but a rule of today refuses it, and goes on to"]
    );
}
