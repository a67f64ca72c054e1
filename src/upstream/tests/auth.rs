//! The token flow, and where credentials must not go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::*;

const LOGIN: &str = "username = \"corp\"\npassword = \"hunter2\"\nshare_with = \"everyone\"\n";
/// `corp:hunter2`.
const BASIC: &str = "Basic Y29ycDpodW50ZXIy";

fn own_scope(request: &Request) -> String {
    let name = request.target.trim_start_matches("/v2/");
    let name = name.split("/manifests/").next().unwrap();
    format!("repository:{name}:pull")
}

/// A registry with its tokens: `/token` gives `t0ken-<scope>` with these further members, and
/// every manifest wants the token of its scope.
async fn registry_with_tokens(more: &'static str) -> Server {
    Server::start(move |request| {
        if let Some(query) = request.target.strip_prefix("/token?") {
            let url = url::Url::parse(&format!("http://x/?{query}")).unwrap();
            let scope = url
                .query_pairs()
                .find(|(key, _)| key == "scope")
                .unwrap()
                .1
                .to_string();
            assert!(query.contains("service=reg&"), "{query}");
            return Reply::new(200, format!("{{\"token\":\"t0ken-{scope}\"{more}}}"));
        }
        let scope = own_scope(request);
        if request.header("authorization") == Some(&*format!("Bearer t0ken-{scope}")) {
            return Reply::new(200, "{}");
        }
        let host = request.header("host").unwrap();
        Reply::challenge(format!(
            "Bearer realm=\"http://{host}/token\",service=\"reg\",scope=\"{scope}\""
        ))
    })
    .await
}

#[tokio::test]
async fn a_repository_costs_one_challenge_and_one_token() {
    let server = registry_with_tokens(",\"expires_in\":300").await;
    let upstream = upstream(&server, "");
    for name in ["a", "a", "a", "b", "b"] {
        assert_eq!(get(&upstream, name).await.unwrap(), b"{}");
    }
    // Two repositories, so two scopes, each with a token of its own and one 401.
    assert_eq!(server.count("/token"), 2);
    assert_eq!(server.count("/v2/a/"), 3 + 1);
    assert_eq!(server.count("/v2/b/"), 2 + 1);
    // One after the other they need one connection: an unread 401 would have closed it.
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn many_callers_share_one_token() {
    let server = registry_with_tokens("").await;
    let upstream = upstream(&server, "");
    let results = join_all((0..50).map(|_| get(&upstream, "a"))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once_for_all_who_used_it() {
    let issued = Arc::new(AtomicUsize::new(0));
    let good = Arc::new(AtomicUsize::new(1));
    let late = Arc::new(Notify::new());
    let (give, want, event) = (Arc::clone(&issued), Arc::clone(&good), Arc::clone(&late));
    let server = Server::start(move |request| {
        if request.target.starts_with("/token") {
            let number = give.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::new(200, format!("{{\"access_token\":\"t0ken-{number}\"}}"));
        }
        let wanted = format!("Bearer t0ken-{}", want.load(Ordering::SeqCst));
        if request.header("authorization") == Some(&*wanted) {
            return Reply::new(200, "{}");
        }
        let host = request.header("host").unwrap();
        let challenge = Reply::challenge(format!("Bearer realm=\"http://{host}/token\""));
        if request.target.ends_with("/straggler") {
            challenge.after(&event)
        } else {
            challenge
        }
    })
    .await;
    let upstream = upstream(&server, "");
    get(&upstream, "a").await.unwrap();
    good.store(2, Ordering::SeqCst);
    let (name, tag) = (repository("a"), tag("straggler"));
    let straggler = upstream.manifest(&name, &tag, &[]);
    let others = async {
        let results = join_all((0..50).map(|_| get(&upstream, "a"))).await;
        assert!(results.iter().all(Result::is_ok));
        // Only now does the straggler hear that its token, the first, is no good.
        late.notify_one();
    };
    let (straggler, ()) = futures_util::join!(straggler, others);
    straggler.unwrap();
    assert_eq!(server.count("/v2/a/manifests/straggler"), 2);
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_token_about_to_expire_is_not_used_again() {
    // Five seconds are less than the margin; without the member there are 60.
    for (more, tokens) in [
        (",\"expires_in\":5", 3),
        ("", 1),
        (",\"expires_in\":\"5\"", 1),
    ] {
        let server = registry_with_tokens(more).await;
        let upstream = upstream(&server, "");
        for _ in 0..3 {
            get(&upstream, "a").await.unwrap();
        }
        assert_eq!(server.count("/token"), tokens, "{more}");
    }
}

#[tokio::test]
async fn the_login_goes_to_the_token_service_and_not_to_the_registry() {
    let tokens = Server::start(|_| Reply::new(200, "{\"token\":\"t0ken\"}")).await;
    let realm = format!("Bearer realm=\"{}/token\",service=\"s\"", tokens.url());
    let server = Server::start(move |request| match request.header("authorization") {
        Some("Bearer t0ken") => Reply::new(200, "{}"),
        _ => Reply::challenge(format!("Digest qop=\"x\", Basic realm=\"y\", {realm}")),
    })
    .await;
    let listed = format!("auth_hosts = [\"{}\"]\n{LOGIN}", tokens.address);
    get(&upstream(&server, &listed), "a").await.unwrap();
    assert_eq!(tokens.seen()[0].header("authorization"), Some(BASIC));
    assert_eq!(
        tokens.seen()[0].target,
        "/token?service=s&scope=repository%3Aa%3Apull"
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|request| request.header("authorization") != Some(BASIC))
    );
}

#[tokio::test]
async fn basic_is_answered_with_a_login_and_refused_without() {
    let server = Server::start(|request| match request.header("authorization") {
        Some(BASIC) => Reply::new(200, "{}"),
        _ => Reply::challenge("Basic realm=\"x\""),
    })
    .await;
    let with = upstream(&server, LOGIN);
    get(&with, "a").await.unwrap();
    get(&with, "a").await.unwrap();
    assert_eq!(server.seen().len(), 3);
    let without = upstream(&server, "");
    assert_eq!(kind(get(&without, "a").await), UpstreamErrorKind::Refused);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn a_wrong_login_is_asked_once() {
    let server = Server::start(|_| Reply::challenge("Basic realm=\"x\"")).await;
    let upstream = upstream(&server, LOGIN);
    assert_eq!(kind(get(&upstream, "a").await), UpstreamErrorKind::Refused);
    assert_eq!(server.seen().len(), 2);
}

/// Security rows T23 and T24.
#[tokio::test]
async fn a_foreign_realm_hears_nothing() {
    let foreign = Server::bystander().await;
    let port = foreign.address.port();
    let hosts = [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
    ];
    let server = Server::start(move |request| {
        let number: usize = request.target.split('/').nth(2).unwrap().parse().unwrap();
        Reply::challenge(format!(
            "Bearer realm=\"http://{}:{port}/token\"",
            hosts[number]
        ))
    })
    .await;
    for login in ["", LOGIN] {
        let upstream = upstream(&server, login);
        for (number, host) in hosts.iter().enumerate() {
            let error = kind(get(&upstream, &number.to_string()).await);
            assert!(
                matches!(error, UpstreamErrorKind::HostRefused(_)),
                "{host}: {error}"
            );
        }
    }
    assert_eq!(foreign.connections(), 0);
}

#[tokio::test]
async fn the_refusal_of_a_realm_says_what_would_allow_it() {
    let server =
        Server::start(|_| Reply::challenge("Bearer realm=\"https://login.example/t?x=1\"")).await;
    let upstream = upstream(&server, "");
    let UpstreamErrorKind::HostRefused(text) = kind(get(&upstream, "a").await) else {
        panic!()
    };
    let line = "auth_hosts = [\"login.example\"] under [upstreams.\"registry.example\"]";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_realm_that_redirects_is_not_followed() {
    let foreign = Server::bystander().await;
    let target = foreign.url();
    let server = Server::start(move |request| {
        if request.target.starts_with("/token") {
            return Reply::redirect(target.clone());
        }
        let host = request.header("host").unwrap();
        Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let listed = format!("redirect_hosts = [\"{}\"]\n{LOGIN}", foreign.address);
    let error = kind(get(&upstream(&server, &listed), "a").await);
    assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error}");
    assert_eq!(foreign.connections(), 0);
}

/// Security row T27: neither the token on the way, nor an answer to the challenge there.
#[tokio::test]
async fn where_a_redirect_leads_no_credentials_follow() {
    for status in [200, 401] {
        let elsewhere = Server::start(move |request| {
            let host = request.header("host").unwrap();
            Reply::new(status, "{}").header(
                "www-authenticate",
                format!("Bearer realm=\"http://{host}/token\""),
            )
        })
        .await;
        let target = elsewhere.url();
        let server = Server::start(move |request| match request.header("authorization") {
            Some(BASIC) => Reply::redirect(target.clone()),
            _ => Reply::challenge("Basic realm=\"x\""),
        })
        .await;
        let host = elsewhere.address;
        let listed = format!("redirect_hosts = [\"{host}\"]\nauth_hosts = [\"{host}\"]\n{LOGIN}");
        let result = get(&upstream(&server, &listed), "a").await;
        assert_eq!(result.is_ok(), status == 200);
        assert_eq!(elsewhere.seen().len(), 1);
        assert_eq!(elsewhere.seen()[0].header("authorization"), None);
        assert_eq!(server.seen().len(), 2);
    }
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let bodies: [&str; 6] = [
        "{}",
        "{\"token\":\"\"}",
        "{\"token\":\"t0ken\\r\\nx: y\"}",
        "<html>",
        "{\"token\":7}",
        &format!("{{\"token\":\"{}\"}}", "x".repeat(128 << 10)),
    ];
    for body in bodies.map(str::to_owned) {
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                return Reply::new(200, body.clone());
            }
            let host = request.header("host").unwrap();
            Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
        })
        .await;
        let error = kind(get(&upstream(&server, ""), "a").await);
        assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error}");
        assert_eq!(server.count("/token"), 1);
    }
}

#[tokio::test]
async fn challenges_without_a_way_out_are_refused() {
    for (challenge, expected) in [
        ("Bearer", "Invalid"),
        ("Bearer realm=\"not a url\"", "Invalid"),
        ("Negotiate", "Refused"),
        ("", "Refused"),
    ] {
        let server = Server::start(move |_| Reply::challenge(challenge)).await;
        let error = kind(get(&upstream(&server, LOGIN), "a").await);
        assert!(
            format!("{error:?}").starts_with(expected),
            "{challenge}: {error:?}"
        );
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_token_service_that_is_down_is_an_outage_and_one_that_refuses_is_not() {
    for (status, tries, expected) in [(503, 3, "Unavailable"), (401, 1, "Refused")] {
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                return Reply::new(status, "");
            }
            let host = request.header("host").unwrap();
            Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
        })
        .await;
        let error = kind(get(&upstream(&server, LOGIN), "a").await);
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        assert_eq!(server.count("/token"), tries);
    }
}
