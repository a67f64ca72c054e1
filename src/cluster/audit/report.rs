//! `PolicyReport` (`wgpolicyk8s.io/v1alpha2`) and its successor `Report` (`openreports.io/v1alpha1`):
//! what dashboards in the cluster show.
//!
//! One report for each namespace, one for the cluster with everything that has none. Without time
//! stamps, so that an audit that finds the same writes the same.
//!
//! Source: the CRDs of both groups; the two differ in names only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Audit, Finding};
use crate::cluster::judge::Outcome;
use crate::cluster::mention::Place;

/// Results of one report: etcd takes objects of 1.5 MB.
const MOST_RESULTS: usize = 1000;
const SOURCE: &str = "portcullis";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    PolicyReport,
    OpenReports,
}

/// What goes into one report.
#[derive(Default)]
struct Content {
    results: Vec<Value>,
    pass: usize,
    fail: usize,
    warn: usize,
}

pub(super) fn list(audit: &Audit, kind: Kind) -> Value {
    // Images that are allowed are only counted.
    let mut reports: BTreeMap<Option<&str>, Vec<Content>> = BTreeMap::new();
    for finding in &audit.findings {
        for place in &finding.places {
            let object = place.object.as_deref();
            let namespace = object.and_then(|object| object.namespace.as_deref());
            let parts = reports
                .entry(namespace)
                .or_insert_with(|| vec![Content::default()]);
            if parts
                .last()
                .is_some_and(|part| part.results.len() >= MOST_RESULTS)
            {
                parts.push(Content::default());
            }
            if let Some(part) = parts.last_mut() {
                part.add(finding, place);
            }
        }
    }
    let items = reports.into_iter().flat_map(|(namespace, parts)| {
        (1..)
            .zip(parts)
            .map(move |(number, part)| part.report(kind, namespace, number))
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

// === impl Content ===

impl Content {
    fn add(&mut self, finding: &Finding, place: &Place) {
        let judgement = &finding.judgement;
        let (result, severity) = match judgement.outcome {
            Outcome::Violation | Outcome::Unreadable => ("fail", "high"),
            Outcome::Warning => ("warn", "medium"),
            Outcome::Refused => ("warn", "low"),
            Outcome::Allowed if judgement.is_unserved() => ("warn", "low"),
            Outcome::Allowed => {
                self.pass += 1;
                return;
            }
        };
        match result {
            "fail" => self.fail += 1,
            _ => self.warn += 1,
        }
        let line = place.line.map(|line| line.to_string());
        let pulled = place.pulled.as_ref();
        let pulls = pulled.map(|pulled| pulled.pulls.to_string());
        let last = pulled.map(|pulled| pulled.last.to_string());
        let properties: BTreeMap<_, _> = [
            ("image", Some(judgement.image.as_str())),
            (
                "path",
                Some(place.path.as_str()).filter(|path| !path.is_empty()),
            ),
            ("client", pulled.map(|pulled| pulled.client.as_str())),
            ("pulls", pulls.as_deref()),
            ("last", last.as_deref()),
            ("container", place.container.as_deref()),
            ("instead", judgement.instead.as_deref()),
            ("contact", judgement.contact.as_deref()),
            ("file", place.file.as_deref().filter(|file| *file != "-")),
            ("line", line.as_deref()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        let mut value = json!({
            "source": SOURCE,
            "policy": SOURCE,
            "rule": finding.rule(),
            "category": "images",
            "severity": severity,
            "result": result,
            // Whether the rule counts against the workload: being served is no rule.
            "scored": result == "fail",
            "message": finding.message(),
            "properties": properties,
        });
        if let Some(object) = &place.object {
            value["resources"] = json!([object]);
        }
        self.results.push(value);
    }

    fn report(self, kind: Kind, namespace: Option<&str>, number: usize) -> Value {
        let (api_version, report) = match kind {
            Kind::PolicyReport => ("wgpolicyk8s.io/v1alpha2", "PolicyReport"),
            Kind::OpenReports => ("openreports.io/v1alpha1", "Report"),
        };
        let name = match number {
            1 => "portcullis-audit".to_owned(),
            number => format!("portcullis-audit-{number}"),
        };
        let mut metadata = json!({
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": SOURCE },
        });
        let report = match namespace {
            Some(namespace) => {
                metadata["namespace"] = json!(namespace);
                report.to_owned()
            }
            None => format!("Cluster{report}"),
        };
        let mut value = json!({
            "apiVersion": api_version,
            "kind": report,
            "metadata": metadata,
            "summary": {
                "pass": self.pass, "fail": self.fail, "warn": self.warn, "error": 0, "skip": 0,
            },
            "results": self.results,
        });
        if kind == Kind::OpenReports {
            value["source"] = json!(SOURCE);
        }
        value
    }
}
