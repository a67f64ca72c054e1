//! What holds for every policy, every image and every spelling.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::oci::{HostMap, Route};
use crate::policy::pattern::Versions;

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
    let parts = (
        prop::collection::vec(pattern(), 1..3),
        prop::collection::vec(pattern(), 0..2),
        select(&[Effect::Allow, Effect::Audit, Effect::Deny]),
    );
    prop::collection::vec(parts, 0..5).prop_map(|rules| {
        let rule = |(index, (images, except, effect)): (usize, (Vec<_>, Vec<_>, _))| RuleConfig {
            id: format!("r{index}"),
            ..self::rule(&images, &except, effect)
        };
        rules.into_iter().enumerate().map(rule).collect()
    })
}

/// A pattern with every kind of wildcard in every place, over few enough names to match often.
fn any_pattern() -> impl Strategy<Value = String> {
    let registry = select(&["a.io", "b.io", "*.io", "*", "a.*", "x.a.io", "*a.io"]);
    let segment = || select(&["a", "b", "ab", "*", "a*", "*b", "**"]);
    let path = prop::collection::vec(segment(), 1..4);
    let version = select(&["", "", "", ":1", ":*", ":1*", "@*", "@"]);
    let named = (registry, path, version).prop_map(|(registry, path, version)| {
        let digest = if version == "@" { DIGEST } else { "" };
        format!("{registry}/{}{version}{digest}", path.join("/"))
    });
    prop_oneof![
        8 => named,
        1 => select(&["**", "**/**", "**:1", "**/a", "**/a/**", "**/*b:1", "a.io/**/**"]).prop_map(str::to_owned),
    ]
}

pub(in crate::policy) fn any_image() -> impl Strategy<Value = String> {
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

/// An image in canonical form, sometimes of a digest that patterns name.
fn spelled_out() -> impl Strategy<Value = String> {
    let other = DIGEST.replace("sha256:e3", "sha256:00");
    (any_image(), any::<bool>()).prop_map(move |(image, swap)| {
        if swap {
            image.replace(DIGEST, &other)
        } else {
            image
        }
    })
}

/// Rules with every effect and condition. Not every list of them can be loaded.
pub(in crate::policy) fn any_rules() -> impl Strategy<Value = Vec<RuleConfig>> {
    let plain = rules_of(any_pattern).prop_map(|rules| rules.into_iter().next());
    let names = select(&[
        "a.io/**",
        "b.io/**",
        "b.io/a",
        "*.io/a",
        "**/b",
        "x.a.io/*",
        "a.io/b/**",
    ]);
    let places = select(&["a.io/**", "b.io/**", "c.com/x/**", "c.com/a", "b.io/a:1"]);
    let rewrite = (names, places).prop_map(|(images, instead)| {
        Some(RuleConfig {
            instead: Some(instead.to_owned()),
            ..rule(&[images.to_owned()], &[], Effect::Rewrite)
        })
    });
    let one = prop_oneof![3 => plain, 1 => rewrite];
    let conditions = (
        any::<bool>(),
        select(&[None, None, None, Some("10.0.0.0/8"), Some("mtls:CN=a")]),
    );
    prop::collection::vec((one, conditions), 0..7).prop_map(|rules| {
        let rules =
            rules
                .into_iter()
                .enumerate()
                .filter_map(|(index, (rule, (pinned, clients)))| {
                    let mut rule = rule?;
                    rule.id = format!("r{index}");
                    rule.clients = clients.map(|clients| vec![clients.to_owned()]);
                    let tags = rule
                        .images
                        .iter()
                        .any(|image| Pattern::parse(image).unwrap().has_tag());
                    if pinned && !tags && matches!(rule.effect, Effect::Allow | Effect::Audit) {
                        rule.require = Some(Require::Digest);
                    }
                    Some(rule)
                });
        rules.collect()
    })
}

pub(in crate::policy) fn any_client() -> impl Strategy<Value = Client> {
    select(&["10.1.2.3", "192.0.2.1", "mtls:CN=a", "mtls:CN=b"])
        .prop_map(|client| client.parse().unwrap())
}

fn rule(images: &[String], except: &[String], effect: Effect) -> RuleConfig {
    RuleConfig {
        id: "r".to_owned(),
        images: images.to_vec(),
        except: except.to_vec(),
        effect,
        reason: None,
        instead: None,
        contact: None,
        clients: None,
        require: None,
        min_age: None,
    }
}

/// What a decision comes to.
fn outcome(decision: &Decision) -> (Effect, Option<&str>, String) {
    (
        decision.effect,
        decision.rule.as_deref(),
        decision.target.to_string(),
    )
}

/// A host as somebody may write it who hopes that nobody knows it so.
fn spelled(host: &'static str) -> impl Strategy<Value = String> {
    let cases = prop::collection::vec(any::<bool>(), host.len());
    (cases, select(&["", "."]), select(&["", ":443", ":0443"])).prop_map(
        move |(cases, dot, port)| {
            let case = |(c, upper): (char, bool)| if upper { c.to_ascii_uppercase() } else { c };
            let host: String = host.chars().zip(cases).map(case).collect();
            format!("{host}{dot}{port}")
        },
    )
}

/// Any rules take long to compile in a test's build.
pub(in crate::policy) fn fewer() -> ProptestConfig {
    let ProptestConfig { cases, .. } = ProptestConfig::default();
    ProptestConfig::with_cases(cases / 4)
}

proptest! {
    #![proptest_config(fewer())]

    /// Looking rules up is the same as reading them from top to bottom.
    #[test]
    fn the_index_hides_nothing(rules in any_rules(), images in prop::collection::vec(any_image(), 1..20), client in any_client(), open: bool) {
        let default = if open { Effect::Allow } else { Effect::Deny };
        let config = Config { default, rules };
        let (Ok(indexed), Ok(mut naive)) = (Engine::compile(&config), Engine::compile(&config)) else { return Ok(()) };
        naive.images = Index::flat(naive.rules.iter().map(|rule| rule.images.as_slice()));
        naive.except = Index::flat(naive.rules.iter().map(|rule| rule.except.as_slice()));
        for image in images {
            let (one, other) = (indexed.evaluate(&target(&image), &client), naive.evaluate(&target(&image), &client));
            prop_assert_eq!(format!("{one:?}"), format!("{other:?}"), "{}", image);
        }
    }

    #[test]
    fn every_rewrite_ends(rules in any_rules(), image in any_image(), client in any_client()) {
        let Ok(engine) = Engine::compile(&Config { default: Effect::Allow, rules }) else { return Ok(()) };
        let decision = engine.evaluate(&target(&image), &client);
        prop_assert!(decision.effect != Effect::Rewrite);
        prop_assert!(decision.rewrites.len() <= 2);
        let last = decision.rewrites.last().map_or(target(&image), |rewrite| rewrite.to.clone());
        if decision.effect != Effect::Allow || target(&image).reference.is_some() {
            prop_assert_eq!(decision.target, last);
        }
        prop_assert_eq!(decision.refusal.is_some(), decision.effect != Effect::Allow);
    }

    #[test]
    fn a_rule_below_the_one_that_decides_changes_nothing(rules in any_rules(), more in any_rules(), image in any_image(), client in any_client()) {
        let asked = target(&image);
        prop_assume!(asked.reference.is_some());
        let Ok(engine) = Engine::compile(&Config { default: Effect::Deny, rules: rules.clone() }) else { return Ok(()) };
        let before = engine.evaluate(&asked, &client);
        prop_assume!(before.rule.is_some());
        let more = more.into_iter().map(|rule| RuleConfig { id: format!("more-{}", rule.id), ..rule });
        let rules = rules.into_iter().chain(more).collect();
        let Ok(engine) = Engine::compile(&Config { default: Effect::Allow, rules }) else { return Ok(()) };
        let after = engine.evaluate(&asked, &client);
        prop_assert_eq!(outcome(&after), outcome(&before));
    }

    /// Whatever a tag answers with must be found by its digest, in the place where the tag led.
    #[test]
    fn a_served_tag_leaves_its_digest_a_way(rules in any_rules(), image in any_image(), client in any_client(), open: bool) {
        let default = if open { Effect::Allow } else { Effect::Deny };
        // What is said of digests alone is meant so.
        let rules = rules.into_iter().map(|mut rule| {
            for pattern in rule.images.iter_mut().chain(&mut rule.except) {
                *pattern = pattern.replace("@*", "").replace(&format!("@{DIGEST}"), "");
            }
            rule
        });
        let Ok(engine) = Engine::compile(&Config { default, rules: rules.collect() }) else { return Ok(()) };
        let asked = target(&image.replace('?', ":1").replace(&format!("@{DIGEST}"), ":2"));
        let by_tag = engine.evaluate(&asked, &client);
        // A second rewrite behind a rule on tags is not looked for.
        prop_assume!(by_tag.effect.serves() && by_tag.rewrites.len() < 2);
        let reference = Some(Reference::Digest(DIGEST.parse().unwrap()));
        let by_digest = engine.evaluate(&Target { reference, ..asked }, &client);
        let there = &by_tag.target.repository;
        prop_assert!(
            by_digest.effect.serves() && by_digest.target.repository == *there
                || by_digest.if_led.iter().any(|way| way.repository == *there),
            "{:?}", by_digest
        );
    }

}

proptest! {
    #[test]
    fn no_spelling_of_a_denied_host_is_allowed(host in spelled("k8s.gcr.io"), ns in spelled("k8s.gcr.io"), upper: bool, form in 0..6, encode: bool) {
        let hosts = HostMap {
            default_registry: Registry::docker_hub(),
            hosts: [("mirror.corp".to_owned(), "k8s.gcr.io".parse().unwrap())].into(),
            own: None,
        };
        let encoded = |host: &str| if encode { host.replace(':', "%3A") } else { host.to_owned() };
        let (host, ns) = (encoded(&host), encoded(&ns));
        let (uri, asked) = match form {
            0 => (format!("/v2/{host}/pause/manifests/3.9"), None),
            1 => (format!("/v2/pause/manifests/3.9?ns={ns}"), None),
            2 => (format!("/v2/{host}/pause/manifests/3.9?ns={ns}"), None),
            3 => (format!("/v2/pause/manifests/{DIGEST}?x=1&ns={ns}"), None),
            4 => (format!("/v2/{host}/pause/blobs/{DIGEST}"), None),
            _ => ("/v2/pause/tags/list".to_owned(), Some(if upper { "MIRROR.corp" } else { "mirror.corp:5000" })),
        };
        let engine = Engine::compile(&Config::default()).unwrap();
        let routed = Route::parse(&http::Method::GET, &uri.parse().unwrap(), asked, &hosts);
        let (repository, reference) = match routed.map(|routed| routed.route) {
            Ok(Route::Manifest { repository, reference }) => (repository, Some(reference)),
            Ok(Route::Blob { repository, digest }) => (repository, Some(Reference::Digest(digest))),
            Ok(Route::Tags { repository, .. }) => (repository, None),
            // What cannot be read is not served either.
            other => { prop_assert!(other.is_err()); return Ok(()) }
        };
        let decision = engine.evaluate(&Target { repository, reference }, &Client::default());
        prop_assert_eq!(decision.effect, Effect::Deny, "{}", uri);
        prop_assert!(decision.if_led.is_empty());
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
        prop_assert!(decision.if_led.is_empty());
        let trail = engine.explain(&target(&format!("{repository}:{tag}")), &Client::default());
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
            .any(|tag| evaluate(&engine, &format!("{repository}:{tag}")).effect.serves());
        let by_digest = evaluate(&engine, &format!("{repository}@{DIGEST}"));
        if allowed {
            prop_assert!(by_digest.effect.serves() || !by_digest.if_led.is_empty());
            let list = evaluate(&engine, &format!("{repository}?"));
            prop_assert!(list.effect.serves());
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

    /// What others decide by is what we decide by.
    #[test]
    fn an_expression_is_its_pattern(pattern in any_pattern(), image in spelled_out(), port: bool) {
        let image = if port { image.replacen("a.io/", "a.io:5000/", 1) } else { image };
        let image = image.replace('?', ":latest");
        let pattern = Pattern::parse(&pattern).unwrap();
        let Target { repository, reference } = target(&image);
        let hit = pattern.hit(&repository.to_string(), reference.as_ref());
        let by_tag = matches!(reference, Some(Reference::Tag(_)));
        for (versions, expected) in [
            (Versions::Sure, hit == Hit::Yes),
            (Versions::Tags, hit == Hit::Yes && by_tag),
            (Versions::Digests, hit == Hit::Yes && !by_tag),
        ] {
            let expression = pattern.regex(versions);
            let matches = expression.as_ref().is_some_and(|expression| {
                assert!(!expression.contains('\\'));
                regex::Regex::new(&format!("^{expression}")).unwrap().is_match(&image)
            });
            prop_assert_eq!(matches, expected, "{} {:?} {:?}: {}", pattern, versions, expression, image);
        }
        let unsure = pattern.regex(Versions::Unsure);
        let may = unsure.is_some_and(|expression| {
            regex::Regex::new(&format!("^{expression}")).unwrap().is_match(&image)
        });
        // A digest that surely matches may be among those that may.
        prop_assert!(may == (hit == Hit::Unsure) || may && hit == Hit::Yes, "{}: {}", pattern, image);
    }
}
