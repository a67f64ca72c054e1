use proptest::prelude::*;

use super::*;

/// Security row T15: every spelling of one registry is that registry, or is refused.
#[test]
fn one_registry_has_one_name() {
    for text in [
        "docker.io",
        "DOCKER.IO",
        "Docker.io.",
        "index.docker.io",
        "registry-1.docker.io",
        "registry.hub.docker.com",
        "docker.io:443",
        "docker.io.:443",
        "docker.io:00443",
        "Index.Docker.IO:443",
    ] {
        assert_eq!(
            text.parse::<Registry>().unwrap(),
            Registry::docker_hub(),
            "{text}"
        );
    }
    for (text, canonical) in [
        ("registry.k8s.io.", "registry.k8s.io"),
        ("Registry.K8S.io:443", "registry.k8s.io"),
        ("reg.example:5000", "reg.example:5000"),
        ("reg.example:05000", "reg.example:5000"),
        ("localhost", "localhost"),
        ("localhost:5001", "localhost:5001"),
        ("registry", "registry"),
        ("a-b.1c.example", "a-b.1c.example"),
        ("3.example", "3.example"),
        ("docker.io:80", "docker.io:80"),
    ] {
        assert_eq!(
            text.parse::<Registry>().unwrap().as_str(),
            canonical,
            "{text}"
        );
    }
}

#[test]
fn what_is_no_registry() {
    let long_label = format!("{}.example", "a".repeat(64));
    let long_name = format!("{}example", "a.".repeat(130));
    for text in [
        "",
        ".",
        "..",
        "docker.io..",
        ".docker.io",
        "docker..io",
        "user@docker.io",
        "user:pw@docker.io",
        "docker.io/",
        "docker.io/x",
        "https://docker.io",
        "docker.io?x",
        "docker.io#x",
        "docker.io\\x",
        "docker.io:",
        "docker.io:0",
        "docker.io:65536",
        "docker.io:+443",
        "docker.io:443:443",
        "docker.io: 443",
        "docker.io:http",
        " docker.io",
        "docker.io ",
        "docker.io\0",
        "docker%2eio",
        "docker\u{3002}io",
        "\u{ff44}ocker.io",
        "d\u{f6}cker.io",
        "docker_hub.io",
        "-docker.io",
        "docker-.io",
        "xn--docker-.io",
        "*.docker.io",
        "docker.io\r\n",
        &long_label,
        &long_name,
        // Addresses, in every way that some resolver reads.
        "127.0.0.1",
        "127.0.0.1:5000",
        "127.0.0.1.",
        "127.1",
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0",
        "10",
        "a.1",
        "1.0x",
        "[::1]",
        "[::1]:5000",
        "::1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
    ] {
        assert!(text.parse::<Registry>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn repositories_follow_the_grammar() {
    for text in [
        "a",
        "0",
        "library/nginx",
        "a.b/c_d/e__f/g-h/i--j/k---l",
        "v2/x",
        "a/b/c/d/e",
    ] {
        assert_eq!(text.parse::<RepositoryName>().unwrap().as_str(), text);
    }
    for text in [
        "", "/", "/a", "a/", "a//b", "A/b", "a/B", "a/_b", "a_/b", "-a", "a-", ".a", "a.", "..",
        "a/../b", "a/./b", "a..b", "a___b", "a__.b", "a._b", "a-_b", "a.-b", "a b", "a:b", "a@b",
        "a\\b", "a%2fb", "\u{e9}", "a\0b", "a\nb", "a?b", "_tags", "a/_links",
    ] {
        assert!(
            text.parse::<RepositoryName>().is_err(),
            "{text:?} was accepted"
        );
    }
}

#[test]
fn names_have_255_characters_at_most() {
    let name = |length| "a".repeat(length).parse::<RepositoryName>();
    assert!(name(255).is_ok());
    assert_eq!(name(256), Err(InvalidName::TooLong));
    let registry: Registry = "registry.k8s.io".parse().unwrap();
    assert!(Repository::new(registry.clone(), name(255 - 16).unwrap()).is_ok());
    assert_eq!(
        Repository::new(registry, name(255 - 15).unwrap()),
        Err(InvalidName::TooLong)
    );
}

#[test]
fn tags_follow_the_grammar() {
    let long = "t".repeat(128);
    for text in [
        "latest",
        "1",
        "_",
        "v1.2.3-rc_1",
        "UPPER",
        "sha256-aa.sig",
        &long,
    ] {
        assert_eq!(text.parse::<Tag>().unwrap().as_str(), text);
    }
    let too_long = "t".repeat(129);
    for text in [
        "", ".a", "-a", "..", "a/b", "a:b", "a b", "a@b", "\u{e9}", "a\0", "a+b", &too_long,
    ] {
        assert!(text.parse::<Tag>().is_err(), "{text:?} was accepted");
    }
}

#[test]
fn a_colon_makes_a_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    assert!(matches!(digest.parse(), Ok(Reference::Digest(_))));
    assert!(matches!("v1".parse(), Ok(Reference::Tag(_))));
    assert!(matches!(
        "sha256:x".parse::<Reference>(),
        Err(InvalidName::Digest(_))
    ));
}

#[test]
fn only_docker_hub_has_a_library() {
    let join = |registry: &str, name: &str| {
        Repository::new(registry.parse().unwrap(), name.parse().unwrap())
            .unwrap()
            .to_string()
    };
    assert_eq!(join("docker.io", "nginx"), "docker.io/library/nginx");
    assert_eq!(join("docker.io", "corp/nginx"), "docker.io/corp/nginx");
    assert_eq!(join("registry.k8s.io", "pause"), "registry.k8s.io/pause");
}

proptest! {
    #[test]
    fn what_parses_reads_back_the_same(
        registry in "[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?(\\.[a-z][a-z0-9]{0,8}){0,3}(:[1-9][0-9]{0,3})?",
        name in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,6}){0,3}(/[a-z0-9]{1,6}){0,3}",
        tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
    ) {
        let registry: Registry = registry.parse().unwrap();
        prop_assert_eq!(&registry.as_str().parse::<Registry>().unwrap(), &registry);
        let host_and_port = match registry.port() {
            Some(port) => format!("{}:{port}", registry.host()),
            None => registry.host().to_owned(),
        };
        prop_assert_eq!(host_and_port, registry.as_str());
        prop_assert_eq!(name.parse::<RepositoryName>().unwrap().to_string(), name);
        prop_assert_eq!(tag.parse::<Reference>().unwrap().to_string(), tag);
    }

    /// Whatever was accepted is a part of a path and of a request line that needs no escaping.
    #[test]
    fn what_parses_is_safe(text in ".{0,40}|[a-z0-9._/:@%\\\\-]{0,40}") {
        if let Ok(registry) = text.parse::<Registry>() {
            prop_assert!(registry.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b':')));
            prop_assert!(registry.host().parse::<std::net::IpAddr>().is_err());
        }
        if let Ok(name) = text.parse::<RepositoryName>() {
            prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '_'])));
        }
        if let Ok(tag) = text.parse::<Tag>() {
            prop_assert!(!tag.as_str().starts_with('.') && !tag.as_str().contains('/'));
        }
    }
}
