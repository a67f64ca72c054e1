//! Logging in to an Azure container registry with an identity, in front of stand-ins for Entra, the
//! machine's metadata service and the registry that check every parameter of every step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::oci::Digest;
use serde_json::json;
use tempfile::TempDir;

use crate::identity::with_leftovers;
use crate::support::at;
use crate::support::canary::secret;
use crate::support::client::Response;
use crate::support::image::{Image, OCI_MANIFEST};
use crate::support::listeners::Bystander;
use crate::support::network::in_own_network;
use crate::support::proxy::{Proxy, Setup};
use crate::support::service::{Reply, Request, Service};

const AUDIENCE: &str = "https://containerregistry.azure.net";
const MANAGER: &str = "https://management.azure.com";
const FEDERATED: &str = secret!("token-of-kubernetes");
const WORKLOAD: [(&str, &str); 2] = [
    ("AZURE_CLIENT_ID", "the-client"),
    ("AZURE_TENANT_ID", "the-tenant"),
];

/// What the three stand-ins know of each other.
#[derive(Debug, Default)]
struct Cloud {
    state: Mutex<State>,
    /// So that no token is like another.
    number: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// What happened, in order.
    steps: Vec<String>,
    /// What should not have.
    wrong: Vec<String>,
    /// Everything that was given out, with what it is good for.
    issued: Vec<(String, String)>,
    /// Seconds that each kind of token is good.
    identity: u64,
    refresh: u64,
    access: u64,
    /// What a step answers instead.
    instead: Vec<(&'static str, u16, &'static str)>,
    /// The only audience whose tokens the registry takes.
    takes: &'static str,
}

impl Default for State {
    fn default() -> Self {
        State {
            steps: Vec::new(),
            wrong: Vec::new(),
            issued: Vec::new(),
            identity: 3600,
            refresh: 3 * 3600,
            access: 75 * 60,
            instead: Vec::new(),
            takes: AUDIENCE,
        }
    }
}

impl Cloud {
    /// A token as Azure makes them, good for `what`.
    fn issue(&self, what: &str, seconds: u64) -> String {
        let number = self.number.fetch_add(1, Ordering::SeqCst);
        let claims = json!({
            "iat": 1_700_000_000, "exp": 1_700_000_000 + seconds, "tid": "the-tenant",
            "jti": format!("{}-{number}", secret!("token")),
        });
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        let token = format!("e30.{claims}.{}", secret!("signature"));
        let mut state = self.state.lock().unwrap();
        state.issued.push((token.clone(), what.to_owned()));
        token
    }

    fn is_good_for(&self, token: &str) -> Option<String> {
        let state = self.state.lock().unwrap();
        let issued = state.issued.iter().find(|(issued, _)| issued == token);
        issued.map(|(_, what)| what.clone())
    }

    /// Writes a step down; what it answers when it is not to do what it is for.
    fn step(&self, name: &str, more: &str) -> Option<Reply> {
        let mut state = self.state.lock().unwrap();
        state.steps.push(format!("{name}{more}"));
        let at = state.instead.iter().position(|(step, ..)| *step == name)?;
        let (_, status, body) = state.instead[at];
        // 404 and 429 pass, as they do.
        if matches!(status, 404 | 429) {
            state.instead.remove(at);
        }
        Some(Reply::new(status, body))
    }

    /// A request that is not as it has to be.
    fn wrong(&self, request: &Request, why: &str) -> Reply {
        let mut state = self.state.lock().unwrap();
        state.wrong.push(format!("{why}: {request:#?}"));
        Reply::new(400, "{}")
    }

    fn steps(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        assert!(state.wrong.is_empty(), "{}", state.wrong.join("\n"));
        state.steps.clone()
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn access_token(&self, audience: &str, quoted: bool) -> Reply {
        let seconds = self.state.lock().unwrap().identity;
        let token = self.issue(audience, seconds);
        let seconds = if quoted {
            json!(seconds.to_string())
        } else {
            json!(seconds)
        };
        let body = json!({
            "access_token": token, "expires_in": seconds, "token_type": "Bearer",
            "expires_on": "4102444800", "resource": audience,
        });
        Reply::new(200, body.to_string())
    }

    /// Entra's login host.
    fn login(&self, request: &Request) -> Reply {
        let form = Request::parameters(&request.body);
        let scope = form.iter().find(|(name, _)| name == "scope");
        let audience = scope.and_then(|(_, scope)| scope.strip_suffix("/.default"));
        let Some(audience @ (AUDIENCE | MANAGER)) = audience else {
            return self.wrong(request, "scope");
        };
        let expected = [
            ("client_assertion", FEDERATED),
            (
                "client_assertion_type",
                "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ),
            ("client_id", "the-client"),
            ("grant_type", "client_credentials"),
            ("scope", &format!("{audience}/.default")),
        ];
        if request.target != "/the-tenant/oauth2/v2.0/token" || !is_form(request, &expected) {
            return self.wrong(request, "login");
        }
        match self.step("identity", "") {
            Some(instead) => instead,
            None => self.access_token(audience, false),
        }
    }

    /// The metadata service of a machine.
    fn imds(&self, request: &Request) -> Reply {
        let expected = [
            ("api-version", "2018-02-01"),
            ("client_id", "the-client"),
            ("resource", AUDIENCE),
        ];
        let is_right = request.method == "GET"
            && request.path() == "/metadata/identity/oauth2/token"
            && request.query() == expected.map(owned)
            && request.header("metadata") == Some("true")
            && request.body.is_empty();
        if !is_right {
            return self.wrong(request, "imds");
        }
        match self.step("identity", "") {
            Some(instead) => instead,
            None => self.access_token(AUDIENCE, true),
        }
    }

    /// The registry with one image in any repository, whose blobs are at `data`.
    fn registry(&self, request: &Request, image: &Image, data: &str) -> Reply {
        let own = request.header("host").unwrap().to_owned();
        match request.path() {
            "/oauth2/exchange" => self.exchange(request, &own),
            "/oauth2/token" => self.token(request, &own),
            path => {
                let name = path.trim_start_matches("/v2/");
                let name = name.split("/manifests/").next().unwrap();
                let name = name.split("/blobs/").next().unwrap();
                let scope = format!("repository:{name}:pull");
                let sent = request.header("authorization");
                let token = sent.and_then(|sent| sent.strip_prefix("Bearer "));
                if token.and_then(|token| self.is_good_for(token)).as_ref() != Some(&scope) {
                    let realm = format!("http://{own}/oauth2/token");
                    let challenge =
                        format!("Bearer realm=\"{realm}\",service=\"{own}\",scope=\"{scope}\"");
                    return Reply::new(401, "{}").header("Www-Authenticate", &challenge);
                }
                if path.contains("/manifests/") {
                    return Reply::new(200, image.manifest.bytes.clone())
                        .header("Content-Type", OCI_MANIFEST);
                }
                let digest = path.rsplit('/').next().unwrap();
                let signed = format!("{data}/{digest}?sv=1&sig={}", secret!("signature"));
                Reply::new(307, "").header("Location", &signed)
            }
        }
    }

    fn exchange(&self, request: &Request, own: &str) -> Reply {
        let form = Request::parameters(&request.body);
        let access = &form[0].1;
        let expected = [
            ("access_token", &**access),
            ("grant_type", "access_token"),
            ("service", own),
            ("tenant", "the-tenant"),
        ];
        let audience = self.is_good_for(access);
        if !is_form(request, &expected) || request.target.contains('?') {
            return self.wrong(request, "exchange");
        }
        if let Some(mut instead) = self.step("exchange", "") {
            // As a careless service would.
            instead.body.extend_from_slice(access.as_bytes());
            return instead;
        }
        let state = self.state.lock().unwrap();
        let (takes, seconds) = (state.takes, state.refresh);
        drop(state);
        if audience.as_deref() != Some(takes) {
            return Reply::new(401, "{}");
        }
        let token = self.issue("refresh", seconds);
        Reply::new(200, json!({ "refresh_token": token }).to_string())
    }

    fn token(&self, request: &Request, own: &str) -> Reply {
        let form = Request::parameters(&request.body);
        let value = |name: &str| {
            let found = form.iter().find(|(key, _)| key == name);
            found.map_or(String::new(), |(_, value)| value.clone())
        };
        let (refresh, scope) = (value("refresh_token"), value("scope"));
        let expected = [
            ("grant_type", "refresh_token"),
            ("refresh_token", &*refresh),
            ("scope", &*scope),
            ("service", own),
        ];
        let is_right = is_form(request, &expected)
            && scope.starts_with("repository:")
            && self.is_good_for(&refresh).as_deref() == Some("refresh");
        if !is_right {
            return self.wrong(request, "token");
        }
        if let Some(mut instead) = self.step("token ", &scope) {
            instead.body.extend_from_slice(refresh.as_bytes());
            return instead;
        }
        let seconds = self.state.lock().unwrap().access;
        let token = self.issue(&scope, seconds);
        Reply::new(200, json!({ "access_token": token }).to_string())
    }
}

/// A POST of exactly these fields and of nothing that says who asks beside them.
fn is_form(request: &Request, expected: &[(&str, &str)]) -> bool {
    let expected: Vec<_> = expected.iter().copied().map(owned).collect();
    request.method == "POST"
        && request.header("content-type") == Some("application/x-www-form-urlencoded")
        && request.header("authorization").is_none()
        && Request::parameters(&request.body) == expected
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A registry in Azure, and where its blobs are.
struct Azure {
    cloud: Arc<Cloud>,
    image: Image,
    registry: Service,
    data: Service,
    /// What is left in the environment for others leads here.
    nobody: Bystander,
    directory: TempDir,
}

impl Azure {
    fn start() -> Self {
        let cloud = Arc::new(Cloud::default());
        let image = Image::with_layers(&[1000, 200_000]);
        let blobs: Vec<Vec<u8>> = image.blobs().cloned().collect();
        let data = Service::start(move |request| {
            // A signed URL needs no login, and gets none.
            if request.header("authorization").is_some() {
                return Reply::new(400, "{}");
            }
            let is_asked =
                |blob: &&Vec<u8>| request.path().ends_with(&Digest::sha256(blob).to_string());
            match blobs.iter().find(is_asked) {
                Some(blob) => Reply::new(200, blob.clone()),
                None => Reply::new(404, "{}"),
            }
        });
        let (knows, shown, origin) = (Arc::clone(&cloud), image.clone(), data.origin());
        let registry = Service::start(move |request| knows.registry(request, &shown, &origin));
        let nobody = Bystander::start();
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("token"), FEDERATED).unwrap();
        Azure {
            cloud,
            image,
            registry,
            data,
            nobody,
            directory,
        }
    }

    fn setup(&self, credential: &str) -> Setup {
        let lines = format!(
            "credential = {credential}\nshare_with = \"everyone\"\nredirect_hosts = [\"{}\"]",
            self.data.address
        );
        let setup = Setup::registry_at(&self.registry.origin()).upstream(&lines);
        with_leftovers(setup, &self.nobody)
    }

    /// With a login host, and all that AKS gives a pod.
    fn with_workload_identity(&self) -> (Proxy, Service) {
        let cloud = Arc::clone(&self.cloud);
        let login = Service::start(move |request| cloud.login(request));
        let file = self.directory.path().join("token");
        let setup = self.setup("\"azure\"");
        let setup = WORKLOAD
            .iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value))
            .env("AZURE_FEDERATED_TOKEN_FILE", file.to_str().unwrap())
            .env("AZURE_AUTHORITY_HOST", &format!("{}/", login.origin()));
        (setup.start(), login)
    }

    fn pull(&self, proxy: &Proxy, repository: &str) {
        proxy
            .get(&at(&format!("{repository}/manifests/1")))
            .assert_whole(&self.image.manifest.bytes);
        for blob in self.image.blobs() {
            let path = at(&format!("{repository}/blobs/{}", Digest::sha256(blob)));
            proxy.get(&path).assert_whole(blob);
        }
    }
}

/// A manifest that is not there yet.
fn refused(proxy: &Proxy, status: u16) -> Response {
    let code = if status == 403 {
        "DENIED"
    } else {
        "UNAVAILABLE"
    };
    proxy
        .get(&at("demo/refused/manifests/1"))
        .assert_error(status, code)
}

#[test]
fn a_workload_identity_is_exchanged_once_and_each_repository_has_its_token() {
    let azure = Azure::start();
    let (proxy, _login) = azure.with_workload_identity();
    azure.pull(&proxy, "demo/app");
    azure.pull(&proxy, "demo/other");
    assert_eq!(
        azure.cloud.steps(),
        [
            "identity",
            "exchange",
            "token repository:demo/app:pull",
            "token repository:demo/other:pull"
        ]
    );
    let data = azure.data.seen("");
    assert!(!data.is_empty());
    for request in data {
        assert_eq!(request.header("authorization"), None);
    }
    azure.nobody.assert_never_called();
    let tokens = r#"portcullis_upstream_requests_total{registry="registry.example",kind="Identity",outcome="Ok"}"#;
    assert_eq!(proxy.metric(tokens), 1);
}

/// Lifetimes that are over as soon as they begin: what is asked for again shows what is kept.
#[test]
fn each_token_is_renewed_when_it_is_its_turn() {
    let azure = Azure::start();
    let (proxy, _login) = azure.with_workload_identity();
    azure.cloud.set(|state| state.refresh = 0);
    for repository in ["demo/a", "demo/b"] {
        azure.pull(&proxy, repository);
    }
    assert_eq!(
        azure.cloud.steps(),
        [
            "identity",
            "exchange",
            "token repository:demo/a:pull",
            "exchange",
            "token repository:demo/b:pull",
        ]
    );

    let azure = Azure::start();
    let (proxy, _login) = azure.with_workload_identity();
    azure
        .cloud
        .set(|state| (state.identity, state.refresh, state.access) = (0, 0, 9));
    let path = at("demo/a/manifests/1");
    proxy.get(&path).assert(200);
    proxy.get(&at("demo/a/manifests/2")).assert(200);
    // A token of nine seconds is in its last ten from the beginning.
    let round = ["identity", "exchange", "token repository:demo/a:pull"];
    assert_eq!(azure.cloud.steps(), [round, round].concat());
}

/// The token that Kubernetes mounts is renewed under the running program.
#[test]
fn the_federated_token_is_read_each_time() {
    let azure = Azure::start();
    let (proxy, login) = azure.with_workload_identity();
    azure
        .cloud
        .set(|state| (state.identity, state.refresh) = (0, 0));
    let file = azure.directory.path().join("token");
    std::fs::write(&file, "another one").unwrap();
    refused(&proxy, 403);
    let sent = &login.seen("/oauth2/")[0].body;
    assert!(sent.contains("client_assertion=another+one&"), "{sent}");
}

#[test]
fn a_registry_that_wants_the_other_audience_gets_it() {
    let azure = Azure::start();
    azure.cloud.set(|state| state.takes = MANAGER);
    let (proxy, _login) = azure.with_workload_identity();
    azure.pull(&proxy, "demo/app");
    assert_eq!(
        azure.cloud.steps(),
        [
            "identity",
            "exchange",
            "identity",
            "exchange",
            "token repository:demo/app:pull"
        ]
    );
}

/// Which step failed and what to do about it; nothing of what was sent, though the services repeat it.
#[test]
fn a_refusal_names_its_step_and_the_way_out() {
    const NO_FEDERATION: &str = r#"{"error":"invalid_client","error_description":
        "AADSTS700213: No matching federated identity record found for canary-7f3a-subject"}"#;
    for (step, status, body, answer, parts) in [
        (
            "identity",
            401,
            NO_FEDERATION,
            403,
            ["identity: ", "AADSTS700213", "federated credential"],
        ),
        (
            "identity",
            400,
            "canary-7f3a",
            403,
            ["identity: ", "answered 400", "federated credential"],
        ),
        ("exchange", 401, "", 403, ["exchange: ", "401", "AcrPull"]),
        ("exchange", 403, "", 403, ["exchange: ", "403", "AcrPull"]),
        (
            "exchange",
            404,
            "",
            502,
            ["exchange: ", "404", "registry of Azure"],
        ),
        (
            "exchange",
            503,
            "",
            502,
            ["exchange: ", "503", "exchange: "],
        ),
        (
            "token ",
            401,
            "",
            403,
            ["token: ", "repository:demo/refused:pull", "AcrPull"],
        ),
        (
            "token ",
            403,
            "",
            403,
            ["token: ", "repository:demo/refused:pull", "AcrPull"],
        ),
        ("token ", 500, "", 502, ["token: ", "500", "token"]),
    ] {
        let azure = Azure::start();
        let (proxy, _login) = azure.with_workload_identity();
        azure
            .cloud
            .set(|state| state.instead.push((step, status, body)));
        let reason = refused(&proxy, answer).reason;
        for part in parts {
            assert!(reason.contains(part), "{step} {status}: {part}: {reason}");
        }
        azure.cloud.steps();
    }
}

/// An Entra that is down is asked with patience, is no word of the registry's, and stops nothing that
/// is cached.
#[test]
fn without_an_identity_what_is_cached_is_served() {
    let azure = Azure::start();
    let (mut proxy, _login) = azure.with_workload_identity();
    azure.pull(&proxy, "demo/app");
    proxy.wait_until_written("demo/app/_tags/1.json", "sha256");
    assert!(proxy.terminate().success());
    azure
        .cloud
        .set(|state| state.instead.push(("identity", 503, "{}")));
    proxy.start_again_with(|setup| setup.section("tags", "fresh_for = \"1ms\""));
    azure.pull(&proxy, "demo/app");
    let reason = refused(&proxy, 502).reason;
    assert!(reason.contains("identity: "), "{reason}");
    assert!(reason.contains("503"), "{reason}");
}

#[test]
fn a_managed_identity_is_asked_of_the_machine_with_patience() {
    let name = "azure::a_managed_identity_is_asked_of_the_machine_with_patience";
    in_own_network(name, &["169.254.169.254/32"], || {
        let azure = Azure::start();
        let cloud = Arc::clone(&azure.cloud);
        let _imds = Service::on("169.254.169.254:80", move |request| cloud.imds(request));
        azure.cloud.set(|state| {
            // An identity that is just being assigned, and one request too many.
            state.instead = vec![("identity", 404, "{}"), ("identity", 429, "{}")];
        });
        let credential = "{ azure = \"managed-identity\", client_id = \"the-client\" }";
        let proxy = azure.setup(credential).start();
        azure.pull(&proxy, "demo/app");
        assert_eq!(
            azure.cloud.steps(),
            [
                "identity",
                "identity",
                "identity",
                "exchange",
                "token repository:demo/app:pull"
            ]
        );
        azure.nobody.assert_never_called();
        let said = proxy.run(|setup| setup, &["explain", "registry.example/demo/app:1"]);
        let said = said.assert_success().stdout;
        assert!(said.contains("identity  169.254.169.254\n"), "{said}");
    });
}

#[test]
fn a_machine_without_an_identity_says_so() {
    let name = "azure::a_machine_without_an_identity_says_so";
    in_own_network(name, &["169.254.169.254/32"], || {
        let azure = Azure::start();
        let _imds = Service::on("169.254.169.254:80", |_| {
            Reply::new(
                400,
                r#"{"error":"invalid_request","error_description":"Identity not found"}"#,
            )
        });
        let proxy = azure.setup("\"azure\"").start();
        let reason = refused(&proxy, 403).reason;
        for part in [
            "identity: 169.254.169.254 answered 400",
            "invalid_request",
            "client_id",
        ] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
        assert_eq!(azure.cloud.steps(), [""; 0]);
    });
}

#[test]
fn what_is_missing_is_found_before_anything_starts() {
    let azure = Azure::start();
    let check = |credential: &str, variables: &[(&str, &str)]| {
        let setup = azure.setup(credential);
        let setup = variables
            .iter()
            .fold(setup, |setup, (name, value)| setup.env(name, value));
        setup.check()
    };
    let file = ("AZURE_FEDERATED_TOKEN_FILE", "/var/run/token");
    let host = ("AZURE_AUTHORITY_HOST", "http://login.example/");
    for (credential, variables, expected) in [
        (
            "\"azure\"",
            &[file][..],
            "workload-identity needs the environment variable AZURE_TENANT_ID, or tenant_id",
        ),
        (
            "{ azure = \"workload-identity\" }",
            &WORKLOAD[..],
            "needs the environment variable AZURE_FEDERATED_TOKEN_FILE, or token_file",
        ),
        (
            "\"azure\"",
            &[WORKLOAD[0], WORKLOAD[1], file, host],
            "AZURE_AUTHORITY_HOST is no https URL",
        ),
        (
            "{ azure = \"managed-identity\", tenant_id = \"t\" }",
            &[],
            "managed-identity has no tenant_id",
        ),
    ] {
        let text = check(credential, variables).assert_failure().text;
        assert!(text.contains(expected), "{credential}: {text}");
    }
}
