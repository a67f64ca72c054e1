//! Azure Firewall with a policy, as a Bicep module.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::az::{NODES, protocol};
use super::plan::{Group, Plan};

pub(super) fn write(plan: &Plan, source: Option<IpNet>) -> String {
    let mut text = plan.head("//", "bicep", &[NODES]);
    if plan.groups.is_empty() {
        return text;
    }
    let default = source.map_or_else(String::new, |source| format!(" = '{source}'"));
    let rules: String = plan.groups.iter().map(rule).collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n\
@description('The firewall policy that gets the rules.')
param firewallPolicyName string

@description('This proxy and nothing else, such as 10.42.3.4/32.')
param proxyAddress string{default}

resource policy 'Microsoft.Network/firewallPolicies@2024-05-01' existing = {{
  name: firewallPolicyName
}}

resource egress 'Microsoft.Network/firewallPolicies/ruleCollectionGroups@2024-05-01' = {{
  parent: policy
  name: 'portcullis-egress'
  properties: {{
    priority: 300
    ruleCollections: [
      {{
        ruleCollectionType: 'FirewallPolicyFilterRuleCollection'
        name: 'registries'
        priority: 110
        action: {{
          type: 'Allow'
        }}
        rules: [
{rules}        ]
      }}
    ]
  }}
}}
"
    );
    text
}

fn rule(group: &Group) -> String {
    let Group {
        name, port, hosts, ..
    } = group;
    let protocol = protocol(group);
    let hosts = hosts.iter().map(|host| format!("              '{host}'\n"));
    let hosts = hosts.collect::<Vec<_>>().concat();
    format!(
        "          {{
            ruleType: 'ApplicationRule'
            name: '{name}'
            protocols: [
              {{
                protocolType: '{protocol}'
                port: {port}
              }}
            ]
            sourceAddresses: [
              proxyAddress
            ]
            targetFqdns: [
{hosts}            ]
          }}
"
    )
}
