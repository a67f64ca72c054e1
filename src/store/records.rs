//! What replicas tell each other, as small JSON objects, and how two states of one become one.
//!
//! ```json
//! _links/<hex>      {"media_type": "application/vnd.oci.image.manifest.v1+json", "proved": 1760000000}
//! _led/<hex>        {"parents": ["1.27", "sha256:.."]}
//! _tags/<tag>.json  the same as on disk
//! ```

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use super::files::unix_now;
use super::object::{Name, Shared, SharedError};
use super::{Link, TagRecord};
use crate::oci::{MediaType, Reference};
use crate::telemetry::metrics::PublishResult;

/// Parents that one object names: a base layer has one for every image of its repository that
/// stands on it. Those that come later are left out; an earlier one that policy allows is enough.
const MOST_PARENTS: usize = 4096;

/// A small object that several replicas write.
pub(super) trait Record: Clone + PartialEq + Serialize + DeserializeOwned {
    /// What we and other replicas know together.
    fn join(&self, theirs: Self) -> Self;
}

/// `_links/<hex>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LinkRecord {
    media_type: Option<String>,
    /// Unix seconds.
    proved: i64,
}

/// `_led/<hex>`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedRecord {
    #[serde(serialize_with = "texts", deserialize_with = "references")]
    pub(super) parents: BTreeSet<Reference>,
}

/// Brings `ours` there, so that nothing is lost that another replica brings at the same time.
/// `new`: we know of nobody who has written it yet. Gives what is there then.
pub(super) async fn publish<R: Record>(
    shared: &Shared,
    name: Name<'_>,
    ours: &R,
    new: bool,
) -> Result<(R, PublishResult), SharedError> {
    if new && shared.create(name, encode(ours)).await?.is_some() {
        return Ok((ours.clone(), PublishResult::Done));
    }
    let (mut there, mut result) = (ours.clone(), PublishResult::Done);
    let change = |before: Option<&Bytes>| {
        // What cannot be read is of no use to anybody.
        let before = before.and_then(|bytes| decode::<R>(bytes));
        there = match before.clone() {
            Some(theirs) => ours.join(theirs),
            None => ours.clone(),
        };
        result = if before.as_ref() == Some(&there) {
            PublishResult::Present
        } else {
            PublishResult::Done
        };
        matches!(result, PublishResult::Done).then(|| encode(&there))
    };
    shared.update(name, change).await?;
    Ok((there, result))
}

/// None when there is none, or none that makes sense.
pub(super) async fn read<R: Record>(
    shared: &Shared,
    name: Name<'_>,
) -> Result<Option<R>, SharedError> {
    let document = shared.get(name).await?;
    Ok(document.and_then(|document| decode(&document.bytes)))
}

fn encode<R: Record>(record: &R) -> Bytes {
    let json = serde_json::to_vec(record);
    json.expect("plain data always has a JSON form").into()
}

fn decode<R: Record>(bytes: &Bytes) -> Option<R> {
    let decoded = serde_json::from_slice(bytes);
    decoded
        .inspect_err(|error| tracing::warn!(%error, "damaged object in the shared store"))
        .ok()
}

// === impl LinkRecord ===

impl From<Link> for LinkRecord {
    fn from(link: Link) -> Self {
        LinkRecord {
            media_type: link.media_type.map(|media_type| media_type.as_str().into()),
            proved: link.proved,
        }
    }
}

impl From<LinkRecord> for Link {
    fn from(record: LinkRecord) -> Self {
        Link {
            media_type: record.media_type.as_deref().and_then(MediaType::parse),
            proved: record.proved,
        }
    }
}

impl Record for LinkRecord {
    fn join(&self, theirs: Self) -> Self {
        LinkRecord {
            media_type: self.media_type.clone().or(theirs.media_type),
            proved: self.proved.max(theirs.proved.min(unix_now())),
        }
    }
}

// === impl LedRecord ===

impl Record for LedRecord {
    fn join(&self, theirs: Self) -> Self {
        let mut parents = theirs.parents;
        for parent in &self.parents {
            if parents.len() < MOST_PARENTS {
                parents.insert(parent.clone());
            }
        }
        LedRecord { parents }
    }
}

fn texts<S: serde::Serializer>(
    parents: &BTreeSet<Reference>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(parents.iter().map(ToString::to_string))
}

fn references<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<Reference>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.len() > 2 * MOST_PARENTS {
        return Err(D::Error::custom("too many parents"));
    }
    let parents = texts.iter().map(|text| text.parse());
    parents.collect::<Result<_, _>>().map_err(D::Error::custom)
}

// === impl TagRecord ===

impl Record for TagRecord {
    fn join(&self, theirs: Self) -> Self {
        let theirs = theirs.believed_beside(self, unix_now());
        self.merge(&theirs).bounded()
    }
}
