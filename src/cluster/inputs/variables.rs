//! `${NAME:-default}` as compose files and Dockerfiles write it.
//!
//! Only what the file itself says is known: the environment of whoever runs the audit is not that
//! of whoever will build or start what is audited.

/// Defaults in defaults.
const DEEPEST: usize = 8;

/// Puts values in the place of variables, or names the first that has none. `value` knows those
/// that are set; an empty value counts as none where there is a colon.
pub(super) fn expand(
    text: &str,
    value: &impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    expand_at(text, value, DEEPEST)
}

fn expand_at(
    text: &str,
    value: &impl Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            after
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| after.to_owned())?;
            expanded.push_str(&braced(&inner[..end], value, depth)?);
            &inner[end + 1..]
        } else {
            let (name, after) = after.split_at(name_length(after));
            expanded.push_str(&value(name).ok_or_else(|| name.to_owned())?);
            after
        };
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// The value of what stands between the braces.
fn braced(
    inner: &str,
    value: &impl Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    let (name, operator) = inner.split_at(name_length(inner));
    let (operator, not_empty) = match operator.strip_prefix(':') {
        Some(operator) => (operator, true),
        None => (operator, false),
    };
    let known = value(name).filter(|known| !not_empty || !known.is_empty());
    let otherwise = |text| match depth.checked_sub(1) {
        Some(depth) => expand_at(text, value, depth),
        None => Err(name.to_owned()),
    };
    match (known, operator.chars().next()) {
        (Some(known), None | Some('-' | '?')) => Ok(known),
        (None, Some('-')) | (Some(_), Some('+')) => otherwise(&operator[1..]),
        // Nobody knows that it will not be set.
        (None, _) | (Some(_), Some(_)) => Err(name.to_owned()),
    }
}

/// Where the brace ends that was open before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    text.char_indices().find_map(|(at, c)| {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        (open == 0).then_some(at)
    })
}

fn name_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str) -> Option<String> {
        match name {
            "SET" => Some("set".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn values_and_defaults() {
        for (text, expanded) in [
            ("nginx:1", "nginx:1"),
            ("a/$SET:1", "a/set:1"),
            ("${SET}x", "setx"),
            ("${NONE:-nginx:1.27}", "nginx:1.27"),
            ("${NONE-b}", "b"),
            ("${EMPTY:-b}", "b"),
            ("${EMPTY-b}x", "x"),
            ("${SET:-b}", "set"),
            ("${SET:?why}", "set"),
            ("${SET:+b}", "b"),
            ("${NONE:-${ALSO:-c}}/d", "c/d"),
            ("${NONE:-$SET}", "set"),
            ("$$x", "$x"),
            ("${NONE:-}", ""),
        ] {
            assert_eq!(expand(text, &set).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn a_variable_without_a_value_is_named() {
        for (text, name) in [
            ("$NONE", "NONE"),
            ("nginx:${TAG}", "TAG"),
            ("${NONE:?must be set}", "NONE"),
            ("${NONE:+b}", "NONE"),
            ("${A:-${B}}", "B"),
            ("$", ""),
            ("${", "{"),
            ("${SET!}", "SET"),
        ] {
            assert_eq!(
                expand(text, &set).as_ref().map_err(String::as_str),
                Err(name),
                "{text}"
            );
        }
        let deep = "${A:-".repeat(20) + &"}".repeat(20);
        assert_eq!(expand(&deep, &set), Err("A".to_owned()));
    }
}
