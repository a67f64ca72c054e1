//! What real registries do that the specification does not say, each in the smallest scene that
//! shows it. The names are those of who was seen doing it.

use super::*;
use crate::upstream::BlobResponse;

async fn read(mut blob: BlobResponse) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(chunk) = blob.body.chunk().await.unwrap() {
        body.extend_from_slice(&chunk);
    }
    body
}

/// A registry that wants a token, with a challenge and a token service of its own. `challenge` has
/// `{own}` where its own address belongs.
async fn with_tokens(challenge: &'static str, body: &'static str) -> Server {
    Server::start(move |request| {
        if request.target.starts_with("/v2/a/") {
            if request.header("authorization") == Some("Bearer t0ken") {
                return Reply::new(200, "{}");
            }
            let own = format!("http://{}", request.header("host").unwrap());
            return challenge
                .lines()
                .map(|line| line.replace("{own}", &own))
                .fold(Reply::new(401, "{}"), |reply, line| {
                    reply.header("www-authenticate", line)
                });
        }
        Reply::new(200, body)
    })
    .await
}

/// What the token service was asked, after one manifest was had.
async fn asked_for_a_token(challenge: &'static str, body: &'static str, more: &str) -> String {
    let server = with_tokens(challenge, body).await;
    let upstream = upstream(&server, more);
    assert_eq!(get(&upstream, "a").await.unwrap(), b"{}", "{challenge}");
    let tokens = server.seen().into_iter().map(|request| request.target);
    let mut tokens = tokens.filter(|target| !target.starts_with("/v2/a/"));
    let asked = tokens.next().unwrap();
    assert_eq!(tokens.next(), None, "once");
    asked
}

/// registry.k8s.io sends manifests elsewhere too: 307 to Artifact Registry.
#[tokio::test]
async fn manifests_are_redirected() {
    let pkg_dev = Server::start(|request| {
        assert_eq!(request.header("authorization"), None);
        Reply::new(200, "{}").header("docker-content-digest", digest().to_string())
    })
    .await;
    let to = pkg_dev.url();
    let server = Server::start(move |request| {
        Reply::redirect(format!(
            "{to}/v2/k8s-artifacts-prod/images{}",
            &request.target[3..]
        ))
    })
    .await;
    let listed = format!("redirect_hosts = [\"{}\"]", pkg_dev.address);
    let upstream = upstream(&server, &listed);
    assert_eq!(get(&upstream, "pause").await.unwrap(), b"{}");
    let (name, tag) = (repository("pause"), tag("3.9"));
    let probe = upstream.probe_manifest(&name, &tag, &[]).await;
    assert_eq!(probe.unwrap().digest, Some(digest()));
    let targets: Vec<_> = pkg_dev.seen().into_iter().map(|it| it.target).collect();
    let there = "/v2/k8s-artifacts-prod/images/pause/manifests";
    assert_eq!(targets, [format!("{there}/latest"), format!("{there}/3.9")]);
    // Nobody asks it for `/v2/` either, which it answers without a challenge whatever it wants later.
    assert_eq!(server.count("/v2/pause/"), server.seen().len());
}

/// Artifact Registry answers a blob with a path: on the same host, with the same token.
#[tokio::test]
async fn a_location_is_relative() {
    let server = Server::start(|request| match &*request.target {
        "/token?service=pkg" => Reply::new(200, "{\"token\":\"t0ken\"}"),
        _ if request.header("authorization") != Some("Bearer t0ken") => {
            let host = request.header("host").unwrap();
            Reply::challenge(format!(
                "Bearer realm=\"http://{host}/token\",service=\"pkg\",scope=\"\""
            ))
        }
        "/artifacts-downloads/namespaces/x" => Reply::new(200, "bytes"),
        _ => Reply::redirect("/artifacts-downloads/namespaces/x"),
    })
    .await;
    let upstream = upstream(&server, "");
    let blob = upstream.blob(&repository("a"), &digest(), None).await;
    assert_eq!(read(blob.unwrap()).await, b"bytes");
}

/// ECR Public: the slash at the end of the realm is part of it, and the scope is none of ours.
#[tokio::test]
async fn a_realm_has_a_path_and_a_trailing_slash() {
    let token = "{\"token\":\"t0ken\"}";
    let ecr = "Bearer realm=\"{own}/token/\",service=\"public.ecr.aws\",scope=\"aws\"";
    let asked = asked_for_a_token(ecr, token, "").await;
    assert_eq!(asked, "/token/?service=public.ecr.aws&scope=aws");
    let quay = "Bearer realm=\"{own}/v2/auth\",service=\"quay.io\",scope=\"repository:a:pull\"";
    let asked = asked_for_a_token(quay, token, "").await;
    assert_eq!(
        asked,
        "/v2/auth?service=quay.io&scope=repository%3Aa%3Apull"
    );
    let red_hat = "Bearer realm=\"{own}/auth/realms/rhcc/protocol/redhat-docker-v2/auth\",\
                   service=\"docker-registry\"";
    let asked = asked_for_a_token(red_hat, token, "").await;
    assert_eq!(
        asked,
        "/auth/realms/rhcc/protocol/redhat-docker-v2/auth?service=docker-registry\
         &scope=repository%3Aa%3Apull"
    );
    // What stands in the realm's query stays.
    let with_query = "Bearer realm=\"{own}/token?account=x\",service=\"y\"";
    let asked = asked_for_a_token(with_query, token, "").await;
    assert_eq!(
        asked,
        "/token?account=x&service=y&scope=repository%3Aa%3Apull"
    );
}

/// Artifact Registry may leave the service out; then none is sent.
#[tokio::test]
async fn a_challenge_has_no_service() {
    let token = "{\"token\":\"t0ken\"}";
    let challenge = "Bearer realm=\"{own}/v2/token\"";
    let asked = asked_for_a_token(challenge, token, "").await;
    assert_eq!(asked, "/v2/token?scope=repository%3Aa%3Apull");
}

/// OAuth 2 calls it `access_token`; some send both, of which one is empty; nobody has to say how
/// long it is good for, and some say it in quotes or with a fraction.
#[tokio::test]
async fn a_token_goes_by_two_names() {
    for body in [
        "{\"access_token\":\"t0ken\"}",
        "{\"access_token\":\"t0ken\",\"token\":\"\",\"expires_in\":300}",
        "{\"token\":\"t0ken\",\"access_token\":\"t0ken\",\"refresh_token\":\"x\"}",
        "{\"token\":\"t0ken\",\"expires_in\":\"300\"}",
        "{\"token\":\"t0ken\",\"expires_in\":299.5,\"issued_at\":\"yesterday\"}",
        "{\"token\":\"t0ken\",\"expires_in\":null}",
        "{\"token\":\"t0ken\",\"expires_in\":-1}",
    ] {
        asked_for_a_token("Bearer realm=\"{own}/token\"", body, "").await;
    }
}

/// Both ways to log in, in one line or two, either first: the token it is.
#[tokio::test]
async fn two_challenges_come_at_once() {
    let login = "username = \"corp\"\npassword = \"hunter2\"\nshare_with = \"everyone\"\n";
    for challenge in [
        "Basic realm=\"x\"\nBearer realm=\"{own}/token\"",
        "Bearer realm=\"{own}/token\"\nBasic realm=\"x\"",
        "Basic realm=\"x\", Bearer realm=\"{own}/token\"",
        "Bearer realm=\"{own}/token\", Basic realm=\"x\"",
        "BEARER Realm=\"{own}/token\"",
    ] {
        for more in ["", login] {
            asked_for_a_token(challenge, "{\"token\":\"t0ken\"}", more).await;
        }
    }
}

/// Whoever streams does not know the length before the end.
#[tokio::test]
async fn no_length_is_told() {
    let server = Server::start(|request| match &*request.method {
        "HEAD" => Reply::new(200, "").length(None),
        _ => Reply::new(200, "{\"some\":\"bytes\"}").length(None),
    })
    .await;
    let upstream = upstream(&server, "");
    let name = repository("a");
    assert_eq!(get(&upstream, "a").await.unwrap(), b"{\"some\":\"bytes\"}");
    let blob = upstream.blob(&name, &digest(), Some(0..100)).await.unwrap();
    assert_eq!((blob.range.clone(), blob.total), (None, None));
    assert_eq!(read(blob).await, b"{\"some\":\"bytes\"}");
    let probe = upstream.probe_blob(&name, &digest()).await.unwrap();
    assert_eq!(probe.size, None);
    let probe = upstream
        .probe_manifest(&name, &tag("1"), &[])
        .await
        .unwrap();
    assert_eq!((probe.size, probe.digest), (None, None));
}

/// There are registries, and walls in front of them, that know no HEAD and say so in many ways.
#[tokio::test]
async fn head_is_unknown() {
    for status in [400, 403, 404, 405, 501] {
        let server = Server::start(move |request| match &*request.method {
            "HEAD" => Reply::new(status, "<html>").header("content-type", "text/html"),
            _ if request.target.contains("/blobs/") => {
                Reply::new(206, "x").header("content-range", "bytes 0-0/777")
            }
            _ => Reply::new(200, "{}").header("docker-content-digest", digest().to_string()),
        })
        .await;
        let upstream = upstream(&server, "");
        let name = repository("a");
        let probe = upstream.probe_manifest(&name, &tag("1"), &[]).await;
        assert_eq!(probe.unwrap().digest, Some(digest()), "{status}");
        let probe = upstream.probe_blob(&name, &digest()).await;
        assert_eq!(probe.unwrap().size, Some(777), "{status}");
        assert_eq!(server.seen().len(), 4, "{status}");
    }
    // A registry's own no is believed at once.
    for (status, sign) in [
        (404, ("content-type", "application/json; charset=utf-8")),
        (403, ("docker-distribution-api-version", "registry/2.0")),
    ] {
        let server = Server::start(move |_| Reply::new(status, "").header(sign.0, sign.1)).await;
        let probe = upstream(&server, "")
            .probe_blob(&repository("a"), &digest())
            .await;
        let refused = kind(probe) == UpstreamErrorKind::Refused;
        assert_eq!((refused, server.seen().len()), (status == 403, 1));
    }
}

/// Three redirects are followed, a fourth is not; and what a CDN says of caches is for others.
#[tokio::test]
async fn redirects_come_in_chains() {
    let server = Server::start(|request| {
        let left: u32 = request
            .target
            .rsplit('/')
            .next()
            .unwrap()
            .parse()
            .unwrap_or(4);
        match (left, request.target.contains("/three/")) {
            (1, _) => Reply::new(200, "{}").header("cache-control", "private, max-age=0, no-store"),
            (4, true) => Reply::redirect("/x/3"),
            (4, false) => Reply::redirect("/x/5"),
            _ => Reply::redirect(format!("/x/{}", left - 1)),
        }
    })
    .await;
    let upstream = upstream(&server, "");
    assert_eq!(get(&upstream, "three").await.unwrap(), b"{}");
    let error = kind(get(&upstream, "five").await);
    assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error:?}");
}

/// A digest in capitals is the same one; one that is wrong is only a hint, and none is no hint.
#[tokio::test]
async fn the_digest_of_a_manifest_is_told_in_many_ways() {
    let server = Server::start(|request| {
        let reply = Reply::new(200, "");
        let told = digest().to_string();
        match request.target.split('/').nth(2) {
            Some("capitals") => {
                let told = told.to_uppercase().replace("SHA256", "sha256");
                reply.header("docker-content-digest", told)
            }
            Some("shouting") => reply.header("docker-content-digest", told.to_uppercase()),
            Some("short") => reply.header("docker-content-digest", &told[..20]),
            _ => reply,
        }
    })
    .await;
    let upstream = upstream(&server, "");
    let told = async |name| {
        let (name, tag) = (repository(name), tag("1"));
        let probe = upstream.probe_manifest(&name, &tag, &[]).await;
        probe.unwrap().digest
    };
    assert_eq!(told("capitals").await, Some(digest()));
    assert_eq!(told("shouting").await, Some(digest()));
    assert_eq!(told("short").await, None);
    assert_eq!(told("silent").await, None);
}
