//! Who we are in Azure: an access token of Entra, by workload identity or by managed identity.
//!
//! Workload identity is what AKS gives a pod: a signed token in a file, which Entra's login host
//! exchanges. Managed identity is that of the machine: its metadata service (IMDS) is asked, at an
//! address that is dialled for nothing else, resolves no name and never goes through a proxy. What a
//! registry gives for the access token is `acr`'s business.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use url::{Url, form_urlencoded};

use super::config::{AzureKind, AzureSource};
use super::kept::Kept;
use crate::telemetry::metrics::{UpstreamOutcome, UpstreamRequest};
use crate::telemetry::{Metrics, Secret};
use crate::upstream::UpstreamErrorKind;
use crate::upstream::config::Config;
use crate::upstream::egress::{Hosts, authority, is_private_channel};
use crate::upstream::http::{Factory, identity_clients};
use crate::upstream::request::{Answer, Meter, Transport, is_outage};

/// The metadata service of every machine in Azure.
const IMDS: &str = "http://169.254.169.254";
const IMDS_PATH: &str = "/metadata/identity/oauth2/token";
const IMDS_VERSION: &str = "2018-02-01";
/// What registries want to see; and what those want that have it switched off.
const AUDIENCE: &str = "https://containerregistry.azure.net";
/// Waits between tries. IMDS asks for patience while an identity is being assigned.
const DELAYS: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// All tries together.
const TIME: Duration = Duration::from_secs(8);
const BODY: u64 = 64 << 10;

/// Azure and its national clouds: the end of registries' names, where to log in, and the audience of
/// the resource manager.
const CLOUDS: [(&str, &str, &str); 3] = [
    (
        ".azurecr.cn",
        "https://login.chinacloudapi.cn/",
        "https://management.chinacloudapi.cn",
    ),
    (
        ".azurecr.us",
        "https://login.microsoftonline.us/",
        "https://management.usgovcloudapi.net",
    ),
    (
        "",
        "https://login.microsoftonline.com/",
        "https://management.azure.com",
    ),
];

/// One identity and what it has been given.
#[derive(Debug)]
pub(in crate::upstream) struct Azure {
    identity: Identity,
    /// Says which identity it is.
    key: String,
    /// To the login host or to the metadata service.
    transport: Transport,
    /// By audience, in the order in which they are tried.
    access: [(&'static str, Kept<Secret<String>>); 2],
    /// What registries gave: by origin and service.
    pub(super) exchanged: moka::sync::Cache<(String, String), Arc<Kept<Secret<String>>>>,
}

#[derive(Clone, Debug)]
enum Identity {
    Workload {
        tenant_id: String,
        client_id: String,
        token_file: PathBuf,
    },
    Managed {
        client_id: Option<String>,
    },
}

/// Why there is no access token.
struct Failure {
    text: String,
    /// The service knows us and says no.
    refused: bool,
    /// The same request may do better a moment later.
    patience: bool,
}

/// What both services answer, one of them with numbers in quotes.
#[derive(Deserialize)]
struct AccessToken {
    access_token: String,
    expires_in: serde_json::Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    error: String,
    error_description: String,
}

// === impl Azure ===

impl Azure {
    /// The identity for the entry `key`. Blocking: reads the environment, in which AKS says who we
    /// are, and certificates.
    ///
    /// # Errors
    /// Names the variable that is missing.
    pub(super) fn new(
        key: &str,
        source: &AzureSource,
        factory: &mut Factory<'_>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, String> {
        let (_, login, manager) = cloud(key);
        let identity = Identity::new(source)?;
        let (clients, host) = match &identity {
            Identity::Workload { .. } => {
                let host = variable("AZURE_AUTHORITY_HOST").unwrap_or_else(|| (*login).to_owned());
                // As every other request, and not as this upstream's: it is on the internet.
                (factory.clients(&Config::default())?, login_host(&host)?)
            }
            Identity::Managed { .. } => {
                let host = Url::parse(IMDS).map_err(|error| error.to_string())?;
                (identity_clients(factory.limits())?, host)
            }
        };
        let transport = Transport {
            clients,
            hosts: Hosts {
                key: key.to_owned(),
                endpoints: vec![host],
                auth: Vec::new(),
                redirect: Vec::new(),
                insecure: false,
            },
            limits: factory.limits().clone(),
            meter: Meter::new(Arc::clone(metrics), key.to_owned()),
        };
        Ok(Azure::with(identity, transport, manager))
    }

    fn with(identity: Identity, transport: Transport, manager: &'static str) -> Self {
        Azure {
            key: format!("{identity:?}"),
            identity,
            transport,
            access: [AUDIENCE, manager].map(|audience| (audience, Kept::default())),
            exchanged: moka::sync::Cache::new(64),
        }
    }

    /// Tells one identity from another. No secret.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// Where identities are asked for.
    pub(super) fn host(&self) -> String {
        let hosts = self.transport.hosts.endpoints.iter();
        hosts.map(authority).collect()
    }

    pub(super) fn tenant_id(&self) -> Option<&str> {
        match &self.identity {
            Identity::Workload { tenant_id, .. } => Some(tenant_id),
            Identity::Managed { .. } => None,
        }
    }

    /// Tokens of ours that a registry may take, the most likely first.
    pub(super) fn access(
        &self,
    ) -> impl Iterator<Item = impl Future<Output = Result<Secret<String>, UpstreamErrorKind>>> {
        self.access
            .iter()
            .map(|(audience, kept)| kept.get(|| self.ask(audience)))
    }

    /// Asks for an access token; tries again where the service asks for patience.
    async fn ask(
        &self,
        audience: &str,
    ) -> Result<(Secret<String>, Option<Duration>), UpstreamErrorKind> {
        let tries = async {
            let mut delays = DELAYS.iter();
            loop {
                let failure = match self.ask_once(audience).await {
                    Ok(token) => return Ok(token),
                    Err(failure) => failure,
                };
                match delays.next().filter(|_| failure.patience) {
                    Some(delay) => sleep(*delay).await,
                    None => return Err(failure.kind()),
                }
            }
        };
        timeout(TIME, tries).await.unwrap_or_else(|_| {
            let text = format!("{} did not answer within {TIME:?}", self.host());
            let failure = UpstreamErrorKind::TimedOut(text);
            Err(self.unreachable(&failure).kind())
        })
    }

    async fn ask_once(
        &self,
        audience: &str,
    ) -> Result<(Secret<String>, Option<Duration>), Failure> {
        let request = self.request(audience).await.map_err(Failure::new)?;
        let sent = self.transport.send(UpstreamRequest::Identity, request);
        let answer = match Box::pin(sent).await {
            Ok(answer) => answer,
            Err(failure) => {
                self.count(failure.outcome());
                return Err(self.unreachable(&failure));
            }
        };
        self.count(answer.outcome());
        let status = answer.status();
        if !status.is_success() {
            let text = self.refusal(answer).await;
            let soon = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
            let managed = matches!(self.identity, Identity::Managed { .. });
            let busy = status == StatusCode::TOO_MANY_REQUESTS || is_outage(status);
            return Err(Failure {
                text,
                refused: status.is_client_error() && !busy && !soon,
                patience: busy || soon && managed,
            });
        }
        let host = answer.host().to_owned();
        let body = answer.read(BODY, "an identity").await;
        let body = body.map_err(|failure| self.unreachable(&failure))?;
        let Some((token, lifetime)) = AccessToken::parse(&body) else {
            return Err(Failure::new(format!("{host} answered without a token")));
        };
        Ok((token, Some(lifetime)))
    }

    async fn request(&self, audience: &str) -> Result<reqwest::Request, String> {
        let mut url = self.transport.hosts.endpoints[0].clone();
        match &self.identity {
            Identity::Workload {
                tenant_id,
                client_id,
                token_file,
            } => {
                // Read each time: it is renewed every hour.
                let path = token_file.clone();
                let read = move || std::fs::read_to_string(&path);
                let assertion = match tokio::task::spawn_blocking(read).await {
                    Ok(Ok(assertion)) => Secret::new(assertion),
                    Ok(Err(error)) => return Err(format!("{}: {error}", token_file.display())),
                    Err(error) => return Err(error.to_string()),
                };
                url.set_path(&format!("{tenant_id}/oauth2/v2.0/token"));
                Ok(post(
                    url,
                    &[
                        ("grant_type", "client_credentials"),
                        ("client_id", client_id),
                        (
                            "client_assertion_type",
                            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                        ),
                        ("client_assertion", assertion.expose().trim()),
                        ("scope", &format!("{audience}/.default")),
                    ],
                ))
            }
            Identity::Managed { client_id } => {
                url.set_path(IMDS_PATH);
                url.query_pairs_mut()
                    .append_pair("api-version", IMDS_VERSION)
                    .append_pair("resource", audience)
                    .extend_pairs(client_id.iter().map(|id| ("client_id", id)));
                let mut get = reqwest::Request::new(Method::GET, url);
                get.headers_mut()
                    .insert("metadata", HeaderValue::from_static("true"));
                Ok(get)
            }
        }
    }

    fn count(&self, outcome: UpstreamOutcome) {
        let meter = &self.transport.meter;
        meter.count(UpstreamRequest::Identity, outcome);
    }

    fn unreachable(&self, failure: &UpstreamErrorKind) -> Failure {
        let text = match self.identity {
            Identity::Workload { .. } => failure.to_string(),
            Identity::Managed { .. } => format!(
                "{failure}; only machines in Azure have it, and AKS may keep it from pods: use \
                 workload identity there"
            ),
        };
        Failure {
            patience: failure.is_transient(),
            ..Failure::new(text)
        }
    }

    /// What an answer without a token means. Of its text only Entra's codes are shown.
    async fn refusal(&self, answer: Answer) -> String {
        let (host, status) = (answer.host().to_owned(), answer.status());
        let body = answer.read(BODY, "an error").await.unwrap_or_default();
        let said: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let code = said.error_description.split([':', ' ']).next();
        let code = code.filter(|code| code.starts_with("AADSTS") && is_word(code));
        let words = [Some(&*said.error).filter(|error| is_word(error)), code];
        let words: Vec<_> = words.into_iter().flatten().collect();
        let why = match words.join(" ") {
            why if why.is_empty() => why,
            why => format!(" ({why})"),
        };
        let way_out = match (&self.identity, status) {
            (Identity::Workload { .. }, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED) => {
                "; the federated credential of the identity must name this service account"
            }
            (Identity::Managed { client_id: None }, StatusCode::BAD_REQUEST) => {
                "; the machine has no identity, or several: then say client_id"
            }
            (Identity::Managed { .. }, StatusCode::BAD_REQUEST) => {
                "; the machine does not have this identity"
            }
            _ => "",
        };
        format!("{host} answered {}{why}{way_out}", status.as_u16())
    }
}

/// A request with a form.
pub(in crate::upstream) fn post(url: Url, fields: &[(&str, &str)]) -> reqwest::Request {
    let form = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    let mut post = reqwest::Request::new(Method::POST, url);
    post.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    *post.body_mut() = Some(form.into());
    post
}

/// Short, and of letters: no token.
fn is_word(text: &str) -> bool {
    (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `AZURE_AUTHORITY_HOST` with or without a slash at its end.
fn login_host(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if url.has_host() && is_private_channel(&url) => Ok(url),
        _ => Err("AZURE_AUTHORITY_HOST is no https URL".into()),
    }
}

// === impl Failure ===

impl Failure {
    fn new(text: String) -> Self {
        Failure {
            text,
            refused: false,
            patience: false,
        }
    }

    fn kind(self) -> UpstreamErrorKind {
        let text = format!("identity: {}", self.text);
        if self.refused {
            UpstreamErrorKind::LoginRefused(text)
        } else {
            UpstreamErrorKind::LoginUnavailable(text)
        }
    }
}

/// Where the identity for the entry `key` may be asked for, by the configuration alone: which one it
/// is, and whether the platform names another login host, the environment of the server says.
pub(super) fn hosts(key: &str, source: &AzureSource) -> Vec<Url> {
    let (_, login, _) = cloud(key);
    let hosts: &[&str] = match source.kind {
        Some(AzureKind::WorkloadIdentity) => &[login],
        Some(AzureKind::ManagedIdentity) => &[IMDS],
        None => &[login, IMDS],
    };
    hosts
        .iter()
        .filter_map(|host| Url::parse(host).ok())
        .collect()
}

fn cloud(key: &str) -> &'static (&'static str, &'static str, &'static str) {
    let fits = |(suffix, _, _): &&(&str, &str, &str)| key.ends_with(suffix);
    CLOUDS.iter().find(fits).unwrap_or(&CLOUDS[2])
}

// === impl Identity ===

impl Identity {
    fn new(source: &AzureSource) -> Result<Self, String> {
        const FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
        let is_workload = match source.kind {
            Some(kind) => kind == AzureKind::WorkloadIdentity,
            None => variable(FILE).is_some(),
        };
        if !is_workload {
            if source.tenant_id.is_some() || source.token_file.is_some() {
                return Err("managed-identity has no tenant_id and no token_file".into());
            }
            let client_id = source.client_id.clone();
            return Ok(Identity::Managed { client_id });
        }
        let said = |own: Option<String>, name: &str, key: &str| {
            own.or_else(|| variable(name)).ok_or_else(|| {
                format!("workload-identity needs the environment variable {name}, or {key}")
            })
        };
        let tenant_id = said(source.tenant_id.clone(), "AZURE_TENANT_ID", "tenant_id")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
        if !tenant_id.chars().all(plain) {
            return Err(format!("{tenant_id:?} is no tenant"));
        }
        let token_file = match &source.token_file {
            Some(file) => file.clone(),
            None => said(None, FILE, "token_file")?.into(),
        };
        Ok(Identity::Workload {
            tenant_id,
            client_id: said(source.client_id.clone(), "AZURE_CLIENT_ID", "client_id")?,
            token_file,
        })
    }
}

// === impl AccessToken ===

impl AccessToken {
    fn parse(body: &[u8]) -> Option<(Secret<String>, Duration)> {
        let token: AccessToken = serde_json::from_slice(body).ok()?;
        let seconds = match &token.expires_in {
            serde_json::Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        let lifetime = Duration::from_secs(seconds?);
        (!token.access_token.is_empty()).then(|| (Secret::new(token.access_token), lifetime))
    }
}

#[cfg(test)]
mod tests;
