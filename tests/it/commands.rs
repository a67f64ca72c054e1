//! The commands beside `serve`: what they say, and how they end.

use std::fs;
use std::path::Path;

use crate::support::canary::secret;
use crate::support::client::Client;
use crate::support::listeners::Bystander;
use crate::support::programs::{Outcome, run};
use crate::support::proxy::{Proxy, Setup, command};
use crate::support::upstream::Upstream;

const TOKEN: &str = secret!("of-the-operators");

const RULES: &str = r#"
[[policy.rules]]
id = "frozen"
images = ["k8s.gcr.io/**"]
effect = "deny"
reason = "k8s.gcr.io is frozen since 3 April 2023"
instead = "registry.k8s.io/**"
[[policy.rules]]
id = "corp"
images = ["registry.example/**"]
effect = "allow"
"#;

/// Runs a command with this configuration file.
fn portcullis(config: &str, arguments: &[&str]) -> Outcome {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("portcullis.toml");
    fs::write(&file, config).unwrap();
    run(command(&file, arguments).current_dir(directory.path()))
}

#[test]
fn explain_names_the_rule_and_the_hosts() {
    let nobody = Bystander::start();
    let config = format!(
        "[upstreams.\"registry.example\"]\nendpoints = [\"http://{}\"]\ninsecure = true\n\
         allow_addresses = [\"127.0.0.0/8\"]\n{RULES}",
        nobody.address
    );
    let allowed = portcullis(&config, &["explain", "registry.example/demo/app:1"]).text;
    for part in [
        "registry.example/demo/app:1",
        "corp",
        "allow",
        &nobody.address.to_string(),
    ] {
        assert!(allowed.contains(part), "{part:?} is not in {allowed}");
    }
    let denied = portcullis(&config, &["explain", "k8s.gcr.io/pause:3.9"]).text;
    for part in [
        "k8s.gcr.io/pause:3.9",
        "frozen since 3 April 2023",
        "registry.k8s.io/pause",
        "deny",
    ] {
        assert!(denied.contains(part), "{part:?} is not in {denied}");
    }
    let unserved = portcullis(&config, &["explain", "nowhere.example/app:1"]).text;
    assert!(unserved.contains("nowhere.example"), "{unserved}");
    nobody.assert_never_called();
}

#[test]
fn explain_normalises_names() {
    let output = portcullis("", &["explain", "nginx"]);
    assert!(
        output.text.contains("docker.io/library/nginx"),
        "{}",
        output.text
    );
    let output = portcullis("", &["explain", "UPPER/case:1"]);
    assert!(!output.status.success());
}

#[test]
fn explain_knows_our_own_name() {
    let config = format!("[server]\nurl = \"https://images.corp.example:5000\"\n{RULES}");
    let image = "images.corp.example:5000/k8s.gcr.io/pause:3.9";
    let output = portcullis(&config, &["explain", image]).assert_success();
    assert!(
        output.text.starts_with("k8s.gcr.io/pause:3.9\n"),
        "{}",
        output.text
    );
}

#[test]
fn explain_speaks_json() {
    let output = portcullis(RULES, &["explain", "-o", "json", "k8s.gcr.io/pause:3.9"]);
    let json: serde_json::Value = serde_json::from_str(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", output.text));
    assert!(
        json.to_string().contains("frozen since 3 April 2023"),
        "{json}"
    );
}

#[test]
fn check_is_content_with_good_files() {
    for config in ["", RULES] {
        let output = portcullis(config, &["check"]);
        output.assert_success();
    }
}

#[test]
fn check_says_what_is_wrong_and_where() {
    for (config, part) in [
        ("[server]\nlistne = \"x\"\n", "listne"),
        ("[server]\nlisten = 5\n", "line 2"),
        ("[tags]\nfresh_for = \"soon\"\n", "fresh_for"),
        ("[store]\nmax_size = \"many\"\n", "max_size"),
        ("[nonsense]\n", "nonsense"),
        ("not toml", "line 1"),
        (
            "[[policy.rules]]\nid = \"a\"\nimages = [\"[\"]\neffect = \"allow\"\n",
            "images",
        ),
        (
            "[[policy.rules]]\nid = \"a\"\nimages = [\"**\"]\neffect = \"perhaps\"\n",
            "line 4",
        ),
        (
            "[server]\ndefault_registry = \"UP PER\"\n",
            "default_registry",
        ),
        (
            "[upstreams.\"a.example\"]\nendpoints = [\"http://a.example\"]\n",
            "https",
        ),
    ] {
        let output = portcullis(config, &["check"]);
        assert!(!output.status.success(), "{config}");
        assert!(
            output.text.contains(part),
            "{part:?} is not in {}",
            output.text
        );
        // And it does not start with it either.
        let output = portcullis(config, &["serve"]);
        assert!(!output.status.success(), "{config}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let output = run(&mut command(
        Path::new("/nowhere/portcullis.toml"),
        &["check"],
    ));
    assert!(!output.status.success());
    assert!(
        output.text.contains("/nowhere/portcullis.toml"),
        "{}",
        output.text
    );
}

/// The tree for nodes: every registry that is served, refused ones above all, each with `server`
/// and `[host]` both the proxy.
#[test]
fn nodes_hosts_writes_a_tree_that_closes_the_bypass() {
    let directory = tempfile::TempDir::new().unwrap();
    let out = directory.path().join("certs.d");
    let config = format!(
        "[server]\nurl = \"http://10.1.2.3:5000\"\n[upstreams.\"registry.example\"]\n{RULES}"
    );
    let hosts = |more: &[&str]| {
        let _ = fs::remove_dir_all(&out);
        let arguments = [&["nodes", "hosts", "--out", out.to_str().unwrap()], more].concat();
        let output = portcullis(&config, &arguments);
        output.assert_success();
        |name: &str| fs::read_to_string(out.join(name).join("hosts.toml"))
    };
    let read = hosts(&[]);
    for registry in [
        "registry.example",
        "docker.io",
        "registry.k8s.io",
        "k8s.gcr.io",
        "mcr.microsoft.com",
    ] {
        let file = read(registry).unwrap_or_else(|error| panic!("{registry}: {error}"));
        let file: toml::Table = file.parse().unwrap();
        assert_eq!(
            file["server"].as_str(),
            Some("http://10.1.2.3:5000"),
            "{registry}"
        );
        let host = &file["host"]["http://10.1.2.3:5000"];
        let capabilities = host["capabilities"].as_array().unwrap();
        assert_eq!(capabilities.len(), 2, "{capabilities:?}");
    }
    assert!(read("_default").is_err(), "_default only if asked");

    let read = hosts(&["--default"]);
    assert!(read("_default").is_ok());

    // With --fallback the upstream itself comes after the proxy.
    let read = hosts(&["--fallback"]);
    let file: toml::Table = read("registry.example").unwrap().parse().unwrap();
    assert_ne!(
        file.get("server").and_then(|v| v.as_str()),
        Some("http://10.1.2.3:5000")
    );
    assert!(file["host"].get("http://10.1.2.3:5000").is_some());
}

#[test]
fn nodes_hosts_brings_the_authority_along() {
    let directory = tempfile::TempDir::new().unwrap();
    let files = crate::support::certificates::Certificates::create(directory.path());
    let out = directory.path().join("certs.d");
    let ca = files.authority_file.to_str().unwrap();
    let arguments = ["nodes", "hosts", "--out", out.to_str().unwrap(), "--ca", ca];
    let output = portcullis(
        "[server]\nurl = \"https://proxy.example:5000\"\n",
        &arguments,
    );
    output.assert_success();
    let file = fs::read_to_string(out.join("docker.io/hosts.toml")).unwrap();
    let file: toml::Table = file.parse().unwrap();
    // At both levels: containerd's 1.6 does not find it otherwise.
    let named = [
        &file["ca"],
        &file["host"]["https://proxy.example:5000"]["ca"],
    ];
    for ca in named {
        let path = out.join("docker.io").join(ca.as_str().unwrap());
        assert_eq!(fs::read_to_string(path).unwrap(), files.authority);
    }
}

#[test]
fn nodes_hosts_needs_to_know_the_way() {
    let output = portcullis("", &["nodes", "hosts", "--out", "certs.d"]);
    assert!(!output.status.success(), "{}", output.text);
    assert!(output.text.contains("server.url") || output.text.contains("url"));
}

#[test]
fn serve_says_where_it_listens_and_needs_no_file() {
    let upstream = Upstream::start();
    let proxy: Proxy = Setup::new(&upstream).start();
    let fields = proxy.logs().wait_for("listening");
    assert_eq!(fields["address"], proxy.address.to_string());
    assert_eq!(fields["admin"], proxy.admin.to_string());
}

/// Its token is in no log either: the canary looks for it.
#[test]
fn an_open_admin_address_asks_for_its_token() {
    let upstream = Upstream::start();
    let proxy = Setup::new(&upstream).open_admin(TOKEN).start();
    let admin = Client::new(proxy.admin);
    for path in ["/metrics", "/api/v1/egress"] {
        let refused = admin.get(path).assert(401);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        let login = format!("Bearer {TOKEN}");
        admin
            .send("GET", path, &[("Authorization", &login)])
            .assert(200);
        admin
            .send("GET", path, &[("Authorization", "Bearer of bad news")])
            .assert(401);
    }
    admin.get("/healthz").assert(200);
    admin.get("/readyz").assert(200);
}
