//! Where redirects may lead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

async fn redirecting_to(location: impl Into<String>) -> Server {
    let location = location.into();
    Server::start(move |request| {
        if request.target.starts_with("/v2/") {
            Reply::redirect(location.clone())
        } else {
            Reply::new(200, "{}")
        }
    })
    .await
}

/// Security rows T17 and T24: spellings of the metadata service, of ourselves and of the inside.
#[tokio::test]
async fn internal_addresses_are_refused_in_every_spelling() {
    let bystander = Server::bystander().await;
    let port = bystander.address.port();
    let hosts = [
        "169.254.169.254",
        "169.254.169.254.",
        "2852039166",
        "0xa9fea9fe",
        "0xA9.0xFE.0xA9.0xFE",
        "0251.0376.0251.0376",
        "169.16689662",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::169.254.169.254]",
        "[2002:a9fe:a9fe::]",
        "[fd00:ec2::254]",
        "[fe80::a9fe:a9fe]",
        "168.63.129.16",
        "0.0.0.0",
        "0",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "017700000001",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "10.0.0.1",
        "192.168.0.1",
        "100.64.0.1",
    ];
    let server = Server::start(move |request| {
        let number: usize = request.target.split('/').nth(2).unwrap().parse().unwrap();
        Reply::redirect(format!("http://{}:{port}/latest/meta-data", hosts[number]))
    })
    .await;
    let upstream = upstream(&server, "");
    for (number, host) in hosts.iter().enumerate() {
        let error = kind(get(&upstream, &number.to_string()).await);
        assert!(
            matches!(error, UpstreamErrorKind::HostRefused(_)),
            "{host}: {error}"
        );
        // What nobody should allow comes with no line that would allow it.
        assert!(!error.to_string().contains("would allow"), "{error}");
        let name = repository(&number.to_string());
        let blob = upstream.blob(&name, &digest(), Some(0..10)).await;
        assert!(
            matches!(kind(blob), UpstreamErrorKind::HostRefused(_)),
            "{host}"
        );
    }
    assert_eq!(
        server.seen().len(),
        hosts.len() * 2,
        "no refusal is tried again"
    );
    assert_eq!(bystander.connections(), 0);
}

#[tokio::test]
async fn the_refusal_of_a_host_says_what_would_allow_it() {
    for (location, spelled) in [
        ("https://cdn.example/x?sig=hunter2", "cdn.example"),
        ("https://cdn.example:8443/x", "cdn.example:8443"),
        ("//cdn.example:443/x", "cdn.example:443"),
        ("https://93.184.216.34/x", "93.184.216.34"),
    ] {
        let server = redirecting_to(location).await;
        let upstream = upstream(&server, "redirect_hosts = [\"*.cdn.example\"]");
        let error = kind(get(&upstream, "a").await);
        let UpstreamErrorKind::HostRefused(text) = error else {
            panic!("{location}: {error}")
        };
        let line =
            format!("redirect_hosts = [\"{spelled}\"] under [upstreams.\"registry.example\"]");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn user_info_and_other_schemes_are_refused() {
    for location in ["http://corp:hunter2@127.0.0.1:1/", "ftp://127.0.0.1/x"] {
        let server = redirecting_to(location).await;
        let upstream = upstream(&server, "redirect_hosts = [\"127.0.0.1:1\"]");
        let error = kind(get(&upstream, "a").await);
        assert!(
            matches!(error, UpstreamErrorKind::HostRefused(_)),
            "{location}: {error}"
        );
    }
    for location in ["", "http://", "data:text/plain,x"] {
        let server = Server::start(move |request| {
            let loops = request.target != "/v2/a/manifests/latest";
            assert!(!loops || location.is_empty());
            Reply::redirect(location)
        })
        .await;
        let error = kind(get(&upstream(&server, ""), "a").await);
        assert!(
            matches!(error, UpstreamErrorKind::Invalid(_)),
            "{location}: {error}"
        );
    }
}

#[tokio::test]
async fn a_relative_location_keeps_host_and_credentials() {
    let server = Server::start(|request| match &*request.target {
        "/v2/a/manifests/latest" => Reply::redirect("../../../downloads/x?y=z"),
        "/downloads/x?y=z" => {
            assert!(request.header("authorization").is_some());
            Reply::new(200, "{}")
        }
        _ => Reply::new(404, ""),
    })
    .await;
    let server_with_login = Server::start(|request| match request.header("authorization") {
        None => Reply::challenge("Basic realm=\"x\""),
        Some(_) if request.target.starts_with("/v2/") => Reply::redirect("/downloads/x?y=z"),
        Some(_) => Reply::new(200, "{}"),
    })
    .await;
    let login = "username = \"corp\"\npassword = \"hunter2\"\nshare_with = \"everyone\"\n";
    get(&upstream(&server_with_login, login), "a")
        .await
        .unwrap();
    assert_eq!(
        server_with_login.seen().last().unwrap().target,
        "/downloads/x?y=z"
    );
    drop(server);
}

#[tokio::test]
async fn three_redirects_are_followed_and_no_more() {
    for (hops, fine) in [(3, true), (4, false)] {
        let server = Server::start(move |request| {
            let done: usize = request
                .target
                .trim_start_matches("/hop/")
                .parse()
                .unwrap_or(0);
            if done == hops {
                Reply::new(200, "{}")
            } else {
                Reply::redirect(format!("/hop/{}", done + 1))
            }
        })
        .await;
        let result = get(&upstream(&server, ""), "a").await;
        assert_eq!(result.is_ok(), fine);
        assert_eq!(server.seen().len(), 4);
        assert_eq!(server.connections(), 1, "the bodies of redirects are read");
    }
}

/// A CDN whose first URL works until told otherwise.
#[tokio::test]
async fn a_blobs_redirect_is_remembered_until_it_is_refused() {
    let allowed = Arc::new(AtomicUsize::new(1));
    let signed = Arc::clone(&allowed);
    let cdn = Server::start(move |request| {
        assert_eq!(request.header("authorization"), None);
        let range = request
            .header("range")
            .unwrap()
            .trim_start_matches("bytes=")
            .to_owned();
        let good = format!("/blob?sig={}", signed.load(Ordering::SeqCst));
        if request.target == good {
            Reply::new(206, "x").header("content-range", format!("bytes {range}/10"))
        } else {
            Reply::new(403, "expired")
        }
    })
    .await;
    let (target, number) = (cdn.url(), Arc::clone(&allowed));
    let server = Server::start(move |_| {
        Reply::redirect(format!(
            "{target}/blob?sig={}",
            number.load(Ordering::SeqCst)
        ))
    })
    .await;
    let upstream = upstream(&server, &format!("redirect_hosts = [\"{}\"]", cdn.address));
    let part = async |start: u64| {
        let mut blob = upstream
            .blob(&repository("a"), &digest(), Some(start..start + 1))
            .await
            .unwrap();
        assert_eq!(blob.range, Some(start..start + 1));
        assert_eq!(blob.total, Some(10));
        assert_eq!(blob.body.chunk().await.unwrap().as_deref(), Some(&b"x"[..]));
        assert_eq!(blob.body.chunk().await.unwrap(), None);
    };
    part(0).await;
    part(1).await;
    part(2).await;
    assert_eq!((server.seen().len(), cdn.seen().len()), (1, 3));
    allowed.store(2, Ordering::SeqCst);
    part(3).await;
    part(4).await;
    assert_eq!((server.seen().len(), cdn.seen().len()), (2, 6));
    assert_eq!(
        cdn.connections(),
        1,
        "the connection is kept for the next range"
    );
    // Another repository proves its own right to the same bytes.
    upstream
        .blob(&repository("b"), &digest(), Some(0..1))
        .await
        .unwrap();
    assert_eq!(server.count("/v2/b/"), 1);
    assert!(!format!("{upstream:?}").contains("sig="));
}
