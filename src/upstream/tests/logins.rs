//! Several logins, logins that change, and tokens that stay with whoever asked for them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::faults::certificates;
use super::*;

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// A registry whose `/token` gives `t0ken-<login>` to the logins that `accepts` knows, and whose
/// manifests show who asked for them.
async fn registry_of(accepts: impl Fn(&str) -> bool + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        let sent = request.header("authorization").unwrap_or_default();
        if request.target.starts_with("/token") {
            let login = sent
                .strip_prefix("Basic ")
                .map(|text| STANDARD.decode(text));
            let login = login.map(|bytes| String::from_utf8(bytes.unwrap()).unwrap());
            return match login {
                Some(login) if accepts(&login) => Reply::new(
                    200,
                    format!("{{\"token\":\"t0ken-{login}\",\"expires_in\":300}}"),
                ),
                // As a careless service would.
                login => Reply::new(401, format!("{{\"message\":\"no such login: {login:?}\"}}")),
            };
        }
        match sent.strip_prefix("Bearer t0ken-") {
            Some(login) if accepts(login) => {
                let login = login.split(':').next().unwrap();
                Reply::new(200, format!("{{\"login\":\"{login}\"}}"))
            }
            _ => {
                let host = request.header("host").unwrap();
                // The same scope for all, so that only the login tells one token from another.
                let realm = format!("Bearer realm=\"http://{host}/token\"");
                Reply::challenge(format!(
                    "{realm},service=\"s\",scope=\"repository:all:pull\""
                ))
            }
        }
    })
    .await
}

async fn login_of(upstream: &Upstream, name: &str) -> String {
    let manifest: serde_json::Value =
        serde_json::from_slice(&get(upstream, name).await.unwrap()).unwrap();
    manifest["login"].as_str().unwrap().to_owned()
}

fn written(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    // The file is whole or absent.
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(&temporary, &path).unwrap();
    path
}

/// Security row T31: a token belongs to the login that asked for it.
#[tokio::test]
async fn the_longest_prefix_decides_and_tokens_do_not_cross() {
    let server = registry_of(|_| true).await;
    let lines = format!(
        "share_with = \"everyone\"\nusername = \"all\"\npassword = \"hunter2\"\n\
         [\"{NAME}\".logins.\"corp\"]\nusername = \"corp\"\npassword = \"hunter2\"\n\
         [\"{NAME}\".logins.\"corp/app\"]\nusername = \"app\"\npassword = \"hunter2\""
    );
    let upstream = upstream(&server, &lines);
    for (name, login) in [
        ("other", "all"),
        ("corp/other", "corp"),
        ("corp/app", "app"),
        ("corp/app/part", "app"),
        ("corp/application", "corp"),
        ("corporate", "all"),
    ] {
        assert_eq!(login_of(&upstream, name).await, login, "{name}");
    }
    assert_eq!(server.count("/token"), 3);
}

#[tokio::test]
async fn a_password_that_was_rotated_is_read_when_the_old_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let now = Arc::new(std::sync::Mutex::new("corp:hunter2-old".to_owned()));
    let good = Arc::clone(&now);
    let server = registry_of(move |login| login == *good.lock().unwrap()).await;
    let file = written(directory.path(), "password", "hunter2-old\n");
    let lines =
        format!("share_with = \"everyone\"\nusername = \"corp\"\npassword = {{ file = {file:?} }}");
    let upstream = upstream(&server, &lines);
    assert_eq!(login_of(&upstream, "a").await, "corp");
    // The registry changes its mind and the file follows, all within a second.
    *now.lock().unwrap() = "corp:hunter2-new".to_owned();
    written(directory.path(), "password", "hunter2-new\n");
    assert_eq!(login_of(&upstream, "a").await, "corp");
    // The first token, one try with the old password, the second token.
    assert_eq!(server.count("/token"), 3);

    // And where there is nothing new, one look is enough.
    *now.lock().unwrap() = "corp:else".to_owned();
    let before = server.count("/token");
    assert_eq!(kind(get(&upstream, "a").await), UpstreamErrorKind::Refused);
    assert_eq!(server.count("/token"), before + 1);
}

#[tokio::test]
async fn the_same_for_a_registry_that_asks_for_the_password_itself() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.header("authorization") {
        Some(sent) if sent == basic("corp:hunter2-new") => Reply::new(200, "{}"),
        _ => Reply::challenge("Basic realm=\"x\""),
    })
    .await;
    let file = written(directory.path(), "password", "hunter2-old");
    let lines =
        format!("share_with = \"everyone\"\nusername = \"corp\"\npassword = {{ file = {file:?} }}");
    let upstream = upstream(&server, &lines);
    assert_eq!(kind(get(&upstream, "a").await), UpstreamErrorKind::Refused);
    written(directory.path(), "password", "hunter2-new");
    get(&upstream, "a").await.unwrap();
    let seen = server.seen();
    get(&upstream, "a").await.unwrap();
    assert_eq!(server.seen().len(), seen.len() + 1);
}

fn docker_config(directory: &Path, entry: &str) -> String {
    let text = format!("{{\"auths\":{{\"{NAME}\":{entry}}}}}");
    let file = written(directory, "config.json", &text);
    format!("share_with = \"everyone\"\ncredential = {{ docker_config = {file:?} }}")
}

#[tokio::test]
async fn an_identity_token_goes_into_a_form_at_the_token_service() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|request| {
        if request.target == "/token" {
            return Reply::new(200, "{\"access_token\":\"t0ken\"}");
        }
        let host = request.header("host").unwrap();
        match request.header("authorization") {
            Some("Bearer t0ken") => Reply::new(200, "{}"),
            _ => Reply::challenge(format!(
                "Bearer realm=\"http://{host}/token\",service=\"s\""
            )),
        }
    })
    .await;
    let lines = docker_config(directory.path(), "{\"identitytoken\":\"hunter2\"}");
    get(&upstream(&server, &lines), "a").await.unwrap();
    let seen = server.seen();
    let asked = seen.iter().find(|request| request.target == "/token");
    let asked = asked.unwrap();
    assert_eq!(
        (&*asked.method, asked.header("authorization")),
        ("POST", None)
    );
    assert_eq!(
        asked.header("content-type"),
        Some("application/x-www-form-urlencoded")
    );
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&service=s&client_id=portcullis&scope=repository%3Aa%3Apull\
         &refresh_token=hunter2"
    );
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    for challenge in [
        "Basic realm=\"x\"",
        "Bearer realm=\"http://127.0.0.1:1/token\"",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(move |request| match request.header("authorization") {
            Some("Bearer hunter2") => Reply::new(200, "{}"),
            _ => Reply::challenge(challenge),
        })
        .await;
        let lines = docker_config(directory.path(), "{\"registrytoken\":\"hunter2\"}");
        get(&upstream(&server, &lines), "a").await.unwrap();
        let wrong = docker_config(directory.path(), "{\"registrytoken\":\"t0ken\"}");
        let wrong = upstream(&server, &wrong);
        assert_eq!(kind(get(&wrong, "a").await), UpstreamErrorKind::Refused);
        assert_eq!(server.seen().len(), 4);
    }
}

/// A helper that fails is our failure and no word of the registry's; nobody is asked without a login.
#[tokio::test]
async fn without_the_login_that_should_be_there_nothing_is_asked() {
    let server = Server::start(|_| Reply::challenge("Basic realm=\"x\"")).await;
    let exec = "credential = { exec = [\"/bin/sh\", \"-c\", \"echo hunter2; exit 7\"] }";
    let upstream = upstream(&server, &format!("share_with = \"everyone\"\n{exec}"));
    let error = kind(get(&upstream, "a").await);
    let UpstreamErrorKind::LoginUnavailable(text) = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("/bin/sh ended with exit code 7"), "{text}");
    assert_eq!(server.seen().len(), 1);
}

/// Security row T23: the realm's scheme counts, even on the registry's own host.
#[tokio::test]
async fn a_realm_without_tls_hears_nothing() {
    let (pem, config) = certificates();
    let directory = tempfile::tempdir().unwrap();
    let file = written(directory.path(), "ca.pem", &pem);
    let server = Server::start_tls(config, |request| {
        let host = request.header("host").unwrap();
        Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let login = "username = \"corp\"\npassword = \"hunter2\"\nshare_with = \"everyone\"";
    for login in ["", login] {
        let toml = format!(
            "[\"{NAME}\"]\nendpoints = [\"https://{}\"]\nca_files = [{file:?}]\n{login}",
            server.address
        );
        let upstreams = upstreams(&toml, &Limits::default()).unwrap();
        let upstream = upstreams.get(&registry(NAME)).unwrap();
        let error = kind(get(&upstream, "a").await);
        let UpstreamErrorKind::HostRefused(text) = error else {
            panic!("{error:?}")
        };
        assert!(text.contains("without https"), "{text}");
        assert_eq!(server.count("/token"), 0);
    }
    assert_eq!(server.connections(), 2);
}

/// Security row T32: bounded in size without a word about its length, in depth and in time.
#[tokio::test]
async fn the_answer_of_a_token_service_is_bounded() {
    let deep = format!("{{\"more\":{}1{}}}", "[".repeat(60_000), "]".repeat(60_000));
    let large = format!(
        "{{\"token\":\"t0ken\",\"more\":\"{}\"}}",
        "x".repeat(8 << 20)
    );
    for body in [deep, large] {
        let server = Server::start(move |request| {
            if request.target.starts_with("/token") {
                return Reply::new(200, body.clone()).length(None);
            }
            let host = request.header("host").unwrap();
            Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
        })
        .await;
        let error = kind(get(&upstream(&server, ""), "a").await);
        assert!(matches!(error, UpstreamErrorKind::Invalid(_)), "{error}");
    }

    let server = Server::start(|request| {
        if request.target.starts_with("/token") {
            return Reply::new(200, "{").length(Some(30)).then(Then::Stall);
        }
        let host = request.header("host").unwrap();
        Reply::challenge(format!("Bearer realm=\"http://{host}/token\""))
    })
    .await;
    let upstream = upstream(&server, "");
    let pull = get(&upstream, "a");
    let stalled = async {
        while server.count("/token") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Nothing moves any more but the clock.
        tokio::time::pause();
    };
    let (error, ()) = futures_util::join!(pull, stalled);
    let error = kind(error);
    assert!(matches!(error, UpstreamErrorKind::TimedOut(_)), "{error}");
}
