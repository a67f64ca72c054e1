//! SARIF 2.1.0: what code scanning shows beside the lines of a pull request.
//!
//! One result for each place. A result is recognised in the next run by its fingerprint, which
//! knows the rule, the image and the place but not the line, so that moved lines are no news.
//!
//! Source: OASIS SARIF 2.1.0, and what GitHub's upload asks for beyond it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Audit, Finding};
use crate::cluster::judge::Outcome;
use crate::cluster::mention::Place;
use crate::oci::{Algorithm, Digest};

const SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

pub(super) fn log(audit: &Audit) -> Value {
    let findings: Vec<_> = audit
        .findings
        .iter()
        .filter(|finding| finding.message().is_some())
        .collect();
    let rules: BTreeMap<&str, Value> = findings
        .iter()
        .map(|finding| (finding.rule(), rule(finding)))
        .collect();
    let index: HashMap<&str, usize> = rules.keys().copied().zip(0..).collect();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut results = Vec::new();
    for finding in findings {
        for place in &finding.places {
            results.push(result(finding, place, index[finding.rule()], &mut seen));
        }
    }
    let failures = audit.errors.iter();
    let failures: Vec<_> = failures
        .map(|error| json!({ "level": "error", "message": { "text": error } }))
        .collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "portcullis",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.into_values().collect::<Vec<_>>(),
            } },
            "invocations": [{
                "executionSuccessful": audit.errors.is_empty(),
                "toolExecutionNotifications": failures,
            }],
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn level(finding: &Finding) -> &'static str {
    match finding.judgement.outcome {
        Outcome::Violation | Outcome::Unreadable => "error",
        Outcome::Warning => "warning",
        Outcome::Allowed | Outcome::Refused => "note",
    }
}

fn rule(finding: &Finding) -> Value {
    let text = match (finding.rule(), &finding.judgement.reason) {
        ("portcullis/no-image", _) => "What stands there is no image",
        ("portcullis/not-served", _) => "No upstream serves this registry",
        ("portcullis/default", _) => "No rule allows this image",
        (_, Some(reason)) => reason,
        (rule, None) => rule,
    };
    json!({
        "id": finding.rule(),
        "shortDescription": { "text": text },
        "defaultConfiguration": { "level": level(finding) },
    })
}

fn result(
    finding: &Finding,
    place: &Place,
    rule_index: usize,
    seen: &mut HashMap<String, usize>,
) -> Value {
    let file = place.file.as_deref().unwrap_or("-");
    let object = place.object.as_deref().map(ToString::to_string);
    let client = place.pulled.as_ref().map(|pulled| &pulled.client);
    let client = client.map(|client| format!("client {client}"));
    let object = object.or(client).unwrap_or_default();
    let name = [object.as_str(), place.path.as_str()]
        .join(" ")
        .trim()
        .to_owned();
    let identity = [finding.rule(), &finding.judgement.image, file, &name].join("\n");
    // The same image may stand in the same place of two objects that have the same name.
    let count = seen.entry(identity.clone()).or_default();
    let fingerprint = Digest::of(Algorithm::Sha256, format!("{identity}\n{count}").as_bytes());
    *count += 1;
    let mut physical = json!({ "artifactLocation": { "uri": uri(file) } });
    if let Some(line) = place.line {
        physical["region"] = json!({ "startLine": line });
    }
    json!({
        "ruleId": finding.rule(),
        "ruleIndex": rule_index,
        "level": level(finding),
        "message": { "text": finding.message() },
        "locations": [{
            "physicalLocation": physical,
            "logicalLocations": [{ "fullyQualifiedName": name }],
        }],
        "partialFingerprints": { "image/v1": fingerprint.hex() },
    })
}

/// A file's name as a URI reference: relative stays relative.
fn uri(file: &str) -> String {
    if file == "-" {
        return "stdin".to_owned();
    }
    let path = file.strip_prefix("./").unwrap_or(file);
    let mut uri = String::from(if path.starts_with('/') { "file://" } else { "" });
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}
