#![allow(clippy::disallowed_methods, reason = "tests write files of their own")]

use std::path::Path;

use clap::Parser as _;

use crate::cli::{Arguments, Command};
use crate::cluster::node::{Node, from_yaml};

use super::*;

const EXAMPLE: &str = "docs/egress";

/// What the worked example prints, by the file that has it.
const SNAPSHOTS: &[(&str, &[&str])] = &[
    ("hosts.txt", &[]),
    ("hosts.json", &["-o", "json"]),
    ("rules.sh", &["-o", "az", "--source", "10.42.3.4"]),
    ("rules.bicep", &["-o", "bicep", "--source", "10.42.3.4/32"]),
    ("rules.tf", &["-o", "terraform", "--source", "10.42.3.4/32"]),
    ("cilium.yaml", &["-o", "cilium"]),
    ("calico.yaml", &["-o", "calico"]),
    ("squid.conf", &["-o", "squid", "--source", "10.42.3.4/32"]),
];

fn run(source: &Source, arguments: &[&str]) -> anyhow::Result<Report> {
    let arguments = [&["portcullis", "egress"], arguments].concat();
    let arguments = Arguments::try_parse_from(arguments)?;
    match arguments.command {
        Command::Egress(egress) => egress.run(source, arguments.output),
        other => panic!("{other:?}"),
    }
}

fn egress(config: &str, arguments: &[&str]) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portcullis.toml");
    std::fs::write(&path, config).unwrap();
    run(&Source::find(Some(&path)).unwrap(), arguments).unwrap()
}

fn example() -> Source {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE);
    Source::find(Some(&directory.join("portcullis.toml"))).unwrap()
}

fn code(report: &Report) -> String {
    format!("{:?}", report.code)
}

#[test]
fn the_worked_example_prints_what_is_checked_in() {
    let source = example();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLE);
    for (file, arguments) in SNAPSHOTS {
        let report = run(&source, arguments).unwrap();
        let text = match *file {
            "hosts.json" => format!("{:#}\n", report.json),
            _ => report.text,
        };
        let path = directory.join(file);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            there == text,
            "{EXAMPLE}/{file} is out of date: run the tests with UPDATE_DOCS=1"
        );
    }
}

/// Every format names every host of the plain list, and nothing that is not there.
#[test]
fn all_formats_say_the_same() {
    let source = example();
    let hosts = run(&source, &[]).unwrap().text;
    assert!(hosts.lines().count() > 40, "{hosts}");
    let names = |text: &str, comment: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with(comment));
        let words =
            lines.flat_map(|line| line.split([' ', '"', '\'', ',', ':']).map(str::to_owned));
        let is_host = |word: &String| {
            let word = word.trim_start_matches(['*', '.']);
            let ends = [".com", ".io", ".dev", ".net", "corp.example"];
            ends.iter().any(|end| word.ends_with(end))
        };
        let mut names: Vec<_> = words.filter(is_host).collect();
        names.sort();
        names.dedup();
        names
    };
    let wanted: Vec<_> = hosts
        .lines()
        .map(|host| host.split(':').next().unwrap())
        .collect();
    for (file, arguments) in SNAPSHOTS {
        let comment = if *file == "rules.bicep" { "//" } else { "#" };
        let report = run(&source, arguments).unwrap();
        let found = names(&report.text, comment);
        let plain = |name: &str| match *file {
            "squid.conf" => name.replacen("*.", ".", 1),
            _ => name.to_owned(),
        };
        for host in &wanted {
            let named = found.contains(&plain(host));
            // Squid wants no name that another one covers.
            let is_above = |name: &String| name.starts_with('.') && host.ends_with(name.as_str());
            let covered = *file == "squid.conf" && found.iter().any(is_above);
            assert!(named || covered, "{file} lacks {host}: {found:?}");
        }
        let known = |name: &&String| {
            let name = name.replacen("*.*.", "*.", 1);
            // The API version of Cilium, and labels.
            wanted.iter().any(|host| plain(host) == name)
                || name.contains('/')
                || name.contains(':')
                || name.starts_with("k8s")
        };
        let more: Vec<_> = found.iter().filter(|name| !known(name)).collect();
        assert!(more.is_empty(), "{file} has {more:?} besides");
    }
}

/// What opens is closed, at the same depth; every other line goes to `is_line`.
fn check_shape(text: &str, comment: &str, is_line: impl Fn(&str) -> bool) {
    let mut open = Vec::new();
    let lines = text.lines().filter(|line| !line.starts_with(comment));
    for line in lines.filter(|line| !line.is_empty()) {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim();
        assert_eq!(line.matches(['\'', '"']).count() % 2, 0, "{line}");
        if line == "}" || line == "]" {
            assert_eq!(open.pop(), Some((depth, line)), "{line}");
            continue;
        }
        match line.chars().last() {
            Some('{') => open.push((depth, "}")),
            Some('[') => open.push((depth, "]")),
            _ => {}
        }
        assert!(is_line(line), "{line}");
    }
    assert!(open.is_empty(), "{open:?}");
}

/// No Terraform is here: what is checked is that every line is one of its forms.
#[test]
fn terraform_has_its_shape() {
    let arguments = ["-o", "terraform", "--source", "10.42.3.4"];
    let text = run(&example(), &arguments).unwrap().text;
    check_shape(&text, "#", |line| {
        if let Some(head) = line.strip_suffix(" {") {
            let labels = [
                "variable \"",
                "resource \"",
                "application_rule_collection",
                "rule",
                "protocols",
            ];
            return labels.iter().any(|label| head.starts_with(label));
        }
        match line.split_once('=') {
            Some((key, value)) => {
                let value = value.trim();
                let is_text = value.starts_with('"') && value.ends_with('"');
                let is_known = ["[", "[var.proxy_address]", "string"].contains(&value);
                let is_name = key
                    .trim()
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '_');
                is_name
                    && (is_text
                        || is_known
                        || value.starts_with("var.")
                        || value.parse::<u16>().is_ok())
            }
            None => line.starts_with('"') && line.ends_with("\","),
        }
    });
    assert!(
        text.contains("  default     = \"10.42.3.4/32\"\n"),
        "{text}"
    );
    assert_eq!(text.matches("    rule {\n").count(), 8);
}

/// No Bicep is here either.
#[test]
fn bicep_has_its_shape() {
    let arguments = ["-o", "bicep", "--source", "10.42.3.4"];
    let text = run(&example(), &arguments).unwrap().text;
    check_shape(&text, "//", |line| {
        let is_item = line.starts_with('\'') || line == "{" || line == "proxyAddress";
        let words = ["param ", "resource ", "@description('"];
        let is_head = words.iter().any(|word| line.starts_with(word));
        let key = line.split_once(": ").map_or("", |(key, _)| key);
        let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric());
        // Items have lines of their own and no commas.
        !line.ends_with(',') && (is_item || is_head || is_key)
    });
    assert!(
        text.contains("param proxyAddress string = '10.42.3.4/32'\n"),
        "{text}"
    );
    assert_eq!(text.matches("ruleType: 'ApplicationRule'").count(), 8);
}

#[test]
fn policies_of_clusters_are_yaml() {
    let one = |arguments: &[&str]| -> Node {
        let text = run(&example(), arguments).unwrap().text;
        let (mut documents, error) = from_yaml(&text);
        assert!(error.is_none() && documents.len() == 1, "{error:?}\n{text}");
        documents.remove(0)
    };
    let get = |node: &Node, path: &[&str]| -> Node {
        path.iter().fold(node.clone(), |node, key| {
            node.all(key).next().unwrap().clone()
        })
    };
    let cilium = one(&["-o", "cilium"]);
    assert_eq!(cilium.text_of("kind"), Some("CiliumNetworkPolicy"));
    let rules = get(&cilium, &["spec", "egress"]);
    let ports: Vec<_> = rules.items()[1..]
        .iter()
        .map(|rule| {
            let port = get(&get(rule, &["toPorts"]).items()[0], &["ports"]).items()[0].clone();
            let names = get(rule, &["toFQDNs"]);
            assert!(names.items().iter().all(|name| {
                name.text_of("matchName").is_some() || name.text_of("matchPattern").is_some()
            }));
            port.text_of("port").unwrap().to_owned()
        })
        .collect();
    assert_eq!(ports, ["443", "5000"]);

    let calico = one(&["-o", "calico"]);
    assert_eq!(calico.text_of("kind"), Some("NetworkPolicy"));
    let rules = get(&calico, &["spec", "egress"]);
    assert_eq!(rules.items().len(), 4);
    let domains = get(&rules.items()[2], &["destination", "domains"]);
    assert!(
        domains
            .items()
            .iter()
            .any(|name| name.text() == Some("*.pkg.dev"))
    );
    assert!(domains.items().iter().all(|name| name.text().is_some()));
}

#[test]
fn rules_decide_what_is_needed() {
    let allow = |images: &str| {
        format!("[policy]\nrules = [{{ id = \"a\", images = [{images}], effect = \"allow\" }}]\n")
    };
    let quay = egress(&allow("\"quay.io/**\""), &[]).text;
    assert!(quay.starts_with("cdn.quay.io\ncdn01.quay.io\n"), "{quay}");
    assert!(
        quay.contains("\nquay.io\n") && !quay.contains("docker"),
        "{quay}"
    );

    // Everything known, but for what is refused as a whole.
    let denied = "[policy]\ndefault = \"allow\"\nrules = [{ id = \"a\", images = [\"quay.io/**\"], effect = \"deny\" }]";
    let most = egress(denied, &[]).text;
    assert!(most.contains("auth.docker.io\n"), "{most}");
    assert!(!most.contains("\nquay.io\n"), "{most}");
    let built_in = egress("", &[]).text;
    assert!(
        built_in.contains("\nquay.io\n") && !built_in.contains("k8s.gcr.io"),
        "{built_in}"
    );

    let nothing = egress("[policy]\n", &[]);
    assert_eq!(nothing.text, "");
    for format in ["az", "bicep", "terraform", "squid"] {
        let text = egress("[policy]\n", &["-o", format]).text;
        assert!(text.ends_with("No name is needed.\n"), "{text}");
    }
}

#[test]
fn what_names_cannot_say_is_said_beside() {
    let config = r#"
        [upstreams."*"]
        [upstreams."lab.example"]
        endpoints = ["http://10.1.2.3:5000"]
        insecure = true
        [store.shared]
        url = "az://corp/images"
        credential = "managed-identity"
        redirect = ["10.0.0.0/8"]
        [store.shared.peers]
        advertise = "https://10.1.2.3:5000"
        networks = ["10.1.2.0/24"]
        secret = { file = "/nowhere" }
        [policy]
        default = "allow"
        rules = [{ id = "known", images = ["docker.io/**", "q*.io/**"], effect = "deny" }]
    "#;
    let report = egress(config, &[]);
    assert!(
        report.text.lines().any(|line| line == "10.1.2.3:5000"),
        "{}",
        report.text
    );
    assert!(!report.text.contains("169.254"), "{}", report.text);
    assert!(report.text.contains("corp.blob.core.windows.net\n"));
    let notes = report.notes.join("\n");
    for part in [
        "169.254.169.254:80 for store.shared is answered beside this machine",
        "[upstreams.\"*\"] is for registries that nobody has named",
        "10.1.2.3:5000 for lab.example is an address",
        "clients in the networks of store.shared.redirect dial corp.blob.core.windows.net",
        "replicas dial each other inside 10.1.2.0/24",
    ] {
        assert!(notes.contains(part), "{part:?} is not in\n{notes}");
    }
    let squid = egress(config, &["-o", "squid"]).text;
    assert!(
        squid.contains("is an address: it needs a rule by address"),
        "{squid}"
    );
    assert!(
        !squid.contains("dstdomain 10.1.2.3") && !squid.contains("dstdomain \n"),
        "{squid}"
    );
}

#[test]
fn images_need_their_own_hosts_only() {
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("images");
    let config = r#"
        [upstreams."*.azurecr.io"]
        [policy]
        rules = [
            { id = "old", images = ["k8s.gcr.io/**"], effect = "rewrite", instead = "registry.k8s.io/**" },
            { id = "tag", images = ["ghcr.io/a/b:1"], effect = "allow" },
            { id = "some", images = ["registry.k8s.io/**", "quay.io/**", "*.azurecr.io/**", "nowhere.example/**"], effect = "allow" },
        ]
    "#;
    let digest = format!("sha256:{}", "a".repeat(64));
    let text = format!(
        "# what runs\nk8s.gcr.io/pause:3.9  # old\n\ncorp.azurecr.io/shop/web:1\nnginx\n\
         ghcr.io/a/b@{digest}\nnowhere.example/x\n"
    );
    std::fs::write(&list, text).unwrap();
    let report = egress(config, &["--images", list.to_str().unwrap()]);
    let hosts: Vec<_> = report.text.lines().collect();
    for host in ["registry.k8s.io", "*.pkg.dev", "corp.azurecr.io", "ghcr.io"] {
        assert!(hosts.contains(&host), "{host} is not in {hosts:?}");
    }
    for host in ["quay.io", "auth.docker.io", "*.azurecr.io", "k8s.gcr.io"] {
        assert!(!hosts.contains(&host), "{host} is in {hosts:?}");
    }
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("docker.io/library/nginx is not allowed"),
        "{notes}"
    );
    assert!(
        notes.contains("nowhere.example is not served here"),
        "{notes}"
    );

    std::fs::write(&list, "quay.io/a\nUPPER/case\n").unwrap();
    let arguments = ["--images", list.to_str().unwrap()];
    let error = run(&example(), &arguments).unwrap_err();
    assert!(
        format!("{error:#}").contains("line 2: \"UPPER/case\" is no image"),
        "{error:#}"
    );
}

/// A ledger in a store whose server does not run.
const LEDGER: &str = r#"{"hosts":[
    {"host":"quay.io","port":443,"for":"quay.io","purpose":"endpoint","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":3,"received":1000,"failures":0},
    {"host":"cdn01.quay.io","port":443,"for":"quay.io","purpose":"redirect","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":2,"received":2000000,"failures":1},
    {"host":"eu-docker.pkg.dev","port":443,"for":"registry.k8s.io","purpose":"redirect","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":2,"received":20,"failures":0},
    {"host":"10.1.2.4","port":5000,"for":"store.shared.peers","purpose":"peer","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":2,"received":20,"failures":0}MORE
],"forgotten":2}"#;
const REFUSED: &str = r#",{"host":"cdn07.quay.io","port":443,"for":"quay.io","purpose":"redirect","refused":"not-listed","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":12,"received":0,"failures":0}"#;
const GONE: &str = r#",{"host":"old.example","port":8443,"for":"old.example","purpose":"endpoint","first":"2026-01-02T03:04:05Z","last":"2026-11-02T03:04:05Z","requests":1,"received":0,"failures":1}"#;

fn with_ledger(more: &str, arguments: &[&str]) -> anyhow::Result<Report> {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    std::fs::create_dir_all(store.join("v1")).unwrap();
    if !more.contains("no ledger") {
        std::fs::write(store.join("v1/ledger.json"), LEDGER.replace("MORE", more)).unwrap();
    }
    let path = directory.path().join("portcullis.toml");
    let rules = "[policy]\nrules = [{ id = \"a\", images = [\"quay.io/**\", \"registry.k8s.io/**\"], effect = \"allow\" }]";
    let config = format!("[store]\npath = \"{}\"\n{rules}\n", store.display());
    std::fs::write(&path, config).unwrap();
    run(&Source::find(Some(&path)).unwrap(), arguments)
}

#[test]
fn what_was_used_is_a_table_or_a_list_for_a_firewall() {
    let report = with_ledger(REFUSED, &["--observed"]).unwrap();
    for part in [
        "cdn01.quay.io:443",
        "redirect",
        "1.9 MiB",
        "2026-11-02T03:04:05Z",
        "not on a list",
    ] {
        assert!(
            report.text.contains(part),
            "{part:?} is not in\n{}",
            report.text
        );
    }
    assert_eq!(report.json["hosts"][1]["for"], "quay.io");
    assert_eq!(report.notes, ["2 more had to make room in the ledger"]);
    let squid = with_ledger(REFUSED, &["--observed", "-o", "squid"])
        .unwrap()
        .text;
    assert!(squid.contains("dstdomain cdn01.quay.io\n"), "{squid}");
    assert!(
        !squid.contains("cdn07"),
        "what was refused was not used: {squid}"
    );

    let recent = with_ledger("", &["--observed", "--since", "1d"]).unwrap();
    assert_eq!(recent.json["hosts"], json!([]));
    let nothing = with_ledger("no ledger", &["--observed"]).unwrap();
    assert_eq!(nothing.json["hosts"], json!([]));
    let error = with_ledger("garbage", &["--observed"]).unwrap_err();
    assert!(format!("{error:#}").contains("ledger.json"), "{error:#}");
}

/// Below a wildcard an upstream may redirect to any name, and a shell may read what is written.
#[test]
fn what_was_dialled_is_no_command() {
    let host = "x';touch${IFS}y;'.example";
    let url = url::Url::parse(&format!("https://{host}/")).unwrap();
    assert_eq!(
        url.host_str().map(str::len),
        Some(host.len()),
        "no URL has it"
    );
    let row = GONE.replace("old.example", host);
    for format in ["az", "bicep", "terraform", "cilium", "calico", "squid"] {
        let text = with_ledger(&row, &["--observed", "-o", format])
            .unwrap()
            .text;
        let comments = ["#", "//"];
        let is_comment = |line: &&str| comments.iter().any(|sign| line.starts_with(sign));
        let (said, read): (Vec<_>, Vec<_>) = text.lines().partition(is_comment);
        assert!(
            said.iter()
                .any(|line| line.contains("no name that a rule may have")),
            "{text}"
        );
        assert!(!read.iter().any(|line| line.contains("touch")), "{text}");
    }
}

#[test]
fn a_difference_is_a_finding_when_something_was_used_or_refused() {
    let fine = with_ledger("", &["--diff"]).unwrap();
    assert_eq!(code(&fine), code(&Report::new(String::new(), Value::Null)));
    assert!(
        fine.text.starts_with("needed, but never used:\n"),
        "{}",
        fine.text
    );
    assert!(
        fine.text.contains("  cdn02.quay.io (quay.io)\n"),
        "{}",
        fine.text
    );
    for used in ["  cdn01.quay.io", "*.pkg.dev", "  quay.io (", "10.1.2.4"] {
        assert!(!fine.text.contains(used), "{used} in {}", fine.text);
    }
    let found = format!("{:?}", ExitCode::from(FINDINGS));
    let refused = with_ledger(REFUSED, &["--diff"]).unwrap();
    assert_eq!(code(&refused), found);
    let line = "cdn07.quay.io:443 (redirect for quay.io), not on a list, 12 times";
    assert!(refused.text.contains(line), "{}", refused.text);
    let gone = with_ledger(GONE, &["--diff"]).unwrap();
    assert_eq!(code(&gone), found);
    assert!(
        gone.text
            .contains("  old.example:8443 (endpoint for old.example)"),
        "{}",
        gone.text
    );
    assert_eq!(gone.json["not_needed"][0]["host"], "old.example");
    // What is long ago is no finding.
    let old = with_ledger(GONE, &["--diff", "--since", "1d"]).unwrap();
    assert_eq!(code(&old), code(&fine));
}

#[test]
fn what_does_not_go_together_is_refused() {
    for arguments in [
        &["--diff", "-o", "squid"][..],
        &["--since", "1d"],
        &["--observed", "--diff"],
        &["--diff", "--images", "x"],
        &["--source", "10.0.0.0/33"],
        &["--source", "proxy.example"],
        &["--images", "/nowhere/list"],
    ] {
        assert!(run(&example(), arguments).is_err(), "{arguments:?}");
    }
}
