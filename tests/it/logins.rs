//! Logins that are kept elsewhere, logins that change, and real registries that ask for them.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::credentials::{PASSWORD, USER, login, pull_all};
use crate::support::at;
use crate::support::canary::{basic, secret};
use crate::support::image::{Image, Manifest};
use crate::support::programs::{Registry, run};
use crate::support::proxy::Setup;
use crate::support::service::{Reply, Request, Service};
use crate::support::upstream::Upstream;

const OTHER: &str = secret!("other");
/// Of [`PASSWORD`], by bcrypt: the one kind that docker-registry understands.
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuuMoZbVclxaDZ2RD5c5Q7RKfYYJBpUWO6";

/// A shell script as a program. Written by another process: a program that somebody forks while it
/// is still open for writing cannot be started.
fn install(path: &Path, script: &str) {
    let write = "cat > \"$0\" <<'END'\n#!/bin/sh\n".to_owned() + script + "\nEND\nchmod 755 \"$0\"";
    run(Command::new("/bin/sh").args(["-c", &write]).arg(path)).assert_success();
}

fn printing(user: &str, password: &str) -> String {
    format!(r#"printf '{{"ServerURL":"%s","Username":"{user}","Secret":"{password}"}}' "$server""#)
}

#[test]
fn dockers_config_and_its_helpers_are_asked() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, PASSWORD));
    let directory = TempDir::new().unwrap();
    let (bin, asked) = (directory.path().join("bin"), directory.path().join("asked"));
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "read server; echo \"$1 $server $SECRET\" >> {}\n{}",
        asked.display(),
        printing(USER, PASSWORD)
    );
    install(&bin.join("docker-credential-portcullis"), &script);
    let config = json!({
        "auths": { "registry.example": { "auth": STANDARD.encode(format!("{USER}:{OTHER}")) } },
        "credHelpers": { "registry.example/demo": "portcullis" },
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let proxy = Setup::new(&upstream)
        .upstream("credential = \"docker-config\"\nshare_with = \"everyone\"")
        .env("DOCKER_CONFIG", directory.path().to_str().unwrap())
        .env("PATH", &format!("{}:/usr/bin:/bin", bin.display()))
        .env("SECRET", secret!("of-the-proxy"))
        .start();
    let image = Image::with_layers(&[1000, 200_000]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
    // Once for all, with no newline behind the name and nothing of our environment.
    let asked = std::fs::read_to_string(asked).unwrap();
    assert_eq!(asked, "get registry.example/demo \n");
    // Elsewhere in the registry there is the other login, which is wrong.
    proxy
        .get(&at("another/app/manifests/1"))
        .assert_error(403, "DENIED");
    let sent = upstream.seen("/v2/another/app/manifests/1");
    assert_eq!(sent[1].header("authorization"), Some(&*basic(USER, OTHER)));
}

#[test]
fn a_program_gives_the_login_and_is_not_asked_twice() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, PASSWORD));
    let directory = TempDir::new().unwrap();
    let asked = directory.path().join("asked");
    let script = format!(
        "read server; echo \"$1 $server $REGION\" >> {}; {}",
        asked.display(),
        printing(USER, PASSWORD)
    );
    let lines = format!(
        "credential = {{ exec = [\"/bin/sh\", \"-c\", {}, \"helper\", \"argument\"], \
         env = [\"REGION\"], lifetime = \"1h\" }}\nshare_with = \"everyone\"",
        toml::Value::String(script)
    );
    let proxy = Setup::new(&upstream)
        .upstream(&lines)
        .env("REGION", "eu")
        .start();
    let image = Image::with_layers(&[1000, 200_000]);
    upstream.image("demo/app", "1", &image);
    pull_all(&proxy, &image);
    let asked = std::fs::read_to_string(asked).unwrap();
    assert_eq!(asked, "argument registry.example eu\n");
}

#[test]
fn a_program_that_fails_is_named_and_not_quoted() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, PASSWORD));
    let fail = format!("echo {PASSWORD}; echo {PASSWORD} >&2; exit 9");
    let lines = format!(
        "credential = {{ exec = [\"/bin/sh\", \"-c\", \"{fail}\"] }}\nshare_with = \"everyone\""
    );
    let proxy = Setup::new(&upstream).upstream(&lines).start();
    let answer = proxy
        .get(&at("demo/app/manifests/1"))
        .assert_error(502, "UNAVAILABLE");
    let expected = "the credential helper /bin/sh ended with exit code 9";
    assert!(answer.reason.contains(expected), "{answer:?}");
    // Nobody was asked a second time without it.
    assert_eq!(upstream.hits("demo/app"), 1);
    let missing = "credential = { exec = [\"docker-credential-none\"] }\nshare_with = \"everyone\"";
    let text = Setup::new(&upstream).upstream(missing).check();
    let text = text.assert_failure().text;
    assert!(
        text.contains("no program docker-credential-none on PATH"),
        "{text}"
    );
}

/// Kubernetes renews a mounted secret by swapping a link.
#[test]
fn a_rotated_secret_is_used_without_a_restart() {
    let upstream = Upstream::start();
    upstream.require_basic(&basic(USER, OTHER));
    let directory = TempDir::new().unwrap();
    let mount = |number: &str, password: &str| {
        let data = directory.path().join(number);
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("password"), password).unwrap();
        let link = directory.path().join("new");
        symlink(&data, &link).unwrap();
        std::fs::rename(&link, directory.path().join("data")).unwrap();
    };
    mount("1", OTHER);
    let file = directory.path().join("data/password");
    let lines = format!(
        "username = \"{USER}\"\npassword = {{ file = {file:?} }}\nshare_with = \"everyone\""
    );
    let proxy = Setup::new(&upstream).upstream(&lines).start();
    for tag in ["1", "2"] {
        upstream.manifest("demo/app", tag, &Manifest::unique());
    }
    proxy.get(&at("demo/app/manifests/1")).assert(200);
    upstream.require_basic(&basic(USER, PASSWORD));
    mount("2", PASSWORD);
    // At once: that the old one is refused is reason enough to look.
    proxy.get(&at("demo/app/manifests/2")).assert(200);
}

#[test]
fn each_part_of_a_registry_may_have_a_login_of_its_own() {
    let upstream = Upstream::start();
    let lines = format!(
        "{}\n[upstreams.\"registry.example\".logins.\"demo\"]\nusername = \"{OTHER}\"\n\
         password = \"{OTHER}\"",
        login()
    );
    let proxy = Setup::new(&upstream).upstream(&lines).start();
    for (repository, header) in [
        ("demo/app", basic(OTHER, OTHER)),
        ("another/app", basic(USER, PASSWORD)),
    ] {
        upstream.require_basic(&header);
        let manifest = Manifest::unique();
        upstream.manifest(repository, "1", &manifest);
        let path = at(&format!("{repository}/manifests/1"));
        proxy.get(&path).assert_whole(&manifest.bytes);
        let sent = upstream.seen(repository);
        let sent: Vec<_> = sent
            .iter()
            .filter_map(|r| r.header("authorization"))
            .collect();
        assert_eq!(sent, [header]);
    }
}

/// Debian's docker-registry with htpasswd.
#[test]
fn a_registry_with_a_password_file() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("htpasswd");
    std::fs::write(&file, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
    let auth = format!(
        "auth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
        file.display()
    );
    let registry = Registry::asking(&auth);
    let image = Image::with_layers(&[1000, 300_000]);
    let creds = format!("{USER}:{PASSWORD}");
    registry.push_as(&["--dest-creds", &creds], "demo/app", "1", &image);

    let origin = format!("http://{}", registry.address);
    let proxy = Setup::registry_at(&origin).upstream(&login()).start();
    pull_all(&proxy, &image);
    for lines in [login().replace(PASSWORD, OTHER), String::new()] {
        let proxy = Setup::registry_at(&origin).upstream(&lines).start();
        let answer = proxy
            .get(&at("demo/app/manifests/1"))
            .assert_error(403, "DENIED");
        assert!(answer.reason.contains("needs credentials"), "{answer:?}");
        assert!(answer.header("www-authenticate").is_none());
    }
}

/// A token service of the tests' own, whose signature docker-registry verifies.
struct TokenService {
    service: Service,
    /// The certificate of its key (PEM).
    certificate: String,
}

impl TokenService {
    /// Gives tokens to [`USER`] for whatever lies below `demo/`, to anybody else for nothing.
    fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["tokens.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let header = json!({
            "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate.der())],
        });
        let signer =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der());
        let signer = Mutex::new(signer.unwrap());
        let service = Service::start(move |request| {
            if request.header("authorization") != Some(&basic(USER, PASSWORD)) {
                return Reply::new(401, "{}");
            }
            let claims = TokenService::claims(request);
            let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
            let text = format!("{}.{}", part(&header), part(&claims));
            let signature = signer
                .lock()
                .unwrap()
                .sign(&SystemRandom::new(), text.as_bytes())
                .unwrap();
            let token = format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
            Reply::new(
                200,
                json!({ "token": token, "expires_in": 300 }).to_string(),
            )
        });
        TokenService {
            service,
            certificate: certificate.pem(),
        }
    }

    fn claims(request: &Request) -> Value {
        let query = request.query();
        let scopes = query.iter().filter(|(name, _)| name == "scope");
        let access = scopes.filter_map(|(_, scope)| {
            let (kind, rest) = scope.split_once(':')?;
            let (name, actions) = rest.rsplit_once(':')?;
            let actions: Vec<_> = actions.split(',').collect();
            let granted = name.starts_with("demo/");
            granted.then(|| json!({ "type": kind, "name": name, "actions": actions }))
        });
        let now = std::time::SystemTime::now();
        let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let service = query.iter().find(|(name, _)| name == "service");
        json!({
            "iss": "tests", "sub": USER, "aud": service.map(|(_, service)| service),
            "iat": now, "nbf": now - 10, "exp": now + 300, "jti": secret!("jti"),
            "access": access.collect::<Vec<_>>(),
        })
    }
}

#[test]
fn a_registry_with_a_token_service() {
    let tokens = TokenService::start();
    let directory = TempDir::new().unwrap();
    let bundle = directory.path().join("tokens.pem");
    std::fs::write(&bundle, &tokens.certificate).unwrap();
    let auth = format!(
        "auth: {{token: {{realm: '{}/token', service: registry, issuer: tests, \
         rootcertbundle: {}}}}}\n",
        tokens.service.origin(),
        bundle.display()
    );
    let registry = Registry::asking(&auth);
    let image = Image::with_layers(&[1000, 300_000]);
    let creds = format!("{USER}:{PASSWORD}");
    registry.push_as(&["--dest-creds", &creds], "demo/app", "1", &image);
    let pushed = tokens.service.seen("/token").len();

    let origin = format!("http://{}", registry.address);
    let listed = format!("{}\nauth_hosts = [\"{}\"]", login(), tokens.service.address);
    let proxy = Setup::registry_at(&origin).upstream(&listed).start();
    pull_all(&proxy, &image);
    let asked = tokens.service.seen("/token");
    assert_eq!(asked.len(), pushed + 1);
    let expected = [
        ("scope", "repository:demo/app:pull"),
        ("service", "registry"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(asked[pushed].query(), expected);
    // A token without what was asked for: the registry says no, and no more.
    proxy
        .get(&at("another/app/manifests/1"))
        .assert_error(403, "DENIED");

    let unlisted = Setup::registry_at(&origin).upstream(&login()).start();
    let answer = unlisted
        .get(&at("demo/app/manifests/1"))
        .assert_error(502, "UNAVAILABLE");
    let why = format!("asks for a token from {}", tokens.service.address);
    assert!(answer.reason.contains(&why), "{answer:?}");
    assert_eq!(tokens.service.seen("/token").len(), pushed + 2);
}
