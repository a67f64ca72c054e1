//! What every exported policy knows: how an image is read, and the clauses that decide.
//!
//! Images are read as [`crate::oci::Image`] and [`OwnNames`] read them, with regular expressions in
//! the place of the parser: one for what is an image at all, one for what would be an address, and
//! a few to take it apart. The syntax is RE2's, without lookahead and, as everywhere in what is
//! exported, without a backslash.

use serde::Serialize;

use crate::oci::{OwnNames, Registry};
use crate::policy::{Clause, Outline, Says};

/// A plan, as Rego takes it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Plan {
    /// What is an image.
    pub(super) image: String,
    /// Of those, the ones whose registry is an address.
    pub(super) address: String,
    /// Names without a registry, and other names of Docker Hub, are [`HUB`]'s.
    pub(super) hub: Vec<String>,
    /// The exact ones first.
    pub(super) own: Vec<Own>,
    pub(super) clauses: Vec<Clause>,
    pub(super) default: Says,
}

/// A name of the proxy: behind it stands the image that is meant.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Own {
    pub(super) when: String,
    /// In front of what names no registry.
    pub(super) default: String,
}

pub(super) const HUB: &str = "docker.io";
/// The longest name, in characters.
pub(super) const LONGEST_NAME: usize = 255;

/// The name of a reference, without tag and digest.
pub(super) const NAME: &str = "^([^/@]*/)*[^/:@]*";
/// A registry at the start of a name, with its slash.
pub(super) const REGISTRY: &str = "^(localhost|[^/]*[.:][^/]*)/";
/// A second `v2` behind a registry that stands behind our own name: nothing that we would answer.
pub(super) const MISPLACED: &str = "^[^/]*/v2/";
/// A name with a port where no registry is: a whole name, registry and all, behind another.
pub(super) const PORT_IN_PATH: &str = "^[^/]*/[^@]*:[^@]*/";

const LABEL: &str = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
/// At most five digits, and no more than 65535.
const PORT: &str = "0{0,4}[1-9]|0{0,3}[1-9][0-9]|0{0,2}[1-9][0-9]{2}|0?[1-9][0-9]{3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]";
const COMPONENT: &str = "[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*";
/// One that cannot be a registry's name.
const PLAIN_COMPONENT: &str = "[a-z0-9]+((_|__|-+)[a-z0-9]+)*";
const TAG: &str = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
const DIGEST: &str = "sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}";
/// The last label of an address, as some resolver reads it.
const NUMBER: &str = "([0-9]+|0[xX][0-9a-fA-F]*)";

// === impl Plan ===

impl Plan {
    pub(super) fn new(outline: Outline, names: &OwnNames) -> Self {
        let host = format!(
            "(({LABEL}([.]{LABEL})+[.]?|{LABEL}[.])(:({PORT}))?|{LABEL}:({PORT})|localhost)"
        );
        let path = format!("{COMPONENT}(/{COMPONENT})*");
        let names_of = [
            format!("{host}/{path}"),
            format!("{PLAIN_COMPONENT}/{path}"),
            COMPONENT.to_owned(),
        ];
        let hub = Registry::docker_hub().aliases().iter().copied();
        let mut own: Vec<_> = names.iter().filter(|(host, ..)| is_host(host)).collect();
        // A name on one port goes before the same name on any.
        own.sort_by_key(|(host, port, _)| (port.is_none(), *host, *port));
        Plan {
            image: format!("^({})(:{TAG})?(@({DIGEST}))?$", names_of.join("|")),
            address: format!("^([^/:]*[.]{NUMBER}[.]?(:[0-9]+)?|{NUMBER}([.](:[0-9]+)?|:[0-9]+))/"),
            hub: hub.chain(["", HUB]).map(str::to_owned).collect(),
            own: own
                .into_iter()
                .map(|(host, port, default)| Own::new(host, port, default))
                .collect(),
            clauses: outline.clauses,
            default: outline.default,
        }
    }

    /// Whether some images are served and told about.
    pub(super) fn audits(&self) -> bool {
        let mut clauses = self.clauses.iter();
        clauses.any(|clause| matches!(clause.says, Says::Audit(_)))
    }

    /// The clauses that decide whether an image is judged as another, down to the last that says
    /// so.
    pub(super) fn rewriting(&self) -> &[Clause] {
        let rewrites = |clause: &Clause| matches!(clause.says, Says::Rewrite { .. });
        let end = self.clauses.iter().rposition(rewrites);
        &self.clauses[..end.map_or(0, |last| last + 1)]
    }
}

// === impl Own ===

impl Own {
    fn new(host: &str, port: Option<u16>, default: &Registry) -> Self {
        let port = match port {
            Some(443) => "(:0*443)?".to_owned(),
            Some(port) => format!(":0*{port}"),
            None => format!("(:0*({PORT}|0))?"),
        };
        let default = default.as_str();
        // A word alone would be read as a part of the path; with a dot behind it, it is a host.
        let is_word = !default.contains(['.', ':']) && default != "localhost";
        let dot = if is_word { "." } else { "" };
        Own {
            when: format!("^(?i:{}){port}/", literal(host)),
            default: format!("{default}{dot}/"),
        }
    }
}

/// Whether anybody can write it in front of an image.
fn is_host(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    name.chars().all(allowed)
}

fn literal(host: &str) -> String {
    let quote = |c: char| match c {
        '.' | '[' | ']' => format!("[{c}]"),
        c => c.to_string(),
    };
    host.chars().map(quote).collect()
}
