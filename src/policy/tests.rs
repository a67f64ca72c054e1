use std::net::Ipv4Addr;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn engine(policy: &str) -> Engine {
    let config: Config = toml::from_str(policy).unwrap();
    Engine::compile(&config).unwrap()
}

/// A trailing `?` asks for the repository alone, as a tag list does.
fn target(image: &str) -> Target {
    let parsed: Image = image.trim_end_matches('?').parse().unwrap();
    let mut target = Target::from(&parsed);
    target.reference = target.reference.filter(|_| !image.ends_with('?'));
    target
}

fn evaluate(engine: &Engine, image: &str) -> Decision {
    engine.evaluate(
        &target(image),
        &Client {
            address: Ipv4Addr::LOCALHOST.into(),
        },
    )
}

fn refusal(engine: &Engine, image: &str) -> Arc<Refusal> {
    evaluate(engine, image)
        .refusal
        .unwrap_or_else(|| panic!("{image} is allowed"))
}

#[test]
fn the_built_in_policy_refuses_the_frozen_registry_alone() {
    let engine = Engine::compile(&Config::default()).unwrap();
    for image in ["nginx", "registry.k8s.io/pause:3.9", "not.served.example/x"] {
        assert_eq!(evaluate(&engine, image).effect, Effect::Allow, "{image}");
    }
    let decision = evaluate(&engine, "K8S.gcr.io:443/pause:3.9");
    assert_eq!(decision.effect, Effect::Deny);
    assert_eq!(decision.rule.as_deref(), Some("frozen-k8s-gcr"));
    assert!(!decision.if_led_by_tag);
    assert_eq!(
        *decision.refusal.unwrap(),
        Refusal {
            message:
                "k8s.gcr.io/pause:3.9 is not allowed: k8s.gcr.io is frozen since 3 April 2023; \
                      use registry.k8s.io/pause:3.9 instead"
                    .to_owned(),
            rule: Some("frozen-k8s-gcr".to_owned()),
            reason: Some("k8s.gcr.io is frozen since 3 April 2023".to_owned()),
            instead: Some("registry.k8s.io/pause:3.9".to_owned()),
            contact: None,
        }
    );
    let by_digest = refusal(&engine, &format!("k8s.gcr.io/pause@{DIGEST}"));
    assert_eq!(
        by_digest.instead,
        Some(format!("registry.k8s.io/pause@{DIGEST}"))
    );
    assert_eq!(
        refusal(&engine, "k8s.gcr.io/pause?").instead.as_deref(),
        Some("registry.k8s.io/pause")
    );
}

#[test]
fn a_section_that_is_there_is_closed() {
    for policy in ["", "rules = []", "default = \"deny\""] {
        let decision = evaluate(&engine(policy), "nginx");
        assert_eq!((decision.effect, decision.rule), (Effect::Deny, None));
        let message = &decision.refusal.unwrap().message;
        assert_eq!(
            message,
            "docker.io/library/nginx:latest is not allowed: no rule allows it"
        );
    }
    assert_eq!(
        evaluate(&engine("default = \"allow\""), "nginx").effect,
        Effect::Allow
    );
}

#[test]
fn the_first_rule_that_matches_decides() {
    let engine = engine(
        r#"
        [[rules]]
        id = "no-latest"
        images = ["**:latest"]
        except = ["docker.io/**"]
        effect = "deny"
        contact = "platform@corp.example"
        [[rules]]
        id = "public"
        images = ["docker.io/**", "quay.io/**"]
        except = ["docker.io/evil/**"]
        effect = "allow"
        [[rules]]
        id = "never-reached"
        images = ["quay.io/**"]
        effect = "deny"
        "#,
    );
    for (image, effect, rule) in [
        ("nginx", Effect::Allow, Some("public")),
        ("quay.io/a:1", Effect::Allow, Some("public")),
        ("quay.io/a", Effect::Deny, Some("no-latest")),
        ("evil/x:1", Effect::Deny, None),
        ("ghcr.io/a:1", Effect::Deny, None),
        ("quay.io/a?", Effect::Allow, Some("public")),
    ] {
        let decision = evaluate(&engine, image);
        assert_eq!(
            (decision.effect, decision.rule.as_deref()),
            (effect, rule),
            "{image}"
        );
        assert_eq!(decision.refusal.is_some(), effect == Effect::Deny);
    }
    assert_eq!(
        refusal(&engine, "quay.io/a").message,
        "quay.io/a:latest is not allowed: rule no-latest refuses it; contact platform@corp.example"
    );
    let trail = engine.explain(&target("nginx"));
    let trail: Vec<_> = trail
        .iter()
        .map(|step| (&*step.rule, step.decides, &*step.why))
        .collect();
    assert_eq!(
        trail,
        [
            ("no-latest", false, "excepts docker.io/**"),
            ("public", true, "docker.io/** matches"),
        ]
    );
}

#[test]
fn by_digest_rules_on_tags_do_not_decide() {
    let by_digest = format!("quay.io/a@{DIGEST}");
    let decide = |policy: &str| {
        let decision = evaluate(&engine(policy), &by_digest);
        (decision.effect, decision.if_led_by_tag)
    };
    let rule = |effect: &str, images: &str, except: &str| {
        format!(
            "[[rules]]\nid = \"{effect}{}\"\nimages = [{images}]\nexcept = [{except}]\neffect = \"{effect}\"\n",
            images.len()
        )
    };
    let allow_all = rule("allow", r#""**""#, "");
    for (policy, expected) in [
        (rule("allow", r#""quay.io/a:1""#, ""), (Effect::Deny, true)),
        (rule("allow", r#""quay.io/b:1""#, ""), (Effect::Deny, false)),
        (
            rule("allow", r#""quay.io/a:1""#, r#""quay.io/a""#),
            (Effect::Deny, false),
        ),
        (rule("allow", r#""quay.io/a""#, ""), (Effect::Allow, false)),
        // A deny on a tag cannot stop somebody who pins the digest.
        (
            rule("deny", r#""quay.io/a:1""#, "") + &allow_all,
            (Effect::Allow, false),
        ),
        (
            rule("allow", r#""quay.io/**""#, r#""quay.io/a:1""#),
            (Effect::Allow, false),
        ),
        // What a refused repository excepts by tag, its tags may lead to.
        (
            rule("deny", r#""quay.io/a""#, r#""quay.io/a:1""#) + &allow_all,
            (Effect::Deny, true),
        ),
        (
            rule("deny", r#""quay.io/a""#, r#""quay.io/a:1""#),
            (Effect::Deny, false),
        ),
        // A surer refusal in front.
        (
            rule("deny", r#""quay.io/**""#, "") + &rule("allow", r#""quay.io/a:1""#, ""),
            (Effect::Deny, false),
        ),
        (
            rule("allow", r#""quay.io/a:1""#, "") + &rule("deny", r#""quay.io/**""#, ""),
            (Effect::Deny, true),
        ),
        // The digest itself, and one that may be its parent.
        (
            rule("allow", &format!("\"{by_digest}\""), ""),
            (Effect::Allow, false),
        ),
        (
            rule(
                "allow",
                &format!("\"{}\"", by_digest.replace(":e", ":f")),
                "",
            ),
            (Effect::Deny, true),
        ),
    ] {
        assert_eq!(decide(&policy), expected, "{policy}");
    }
    let message = &refusal(&engine(&rule("allow", r#""quay.io/a:1""#, "")), &by_digest).message;
    assert!(
        message.contains("none of them led to this digest"),
        "{message}"
    );
}

#[test]
fn tags_are_listed_where_some_may_be_pulled() {
    let engine = engine(
        "[[rules]]\nid = \"one\"\nimages = [\"quay.io/a:1\"]\neffect = \"allow\"\n\
         [[rules]]\nid = \"rest\"\nimages = [\"quay.io/**\"]\neffect = \"deny\"\n",
    );
    assert_eq!(evaluate(&engine, "quay.io/a?").effect, Effect::Allow);
    assert_eq!(evaluate(&engine, "quay.io/b?").effect, Effect::Deny);
}

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
fn what_is_not_enforced_is_refused_with_its_place() {
    let rule = "[[rules]]\nid = \"a\"\nimages = [\"**\"]\n";
    for (rest, message, place) in [
        (
            "effect = \"audit\"",
            "\"audit\" is not supported in this version",
            "line 4, column 10",
        ),
        (
            "effect = \"rewrite\"",
            "not supported in this version",
            "line 4, column 10",
        ),
        (
            "effect = \"block\"",
            "\"block\" is no effect: use \"allow\" or \"deny\"",
            "line 4, column 10",
        ),
        (
            "effect = \"deny\"\nclients = [\"10.0.0.0/8\"]",
            "not supported in this version",
            "line 5, column",
        ),
        (
            "effect = \"deny\"\nrequire = \"digest\"",
            "not supported in this version",
            "line 5, column",
        ),
        (
            "effect = \"deny\"\nmin_age = \"3d\"",
            "not supported in this version",
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
}

#[test]
fn long_refusals_keep_what_matters() {
    let policy = |reason: &str| {
        engine(&format!(
            "[[rules]]\nid = \"x\"\nimages = [\"k8s.gcr.io/**\"]\neffect = \"deny\"\n\
             reason = \"{reason}\"\ninstead = \"registry.k8s.io/**\"\ncontact = \"platform@corp.example\""
        ))
    };
    let image = format!("k8s.gcr.io/{}:v1", "a".repeat(150));
    let message = &refusal(&policy(&"because ".repeat(20)), &image).message;
    assert_eq!(message.chars().count(), LONGEST);
    assert!(
        message.starts_with("k8s.gcr.io/aaa") && message.contains(": because because"),
        "{message}"
    );
    assert!(
        message.contains("; use registry.k8s.io/aaa") && message.ends_with(" instead"),
        "{message}"
    );
    // Digits of digests go first, then the contact.
    let image = format!("k8s.gcr.io/pause@{DIGEST}");
    let by_digest = refusal(&policy("k8s.gcr.io is frozen since 3 April 2023"), &image);
    assert_eq!(
        by_digest.message,
        "k8s.gcr.io/pause@sha256:e3b0c44298fc is not allowed: k8s.gcr.io is frozen since 3 April 2023; \
         use registry.k8s.io/pause@sha256:e3b0c44298fc instead; contact platform@corp.example"
    );
    assert_eq!(
        by_digest.instead,
        Some(format!("registry.k8s.io/pause@{DIGEST}"))
    );
    let message = &refusal(&policy(&"r".repeat(100)), "k8s.gcr.io/pause:3.9").message;
    assert!(
        message.ends_with("; use registry.k8s.io/pause:3.9 instead"),
        "{message}"
    );
    let message = &refusal(&policy("gone"), "k8s.gcr.io/pause:3.9").message;
    assert!(
        message.ends_with("; contact platform@corp.example"),
        "{message}"
    );
}

const LONGEST: usize = refusal::LONGEST_MESSAGE;

const PATTERNS: &[&str] = &[
    "**",
    "quay.io/**",
    "quay.io/a",
    "quay.io/a:1",
    "quay.io/a:2",
    "quay.io/*:1",
    "**/b",
    "ghcr.io/**",
    "**:2",
];

fn rules() -> impl Strategy<Value = Vec<RuleConfig>> {
    rules_of(|| select(PATTERNS).prop_map(str::to_owned))
}

fn rules_of<S>(pattern: impl Fn() -> S) -> impl Strategy<Value = Vec<RuleConfig>>
where
    S: Strategy<Value = String>,
{
    let rule = (
        prop::collection::vec(pattern(), 1..3),
        prop::collection::vec(pattern(), 0..2),
        select(&[Effect::Allow, Effect::Deny]),
    );
    prop::collection::vec(rule, 0..5).prop_map(|rules| {
        let rule = |(index, (images, except, effect))| RuleConfig {
            id: format!("r{index}"),
            images,
            except,
            effect,
            reason: None,
            instead: None,
            contact: None,
            later: (),
        };
        rules.into_iter().enumerate().map(rule).collect()
    })
}

/// A pattern with every kind of wildcard in every place, over few enough names to match often.
fn any_pattern() -> impl Strategy<Value = String> {
    let registry = select(&["a.io", "b.io", "*.io", "*", "a.*", "x.a.io", "*a.io"]);
    let segment = || select(&["a", "b", "ab", "*", "a*", "*b", "**"]);
    let path = prop::collection::vec(segment(), 1..4);
    let version = select(&["", "", "", ":1", ":*", ":1*", "@*"]);
    let named = (registry, path, version)
        .prop_map(|(registry, path, version)| format!("{registry}/{}{version}", path.join("/")));
    prop_oneof![
        8 => named,
        1 => select(&["**", "**:1", "**/a", "**/a/**", "**/*b:1"]).prop_map(str::to_owned),
    ]
}

fn any_image() -> impl Strategy<Value = String> {
    let registry = select(&["a.io", "b.io", "x.a.io", "c.com"]);
    let path = prop::collection::vec(select(&["a", "b", "ab", "ba", "c"]), 1..4);
    let version = select(&[":1", ":12", ":2", "?", "@"]);
    (registry, path, version).prop_map(|(registry, path, version)| {
        let version = if version == "@" {
            format!("@{DIGEST}")
        } else {
            version.to_owned()
        };
        format!("{registry}/{}{version}", path.join("/"))
    })
}

fn any_rules() -> impl Strategy<Value = Vec<RuleConfig>> {
    rules_of(any_pattern)
}

proptest! {
    /// Looking rules up is the same as reading them from top to bottom.
    #[test]
    fn the_index_hides_nothing(rules in any_rules(), images in prop::collection::vec(any_image(), 1..20), open: bool) {
        let default = if open { Effect::Allow } else { Effect::Deny };
        let config = Config { default, rules };
        let indexed = Engine::compile(&config).unwrap();
        let mut naive = Engine::compile(&config).unwrap();
        naive.images = Index::flat(naive.rules.iter().map(|rule| rule.images.as_slice()));
        naive.except = Index::flat(naive.rules.iter().map(|rule| rule.except.as_slice()));
        for image in images {
            let (one, other) = (evaluate(&indexed, &image), evaluate(&naive, &image));
            prop_assert_eq!(format!("{one:?}"), format!("{other:?}"), "{}", image);
        }
    }

    /// With a tag nothing is unsure, so a plain loop is the whole truth.
    #[test]
    fn the_first_match_wins(rules in rules(), repository in select(&["quay.io/a", "quay.io/b", "ghcr.io/b", "x.example/c"]), tag in select(&["1", "2", "3"])) {
        let config = Config { default: Effect::Deny, rules };
        let engine = Engine::compile(&config).unwrap();
        let reference = tag.parse().unwrap();
        let matches = |patterns: &[String]| patterns.iter().any(|pattern| {
            Pattern::parse(pattern).unwrap().hit(repository, Some(&reference)) == Hit::Yes
        });
        let expected = config.rules.iter().find(|rule| matches(&rule.images) && !matches(&rule.except));
        let decision = evaluate(&engine, &format!("{repository}:{tag}"));
        prop_assert_eq!(decision.effect, expected.map_or(Effect::Deny, |rule| rule.effect));
        prop_assert_eq!(decision.rule.as_deref(), expected.map(|rule| rule.id.as_str()));
        prop_assert!(!decision.if_led_by_tag);
        let trail = engine.explain(&target(&format!("{repository}:{tag}")));
        let decider = trail.iter().find(|step| step.decides).map(|step| &*step.rule);
        prop_assert_eq!(decider, decision.rule.as_deref());
    }

    /// Whatever some tag may have, its digest can have: else the pull would die half-way.
    #[test]
    fn an_allowed_tag_leaves_its_digest_a_way(rules in rules(), repository in select(&["quay.io/a", "quay.io/b", "ghcr.io/b"]), open: bool) {
        let default = if open { Effect::Allow } else { Effect::Deny };
        let engine = Engine::compile(&Config { default, rules }).unwrap();
        let allowed = ["1", "2", "3"]
            .iter()
            .any(|tag| evaluate(&engine, &format!("{repository}:{tag}")).effect == Effect::Allow);
        let by_digest = evaluate(&engine, &format!("{repository}@{DIGEST}"));
        if allowed {
            prop_assert!(by_digest.effect == Effect::Allow || by_digest.if_led_by_tag);
            prop_assert_eq!(evaluate(&engine, &format!("{repository}?")).effect, Effect::Allow);
        }
    }

    #[test]
    fn without_rules_nothing_passes(repository in "[a-z]{1,6}\\.[a-z]{2,3}/[a-z0-9]{1,9}", tag in "[a-z0-9]{1,9}") {
        let engine = engine("");
        for image in [format!("{repository}:{tag}"), format!("{repository}?"), format!("{repository}@{DIGEST}")] {
            prop_assert_eq!(evaluate(&engine, &image).effect, Effect::Deny);
        }
    }

    /// Any reason that loads gives a line that can be a reason phrase.
    #[test]
    fn a_refusal_is_one_short_line(reason: String, contact: String, name in "[a-z]{1,230}", tag in "[a-z]{1,128}") {
        let mut config = Config::default();
        config.rules[0].reason = Some(reason);
        config.rules[0].contact = Some(contact);
        let Ok(engine) = Engine::compile(&config) else { return Ok(()) };
        let message = &refusal(&engine, &format!("k8s.gcr.io/{name}:{tag}")).message;
        prop_assert!(message.chars().count() <= LONGEST);
        prop_assert!(!message.contains(char::is_control));
        prop_assert!(message.starts_with("k8s.gcr.io/"));
    }
}
