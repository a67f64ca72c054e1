//! Compose files: `services.*.image`. A service that is only built pulls nothing by that.

use super::variables::expand;
use crate::cluster::mention::{Mention, Place, Written};
use crate::cluster::node::{Node, Value};

pub(super) fn is_one(document: &Node) -> bool {
    document
        .all("services")
        .any(|services| matches!(services.value, Value::Map(_)))
}

pub(super) fn mentions(document: &Node) -> Vec<Mention> {
    let mut found = Vec::new();
    for (service, settings) in document.all("services").flat_map(Node::entries) {
        for image in settings.all("image") {
            let Some(written) = written(image) else {
                continue;
            };
            found.push(Mention {
                written,
                place: Place {
                    line: Some(image.line),
                    path: format!("services.{service}.image"),
                    container: Some(service.clone()),
                    ..Place::default()
                },
            });
        }
    }
    found
}

fn written(image: &Node) -> Option<Written> {
    let text = match &image.value {
        Value::Null => return None,
        Value::Text(text) => text,
        _ => {
            let found = image.what();
            return Some(Written::Odd {
                found,
                wanted: "an image",
            });
        }
    };
    match expand(text, &|_| None) {
        Ok(image) if image.is_empty() => None,
        Ok(image) => Some(Written::Image(image)),
        Err(variable) => Some(Written::Open {
            text: text.clone(),
            variable,
        }),
    }
}
