//! `ValidatingAdmissionPolicy`: the API server itself decides, with nothing installed (1.30 and
//! later).
//!
//! A binding has its actions for the whole policy, so images that are only audited are a policy of
//! their own.

use serde_json::{Value, json};

use super::plan::Plan;
use super::{Inexpressible, Kind, Options, Outcome, cel, metadata};

const API_VERSION: &str = "admissionregistration.k8s.io/v1";

pub(super) fn documents(plan: &Plan, options: &Options) -> Result<Vec<Value>, Inexpressible> {
    let mut documents = Vec::new();
    for outcome in Outcome::of(plan) {
        documents.push(policy(plan, outcome)?);
        documents.push(binding(outcome, options));
    }
    Ok(documents)
}

fn policy(plan: &Plan, outcome: Outcome) -> Result<Value, Inexpressible> {
    let program = cel::program(plan, outcome, "vap")?;
    let rule = |kinds: &[Kind]| {
        let resources = kinds.iter().flat_map(|kind| kind.resources.iter().copied());
        json!({
            "apiGroups": [kinds[0].group],
            "apiVersions": ["*"],
            "operations": ["CREATE", "UPDATE"],
            "resources": resources.collect::<Vec<_>>(),
        })
    };
    Ok(json!({
        "apiVersion": API_VERSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": metadata(&outcome.name()),
        "spec": {
            // What cannot be judged cannot be allowed.
            "failurePolicy": "Fail",
            "matchConstraints": { "resourceRules": Kind::groups().map(rule).collect::<Vec<_>>() },
            "variables": program.variables,
            "validations": [{
                "expression": program.expression,
                "messageExpression": program.message,
                "message": "an image is not allowed",
                "reason": "Forbidden",
            }],
        },
    }))
}

fn binding(outcome: Outcome, options: &Options) -> Value {
    let actions: &[&str] = if outcome.denies(options) {
        &["Deny"]
    } else {
        &["Warn", "Audit"]
    };
    let mut spec = json!({ "policyName": outcome.name(), "validationActions": actions });
    if !options.excluded_namespaces.is_empty() {
        spec["matchResources"] = json!({
            "namespaceSelector": {
                "matchExpressions": [{
                    "key": "kubernetes.io/metadata.name",
                    "operator": "NotIn",
                    "values": options.excluded_namespaces,
                }],
            },
        });
    }
    json!({
        "apiVersion": API_VERSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": metadata(&outcome.name()),
        "spec": spec,
    })
}
