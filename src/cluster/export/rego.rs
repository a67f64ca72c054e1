//! A plan in Rego: a module that is always the same, and the plan behind it as data.
//!
//! In Rego's first version without imports, which every Gatekeeper takes, Azure Policy's add-on too.

use std::fmt::Write as _;

use super::plan::{HUB, LONGEST_NAME, MISPLACED, NAME, PORT_IN_PATH, Plan, REGISTRY};
use crate::policy::{AUDITED, MOST_REWRITES, REFUSED};

const MODULE: &str = include_str!("images.rego");

/// The module unrolls them.
const _: () = assert!(MOST_REWRITES == 2);

pub(super) fn module(plan: &Plan) -> String {
    let settings = serde_json::json!({
        "plan": plan,
        "hub": HUB,
        "longest_name": LONGEST_NAME,
        "name": NAME,
        "registry": REGISTRY,
        "misplaced": MISPLACED,
        "port_in_path": PORT_IN_PATH,
        "refused": REFUSED,
        "audited": AUDITED,
    });
    format!(
        "{MODULE}\n# The rules.\nsettings = {}\n",
        escape(&format!("{settings:#}"))
    )
}

/// In JSON's way, what YAML may take for a line break or for nothing.
fn escape(json: &str) -> String {
    let mut escaped = String::new();
    for c in json.chars() {
        if c.is_ascii() || c.is_alphanumeric() {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    /// OPA knows the type of a constant and refuses what is never in it, such as `to` where no rule
    /// rewrites. Only the rule that takes the type away may read it.
    #[test]
    fn nothing_in_the_module_knows_the_type_of_the_rules() {
        assert_eq!(super::MODULE.matches("settings").count(), 1);
    }
}
