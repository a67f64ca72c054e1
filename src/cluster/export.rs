//! The policy as the cluster's own admission reads it: the same answers at `kubectl apply`, by
//! engines that are there already.
//!
//! `plan` is what all formats have in common: how an image is read, and the clauses that decide.
//! `cel` and `rego` say it in two languages; each format is then a wrapper around one of them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::oci::OwnNames;
use crate::policy::{Engine, LeftOut};

mod azure;
mod cel;
mod gatekeeper;
mod kyverno;
mod plan;
mod rego;
mod vap;
mod yaml;

use plan::Plan;

/// What can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `ValidatingAdmissionPolicy` with its bindings, `admissionregistration.k8s.io/v1`
    Vap,
    /// `ConstraintTemplate` in Rego with its constraints
    Gatekeeper,
    /// A policy definition with that template inside
    AzurePolicy,
    /// `ClusterPolicy` with `validate.cel`
    Kyverno,
}

/// What becomes of a workload with a refused image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Deny,
    /// It is stored, and whoever looks is told.
    Audit,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub action: Action,
    /// Nothing in these is looked at.
    pub excluded_namespaces: Vec<String>,
}

/// A file that can be applied as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    pub text: String,
    /// What whoever applies it has to know; the YAML formats begin with it too.
    pub notes: Vec<String>,
}

/// Why a policy cannot be said in a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inexpressible {
    #[error(
        "{format} takes {most} clauses one after the other, and these rules need {needed}: \
         CEL cannot nest deeper. Write fewer rules with more patterns each, or use -o gatekeeper"
    )]
    Clauses {
        format: &'static str,
        most: usize,
        needed: usize,
    },
    #[error(
        "{format} takes {most} characters of patterns, and these rules need {needed}: beyond that \
         the API server gives up on workloads with many images. Use -o gatekeeper"
    )]
    Patterns {
        format: &'static str,
        most: usize,
        needed: usize,
    },
}

/// Which images a policy of the cluster speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Refused,
    Audited,
}

/// A kind with a pod template, or a pod.
struct Kind {
    group: &'static str,
    name: &'static str,
    /// Its plural, with the subresources that change images.
    resources: &'static [&'static str],
}

/// Kinds whose images are judged. The last two are not Kubernetes' own and may not be there.
const KINDS: &[Kind] = &[
    Kind::new("", "Pod", &["pods", "pods/ephemeralcontainers"]),
    Kind::new("", "PodTemplate", &["podtemplates"]),
    Kind::new("", "ReplicationController", &["replicationcontrollers"]),
    Kind::new("apps", "Deployment", &["deployments"]),
    Kind::new("apps", "ReplicaSet", &["replicasets"]),
    Kind::new("apps", "StatefulSet", &["statefulsets"]),
    Kind::new("apps", "DaemonSet", &["daemonsets"]),
    Kind::new("batch", "Job", &["jobs"]),
    Kind::new("batch", "CronJob", &["cronjobs"]),
    Kind::new("argoproj.io", "Rollout", &["rollouts"]),
    Kind::new("serving.knative.dev", "Service", &["services"]),
];
/// How many of them every cluster has.
const BUILT_IN: usize = 9;

const NAME: &str = "portcullis-images";

/// Writes `policy` down for whoever runs the cluster.
///
/// # Errors
/// The format cannot say what the rules say.
pub fn export(
    policy: &Engine,
    names: &OwnNames,
    format: Format,
    options: &Options,
) -> Result<Export, Inexpressible> {
    let outline = policy.outline();
    let mut notes: Vec<_> = outline.left_out.iter().map(note).collect();
    let plan = Plan::new(outline, names);
    if plan.audits() && format == Format::AzurePolicy {
        notes.push(
            "some rules audit: assign the definition a second time with effect Audit and \
             outcome audited"
                .to_owned(),
        );
    }
    let documents = match format {
        Format::Vap => vap::documents(&plan, options)?,
        Format::Kyverno => kyverno::documents(&plan, options)?,
        Format::Gatekeeper => gatekeeper::documents(&plan, options),
        Format::AzurePolicy => {
            let text = format!("{:#}\n", azure::definition(&plan, options));
            return Ok(Export { text, notes });
        }
    };
    let mut text =
        String::from("# Written by `portcullis policy export`: change the rules, not this file.\n");
    for note in &notes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# Note: {note}.");
    }
    for document in documents {
        text += "---\n";
        text += &yaml::document(&document);
    }
    Ok(Export { text, notes })
}

fn note(left_out: &LeftOut) -> String {
    match left_out {
        LeftOut::Clients(rule) => format!(
            "rule {rule} is about certain clients, which admission does not know: it is left out, \
             and the pull decides by it"
        ),
        LeftOut::MinAge(rule) => format!(
            "rule {rule} has min_age, and admission does not know how old a tag is: what it allows \
             is allowed here, and the pull decides"
        ),
    }
}

// === impl Outcome ===

impl Outcome {
    /// Those that a policy speaks about.
    fn of(plan: &Plan) -> Vec<Outcome> {
        let audited = plan.audits().then_some(Outcome::Audited);
        std::iter::once(Outcome::Refused).chain(audited).collect()
    }

    /// What an object that speaks about it is called.
    fn name(self) -> String {
        match self {
            Outcome::Refused => NAME.to_owned(),
            Outcome::Audited => format!("{NAME}-audited"),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Outcome::Refused => "refused",
            Outcome::Audited => "audited",
        }
    }

    /// Whether it keeps a workload out.
    fn denies(self, options: &Options) -> bool {
        self == Outcome::Refused && options.action == Action::Deny
    }
}

// === impl Kind ===

impl Kind {
    const fn new(
        group: &'static str,
        name: &'static str,
        resources: &'static [&'static str],
    ) -> Self {
        Kind {
            group,
            name,
            resources,
        }
    }

    /// All of them, by group.
    fn groups() -> impl Iterator<Item = &'static [Kind]> {
        KINDS.chunk_by(|a, b| a.group == b.group)
    }
}

/// An object's name and what it is there for.
fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": { "app.kubernetes.io/managed-by": "portcullis" },
    })
}

#[cfg(test)]
mod tests;
