//! `deny.toml` holds: no banned crate, no licence and no source that it does not allow.
//!
//! `cargo deny` reads the same file where it is installed. This test needs only cargo itself and
//! no network, so that the rules are checked wherever the tests run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use toml::{Table, Value};

#[test]
fn nothing_banned_and_no_foreign_licence() {
    let rules = rules();
    let banned = texts(&rules["bans"]["deny"]);
    let allowed = texts(&rules["licenses"]["allow"]);
    let mut wrong = Vec::new();
    let tree = tree();
    assert!(
        tree.len() > 100,
        "cargo tree shows only {} crates",
        tree.len()
    );
    for (package, licence) in tree {
        let name = package.split(' ').next().unwrap();
        if banned.iter().any(|banned| banned == name) {
            wrong.push(format!("{package} is banned"));
        }
        if !allows(&allowed, &licence) {
            wrong.push(format!("{package} has the licence {licence:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let lock: Table = lock.parse().unwrap();
    for package in lock["package"].as_array().unwrap() {
        let source = package.get("source").and_then(Value::as_str);
        let ours = package["name"].as_str() == Some(env!("CARGO_PKG_NAME"));
        let registry = source.is_some_and(|source| source.starts_with("registry+"));
        assert!(
            ours || registry,
            "{} comes from {source:?}",
            package["name"]
        );
    }
}

#[test]
fn a_licence_is_judged_by_its_whole_expression() {
    let allowed = [
        "MIT".to_owned(),
        "ISC".to_owned(),
        "Apache-2.0 WITH LLVM-exception".to_owned(),
    ];
    for licence in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "ISC AND (GPL-3.0 OR MIT)",
        "(MIT OR X) AND ISC",
    ] {
        assert!(allows(&allowed, licence), "{licence}");
    }
    assert!(allows(&allowed, "Apache-2.0 WITH LLVM-exception OR X"));
    for licence in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "ISC AND (GPL-3.0 OR X)",
        "Apache-2.0",
    ] {
        assert!(!allows(&allowed, licence), "{licence}");
    }
}

/// Package and licence of every crate that is built into the product or runs while it is built.
fn tree() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(["--no-dedupe", "--format", "{p}|{l}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    lines
        .map(|(package, licence)| (package.to_owned(), licence.to_owned()))
        .collect()
}

/// Every part joined by AND has an alternative (OR, or the older slash) that is allowed. No crate
/// nests deeper than that.
fn allows(allowed: &[String], licence: &str) -> bool {
    licence.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']).replace('/', " OR ");
        part.split(" OR ")
            .any(|one| allowed.iter().any(|allowed| allowed == one.trim()))
    })
}

fn rules() -> Table {
    std::fs::read_to_string(root().join("deny.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

/// The strings of an array; of a table in it, the value of `crate`.
fn texts(array: &Value) -> Vec<String> {
    let array = array.as_array().unwrap().iter();
    array
        .map(|value| {
            value
                .get("crate")
                .unwrap_or(value)
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
