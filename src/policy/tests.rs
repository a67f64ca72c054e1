use std::sync::Arc;

use super::*;

mod loading;
pub(super) mod properties;
mod rewrites;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const ALLOW_ALL: &str = "[[rules]]\nid = \"all\"\nimages = [\"**\"]\neffect = \"allow\"\n";

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
    engine.evaluate(&target(image), &Client::default())
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
    assert!(decision.if_led.is_empty());
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
            served_from: None,
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
    let trail = engine.explain(&target("nginx"), &Client::default());
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
        (decision.effect, !decision.if_led.is_empty())
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
        // Both rules except some tags, and tag 1 passes both.
        (
            rule("deny", r#""quay.io/a""#, r#""quay.io/a:1""#)
                + &rule("allow", r#""quay.io/**""#, r#""quay.io/a:2""#),
            (Effect::Deny, true),
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
fn an_audited_image_is_served_with_a_text() {
    let engine = engine(
        "[[rules]]\nid = \"soon\"\nimages = [\"k8s.gcr.io/**\"]\neffect = \"audit\"\n\
         reason = \"it will be refused in May\"\ninstead = \"registry.k8s.io/**\"\ncontact = \"platform@corp.example\"",
    );
    let decision = evaluate(&engine, "k8s.gcr.io/pause:3.9");
    assert_eq!(
        (decision.effect, decision.rule.as_deref()),
        (Effect::Audit, Some("soon"))
    );
    assert_eq!(
        decision.refusal.unwrap().message,
        "k8s.gcr.io/pause:3.9 is served, but audited: it will be refused in May; \
         use registry.k8s.io/pause:3.9 instead; contact platform@corp.example"
    );
    assert_eq!(
        evaluate(&engine, &format!("k8s.gcr.io/pause@{DIGEST}")).effect,
        Effect::Audit
    );
}

#[test]
fn only_pinned_references_where_a_digest_is_required() {
    let engine = engine(&format!(
        "[[rules]]\nid = \"pinned\"\nimages = [\"quay.io/**\"]\nexcept = [\"quay.io/free\"]\n\
         effect = \"allow\"\nrequire = \"digest\"\ncontact = \"sec@corp.example\"\n{ALLOW_ALL}"
    ));
    assert_eq!(
        refusal(&engine, "quay.io/a:1").message,
        "quay.io/a:1 is not allowed: rule pinned wants a digest; \
         pin it as quay.io/a:1@sha256:...; contact sec@corp.example"
    );
    for image in ["quay.io/free:1", "nginx", "quay.io/a?"] {
        assert_eq!(evaluate(&engine, image).effect, Effect::Allow, "{image}");
    }
    for image in [
        format!("quay.io/a@{DIGEST}"),
        format!("quay.io/a:1@{DIGEST}"),
    ] {
        assert_eq!(evaluate(&engine, &image).effect, Effect::Allow, "{image}");
    }
}

#[test]
fn a_rule_for_some_clients_is_no_rule_for_others() {
    let engine = engine(
        r#"
        [[rules]]
        id = "build"
        images = ["quay.io/**"]
        effect = "allow"
        clients = ["10.1.0.0/16", "mtls:CN=ci,O=corp"]
        [[rules]]
        id = "rest"
        images = ["**"]
        effect = "deny"
        "#,
    );
    for (client, rule) in [
        ("10.1.2.3", "build"),
        ("::ffff:10.1.2.3", "build"),
        ("10.2.0.1", "rest"),
        ("mtls:O=corp,CN=ci", "build"),
        ("mtls:CN=ci", "rest"),
    ] {
        let client = client.parse().unwrap();
        let decision = engine.evaluate(&target("quay.io/a:1"), &client);
        assert_eq!(decision.rule.as_deref(), Some(rule), "{client:?}");
    }
    assert_eq!(
        evaluate(&engine, "quay.io/a:1").rule.as_deref(),
        Some("rest"),
        "nobody known"
    );
    let trail = engine.explain(&target("quay.io/a:1"), &Client::default());
    assert_eq!(trail[0].why, "is about certain clients only");
}

#[test]
fn a_tag_may_have_to_be_of_some_age() {
    let engine = engine(
        "[[rules]]\nid = \"aged\"\nimages = [\"quay.io/**\"]\neffect = \"allow\"\nmin_age = \"3d\"\n\
         reason = \"others find out first\"\ncontact = \"sec@corp.example\"",
    );
    let obligation = evaluate(&engine, "quay.io/a:1").obligation.unwrap();
    let refusal = obligation.refusal("2026-11-05T12:30:00Z".parse().unwrap());
    assert_eq!(
        refusal.message,
        "quay.io/a:1 is not served yet: it will be from 2026-11-05T12:30:00Z on, \
         3d after it was first seen: others find out first; contact sec@corp.example"
    );
    assert_eq!(refusal.served_from.as_deref(), Some("2026-11-05T12:30:00Z"));
    assert!(evaluate(&engine, "quay.io/a?").obligation.is_none());
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

/// What an outline must not say in one breath is in clauses of its own.
#[test]
fn an_outline_has_a_clause_for_each_thing_that_is_said() {
    let engine = engine(
        r#"
        default = "deny"
        rules = [
            { id = "theirs", images = ["**"], effect = "deny", clients = ["10.0.0.0/8"] },
            { id = "moved", images = ["k8s.gcr.io/**", "a.io/b/**"], effect = "rewrite", instead = "registry.k8s.io/**" },
            { id = "pinned", images = ["quay.io/**"], except = ["quay.io/free"], effect = "allow", require = "digest" },
            { id = "young", images = ["ghcr.io/app:v*"], effect = "allow", min_age = "3d" },
        ]"#,
    );
    let outline = engine.outline();
    let clauses = outline.clauses.iter();
    let texts: Vec<_> = clauses
        .map(|clause| (&*clause.when, clause.unless.as_deref()))
        .collect();
    let free = Some("^quay[.]io/free[:@][^/]*$");
    assert_eq!(
        texts,
        [
            // The two keep as much of a name as they have segments left.
            ("^k8s[.]gcr[.]io/", None),
            ("^a[.]io/b/", None),
            ("^quay[.]io/[^@]*@", free),
            ("^quay[.]io/[^@]*:[^/@]*$", free),
            ("^ghcr[.]io/app:v[^/@]*$", None),
            // By digest, where only a tag is allowed.
            ("^ghcr[.]io/app@", None),
        ]
    );
    assert_eq!(
        outline.left_out,
        [
            LeftOut::Clients("theirs".into()),
            LeftOut::MinAge("young".into())
        ]
    );
    let Says::Refuse(words) = &outline.clauses[3].says else {
        panic!("{outline:?}");
    };
    assert!(words.pin);
    let open = Engine::compile(&Config::default()).unwrap().outline();
    assert_eq!((open.clauses.len(), open.default), (1, Says::Serve));
}

/// A whole policy fell silent: as a glob it matched nothing.
#[test]
fn twice_any_segments_is_any_segments() {
    let engine = engine(
        "rules = [{ id = \"all\", images = [\"**/**\"], effect = \"deny\" }]\ndefault = \"allow\"",
    );
    assert_eq!(evaluate(&engine, "quay.io/a:1").effect, Effect::Deny);
}

/// A digest that two rules leave open has a way, though neither names its tag.
#[test]
fn a_digest_between_two_exceptions_has_a_way() {
    let engine = engine(
        r#"
        [[rules]]
        id = "r0"
        images = ["**"]
        except = ["quay.io/a:2"]
        effect = "deny"
        [[rules]]
        id = "r1"
        images = ["**"]
        except = ["quay.io/*:1"]
        effect = "allow"
        "#,
    );
    assert_eq!(evaluate(&engine, "quay.io/a:2").effect, Effect::Allow);
    for tag in ["1", "3"] {
        let image = format!("quay.io/a:{tag}");
        assert_eq!(evaluate(&engine, &image).effect, Effect::Deny, "{tag}");
    }
    let by_digest = evaluate(&engine, &format!("quay.io/a@{DIGEST}"));
    assert_eq!(by_digest.effect, Effect::Deny);
    assert_eq!(
        by_digest.if_led,
        [target(&format!("quay.io/a@{DIGEST}"))],
        "the tag 2 may have led to it"
    );
    assert_eq!(evaluate(&engine, "quay.io/a?").effect, Effect::Allow);
}
