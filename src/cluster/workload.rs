//! From a Kubernetes object to the images that it would run.
//!
//! For the kinds that Kubernetes has, the pod's specification is looked for where it belongs, and
//! anything else in its place is reported: the API server would refuse it, so nobody else has
//! looked either. In any other kind a pod template is known by its shape: `spec` with a list of
//! containers, below a key that ends in `template` (Rollout, Knative's Service, `JobSet`, `RayCluster`).
//! Objects inside of objects count as themselves, and lists as what is in them.
//!
//! An image that is missing, null or empty is no image: templates may leave it to somebody else.

use std::sync::Arc;

use super::mention::{Mention, Object, Place, Written};
use super::node::{Node, Value};

/// Where a pod's containers are listed.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// One object on the way to its images.
struct Workload<'a> {
    object: Arc<Object>,
    found: &'a mut Vec<Mention>,
}

/// Whether this is a Kubernetes object at all.
#[must_use]
pub fn is_object(node: &Node) -> bool {
    node.text_of("kind").is_some() && node.text_of("apiVersion").is_some()
}

/// Everything in an object that stands where an image belongs, in the order of the object.
#[must_use]
pub fn mentions(object: &Node) -> Vec<Mention> {
    mentions_in(object, None)
}

/// The same where something else tells what the object is, should it not say so itself.
#[must_use]
pub fn mentions_in(object: &Node, known: Option<&Object>) -> Vec<Mention> {
    let mut found = Vec::new();
    collect(object, known, "", &mut found);
    found
}

/// `listed` is what a list says about its elements, which need not repeat it.
fn collect(node: &Node, listed: Option<&Object>, path: &str, found: &mut Vec<Mention>) {
    let own = |key| node.text_of(key).map(str::to_owned);
    let kind = own("kind").or_else(|| listed.map(|listed| listed.kind.clone()));
    let api_version = own("apiVersion").or_else(|| listed?.api_version.clone());
    let kind = kind.unwrap_or_default();
    let items = || node.all("items").filter(|items| !items.items().is_empty());
    if kind.ends_with("List") && items().next().is_some() {
        let kind = kind.trim_end_matches("List").to_owned();
        let listed = Object {
            api_version: api_version.filter(|_| !kind.is_empty()),
            kind,
            ..Object::default()
        };
        for (index, item) in items().flat_map(|items| items.items().iter().enumerate()) {
            collect(
                item,
                Some(&listed),
                &format!("{path}items[{index}]."),
                found,
            );
        }
        return;
    }
    let metadata = |key| {
        let texts = node
            .all("metadata")
            .filter_map(|metadata| metadata.text_of(key));
        texts
            .last()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let object = Arc::new(Object {
        api_version,
        kind,
        namespace: metadata("namespace"),
        name: metadata("name").or_else(|| metadata("generateName")),
    });
    let mut workload = Workload {
        object: Arc::clone(&object),
        found,
    };
    match pod_spec_of(&object) {
        Some(way) => workload.follow(node, path, way),
        None if has_no_workloads(&object) => {}
        None => workload.search(node, path, Root(true)),
    }
}

/// Whether a node is the object itself, whose metadata and status run nothing.
#[derive(Clone, Copy)]
struct Root(bool);

/// The way to the pod's specification in Kubernetes' own kinds.
fn pod_spec_of(object: &Object) -> Option<&'static [&'static str]> {
    let group = object
        .api_version
        .as_deref()
        .and_then(|version| version.split_once('/'));
    let group = group.map_or("", |(group, _)| group);
    match (group, object.kind.as_str()) {
        ("", "Pod") => Some(&["spec"]),
        ("", "PodTemplate") => Some(&["template", "spec"]),
        // What `kubectl debug` sent to old API servers.
        ("", "EphemeralContainers") => Some(&[]),
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet")
        | ("batch", "Job") => Some(&["spec", "template", "spec"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template", "spec"]),
        _ => None,
    }
}

/// Kinds that only describe workloads: schemas, and patterns that look like images.
fn has_no_workloads(object: &Object) -> bool {
    let group = object.api_version.as_deref().unwrap_or_default();
    object.kind == "CustomResourceDefinition"
        || group.starts_with("kyverno.io/")
        || group.starts_with("policies.kyverno.io/")
}

// === impl Workload ===

impl Workload<'_> {
    /// Goes to a specification whose place is known.
    fn follow(&mut self, node: &Node, path: &str, way: &[&str]) {
        let Some((key, rest)) = way.split_first() else {
            self.pod_spec(node, path);
            return;
        };
        for next in node.all(key).filter(|next| !next.is_null()) {
            let at = format!("{path}{key}");
            match next.value {
                Value::Map(_) => self.follow(next, &format!("{at}."), rest),
                _ => self.odd(next, "a map", at, None),
            }
        }
    }

    /// Looks everywhere for pod templates and for objects inside of this one.
    fn search(&mut self, node: &Node, path: &str, root: Root) {
        for (key, value) in node.entries() {
            if root.0 && matches!(key.as_str(), "metadata" | "status") {
                continue;
            }
            let at = format!("{path}{key}");
            let is_template = key.ends_with("emplate") || key.ends_with("emplates");
            match &value.value {
                Value::List(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.inside(item, &format!("{at}[{index}]."), is_template);
                    }
                }
                _ => self.inside(value, &format!("{at}."), is_template),
            }
        }
    }

    fn inside(&mut self, node: &Node, path: &str, is_template: bool) {
        if is_object(node) {
            collect(node, None, path, self.found);
            return;
        }
        let specs = node
            .all("spec")
            .filter(|spec| is_template && has_containers(spec));
        for spec in specs {
            self.pod_spec(spec, &format!("{path}spec."));
        }
        self.search(node, path, Root(false));
        // Lists of lists.
        for (index, item) in node.items().iter().enumerate() {
            self.inside(
                item,
                &format!("{}[{index}].", path.trim_end_matches('.')),
                is_template,
            );
        }
    }

    /// `path` ends in a dot unless it is empty.
    fn pod_spec(&mut self, spec: &Node, path: &str) {
        for key in CONTAINERS {
            self.list(spec, key, path, |this, container, at| {
                let name = container.text_of("name");
                for image in container.all("image") {
                    this.image(image, format!("{at}.image"), name);
                }
            });
        }
        self.list(spec, "volumes", path, |this, volume, at| {
            let name = volume.text_of("name");
            for source in volume.all("image").filter(|source| !source.is_null()) {
                match source.value {
                    Value::Map(_) => {
                        for reference in source.all("reference") {
                            this.image(reference, format!("{at}.image.reference"), name);
                        }
                    }
                    _ => this.odd(source, "a map", format!("{at}.image"), name),
                }
            }
        });
    }

    /// The elements of a list of maps.
    fn list(&mut self, node: &Node, key: &str, path: &str, each: impl Fn(&mut Self, &Node, &str)) {
        for list in node.all(key).filter(|list| !list.is_null()) {
            let Value::List(items) = &list.value else {
                self.odd(list, "a list", format!("{path}{key}"), None);
                continue;
            };
            for (index, item) in items.iter().enumerate() {
                let at = format!("{path}{key}[{index}]");
                match item.value {
                    Value::Map(_) => each(self, item, &at),
                    Value::Null => {}
                    _ => self.odd(item, "a map", at, None),
                }
            }
        }
    }

    fn image(&mut self, node: &Node, path: String, container: Option<&str>) {
        match &node.value {
            Value::Null => {}
            Value::Text(text) if text.is_empty() => {}
            Value::Text(text) => self.add(node, Written::Image(text.clone()), path, container),
            _ => self.odd(node, "an image", path, container),
        }
    }

    fn odd(&mut self, node: &Node, wanted: &'static str, path: String, container: Option<&str>) {
        let found = node.what();
        self.add(node, Written::Odd { found, wanted }, path, container);
    }

    fn add(&mut self, node: &Node, written: Written, path: String, container: Option<&str>) {
        self.found.push(Mention {
            written,
            place: Place {
                line: (node.line > 0).then_some(node.line),
                object: Some(Arc::clone(&self.object)),
                path,
                container: container.map(str::to_owned),
                ..Place::default()
            },
        });
    }
}

fn has_containers(spec: &Node) -> bool {
    CONTAINERS
        .iter()
        .flat_map(|key| spec.all(key))
        .any(|list| matches!(list.value, Value::List(_)))
}

#[cfg(test)]
mod tests;
