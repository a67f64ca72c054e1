//! Azure Policy: a definition for AKS and Arc that carries Gatekeeper's template inside, so that no
//! cluster has to fetch it from anywhere.
//!
//! A constraint has one effect, so what is audited needs an assignment of its own: of this same
//! definition, with another `outcome`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::plan::Plan;
use super::{Action, KINDS, Kind, Options, Outcome, gatekeeper, yaml};

/// What AKS and Arc need to get up, as the built-in definitions have it.
const THEIRS: [&str; 4] = [
    "kube-system",
    "gatekeeper-system",
    "azure-arc",
    "azure-extensions-usage-system",
];

pub(super) fn definition(plan: &Plan, options: &Options) -> Value {
    let template = yaml::document(&gatekeeper::template(plan));
    let effect = match options.action {
        Action::Deny => "Deny",
        Action::Audit => "Audit",
    };
    let others = options.excluded_namespaces.iter().map(String::as_str);
    let mut excluded = THEIRS.to_vec();
    excluded.extend(others.filter(|other| !THEIRS.contains(other)));
    let groups: Vec<_> = Kind::groups().map(|kinds| kinds[0].group).collect();
    let kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
    json!({
        "properties": {
            "displayName": "Images by Portcullis' rules",
            "description": "Judges the images of workloads as the proxy judges their pulls.",
            "policyType": "Custom",
            "mode": "Microsoft.Kubernetes.Data",
            "metadata": { "category": "Kubernetes" },
            "parameters": {
                "effect": {
                    "type": "String",
                    "metadata": {
                        "displayName": "Effect",
                        "description": "Deny keeps a workload out, Audit reports it, Disabled does nothing.",
                    },
                    "allowedValues": ["Audit", "Deny", "Disabled"],
                    "defaultValue": effect,
                },
                "outcome": {
                    "type": "String",
                    "metadata": {
                        "displayName": "Outcome",
                        "description": "Which images count: those that the rules refuse, or those that they audit.",
                    },
                    "allowedValues": [Outcome::Refused.as_str(), Outcome::Audited.as_str()],
                    "defaultValue": Outcome::Refused.as_str(),
                },
                "warn": flag("Warn", "Whether whoever applies a workload is warned."),
                "source": {
                    "type": "String",
                    "metadata": {
                        "displayName": "Source",
                        "description": "Objects as they were applied, those that expansion generates, or all.",
                    },
                    "allowedValues": ["All", "Generated", "Original"],
                    "defaultValue": "Original",
                },
                "excludedNamespaces": list("Namespaces that are left out", &excluded),
                "namespaces": list("Namespaces that are looked at; none: all", &[]),
                "labelSelector": {
                    "type": "Object",
                    "metadata": {
                        "displayName": "Label selector",
                        "description": "Labels of the objects that are looked at; empty: all.",
                    },
                    "defaultValue": {},
                },
            },
            "policyRule": {
                "if": {
                    "field": "type",
                    "in": [
                        "Microsoft.Kubernetes/connectedClusters",
                        "Microsoft.ContainerService/managedClusters",
                    ],
                },
                "then": {
                    "effect": "[parameters('effect')]",
                    "details": {
                        "templateInfo": {
                            "sourceType": "Base64Encoded",
                            "content": STANDARD.encode(template),
                        },
                        "apiGroups": groups,
                        "kinds": kinds,
                        "excludedNamespaces": "[parameters('excludedNamespaces')]",
                        "namespaces": "[parameters('namespaces')]",
                        "labelSelector": "[parameters('labelSelector')]",
                        "source": "[parameters('source')]",
                        "warn": "[parameters('warn')]",
                        "values": { "outcome": "[parameters('outcome')]" },
                    },
                },
            },
        },
    })
}

fn flag(name: &str, description: &str) -> Value {
    json!({
        "type": "Boolean",
        "metadata": { "displayName": name, "description": description },
        "allowedValues": [true, false],
        "defaultValue": false,
    })
}

fn list(name: &str, default: &[&str]) -> Value {
    json!({
        "type": "Array",
        "metadata": { "displayName": name },
        "defaultValue": default,
    })
}
