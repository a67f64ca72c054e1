//! Writes a document as YAML. Texts with several lines become block scalars, so that people can
//! read the programs in them; all others are quoted as in JSON, which is YAML too.

use serde_json::Value;

pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

/// Begins behind a key or a dash, or at the start of a line with its margin.
fn write(text: &mut String, value: &Value, depth: usize) {
    let margin = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let mut entries: Vec<_> = map.iter().collect();
            // As people write objects: what it is and how it is called comes first.
            entries.sort_by_key(|(key, _)| (rank(key), *key));
            for (number, (key, value)) in entries.into_iter().enumerate() {
                if number > 0 {
                    text.push_str(&margin);
                }
                text.push_str(key);
                text.push(':');
                behind_key(text, value, depth);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (number, value) in list.iter().enumerate() {
                if number > 0 {
                    text.push_str(&margin);
                }
                text.push_str("- ");
                write(text, value, depth + 1);
            }
        }
        Value::String(lines) if lines.contains('\n') => {
            text.push_str(if lines.ends_with('\n') { "|\n" } else { "|-\n" });
            for line in lines.lines() {
                if !line.is_empty() {
                    text.push_str(&margin);
                    text.push_str(line);
                }
                text.push('\n');
            }
        }
        scalar => {
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

fn behind_key(text: &mut String, value: &Value, depth: usize) {
    let is_nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    if is_nested {
        text.push('\n');
        text.push_str(&"  ".repeat(depth + 1));
    } else {
        text.push(' ');
    }
    write(text, value, depth + 1);
}

fn rank(key: &str) -> usize {
    const FIRST: [&str; 4] = ["apiVersion", "kind", "metadata", "name"];
    let place = FIRST.iter().position(|first| *first == key);
    place.unwrap_or(FIRST.len())
}
