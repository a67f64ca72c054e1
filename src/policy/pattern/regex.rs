//! A pattern as a regular expression, for those who decide by it without us.
//!
//! Over references in canonical form with their version: `docker.io/library/nginx:1.27`,
//! `quay.io/a@sha256:...`. A name has no `@`, and a colon in front of a slash only: that is how the
//! expressions know where the version begins. In the syntax that RE2, Go and Rust share, and
//! without a backslash, so that they can be quoted anywhere.

use super::{Glob, Pattern, Version};

/// Which of a pattern's references are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::policy) enum Versions {
    /// All that it surely matches.
    Sure,
    /// Of those, the ones by tag.
    Tags,
    /// Of those, the ones by digest.
    Digests,
    /// By digest, where it says that only some versions match and a digest does not tell.
    Unsure,
}

/// Any part of a name, down to its version.
const ANYTHING: &str = "[^@]*";

impl Pattern {
    /// To be anchored at its start. None when no reference is like that.
    pub(in crate::policy) fn regex(&self, versions: Versions) -> Option<String> {
        let name = name(&self.name);
        let version = match (&self.version, versions) {
            // Nothing behind the name has to be looked at.
            (Version::Any, Versions::Sure) if name.ends_with(ANYTHING) => {
                return Some(name.trim_end_matches(ANYTHING).to_owned());
            }
            (Version::Any, Versions::Sure) => "[:@][^/]*$".to_owned(),
            (Version::Any, Versions::Tags) => ":[^/@]*$".to_owned(),
            (Version::Tag(tag), Versions::Sure | Versions::Tags) => format!(":{}$", self::tag(tag)),
            (Version::Digest(Some(digest)), Versions::Sure | Versions::Digests) => {
                format!("@{digest}$")
            }
            (Version::Any, Versions::Digests)
            | (Version::Digest(None), Versions::Sure | Versions::Digests)
            | (Version::Tag(_) | Version::Digest(Some(_)), Versions::Unsure) => "@".to_owned(),
            (Version::Any | Version::Digest(None), Versions::Unsure)
            | (Version::Tag(_), Versions::Digests)
            | (Version::Digest(_), Versions::Tags) => return None,
        };
        Some(name + &version)
    }
}

fn name(glob: &Glob) -> String {
    let text = match glob {
        Glob::Any => return ANYTHING.to_owned(),
        Glob::Exact(text) | Glob::Like(text, _) => text.as_str(),
        Glob::Under(start) => return literal(start) + ANYTHING,
    };
    let mut regex = String::new();
    let mut segments = text.split('/').peekable();
    while let Some(segment) = segments.next() {
        match (segment, segments.peek()) {
            ("**", None) => regex += ANYTHING,
            ("**", Some(_)) => regex += "([^@]*/)?",
            // Only the last segment has a version behind it, and a registry a port in it.
            (_, None) => regex += &literal(segment).replace('*', "[^/:@]*"),
            (_, Some(_)) => regex += &(literal(segment).replace('*', "[^/@]*") + "/"),
        }
    }
    regex
}

fn tag(glob: &Glob) -> String {
    match glob {
        Glob::Any => "[^/@]*".to_owned(),
        // A slash is in no tag.
        Glob::Exact(text) | Glob::Under(text) | Glob::Like(text, _) => {
            literal(text).replace('*', "[^/@]*")
        }
    }
}

/// Of all that may stand in a pattern only the dot means something else in an expression, beside
/// the asterisk that is replaced.
fn literal(text: &str) -> String {
    text.replace('.', "[.]")
}
