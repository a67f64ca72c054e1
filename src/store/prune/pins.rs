//! The pins of this replica, where every prune sees them: `v1/pins/<sha256 of name>.json`.
//!
//! They are joined, never overwritten: replicas may have pinned the same tag when it pointed
//! elsewhere. An unpin takes the object away; a replica that still has the pin writes it again
//! within the hour.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::oci::Digest;
use crate::policy::Pattern;
use crate::store::object::{Name, Shared, SharedError};
use crate::store::{Store, StoreError};

/// Why a pin is not known to the fleet.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(transparent)]
    Local(#[from] StoreError),
}

/// `v1/pins/` of one image or pattern, before it is written.
struct Pin {
    name: String,
    /// Everything but the closure.
    about: Map<String, Value>,
    closure: Vec<Value>,
}

impl Store {
    /// Makes the pins of this replica known to the fleet. Does nothing without a shared store.
    ///
    /// # Errors
    /// They are kept here all the same, and are published within the hour.
    pub async fn publish_pins(&self) -> Result<(), PublishError> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        for pin in self.all_pins().await? {
            pin.publish(shared).await?;
        }
        Ok(())
    }

    /// Takes a pin away from the fleet.
    ///
    /// # Errors
    /// It goes on keeping what it names in the shared store, which harms nobody.
    pub async fn unpublish_pin(&self, name: &str) -> Result<(), SharedError> {
        match &self.shared {
            Some(shared) => shared.delete(Name::Pin(&hash(name))).await,
            None => Ok(()),
        }
    }

    async fn all_pins(&self) -> Result<Vec<Pin>, StoreError> {
        let (images, patterns) = self.disk.pins().all();
        let images = images.iter().map(|pin| Pin {
            name: pin.image.clone(),
            about: about(pin),
            closure: pin.closure.iter().map(|blob| json!(blob)).collect(),
        });
        let mut pins: Vec<Pin> = images.collect();
        if patterns.is_empty() {
            return Ok(pins);
        }
        let catalog = Arc::new(self.catalog().await?);
        for pin in &patterns {
            // It was one when it was pinned.
            let Ok(pattern) = Pattern::parse(&pin.pattern) else {
                continue;
            };
            let matched = catalog.matched(&pattern);
            pins.push(Pin {
                name: pin.pattern.clone(),
                about: about(pin),
                closure: matched
                    .iter()
                    .map(|blob| json!({ "digest": blob.digest, "size": blob.size }))
                    .collect(),
            });
        }
        Ok(pins)
    }
}

impl Pin {
    async fn publish(&self, shared: &Shared) -> Result<(), SharedError> {
        let join = |before: Option<&Bytes>| {
            let before = before.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
            let mut closure = self.closure.clone();
            let theirs = before.as_ref().and_then(|pin| pin["closure"].as_array());
            for blob in theirs.into_iter().flatten() {
                if !closure.iter().any(|ours| ours["digest"] == blob["digest"]) {
                    closure.push(blob.clone());
                }
            }
            let mut pin = self.about.clone();
            pin.insert("closure".to_owned(), Value::Array(closure));
            let pin = Value::Object(pin);
            (before.as_ref() != Some(&pin)).then(|| pin.to_string().into())
        };
        shared.update(Name::Pin(&hash(&self.name)), join).await?;
        Ok(())
    }
}

fn about(pin: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(pin) {
        Ok(Value::Object(about)) => about,
        _ => Map::new(),
    }
}

fn hash(name: &str) -> String {
    Digest::sha256(name.as_bytes()).hex()
}
