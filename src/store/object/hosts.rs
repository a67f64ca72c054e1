//! Which hosts the shared store makes us dial, by its configuration alone.

use url::Url;

use super::connect::EMULATOR_ENDPOINT;
use super::{Cloud, Config, Credential};
use crate::telemetry::ledger::Purpose;

/// Azure's clouds by the ends of their blob endpoints, and where each gives tokens.
const LOGINS: [(&str, &str); 2] = [
    (".core.chinacloudapi.cn", "login.chinacloudapi.cn"),
    (".core.usgovcloudapi.net", "login.microsoftonline.us"),
];
const LOGIN: &str = "login.microsoftonline.com";
/// Where every cloud tells its machines who they are. No firewall sees it.
const METADATA: &str = "169.254.169.254";
const GOOGLE_METADATA: &str = "metadata.google.internal";
/// Signs URLs for those who have no key of their own.
const GOOGLE_SIGNER: &str = "iamcredentials.googleapis.com";

/// One host that is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A name or an address, as a URL spells it.
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// [`Purpose::Store`] or [`Purpose::Identity`].
    pub purpose: Purpose,
}

// === impl Config ===

impl Config {
    /// The store's own host.
    pub(super) fn host(&self) -> Host {
        let https = |host: String| Host {
            host,
            port: 443,
            tls: true,
            purpose: Purpose::Store,
        };
        let of_url = |url: &Url| Host {
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default().unwrap_or_default(),
            tls: url.scheme() == "https",
            purpose: Purpose::Store,
        };
        let azurite = || Url::parse(EMULATOR_ENDPOINT).ok();
        let endpoint = match (self.credential, &self.url.cloud) {
            (Credential::Emulator, Cloud::Azure { .. }) => self.endpoint.clone().or_else(azurite),
            _ => self.endpoint.clone(),
        };
        match (&endpoint, &self.url.cloud) {
            (Some(url), _) => of_url(url),
            (None, Cloud::Azure { account }) => https(format!("{account}.blob.core.windows.net")),
            (None, Cloud::S3) => https(format!("s3.{}.amazonaws.com", self.region())),
            (None, Cloud::Google) => https("storage.googleapis.com".to_owned()),
        }
    }

    /// All of them: the store, and who gives the credential for it. What an environment puts in
    /// the place of the latter is not looked at.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let store = self.host();
        let by_https = |host: String| Host {
            host,
            port: 443,
            tls: true,
            purpose: Purpose::Identity,
        };
        let by_http = |host: &str| Host {
            host: host.to_owned(),
            port: 80,
            tls: false,
            purpose: Purpose::Identity,
        };
        let mut hosts = match (self.credential, &self.url.cloud) {
            (Credential::WorkloadIdentity, Cloud::Azure { .. }) => {
                let mut logins = LOGINS.iter();
                let login = logins.find(|(end, _)| store.host.ends_with(end));
                vec![by_https(login.map_or(LOGIN, |(_, login)| login).to_owned())]
            }
            (Credential::WorkloadIdentity, Cloud::S3) => {
                vec![by_https(format!("sts.{}.amazonaws.com", self.region()))]
            }
            (Credential::WorkloadIdentity | Credential::ManagedIdentity, Cloud::Google) => {
                let mut hosts = vec![by_http(GOOGLE_METADATA), by_http(METADATA)];
                if !self.redirect.is_empty() {
                    hosts.push(by_https(GOOGLE_SIGNER.to_owned()));
                }
                hosts
            }
            (Credential::ManagedIdentity, _) => vec![by_http(METADATA)],
            (Credential::AccountKey | Credential::Sas | Credential::Emulator, _) => Vec::new(),
        };
        hosts.insert(0, store);
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(lines: &str) -> Vec<String> {
        let config: Config = toml::from_str(lines).unwrap();
        let text = |host: &Host| format!("{}:{} {}", host.host, host.port, host.purpose);
        config.hosts().iter().map(text).collect()
    }

    #[test]
    fn each_cloud_and_credential_has_its_hosts() {
        for (lines, expected) in [
            (
                "url = \"az://corp/c\"\ncredential = \"workload-identity\"",
                &[
                    "corp.blob.core.windows.net:443 store",
                    "login.microsoftonline.com:443 identity",
                ][..],
            ),
            (
                "url = \"az://corp/c\"\ncredential = \"workload-identity\"\n\
                 endpoint = \"https://corp.blob.core.chinacloudapi.cn\"",
                &[
                    "corp.blob.core.chinacloudapi.cn:443 store",
                    "login.chinacloudapi.cn:443 identity",
                ],
            ),
            (
                "url = \"az://corp/c\"\ncredential = \"managed-identity\"",
                &[
                    "corp.blob.core.windows.net:443 store",
                    "169.254.169.254:80 identity",
                ],
            ),
            (
                "url = \"az://corp/c\"\ncredential = \"emulator\"",
                &["127.0.0.1:10000 store"],
            ),
            (
                "url = \"s3://b\"\nregion = \"eu-west-1\"\ncredential = \"workload-identity\"",
                &[
                    "s3.eu-west-1.amazonaws.com:443 store",
                    "sts.eu-west-1.amazonaws.com:443 identity",
                ],
            ),
            (
                "url = \"s3://b\"\ncredential = \"account-key\"\nkey_id = \"k\"",
                &["s3.us-east-1.amazonaws.com:443 store"],
            ),
            (
                "url = \"gs://b\"\ncredential = \"managed-identity\"\nredirect = [\"10.0.0.0/8\"]",
                &[
                    "storage.googleapis.com:443 store",
                    "metadata.google.internal:80 identity",
                    "169.254.169.254:80 identity",
                    "iamcredentials.googleapis.com:443 identity",
                ],
            ),
        ] {
            assert_eq!(hosts(lines), expected, "{lines}");
        }
    }
}
