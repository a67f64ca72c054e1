//! A YAML or JSON document as a tree, with the line on which each part stands.
//!
//! Neither library keeps both lines and order, and nothing here needs more of a scalar than whether
//! it is a text. A key that is written twice stays twice: programs differ in which one they take,
//! so whoever looks for an image looks at both.
//!
//! Bounded in depth, and in what aliases may grow to.

use std::cell::Cell;
use std::io::{self, Read};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

mod yaml;

/// Nesting, in both formats; `serde_json` has the same limit.
const DEEPEST: usize = 128;

/// One part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Counted from 1; 0 when nobody counted.
    pub line: u32,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Boolean,
    Number,
    Text(String),
    List(Vec<Node>),
    /// In the order of the document, keys that are there twice too.
    Map(Vec<(String, Node)>),
}

/// Where and why reading stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Unreadable {
    pub line: u32,
    pub message: String,
}

/// Builds a [`Node`] from whatever `serde_json` reads.
#[derive(Clone, Copy)]
struct Seed<'a> {
    line: &'a Cell<u32>,
}

/// Counts lines while `serde_json` reads. It takes one byte at a time, so the count is exact.
struct Lines<'a> {
    text: &'a [u8],
    line: &'a Cell<u32>,
}

// === impl Node ===

impl Node {
    /// Every value of `key`; none when this is no map.
    pub fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a Node> {
        self.entries()
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, node)| node)
    }

    /// The last text under `key`, as most programs would take it.
    #[must_use]
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.all(key).filter_map(Node::text).last()
    }

    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements of a list, else nothing.
    #[must_use]
    pub fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The entries of a map, else nothing.
    #[must_use]
    pub fn entries(&self) -> &[(String, Node)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    #[must_use]
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// What it is, for people.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Boolean => "a boolean",
            Value::Number => "a number",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

// === reading ===

/// The documents of a YAML stream, down to where it cannot be read.
#[must_use]
pub fn from_yaml(text: &str) -> (Vec<Node>, Option<Unreadable>) {
    yaml::read(text)
}

/// The values of a JSON text, usually one, down to where it cannot be read.
#[must_use]
pub fn from_json(text: &str) -> (Vec<Node>, Option<Unreadable>) {
    let line = Cell::new(1);
    let reader = Lines {
        text: text.as_bytes(),
        line: &line,
    };
    let mut documents = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_reader(reader);
    loop {
        // Only white space may be left behind the last value.
        if deserializer.end().is_ok() {
            return (documents, None);
        }
        match (Seed { line: &line }).deserialize(&mut deserializer) {
            Ok(node) => documents.push(node),
            Err(error) => return (documents, Some(Unreadable::from(&error))),
        }
    }
}

/// One JSON value without lines: faster than [`from_json`], for what comes by the network.
pub fn from_json_bytes(bytes: &[u8]) -> Result<Node, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let node = Seed {
        line: &Cell::new(0),
    }
    .deserialize(&mut deserializer)
    .and_then(|node| deserializer.end().map(|()| node));
    node.map_err(|error| Unreadable::from(&error))
}

impl From<&serde_json::Error> for Unreadable {
    fn from(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        // The line is said already.
        let message = text.split(" at line ").next().unwrap_or(&text);
        Unreadable {
            line: u32::try_from(error.line()).unwrap_or(u32::MAX),
            message: message.to_owned(),
        }
    }
}

impl Seed<'_> {
    fn node(self, value: Value) -> Node {
        Node {
            line: self.line.get(),
            value,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(self.node(Value::Null))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(self.node(Value::Boolean))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(self.node(Value::Number))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(self.node(Value::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(self.node(Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(self.node(Value::Text(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut node = self.node(Value::Null);
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        node.value = Value::List(items);
        Ok(node)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut node = self.node(Value::Null);
        let mut entries = Vec::new();
        while let Some(key) = access.next_key()? {
            entries.push((key, access.next_value_seed(self)?));
        }
        node.value = Value::Map(entries);
        Ok(node)
    }
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.text.read(buffer)?;
        let lines = buffer[..read].split(|byte| *byte == b'\n').skip(1).count();
        let lines = u32::try_from(lines).unwrap_or(u32::MAX);
        self.line.set(self.line.get().saturating_add(lines));
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
