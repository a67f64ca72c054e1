//! Cilium: what pods of this proxy may reach, by name.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::plan::Plan;

/// Cilium learns addresses from the answers that pass its DNS proxy.
const HEAD: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: portcullis-egress
  namespace: portcullis
spec:
  endpointSelector:
    matchLabels:
      app.kubernetes.io/name: portcullis
  egress:
    - toEndpoints:
        - matchLabels:
            k8s:io.kubernetes.pod.namespace: kube-system
            k8s-app: kube-dns
      toPorts:
        - ports:
            - port: "53"
              protocol: ANY
          rules:
            dns:
              - matchPattern: "*"
"#;

pub(super) fn write(plan: &Plan) -> String {
    let source = "the source is the pods with this label: adapt it to yours";
    let labels = "* stands for one label or a part of it, so that a name below *.x has two lines";
    let mut text = plan.head("#", "cilium", &[source, labels]) + HEAD;
    for (port, groups) in plan.ports() {
        text.push_str("    - toFQDNs:\n");
        let mut seen = BTreeSet::new();
        for group in groups {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "        # {}", group.owner);
            for host in group.hosts.iter().filter(|host| seen.insert(*host)) {
                let _ = match host.strip_prefix("*.") {
                    None => writeln!(text, "        - matchName: {host}"),
                    Some(rest) => writeln!(
                        text,
                        "        - matchPattern: \"*.{rest}\"\n        - matchPattern: \"*.*.{rest}\""
                    ),
                };
            }
        }
        let _ = writeln!(
            text,
            "      toPorts:\n        - ports:\n            - port: \"{port}\"\n              protocol: TCP"
        );
    }
    text
}
