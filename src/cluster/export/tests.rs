use super::*;
use crate::cluster::node::{self, Node};
use crate::policy::Config;

const DENY: Options = Options {
    action: Action::Deny,
    excluded_namespaces: Vec::new(),
};

fn write(policy: &str, format: Format) -> Result<Export, Inexpressible> {
    let policy: Config = toml::from_str(policy).unwrap();
    let policy = Engine::compile(&policy).unwrap();
    export(&policy, &OwnNames::default(), format, &DENY)
}

fn texts(node: &Node, found: &mut Vec<String>) {
    found.extend(node.text().map(str::to_owned));
    let entries = node.entries().iter().map(|(_, node)| node);
    for node in entries.chain(node.items()) {
        texts(node, found);
    }
}

#[test]
fn yaml_is_read_back_as_it_was() {
    let value = json!({
        "kind": "K", "apiVersion": "v1", "empty": {}, "none": [], "nothing": null, "truth": true, "number": 3,
        "metadata": { "name": "a: b", "labels": { "x": "no" } },
        "list": [{ "name": "one", "text": "a\n  b\n\n# c\n" }, "two\nlines", ["deep", { "a": "b" }], {}],
    });
    let text = yaml::document(&value);
    let (read, error) = node::from_yaml(&text);
    assert_eq!(error, None, "{text}");
    let (expected, _) = node::from_json(&value.to_string());
    let (mut read_texts, mut expected_texts) = (Vec::new(), Vec::new());
    texts(&read[0], &mut read_texts);
    texts(&expected[0], &mut expected_texts);
    read_texts.sort();
    expected_texts.sort();
    assert_eq!(read_texts, expected_texts, "{text}");
    assert!(
        text.starts_with("apiVersion: \"v1\"\nkind: \"K\"\nmetadata:\n  name: \"a: b\"\n"),
        "{text}"
    );
}

/// What people write gets through YAML, CEL and JSON as it is, and none of it is a program.
#[test]
fn no_text_breaks_out_of_its_quotes() {
    let reason = "it's \"old\" \\ ' + size(x) + ' {{ }} $(a) `äöü` # --- \\n \u{2028}\u{feff}";
    let policy = format!(
        "rules = [{{ id = \"a\", images = [\"a.io/**\"], effect = \"deny\", reason = {} }}]",
        toml::Value::from(reason)
    );
    for format in [Format::Vap, Format::Kyverno] {
        let text = write(&policy, format).unwrap().text;
        assert!(text.contains(r"it\'s "), "{text}");
        assert!(text.contains("\\U00002028\\U0000feff"), "{text}");
        // To Kyverno these are variables.
        assert!(!text.contains("{{") && !text.contains("$("), "{text}");
    }
    let text = write(&policy, Format::Gatekeeper).unwrap().text;
    assert!(text.contains("\\u2028\\ufeff"), "{text}");
    assert!(!text.contains('\u{2028}'), "{text}");
}

#[test]
fn cel_says_what_it_cannot_hold() {
    let rules = |count: usize, patterns: usize| {
        let rule = |rule: usize| {
            let images = (0..patterns).map(|image| format!("\"a.io/team-{rule}/x-{image}/**\""));
            let images: Vec<_> = images.collect();
            let effect = if rule.is_multiple_of(2) {
                "allow"
            } else {
                "deny"
            };
            format!(
                "{{ id = \"r{rule}\", effect = \"{effect}\", images = [{}] }}",
                images.join(", ")
            )
        };
        let rules: Vec<_> = (0..count).map(rule).collect();
        format!("rules = [{}]", rules.join(", "))
    };
    for (policy, said) in [
        (
            rules(201, 1),
            "vap takes 200 clauses one after the other, and these rules need 201",
        ),
        (rules(10, 200), "vap takes 30000 characters of patterns"),
    ] {
        let error = write(&policy, Format::Vap).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
        write(&policy, Format::Gatekeeper).unwrap();
    }
    write(&rules(200, 5), Format::Kyverno).unwrap();
}

#[test]
fn what_is_left_out_is_said() {
    let policy = "rules = [
        { id = \"theirs\", images = [\"a.io/**\"], effect = \"deny\", clients = [\"10.0.0.0/8\"] },
        { id = \"old\", images = [\"b.io/**\"], effect = \"audit\", min_age = \"3d\" },
    ]";
    let export = write(policy, Format::Vap).unwrap();
    let notes: Vec<_> = export.notes.iter().map(|note| &note[..12]).collect();
    assert_eq!(notes, ["rule theirs ", "rule old has"]);
    for note in &export.notes {
        assert!(
            export.text.contains(&format!("# Note: {note}.\n")),
            "{}",
            export.text
        );
    }
    let export = write(policy, Format::AzurePolicy).unwrap();
    assert!(
        export.notes[2].starts_with("some rules audit"),
        "{:?}",
        export.notes
    );
}
