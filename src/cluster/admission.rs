//! The API server asks whether a workload may be stored: `AdmissionReview` v1 in and out.
//!
//! [`answer`] is pure and quick: rules are judged as in an audit, and nothing is looked up anywhere. What is
//! refused is refused with the text that its pull would hear.
//!
//! An update is judged by what it brings. An image that the object had before says nothing about
//! the update, and refusing it would keep finalizers on pods and replicas running that were
//! allowed once.
//!
//! Source: Kubernetes, "Dynamic Admission Control"; the limits of `warnings` are in its `Response`.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::judge::{Judge, Judgement, Outcome};
use super::mention::{Mention, Object, Written};
use super::node::{self, Node};
use super::workload;
use crate::cache::Cache;
use crate::oci::OwnNames;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{AdmissionLabels, AdmissionResult};
use crate::upstream::Served;

const API_VERSION: &str = "admission.k8s.io/v1";
/// Refused images that are named in one answer.
const MOST_REFUSED: usize = 10;
/// A warning's characters; the API server may cut longer ones.
const LONGEST_WARNING: usize = 256;
/// Bytes of all warnings together, with room for the words that more are left out.
const ALL_WARNINGS: usize = 4096 - 64;

/// What is answered, and what the log should know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// An `AdmissionReview`.
    pub body: Vec<u8>,
    /// The worst of all images. [`Outcome::Allowed`] when there are none.
    pub outcome: Outcome,
    pub object: Object,
    /// The refusal, as somebody at `kubectl` reads it.
    pub message: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReview {
    #[error("no JSON: {0}")]
    Json(#[from] node::Unreadable),
    #[error("no AdmissionReview of admission.k8s.io/v1 with a request and its uid")]
    Shape,
}

/// Answers reviews by the rules that the running server pulls by.
#[derive(Debug)]
pub struct Reviewer {
    pub cache: Arc<Cache>,
    pub names: OwnNames,
    pub served: Served,
    pub metrics: Arc<Metrics>,
}

// === impl Reviewer ===

impl Reviewer {
    /// An `AdmissionReview` for an `AdmissionReview`, counted, and logged when it refuses.
    ///
    /// # Errors
    /// One line about what is wrong with the review.
    pub fn review(&self, body: &[u8]) -> Result<Vec<u8>, String> {
        let policy = self.cache.policy();
        let judge = Judge {
            policy: &policy,
            names: &self.names,
            served: &self.served,
        };
        let answer = answer(body, &judge);
        let result = match answer.as_ref().map(|answer| answer.outcome) {
            Err(_) => AdmissionResult::Invalid,
            Ok(Outcome::Allowed) => AdmissionResult::Allowed,
            Ok(Outcome::Warning) => AdmissionResult::Warned,
            Ok(Outcome::Refused | Outcome::Violation | Outcome::Unreadable) => {
                AdmissionResult::Denied
            }
        };
        self.metrics
            .admissions
            .get_or_create(&AdmissionLabels { result })
            .inc();
        match answer {
            Ok(Answer {
                body,
                object,
                message,
                ..
            }) => {
                if let Some(message) = message {
                    tracing::info!(%object, refusal = message, "admission refused");
                }
                Ok(body)
            }
            Err(error) => {
                tracing::warn!(%error, "not an admission review");
                Err(error.to_string())
            }
        }
    }
}

/// Judges one review.
///
/// # Errors
/// Only when nobody can tell what is asked; an odd object in a sound review is refused.
pub fn answer(body: &[u8], judge: &Judge<'_>) -> Result<Answer, InvalidReview> {
    let review = node::from_json_bytes(body)?;
    if review.text_of("apiVersion") != Some(API_VERSION) {
        return Err(InvalidReview::Shape);
    }
    let request = review.all("request").last().ok_or(InvalidReview::Shape)?;
    let uid = request.text_of("uid").ok_or(InvalidReview::Shape)?;

    let object = object(request);
    let judgements = judge_all(&brought(request, &object), judge);
    let refused: Vec<_> = judgements
        .iter()
        .filter(|it| it.judgement.is_violation())
        .collect();
    let message = (!refused.is_empty()).then(|| refusal(&refused));
    let mut response = json!({ "uid": uid, "allowed": message.is_none() });
    if let Some(message) = &message {
        response["status"] = json!({ "code": 403, "reason": "Forbidden", "message": message });
    }
    let warnings = warnings(&judgements);
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    let body =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    Ok(Answer {
        body: body.to_string().into_bytes(),
        outcome: judgements
            .iter()
            .map(|it| it.judgement.outcome)
            .max()
            .unwrap_or(Outcome::Allowed),
        object,
        message,
    })
}

/// A judgement, and where in the object the first such image stands.
struct Judged {
    judgement: Judgement,
    path: String,
}

/// What the request says the object is.
fn object(request: &Node) -> Object {
    let kind = request.all("kind").last();
    let part = |key| kind.and_then(|kind| kind.text_of(key)).unwrap_or_default();
    let api_version = match (part("group"), part("version")) {
        ("", version) => version.to_owned(),
        (group, version) => format!("{group}/{version}"),
    };
    let text = |key| {
        request
            .text_of(key)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    Object {
        api_version: Some(api_version),
        kind: part("kind").to_owned(),
        namespace: text("namespace"),
        name: text("name"),
    }
}

/// What stands where images belong, and did not stand there before.
fn brought(request: &Node, object: &Object) -> Vec<Mention> {
    let mentions = |key| {
        let objects = request.all(key).filter(|node| !node.is_null());
        objects.flat_map(|node| workload::mentions_in(node, Some(object)))
    };
    match request.text_of("operation") {
        Some("DELETE" | "CONNECT") => Vec::new(),
        Some("UPDATE") => {
            let before: HashSet<Written> = mentions("oldObject")
                .map(|mention| mention.written)
                .collect();
            let mentions = mentions("object");
            mentions
                .filter(|mention| !before.contains(&mention.written))
                .collect()
        }
        _ => mentions("object").collect(),
    }
}

/// Each image once, in the order of the object, however it was spelled.
fn judge_all(mentions: &[Mention], judge: &Judge<'_>) -> Vec<Judged> {
    let (mut written, mut said) = (HashSet::new(), HashSet::new());
    let new = mentions
        .iter()
        .filter(|mention| written.insert(&mention.written));
    let judged = new.map(|mention| Judged {
        judgement: judge.judge(&mention.written),
        path: mention.place.path.clone(),
    });
    let is_new = |it: &Judged| {
        let Judgement { image, message, .. } = &it.judgement;
        said.insert((image.clone(), message.clone()))
    };
    judged.filter(is_new).collect()
}

/// One line for each image.
fn refusal(refused: &[&Judged]) -> String {
    let line = |Judged { judgement, path }: &Judged| {
        let message = judgement.message.as_deref().unwrap_or(&judgement.image);
        match judgement.outcome {
            // Without its place nobody finds "a number".
            Outcome::Unreadable => format!("{message} ({path})"),
            _ => message.to_owned(),
        }
    };
    let mut lines: Vec<_> = refused
        .iter()
        .take(MOST_REFUSED)
        .map(|it| line(it))
        .collect();
    if let Some(more @ 1..) = refused.len().checked_sub(MOST_REFUSED) {
        lines.push(format!("and {more} more"));
    }
    lines.join("\n")
}

/// Within what the API server passes on.
fn warnings(judged: &[Judged]) -> Vec<String> {
    let wanted: Vec<_> = judged
        .iter()
        .filter(|it| it.judgement.outcome == Outcome::Warning)
        .filter_map(|it| it.judgement.message.as_deref())
        .collect();
    let mut size = 0;
    let mut warnings: Vec<String> = Vec::new();
    for message in &wanted {
        let warning: String = message.chars().take(LONGEST_WARNING).collect();
        size += warning.len();
        if size > ALL_WARNINGS {
            warnings.push(format!("and {} more images", wanted.len() - warnings.len()));
            break;
        }
        warnings.push(warning);
    }
    warnings
}

#[cfg(test)]
mod tests;
