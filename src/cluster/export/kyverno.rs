//! Kyverno's `ClusterPolicy` with `validate.cel`: the expressions of the `ValidatingAdmissionPolicy`,
//! and reports about what runs already.
//!
//! Kyverno refuses a policy for a kind that the cluster does not have, so only Kubernetes' own kinds
//! are matched; what others make pods of is judged at the pod. It would derive rules for those kinds
//! from one about pods, which is switched off, because ours is about all of them.

use serde_json::{Value, json};

use super::plan::Plan;
use super::{BUILT_IN, Inexpressible, KINDS, Options, Outcome, cel, metadata};

pub(super) fn documents(plan: &Plan, options: &Options) -> Result<Vec<Value>, Inexpressible> {
    let outcomes = Outcome::of(plan).into_iter();
    outcomes
        .map(|outcome| policy(plan, outcome, options))
        .collect()
}

fn policy(plan: &Plan, outcome: Outcome, options: &Options) -> Result<Value, Inexpressible> {
    let program = cel::program(plan, outcome, "kyverno")?;
    let mut kinds = vec!["Pod/ephemeralcontainers"];
    kinds.extend(KINDS[..BUILT_IN].iter().map(|kind| kind.name));
    let mut metadata = metadata(&outcome.name());
    metadata["annotations"] = json!({
        "pod-policies.kyverno.io/autogen-controllers": "none",
        "policies.kyverno.io/title": "Images by Portcullis' rules",
        "policies.kyverno.io/category": "Images",
        "policies.kyverno.io/minversion": "1.13.0",
    });
    let action = if outcome.denies(options) {
        "Enforce"
    } else {
        "Audit"
    };
    let mut rule = json!({
        "name": outcome.as_str(),
        "match": { "any": [{ "resources": {
            "kinds": kinds,
            "operations": ["CREATE", "UPDATE"],
        } }] },
        "validate": {
            "failureAction": action,
            "cel": {
                "variables": program.variables,
                "expressions": [{
                    "expression": program.expression,
                    "messageExpression": program.message,
                    "message": "an image is not allowed",
                }],
            },
        },
    });
    if !options.excluded_namespaces.is_empty() {
        rule["exclude"] = json!({ "any": [{ "resources": {
            "namespaces": options.excluded_namespaces,
        } }] });
    }
    Ok(json!({
        "apiVersion": "kyverno.io/v1",
        "kind": "ClusterPolicy",
        "metadata": metadata,
        "spec": {
            "background": true,
            // Whoever applies a workload hears of what is only audited.
            "emitWarning": true,
            "rules": [rule],
        },
    }))
}
