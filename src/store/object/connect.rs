//! From `[store.shared]` to a store that answers.
//!
//! `object_store` guesses: it takes whatever credential the environment holds, waits for minutes and
//! limits the time of a whole body. Here the configuration says who we are, and the time limits are
//! those of a pull.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::signer::Signer;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::recorded::Recorded;
use super::{Cloud, Config, Credential, Location, Shared};
use crate::telemetry::{Ledger, Secret, SecretSource};

/// Azurite's account and key are the same everywhere and no secret.
const EMULATOR_ACCOUNT: &str = "devstoreaccount1";
const EMULATOR_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
pub(super) const EMULATOR_ENDPOINT: &str = "http://127.0.0.1:10000/devstoreaccount1";
const AZURE_VERSION: &str = "2023-11-03";
/// An emulator is near.
const MAKE: Duration = Duration::from_secs(5);

/// Why there is no shared store.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("store.shared.{key} {message}")]
    Config { key: &'static str, message: String },
    #[error("store.shared: cannot make the container: {0}")]
    Container(String),
}

/// Who we are, read from where the configuration says.
struct Identity<'a> {
    config: &'a Config,
    secret: Option<Secret<String>>,
}

/// Opens the store that `config` names. `client` decides how hosts are reached and how long a
/// connection may take, and `ledger` hears of each request. Reads secrets from files; an emulator's
/// container is made, which is the only request that this sends.
///
/// # Errors
///
/// Names the key of the configuration that is wrong or missing. A store that does not answer is no
/// error: it may come back.
pub async fn open(
    config: &Config,
    client: reqwest::Client,
    ledger: &Arc<Ledger>,
) -> Result<Shared, ConnectError> {
    let client = Recorded {
        client,
        ledger: Arc::clone(ledger),
        store: config.host(),
    };
    let shared = build(config, client.clone())?;
    if config.credential == Credential::Emulator {
        let made = match &config.url.cloud {
            Cloud::Azure { .. } => make_container(config, &client).await,
            Cloud::S3 => make_bucket(config, &client).await,
            Cloud::Google => Ok(()),
        };
        match made {
            Err(ConnectError::Container(error)) => {
                tracing::warn!(%error, "cannot make the emulator's container");
            }
            made => made?,
        }
    }
    Ok(shared)
}

/// The same without any request. Blocks: reads secrets from files.
pub(super) fn build(config: &Config, connector: Recorded) -> Result<Shared, ConnectError> {
    let location = &config.url;
    let secret = config.secret.as_ref().map(SecretSource::read);
    let secret = secret
        .transpose()
        .map_err(|message| wrong("secret", message))?;
    let identity = Identity { config, secret };
    let (objects, signer): (Arc<dyn ObjectStore>, Arc<dyn Signer>) = match &location.cloud {
        Cloud::Azure { account } => {
            let store = identity.azure(account)?.with_http_connector(connector);
            let store = Arc::new(
                store
                    .with_retry(retries())
                    .build()
                    .map_err(|error| refused(&error))?,
            );
            (Arc::clone(&store) as _, store)
        }
        Cloud::S3 => {
            let store = identity.s3()?.with_http_connector(connector);
            let store = Arc::new(
                store
                    .with_retry(retries())
                    .build()
                    .map_err(|error| refused(&error))?,
            );
            (Arc::clone(&store) as _, store)
        }
        Cloud::Google => {
            let store = identity.google()?.with_http_connector(connector);
            let store = Arc::new(
                store
                    .with_retry(retries())
                    .build()
                    .map_err(|error| refused(&error))?,
            );
            (Arc::clone(&store) as _, store)
        }
    };
    // A SAS cannot sign another one.
    let signer = (config.credential != Credential::Sas).then_some(signer);
    Ok(Shared::new(objects, signer, &location.prefix))
}

/// A pull waits behind this.
fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
        },
        max_retries: 2,
        retry_timeout: Duration::from_secs(10),
    }
}

/// What the library finds wrong with a builder is the secret: the rest has been looked at.
fn refused(error: &object_store::Error) -> ConnectError {
    wrong("secret", format!("cannot be used: {error}"))
}

fn wrong(key: &'static str, message: impl Into<String>) -> ConnectError {
    ConnectError::Config {
        key,
        message: message.into(),
    }
}

/// What AKS and EKS put into the environment of a pod; it counts only for `workload-identity`.
fn variable(name: &'static str) -> Result<String, ConnectError> {
    std::env::var(name).map_err(|_| {
        wrong(
            "credential",
            format!("workload-identity needs the environment variable {name}"),
        )
    })
}

// === impl Identity ===

impl Identity<'_> {
    fn secret(&self) -> Result<String, ConnectError> {
        match &self.secret {
            Some(secret) => Ok(secret.expose().clone()),
            None => Err(wrong("secret", "is needed for this credential")),
        }
    }

    fn unsupported<T>(&self) -> Result<T, ConnectError> {
        let cloud = match self.config.url.cloud {
            Cloud::Azure { .. } => "Azure",
            Cloud::S3 => "S3",
            Cloud::Google => "Google Cloud Storage",
        };
        Err(wrong(
            "credential",
            format!("of this kind is not for {cloud}"),
        ))
    }

    /// For `http://` endpoints, which are emulators.
    fn options(&self) -> ClientOptions {
        let plain = self
            .config
            .endpoint
            .as_ref()
            .is_some_and(|url| url.scheme() == "http");
        ClientOptions::new()
            .with_allow_http(plain || self.config.credential == Credential::Emulator)
    }

    fn azure(&self, account: &str) -> Result<MicrosoftAzureBuilder, ConnectError> {
        let config = self.config;
        let mut builder = MicrosoftAzureBuilder::new()
            .with_container_name(&config.url.container)
            .with_client_options(self.options());
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned());
        }
        builder = builder.with_account(account);
        Ok(match config.credential {
            Credential::WorkloadIdentity => {
                let builder = builder
                    .with_credential_type("workload_identity")
                    .with_client_id(variable("AZURE_CLIENT_ID")?)
                    .with_tenant_id(variable("AZURE_TENANT_ID")?)
                    .with_federated_token_file(variable("AZURE_FEDERATED_TOKEN_FILE")?);
                match std::env::var("AZURE_AUTHORITY_HOST") {
                    // AKS writes it with a slash at its end.
                    Ok(host) => builder.with_authority_host(host.trim_end_matches('/')),
                    Err(_) => builder,
                }
            }
            Credential::ManagedIdentity => {
                let builder = builder.with_credential_type("managed_identity");
                match &config.key_id {
                    Some(client_id) => builder.with_client_id(client_id),
                    None => builder,
                }
            }
            Credential::AccountKey => builder
                .with_credential_type("access_key")
                .with_access_key(self.secret()?),
            Credential::Sas => builder
                .with_credential_type("sas_token")
                .with_config(AzureConfigKey::SasKey, self.secret()?),
            Credential::Emulator => {
                let endpoint = config
                    .endpoint
                    .as_ref()
                    .map_or(EMULATOR_ENDPOINT, Url::as_str);
                builder
                    .with_account(EMULATOR_ACCOUNT)
                    .with_endpoint(endpoint.trim_end_matches('/').to_owned())
                    .with_credential_type("access_key")
                    .with_access_key(EMULATOR_KEY)
            }
        })
    }

    fn s3(&self) -> Result<AmazonS3Builder, ConnectError> {
        let config = self.config;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&config.url.container)
            .with_region(config.region())
            .with_client_options(self.options());
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
        }
        Ok(match config.credential {
            Credential::WorkloadIdentity => builder
                .with_config(
                    AmazonS3ConfigKey::WebIdentityTokenFile,
                    variable("AWS_WEB_IDENTITY_TOKEN_FILE")?,
                )
                .with_config(AmazonS3ConfigKey::RoleArn, variable("AWS_ROLE_ARN")?),
            Credential::ManagedIdentity => builder,
            Credential::AccountKey => {
                let Some(key_id) = &config.key_id else {
                    return Err(wrong("key_id", "is needed for an access key of S3"));
                };
                builder
                    .with_access_key_id(key_id)
                    .with_secret_access_key(self.secret()?)
            }
            Credential::Emulator if config.endpoint.is_none() => {
                return Err(wrong("endpoint", "is needed for an emulator of S3"));
            }
            Credential::Emulator => builder
                .with_access_key_id("emulator")
                .with_secret_access_key("emulator"),
            Credential::Sas => return self.unsupported(),
        })
    }

    fn google(&self) -> Result<GoogleCloudStorageBuilder, ConnectError> {
        let config = self.config;
        let mut builder = GoogleCloudStorageBuilder::new()
            .with_bucket_name(&config.url.container)
            .with_client_options(self.options());
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_base_url(endpoint.as_str().trim_end_matches('/'));
        }
        Ok(match config.credential {
            // Both are answered by the metadata server, which is where the library looks last.
            Credential::WorkloadIdentity | Credential::ManagedIdentity => {
                no_personal_login()?;
                builder
            }
            Credential::AccountKey => builder.with_service_account_key(self.secret()?),
            Credential::Emulator => builder.with_skip_signature(true),
            Credential::Sas => return self.unsupported(),
        })
    }
}

/// What somebody logged in with on this machine would take the place of the machine's identity, and
/// the library cannot be told to leave it.
fn no_personal_login() -> Result<(), ConnectError> {
    let Some(home) = std::env::var_os("HOME") else {
        return Ok(());
    };
    let file = Path::new(&home).join(".config/gcloud/application_default_credentials.json");
    if file.exists() {
        let file = file.display();
        let message = format!("is an identity, but {file} would win over it: take that file away");
        return Err(wrong("credential", message));
    }
    Ok(())
}

/// Makes Azurite's container; one that is there is fine.
async fn make_container(config: &Config, to: &Recorded) -> Result<(), ConnectError> {
    let endpoint = config
        .endpoint
        .as_ref()
        .map_or(EMULATOR_ENDPOINT, Url::as_str);
    let Location { container, .. } = &config.url;
    let url = format!(
        "{}/{container}?restype=container",
        endpoint.trim_end_matches('/')
    );
    let url: Url = url
        .parse()
        .map_err(|error| wrong("endpoint", format!("is no URL: {error}")))?;
    let date = jiff::Timestamp::now()
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string();
    // Shared Key: method, eleven empty headers, ours, and what is asked for.
    let text = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:{AZURE_VERSION}\n\
         /{EMULATOR_ACCOUNT}{}\nrestype:container",
        url.path()
    );
    let key = STANDARD
        .decode(EMULATOR_KEY)
        .map_err(|error| ConnectError::Container(error.to_string()))?;
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), text.as_bytes());
    let signature = STANDARD.encode(signature);
    let request = to
        .client
        .put(url)
        .header("x-ms-date", date)
        .header("x-ms-version", AZURE_VERSION)
        .header(
            http::header::AUTHORIZATION,
            format!("SharedKey {EMULATOR_ACCOUNT}:{signature}"),
        );
    made(request, to).await
}

/// Makes an S3 emulator's bucket; one that is there is fine.
async fn make_bucket(config: &Config, to: &Recorded) -> Result<(), ConnectError> {
    let Some(endpoint) = &config.endpoint else {
        return Err(wrong("endpoint", "is needed for an emulator of S3"));
    };
    let bucket = &config.url.container;
    let url = format!("{}/{bucket}", endpoint.as_str().trim_end_matches('/'));
    made(to.client.put(url), to).await
}

async fn made(request: reqwest::RequestBuilder, to: &Recorded) -> Result<(), ConnectError> {
    let failed = |error: reqwest::Error| ConnectError::Container(error.to_string());
    let request = request.header(http::header::CONTENT_LENGTH, 0);
    let request = request.timeout(MAKE).build().map_err(failed)?;
    let url = request.url();
    let tls = url.scheme() == "https";
    let row = to.asked(url.host_str().unwrap_or_default(), url.port(), tls);
    let answer = to.client.execute(request).await;
    let answer = answer.inspect_err(|_| row.failed()).map_err(failed)?;
    match answer.status() {
        status if status.is_success() || status == http::StatusCode::CONFLICT => Ok(()),
        status => Err(ConnectError::Container(format!(
            "the emulator said {status}"
        ))),
    }
}
