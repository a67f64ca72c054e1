//! Gatekeeper: a `ConstraintTemplate` in Rego that has the rules in it, and a constraint for each
//! outcome that says what becomes of it.

use serde_json::{Value, json};

use super::plan::Plan;
use super::{Kind, Options, Outcome, metadata, rego};

pub(super) const KIND: &str = "PortcullisImages";

pub(super) fn documents(plan: &Plan, options: &Options) -> Vec<Value> {
    let constraints = Outcome::of(plan).into_iter();
    let constraints = constraints.map(|outcome| constraint(outcome, options));
    std::iter::once(template(plan)).chain(constraints).collect()
}

pub(super) fn template(plan: &Plan) -> Value {
    let mut metadata = metadata(&KIND.to_lowercase());
    metadata["annotations"] = json!({
        "metadata.gatekeeper.sh/title": "Images by Portcullis' rules",
        "description": "Judges the images of workloads as the proxy judges their pulls.",
    });
    json!({
        "apiVersion": "templates.gatekeeper.sh/v1",
        "kind": "ConstraintTemplate",
        "metadata": metadata,
        "spec": {
            "crd": { "spec": {
                "names": { "kind": KIND },
                "validation": { "openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "outcome": {
                            "type": "string",
                            "enum": [Outcome::Refused.as_str(), Outcome::Audited.as_str()],
                            "description": "Which images are violations: those that the rules refuse, or those that they audit.",
                        },
                    },
                } },
            } },
            "targets": [{
                "target": "admission.k8s.gatekeeper.sh",
                "rego": rego::module(plan),
            }],
        },
    })
}

fn constraint(outcome: Outcome, options: &Options) -> Value {
    let action = if outcome.denies(options) {
        "deny"
    } else {
        "warn"
    };
    let kinds = Kind::groups().map(|kinds| {
        let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
        json!({ "apiGroups": [kinds[0].group], "kinds": names })
    });
    let mut matches = json!({ "kinds": kinds.collect::<Vec<_>>() });
    if !options.excluded_namespaces.is_empty() {
        matches["excludedNamespaces"] = json!(options.excluded_namespaces);
    }
    json!({
        "apiVersion": "constraints.gatekeeper.sh/v1beta1",
        "kind": KIND,
        "metadata": metadata(&outcome.name()),
        "spec": {
            "enforcementAction": action,
            "match": matches,
            "parameters": { "outcome": outcome.as_str() },
        },
    })
}
