//! An image that somebody wrote down, and where.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::cache::pulls::{Asker, Was};
use crate::policy::Target;

/// What stands where an image belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mention {
    pub written: Written,
    pub place: Place,
}

/// What was written there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// A text that is not empty; whether it is an image is not known yet.
    Image(String),
    /// Something that cannot be one. Never passed over: what is meant by it is anybody's guess.
    Odd {
        found: &'static str,
        wanted: &'static str,
    },
    /// A text with a variable that has no value here.
    Open { text: String, variable: String },
}

/// Where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// As it was named on the command line; `-` is stdin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<Arc<str>>,
    /// Counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(flatten)]
    pub object: Option<Arc<Object>>,
    /// In a record of pulls.
    #[serde(flatten)]
    pub pulled: Option<Pulled>,
    /// `spec.template.spec.containers[0].image`, `services.web.image`, `FROM`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The container, service or build stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

/// Who pulled it, how often, and what became of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// An address, the subject of a certificate, or both.
    pub client: String,
    pub pulls: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    pub was: Was,
    /// The rule that decided then; None for the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was_by: Option<Arc<str>>,
    /// Where rules rewrote it to then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was_from: Option<Arc<Target>>,
}

/// A Kubernetes object's identity, as far as it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl From<&Asker> for Pulled {
    fn from(asker: &Asker) -> Self {
        let time = |seconds| Timestamp::from_second(seconds).unwrap_or_default();
        let address = asker.address.map(|address| address.to_string());
        let subject = asker
            .subject
            .as_ref()
            .map(|subject| format!("mtls:{subject}"));
        let names: Vec<String> = address.into_iter().chain(subject).collect();
        Pulled {
            client: names.join(" "),
            pulls: asker.count,
            first: time(asker.first),
            last: time(asker.last),
            was: asker.verdict.was,
            was_by: asker.verdict.rule.clone(),
            was_from: asker.verdict.rewritten_to.clone(),
        }
    }
}

impl fmt::Display for Pulled {
    /// `10.1.2.3  12 pulls, last 2026-11-22T09:00:00Z, allowed by rule public`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.pulls == 1 { "" } else { "s" };
        let was = match self.was {
            Was::Allowed => "allowed",
            Was::Audited => "audited",
            Was::Refused => "refused",
            Was::NotServed => "not served",
            Was::Missing => "missing",
        };
        let Pulled {
            client,
            pulls,
            last,
            ..
        } = self;
        write!(f, "{client}  {pulls} pull{plural}, last {last}, {was} then")?;
        if let Some(rule) = &self.was_by {
            write!(f, " by rule {rule}")?;
        }
        match &self.was_from {
            Some(target) => write!(f, ", from {target}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Object {
    /// `Deployment shop/web`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => write!(f, " {namespace}/{name}"),
            (None, Some(name)) => write!(f, " {name}"),
            (Some(namespace), None) => write!(f, " in {namespace}"),
            (None, None) => Ok(()),
        }
    }
}
