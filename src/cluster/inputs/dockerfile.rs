//! Dockerfiles: every image that a build pulls.
//!
//! FROM, `COPY --from` and `RUN --mount=from=`, unless they name an earlier stage or `scratch`, and
//! the frontend that a `# syntax=` line names, which `BuildKit` pulls before anything else.

use std::collections::HashMap;

use super::variables::expand;
use crate::cluster::mention::{Mention, Place, Written};

/// What `BuildKit` sets itself, differently for each platform.
const PLATFORM: [&str; 8] = [
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETARCH",
    "TARGETVARIANT",
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDARCH",
    "BUILDVARIANT",
];

/// One instruction with its continuation lines.
struct Instruction {
    line: u32,
    /// In upper case.
    word: String,
    rest: String,
}

#[derive(Default)]
struct Build {
    found: Vec<Mention>,
    /// ARGs in front of the first FROM, with their defaults.
    arguments: HashMap<String, String>,
    /// Names of stages, in lower case; a stage without one is empty.
    stages: Vec<String>,
}

/// Whether the first instruction can only be that of a Dockerfile.
pub(super) fn is_one(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    let mut words = first.unwrap_or_default().split_whitespace();
    let is_word = words
        .next()
        .is_some_and(|word| word.eq_ignore_ascii_case("FROM") || word.eq_ignore_ascii_case("ARG"));
    is_word && words.next().is_some()
}

pub(super) fn mentions(text: &str) -> Vec<Mention> {
    let mut build = Build::default();
    let (escape, syntax) = directives(text);
    if let Some((line, syntax)) = syntax {
        build.image(syntax, line, "syntax", None);
    }
    for instruction in instructions(text, escape) {
        build.take(&instruction);
    }
    build.found
}

/// The `# name=value` lines at the top: the escape character, and the frontend with its line.
fn directives(text: &str) -> (char, Option<(u32, &str)>) {
    let (mut escape, mut syntax) = ('\\', None);
    for (number, line) in (1..).zip(text.lines()) {
        let directive = line
            .trim()
            .strip_prefix('#')
            .and_then(|line| line.split_once('='));
        let Some((name, value)) = directive else {
            break;
        };
        match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
            ("escape", "`") => escape = '`',
            ("syntax", value) if !value.is_empty() => syntax = Some((number, value)),
            _ => {}
        }
    }
    (escape, syntax)
}

/// Joins continued lines, and leaves comments and here-documents out.
fn instructions(text: &str, escape: char) -> Vec<Instruction> {
    let mut instructions = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((line, first)) = lines.next() {
        if first.trim().is_empty() || first.trim_start().starts_with('#') {
            continue;
        }
        let mut whole = String::new();
        let mut next = Some(first);
        while let Some(part) = next {
            let part = part.trim_end();
            let continued = part.strip_suffix(escape);
            whole.push_str(continued.unwrap_or(part));
            next = match continued {
                None => None,
                // Comments and empty lines do not end an instruction.
                Some(_) => lines
                    .by_ref()
                    .map(|(_, line)| line)
                    .find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')),
            };
        }
        let whole = whole.trim();
        let (word, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
        let word = word.to_ascii_uppercase();
        if matches!(word.as_str(), "RUN" | "COPY" | "ADD") {
            for end in here_documents(rest) {
                let _ = lines
                    .by_ref()
                    .find(|(_, line)| line.trim_start_matches('\t') == end);
            }
        }
        instructions.push(Instruction {
            line,
            word,
            rest: rest.trim().to_owned(),
        });
    }
    instructions
}

/// The words that end the here-documents of an instruction: `<<EOF`, `<<-"EOF"`.
fn here_documents(rest: &str) -> Vec<String> {
    let starts = rest.split_whitespace().filter_map(|word| {
        // `0<<EOF` is one as well, `<<<` is not.
        let word = word
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .strip_prefix("<<")?;
        let word = word
            .strip_prefix('-')
            .unwrap_or(word)
            .trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        (!word.is_empty() && word.chars().all(plain)).then(|| word.to_owned())
    });
    starts.collect()
}

// === impl Build ===

impl Build {
    fn take(&mut self, Instruction { line, word, rest }: &Instruction) {
        match word.as_str() {
            "ARG" if self.stages.is_empty() => self.argument(rest),
            "FROM" => self.from(rest, *line),
            "COPY" | "ADD" => {
                for from in flags(rest).filter_map(|flag| flag.strip_prefix("--from=")) {
                    self.other(from, *line, "COPY --from");
                }
            }
            "RUN" => {
                let mounts = flags(rest).filter_map(|flag| flag.strip_prefix("--mount="));
                for from in mounts.flat_map(|mount| mount.split(',')) {
                    if let Some(from) = from.strip_prefix("from=") {
                        self.other(from, *line, "RUN --mount");
                    }
                }
            }
            _ => {}
        }
    }

    fn argument(&mut self, rest: &str) {
        for word in rest.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let value = value.trim_matches(['"', '\'']);
            // One without a value of its own has none for others either.
            if let Ok(value) = expand(value, &|name| self.arguments.get(name).cloned()) {
                self.arguments.insert(name.to_owned(), value);
            }
        }
    }

    fn from(&mut self, rest: &str, line: u32) {
        let mut words = rest
            .split_whitespace()
            .skip_while(|word| word.starts_with("--"));
        let image = words.next().unwrap_or_default().trim_matches(['"', '\'']);
        let is_as = words
            .next()
            .is_some_and(|word| word.eq_ignore_ascii_case("AS"));
        let name = words
            .next()
            .filter(|_| is_as)
            .unwrap_or_default()
            .to_ascii_lowercase();
        self.image(
            image,
            line,
            "FROM",
            (!name.is_empty()).then(|| name.clone()),
        );
        self.stages.push(name);
    }

    /// `--from` takes a stage's number as well.
    fn other(&mut self, from: &str, line: u32, path: &str) {
        let is_number = from
            .parse()
            .is_ok_and(|number: usize| number < self.stages.len());
        if !is_number {
            self.image(from, line, path, None);
        }
    }

    fn image(&mut self, text: &str, line: u32, path: &str, container: Option<String>) {
        let value = |name: &str| self.arguments.get(name).cloned();
        let written = match expand(text, &value) {
            Ok(image) if image.is_empty() || image == "scratch" || self.is_stage(&image) => return,
            Ok(image) => Written::Image(image),
            Err(variable) if self.is_stage_of_a_platform(text, &variable) => return,
            Err(variable) => Written::Open {
                text: text.to_owned(),
                variable,
            },
        };
        self.found.push(Mention {
            written,
            place: Place {
                line: Some(line),
                path: path.to_owned(),
                container,
                ..Place::default()
            },
        });
    }

    fn is_stage(&self, name: &str) -> bool {
        self.stages
            .iter()
            .any(|stage| stage.eq_ignore_ascii_case(name))
    }

    /// `FROM base-${TARGETARCH}` behind stages `base-amd64` and `base-arm64`.
    fn is_stage_of_a_platform(&self, text: &str, variable: &str) -> bool {
        let prefix = text
            .split('$')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let is_one = |stage: &String| !prefix.is_empty() && stage.starts_with(&prefix);
        PLATFORM.contains(&variable) && self.stages.iter().any(is_one)
    }
}

/// The words in front of an instruction's own arguments.
fn flags(rest: &str) -> impl Iterator<Item = &str> {
    rest.split_whitespace()
        .take_while(|word| word.starts_with("--"))
}
