//! A `certs.d` tree for containerd (and Docker, which reads the same files): the nodes' side of
//! the gate.
//!
//! Each registry gets a directory whose `hosts.toml` names us as `server` and as `[host]`. Both,
//! because with `[host]` alone containerd goes to the real registry after any error, a refusal
//! too, and with `server` alone containerd 1.6 and 1.7 before 1.7.32 reject the file and go there
//! at once. Refused registries need their directory more than any other: without one a node asks
//! the registry itself and never hears of the refusal.
//!
//! The tree may be written into a directory in use. Every file appears whole or not at all, since
//! a node that reads half a file goes round us. What others have written stays as it is, and
//! nothing is ever taken away.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use url::Url;

use crate::oci::Registry;
use crate::policy::{Engine, RegistryPart};
use crate::upstream::known::REGISTRIES;

/// The first line of our files; without it a file is somebody else's.
const OURS: &str = "# Written by `portcullis nodes hosts`. Without this line it is never replaced.";

/// The authority's file, beside the directories.
const CA_FILE: &str = "portcullis-ca.crt";

/// The directory that containerd takes for registries without one of their own.
const DEFAULT: &str = "_default";

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Our address as the nodes know it: scheme, host and port.
    proxy: String,
    /// Names as containerd sees them in images, aliases too.
    registries: BTreeSet<String>,
    wildcards: BTreeSet<String>,
    options: Options,
}

/// How it is to be written.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// PEM certificates that nodes are to trust for us.
    pub ca: Option<String>,
    /// Leaves the way to the real registry open, after any error.
    pub fallback: bool,
    /// Sends registries without a directory of their own to us too.
    pub default: bool,
}

/// What has become of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Written,
    Unchanged,
    /// It is somebody else's and was left alone.
    Foreign,
}

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error(
        "server.url must say how nodes reach this proxy, such as \"https://images.corp.example:5000\""
    )]
    NoUrl,
    #[error("server.url = \"{0}\" must be http or https with a host and no path")]
    Url(Url),
    #[error("the CA file has no PEM certificate")]
    NoCertificate,
    #[error("the CA file has a private key, which must not go to the nodes")]
    PrivateKey,
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

// === impl Tree ===

impl Tree {
    /// Plans a tree for every known registry, every key of `[upstreams]` and every registry that a
    /// rule names, except our own host.
    pub fn new<'a>(
        url: Option<&Url>,
        upstreams: impl Iterator<Item = &'a str>,
        policy: &Engine,
        options: Options,
    ) -> Result<Self, HostsError> {
        let url = url.ok_or(HostsError::NoUrl)?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || url.path() != "/" {
            return Err(HostsError::Url(url.clone()));
        }
        if let Some(ca) = &options.ca {
            check_certificates(ca)?;
        }
        let known = REGISTRIES
            .iter()
            .filter(|row| row.is_exact())
            .map(|row| row.registry);
        let (wildcards, exact): (BTreeSet<_>, BTreeSet<_>) =
            upstreams.chain(known).partition(|name| name.contains('*'));
        let mut registries: BTreeSet<Registry> = exact
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        let mut wildcards: BTreeSet<_> = wildcards.into_iter().map(str::to_owned).collect();
        for part in policy.registries() {
            match part {
                RegistryPart::Exact(registry) => {
                    registries.insert(registry.clone());
                }
                // A rule about images everywhere is about those that have a directory.
                RegistryPart::Wildcard(any) if matches!(any.as_str(), "*" | "**") => {}
                RegistryPart::Wildcard(wildcard) => {
                    wildcards.insert(wildcard.clone());
                }
            }
        }
        let proxy = url.origin().ascii_serialization();
        let own = proxy
            .split_once("://")
            .and_then(|(_, host)| host.parse::<Registry>().ok());
        registries.retain(|registry| Some(registry) != own.as_ref());
        let registries = registries
            .iter()
            .flat_map(|registry| {
                registry
                    .aliases()
                    .iter()
                    .copied()
                    .chain([registry.as_str()])
            })
            .map(str::to_owned)
            .collect();
        Ok(Tree {
            proxy,
            registries,
            wildcards,
            options,
        })
    }

    /// Names that no directory can stand for: nodes go to these registries themselves, unless
    /// `_default` catches them.
    pub fn wildcards(&self) -> impl Iterator<Item = &str> {
        self.wildcards.iter().map(String::as_str)
    }

    /// Writes the tree into `directory`, made if it is missing. Blocking. The paths that come back
    /// are relative to it.
    pub fn write(&self, directory: &Path) -> Result<Vec<(PathBuf, Outcome)>, HostsError> {
        let mut outcomes = Vec::new();
        let mut file = |path: PathBuf, text: &str, ours: &str| {
            let outcome = write(&directory.join(&path), text, ours)?;
            outcomes.push((path, outcome));
            Ok(())
        };
        if let Some(ca) = &self.options.ca {
            file(PathBuf::from(CA_FILE), ca, "")?;
        }
        let text = self.hosts_toml();
        let default = self.options.default.then(|| DEFAULT.to_owned());
        for name in default
            .into_iter()
            .chain(self.registries.iter().map(|name| directory_of(name)))
        {
            file(Path::new(&name).join("hosts.toml"), &text, OURS)?;
        }
        Ok(outcomes)
    }

    /// The same for every registry: containerd says in `ns` which one it wants.
    fn hosts_toml(&self) -> String {
        let proxy = &self.proxy;
        let ca = |indent: &str| match self.options.ca {
            Some(_) => format!("{indent}ca = \"../{CA_FILE}\"\n"),
            None => String::new(),
        };
        // Without `server` containerd asks the real registry last.
        let server = if self.options.fallback {
            String::new()
        } else {
            format!("server = \"{proxy}\"\n{}\n", ca(""))
        };
        let capabilities = "  capabilities = [\"pull\", \"resolve\"]\n";
        format!(
            "{OURS}\n{server}[host.\"{proxy}\"]\n{capabilities}{}",
            ca("  ")
        )
    }
}

fn check_certificates(pem: &str) -> Result<(), HostsError> {
    if pem.contains("PRIVATE KEY-----") {
        return Err(HostsError::PrivateKey);
    }
    if !pem.contains("-----BEGIN CERTIFICATE-----") {
        return Err(HostsError::NoCertificate);
    }
    Ok(())
}

/// containerd looks for `host_port_` before `host:port`, and no file system minds it.
fn directory_of(registry: &str) -> String {
    match registry.split_once(':') {
        Some((host, port)) => format!("{host}_{port}_"),
        None => registry.to_owned(),
    }
}

/// Puts a file in place by rename, unless one is there that does not start with `ours`.
#[allow(
    clippy::disallowed_methods,
    reason = "the nodes' files lie outside of the store"
)]
fn write(path: &Path, text: &str, ours: &str) -> Result<Outcome, HostsError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        |source| HostsError::Io { path, source }
    };
    match fs::read(path) {
        Ok(there) if there == text.as_bytes() => return Ok(Outcome::Unchanged),
        Ok(there) if !there.starts_with(ours.as_bytes()) => return Ok(Outcome::Foreign),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(at(path)(error)),
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(at(directory))?;
    }
    let new = path.with_extension(format!("new.{}", std::process::id()));
    let written = fs::File::create(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // A rename that outlives a power cut its content did not would leave an empty file.
        file.sync_all()?;
        fs::rename(&new, path)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        at(path)(error)
    })?;
    Ok(Outcome::Written)
}

#[cfg(test)]
mod tests;
