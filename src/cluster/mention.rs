//! An image that somebody wrote down, and where.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

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
    /// `spec.template.spec.containers[0].image`, `services.web.image`, `FROM`
    pub path: String,
    /// The container, service or build stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
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
