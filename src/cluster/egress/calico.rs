//! Calico Enterprise and Cloud: what pods of this proxy may reach, by name.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::plan::Plan;

const HEAD: &str = "apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata:
  name: portcullis-egress
  namespace: portcullis
spec:
  selector: app.kubernetes.io/name == 'portcullis'
  types:
    - Egress
  egress:
    - action: Allow
      protocol: UDP
      destination:
        selector: k8s-app == 'kube-dns'
        namespaceSelector: projectcalico.org/name == 'kube-system'
        ports:
          - 53
    - action: Allow
      protocol: TCP
      destination:
        selector: k8s-app == 'kube-dns'
        namespaceSelector: projectcalico.org/name == 'kube-system'
        ports:
          - 53
";

pub(super) fn write(plan: &Plan) -> String {
    let source = "the source is the pods with this label: adapt it to yours";
    let edition =
        "names in rules are for Calico Enterprise and Calico Cloud; open-source Calico has none";
    let mut text = plan.head("#", "calico", &[source, edition]) + HEAD;
    for (port, groups) in plan.ports() {
        text.push_str(
            "    - action: Allow\n      protocol: TCP\n      destination:\n        domains:\n",
        );
        let mut seen = BTreeSet::new();
        for group in groups {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "          # {}", group.owner);
            for host in group.hosts.iter().filter(|host| seen.insert(*host)) {
                let _ = writeln!(text, "          - \"{host}\"");
            }
        }
        let _ = writeln!(text, "        ports:\n          - {port}");
    }
    text
}
