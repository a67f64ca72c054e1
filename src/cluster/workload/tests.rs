use super::*;
use crate::cluster::node::{from_json_bytes, from_yaml};

/// `path image` of everything that is found; odd things as `path found/wanted`.
fn found(yaml: &str) -> Vec<String> {
    let (documents, error) = from_yaml(yaml);
    assert_eq!((documents.len(), error), (1, None), "{yaml}");
    let lines = mentions(&documents[0]).into_iter().map(|mention| {
        let path = mention.place.path;
        match mention.written {
            Written::Image(image) => format!("{path} {image}"),
            Written::Odd { found, wanted } => format!("{path} {found}/{wanted}"),
            Written::Open { text, .. } => panic!("{text}"),
        }
    });
    lines.collect()
}

#[test]
fn every_kind_of_kubernetes_has_its_place() {
    for (api_version, kind, path) in [
        ("v1", "Pod", "spec"),
        ("v1", "PodTemplate", "template.spec"),
        ("v1", "ReplicationController", "spec.template.spec"),
        ("apps/v1", "Deployment", "spec.template.spec"),
        ("apps/v1", "ReplicaSet", "spec.template.spec"),
        ("apps/v1", "StatefulSet", "spec.template.spec"),
        ("apps/v1", "DaemonSet", "spec.template.spec"),
        ("batch/v1", "Job", "spec.template.spec"),
        ("batch/v1", "CronJob", "spec.jobTemplate.spec.template.spec"),
    ] {
        let spec = "{containers: [{name: a, image: one}], initContainers: [{image: two}], \
                    ephemeralContainers: [{image: three}], volumes: [{image: {reference: four}}]}";
        let keys: Vec<_> = path.split('.').collect();
        let nested = keys
            .iter()
            .rev()
            .fold(spec.to_owned(), |inner, key| format!("{{{key}: {inner}}}"));
        let object = nested.replacen(
            '{',
            &format!("{{apiVersion: {api_version}, kind: {kind}, "),
            1,
        );
        let expected = [
            format!("{path}.containers[0].image one"),
            format!("{path}.initContainers[0].image two"),
            format!("{path}.ephemeralContainers[0].image three"),
            format!("{path}.volumes[0].image.reference four"),
        ];
        assert_eq!(found(&object), expected, "{kind}");
    }
}

#[test]
fn other_kinds_are_known_by_the_shape_of_a_pod_template() {
    let template = "{metadata: {name: x}, spec: {containers: [{image: a}], volumes: [{image: {reference: b}}]}}";
    for (head, key, path) in [
        (
            "argoproj.io/v1alpha1, kind: Rollout",
            "template",
            "spec.template",
        ),
        (
            "serving.knative.dev/v1, kind: Service",
            "template",
            "spec.template",
        ),
        (
            "k8s.elastic.co/v1, kind: Elastic",
            "podTemplate",
            "spec.podTemplate",
        ),
        // Of the same name as a kind of Kubernetes.
        (
            "batch.volcano.sh/v1, kind: Job",
            "template",
            "spec.template",
        ),
    ] {
        let object = format!("{{apiVersion: {head}, spec: {{{key}: {template}}}}}");
        let expected = [
            format!("{path}.spec.containers[0].image a"),
            format!("{path}.spec.volumes[0].image.reference b"),
        ];
        assert_eq!(found(&object), expected, "{head}");
    }
    let job_set = format!(
        "{{apiVersion: jobset.x-k8s.io/v1alpha2, kind: JobSet, spec: {{replicatedJobs: [\
         {{name: j, template: {{spec: {{template: {template}}}}}}}]}}}}"
    );
    assert_eq!(
        found(&job_set)[0],
        "spec.replicatedJobs[0].template.spec.template.spec.containers[0].image a"
    );
    let nested = "{apiVersion: template.openshift.io/v1, kind: Template, objects: [\
                  {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{image: a}]}}]}";
    assert_eq!(found(nested), ["objects[0].spec.containers[0].image a"]);
}

#[test]
fn what_only_looks_like_a_workload_is_none() {
    for object in [
        "{apiVersion: v1, kind: ConfigMap, data: {template: 'spec: {containers: [{image: a}]}'}}",
        "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, spec: {template: {spec: {containers: [{image: a}]}}}}",
        "{apiVersion: kyverno.io/v1, kind: ClusterPolicy, spec: {pattern: {spec: {template: {spec: {containers: [{image: '!*:latest'}]}}}}}}",
        "{apiVersion: x.example/v1, kind: Odd, spec: {template: {spec: {containers: 3}}}}",
        "{apiVersion: x.example/v1, kind: Odd, spec: {template: {spec: {size: 3}}, containers: [a, b]}}",
        "{apiVersion: x.example/v1, kind: Odd, status: {template: {spec: {containers: [{image: a}]}}}}",
        "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: a}}}",
        "{apiVersion: v1, kind: Pod, status: {containerStatuses: [{image: a}]}}",
    ] {
        assert_eq!(found(object), [""; 0], "{object}");
    }
}

#[test]
fn lists_are_what_is_in_them() {
    let pod = "{apiVersion: v1, kind: Pod, spec: {containers: [{image: a}]}}";
    let list = format!(
        "{{apiVersion: v1, kind: List, items: [{pod}, {{kind: List, apiVersion: v1, items: [{pod}]}}]}}"
    );
    assert_eq!(
        found(&list),
        [
            "items[0].spec.containers[0].image a",
            "items[1].items[0].spec.containers[0].image a"
        ]
    );
    // The API's own lists do not repeat the kind.
    let list = "{apiVersion: apps/v1, kind: DeploymentList, items: [\
                {metadata: {name: d, namespace: n}, spec: {template: {spec: {containers: [{image: a, name: c}]}}}}]}";
    let (documents, _) = from_yaml(list);
    let mentions = mentions(&documents[0]);
    let object = mentions[0].place.object.as_deref().unwrap();
    assert_eq!(object.to_string(), "Deployment n/d");
    assert_eq!(object.api_version.as_deref(), Some("apps/v1"));
    assert_eq!(mentions[0].place.container.as_deref(), Some("c"));
    assert_eq!(found("{apiVersion: v1, kind: List, items: []}"), [""; 0]);
    assert_eq!(found("{apiVersion: v1, kind: List, items: null}"), [""; 0]);
}

#[test]
fn no_image_is_no_image() {
    for containers in [
        "null",
        "[]",
        "[null]",
        "[{}]",
        "[{image: }]",
        "[{image: ''}]",
        "[{name: a}]",
    ] {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, spec: {{containers: {containers}, volumes: [{{image: null}}, {{image: {{}}}}]}}}}"
        );
        assert_eq!(found(&pod), [""; 0], "{containers}");
    }
    assert_eq!(found("{apiVersion: v1, kind: Pod, spec: null}"), [""; 0]);
    assert_eq!(found("{apiVersion: v1, kind: Pod}"), [""; 0]);
}

#[test]
fn wrong_types_are_reported() {
    for (spec, expected) in [
        ("5", "spec a number/a map"),
        ("[]", "spec a list/a map"),
        ("{containers: {image: a}}", "spec.containers a map/a list"),
        ("{containers: a}", "spec.containers a text/a list"),
        ("{containers: [a]}", "spec.containers[0] a text/a map"),
        (
            "{containers: [{image: 3.9}]}",
            "spec.containers[0].image a number/an image",
        ),
        (
            "{containers: [{image: true}]}",
            "spec.containers[0].image a boolean/an image",
        ),
        (
            "{containers: [{image: {a: b}}]}",
            "spec.containers[0].image a map/an image",
        ),
        (
            "{initContainers: [{image: [a]}]}",
            "spec.initContainers[0].image a list/an image",
        ),
        (
            "{volumes: [{image: a}]}",
            "spec.volumes[0].image a text/a map",
        ),
        (
            "{volumes: [{image: {reference: 1}}]}",
            "spec.volumes[0].image.reference a number/an image",
        ),
        ("{volumes: a}", "spec.volumes a text/a list"),
    ] {
        let pod = format!("{{apiVersion: v1, kind: Pod, spec: {spec}}}");
        assert_eq!(found(&pod), [expected], "{spec}");
    }
}

#[test]
fn what_is_written_twice_is_found_twice() {
    let pod = "{apiVersion: v1, kind: Pod, spec: {containers: [{image: a, image: b}], containers: [{image: c}]}}";
    let images: Vec<_> = found(pod)
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(images, ["a", "b", "c"]);
}

/// JSON values of every shape, with the words that mean something.
fn json() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    let word = || {
        prop::sample::select(vec![
            "apiVersion",
            "kind",
            "metadata",
            "name",
            "spec",
            "template",
            "jobTemplate",
            "items",
            "containers",
            "initContainers",
            "volumes",
            "image",
            "reference",
            "v1",
            "apps/v1",
            "batch/v1",
            "Pod",
            "Deployment",
            "CronJob",
            "List",
            "PodList",
            "nginx",
            "",
        ])
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(3)),
        Just(json!(true)),
        word().prop_map(|word| json!(word))
    ];
    leaf.prop_recursive(8, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::vec((word(), inner), 0..6).prop_map(|entries| {
                Value::Object(
                    entries
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect(),
                )
            }),
        ]
    })
}

proptest::proptest! {
    #[test]
    fn no_object_is_too_odd(object in json()) {
        let node = from_json_bytes(object.to_string().as_bytes()).unwrap();
        let _ = mentions(&node);
    }
}
