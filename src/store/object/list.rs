//! Lists of what is there.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{ObjectMeta, UpdateVersion};

use super::keys::digest_of;
use super::{Document, HEADER, Shared, SharedError, Tree, Version};
use crate::oci::Digest;

/// An object in a listing.
#[derive(Clone, Debug)]
pub struct Listed {
    path: Path,
    /// In bytes.
    pub size: u64,
    /// Unix seconds by the store's clock.
    pub modified: i64,
    pub version: Version,
}

// === impl Shared: lists ===

impl Shared {
    /// Everything below one tree, in no order, as a stream: there may be millions. Ends with the
    /// first error.
    pub fn list(self: &Arc<Self>, tree: Tree) -> BoxStream<'static, Result<Listed, SharedError>> {
        let path = self.keys.tree(tree);
        let objects = self.objects.list(Some(&path));
        let state = Some((Arc::clone(self), objects));
        let next = move |state: Option<(Arc<Self>, BoxStream<'static, _>)>| {
            let what = format!("list {path}");
            async move {
                let (shared, mut objects) = state?;
                let next = shared
                    .ask(|| what.clone(), HEADER, objects.try_next())
                    .await;
                match next.transpose()? {
                    Ok(meta) => Some((Ok(Listed::of(meta)), Some((shared, objects)))),
                    Err(error) => Some((Err(error), None)),
                }
            }
        };
        stream::unfold(state, next).boxed()
    }

    /// Reads something listed; None when it has gone since.
    pub async fn get_listed(&self, listed: &Listed) -> Result<Option<Document>, SharedError> {
        self.get_small(&listed.path, HEADER).await
    }

    /// Takes something listed away.
    pub async fn delete_listed(&self, listed: &Listed) -> Result<(), SharedError> {
        self.remove(&listed.path).await
    }
}

// === impl Listed ===

impl Listed {
    fn of(meta: ObjectMeta) -> Self {
        Listed {
            path: meta.location,
            size: meta.size,
            modified: meta.last_modified.timestamp(),
            version: Version(UpdateVersion {
                e_tag: meta.e_tag.map(quoted),
                version: meta.version,
            }),
        }
    }

    /// The digest that a blob, a link, a led digest or a claim is named after.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        digest_of(&self.path)
    }

    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_ref()
    }

    /// The last part of its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.filename().unwrap_or_default()
    }

    /// The name of the directory that it is in: `_tags`, `_links`, `_led` and so on.
    #[must_use]
    pub fn directory(&self) -> &str {
        self.path.as_ref().rsplit('/').nth(1).unwrap_or_default()
    }
}

/// Azure leaves the quotes away in its lists.
fn quoted(tag: String) -> String {
    if tag.contains('"') {
        tag
    } else {
        format!("\"{tag}\"")
    }
}
