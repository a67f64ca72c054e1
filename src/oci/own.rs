//! Images that are written with our own name in front: `images.corp.example:5000/quay.io/a/b:1`.
//!
//! Who pulls such an image asks us for `quay.io/a/b:1`, so it is that image which rules are about.
//! What follows our name is read by the same function as the path of a request.

use std::collections::HashMap;

use super::route::locate;
use super::{Image, InvalidName, Registry, RouteError};

/// Our own names in images, and the registry of those that name none behind them.
#[derive(Clone, Debug, Default)]
pub struct OwnNames {
    /// Lower-case host, and the port unless every port is meant.
    names: HashMap<(String, Option<u16>), Registry>,
}

/// The port of images that write none.
const HTTPS: u16 = 443;

impl OwnNames {
    /// `name` is `host:port`, or a host that is meant on every port.
    pub fn add(&mut self, name: &str, default: Registry) {
        let (host, port) = split_port(name);
        self.names
            .insert((host.to_ascii_lowercase(), port), default);
    }

    /// Where we are reached by URL.
    pub fn add_url(&mut self, host: &str, port: u16, default: &Registry) {
        // Nobody writes the port of plain HTTP into an image either.
        let ports = if port == 80 {
            vec![80, HTTPS]
        } else {
            vec![port]
        };
        for port in ports {
            let name = (host.to_ascii_lowercase(), Some(port));
            self.names.insert(name, default.clone());
        }
    }

    /// Each with its port (None: any) and the registry that names without one are of, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<u16>, &Registry)> {
        let names = self.names.iter();
        names.map(|((host, port), default)| (host.as_str(), *port, default))
    }

    /// Reads an image as the registry that is asked for it understands it.
    ///
    /// # Errors
    /// It is no image, or no path that we would answer.
    pub fn image(&self, text: &str) -> Result<Image, RouteError> {
        let Some((default, rest)) = self.split(text) else {
            return Ok(text.parse()?);
        };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(InvalidName::Digest)?)),
            None => (rest, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.parse()?)),
            _ => (rest, None),
        };
        Ok(Image {
            repository: locate(name, None, default)?,
            tag,
            digest,
        })
    }

    /// What stands behind a name of ours.
    fn split<'a>(&self, text: &'a str) -> Option<(&Registry, &'a str)> {
        let (first, rest) = text.split_once('/')?;
        let (host, port) = split_port(first);
        let host = host.to_ascii_lowercase();
        let exact = self.names.get(&(host.clone(), port.or(Some(HTTPS))));
        Some((exact.or_else(|| self.names.get(&(host, None)))?, rest))
    }
}

fn split_port(name: &str) -> (&str, Option<u16>) {
    let (host, port) = match name.rsplit_once(':') {
        // `parse` would take a sign too.
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, port.parse().ok()),
        _ => (name, None),
    };
    if port.is_some() {
        (host, port)
    } else {
        (name, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> OwnNames {
        let mut names = OwnNames::default();
        names.add_url("Images.corp.example", 5000, &Registry::docker_hub());
        names.add_url("plain.corp.example", 80, &Registry::docker_hub());
        names.add("hub.corp.example", "quay.io".parse().unwrap());
        names.add_url("10.1.2.3", 5000, &Registry::docker_hub());
        names.add("other.corp.example:8443", "quay.io".parse().unwrap());
        names
    }

    #[test]
    fn our_own_name_is_no_registry() {
        let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, image) in [
            (
                "images.corp.example:5000/k8s.gcr.io/pause:3.9",
                "k8s.gcr.io/pause:3.9",
            ),
            (
                "IMAGES.corp.example:5000/K8S.gcr.io/pause",
                "k8s.gcr.io/pause",
            ),
            ("images.corp.example:5000/nginx", "docker.io/library/nginx"),
            (
                "images.corp.example:5000/corp/app:1",
                "docker.io/corp/app:1",
            ),
            ("10.1.2.3:5000/quay.io/a/b:1", "quay.io/a/b:1"),
            ("hub.corp.example/a/b:1", "quay.io/a/b:1"),
            ("hub.corp.example:8443/a/b:1", "quay.io/a/b:1"),
            ("plain.corp.example/quay.io/a:1", "quay.io/a:1"),
            ("plain.corp.example:80/quay.io/a:1", "quay.io/a:1"),
            ("other.corp.example:8443/a:1", "quay.io/a:1"),
            // Another port is another registry.
            ("other.corp.example/a:1", "other.corp.example/a:1"),
            ("images.corp.example/a:1", "images.corp.example/a:1"),
            (
                "images.corp.example:5001/a:1",
                "images.corp.example:5001/a:1",
            ),
            ("quay.io/a/b:1", "quay.io/a/b:1"),
            ("nginx:1", "docker.io/library/nginx:1"),
        ] {
            assert_eq!(names().image(text).unwrap().to_string(), image, "{text}");
        }
        let pinned = format!("images.corp.example:5000/quay.io/a:1@{digest}");
        let image = names().image(&pinned).unwrap();
        assert_eq!(image.reference().to_string(), digest);
    }

    #[test]
    fn what_we_would_not_answer_is_no_image() {
        for text in [
            "",
            "Nginx",
            "10.1.2.4:5000/a",
            "images.corp.example:5000/",
            "images.corp.example:5000/A",
            "images.corp.example:5000/a?ns=quay.io",
            "images.corp.example:5000/10.0.0.1/a",
            "images.corp.example:5000/quay.io/v2/a",
            "images.corp.example:+5000/a",
            "images.corp.example:5000/quay.io/a:",
            "images.corp.example:5000/quay.io/a@sha256:1",
        ] {
            assert!(names().image(text).is_err(), "{text:?} was accepted");
        }
    }
}
