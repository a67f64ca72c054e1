//! Rewrites: where they lead, and what is judged there.

use super::*;

/// An engine with rewrites `(images, instead)` in front of the other rules.
fn rewriting(rewrites: &[(&str, &str)], rest: &str) -> Result<Engine, Vec<Problem>> {
    let rules = rewrites.iter().enumerate().map(|(number, (images, instead))| {
        format!(
            "[[rules]]\nid = \"to-{number}\"\nimages = [\"{images}\"]\neffect = \"rewrite\"\ninstead = \"{instead}\"\n"
        )
    });
    let policy = rules.collect::<String>() + rest;
    Engine::compile(&toml::from_str(&policy).unwrap())
}

#[test]
fn a_rewrite_leads_elsewhere() {
    let by_digest = format!("k8s.gcr.io/pause@{DIGEST}");
    let there_by_digest = format!("registry.k8s.io/pause@{DIGEST}");
    for (images, instead, image, expected) in [
        (
            "k8s.gcr.io/**",
            "registry.k8s.io/**",
            "k8s.gcr.io/pause:3.9",
            "registry.k8s.io/pause:3.9",
        ),
        (
            "k8s.gcr.io/**",
            "registry.k8s.io/**",
            "K8S.gcr.io:443/a/b",
            "registry.k8s.io/a/b:latest",
        ),
        (
            "k8s.gcr.io/**",
            "registry.k8s.io/**",
            &by_digest,
            &there_by_digest,
        ),
        (
            "k8s.gcr.io/**",
            "registry.k8s.io/**",
            "k8s.gcr.io/pause?",
            "registry.k8s.io/pause",
        ),
        (
            "k8s.gcr.io/**",
            "corp.example/mirror/**",
            "k8s.gcr.io/pause:3.9",
            "corp.example/mirror/pause:3.9",
        ),
        (
            "quay.io/team/**",
            "corp.example/**",
            "quay.io/team/a/b:1",
            "corp.example/a/b:1",
        ),
        (
            "quay.io/team-*",
            "corp.example/q/**",
            "quay.io/team-x:1",
            "corp.example/q/team-x:1",
        ),
        (
            "*.example/**",
            "corp.test/**",
            "a.example/x:1",
            "corp.test/x:1",
        ),
        (
            "docker.io/**",
            "corp.example/hub/**",
            "nginx",
            "corp.example/hub/library/nginx:latest",
        ),
        (
            "quay.io/nginx",
            "docker.io/**",
            "quay.io/nginx:1",
            "docker.io/library/nginx:1",
        ),
        (
            "quay.io/a",
            "corp.example/b",
            "quay.io/a:1",
            "corp.example/b:1",
        ),
        (
            "quay.io/a",
            "corp.example/b:2",
            "quay.io/a:1",
            "corp.example/b:2",
        ),
        (
            "quay.io/a",
            "corp.example/b:2",
            "quay.io/a?",
            "corp.example/b",
        ),
        (
            "k8s.gcr.io/pause",
            "registry.k8s.io/pause:3.10",
            &by_digest,
            &there_by_digest,
        ),
        (
            "k8s.gcr.io/pause",
            &there_by_digest,
            "k8s.gcr.io/pause:3.9",
            &there_by_digest,
        ),
    ] {
        let engine = rewriting(&[(images, instead)], ALLOW_ALL).unwrap();
        let decision = evaluate(&engine, image);
        let got = (
            decision.effect,
            decision.rule.as_deref(),
            decision.target.to_string(),
        );
        assert_eq!(
            got,
            (Effect::Allow, Some("all"), expected.to_owned()),
            "{image}"
        );
        let rewrites: Vec<_> = decision.rewrites.iter().map(|step| &*step.rule).collect();
        assert_eq!(rewrites, ["to-0"], "{image}");
    }
}

#[test]
fn what_a_rewrite_leads_to_is_judged_too() {
    let rest = r#"
        [[rules]]
        id = "no-latest"
        images = ["b.example/**:latest"]
        effect = "deny"
        reason = "latest moves"
        [[rules]]
        id = "watched"
        images = ["b.example/watched"]
        effect = "audit"
        [[rules]]
        id = "b"
        images = ["b.example/**"]
        effect = "allow"
        min_age = "3d"
    "#;
    let engine = rewriting(&[("a.example/**", "b.example/**")], rest).unwrap();
    let denied = evaluate(&engine, "a.example/x");
    assert_eq!(
        (denied.effect, denied.rule.as_deref()),
        (Effect::Deny, Some("no-latest"))
    );
    assert_eq!(
        denied.refusal.unwrap().message,
        "a.example/x:latest is not allowed: it is pulled from b.example/x: latest moves"
    );
    let audited = evaluate(&engine, "a.example/watched:1");
    assert_eq!(
        (audited.effect, audited.rule.as_deref()),
        (Effect::Audit, Some("watched"))
    );
    let aged = evaluate(&engine, "a.example/x:1").obligation.unwrap();
    assert_eq!(aged.min_age, std::time::Duration::from_hours(72));
    assert!(
        evaluate(&engine, &format!("a.example/x@{DIGEST}"))
            .obligation
            .is_none()
    );

    // Allowed for some tags there: then the tag that led to the digest is looked for there.
    let tags = "[[rules]]\nid = \"b\"\nimages = [\"b.example/x:1\"]\neffect = \"allow\"\n";
    let engine = rewriting(&[("a.example/x", "b.example/x")], tags).unwrap();
    let by_digest = evaluate(&engine, &format!("a.example/x@{DIGEST}"));
    assert_eq!(by_digest.effect, Effect::Deny);
    assert_eq!(by_digest.if_led, [target(&format!("b.example/x@{DIGEST}"))]);
    assert_eq!(
        evaluate(&engine, "a.example/x?").target.to_string(),
        "b.example/x"
    );
}

/// A tag that stays here has its digest here, whatever becomes of the others.
#[test]
fn what_is_not_rewritten_by_tag_is_found_by_digest() {
    let allow = "[[rules]]\nid = \"old\"\nimages = [\"a.example/x:1\"]\neffect = \"allow\"\n";
    let rewrite = "[[rules]]\nid = \"new\"\nimages = [\"a.example/**\"]\neffect = \"rewrite\"\ninstead = \"b.example/**\"\n";
    let engine = engine(&format!("{allow}{rewrite}{ALLOW_ALL}"));
    assert_eq!(
        evaluate(&engine, "a.example/x:1").target.to_string(),
        "a.example/x:1"
    );
    assert_eq!(
        evaluate(&engine, "a.example/x:2").target.to_string(),
        "b.example/x:2"
    );
    let asked = format!("a.example/x@{DIGEST}");
    let by_digest = evaluate(&engine, &asked);
    assert_eq!(by_digest.target, target(&format!("b.example/x@{DIGEST}")));
    assert_eq!(by_digest.if_led, [target(&asked)]);
}

#[test]
fn rewrites_that_lead_nowhere_are_refused_when_loaded() {
    let chain = |count: usize, close: bool| -> Vec<(String, String)> {
        let name = |n: usize| format!("r{}.example/**", if close { n % count } else { n });
        (0..count).map(|n| (name(n), name(n + 1))).collect()
    };
    let load = |rewrites: &[(String, String)], rest: &str| {
        let rewrites: Vec<_> = rewrites
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        rewriting(&rewrites, rest)
            .map(|_| ())
            .map_err(|problems| problems[0].to_string())
    };
    // A chain of two ends, one of three is too long; no loop ends.
    load(&chain(1, false), ALLOW_ALL).unwrap();
    load(&chain(2, false), ALLOW_ALL).unwrap();
    for (count, close) in [(3, false), (1, true), (2, true), (3, true)] {
        let error = load(&chain(count, close), ALLOW_ALL).unwrap_err();
        assert!(
            error.starts_with("policy.rules.0.instead: ") && error.contains("once more"),
            "{error}"
        );
    }
    let to_b = [("a.example/**".to_owned(), "b.example/**".to_owned())];
    let deny = "[[rules]]\nid = \"no-b\"\nimages = [\"b.example/**\"]\neffect = \"deny\"\n";
    let error = load(&to_b, &format!("{deny}{ALLOW_ALL}")).unwrap_err();
    assert!(
        error.contains("rule no-b refuses b.example/**, where this leads"),
        "{error}"
    );
    let error = load(&to_b, "").unwrap_err();
    assert!(error.contains("no rule allows b.example/**"), "{error}");
    // Where it depends on the image or on the client, only the pull can tell.
    for narrower in [
        deny.replace("b.example/**", "b.example/x"),
        deny.replace("b.example/**", "b.example/**:latest"),
        deny.replace("b.example/**", "*.example/x-*"),
        format!("{deny}except = [\"b.example/x\"]\n"),
        format!("{deny}clients = [\"10.0.0.0/8\"]\n"),
    ] {
        load(&to_b, &format!("{narrower}{ALLOW_ALL}")).unwrap();
    }
    // One name at a time.
    let one = [("a.example/x".to_owned(), "b.example/**".to_owned())];
    let deny_x = deny.replace("/**", "/x");
    let error = load(&one, &format!("{deny_x}{ALLOW_ALL}")).unwrap_err();
    assert!(error.contains("refuses b.example/x, where"), "{error}");
    let allow_x = ALLOW_ALL.replace("\"**\"", "\"b.example/x\"");
    load(&one, &allow_x).unwrap();
}

#[test]
fn rewriting_ends_where_it_could_not_be_foreseen() {
    let loops = [
        ("*.example/x", "a.example/y"),
        ("*.example/y", "b.example/x"),
    ];
    // Both are overlapped by nothing that covers them: b.example/x is matched by a wildcard.
    let engine = rewriting(&loops, ALLOW_ALL);
    let error = engine.unwrap_err();
    assert!(error[0].to_string().contains("once more"), "{error:?}");

    let rest = format!(
        "[[rules]]\nid = \"some\"\nimages = [\"**\"]\neffect = \"deny\"\nclients = [\"192.0.2.1\"]\n{ALLOW_ALL}"
    );
    let policy = format!(
        "{}{}",
        "[[rules]]\nid = \"one\"\nimages = [\"a.example/**\"]\nexcept = [\"a.example/z\"]\neffect = \"rewrite\"\ninstead = \"b.example/**\"\n\
         [[rules]]\nid = \"back\"\nimages = [\"b.example/**\"]\nexcept = [\"b.example/z\"]\neffect = \"rewrite\"\ninstead = \"a.example/**\"\n",
        rest
    );
    let engine = self::engine(&policy);
    let decision = evaluate(&engine, "a.example/x:1");
    assert_eq!(
        (decision.effect, decision.rewrites.len()),
        (Effect::Deny, 2)
    );
    let message = &decision.refusal.unwrap().message;
    assert!(message.contains("rewrites it once more"), "{message}");

    // A name that would be too long.
    let engine = rewriting(
        &[("a.example/**", "long.example/aaaaaaaaaaaaaaaaaaaaaaaaa/**")],
        ALLOW_ALL,
    )
    .unwrap();
    let message = &refusal(&engine, &format!("a.example/{}:1", "x".repeat(240))).message;
    assert!(message.contains("too long a name"), "{message}");
}
