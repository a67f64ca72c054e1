//! An image as people and pod manifests write it: `nginx`, `registry.k8s.io/pause:3.9`,
//! `docker.io/library/nginx:1.27@sha256:...`.
//!
//! Source: the reference grammar of the container runtimes. A first part with a dot or a colon,
//! or `localhost`, is the registry; without one it is Docker Hub.

use std::fmt;
use std::str::FromStr;

use super::name::split_registry;
use super::{Digest, InvalidName, Reference, Registry, Repository, Tag};

/// A repository with what was said about the version: tag, digest, both or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    pub repository: Repository,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
}

impl Image {
    /// What is pulled: a digest makes the tag a mere remark, and nothing at all means `latest`.
    #[must_use]
    pub fn reference(&self) -> Reference {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Reference::Digest(digest),
            (None, Some(tag)) => Reference::Tag(tag.clone()),
            (None, None) => Reference::Tag(Tag::latest()),
        }
    }
}

impl FromStr for Image {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon in front of a slash belongs to a port.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse()?)),
            _ => (text, None),
        };
        let (registry, path) = split_registry(name);
        let registry = registry.map_or_else(|| Ok(Registry::docker_hub()), str::parse)?;
        Ok(Image {
            repository: Repository::new(registry, path.parse()?)?,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repository.fmt(f)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn every_way_to_write_an_image() {
        for (text, canonical, reference) in [
            ("nginx", "docker.io/library/nginx", "latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "1.27"),
            ("corp/app", "docker.io/corp/app", "latest"),
            ("docker.io/nginx", "docker.io/library/nginx", "latest"),
            (
                "INDEX.docker.io:443/nginx",
                "docker.io/library/nginx",
                "latest",
            ),
            (
                "registry.k8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9",
                "3.9",
            ),
            ("localhost/x", "localhost/x", "latest"),
            ("localhost:5001/x:y", "localhost:5001/x:y", "y"),
            ("reg.example:5000/a/b", "reg.example:5000/a/b", "latest"),
            // A single part is a repository, dots or not.
            ("my.image:1", "docker.io/library/my.image:1", "1"),
        ] {
            let image: Image = text.parse().unwrap();
            assert_eq!(image.to_string(), canonical, "{text}");
            assert_eq!(image.reference().to_string(), reference, "{text}");
            assert_eq!(canonical.parse::<Image>().unwrap(), image, "{text}");
        }
    }

    #[test]
    fn a_digest_outranks_the_tag() {
        let image: Image = format!("quay.io/a/b:v1@{DIGEST}").parse().unwrap();
        assert_eq!(image.tag.as_ref().unwrap().as_str(), "v1");
        assert_eq!(image.reference().to_string(), DIGEST);
    }

    #[test]
    fn what_is_no_image() {
        for text in [
            "",
            ":",
            "@",
            "nginx:",
            "nginx@",
            "Nginx",
            "nginx@sha256:12",
            "quay.io/",
            "a b",
            "10.0.0.1/x",
        ] {
            assert!(text.parse::<Image>().is_err(), "{text:?} was accepted");
        }
    }
}
