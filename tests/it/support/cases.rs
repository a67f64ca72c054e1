//! `tests/policy-vectors.json`: policies, images and workloads, and what must come out wherever
//! they are judged.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vectors {
    #[serde(rename = "about")]
    _about: Vec<String>,
    /// What every registry answers with.
    pub manifest: String,
    pub tables: Vec<Table>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub name: String,
    #[serde(rename = "about")]
    _about: String,
    /// `[server]`.
    #[serde(default)]
    server: serde_json::Map<String, Value>,
    /// `[policy]`.
    pub policy: Value,
    pub cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    #[serde(default)]
    pub name: String,
    image: Option<String>,
    workload: Option<Value>,
    pub client: Option<String>,
    expect: Value,
}

/// What a case about an image expects.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    #[serde(default)]
    pub invalid: bool,
    pub effect: Option<String>,
    pub rule: Option<String>,
    pub target: Option<String>,
    pub min_age: Option<String>,
    #[serde(default)]
    pub if_led: bool,
    pub instead: Option<String>,
}

/// What a case about a workload expects.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    pub violations: Vec<String>,
    pub unserved: Vec<String>,
}

pub fn vectors() -> Vectors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy-vectors.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

// === impl Table ===

impl Table {
    /// The cases about images.
    pub fn images(&self) -> impl Iterator<Item = (&str, &Case, Expect)> {
        self.cases.iter().filter_map(|case| {
            let image = case.image.as_deref()?;
            Some((image, case, Expect::deserialize(&case.expect).unwrap()))
        })
    }

    /// Those where nobody is known to ask.
    pub fn anonymous_images(&self) -> impl Iterator<Item = (&str, Expect)> {
        let images = self.images().filter(|(_, case, _)| case.client.is_none());
        images.map(|(image, _, expect)| (image, expect))
    }

    /// The cases about workloads.
    pub fn workloads(&self) -> impl Iterator<Item = (&Value, &Case, Found)> {
        self.cases.iter().filter_map(|case| {
            let workload = case.workload.as_ref()?;
            Some((workload, case, Found::deserialize(&case.expect).unwrap()))
        })
    }

    /// `[policy]`, as the configuration has it.
    pub fn rules(&self) -> String {
        toml::to_string(&json!({ "policy": self.policy })).unwrap()
    }

    /// The lines of `[server]`.
    pub fn server(&self) -> String {
        let lines = self.server.iter().map(|(key, value)| {
            let value = toml::Value::try_from(value).unwrap();
            format!("{key} = {value}\n")
        });
        lines.collect()
    }

    /// A whole configuration.
    pub fn config(&self) -> String {
        format!("[server]\n{}{}", self.server(), self.rules())
    }
}

/// A pod with one image.
pub fn pod(image: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n" },
        "spec": { "containers": [{ "name": "c", "image": image }] },
    })
}
