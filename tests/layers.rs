//! The layers of the house: a module may use those below it, never those above or beside it.
//!
//! Read from the source text, so that neither a re-export nor a `use` inside a function hides an
//! import. `docs/architecture.md` shows the same order as a picture.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

/// What each module of the crate may use, from the ground up.
const MAY_USE: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("units", &[]),
    ("telemetry", &["units"]),
    ("policy", &["oci", "units"]),
    ("upstream", &["oci", "telemetry", "units"]),
    ("store", &["oci", "telemetry", "units"]),
    ("fill", &["store", "oci", "telemetry", "units"]),
    (
        "cache",
        &[
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
    (
        "airgap",
        &[
            "cache",
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
    (
        "cluster",
        &["cache", "upstream", "policy", "oci", "telemetry", "units"],
    ),
    (
        "server",
        &[
            "cache",
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
    (
        "config",
        &[
            "airgap",
            "cluster",
            "server",
            "cache",
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
    (
        "app",
        &[
            "config",
            "airgap",
            "cluster",
            "server",
            "cache",
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "config",
            "airgap",
            "cluster",
            "server",
            "cache",
            "fill",
            "upstream",
            "store",
            "policy",
            "oci",
            "telemetry",
            "units",
        ],
    ),
];

/// Single words that a module borrows from one beside it: (who, whose, what). How an upstream can
/// fail is part of how a fill can fail, and translating the one into the other would only copy it.
const WORDS: &[(&str, &str, &str)] = &[
    ("fill", "upstream", "UpstreamError"),
    ("fill", "upstream", "UpstreamErrorKind"),
    // What is pinned is said in the language of rules.
    ("store", "policy", "Pattern"),
    ("store", "policy", "Hit"),
];

#[test]
fn no_module_uses_one_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut files = 0;
    for file in rust_files(&source) {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs");
        // The crate's own two roots name everything.
        if module == "lib" || module == "main" {
            continue;
        }
        files += 1;
        let text = fs::read_to_string(&file).unwrap();
        for fault in faults(module, &text) {
            wrong.push(format!("{}: {fault}", relative.display()));
        }
    }
    assert!(files > 10, "only {files} files looked at");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_upward_import_is_found() {
    assert_eq!(
        faults("store", "use crate::oci::Digest;\nuse crate::store::Disk;"),
        [""; 0]
    );
    for text in [
        "use crate::cache::Cache;",
        "use crate::{oci::Digest, cache::Cache};",
        "use crate::{\n    oci::{Digest, Tag},\n    cache,\n};",
        "fn f() { crate::cache::g() }",
        "pub(crate) use crate::cache;",
        "use super::super::cache::Cache;",
    ] {
        assert_eq!(faults("store", text), ["store may not use cache"], "{text}");
    }
    assert_eq!(
        faults("fill", "use crate::upstream::Upstream;"),
        ["fill may not use upstream"]
    );
    assert_eq!(
        faults("new", "").len(),
        1,
        "a module without a place must be given one"
    );
    // Words in comments are no imports.
    assert_eq!(
        faults("store", "// see crate::cache\n/// [`crate::cache::Cache`]"),
        [""; 0]
    );
}

/// What is wrong with `text`, a file of the top-level `module`.
fn faults(module: &str, text: &str) -> Vec<String> {
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{module} has no layer: give it one in tests/layers.rs"
        )];
    };
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut used: Vec<String> = Vec::new();
    for start in ["crate::", "super::super::"] {
        for (at, _) in code.match_indices(start) {
            expand("", &code[at + start.len()..], &mut used);
        }
    }
    let mut found = Vec::new();
    for path in used {
        let (layer, item) = path.split_once("::").unwrap_or((path.as_str(), ""));
        // `super::super::` inside a nested module names a sibling: only layers count.
        let is_layer = MAY_USE.iter().any(|(name, _)| *name == layer);
        let is_fine = layer == module || allowed.contains(&layer);
        let is_word = WORDS.contains(&(module, layer, item));
        if is_layer && !is_fine && !is_word {
            found.push(format!("{module} may not use {layer}"));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Adds the paths that begin at `text` to `paths`, at most two segments of each:
/// `a::{b, c::d}` is `a::b` and `a::c`.
fn expand(before: &str, text: &str, paths: &mut Vec<String>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut start) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    start = false;
                    expand(before, &group[at..], paths);
                }
                _ => {}
            }
        }
        return;
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let path = format!("{before}{}", &text[..end]);
    match text[end..].strip_prefix("::") {
        Some(rest) if before.is_empty() => expand(&format!("{path}::"), rest, paths),
        _ => paths.push(path),
    }
}

fn rust_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
