use proptest::prelude::*;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn plain() -> HostMap {
    HostMap {
        default_registry: Registry::docker_hub(),
        hosts: HashMap::new(),
        own: None,
    }
}

fn parse(uri: &str) -> Result<Routed, RouteError> {
    Route::parse(
        &Method::GET,
        &uri.parse().unwrap(),
        Some("127.0.0.1:5000"),
        &plain(),
    )
}

/// `registry/repository` that a path and query mean.
fn repository(uri: &str) -> String {
    match parse(uri)
        .unwrap_or_else(|error| panic!("{uri}: {error}"))
        .route
    {
        Route::Manifest { repository, .. }
        | Route::Blob { repository, .. }
        | Route::Tags { repository, .. }
        | Route::Referrers { repository, .. } => repository.to_string(),
        Route::Ping => panic!("{uri} is a ping"),
    }
}

#[test]
fn every_route() {
    let name = |text: &str| text.parse().unwrap();
    let pause = Repository::new(name("registry.k8s.io"), "pause".parse().unwrap()).unwrap();
    let digest: Digest = DIGEST.parse().unwrap();
    let routed = parse("/v2/pause/manifests/3.9?ns=registry.k8s.io").unwrap();
    let reference = "3.9".parse().unwrap();
    assert_eq!(
        routed.route,
        Route::Manifest {
            repository: pause.clone(),
            reference
        }
    );
    assert_eq!(routed.namespace, Some(name("registry.k8s.io")));
    assert_eq!(routed.path_name, "/v2/pause");

    let routed = parse(&format!("/v2/registry.k8s.io/pause/blobs/{DIGEST}")).unwrap();
    assert_eq!(
        routed.route,
        Route::Blob {
            repository: pause.clone(),
            digest
        }
    );
    assert_eq!(routed.namespace, None);
    assert_eq!(routed.path_name, "/v2/registry.k8s.io/pause");

    let routed = parse("/v2/registry.k8s.io/pause/tags/list?n=7&last=a").unwrap();
    let last = Some("a".parse().unwrap());
    assert_eq!(
        routed.route,
        Route::Tags {
            repository: pause.clone(),
            n: Some(7),
            last
        }
    );

    let encoded = DIGEST.replace(':', "%3A");
    let uri = format!("/v2/registry.k8s.io/pause/referrers/{encoded}?artifactType=a%2Fb%2Bc");
    let artifact_type = Some("a/b+c".to_owned());
    let route = Route::Referrers {
        repository: pause,
        digest,
        artifact_type,
    };
    assert_eq!(parse(&uri).unwrap().route, route);
    assert_eq!(parse(&uri.replace("%2B", "+")).unwrap().route, route);

    for uri in ["/v2", "/v2/"] {
        assert_eq!(parse(uri).unwrap().route, Route::Ping);
    }
    assert_eq!(
        parse("/v2/?ns=quay.io").unwrap().namespace,
        Some(name("quay.io"))
    );
}

#[test]
fn which_registry_a_name_is_of() {
    for (uri, expected) in [
        // ns decides alone.
        (
            "/v2/pause/tags/list?ns=registry.k8s.io",
            "registry.k8s.io/pause",
        ),
        (
            "/v2/pause/tags/list?ns=Registry.K8S.io.",
            "registry.k8s.io/pause",
        ),
        (
            "/v2/demo/hi/tags/list?ns=up.test%3A5000",
            "up.test:5000/demo/hi",
        ),
        (
            "/v2/nginx/tags/list?ns=index.docker.io",
            "docker.io/library/nginx",
        ),
        (
            "/v2/nginx/tags/list?ns=docker.io%3a443",
            "docker.io/library/nginx",
        ),
        // Only a leading part that is ns itself is dropped.
        ("/v2/quay.io/a/b/tags/list?ns=quay.io", "quay.io/a/b"),
        (
            "/v2/registry-1.docker.io/nginx/tags/list?ns=docker.io",
            "docker.io/library/nginx",
        ),
        ("/v2/quay.io/a/tags/list?ns=ghcr.io", "ghcr.io/quay.io/a"),
        (
            "/v2/quay.io/quay.io/a/tags/list?ns=quay.io",
            "quay.io/quay.io/a",
        ),
        ("/v2/quay.io/tags/list?ns=quay.io", "quay.io/quay.io"),
        // NS is not ns.
        ("/v2/nginx/tags/list?NS=quay.io", "docker.io/library/nginx"),
        // By path.
        (
            "/v2/registry.k8s.io/pause/tags/list",
            "registry.k8s.io/pause",
        ),
        (
            "/v2/Registry.K8s.IO:443/pause/tags/list",
            "registry.k8s.io/pause",
        ),
        ("/v2/up.test:5000/demo/hi/tags/list", "up.test:5000/demo/hi"),
        (
            "/v2/up.test%3a5000/demo/hi/tags/list",
            "up.test:5000/demo/hi",
        ),
        ("/v2/localhost/x/tags/list", "localhost/x"),
        // The default.
        ("/v2/nginx/tags/list", "docker.io/library/nginx"),
        ("/v2/corp/nginx/tags/list", "docker.io/corp/nginx"),
        // Names may have the words of the protocol in them.
        ("/v2/a/manifests/b/tags/list", "docker.io/a/manifests/b"),
        ("/v2/blobs/tags/list", "docker.io/library/blobs"),
        ("/v2/tags/list/tags/list", "docker.io/tags/list"),
        ("/v2/v2/x/tags/list", "docker.io/v2/x"),
        ("/v2/v2/x/tags/list?ns=quay.io", "quay.io/v2/x"),
    ] {
        assert_eq!(repository(uri), expected, "{uri}");
    }
}

/// Security row T16.
#[test]
fn ns_is_given_once_or_not_at_all() {
    for query in [
        "ns=quay.io&ns=ghcr.io",
        "ns=quay.io&ns=quay.io",
        "ns=",
        "ns",
        "ns=a.b&%6es=a.b",
    ] {
        let uri = format!("/v2/x/tags/list?{query}");
        assert_eq!(parse(&uri), Err(RouteError::Namespace), "{query}");
    }
    for ns in [
        "10.0.0.1",
        "10.0.0.1:8080",
        "[::1]",
        "u@quay.io",
        "https://quay.io",
        "quay.io/x",
        "%00",
    ] {
        let error = parse(&format!("/v2/x/tags/list?ns={ns}")).unwrap_err();
        assert!(matches!(error, RouteError::Name(_)), "{ns}: {error:?}");
    }
}

#[test]
fn the_host_header_has_a_say_when_hosts_are_configured() {
    let hub: Registry = "quay.io".parse().unwrap();
    let map = HostMap {
        hosts: HashMap::from([
            ("hub.corp.example".to_owned(), hub.clone()),
            ("other.example:81".to_owned(), "ghcr.io".parse().unwrap()),
        ]),
        own: Some("images.corp.example".to_owned()),
        ..plain()
    };
    let registry = |host: Option<&str>, path: &str| {
        let routed = Route::parse(&Method::GET, &path.parse().unwrap(), host, &map)?;
        match routed.route {
            Route::Tags { repository, .. } => Ok(repository.registry.to_string()),
            other => panic!("{other:?}"),
        }
    };
    let list = "/v2/a/b/tags/list";
    for (host, expected) in [
        ("hub.corp.example", Ok("quay.io")),
        ("HUB.corp.example.:5000", Ok("quay.io")),
        ("other.example:81", Ok("ghcr.io")),
        ("other.example", Err(RouteError::Host)),
        ("images.corp.example:5000", Ok("docker.io")),
        ("10.1.2.3:5000", Ok("docker.io")),
        ("[fd00::1]:5000", Ok("docker.io")),
        ("[fd00::1]", Ok("docker.io")),
        ("localhost:5000", Ok("docker.io")),
        ("proxy", Ok("docker.io")),
        ("evil.example", Err(RouteError::Host)),
        ("10.1.2.3.evil.example", Err(RouteError::Host)),
    ] {
        assert_eq!(
            registry(Some(host), list),
            expected.map(str::to_owned),
            "{host}"
        );
    }
    assert_eq!(registry(None, list).unwrap(), "docker.io");
    // ns and path outrank it, and a foreign Host is refused even then.
    let by_ns = format!("{list}?ns=gcr.io");
    assert_eq!(
        registry(Some("hub.corp.example"), &by_ns).unwrap(),
        "gcr.io"
    );
    assert_eq!(
        registry(Some("hub.corp.example"), "/v2/gcr.io/a/tags/list").unwrap(),
        "gcr.io"
    );
    assert_eq!(
        registry(Some("evil.example"), &by_ns),
        Err(RouteError::Host)
    );
    // Without hosts every name is ours.
    let uri = list.parse().unwrap();
    assert!(Route::parse(&Method::GET, &uri, Some("evil.example"), &plain()).is_ok());
}

/// Security row T14: 200 ways to leave the tree, none of which is a name.
#[test]
fn no_path_leaves_its_place() {
    let bad_parts = [
        "..",
        ".",
        "%2e%2e",
        "%2E%2e",
        ".%2e",
        "%2e",
        "..%2f..",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "%00",
        "a%00b",
        "a%2fb",
        "a%5cb",
        "%252e%252e",
        "a%",
        "a%2",
        "a%zz",
        "a%+1",
        "%e9",
        "%c3%a9",
        "%0d%0a",
        "%20",
        "a%2eb",
        "A",
        "_a",
        "a_",
        "-a",
        "a-",
        ".a",
        "a.",
        "a__.b",
        "a___b",
        "a._b",
        "a..b",
        "~a",
        "a;b",
        "a,b",
        "a=b",
        "a@b",
        "a*b",
        "$a",
        "(a)",
        "a'b",
        "!a",
        "a+b",
        "a&b",
        "...",
        "a\u{7f}b",
    ];
    let long = "a".repeat(256);
    let mut paths: Vec<String> = Vec::new();
    for part in bad_parts.into_iter().chain([long.as_str()]) {
        paths.push(format!("/v2/{part}/tags/list"));
        paths.push(format!("/v2/a/{part}/tags/list"));
        paths.push(format!("/v2/quay.io/a/{part}/manifests/v1"));
        paths.push(format!("/v2/b/{part}/blobs/{DIGEST}"));
    }
    for path in [
        "/v2/a//b",
        "/v2//a",
        "/v2/a/",
        "//v2/a",
        "/v2/../a",
        "/a/../v2/a",
        "/v2/a\\b",
        "/v2//",
    ] {
        paths.push(format!("{path}/tags/list"));
    }
    assert!(paths.len() > 200);
    for path in paths {
        // Some of these are no URI at all, which is as good.
        let Ok(uri) = path.parse() else { continue };
        let result = Route::parse(&Method::GET, &uri, None, &plain());
        let refused = matches!(
            result,
            Err(RouteError::Name(_)
                | RouteError::Path
                | RouteError::NotFound
                | RouteError::Misplaced)
        );
        assert!(refused, "{path} is {result:?}");
    }
}

/// Security row T13.
#[test]
fn digests_are_exact() {
    let upper = format!("sha256:{}", "A".repeat(64));
    let short = format!("sha256:{}", "a".repeat(63));
    let sha1 = format!("sha1:{}", "a".repeat(40));
    for digest in [
        &upper,
        &short,
        &sha1,
        "sha256:",
        "sha256%3A",
        "uploads",
        "latest",
    ] {
        for kind in ["blobs", "referrers"] {
            let error = parse(&format!("/v2/x/{kind}/{digest}")).unwrap_err();
            assert!(
                matches!(error, RouteError::Name(InvalidName::Digest(_))),
                "{digest}: {error:?}"
            );
        }
    }
    assert_eq!(parse("/v2/x/blobs/sha256%3A..%2fx"), Err(RouteError::Path));
    assert!(matches!(
        parse(&format!("/v2/x/manifests/{upper}")),
        Err(RouteError::Name(InvalidName::Digest(_)))
    ));
}

#[test]
fn other_shapes_are_not_found() {
    for path in [
        "/",
        "/healthz",
        "/v1/x",
        "/v2x/",
        "/v2/_catalog",
        "/v2/x",
        "/v2/x/y",
        "/v2/x/tags",
        "/v2/x/tags/all",
        "/v2/x/manifest/v1",
        "/v2/manifests/v1",
        "/v2/tags/list",
        "/v2/x/blobs/uploads/7",
        "/v2/x/tags/list/",
        "/V2/x/tags/list",
        "*",
    ] {
        assert_eq!(parse(path), Err(RouteError::NotFound), "{path}");
    }
    for path in [
        "/foo/v2/x/manifests/v1",
        "/v2/k8s.gcr.io/v2/pause/manifests/3.9",
        "/v2/k8s.gcr.io/v2/pause/manifests/3.9?ns=k8s.gcr.io",
    ] {
        assert_eq!(parse(path), Err(RouteError::Misplaced), "{path}");
    }
}

/// Security rows T21 and T22.
#[test]
fn only_get_and_head() {
    let uri: Uri = "/v2/x/manifests/v1".parse().unwrap();
    let parse =
        |method: &str, uri: &Uri| Route::parse(&method.parse().unwrap(), uri, None, &plain());
    assert!(parse("GET", &uri).is_ok() && parse("HEAD", &uri).is_ok());
    for method in [
        "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "BREW",
    ] {
        assert_eq!(parse(method, &uri), Err(RouteError::Method), "{method}");
    }
    assert_eq!(
        parse("CONNECT", &"evil.example:443".parse().unwrap()),
        Err(RouteError::Method)
    );
    // An authority changes nothing: only path and query are read.
    let absolute = "http://evil.example/v2/x/manifests/v1".parse().unwrap();
    assert_eq!(parse("GET", &absolute), parse("GET", &uri));
}

#[test]
fn pages_of_tags() {
    let tags = |query: &str| match parse(&format!("/v2/x/tags/list?{query}"))?.route {
        Route::Tags { n, last, .. } => Ok((n, last.map(|tag| tag.to_string()))),
        other => panic!("{other:?}"),
    };
    for (query, expected) in [
        ("", (None, None)),
        ("n=0", (Some(0), None)),
        ("n=1000&last=v1", (Some(1000), Some("v1".to_owned()))),
        ("n=1001", (Some(1000), None)),
        ("n=9223372036854775808", (Some(1000), None)),
        ("n=99999999999999999999999", (Some(1000), None)),
        ("last=", (None, None)),
    ] {
        assert_eq!(tags(query), Ok(expected), "{query}");
    }
    for query in [
        "n=",
        "n=-1",
        "n=1.5",
        "n=%2B1",
        "n=a",
        "n=1&n=1",
        "last=a&last=b",
    ] {
        assert_eq!(tags(query), Err(RouteError::Query), "{query}");
    }
    assert_eq!(tags("last=a%2fb"), Err(RouteError::Name(InvalidName::Tag)));
}

#[test]
fn the_link_to_the_next_page_leads_back_here() {
    let last: Tag = "v9".parse().unwrap();
    for (uri, next) in [
        (
            "/v2/x/tags/list?ns=up.test%3A5000&n=2",
            "/v2/x/tags/list?ns=up.test:5000&n=2&last=v9",
        ),
        (
            "/v2/quay.io/a/b/tags/list?n=2",
            "/v2/quay.io/a/b/tags/list?n=2&last=v9",
        ),
    ] {
        let link = parse(uri).unwrap().next_tags(2, &last);
        assert_eq!(link, next);
        assert_eq!(repository(uri), repository(&link));
    }
}

#[test]
fn long_uris_are_refused() {
    let uri = |length: usize| format!("/v2/x/tags/list?last={}", "a".repeat(length));
    assert_eq!(parse(&uri(LONGEST_URI)), Err(RouteError::TooLong));
    assert_eq!(parse(&uri(1000)), Err(RouteError::Name(InvalidName::Tag)));
}

proptest! {
    /// The three ways to name a repository mean the same one.
    #[test]
    fn ns_path_and_default_agree(
        registry in "[a-z][a-z0-9-]{0,8}[a-z0-9]\\.[a-z]{2,8}(:[1-9][0-9]{1,3})?",
        name in "[a-z0-9]{1,6}([._-][a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,6}){0,3}",
        tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}",
    ) {
        prop_assume!(!name.starts_with("v2/"));
        let registry: Registry = registry.parse().unwrap();
        let expected = Route::Manifest {
            repository: Repository::new(registry.clone(), name.parse().unwrap()).unwrap(),
            reference: tag.parse().unwrap(),
        };
        let by_ns = parse(&format!("/v2/{name}/manifests/{tag}?ns={registry}"));
        prop_assert_eq!(&by_ns.unwrap().route, &expected);
        let by_path = parse(&format!("/v2/{registry}/{name}/manifests/{tag}"));
        prop_assert_eq!(&by_path.unwrap().route, &expected);
        let by_both = parse(&format!("/v2/{registry}/{name}/manifests/{tag}?ns={registry}"));
        prop_assert_eq!(&by_both.unwrap().route, &expected);
        // By default a first part with a dot would be taken for a registry.
        if !name.split('/').next().unwrap().contains('.') {
            let map = HostMap { default_registry: registry, ..plain() };
            let uri = format!("/v2/{name}/manifests/{tag}").parse().unwrap();
            prop_assert_eq!(&Route::parse(&Method::GET, &uri, None, &map).unwrap().route, &expected);
        }
    }

    #[test]
    fn no_uri_panics(path in "/(v2/)?[ -~]{0,60}", host in "[ -~]{0,20}") {
        let map = HostMap {
            hosts: HashMap::from([("a.b".to_owned(), Registry::docker_hub())]),
            ..plain()
        };
        if let Ok(uri) = path.parse::<Uri>()
            && let Ok(routed) = Route::parse(&Method::GET, &uri, Some(&host), &map)
        {
            prop_assert!(routed.path_name.starts_with("/v2/"));
        }
    }
}
