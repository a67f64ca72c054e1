//! Finds the configuration file, reads it, and says where it is wrong.
//!
//! A message names line, column and key, and does not show the line itself: it may hold a secret,
//! and messages end up in logs.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::Config;
use crate::policy::Problem;

/// Where a file is looked for when none is named.
const PLACES: [&str; 2] = ["portcullis.toml", "/etc/portcullis/portcullis.toml"];

/// A configuration file as it was read; empty when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: Option<PathBuf>,
    text: String,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Counted from 1, as is the column in characters.
    pub line: Option<usize>,
    pub column: Option<usize>,
    /// `policy.rules.2.effect`, counted from 0; empty when it is not about one key.
    pub key: String,
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", display(path.as_deref(), faults))]
    Invalid {
        path: Option<PathBuf>,
        faults: Vec<Fault>,
    },
}

// === impl Source ===

impl Source {
    /// Reads the file at `path`; without one the first of `portcullis.toml` in the working
    /// directory and `/etc/portcullis/portcullis.toml` that is there, else nothing. Blocking.
    pub fn find(path: Option<&Path>) -> Result<Self, LoadError> {
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Source {
                path: Some(path.to_owned()),
                text,
            }),
            Err(source) => Err(LoadError::Read {
                path: path.to_owned(),
                source,
            }),
        };
        if let Some(path) = path {
            return read(path);
        }
        for place in PLACES {
            match read(Path::new(place)) {
                Err(LoadError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                }
                found => return found,
            }
        }
        Ok(Source {
            path: None,
            text: String::new(),
        })
    }

    /// The file, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The keys whose values another text has changed, outside of the section `except`. Values are
    /// not shown: some are secrets.
    #[must_use]
    pub fn differences(&self, other: &Source, except: &str) -> Vec<String> {
        let table = |source: &Source| source.text.parse::<Table>().unwrap_or_default();
        let (mut this, mut other) = (table(self), table(other));
        this.remove(except);
        other.remove(except);
        let mut keys = Vec::new();
        differences("", &this, &other, &mut keys);
        keys
    }

    /// Understands the text, or says what is wrong with each of its sections.
    pub fn parse(&self) -> Result<Config, LoadError> {
        toml::from_str(&self.text).map_err(|error| {
            let mut faults = self.faults();
            if faults.is_empty() {
                faults.push(self.fault(&DeTable::new(), &error));
            }
            LoadError::Invalid {
                path: self.path.clone(),
                faults,
            }
        })
    }

    /// Reading stops at the first error, so each section is read on its own.
    fn faults(&self) -> Vec<Fault> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let whole = table.get_ref();
        if !errors.is_empty() {
            return errors
                .iter()
                .map(|error| self.fault(whole, error))
                .collect();
        }
        let alone = |(key, value): (&Spanned<_>, &Spanned<_>)| {
            let section = Spanned::new(
                table.span(),
                DeTable::from_iter([(key.clone(), value.clone())]),
            );
            Config::deserialize(toml::Deserializer::from(section)).err()
        };
        whole
            .iter()
            .filter_map(alone)
            .map(|error| self.fault(whole, &error))
            .collect()
    }

    fn fault(&self, table: &DeTable<'_>, error: &toml::de::Error) -> Fault {
        let at = error.span().map(|span| span.start);
        let key = at.and_then(|at| key_at(table, at)).unwrap_or_default();
        let message = error.message().trim().replace('\n', ", ");
        self.at(at, key, message)
    }

    /// Says where in the file a problem is.
    #[must_use]
    pub fn locate(&self, problem: Problem) -> Fault {
        let table = DeTable::parse(&self.text).ok();
        let at = table.and_then(|table| offset_of(table.get_ref(), &problem.key));
        self.at(at, problem.key, problem.message)
    }

    fn at(&self, at: Option<usize>, key: String, message: String) -> Fault {
        let before = at.and_then(|at| self.text.get(..at));
        Fault {
            line: before.map(|text| text.matches('\n').count() + 1),
            column: before
                .map(|text| text.rsplit('\n').next().unwrap_or_default().chars().count() + 1),
            key,
            message,
        }
    }
}

fn differences(prefix: &str, this: &Table, other: &Table, keys: &mut Vec<String>) {
    let more = other.keys().filter(|key| !this.contains_key(*key));
    for key in this.keys().chain(more) {
        let name = format!("{prefix}{key}");
        match (this.get(key), other.get(key)) {
            (Some(Value::Table(this)), Some(Value::Table(other))) => {
                differences(&format!("{name}."), this, other, keys);
            }
            (this, other) if this == other => {}
            _ => keys.push(name),
        }
    }
}

/// The key whose name or value is at a byte of the text.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref();
        match below(value, at) {
            Some(rest) => Some(format!("{name}{rest}")),
            None => {
                (key.span().contains(&at) || value.span().contains(&at)).then(|| name.to_string())
            }
        }
    })
}

/// The same for what is inside a value. (A table's own span is no more than its header.)
fn below(value: &Spanned<DeValue<'_>>, at: usize) -> Option<String> {
    match value.get_ref() {
        DeValue::Table(table) => key_at(table, at).map(|key| format!(".{key}")),
        DeValue::Array(array) => array
            .iter()
            .enumerate()
            .find_map(|(index, element)| match below(element, at) {
                Some(rest) => Some(format!(".{index}{rest}")),
                None => element.span().contains(&at).then(|| format!(".{index}")),
            }),
        _ => None,
    }
}

/// Where the value of a dotted key starts.
fn offset_of(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (first, rest) = key
        .split_once('.')
        .map_or((key, None), |(first, rest)| (first, Some(rest)));
    let mut value = table.iter().find(|(name, _)| name.get_ref() == first)?.1;
    for part in rest.into_iter().flat_map(|rest| rest.split('.')) {
        let inner = match value.get_ref() {
            DeValue::Table(table) => table
                .iter()
                .find(|(name, _)| name.get_ref() == part)
                .map(|(_, v)| v),
            DeValue::Array(array) => part.parse().ok().and_then(|index: usize| array.get(index)),
            _ => None,
        };
        // A key that is missing is wrong where it should be.
        let Some(inner) = inner else { break };
        value = inner;
    }
    Some(value.span().start)
}

fn display(path: Option<&Path>, faults: &[Fault]) -> String {
    let path = path.map_or("the configuration".into(), Path::to_string_lossy);
    let lines: Vec<_> = faults
        .iter()
        .map(|fault| format!("{path}: {fault}"))
        .collect();
    lines.join("\n")
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "line {line}, column {column}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}
