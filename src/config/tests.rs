#![allow(clippy::disallowed_methods, reason = "tests write files of their own")]

use super::*;
use crate::oci::Registry;
use crate::policy::{Effect, Engine};

/// The faults of a text, as they are shown.
fn faults(text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("portcullis.toml");
    std::fs::write(&path, text).unwrap();
    let source = Source::find(Some(&path)).unwrap();
    let faults = match source.parse() {
        Ok(config) => check::check(&config, &source),
        Err(LoadError::Invalid { faults, .. }) => faults,
        Err(error) => panic!("{error}"),
    };
    faults.iter().map(ToString::to_string).collect()
}

/// Each of these texts has one fault, which has these words.
#[track_caller]
fn one_fault_each<T: AsRef<str>>(cases: impl IntoIterator<Item = (T, &'static str)>) {
    for (text, expected) in cases {
        let text = text.as_ref();
        let faults = faults(text);
        assert!(
            faults.len() == 1 && faults[0].contains(expected),
            "{text}\n{faults:#?}"
        );
    }
}

/// A file of the `config/` directory, which people copy from.
fn example(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name);
    load(Some(&path)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_examples_load() {
    for name in ["example.toml", "minimal.toml", "aks.toml"] {
        Engine::compile(&example(name).policy)
            .unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
    }
    let minimal = example("minimal.toml");
    assert_eq!(minimal.policy.default, Effect::Allow);
    assert_eq!(minimal.policy.rules.len(), 1);
    assert_eq!(example("aks.toml").policy.default, Effect::Deny);
    assert_eq!(
        Registry::docker_hub(),
        example("example.toml").server.default_registry
    );
}

/// What the example calls a default is one, and no key is missing from it.
#[test]
fn the_example_shows_the_defaults_and_every_key() {
    let (example, default) = (example("example.toml"), Config::default());
    assert_eq!(example.fill, default.fill);
    assert_eq!(example.server.listen, default.server.listen);
    assert_eq!(example.server.admin, default.server.admin);
    assert_eq!(example.store.path, default.store.path);
    assert_eq!(example.tags.fresh_for, default.tags.fresh_for);
    assert_eq!(example.tags.stale_for, default.tags.stale_for);
    assert_eq!(example.tags.missing_for, default.tags.missing_for);
    assert_eq!(
        format!("{:?}", example.limits),
        format!("{:?}", default.limits)
    );
    // The message for an unknown key lists the known ones.
    let text = include_str!("../../config/example.toml");
    for section in [
        "",
        "[server]",
        "[server.tls]",
        "[store]",
        "[store.shared]",
        "[store.shared.peers]",
        "[tags]",
        "[fill]",
        "[limits]",
        "[egress]",
        "[upstreams.x]",
        "[policy]",
        "[[policy.rules]]",
        "[admission]",
        "[admission.tls]",
    ] {
        let wrong = format!("{section}\nno_such_key = 1\n");
        let error = toml::from_str::<Config>(&wrong)
            .unwrap_err()
            .message()
            .to_owned();
        let known = error.split("expected ").nth(1).unwrap();
        let keys: Vec<_> = known.split('`').skip(1).step_by(2).collect();
        assert!(!keys.is_empty(), "{error}");
        for key in keys {
            let shown = [
                format!("\n{key} = "),
                format!("[{key}"),
                format!(".{key}]"),
                format!(".{key}."),
            ];
            assert!(
                shown.iter().any(|shown| text.contains(shown)),
                "{section} {key} is not in the example"
            );
        }
    }
}

#[test]
fn nothing_is_needed() {
    assert_eq!(faults(""), [""; 0]);
    assert!(
        Source::find(Some(Path::new("/nowhere/x.toml")))
            .unwrap_err()
            .to_string()
            .contains("/nowhere/x.toml")
    );
}

#[test]
fn a_fault_says_where_it_is() {
    one_fault_each([
        (
            "[server]\nlistne = \"x\"",
            "line 2, column 1: server.listne: unknown field `listne`",
        ),
        (
            "[server]\n  listen = 5",
            "line 2, column 12: server.listen: ",
        ),
        (
            "[tags]\nfresh_for = \"soon\"",
            "line 2, column 13: tags.fresh_for: ",
        ),
        (
            "[nonsense]",
            "line 1, column 2: nonsense: unknown field `nonsense`",
        ),
        ("not toml", "line 1, column "),
        (
            "[server.hosts]\n\"a.b\" = \"UP PER\"",
            "line 2, column 9: server.hosts.a.b: a registry is a DNS name",
        ),
        (
            "[warm]\nevery = \"1s\"",
            "line 2, column 9: warm.every: must be at least 1m",
        ),
        (
            "[warm]\nimages = [\"registry.example/Upper\"]",
            "line 2, column 10: warm.images: \"registry.example/Upper\": ",
        ),
        (
            "[server]\noffline = true\n[warm]\nimages = [\"nginx\"]",
            "line 4, column 10: warm.images: server.offline is true",
        ),
        (
            "[server]\nadmin_token = { file = \"/nonexistent/token\" }",
            "line 2, column 15: server.admin_token: /nonexistent/token: ",
        ),
        (
            "[store.shared]\nurl = \"az://x\"",
            "line 2, column 7: store.shared.url: \"az://x\" is no shared store",
        ),
        (
            "[store.shared]\nurl = \"az://x/y\"\ncredential = \"emulator\"\n\
             [store.shared.peers]\nnetworks = []\nadvertise = \"https://a.example:5000\"\n\
             secret = \"0123456789abcdef\"",
            "line 5, column 12: store.shared.peers.networks: names no network",
        ),
        (
            "[fill]\nconnections = 0",
            "line 2, column 15: fill.connections: must be 1 to 64",
        ),
        (
            "[fill]\nwindow = \"1KiB\"",
            "line 2, column 10: fill.window: ",
        ),
        (
            "[limits]\nanswer = \"0s\"",
            "line 2, column 10: limits.answer: ",
        ),
        (
            "[server]\nhttp2 = true",
            "server: server.http2 is offered on TLS only",
        ),
        (
            "[server.tls]\ncertificate = \"/nowhere/a\"\nkey = \"b\"",
            "server.tls: /nowhere/a",
        ),
        (
            "[admission]\nlisten = \"0.0.0.0:8443\"",
            "line 1, column 1: admission: API servers speak TLS only",
        ),
        (
            "[admission]\nlisten = \"0.0.0.0:8443\"\ntls = { certificate = \"/nowhere/a\", key = \"b\" }",
            "line 3, column 7: admission.tls: /nowhere/a",
        ),
        (
            "[upstreams.\"a.example\"]\nendpoints = [\"http://a.example\"]",
            "[upstreams.\"a.example\"] endpoint",
        ),
    ]);
}

#[test]
fn a_fault_of_a_rule_says_where_it_is() {
    one_fault_each([
        (
            "[[policy.rules]]\nid = \"a\"\nimages = [\"**\"]\neffect = \"block\"",
            "line 4, column 10: policy.rules.0.effect: \"block\" is no effect",
        ),
        // Beyond what the types refuse.
        (
            "[[policy.rules]]\nid = \"a\"\nimages = [\"**\", \"[\"]\neffect = \"allow\"",
            "line 3, column 17: policy.rules.0.images.1: \"[\": a pattern has",
        ),
        (
            "[policy]\nrules = [{ id = \"\", images = [\"**\"], effect = \"deny\" }]",
            "line 2, column 17: policy.rules.0.id: ",
        ),
        (
            "[[policy.rules]]\nid = \"a\"\nimages = [\"**\"]\neffect = \"allow\"\nclients = [\"mtls:CN=a\"]",
            "line 5, column 11: policy.rules.0.clients: no client has a certificate here",
        ),
    ]);
}

#[test]
fn a_way_out_that_cannot_be_meant_is_found_without_going_it() {
    one_fault_each([
        (
            "[egress]\nproxy = \"p:3128\"",
            "line 2, column 9: egress.proxy: is no proxy: write http://HOST:PORT",
        ),
        (
            "[egress]\nproxy = \"http://p:3128\"\nfrom_environment = true",
            "line 3, column 20: egress.from_environment: and proxy each name a proxy",
        ),
        (
            "[egress]\nproxy = \"http://p:3128\"\n[upstreams.\"*\"]",
            "[upstreams.\"*\"] lets in any host",
        ),
    ]);
}

#[test]
fn a_shared_store_that_cannot_work_is_found_without_asking_it() {
    let azure = "[store.shared]\nurl = \"az://corp/images\"\n";
    let s3 = "[store.shared]\nurl = \"s3://images\"\n";
    let sas = "credential = \"sas\"\nsecret = \"sv=1&sig=x\"\n";
    one_fault_each([
        (
            format!("{azure}credential = \"account-key\""),
            "store.shared.secret: is needed",
        ),
        (
            format!("{azure}credential = \"account-key\"\nsecret = \"not base64!\""),
            "line 4, column 10: store.shared.secret: cannot be used: ",
        ),
        (
            format!("{azure}credential = \"sas\"\nsecret = {{ file = \"/nowhere/sas\" }}"),
            "store.shared.secret: /nowhere/sas",
        ),
        (
            format!("{s3}{sas}"),
            "line 3, column 14: store.shared.credential: of this kind is not for S3",
        ),
        (
            format!("{s3}credential = \"account-key\"\nsecret = \"x\""),
            "store.shared.key_id: is needed",
        ),
        (
            format!("{s3}credential = \"emulator\""),
            "store.shared.endpoint: is needed",
        ),
        (
            format!("{azure}{sas}redirect = [\"10.0.0.0/8\"]"),
            "line 5, column 12: store.shared.redirect: needs a credential that can sign",
        ),
        (
            format!("{azure}{sas}prune_older_than = \"1h\""),
            "line 5, column 20: store.shared.prune_older_than: must be at least 1d",
        ),
        (
            format!("{azure}{sas}credentials = \"sas\""),
            "store.shared.credentials: unknown field",
        ),
    ]);
    assert_eq!(faults(&format!("{azure}{sas}")), [""; 0]);
}

/// What the file for AKS has to offer for many replicas works when it is not a comment any more.
#[test]
fn the_shared_store_of_the_aks_example_loads() {
    let text = include_str!("../../config/aks.toml");
    let shared: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "# [store.shared]")
        .map_while(|line| line.strip_prefix("# "))
        .collect();
    let config: Config = toml::from_str(&shared.join("\n")).unwrap();
    let shared = config.store.shared.expect("no [store.shared] in it");
    assert_eq!(
        shared.credential,
        crate::store::object::Credential::WorkloadIdentity
    );
    assert!(shared.peers.is_some());
}

#[test]
fn everything_is_said_at_once() {
    let unread =
        faults("[server]\nlistne = 1\n[fill]\nwindow = 8\n[tags]\nfresh_for = \"60s\"\n[stoer]\n");
    let keys: Vec<_> = unread
        .iter()
        .map(|fault| fault.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(keys.len(), 3, "{unread:#?}");
    for key in ["server.listne", "fill.window", "stoer"] {
        assert!(keys.contains(&key), "{key}: {unread:#?}");
    }
    let wrong = faults(
        "[fill]\nconnections = 0\n[limits]\nidle = \"0s\"\n[upstreams.\"a b\"]\n[[policy.rules]]\nid = \"a\"\nimages = []\neffect = \"allow\"",
    );
    assert_eq!(wrong.len(), 4, "{wrong:#?}");
}

#[test]
fn what_changed_is_named_and_not_shown() {
    let source = |text: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("portcullis.toml");
        std::fs::write(&path, text).unwrap();
        Source::find(Some(&path)).unwrap()
    };
    let one = source(
        "[tags]\nfresh_for = \"1m\"\n[fill]\nwindow = \"8MiB\"\n[upstreams.\"a.example\"]\nusername = \"u\"\n\
         password = \"hunter2\"\n[policy]\ndefault = \"deny\"",
    );
    let other = source(
        "[tags]\nfresh_for = \"1m\"\nstale_for = \"1h\"\n[upstreams.\"a.example\"]\nusername = \"u\"\n\
         password = \"hunter3\"\n[policy]\ndefault = \"allow\"",
    );
    assert_eq!(
        one.differences(&other, "policy"),
        ["fill", "tags.stale_for", "upstreams.a.example.password"]
    );
    assert_eq!(one.differences(&one, "policy"), [""; 0]);
}

#[test]
fn a_secret_is_not_shown() {
    for text in [
        "[upstreams.\"docker.io\"]\nusername = \"u\"\npassword = \"hunter2",
        "[upstreams.\"docker.io\"]\nusername = 5\npassword = \"hunter2\"",
        "[upstreams.\"docker.io\"]\npassword = { text = \"hunter2\" }",
        "[upstreams.\"docker.io\"]\npassword = [\"hunter2\"]",
        "[upstreams.\"docker.io\"]\npassword = \"hunter2\" x",
        "[upstreams.\"docker.io\"]\npassword = \"hunter2\"",
    ] {
        let faults = faults(text).join("\n");
        assert!(
            !faults.is_empty() && !faults.contains("hunter2"),
            "{text}\n{faults}"
        );
    }
}
