//! Which patterns may match a name, without looking at all of them.
//!
//! A pattern lies under the one key that tells most names apart ([`Key`]); a name is looked up
//! under each key that it could have. What comes out may still not match, but nothing that matches
//! is missing: the rules then decide as if they had been read from top to bottom.

use std::collections::HashMap;

use super::pattern::{Key, Pattern};

/// A pattern's place: its rule, and its number there.
pub(super) type Place = (usize, usize);

#[derive(Debug, Default)]
pub(super) struct Index {
    names: HashMap<String, Vec<Place>>,
    starts: HashMap<String, Vec<Place>>,
    /// The most slashes of any key in `starts`.
    deepest: usize,
    ends: HashMap<String, Vec<Place>>,
    domains: HashMap<String, Vec<Place>>,
    anywhere: Vec<Place>,
}

// === impl Index ===

impl Index {
    /// Of the patterns of each rule, in order.
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a [Pattern]>) -> Self {
        let mut index = Index::default();
        for (rule, patterns) in rules.enumerate() {
            for (number, pattern) in patterns.iter().enumerate() {
                index.add(pattern.key(), (rule, number));
            }
        }
        index
    }

    /// One that hides nothing, to compare with.
    #[cfg(test)]
    pub(super) fn flat<'a>(rules: impl Iterator<Item = &'a [Pattern]>) -> Self {
        let places = rules
            .enumerate()
            .flat_map(|(rule, patterns)| (0..patterns.len()).map(move |number| (rule, number)));
        Index {
            anywhere: places.collect(),
            ..Index::default()
        }
    }

    fn add(&mut self, key: Key<'_>, place: Place) {
        let (map, key) = match key {
            Key::Name(name) => (&mut self.names, name),
            Key::Start(start) => {
                self.deepest = self.deepest.max(start.matches('/').count());
                (&mut self.starts, start)
            }
            Key::End(end) => (&mut self.ends, end),
            Key::Domain(domain) => (&mut self.domains, domain),
            Key::Anywhere => return self.anywhere.push(place),
        };
        map.entry(key.to_owned()).or_default().push(place);
    }

    /// The places of all patterns that may match `name`, in order.
    pub(super) fn find(&self, name: &str) -> Vec<Place> {
        let mut places = self.anywhere.clone();
        let mut add = |map: &HashMap<String, Vec<Place>>, key: &str| {
            places.extend(map.get(key).into_iter().flatten());
        };
        if !self.names.is_empty() {
            add(&self.names, name);
        }
        for (slash, _) in name.match_indices('/').take(self.deepest) {
            add(&self.starts, &name[..=slash]);
        }
        if !self.ends.is_empty() {
            add(&self.ends, name.rsplit('/').next().unwrap_or(name));
        }
        if !self.domains.is_empty() {
            let registry = name.split('/').next().unwrap_or(name);
            for (dot, _) in registry.match_indices('.') {
                add(&self.domains, &registry[dot..]);
            }
        }
        places.sort_unstable();
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(patterns: &[&str]) -> Index {
        let patterns: Vec<_> = patterns
            .iter()
            .map(|p| Pattern::parse(p).unwrap())
            .collect();
        Index::new(patterns.chunks(1))
    }

    #[test]
    fn a_name_finds_what_may_match_it_and_little_else() {
        let patterns = [
            "**",
            "quay.io/a/b",
            "quay.io/a/**",
            "quay.io/a/x-*/**",
            "**/b",
            "quay.io/**/b:1",
            "*.io/**",
            "*/*",
            "*.azurecr.io/**",
            "quay.io/a/b/c/**",
            "ghcr.io/**",
            "quay.io/**/c",
            "*y.io/**",
            "quay.io/b",
        ];
        let index = index(&patterns);
        let found: Vec<_> = index
            .find("quay.io/a/b")
            .into_iter()
            .map(|(rule, _)| patterns[rule])
            .collect();
        assert_eq!(
            found,
            [
                "**",
                "quay.io/a/b",
                "quay.io/a/**",
                "quay.io/a/x-*/**",
                "**/b",
                "quay.io/**/b:1",
                "*.io/**",
                "*/*",
                "*y.io/**"
            ]
        );
    }

    #[test]
    fn one_name_does_not_pay_for_the_others() {
        let patterns: Vec<_> = (0..1000)
            .flat_map(|n| {
                [
                    format!("r{n}.example/**"),
                    format!("quay.io/team-{n}/*-app/**"),
                    format!("docker.io/library/x{n}"),
                    format!("*.zone{n}.example/**"),
                    format!("**/tool-{n}"),
                ]
            })
            .collect();
        let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
        let index = index(&patterns);
        for name in [
            "r7.example/tool-8",
            "quay.io/team-9/my-app/x",
            "docker.io/library/x5",
            "a.zone6.example/a",
        ] {
            assert!((1..=2).contains(&index.find(name).len()), "{name}");
        }
    }
}
