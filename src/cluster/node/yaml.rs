//! From the events of a YAML parser to [`Node`]s.
//!
//! The parser itself is not recursive; depth, and what aliases and merge keys copy, are bounded
//! here.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{DEEPEST, Node, Unreadable, Value};

/// Nodes that anchors, aliases and merge keys of one stream may copy.
const MOST_COPIES: usize = 1_000_000;

#[derive(Default)]
struct Builder {
    documents: Vec<Node>,
    /// Lists and maps that are open, the innermost last.
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    copied: usize,
}

struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next.
    key: Option<String>,
}

struct Anchored {
    node: Node,
    /// How many nodes, and how deep.
    size: (usize, usize),
}

/// What a node was written as, where only that tells a key from another.
type Raw = Option<String>;

pub(super) fn read(text: &str) -> (Vec<Node>, Option<Unreadable>) {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let result = match event {
            Ok((event, span)) => builder.take(event, line(&span)),
            Err(error) => Err(Unreadable {
                line: number(error.marker().line()),
                message: error.info().to_owned(),
            }),
        };
        if let Err(error) = result {
            return (builder.documents, Some(error));
        }
    }
    (builder.documents, None)
}

fn line(span: &Span) -> u32 {
    number(span.start.line())
}

fn number(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

// === impl Builder ===

impl Builder {
    fn take(&mut self, event: Event<'_>, line: u32) -> Result<(), Unreadable> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref());
                self.put(Node { line, value }, Some(text.into_owned()), anchor)
            }
            Event::Alias(anchor) => {
                let Some(Anchored { node, size }) = self.anchors.get(&anchor) else {
                    return Err(wrong(line, "an alias stands inside of what it stands for"));
                };
                let (size, depth) = *size;
                if self.open.len() + depth > DEEPEST {
                    return Err(too_deep(line));
                }
                let mut node = node.clone();
                // It says what it says here.
                node.line = line;
                self.copy(size, line)?;
                let raw = node.text().map(str::to_owned);
                self.put(node, raw, 0)
            }
            Event::SequenceStart(anchor, _) => self.open(Value::List(Vec::new()), anchor, line),
            Event::MappingStart(anchor, _) => self.open(Value::Map(Vec::new()), anchor, line),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open {
                    mut node, anchor, ..
                }) = self.open.pop()
                else {
                    return Ok(());
                };
                if let Value::Map(entries) = &mut node.value {
                    let copied = merge(entries);
                    self.copy(copied, line)?;
                }
                self.put(node, None, anchor)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, value: Value, anchor: usize, line: u32) -> Result<(), Unreadable> {
        if self.open.len() >= DEEPEST {
            return Err(too_deep(line));
        }
        self.open.push(Open {
            node: Node { line, value },
            anchor,
            key: None,
        });
        Ok(())
    }

    /// A node is whole: it goes into what is open around it.
    fn put(&mut self, node: Node, raw: Raw, anchor: usize) -> Result<(), Unreadable> {
        if anchor != 0 {
            let size = measure(&node);
            self.copy(size.0, node.line)?;
            let node = node.clone();
            self.anchors.insert(anchor, Anchored { node, size });
        }
        let Some(around) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match &mut around.node.value {
            Value::Map(entries) => match around.key.take() {
                Some(key) => entries.push((key, node)),
                // A list or a map as a key is no key that anybody asks for.
                None => around.key = Some(raw.unwrap_or_default()),
            },
            Value::List(items) => items.push(node),
            _ => {}
        }
        Ok(())
    }

    fn copy(&mut self, nodes: usize, line: u32) -> Result<(), Unreadable> {
        self.copied = self.copied.saturating_add(nodes);
        if self.copied > MOST_COPIES {
            let message = format!("its aliases stand for more than {MOST_COPIES} values");
            return Err(wrong(line, &message));
        }
        Ok(())
    }
}

fn wrong(line: u32, message: &str) -> Unreadable {
    Unreadable {
        line,
        message: message.to_owned(),
    }
}

fn too_deep(line: u32) -> Unreadable {
    wrong(line, &format!("nested more than {DEEPEST} deep"))
}

/// How many nodes, and how deep.
fn measure(node: &Node) -> (usize, usize) {
    let items = node.items().iter();
    let values = node.entries().iter().map(|(_, value)| value);
    let (mut size, mut depth) = (1, 0);
    for inner in items.chain(values) {
        let (more, deeper) = measure(inner);
        size += more;
        depth = depth.max(deeper);
    }
    (size, depth + 1)
}

/// YAML's core schema. Compose and Helm write tags of their own (`!reset`), which change nothing
/// about what a value is.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
    if style != ScalarStyle::Plain || is_text {
        return Value::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => Value::Boolean,
        _ if is_number(text) => Value::Number,
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let unsigned = text.trim_start_matches(['-', '+']);
    let of = |prefix: &str, radix| {
        let digits = unsigned.strip_prefix(prefix);
        digits.is_some_and(|digits| {
            !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix))
        })
    };
    if of("0x", 16) || of("0o", 8) {
        return true;
    }
    let special = [".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN"];
    special.contains(&unsigned)
        || unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && unsigned
                .chars()
                .all(|c| c.is_ascii_digit() || ".eE+-".contains(c))
            && text.parse::<f64>().is_ok()
}

/// `<<: *other` stands for the entries of other maps; own entries come before them. Returns how
/// many nodes that copied.
fn merge(entries: &mut Vec<(String, Node)>) -> usize {
    let (merged, own): (Vec<_>, Vec<_>) = std::mem::take(entries)
        .into_iter()
        .partition(|(key, _)| key == "<<");
    if merged.is_empty() {
        *entries = own;
        return 0;
    }
    let mut keys: HashSet<String> = own.iter().map(|(key, _)| key.clone()).collect();
    *entries = own;
    let mut copied = 0;
    for (_, source) in &merged {
        let maps = match &source.value {
            Value::List(maps) => maps.as_slice(),
            _ => std::slice::from_ref(source),
        };
        for (key, value) in maps.iter().flat_map(Node::entries) {
            if keys.insert(key.clone()) {
                copied += measure(value).0;
                entries.push((key.clone(), value.clone()));
            }
        }
    }
    copied
}
