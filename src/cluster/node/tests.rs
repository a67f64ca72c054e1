use super::*;

fn yaml(text: &str) -> Node {
    let (mut documents, error) = from_yaml(text);
    assert_eq!((documents.len(), error), (1, None), "{text}");
    documents.remove(0)
}

fn stops(text: &str) -> Unreadable {
    from_yaml(text)
        .1
        .unwrap_or_else(|| panic!("{text} was read"))
}

/// Without lines, to compare the two formats.
fn shape(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => format!("{text:?}"),
        Value::List(items) => format!(
            "[{}]",
            items.iter().map(shape).collect::<Vec<_>>().join(",")
        ),
        Value::Map(entries) => {
            let entries = entries
                .iter()
                .map(|(key, node)| format!("{key}:{}", shape(node)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        _ => node.what().to_owned(),
    }
}

#[test]
fn lines_are_those_of_an_editor() {
    let text = "# a comment\nspec:\n  containers:\n  - name: a\n    image: nginx\n  - {image: \"redis\"}\n";
    let node = yaml(text);
    let spec = node.all("spec").next().unwrap();
    let images: Vec<_> = spec
        .all("containers")
        .flat_map(Node::items)
        .flat_map(|container| container.all("image"))
        .map(|image| (image.text().unwrap(), image.line))
        .collect();
    assert_eq!(images, [("nginx", 5), ("redis", 6)]);

    let text =
        "{\n  \"a\": [\n    \"x\",\n    {\"image\":\n      \"y\"}\n  ]\n}\n{\"image\": \"z\"}";
    let (documents, error) = from_json(text);
    assert_eq!((documents.len(), error), (2, None));
    let list = documents[0].all("a").next().unwrap();
    assert_eq!((list.line, list.items()[0].line), (2, 3));
    assert_eq!(list.items()[1].all("image").next().unwrap().line, 5);
    assert_eq!(documents[1].all("image").next().unwrap().line, 8);
}

#[test]
fn both_formats_say_the_same() {
    let json = r#"{"a":null,"b":true,"c":[1,-2.5,1e3,18446744073709551615],"d":{"e":"x\u00e4\ud83d\ude00"},"e":[],"f":{}}"#;
    let (documents, error) = from_json(json);
    assert_eq!(error, None);
    let text = "a:\nb: true\nc: [1, -2.5, 1e3, 18446744073709551615]\nd: {e: xä😀}\ne: []\nf: {}";
    assert_eq!(shape(&documents[0]), shape(&yaml(text)));
    assert_eq!(
        shape(&documents[0]),
        shape(&from_json_bytes(json.as_bytes()).unwrap())
    );
}

#[test]
fn what_looks_like_a_number_is_one_only_without_quotes() {
    for (text, what) in [
        ("3.9", "a number"),
        ("0x1F", "a number"),
        (".5", "a number"),
        ("-.inf", "a number"),
        ("1.27.0", "a text"),
        ("1-2", "a text"),
        ("'3.9'", "a text"),
        ("!!str 3.9", "a text"),
        ("yes", "a text"),
        ("FALSE", "a boolean"),
        ("~", "nothing"),
        ("''", "a text"),
        ("!reset null", "nothing"),
        ("nginx", "a text"),
        (".", "a text"),
        ("+", "a text"),
    ] {
        assert_eq!(yaml(text).what(), what, "{text}");
    }
}

#[test]
fn a_stream_has_any_number_of_documents() {
    let text = "# only a comment\n---\na: 1\n---\n# empty\n---\nb: 2\n...\n---\n";
    let (documents, error) = from_yaml(text);
    assert_eq!(error, None);
    let shapes: Vec<_> = documents.iter().map(shape).collect();
    assert_eq!(
        shapes,
        ["{a:a number}", "nothing", "{b:a number}", "nothing"]
    );
    assert_eq!(from_yaml("# nothing\n"), (Vec::new(), None));
    assert_eq!(from_json(" \n"), (Vec::new(), None));
}

#[test]
fn what_is_whole_is_kept() {
    let (documents, error) = from_yaml("a: 1\n---\nb: [\n");
    assert_eq!(documents.len(), 1);
    assert!(error.unwrap().line >= 3);
    let (documents, error) = from_json("{\"a\": 1}\n{\"b\": }");
    assert_eq!(documents.len(), 1);
    assert_eq!(error.unwrap().to_string(), "line 2: expected value");
    assert!(from_json_bytes(b"{} {}").is_err());
}

#[test]
fn a_key_that_is_written_twice_is_there_twice() {
    let twice = |node: &Node| {
        node.all("image")
            .filter_map(Node::text)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(twice(&yaml("image: a\nimage: b")), "a b");
    let node = from_json_bytes(br#"{"image":"a","image":"b"}"#).unwrap();
    assert_eq!(twice(&node), "a b");
    assert_eq!(node.text_of("image"), Some("b"));
}

#[test]
fn aliases_and_merge_keys_are_what_they_stand_for() {
    let node =
        yaml("x: &x\n  image: a\n  name: n\ny:\n  <<: *x\n  name: own\nz: [*x]\n? [odd]\n: key");
    assert_eq!(
        shape(&node),
        r#"{x:{image:"a",name:"n"},y:{name:"own",image:"a"},z:[{image:"a",name:"n"}],:"key"}"#
    );
    let node = yaml("a: &a {i: 1}\nb: &b {j: 2}\nc: {<<: [*a, *b], k: 3}");
    assert!(shape(&node).ends_with("c:{k:a number,i:a number,j:a number}}"));
}

#[test]
fn nothing_grows_out_of_bounds() {
    use std::fmt::Write as _;

    let mut bomb = "a0: &a0 x\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(bomb, "a{level}: &a{level} [{inner}]");
    }
    assert!(stops(&bomb).message.contains("aliases"));

    // Each alias deeper than the one before.
    let mut tower = "a0: &a0 x\n".to_owned();
    for level in 1..20 {
        let (open, close) = ("[".repeat(60), "]".repeat(60));
        let _ = writeln!(tower, "a{level}: &a{level} {open}*a{}{close}", level - 1);
    }
    assert!(stops(&tower).message.contains("deep"));

    for deep in ["[", "- ", "{a: ", "? "] {
        assert!(stops(&deep.repeat(200)).message.contains("deep"), "{deep}");
        stops(&deep.repeat(100_000));
    }
    assert!(
        from_json(&"[".repeat(100_000))
            .1
            .unwrap()
            .message
            .contains("recursion")
    );
    assert!(stops("a: &a [*a]").message.contains("alias"), "a loop");
    assert!(stops("*nobody").line == 1);
}

#[test]
fn odd_texts_end_in_a_result() {
    for text in [
        "\t",
        "\0",
        "\u{feff}a: b",
        "%YAML 9.9\n---\na",
        "&a",
        "*",
        "!",
        "!!",
        "? ",
        ": ",
        "- - -",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "|",
        ">",
        "a: |\n x\n y",
        "{{ .Values.image }}",
        "@",
        "`",
        "a: b: c",
        "a:\n\tb: c",
        "--- ---",
        "...",
        "%",
        "<<: 1",
        "? {a: b}\n: c",
        "\"\\ud83d\"",
    ] {
        let _ = from_yaml(text);
        let _ = from_json(text);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_odd(text in "[-\\[\\]{}:,&*!|>'\"#% \\n\\tab01<?.]{0,60}") {
        let _ = from_yaml(&text);
        let _ = from_json(&text);
    }
}
