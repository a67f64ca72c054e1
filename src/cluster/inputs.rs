//! What `audit` and `warm` read: Kubernetes objects, compose files, Dockerfiles and lists.
//!
//! A Dockerfile is known by its name (`Dockerfile`, `Containerfile`, with anything before or behind
//! a dot) or by a first instruction that is FROM or ARG, a list by an image on each of its lines.
//! Everything else is JSON when it starts
//! with a brace or bracket and is not called YAML, and YAML otherwise; each of its documents is a
//! Kubernetes object (`apiVersion` and `kind`), a compose file (`services`), or said to be neither.

use std::sync::Arc;

use super::mention::Mention;
use super::node::{self, Node};
use super::workload;

mod compose;
mod dockerfile;
mod list;
mod variables;

/// All of a cluster's pods, about ten thousand of them. Bytes.
pub const LARGEST_INPUT: usize = 256 << 20;

/// What one input holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    pub mentions: Vec<Mention>,
    /// What kept something from being read.
    pub errors: Vec<String>,
    /// What was passed over.
    pub notes: Vec<String>,
}

/// Reads one input. `name` is the file's, or `-`.
#[must_use]
pub fn read(name: &str, bytes: &[u8]) -> Inputs {
    let mut inputs = Inputs::default();
    let text = match text(bytes) {
        Ok(text) => text,
        Err(error) => {
            inputs.errors.push(format!("{name}: {error}"));
            return inputs;
        }
    };
    if is_dockerfile(name, text) {
        inputs.mentions = dockerfile::mentions(text);
    } else if !is_marked_up(name) && list::is_one(text) {
        inputs.mentions = list::mentions(text);
    } else {
        documents(name, text, &mut inputs);
    }
    let file: Arc<str> = name.into();
    for mention in &mut inputs.mentions {
        mention.place.file = Some(Arc::clone(&file));
    }
    inputs
}

/// UTF-8, with or without its mark.
fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > LARGEST_INPUT {
        return Err("larger than 256 MiB: ask for one namespace at a time");
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        // What `>` writes in Windows PowerShell.
        return Err("UTF-16: write it as UTF-8 (`| Out-File -Encoding utf8`)");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "no text in UTF-8")?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn is_dockerfile(name: &str, text: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    let named = |word: &str| {
        let rest = name.strip_prefix(word);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            || name
                .strip_suffix(word)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    named("Dockerfile") || named("Containerfile") || !is_marked_up(name) && dockerfile::is_one(text)
}

/// Whether its name says what it is.
fn is_marked_up(name: &str) -> bool {
    has_extension(name, &["yaml", "yml", "json"])
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|own| extensions.iter().any(|one| own.eq_ignore_ascii_case(one)))
}

fn documents(name: &str, text: &str, inputs: &mut Inputs) {
    let is_json =
        text.trim_start().starts_with(['{', '[']) && !has_extension(name, &["yaml", "yml"]);
    let (documents, error) = if is_json {
        node::from_json(text)
    } else {
        node::from_yaml(text)
    };
    let mut known = false;
    for document in documents.iter().filter(|document| !document.is_null()) {
        known |= one(name, document, inputs);
    }
    match error {
        Some(error) => inputs.errors.push(format!("{name}: {error}")),
        // An empty input is most likely the output of a command that failed.
        None if !known => inputs.errors.push(format!(
            "{name}: no Kubernetes object, no compose file, no Dockerfile and no list of images"
        )),
        None => {}
    }
}

/// Whether it is known what this document is.
fn one(name: &str, document: &Node, inputs: &mut Inputs) -> bool {
    if workload::is_object(document) {
        inputs.mentions.extend(workload::mentions(document));
    } else if compose::is_one(document) {
        inputs.mentions.extend(compose::mentions(document));
    } else if !document.items().is_empty() && document.items().iter().all(workload::is_object) {
        // `kubectl get -o json | jq .items`
        let objects = document.items().iter();
        inputs.mentions.extend(objects.flat_map(workload::mentions));
    } else {
        let line = document.line;
        inputs.notes.push(format!(
            "{name}, line {line}: neither a Kubernetes object nor a compose file, passed over"
        ));
        return false;
    }
    true
}

#[cfg(test)]
mod tests;
