//! The whole configuration: each module's own part, put together.
//!
//! Every key is optional and unknown keys are refused. [`load()`] finds and reads the file;
//! [`check`] says everything that is wrong with what it says.

pub mod check;
pub mod load;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::oci::InvalidName;
use crate::policy::{Grants, Problem};
use crate::{cache, fill, policy, server, store, upstream};

pub use load::{Fault, LoadError, Source};

/// A configuration file. [`Config::default`] is that of a process without one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: server::Config,
    pub store: store::Config,
    pub tags: cache::Config,
    pub fill: fill::Config,
    pub limits: upstream::Limits,
    pub egress: upstream::Egress,
    pub upstreams: BTreeMap<String, upstream::Config>,
    pub policy: policy::Config,
    pub warm: cache::warm::Config,
    pub admission: Option<server::admission::Config>,
}

impl Config {
    /// The certificate of the admission listener, if there is one.
    #[must_use]
    pub fn admission_tls(&self) -> Option<&server::tls::Config> {
        let own = self.admission.as_ref()?.tls.as_ref();
        own.or(self.server.tls.as_ref())
    }

    /// Who may read what of which registry.
    ///
    /// # Errors
    /// Every grant that is none.
    pub fn grants(&self) -> Result<Grants, Vec<Problem>> {
        let (mut grants, mut problems) = (Grants::default(), Vec::new());
        for (name, upstream) in &self.upstreams {
            for (number, grant) in upstream.grants.iter().enumerate() {
                let registry = name.parse().map_err(|error: InvalidName| error.to_string());
                let added = registry.and_then(|registry| {
                    let added = grants.add(&registry, &grant.client, &grant.repositories);
                    added.map_err(|error| error.to_string())
                });
                if let Err(message) = added {
                    let key = format!("upstreams.{name}.grants.{number}");
                    problems.push(Problem { key, message });
                }
            }
        }
        if problems.is_empty() {
            Ok(grants)
        } else {
            Err(problems)
        }
    }
}

/// Reads the file at `path`, or the one that [`Source::find`] finds. Blocking.
pub fn load(path: Option<&Path>) -> Result<Config, LoadError> {
    Source::find(path)?.parse()
}

#[cfg(test)]
mod tests;
