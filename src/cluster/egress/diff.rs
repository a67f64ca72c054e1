//! What is needed beside what was used: the look that finds a list of hosts that has grown old.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Need, Needs};
use crate::telemetry::ledger::{Entry, Purpose, Snapshot};

/// The three ways in which they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Used, and the configuration does not need it (any more).
    pub not_needed: Vec<Entry>,
    /// Wanted by an upstream, and refused.
    pub refused: Vec<Entry>,
    /// Needed, and never used: `host`, or `host:port`, with what for.
    pub not_used: BTreeMap<String, Vec<String>>,
}

// === impl Diff ===

impl Diff {
    #[must_use]
    pub fn new(needs: &Needs, ledger: &Snapshot) -> Self {
        let rows = ledger.hosts.iter();
        let (refused, used): (Vec<&Entry>, Vec<&Entry>) =
            rows.partition(|row| row.refused.is_some());
        let needed = |row: &&&Entry| needs.iter().any(|need| need.covers(&row.host, row.port));
        let mut not_used: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let unused = |need: &&Need| !used.iter().any(|row| need.covers(&row.host, row.port));
        for need in needs.iter().filter(unused) {
            let owners = not_used.entry(need.authority()).or_default();
            if !owners.contains(&need.owner) {
                owners.push(need.owner.clone());
            }
        }
        // Replicas are where `networks` says, or they are not dialled.
        let others = used.iter().filter(|row| row.purpose != Purpose::Peer);
        let not_needed = others.filter(|row| !needed(row));
        Diff {
            not_needed: not_needed.map(|row| (*row).clone()).collect(),
            refused: refused.into_iter().cloned().collect(),
            not_used,
        }
    }

    /// Whether somebody should look at it. What was never used may be used tomorrow.
    #[must_use]
    pub fn is_finding(&self) -> bool {
        !self.not_needed.is_empty() || !self.refused.is_empty()
    }

    #[must_use]
    pub fn json(&self) -> Value {
        // Plain data: it always has a JSON form.
        json!(self)
    }

    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let row = |row: &Entry| {
            let Entry {
                host, port, owner, ..
            } = row;
            format!("{host}:{port} ({} for {owner})", row.purpose)
        };
        // Writing to a String cannot fail.
        if !self.not_needed.is_empty() {
            text.push_str("used, but not in what this configuration needs:\n");
            for used in &self.not_needed {
                let _ = writeln!(text, "  {}, last {}", row(used), used.last);
            }
        }
        if !self.refused.is_empty() {
            text.push_str("refused, though an upstream wanted it:\n");
            for refused in &self.refused {
                let why = refused.refused.map(|why| why.to_string());
                let (times, why) = (refused.requests, why.unwrap_or_default());
                let last = refused.last;
                let _ = writeln!(
                    text,
                    "  {}, {why}, {times} times, last {last}",
                    row(refused)
                );
            }
        }
        if !self.not_used.is_empty() {
            text.push_str("needed, but never used:\n");
            for (host, owners) in &self.not_used {
                let _ = writeln!(text, "  {host} ({})", owners.join(", "));
            }
        }
        if text.is_empty() {
            text.push_str("what is needed is what was used\n");
        }
        text
    }
}
