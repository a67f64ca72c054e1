//! `registry.k8s.io/**`, `docker.io/library/*:1.*`, `**@sha256:...`: which images a rule is about.
//!
//! A pattern is written like an image and read with the same canonical names, so that
//! `index.docker.io/nginx` matches what `docker.io/library/nginx` does. `*` stands for any part of
//! one segment, `**` for any number of whole segments; there are no other wildcards.
//!
//! Most patterns are a name, or a name and `/**`. These two are compared as text; only the others
//! become a glob.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

use crate::oci::{Digest, Reference, Registry, Tag};

mod regex;

pub(super) use regex::Versions;

/// One compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    registry: RegistryPart,
    /// Over `registry/repository`.
    name: Glob,
    /// Segments in front of what a replacement keeps of a name.
    replaced: usize,
    version: Version,
}

/// Some names, where not each of them is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Names {
    One(String),
    /// Everything that starts so, down to the slash.
    Under(String),
    /// Everything in registries that end so, other than those that patterns name.
    Registries(String),
}

/// How many of some names are matched.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cover<'a> {
    None,
    /// Some, or some of their versions, or it cannot be told.
    Some,
    /// Surely all of them, in every version.
    All(&'a Pattern),
}

/// Where to look for a pattern, given a name: one that is nowhere there cannot match it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Under the whole name.
    Name(&'a str),
    /// Under the segments that it starts with, down to their slash.
    Start(&'a str),
    /// Under its last segment.
    End(&'a str),
    /// Under the end of its registry, from a dot on.
    Domain(&'a str),
    Anywhere,
}

/// Which registries a pattern can match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryPart {
    Exact(Registry),
    /// As it was written: `*.azurecr.io`, `**`.
    Wildcard(String),
}

/// How a pattern meets an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    No,
    /// The name matches, and the pattern names a version that the reference does not tell: a tag
    /// when asked by digest, another digest (which may be the parent), any when none is given.
    Unsure,
    Yes,
}

/// A pattern is wrong: what and how to put it right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(pub(super) String);

#[derive(Clone, Debug)]
enum Glob {
    Any,
    Exact(String),
    /// Everything that starts so, down to the slash.
    Under(String),
    /// The text is the glob's own.
    Like(String, GlobMatcher),
}

#[derive(Clone, Debug)]
enum Version {
    Any,
    Tag(Glob),
    /// `None` is `@*`: asked by digest at all.
    Digest(Option<Digest>),
}

// === impl Pattern ===

impl Pattern {
    /// Reads and compiles a pattern.
    pub fn parse(text: &str) -> Result<Self, InvalidPattern> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@*".contains(c);
        if text.is_empty() || !text.chars().all(allowed) {
            return Err(invalid(
                text,
                "has letters, digits, . _ - / : @ and the wildcards * and **",
            ));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, "*")) => (rest, Some(None)),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|error| invalid(text, &format!("({error})")))?;
                (rest, Some(Some(digest)))
            }
            None => (text, None),
        };
        // A colon in front of a slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, name) = canonical_name(text, name)?;
        // A reference with a digest ignores its tag, so a pattern does too.
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest),
            (None, Some(tag)) => Version::Tag(tag_glob(text, tag)?),
            (None, None) => Version::Any,
        };
        let replaced = match name.strip_suffix("**") {
            Some(start) => start.matches('/').count(),
            None => 1,
        };
        Ok(Pattern {
            text: text.to_owned(),
            registry,
            name: Glob::new(text, &name)?,
            replaced,
            version,
        })
    }

    #[must_use]
    pub fn registry(&self) -> &RegistryPart {
        &self.registry
    }

    /// Whether it is about some tags only.
    #[must_use]
    pub fn has_tag(&self) -> bool {
        matches!(self.version, Version::Tag(_))
    }

    /// `name` is `registry/repository` in canonical form.
    #[must_use]
    pub fn hit(&self, name: &str, reference: Option<&Reference>) -> Hit {
        if !self.name.matches(name) {
            return Hit::No;
        }
        match (&self.version, reference) {
            (Version::Any, _) | (Version::Digest(None), Some(Reference::Digest(_))) => Hit::Yes,
            (Version::Tag(glob), Some(Reference::Tag(tag))) if glob.matches(tag.as_str()) => {
                Hit::Yes
            }
            (Version::Digest(Some(this)), Some(Reference::Digest(digest))) if this == digest => {
                Hit::Yes
            }
            // A tag is judged as a tag: what it leads to is judged by digest in its turn.
            (_, Some(Reference::Tag(_))) => Hit::No,
            _ => Hit::Unsure,
        }
    }

    /// What of a name that matches is kept when the rest is replaced: what the final `**` stands
    /// for; without one the repository.
    #[must_use]
    pub fn remainder<'a>(&self, name: &'a str) -> &'a str {
        name.splitn(self.replaced + 1, '/').last().unwrap_or(name)
    }

    /// How many segments of a name are not in [`Pattern::remainder`], if it has as many.
    pub(super) fn replaced(&self) -> usize {
        self.replaced
    }

    /// Whether it is about some tags or digests only.
    pub(super) fn has_version(&self) -> bool {
        !matches!(self.version, Version::Any)
    }

    /// The one name that it matches, if it is one.
    pub(super) fn exact(&self) -> Option<&str> {
        match &self.name {
            Glob::Exact(name) => Some(name),
            Glob::Any | Glob::Under(_) | Glob::Like(..) => None,
        }
    }

    pub(super) fn covers(&self, names: &Names) -> Cover<'_> {
        let all = match names {
            Names::One(name) => Some(self.name.matches(name)),
            Names::Under(start) => self.name.matches_under(start),
            Names::Registries(end) => self.name.matches_registries(end),
        };
        match all {
            Some(false) => Cover::None,
            Some(true) if !self.has_version() => Cover::All(self),
            _ => Cover::Some,
        }
    }

    pub(super) fn key(&self) -> Key<'_> {
        self.name.key()
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Names::One(name) => f.write_str(name),
            Names::Under(start) => write!(f, "{start}**"),
            Names::Registries(end) => write!(f, "*{end}/**"),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The registry that a pattern names, and `registry/repository` with the registry made canonical.
fn canonical_name(text: &str, name: &str) -> Result<(RegistryPart, String), InvalidPattern> {
    if name == "**" {
        return Ok((RegistryPart::Wildcard(name.to_owned()), name.to_owned()));
    }
    let Some((registry, path)) = name.split_once('/') else {
        return Err(invalid(
            text,
            "names a registry and a repository: write quay.io/** for all of quay.io",
        ));
    };
    if path.split('/').any(str::is_empty)
        || path.contains(|c: char| c == ':' || c.is_ascii_uppercase())
    {
        return Err(invalid(
            text,
            "has a repository in lower case behind the registry",
        ));
    }
    if registry.contains('*') {
        let registry = registry.to_ascii_lowercase();
        let name = format!("{registry}/{path}");
        return Ok((RegistryPart::Wildcard(registry), name));
    }
    if !registry.contains(['.', ':']) && registry != "localhost" {
        return Err(invalid(
            text,
            "starts with a registry: docker.io/library/nginx, quay.io/**",
        ));
    }
    let registry: Registry = registry
        .parse()
        .map_err(|error| invalid(text, &format!("({error})")))?;
    // As in an image's name: a single segment at Docker Hub is one of library/.
    let library = registry == Registry::docker_hub() && !path.contains('/') && path != "**";
    let path = if library {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    let name = format!("{registry}/{path}");
    Ok((RegistryPart::Exact(registry), name))
}

fn tag_glob(text: &str, tag: &str) -> Result<Glob, InvalidPattern> {
    // With the wildcards gone the rest must be able to stand in a tag.
    match tag.replace('*', "x").parse::<Tag>() {
        Ok(_) => Glob::new(text, tag),
        Err(error) => Err(invalid(text, &format!("({error})"))),
    }
}

fn invalid(text: &str, why: &str) -> InvalidPattern {
    InvalidPattern(format!("{text:?}: a pattern {why}"))
}

// === impl Glob ===

impl Glob {
    fn new(text: &str, glob: &str) -> Result<Self, InvalidPattern> {
        let is_partial = |segment: &str| segment.contains("**") && segment != "**";
        if glob.split('/').any(is_partial) {
            return Err(invalid(text, "has ** as a whole segment only: a/**, **/b"));
        }
        Ok(match glob.strip_suffix("/**") {
            _ if glob.split('/').all(|segment| segment == "**") => Glob::Any,
            _ if !glob.contains('*') => Glob::Exact(glob.to_owned()),
            Some(prefix) if !prefix.contains('*') => Glob::Under(format!("{prefix}/")),
            _ => {
                let compiled = GlobBuilder::new(glob).literal_separator(true).build();
                let compiled = compiled.map_err(|error| invalid(text, &error.to_string()))?;
                Glob::Like(glob.to_owned(), compiled.compile_matcher())
            }
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Glob::Any => true,
            Glob::Exact(exact) => exact == text,
            Glob::Under(prefix) => text.starts_with(prefix.as_str()),
            Glob::Like(_, matcher) => matcher.is_match(text),
        }
    }

    /// Whether all names that start so match, or none does; None when some may.
    fn matches_under(&self, start: &str) -> Option<bool> {
        let literal = match self {
            Glob::Any => return Some(true),
            Glob::Under(this) if start.starts_with(this.as_str()) => return Some(true),
            Glob::Under(this) => this,
            Glob::Exact(name) => {
                return if name.starts_with(start) {
                    None
                } else {
                    Some(false)
                };
            }
            // Behind the registry it is about anything at all.
            Glob::Like(glob, matcher)
                if glob
                    .strip_suffix("/**")
                    .is_some_and(|registry| !registry.contains('/')) =>
            {
                return Some(matcher.is_match(format!("{start}x")));
            }
            Glob::Like(glob, _) => glob.split('*').next().unwrap_or(glob),
        };
        if literal.starts_with(start) || start.starts_with(literal) {
            None
        } else {
            Some(false)
        }
    }

    /// Whether everything is matched in all registries that end so, or nothing in any; None when
    /// some may be.
    fn matches_registries(&self, end: &str) -> Option<bool> {
        let glob = match self {
            Glob::Any => return Some(true),
            // One registry by its name.
            Glob::Exact(_) | Glob::Under(_) => return Some(false),
            Glob::Like(glob, _) => glob,
        };
        let (registry, rest) = glob.split_once('/').unwrap_or((glob, ""));
        let Some((start, literal)) = registry.rsplit_once('*') else {
            return Some(false);
        };
        if start.is_empty() && end.ends_with(literal) && rest == "**" {
            return Some(true);
        }
        if end.ends_with(literal) || literal.ends_with(end) {
            None
        } else {
            Some(false)
        }
    }

    fn key(&self) -> Key<'_> {
        let glob = match self {
            Glob::Any => return Key::Anywhere,
            Glob::Exact(name) => return Key::Name(name),
            Glob::Under(start) => return Key::Start(start),
            Glob::Like(glob, _) => glob,
        };
        // The last segment tells most names apart, then the first ones.
        let last = glob.rsplit('/').next().unwrap_or(glob);
        if !last.contains('*') {
            return Key::End(last);
        }
        let literal = glob.split('*').next().unwrap_or(glob);
        if let Some(slash) = literal.rfind('/') {
            return Key::Start(&literal[..=slash]);
        }
        let registry = glob.split('/').next().unwrap_or(glob);
        let domain = registry.rsplit('*').next().unwrap_or(registry);
        match domain.find('.') {
            Some(dot) => Key::Domain(&domain[dot..]),
            None => Key::Anywhere,
        }
    }
}

#[cfg(test)]
mod tests;
