//! What a client can take, and what an upstream is asked for because of that.

use crate::oci::MediaType;

/// What every upstream is asked for: the client's own types come on top.
const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What a client can take: all its `Accept` lines.
pub(super) struct Accept<'a>(&'a [&'a str]);

// === impl Accept ===

impl<'a> Accept<'a> {
    pub(super) fn new(lines: &'a [&'a str]) -> Self {
        Accept(lines)
    }

    /// Of a client that says nothing.
    pub(super) fn everything() -> Self {
        Accept(&[])
    }

    /// What its lines name, without parameters.
    fn ranges(&self) -> impl Iterator<Item = &'a str> {
        let ranges = self.0.iter().flat_map(|line| line.split(','));
        let types = ranges
            .filter_map(|range| range.split(';').next())
            .map(str::trim);
        types.filter(|media_type| !media_type.is_empty())
    }

    pub(super) fn takes(&self, media_type: &MediaType) -> bool {
        self.ranges().next().is_none()
            || self.ranges().any(|range| {
                matches!(range, "*/*" | "application/*")
                    || range.eq_ignore_ascii_case(media_type.as_str())
            })
    }

    /// The types it names, without wild cards, in order: a key for those who ask alike. Bounded,
    /// and only proper types, because they become a header of our own request.
    pub(super) fn types(&self) -> Vec<String> {
        let named = self.ranges().filter(|range| !range.contains('*'));
        let types = named.filter_map(MediaType::parse);
        let mut types: Vec<String> = types
            .map(|parsed| parsed.as_str().to_owned())
            .take(16)
            .collect();
        types.sort_unstable();
        types.dedup();
        types
    }
}

// === helpers ===

/// What an upstream is asked for where a client named `extra`.
pub(super) fn with_all_types(extra: &[String]) -> Vec<String> {
    let mut types: Vec<String> = MANIFEST_TYPES
        .iter()
        .map(|&known| known.to_owned())
        .collect();
    types.extend(
        extra
            .iter()
            .filter(|extra| !MANIFEST_TYPES.contains(&extra.as_str()))
            .cloned(),
    );
    types
}
