use super::*;
use crate::cluster::mention::Written;

/// `line path image` of everything that is found; what has an open variable as `?variable`.
fn found(name: &str, text: &str) -> Vec<String> {
    let Inputs {
        mentions,
        errors,
        notes,
    } = read(name, text.as_bytes());
    assert_eq!((errors, notes), (Vec::new(), Vec::new()), "{text}");
    let lines = mentions.into_iter().map(|mention| {
        let (line, path) = (mention.place.line.unwrap(), mention.place.path);
        assert_eq!(mention.place.file.as_deref(), Some(name));
        match mention.written {
            Written::Image(image) => format!("{line} {path} {image}"),
            Written::Open { variable, .. } => format!("{line} {path} ?{variable}"),
            Written::Odd { found, .. } => format!("{line} {path} {found}"),
        }
    });
    lines.collect()
}

#[test]
fn a_dockerfile_pulls_what_its_stages_start_from() {
    let text = r#"# syntax=docker/dockerfile:1
# a comment
ARG GO=1.22 REGISTRY="quay.io"
ARG BASE=${REGISTRY}/corp/base:$GO
FROM --platform=$BUILDPLATFORM golang:${GO} AS Build
RUN --mount=type=bind,from=busybox:1,target=/b --mount=type=cache,target=/c \
    # in between
    echo FROM nothing

ARG GO=9
from ${BASE}
COPY --from=build /a /a
COPY --chown=1:1 --from=0 /a /a
COPY --from=ghcr.io/x/y:2 /a /a
RUN <<EOF
FROM heredoc
EOF
FROM build
FROM scratch AS last
FROM ${UNSET}
FROM alpine:${UNSET:-3.20}
FROM $UNSET-x
"#;
    let expected = [
        "1 syntax docker/dockerfile:1",
        "5 FROM golang:1.22",
        "6 RUN --mount busybox:1",
        "11 FROM quay.io/corp/base:1.22",
        "14 COPY --from ghcr.io/x/y:2",
        "20 FROM ?UNSET",
        "21 FROM alpine:3.20",
        "22 FROM ?UNSET",
    ];
    assert_eq!(found("Dockerfile", text), expected);
    assert_eq!(found("-", text), expected);
}

#[test]
fn stages_for_platforms_are_stages() {
    let text = "FROM a:1 AS base-amd64\nFROM b:1 AS base-arm64\nFROM base-${TARGETARCH}\n\
                FROM other-$TARGETARCH";
    assert_eq!(
        found("Dockerfile", text),
        ["1 FROM a:1", "2 FROM b:1", "4 FROM ?TARGETARCH"]
    );
}

#[test]
fn windows_writes_dockerfiles_too() {
    let text = "# escape=`\r\nFROM `\r\n  mcr.microsoft.com/windows/nanoserver:ltsc2022\r\n\
                RUN dir c:\\\r\nFROM x\\\r\n";
    assert_eq!(
        found("Containerfile", text),
        [
            "2 FROM mcr.microsoft.com/windows/nanoserver:ltsc2022",
            "5 FROM x\\"
        ]
    );
}

#[test]
fn names_and_first_lines_tell_dockerfiles() {
    for (name, text, is_one) in [
        ("Dockerfile", "", true),
        ("a/b/Dockerfile.dev", "", true),
        ("web.Dockerfile", "", true),
        ("Containerfile", "", true),
        ("Dockerfiles", "", false),
        ("MyDockerfile", "", false),
        ("-", "\n# x\nfrom alpine", true),
        ("-", "ARG A=1\nFROM $A", true),
        ("-", "from: x", false),
        ("a.yaml", "FROM alpine", false),
        ("-", "FROM", false),
    ] {
        assert_eq!(is_dockerfile(name, text), is_one, "{name} {text:?}");
    }
}

#[test]
fn a_compose_file_pulls_its_services_images() {
    let text = "x-common: &common\n  image: ${REGISTRY:-docker.io}/corp/app:1\n\
                services:\n  a: *common\n  b:\n    <<: *common\n    ports: [80]\n  \
                c:\n    build: .\n  d: {image: 'redis:${TAG}'}\n  e: {image: 3}\n  f:\n";
    assert_eq!(
        found("compose.yaml", text),
        [
            "2 services.a.image docker.io/corp/app:1",
            "2 services.b.image docker.io/corp/app:1",
            "10 services.d.image ?TAG",
            "11 services.e.image a number",
        ]
    );
}

#[test]
fn helm_and_kubectl_write_objects() {
    let pod = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: a\n";
    let helm = format!(
        "---\n# Source: chart/templates/empty.yaml\n---\n# Source: x\n{pod}---\n\n---\n{pod}"
    );
    assert_eq!(
        found("-", &helm),
        [
            "9 spec.containers[0].image a",
            "17 spec.containers[0].image a"
        ]
    );
    let json = r#"{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"image":"a"}]}}"#;
    for text in [
        json.to_owned(),
        format!("\u{feff}{json}"),
        format!("[{json}]"),
    ] {
        assert_eq!(found("pods.json", &text), ["1 spec.containers[0].image a"]);
        assert_eq!(found("-", &text), ["1 spec.containers[0].image a"]);
        assert_eq!(found("flow.yaml", &text), ["1 spec.containers[0].image a"]);
    }
}

#[test]
fn what_cannot_be_read_is_an_error_and_the_rest_still_counts() {
    let pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}\n";
    let broken = format!("{pod}---\n{{{{ .Values.x }}}}: [\n");
    let inputs = read("a.yaml", broken.as_bytes());
    assert_eq!(inputs.mentions.len(), 1);
    assert!(
        inputs.errors[0].starts_with("a.yaml: line "),
        "{:?}",
        inputs.errors
    );

    for (text, part) in [
        (&b""[..], "no Kubernetes object"),
        (b"# nothing\n---\n", "no Kubernetes object"),
        (b"null", "no Kubernetes object"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (b"\xc3\x28", "UTF-8"),
        (b"{\"a\": ", "line 1"),
    ] {
        let inputs = read("-", text);
        assert_eq!(inputs.errors.len(), 1, "{inputs:?}");
        assert!(inputs.errors[0].contains(part), "{inputs:?}");
    }
    let larger = vec![0; LARGEST_INPUT + 1];
    assert!(text(&larger).unwrap_err().contains("256 MiB"));
}

#[test]
fn a_list_has_an_image_on_each_line() {
    let digest = format!("quay.io/a@sha256:{}", "0".repeat(64));
    let text = format!("# missing\r\nnginx\n\n  registry.k8s.io/pause:3.9  # why\n{digest}\n");
    let inputs = read("-", text.as_bytes());
    let found: Vec<_> = inputs
        .mentions
        .iter()
        .map(|mention| (mention.place.line, &mention.written))
        .collect();
    let image = |text: &str| Written::Image(text.to_owned());
    let (nginx, pause, pinned) = (
        image("nginx"),
        image("registry.k8s.io/pause:3.9"),
        image(&digest),
    );
    assert_eq!(
        found,
        [(Some(2), &nginx), (Some(4), &pause), (Some(5), &pinned)]
    );
    for text in ["nginx\nError from server\n", "null\n", "Error\n"] {
        assert_eq!(read("-", text.as_bytes()).mentions, [], "{text}");
    }
    assert_eq!(read("a.yaml", b"nginx\n").mentions, [], "called otherwise");
}

#[test]
fn what_is_neither_is_said_to_be() {
    let pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a}]}\n";
    let inputs = read("a.yaml", format!("{pod}---\nreplicas: 3\n").as_bytes());
    assert_eq!((inputs.mentions.len(), inputs.errors.len()), (1, 0));
    assert!(
        inputs.notes[0].starts_with("a.yaml, line 5: neither"),
        "{:?}",
        inputs.notes
    );
}

proptest::proptest! {
    #[test]
    fn no_dockerfile_is_too_odd(
        text in "(FROM|ARG|RUN|COPY|<<X|X|--from=|--mount=from=|AS|a|\\$\\{|\\}|:-|[ \\n\\\\#=\"'$]){0,40}"
    ) {
        let _ = read("Dockerfile", text.as_bytes());
    }
}
