//! What a policy's file may say.

use super::*;

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let config: Config = toml::from_str(
        r#"
        [[rules]]
        id = "a"
        images = ["quay.io/**", "nginx", "quay.io/{a}"]
        except = ["*"]
        effect = "deny"
        instead = "registry.k8s.io/*"
        reason = "two\nlines"
        [[rules]]
        id = "a"
        images = []
        effect = "allow"
        [[rules]]
        id = "not an id"
        images = ["**"]
        effect = "allow"
        contact = ""
        "#,
    )
    .unwrap();
    let problems = Engine::compile(&config).unwrap_err();
    let keys: Vec<_> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "policy.rules.0.reason",
            "policy.rules.0.images.1",
            "policy.rules.0.images.2",
            "policy.rules.0.except.0",
            "policy.rules.0.instead",
            "policy.rules.1.id",
            "policy.rules.1.images",
            "policy.rules.2.id",
            "policy.rules.2.contact",
        ]
    );
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    let rule = "[[rules]]\nid = \"a\"\nimages = [\"**\"]\n";
    for (rest, message, place) in [
        (
            "effect = \"block\"",
            "\"block\" is no effect: use \"allow\", \"audit\", \"deny\" or \"rewrite\"",
            "line 4, column 10",
        ),
        (
            "effect = \"allow\"\nrequire = \"signature\"",
            "unknown variant `signature`, expected `digest`",
            "line 5, column",
        ),
        (
            "effect = \"allow\"\nmin_age = \"soon\"",
            "",
            "line 5, column",
        ),
        (
            "effect = \"deny\"\nimage = \"x\"",
            "unknown field `image`",
            "line 5, column 1",
        ),
        ("", "missing field `effect`", "line 1, column 1"),
    ] {
        let error = toml::from_str::<Config>(&format!("{rule}{rest}"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(message) && error.contains(place),
            "{rest}: {error}"
        );
    }
    for default in ["audit", "rewrite"] {
        let error = toml::from_str::<Config>(&format!("default = \"{default}\"")).unwrap_err();
        assert!(error.to_string().contains("write a last rule"), "{error}");
    }
}

/// The problems of one rule with these lines, and a second that allows everything.
fn problems(lines: &str) -> Vec<String> {
    let rule = format!("[[rules]]\nid = \"a\"\n{lines}\n");
    let rest = "[[rules]]\nid = \"rest\"\nimages = [\"**\"]\neffect = \"allow\"\n";
    let config: Config = toml::from_str(&(rule + rest)).unwrap();
    let problems = Engine::compile(&config).err().unwrap_or_default();
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (lines, key, why) in [
        (
            "images = [\"quay.io/**\"]\neffect = \"rewrite\"",
            "instead",
            "must say where a rewrite sends the pull",
        ),
        (
            "images = [\"quay.io/a:1\"]\neffect = \"rewrite\"\ninstead = \"ghcr.io/a\"",
            "images",
            "a rewrite is about whole repositories",
        ),
        (
            "images = [\"quay.io/**\"]\nexcept = [\"**@*\"]\neffect = \"rewrite\"\ninstead = \"ghcr.io/**\"",
            "except",
            "a rewrite is about whole repositories",
        ),
        (
            "images = [\"**\"]\neffect = \"deny\"\nrequire = \"digest\"",
            "require",
            "goes with \"allow\" and \"audit\"",
        ),
        (
            "images = [\"**\"]\neffect = \"deny\"\nmin_age = \"3d\"",
            "min_age",
            "goes with \"allow\" and \"audit\"",
        ),
        (
            "images = [\"**\"]\neffect = \"allow\"\nmin_age = \"3d\"\nrequire = \"digest\"",
            "min_age",
            "judges tags",
        ),
        (
            "images = [\"**:1\"]\neffect = \"allow\"\nrequire = \"digest\"",
            "images",
            "no tag is ever served",
        ),
        (
            "images = [\"**\"]\neffect = \"allow\"\nclients = []",
            "clients",
            "leave the key out",
        ),
        (
            "images = [\"**\"]\neffect = \"allow\"\nclients = [\"10.0.0.0/8\", \"nodes\"]",
            "clients.1",
            "neither a network",
        ),
    ] {
        let problems = problems(lines);
        assert_eq!(problems.len(), 1, "{lines}: {problems:?}");
        let start = format!("policy.rules.0.{key}: ");
        assert!(
            problems[0].starts_with(&start) && problems[0].contains(why),
            "{lines}: {problems:?}"
        );
    }
}
