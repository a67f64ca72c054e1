//! Logins: they reach their upstream and nobody else. That none of them shows is what every test
//! checks (`support::canary`).

use portcullis::oci::Digest;

use crate::support::at;
use crate::support::canary::{basic, secret};
use crate::support::image::{Image, Manifest, random};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::{Fault, Upstream};

pub const USER: &str = secret!("user");
pub const PASSWORD: &str = secret!("password");

pub fn login() -> String {
    format!("username = \"{USER}\"\npassword = \"{PASSWORD}\"\nshare_with = \"everyone\"")
}

/// The whole image, byte for byte.
pub fn pull_all(proxy: &Proxy, image: &Image) {
    proxy
        .get(&at("demo/app/manifests/1"))
        .assert_whole(&image.manifest.bytes);
    for blob in image.blobs() {
        let path = at(&format!("demo/app/blobs/{}", Digest::sha256(blob)));
        proxy.get(&path).assert_whole(blob);
    }
}

#[test]
fn a_password_opens_the_registry() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, PASSWORD));
    let proxy = Setup::new(&upstream).upstream(&login()).start();
    let image = Image::with_layers(&[1000, 200_000]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
}

#[test]
fn a_token_is_fetched_once_for_an_image() {
    let upstream = Upstream::start();
    upstream.require_token();
    let proxy = Setup::new(&upstream).upstream(&login()).start();
    let image = Image::with_layers(&[1000; 8]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
    let tokens = upstream.seen("/token");
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    assert_eq!(
        tokens[0].header("authorization"),
        Some(&*basic(USER, PASSWORD))
    );
    assert!(
        tokens[0].query.contains("scope=repository"),
        "{}",
        tokens[0].query
    );
    assert!(
        tokens[0].query.contains("service=upstream"),
        "{}",
        tokens[0].query
    );
    // One 401 at most; after that the token is known.
    assert!(
        upstream.seen("/v2/").len() <= 11,
        "{:?}",
        upstream.seen("/v2/")
    );
}

#[test]
fn anonymous_tokens_work_without_a_login() {
    let upstream = Upstream::start();
    upstream.require_token();
    let proxy = Proxy::start(&upstream);
    let image = Image::with_layers(&[1000, 200_000]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
    let tokens = upstream.seen("/token");
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].header("authorization"), None);
}

/// Many at once need one token, not many.
#[test]
fn one_refresh_at_a_time() {
    let upstream = Upstream::start();
    upstream.require_token();
    upstream.latency(std::time::Duration::from_millis(200));
    let proxy = Proxy::start(&upstream);
    for n in 0..8 {
        upstream.manifest("demo/app", &format!("t{n}"), &Manifest::unique());
    }
    std::thread::scope(|scope| {
        for n in 0..8 {
            let path = at(&format!("demo/app/manifests/t{n}"));
            let proxy = &proxy;
            scope.spawn(move || proxy.get(&path).assert(200));
        }
    });
    assert_eq!(upstream.hits("/token"), 1);
}

#[test]
fn a_wrong_login_is_403_without_a_challenge() {
    let upstream = Upstream::start();
    upstream.require_basic("Basic other");
    let proxy = Setup::new(&upstream).upstream(&login()).start();
    upstream.manifest("demo/app", "1", &Manifest::unique());
    let answer = proxy
        .get(&at("demo/app/manifests/1"))
        .assert_error(403, "DENIED");
    assert!(answer.reason.contains("credentials"), "{answer:?}");
    proxy.head(&at("demo/app/manifests/1")).assert(403);
}

/// A listed storage host gets the request, not the login; and its own challenge is not answered.
#[test]
fn a_redirect_drops_the_login() {
    for token in [true, false] {
        let (upstream, storage) = (Upstream::start(), Upstream::start());
        if token {
            upstream.require_token();
        } else {
            upstream.require_basic(&basic(USER, PASSWORD));
        }
        let hosts = format!("{}\nredirect_hosts = [\"{}\"]", login(), storage.address());
        let proxy = Setup::new(&upstream).upstream(&hosts).start();
        let bytes = random(300_000);
        let digest = upstream.blob("demo/app", bytes.clone());
        storage.blob("demo/app", bytes.clone());
        upstream.always(digest, Fault::Redirect(storage.origin()));
        proxy
            .get(&at(&format!("demo/app/blobs/{digest}")))
            .assert_whole(&bytes);
        assert!(storage.hits(digest) > 0);

        let refused = upstream.blob("demo/app", random(300_000));
        upstream.always(refused, Fault::Redirect(storage.origin()));
        storage.require_token_of(&format!("{}/token", storage.origin()));
        let answer = proxy.get(&at(&format!("demo/app/blobs/{refused}")));
        assert!(matches!(answer.status, 403 | 502), "{answer:?}");
        for request in storage.requests() {
            assert_eq!(request.header("authorization"), None, "{request:?}");
        }
        assert_eq!(storage.hits("/token"), 0);
    }
}

/// A signed URL is a secret too.
#[test]
fn the_query_of_a_redirect_shows_nowhere() {
    let (upstream, storage) = (Upstream::start(), Upstream::start());
    let hosts = format!("redirect_hosts = [\"{}\"]", storage.address());
    let proxy = Setup::new(&upstream).upstream(&hosts).start();
    for stored in [true, false] {
        let bytes = random(300_000);
        let digest = upstream.blob("demo/app", bytes.clone());
        let place = format!("/v2/demo/app/blobs/{digest}");
        if stored {
            storage.blob("demo/app", bytes.clone());
        }
        let location = format!("{}{place}?sig={PASSWORD}", storage.origin());
        let redirect = Fault::Answer(307, vec![("Location", location)], Vec::new());
        upstream.always(digest, redirect);
        let answer = proxy.get(&at(&format!("demo/app/blobs/{digest}")));
        assert_eq!(answer.status, if stored { 200 } else { 404 }, "{answer:?}");
        assert!(storage.seen(digest)[0].query.contains(PASSWORD));
    }
}

#[test]
fn a_login_needs_to_be_shared_aloud() {
    let upstream = Upstream::start();
    let proxy = Proxy::start(&upstream);
    for login in [
        &format!("username = \"corp\"\npassword = \"{PASSWORD}\""),
        "credential = \"azure\"",
        "credential = { exec = [\"/bin/true\"] }",
        "[upstreams.\"registry.example\".logins.\"corp\"]\ncredential = \"azure\"",
    ] {
        let output = proxy.run(|setup| setup.upstream(login), &["check"]);
        let text = output.assert_failure().text;
        assert!(text.contains("share_with"), "{login}: {text}");
    }
}

#[test]
fn secrets_come_from_files_and_the_environment() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, PASSWORD));
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("password");
    // As editors leave it.
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let lines = format!(
        "username = \"{USER}\"\npassword = {{ file = \"{}\" }}\nshare_with = \"everyone\"",
        file.display()
    );
    let proxy = Setup::new(&upstream).upstream(&lines).start();
    let image = Image::with_layers(&[1000]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
}
