//! Exported policies in real engines: Rego in regorus, CEL in the crate `cel`, with the one function
//! of Kubernetes' libraries that it lacks.
//!
//! What stands around the engines is done here by the documentation of each: which objects a policy
//! is about, what becomes of a violation, how variables and messages hang together. Anything that an
//! engine calls an error fails the test: exported policies have none, whatever they are given.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cel::common::types::{CelString, STRING_TYPE};
use cel::common::value::CowVal;
use cel::{Context, Env, ExecutionError, extensions};
use serde_json::{Value, json};

/// What was applied to a cluster.
pub struct Cluster {
    policies: Vec<Policy>,
}

/// What becomes of an object: a line for each violation, of those that keep it out and of those
/// that only warn.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub denied: Vec<String>,
    pub warned: Vec<String>,
}

/// What a policy is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Review<'a> {
    operation: &'static str,
    /// Of a deletion, what is deleted.
    object: &'a Value,
    old: Option<&'a Value>,
    subresource: Option<&'a str>,
}

struct Policy {
    denies: bool,
    excluded_namespaces: Vec<String>,
    matches: Vec<Match>,
    program: Program,
}

enum Match {
    Resources {
        groups: Vec<String>,
        resources: Vec<String>,
    },
    Kinds {
        groups: Vec<String>,
        kinds: Vec<String>,
    },
    /// As Kyverno writes them, in any group that has them.
    Selectors(Vec<String>),
}

enum Program {
    Cel(Box<Cel>),
    Rego {
        engine: Box<regorus::Engine>,
        parameters: Value,
    },
}

struct Cel {
    env: Arc<Env>,
    variables: Vec<(String, cel::IdedExpr)>,
    expression: cel::IdedExpr,
    message: cel::IdedExpr,
}

/// What an API server knows of the kinds that it has.
const RESOURCES: &[(&str, &str, &str)] = &[
    ("", "Pod", "pods"),
    ("", "PodTemplate", "podtemplates"),
    ("", "ReplicationController", "replicationcontrollers"),
    ("", "Service", "services"),
    ("apps", "Deployment", "deployments"),
    ("apps", "ReplicaSet", "replicasets"),
    ("apps", "StatefulSet", "statefulsets"),
    ("apps", "DaemonSet", "daemonsets"),
    ("batch", "Job", "jobs"),
    ("batch", "CronJob", "cronjobs"),
    ("argoproj.io", "Rollout", "rollouts"),
    ("serving.knative.dev", "Service", "services"),
];
/// Those of other people.
pub const CUSTOM_GROUPS: [&str; 2] = ["argoproj.io", "serving.knative.dev"];

/// The parser's limit in the API server.
const DEEPEST_EXPRESSION: u16 = 250;

/// The documents of a YAML stream.
pub fn documents(text: &str) -> Vec<Value> {
    let documents = text.split("\n---\n").skip(1);
    documents.map(yaml).collect()
}

fn yaml(text: &str) -> Value {
    let value =
        regorus::Value::from_yaml_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    serde_json::from_str(&value.to_json_str().unwrap()).unwrap()
}

pub fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

pub fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|one| text(one).to_owned()).collect()
}

// === impl Cluster ===

impl Cluster {
    /// `ValidatingAdmissionPolicy` objects and their bindings.
    pub fn vap(documents: &[Value]) -> Self {
        let of_kind = |kind: &'static str| documents.iter().filter(move |one| one["kind"] == kind);
        let policies = of_kind("ValidatingAdmissionPolicyBinding").map(|binding| {
            let spec = &binding["spec"];
            let policy = of_kind("ValidatingAdmissionPolicy")
                .find(|policy| policy["metadata"]["name"] == spec["policyName"])
                .unwrap();
            let denies = match texts(&spec["validationActions"]).join(" ").as_str() {
                "Deny" => true,
                "Warn Audit" => false,
                other => panic!("{other}"),
            };
            let selector = &spec["matchResources"]["namespaceSelector"]["matchExpressions"][0];
            if !selector.is_null() {
                assert_eq!(selector["key"], "kubernetes.io/metadata.name");
                assert_eq!(selector["operator"], "NotIn");
            }
            let rules = policy["spec"]["matchConstraints"]["resourceRules"]
                .as_array()
                .unwrap();
            let matches = rules.iter().map(|rule| {
                assert_eq!(rule["operations"], json!(["CREATE", "UPDATE"]));
                assert_eq!(rule["apiVersions"], json!(["*"]));
                Match::Resources {
                    groups: texts(&rule["apiGroups"]),
                    resources: texts(&rule["resources"]),
                }
            });
            Policy {
                denies,
                excluded_namespaces: texts(&selector["values"]),
                matches: matches.collect(),
                program: Program::cel(&policy["spec"]["variables"], &policy["spec"]["validations"]),
            }
        });
        Cluster {
            policies: policies.collect(),
        }
    }

    pub fn kyverno(documents: &[Value]) -> Self {
        let policies = documents.iter().map(|policy| {
            assert_eq!(
                (&policy["apiVersion"], &policy["kind"]),
                (&json!("kyverno.io/v1"), &json!("ClusterPolicy"))
            );
            let annotations = &policy["metadata"]["annotations"];
            assert_eq!(
                annotations["pod-policies.kyverno.io/autogen-controllers"],
                "none"
            );
            let [rule] = policy["spec"]["rules"].as_array().unwrap().as_slice() else {
                panic!("{policy}");
            };
            let resources = &rule["match"]["any"][0]["resources"];
            assert_eq!(resources["operations"], json!(["CREATE", "UPDATE"]));
            let cel = &rule["validate"]["cel"];
            Policy {
                denies: match text(&rule["validate"]["failureAction"]) {
                    "Enforce" => true,
                    "Audit" => false,
                    other => panic!("{other}"),
                },
                excluded_namespaces: texts(&rule["exclude"]["any"][0]["resources"]["namespaces"]),
                matches: vec![Match::Selectors(texts(&resources["kinds"]))],
                program: Program::cel(&cel["variables"], &cel["expressions"]),
            }
        });
        Cluster {
            policies: policies.collect(),
        }
    }

    pub fn gatekeeper(documents: &[Value]) -> Self {
        let (template, constraints) = documents.split_first().unwrap();
        let engine = engine(template);
        let policies = constraints.iter().map(|constraint| {
            assert_eq!(
                constraint["kind"],
                template["spec"]["crd"]["spec"]["names"]["kind"]
            );
            let spec = &constraint["spec"];
            let kinds = spec["match"]["kinds"].as_array().unwrap().iter();
            Policy {
                denies: match text(&spec["enforcementAction"]) {
                    "deny" => true,
                    "warn" => false,
                    other => panic!("{other}"),
                },
                excluded_namespaces: texts(&spec["match"]["excludedNamespaces"]),
                matches: kinds
                    .map(|kinds| Match::Kinds {
                        groups: texts(&kinds["apiGroups"]),
                        kinds: texts(&kinds["kinds"]),
                    })
                    .collect(),
                program: Program::Rego {
                    engine: engine.clone(),
                    parameters: spec["parameters"].clone(),
                },
            }
        });
        Cluster {
            policies: policies.collect(),
        }
    }

    /// A definition of Azure Policy, assigned once as it is, and once more for what is audited.
    pub fn azure(definition: &Value) -> Self {
        let properties = &definition["properties"];
        let details = &properties["policyRule"]["then"]["details"];
        let content = STANDARD
            .decode(text(&details["templateInfo"]["content"]))
            .unwrap();
        let engine = engine(&yaml(&String::from_utf8(content).unwrap()));
        let default = |name: &str| properties["parameters"][name]["defaultValue"].clone();
        let assign = |effect: &Value, outcome: &Value| {
            assert_eq!(
                details["values"],
                json!({ "outcome": "[parameters('outcome')]" })
            );
            assert_eq!(
                details["excludedNamespaces"],
                "[parameters('excludedNamespaces')]"
            );
            let allowed = |name: &str| {
                properties["parameters"][name]["allowedValues"]
                    .as_array()
                    .unwrap()
            };
            assert!(allowed("effect").contains(effect) && allowed("outcome").contains(outcome));
            Policy {
                denies: effect == "Deny",
                excluded_namespaces: texts(&default("excludedNamespaces")),
                matches: vec![Match::Kinds {
                    groups: texts(&details["apiGroups"]),
                    kinds: texts(&details["kinds"]),
                }],
                program: Program::Rego {
                    engine: engine.clone(),
                    parameters: json!({ "outcome": outcome }),
                },
            }
        };
        Cluster {
            policies: vec![
                assign(&default("effect"), &default("outcome")),
                assign(&json!("Audit"), &json!("audited")),
            ],
        }
    }

    /// Whether any policy is about such an object.
    pub fn is_matched(&self, review: Review<'_>) -> bool {
        let mut policies = self.policies.iter();
        policies.any(|policy| policy.is_about(review))
    }

    pub fn judge(&self, review: Review<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        for policy in self
            .policies
            .iter()
            .filter(|policy| policy.is_about(review))
        {
            let lines = policy.program.run(review);
            let list = if policy.denies {
                &mut verdict.denied
            } else {
                &mut verdict.warned
            };
            list.extend(lines);
        }
        verdict
    }
}

/// With the Rego of a template that Gatekeeper would take.
fn engine(template: &Value) -> Box<regorus::Engine> {
    assert_eq!(
        (&template["apiVersion"], &template["kind"]),
        (
            &json!("templates.gatekeeper.sh/v1"),
            &json!("ConstraintTemplate")
        )
    );
    let crd = &template["spec"]["crd"]["spec"];
    let kind = text(&crd["names"]["kind"]);
    assert_eq!(template["metadata"]["name"], kind.to_lowercase());
    assert_eq!(crd["validation"]["openAPIV3Schema"]["type"], "object");
    let [target] = template["spec"]["targets"].as_array().unwrap().as_slice() else {
        panic!("{template}");
    };
    assert_eq!(target["target"], "admission.k8s.gatekeeper.sh");
    let module = text(&target["rego"]).to_owned();
    let mut engine = regorus::Engine::new();
    engine.set_rego_v0(true);
    engine.set_strict_builtin_errors(true);
    engine.add_policy("images.rego".to_owned(), module).unwrap();
    Box::new(engine)
}

// === impl Review ===

impl<'a> Review<'a> {
    pub fn create(object: &'a Value) -> Self {
        Review {
            operation: "CREATE",
            object,
            old: None,
            subresource: None,
        }
    }

    pub fn update(old: &'a Value, object: &'a Value) -> Self {
        Review {
            operation: "UPDATE",
            old: Some(old),
            ..Review::create(object)
        }
    }

    /// What `kubectl debug` does.
    pub fn debug(old: &'a Value, object: &'a Value) -> Self {
        Review {
            subresource: Some("ephemeralcontainers"),
            ..Review::update(old, object)
        }
    }

    /// Gatekeeper puts the old object where the new one would be.
    pub fn delete(object: &'a Value) -> Self {
        Review {
            operation: "DELETE",
            ..Review::create(object)
        }
    }

    fn group(self) -> &'a str {
        let version = text(&self.object["apiVersion"]);
        version.split_once('/').map_or("", |(group, _)| group)
    }

    fn kind(self) -> &'a str {
        text(&self.object["kind"])
    }

    /// `pods`, `pods/ephemeralcontainers`
    fn resource(self) -> String {
        let resource = RESOURCES
            .iter()
            .find(|(group, kind, _)| (*group, *kind) == (self.group(), self.kind()));
        let (.., plural) = resource.unwrap_or_else(|| panic!("no such kind: {}", self.object));
        let subresource = self.subresource.map(|name| format!("/{name}"));
        format!("{plural}{}", subresource.unwrap_or_default())
    }
}

// === impl Policy ===

impl Policy {
    fn is_about(&self, review: Review<'_>) -> bool {
        let has = |list: &[String], wanted: &str| list.iter().any(|one| one == wanted);
        let namespace = review.object["metadata"]["namespace"].as_str();
        if namespace.is_some_and(|namespace| has(&self.excluded_namespaces, namespace)) {
            return false;
        }
        // That these two are all that the others ask for is asserted above.
        let is_stored = review.operation != "DELETE";
        self.matches.iter().any(|one| match one {
            Match::Resources { groups, resources } => {
                is_stored && has(groups, review.group()) && has(resources, &review.resource())
            }
            // Gatekeeper's webhook is registered for the subresources of pods, and asks by kind.
            Match::Kinds { groups, kinds } => {
                has(groups, review.group()) && has(kinds, review.kind())
            }
            Match::Selectors(selectors) => {
                let subresource = review.subresource.map(|name| format!("/{name}"));
                let selector = format!("{}{}", review.kind(), subresource.unwrap_or_default());
                // Custom kinds are written with their groups.
                is_stored && !CUSTOM_GROUPS.contains(&review.group()) && has(selectors, &selector)
            }
        })
    }
}

// === impl Program ===

impl Program {
    fn cel(variables: &Value, validations: &Value) -> Self {
        let mut env = Env::stdlib();
        env.add_extension(extensions::strings).unwrap();
        // Kubernetes, "Common Expression Language", regex library: the first match, or "".
        env.add_member_overload(
            "find",
            "string.find(string)",
            STRING_TYPE,
            vec![STRING_TYPE],
            find,
        )
        .unwrap();
        let parse = |expression: &Value| {
            let parser = env.parser().max_recursion_depth(DEEPEST_EXPRESSION);
            let source = text(expression);
            parser
                .parse(source)
                .unwrap_or_else(|error| panic!("{error}\n{source}"))
        };
        let [validation] = validations.as_array().unwrap().as_slice() else {
            panic!("{validations}");
        };
        let variables = variables.as_array().unwrap().iter();
        let variables = variables.map(|variable| {
            (
                text(&variable["name"]).to_owned(),
                parse(&variable["expression"]),
            )
        });
        let variables = variables.collect();
        let (expression, message) = (
            parse(&validation["expression"]),
            parse(&validation["messageExpression"]),
        );
        Program::Cel(Box::new(Cel {
            env: Arc::new(env),
            variables,
            expression,
            message,
        }))
    }

    fn run(&self, review: Review<'_>) -> Vec<String> {
        match self {
            Program::Cel(cel) => cel.run(review),
            Program::Rego { engine, parameters } => rego((**engine).clone(), parameters, review),
        }
    }
}

fn find<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let texts = arguments.into_iter().map(|value| {
        let text = value.as_ref().downcast_ref::<CelString<'_>>();
        text.unwrap().to_string()
    });
    let [text, pattern] = <[String; 2]>::try_from(texts.collect::<Vec<_>>()).unwrap();
    let pattern = regex::Regex::new(&pattern)
        .map_err(|error| ExecutionError::function_error("find", error))?;
    let found = pattern.find(&text).map_or("", |found| found.as_str());
    Ok(CowVal::owned(CelString::from(found.to_owned())))
}

// === impl Cel ===

impl Cel {
    fn run(&self, review: Review<'_>) -> Vec<String> {
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.add_variable_from_value("object", cel::to_value(review.object).unwrap());
        context.add_variable_from_value("oldObject", cel::to_value(review.old).unwrap());
        let mut variables = HashMap::new();
        let mut bind = |context: &mut Context<'_, '_>, name: Option<(String, cel::Value)>| {
            variables.extend(name);
            context.add_variable_from_value("variables", variables.clone());
        };
        bind(&mut context, None);
        for (name, expression) in &self.variables {
            let value = resolve(expression, &context, name, review);
            bind(&mut context, Some((name.clone(), value)));
        }
        match resolve(&self.expression, &context, "expression", review) {
            cel::Value::Bool(true) => Vec::new(),
            cel::Value::Bool(false) => {
                match resolve(&self.message, &context, "messageExpression", review) {
                    cel::Value::String(message) => vec![message.to_string()],
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn resolve(
    expression: &cel::IdedExpr,
    context: &Context<'_, '_>,
    name: &str,
    review: Review<'_>,
) -> cel::Value {
    cel::Value::resolve(expression, context)
        .unwrap_or_else(|error| panic!("{name}: {error}: {}", review.object))
}

fn rego(mut engine: regorus::Engine, parameters: &Value, review: Review<'_>) -> Vec<String> {
    let input = json!({
        "parameters": parameters,
        "review": {
            "object": review.object,
            "oldObject": review.old,
            "operation": review.operation,
            "kind": { "group": review.group(), "kind": review.kind() },
            "namespace": review.object["metadata"]["namespace"],
        },
    });
    engine.set_input(regorus::Value::from_json_str(&input.to_string()).unwrap());
    let violations = engine
        .eval_rule("data.portcullis.violation".to_owned())
        .unwrap_or_else(|error| panic!("{error}: {}", review.object));
    let violations: Vec<Value> = serde_json::from_str(&violations.to_json_str().unwrap()).unwrap();
    violations
        .iter()
        .map(|violation| text(&violation["msg"]).to_owned())
        .collect()
}
