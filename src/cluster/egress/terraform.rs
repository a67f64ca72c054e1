//! Azure Firewall with a policy, for Terraform's azurerm.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::az::{NODES, protocol};
use super::plan::{Group, Plan};

pub(super) fn write(plan: &Plan, source: Option<IpNet>) -> String {
    let mut text = plan.head("#", "terraform", &[NODES]);
    if plan.groups.is_empty() {
        return text;
    }
    let default = source.map_or_else(String::new, |source| {
        format!("  default     = \"{source}\"\n")
    });
    let rules: Vec<String> = plan.groups.iter().map(rule).collect();
    let rules = rules.join("\n");
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n\
variable \"firewall_policy_id\" {{
  description = \"The firewall policy that gets the rules.\"
  type        = string
}}

variable \"proxy_address\" {{
  description = \"This proxy and nothing else, such as 10.42.3.4/32.\"
  type        = string
{default}}}

resource \"azurerm_firewall_policy_rule_collection_group\" \"portcullis_egress\" {{
  name               = \"portcullis-egress\"
  firewall_policy_id = var.firewall_policy_id
  priority           = 300

  application_rule_collection {{
    name     = \"registries\"
    priority = 110
    action   = \"Allow\"

{rules}  }}
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
    let hosts = hosts.iter().map(|host| format!("        \"{host}\",\n"));
    let hosts = hosts.collect::<Vec<_>>().concat();
    format!(
        "    rule {{
      name             = \"{name}\"
      source_addresses = [var.proxy_address]

      protocols {{
        type = \"{protocol}\"
        port = {port}
      }}

      destination_fqdns = [
{hosts}      ]
    }}
"
    )
}
