//! Azure Firewall with a policy, as commands of the Azure CLI.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::plan::{Group, Plan};

/// Azure keeps the list of what AKS itself needs, under a tag.
pub(super) const NODES: &str = "AKS nodes need hosts of their own: the tag AzureKubernetesService, with their subnet as the source";

const COLLECTION: &str = "az network firewall policy rule-collection-group collection";
const WHERE: &str = "--resource-group \"$RESOURCE_GROUP\" --policy-name \"$FIREWALL_POLICY\"";

pub(super) fn write(plan: &Plan, source: Option<IpNet>) -> String {
    let head = plan.head("#", "az", &[NODES]);
    let mut text = format!("#!/usr/bin/env bash\n{head}");
    if plan.groups.is_empty() {
        return text;
    }
    let source = match source {
        Some(source) => format!("SOURCE=\"${{SOURCE:-{source}}}\""),
        None => ": \"${SOURCE:?the address of this proxy, such as 10.42.3.4/32}\"".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "set -euo pipefail\n\
         : \"${{RESOURCE_GROUP:?the resource group of the firewall policy}}\"\n\
         : \"${{FIREWALL_POLICY:?the name of the firewall policy}}\"\n\
         # This proxy and nothing else.\n\
         {source}\n\n\
         az network firewall policy rule-collection-group create \\\n  \
           {WHERE} \\\n  \
           --name portcullis-egress --priority 300"
    );
    for (number, group) in plan.groups.iter().enumerate() {
        let name = &group.name;
        // The first rule makes the collection.
        let command = if number == 0 {
            format!(
                "{COLLECTION} add-filter-collection \\\n  {WHERE} \\\n  \
                 --rule-collection-group-name portcullis-egress --name registries \\\n  \
                 --collection-priority 110 --action Allow --rule-name {name}"
            )
        } else {
            format!(
                "{COLLECTION} rule add \\\n  {WHERE} \\\n  \
                 --rule-collection-group-name portcullis-egress --collection-name registries \\\n  \
                 --name {name}"
            )
        };
        let _ = writeln!(text, "{command} {}", rule(group));
    }
    text
}

fn rule(group: &Group) -> String {
    let Group { port, hosts, .. } = group;
    let protocol = protocol(group);
    let hosts = hosts.iter().map(|host| format!(" \\\n    '{host}'"));
    let hosts = hosts.collect::<Vec<_>>().concat();
    format!(
        "--rule-type ApplicationRule \\\n  \
         --source-addresses \"$SOURCE\" --protocols {protocol}={port} --target-fqdns{hosts}"
    )
}

/// How Azure calls what the firewall looks for the name in: SNI or Host.
pub(super) fn protocol(group: &Group) -> &'static str {
    if group.tls { "Https" } else { "Http" }
}
