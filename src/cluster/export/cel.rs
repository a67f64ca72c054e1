//! A plan in CEL, with the libraries that Kubernetes has: the variables of a policy, and the one
//! expression that says whether there is anything to say.
//!
//! Everything is a list that is mapped once, so the cost grows with the images and the rules and
//! with nothing else. Expressions have no backslash and no double quote; texts of people have what
//! they have, quoted.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::plan::{HUB, LONGEST_NAME, MISPLACED, NAME, PORT_IN_PATH, Plan, REGISTRY};
use super::{Inexpressible, Outcome};
use crate::policy::{
    AUDITED, Clause, Destination, MOST_REWRITES, REFUSED, Replacement, Says, Words,
};

/// Conditions one after the other. The parser of the API server goes 250 deep, and some of that is
/// the rest of the expression.
const MOST_CLAUSES: usize = 200;
/// Characters of patterns. Comparing costs a 40th unit for each character of the image and the
/// pattern, the API server stops at 1,000,000 units in one expression, and this leaves room for
/// ten images of 100 characters.
const MOST_PATTERNS: usize = 30_000;
/// What the API server passes on of a message, in bytes.
const LONGEST_MESSAGE: usize = 5 * 1024;

/// The parts of a `ValidatingAdmissionPolicy` that are the same wherever CEL is run.
pub(super) struct Program {
    /// In order: each may use those before it.
    pub(super) variables: Vec<Value>,
    /// True when there is nothing to say.
    pub(super) expression: String,
    /// What there is to say, in one line.
    pub(super) message: String,
}

/// Where in the list of a reference's parts these stand, in the variable `images`.
const ASKED: &str = "i[0]";
const TARGET: &str = "i[1]";

/// # Errors
/// The plan needs more than CEL gives in the API server.
pub(super) fn program(
    plan: &Plan,
    outcome: Outcome,
    format: &'static str,
) -> Result<Program, Inexpressible> {
    check(plan, format)?;
    let mut variables = vec![
        variable("specs", &specs()),
        variable("found", &found()),
        variable("brought", &brought()),
        variable("plain", &plain(plan)),
        variable("parts", &parts(plan)),
        variable("images", &images(plan)),
    ];
    let mut last = "images".to_owned();
    if !plan.rewriting().is_empty() {
        for number in 1..=MOST_REWRITES {
            let next = format!("rewritten{number}");
            variables.push(variable(&next, &rewritten(plan, &last)));
            last = next;
        }
    }
    variables.push(variable("lines", &lines(plan, outcome, &last)));
    let one_line = "variables.lines.join('; ')";
    Ok(Program {
        variables,
        expression: "size(variables.lines) == 0".to_owned(),
        message: format!(
            "size(bytes({one_line})) <= {LONGEST_MESSAGE} ? {one_line} :\n  \
             variables.lines[0] + '; and ' + string(size(variables.lines) - 1) + ' more'"
        ),
    })
}

fn check(plan: &Plan, format: &'static str) -> Result<(), Inexpressible> {
    let needed = plan.clauses.len();
    if needed > MOST_CLAUSES {
        return Err(Inexpressible::Clauses {
            format,
            most: MOST_CLAUSES,
            needed,
        });
    }
    let size = |clause: &Clause| clause.when.len() + clause.unless.as_ref().map_or(0, String::len);
    let needed = plan.clauses.iter().map(size).sum();
    if needed > MOST_PATTERNS {
        return Err(Inexpressible::Patterns {
            format,
            most: MOST_PATTERNS,
            needed,
        });
    }
    Ok(())
}

fn variable(name: &str, expression: &str) -> Value {
    json!({ "name": name, "expression": expression })
}

// === from the object to what stands where images belong ===

/// The elements' values under `key`. What is missing is passed over; what is no map has no keys, so
/// something else is meant by it than an image, and it becomes a list on the way.
fn follow(list: &str, key: &str) -> String {
    format!("{list}.map(n, n != null, type(n) == map ? (has(n.{key}) ? n.{key} : null) : [n])")
}

/// The specification of a pod, now and before.
fn specs() -> String {
    let way = |keys: &[&str]| {
        let start = "[o]".to_owned();
        keys.iter().fold(start, |list, key| follow(&list, key))
    };
    let cases = [
        ("Pod", way(&["spec"])),
        ("PodTemplate", way(&["template", "spec"])),
        (
            "CronJob",
            way(&["spec", "jobTemplate", "spec", "template", "spec"]),
        ),
    ];
    let mut expression = "[dyn(object), dyn(oldObject)].map(o,\n  o == null ? [] :\n".to_owned();
    for (kind, way) in cases {
        // Writing to a String cannot fail.
        let _ = writeln!(expression, "  o.kind == '{kind}' ? {way} :");
    }
    expression + "  " + &way(&["spec", "template", "spec"]) + ")"
}

/// What stands where images belong, now and before.
fn found() -> String {
    let list = |key: &str| {
        let way = follow("s", key);
        format!("{way}.map(n, n != null, type(n) == list ? n : [[n]])")
    };
    // A list of one list: its own elements are what is wanted.
    let items = |key: &str| format!("({} + [[]])[0]", list(key));
    let containers = ["containers", "initContainers", "ephemeralContainers"].map(items);
    let containers = follow(&format!("({})", containers.join("\n    + ")), "image");
    let volumes = follow(&follow(&items("volumes"), "image"), "reference");
    format!(
        "variables.specs.map(s,\n  ({containers}\n  + {volumes}).filter(n, n != null && n != ''))"
    )
}

/// An update is judged by what it brings.
fn brought() -> String {
    "variables.found[0].filter(n, !(n in variables.found[1]))".to_owned()
}

// === reading images ===

/// What is written, and the same without a name of the proxy in front; the second is empty where
/// it cannot be an image.
fn plain(plan: &Plan) -> String {
    let mut expression =
        "variables.brought.map(n,\n  type(n) != string ? ['(no text)', ''] :\n".to_owned();
    for own in &plan.own {
        let rest = "n.substring(n.find('^[^/]*/').size())";
        let behind = format!(
            "[string(n)] + [{rest}].map(r, r.matches({}) ? (r.matches({}) ? '' : r) : {} + r)",
            quote(REGISTRY),
            quote(MISPLACED),
            quote(&own.default),
        );
        let _ = writeln!(expression, "  n.matches({}) ? {behind} :", quote(&own.when));
    }
    // From here on everything is a text, for type checkers too: they want lists of one type.
    expression + "  [string(n), string(n)])"
}

/// What is written, registry with slash, path, version; no path where it is no image.
fn parts(plan: &Plan) -> String {
    format!(
        "variables.plain.map(p,\n  \
         !p[1].matches({image})\n    || p[1].matches({address}) ? [p[0], '', '', ''] :\n  \
         [p[1].find({name})].map(n, [\n    \
         p[0],\n    \
         n.find({registry}),\n    \
         n.substring(n.find({registry}).size()),\n    \
         p[1].contains('@') ? p[1].find('@.*') : p[1] == n ? ':latest' : p[1].substring(n.size())\n  \
         ])[0])",
        image = quote(&plan.image),
        address = quote(&plan.address),
        name = quote(NAME),
        registry = quote(REGISTRY),
    )
}

/// What is asked for in canonical form, and what it is judged as: as yet the same. In the place of
/// the second, without a slash, why it is no image.
fn images(plan: &Plan) -> String {
    let hub: Vec<_> = plan.hub.iter().map(|name| quote(name)).collect();
    format!(
        "variables.parts.map(p,\n  \
         [[\n    \
         p[1].lowerAscii().find('^[^:/]*[^:/.]'),\n    \
         p[1].find(':[0-9]+').find('[1-9][0-9]*')\n  \
         ]].map(h, h[1] in ['', '443'] ? (h[0] in [{hub}] ? {HUB} : h[0]) : h[0] + ':' + h[1])\n  \
         .map(r, r + (r == {HUB} && !p[2].contains('/') ? '/library/' : '/') + p[2])\n  \
         .map(n, p[2] == '' || size(p[1]) > {} || size(n) > {LONGEST_NAME}\n    \
         ? [p[0], 'it is no image'] : [n + p[3], n + p[3]])[0])",
        LONGEST_NAME + 1,
        hub = hub.join(", "),
        HUB = quote(HUB),
    )
}

// === deciding ===

/// The same list with what the rules rewrite in its place.
fn rewritten(plan: &Plan, from: &str) -> String {
    let mut chain = Chain::new();
    for clause in plan.rewriting() {
        let result = match &clause.says {
            Says::Rewrite { to, .. } => destination(to),
            _ => TARGET.to_owned(),
        };
        chain.add(condition(clause), result);
    }
    let chain = chain.or_else(TARGET);
    format!("variables.{from}.map(i, [{ASKED},\n  !{TARGET}.contains('/') ? {TARGET} :\n{chain}])")
}

fn destination(to: &Destination) -> String {
    let version = format!("{TARGET}.substring({TARGET}.find({}).size())", quote(NAME));
    let start = quote(&to.name.start);
    let Some(skip) = to.name.skip else {
        return match &to.version {
            Some(fixed) => {
                format!(
                    "{start} + ({TARGET}.contains('@') ? {version} : {})",
                    quote(fixed)
                )
            }
            None => format!("{start} + {version}"),
        };
    };
    let rest = rest(skip);
    let library = if to.library {
        format!(" + ({rest}.contains('/') ? '' : 'library/')")
    } else {
        String::new()
    };
    format!(
        "[{start}{library} + {rest}].map(n, n.matches({}) || size(n.find({})) > {LONGEST_NAME} ? {} : n)[0]",
        quote(PORT_IN_PATH),
        quote(NAME),
        quote(&to.too_long),
    )
}

/// The target without its first segments, but never without the last.
fn rest(skip: usize) -> String {
    format!("{TARGET}.substring({TARGET}.find('^([^/]*/){{0,{skip}}}').size())")
}

/// A line for each image that there is something to say about.
fn lines(plan: &Plan, outcome: Outcome, from: &str) -> String {
    let is_refused = outcome == Outcome::Refused;
    let follows_rewrites = !plan.rewriting().is_empty();
    let line = |says: &Says| match says {
        Says::Refuse(words) | Says::Rewrite { words, .. } if is_refused => {
            self::line(REFUSED, words, follows_rewrites)
        }
        Says::Audit(words) if !is_refused => self::line(AUDITED, words, follows_rewrites),
        _ => "''".to_owned(),
    };
    let mut chain = Chain::new();
    for clause in &plan.clauses {
        chain.add(condition(clause), line(&clause.says));
    }
    let chain = chain.or_else(&line(&plan.default));
    let unreadable = if is_refused {
        // No line break may get into a message, and nobody needs more than this of a text.
        let text = format!("({ASKED}.size() > 60 ? {ASKED}.substring(0, 60) + '...' : {ASKED})");
        let text = format!("({ASKED}.matches('[[:cntrl:]]') ? '(no text)' : {text})");
        format!("{text} + ' {REFUSED}: ' + {TARGET}")
    } else {
        "''".to_owned()
    };
    format!(
        "variables.{from}.map(i,\n  !{TARGET}.contains('/') ? {unreadable} :\n{chain}).filter(l, l != '')"
    )
}

fn condition(clause: &Clause) -> String {
    let when = format!("{TARGET}.matches({})", quote(&clause.when));
    match &clause.unless {
        Some(unless) => format!("{when} && !{TARGET}.matches({})", quote(unless)),
        None => when,
    }
}

/// `quay.io/a:1 is not allowed: ...`
fn line(state: &str, words: &Words, follows_rewrites: bool) -> String {
    let mut line = Text::default();
    line.code(ASKED);
    line.text(&format!(" {state}: "));
    if follows_rewrites {
        let name = format!("{TARGET}.find({})", quote(NAME));
        line.code(&format!(
            "({ASKED} == {TARGET} ? '' : 'it is pulled from ' + {name} + ': ')"
        ));
    }
    line.text(&words.why);
    if words.pin {
        line.text("; pin it as ");
        line.code(TARGET);
        line.text("@sha256:...");
    }
    if let Some(Replacement { start, skip }) = &words.instead {
        line.text(&format!("; use {start}"));
        if let Some(skip) = skip {
            line.code(&rest(*skip));
        }
        line.text(" instead");
    }
    if let Some(contact) = &words.contact {
        line.text(&format!("; contact {contact}"));
    }
    line.finish()
}

/// `a ? x : b ? y : z`, the first that holds.
struct Chain(Vec<(String, String)>);

/// Texts and expressions, one behind the other.
#[derive(Default)]
struct Text {
    parts: Vec<String>,
    /// A text that is not a part yet.
    open: String,
}

// === impl Chain ===

impl Chain {
    fn new() -> Self {
        Chain(Vec::new())
    }

    /// Conditions in a row with the same result become one.
    fn add(&mut self, condition: String, result: String) {
        match self.0.last_mut() {
            Some((conditions, same)) if *same == result => {
                *conditions = format!("{conditions}\n    || {condition}");
            }
            _ => self.0.push((condition, result)),
        }
    }

    fn or_else(self, result: &str) -> String {
        let mut text = String::new();
        for (condition, result) in self.0 {
            let _ = writeln!(text, "  {condition} ? {result} :");
        }
        text + "  " + result
    }
}

// === impl Text ===

impl Text {
    fn text(&mut self, text: &str) {
        self.open += text;
    }

    fn code(&mut self, expression: &str) {
        self.close();
        self.parts.push(expression.to_owned());
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.parts.push(quote(&std::mem::take(&mut self.open)));
        }
    }

    fn finish(mut self) -> String {
        self.close();
        self.parts.join(" + ")
    }
}

/// A literal. What editors and YAML may take for a line break or for nothing is escaped, and what
/// Kyverno would put something else in the place of.
fn quote(text: &str) -> String {
    let mut quoted = String::from("'");
    for c in text.chars() {
        match c {
            '\'' | '\\' => quoted.extend(['\\', c]),
            c if c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() => quoted.push(c),
            c => {
                let _ = write!(quoted, "\\U{:08x}", u32::from(c));
            }
        }
    }
    let quoted = quoted.replace("{{", "{\\x7b").replace("$(", "$\\x28");
    quoted + "'"
}
