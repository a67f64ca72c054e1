#![allow(clippy::disallowed_methods, reason = "tests write files of their own")]

use std::os::unix::fs::MetadataExt as _;

use toml::Table;

use super::*;
use crate::policy;

const PROXY: &str = "https://images.corp.example:5000";
const CA: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

fn tree(url: &str, upstreams: &[&str], rules: &str, options: Options) -> Result<Tree, HostsError> {
    let config: policy::Config = toml::from_str(rules).unwrap();
    let policy = Engine::compile(&config).unwrap();
    Tree::new(
        Some(&url.parse().unwrap()),
        upstreams.iter().copied(),
        &policy,
        options,
    )
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.registries.iter().map(String::as_str).collect()
}

fn read(directory: &Path, registry: &str) -> Table {
    fs::read_to_string(directory.join(registry).join("hosts.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn every_registry_that_a_node_might_ask_has_a_directory() {
    let rules = r#"
        [[rules]]
        id = "a"
        images = ["blocked.example/**", "*.blocked.example/**", "docker.io/x:*", "**:latest", "*/y"]
        except = ["excepted.example/z"]
        effect = "deny"
    "#;
    let upstreams = [
        "REG.example:5000",
        "*.azurecr.io",
        "images.corp.example:5000",
    ];
    let tree = tree(PROXY, &upstreams, rules, Options::default()).unwrap();
    let names = names(&tree);
    for name in [
        "blocked.example",
        "excepted.example",
        "reg.example:5000",
        "quay.io",
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "images.corp.example",
    ] {
        // All but ourselves, and another port of our host is somebody else.
        assert_eq!(
            names.contains(&name),
            name != "images.corp.example",
            "{name}"
        );
    }
    assert!(!names.contains(&"images.corp.example:5000"));
    assert_eq!(
        tree.wildcards().collect::<Vec<_>>(),
        ["*.azurecr.io", "*.blocked.example"]
    );
}

#[test]
fn the_way_past_us_is_closed_or_left_open() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        ca: Some(CA.to_owned()),
        ..Options::default()
    };
    let write = |options: &Options| {
        tree(PROXY, &["reg.example:5000"], "", options.clone())
            .unwrap()
            .write(directory.path())
            .unwrap()
    };
    write(&options);
    let file = read(directory.path(), "reg.example_5000_");
    assert_eq!(file["server"].as_str(), Some(PROXY));
    let host = &file["host"][PROXY];
    assert_eq!(
        host["capabilities"],
        toml::Value::from(vec!["pull", "resolve"])
    );
    for ca in [&file["ca"], &host["ca"]] {
        let path = directory.path().join("quay.io").join(ca.as_str().unwrap());
        assert_eq!(fs::read_to_string(path).unwrap(), CA);
    }
    assert!(!directory.path().join(DEFAULT).exists());

    write(&Options {
        fallback: true,
        default: true,
        ..options
    });
    for name in ["reg.example_5000_", DEFAULT] {
        let file = read(directory.path(), name);
        assert!(
            file.get("server").is_none() && file.get("ca").is_none(),
            "{file}"
        );
        assert!(file["host"][PROXY]["ca"].is_str());
    }
}

#[test]
fn without_an_authority_none_is_named() {
    let directory = tempfile::tempdir().unwrap();
    tree("http://10.0.0.1:5000", &[], "", Options::default())
        .unwrap()
        .write(directory.path())
        .unwrap();
    let text = fs::read_to_string(directory.path().join("docker.io/hosts.toml")).unwrap();
    assert_eq!(
        text,
        "# Written by `portcullis nodes hosts`. Without this line it is never replaced.\n\
         server = \"http://10.0.0.1:5000\"\n\
         \n\
         [host.\"http://10.0.0.1:5000\"]\n  \
         capabilities = [\"pull\", \"resolve\"]\n"
    );
}

#[test]
fn a_second_run_changes_nothing_and_nothing_of_others_is_touched() {
    let directory = tempfile::tempdir().unwrap();
    let foreign = directory.path().join("mcr.microsoft.com/hosts.toml");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, "theirs\n").unwrap();
    fs::create_dir_all(directory.path().join("_backup")).unwrap();
    let ours = directory.path().join("docker.io/hosts.toml");
    let write = |url: &str| {
        tree(url, &[], "", Options::default())
            .unwrap()
            .write(directory.path())
            .unwrap()
    };
    let outcome = |outcomes: &[(PathBuf, Outcome)], name: &str| {
        let path = Path::new(name).join("hosts.toml");
        outcomes.iter().find(|(other, _)| *other == path).unwrap().1
    };

    let first = write(PROXY);
    assert_eq!(outcome(&first, "docker.io"), Outcome::Written);
    assert_eq!(outcome(&first, "mcr.microsoft.com"), Outcome::Foreign);
    let inode = fs::metadata(&ours).unwrap().ino();
    let second = write(PROXY);
    assert!(
        second
            .iter()
            .all(|(_, outcome)| *outcome != Outcome::Written)
    );
    assert_eq!(fs::metadata(&ours).unwrap().ino(), inode);
    let moved = write("https://other.example");
    assert_eq!(outcome(&moved, "docker.io"), Outcome::Written);
    assert_eq!(
        read(directory.path(), "docker.io")["server"].as_str(),
        Some("https://other.example")
    );

    assert_eq!(fs::read_to_string(&foreign).unwrap(), "theirs\n");
    assert!(directory.path().join("_backup").exists());
    let left: Vec<_> = fs::read_dir(directory.path().join("docker.io"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_is_not_enough_is_refused() {
    let policy = Engine::compile(&policy::Config::default()).unwrap();
    let none = Tree::new(None, std::iter::empty(), &policy, Options::default());
    assert!(matches!(none, Err(HostsError::NoUrl)));
    for url in [
        "https://images.corp.example/registry",
        "ftp://images.corp.example",
        "unix:/run/x",
    ] {
        let error = tree(url, &[], "", Options::default()).err();
        assert!(
            matches!(error, Some(HostsError::Url(_))),
            "{url}: {error:?}"
        );
    }
    for (ca, message) in [
        ("", "no PEM"),
        (&format!("{CA}-----BEGIN PRIVATE KEY-----\n"), "private key"),
    ] {
        let options = Options {
            ca: Some(ca.to_owned()),
            ..Options::default()
        };
        let error = tree(PROXY, &[], "", options).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
