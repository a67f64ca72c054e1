//! What manifests refer to: known of those that come through [`Disk::put`], read later from those
//! that came another way, such as an older version's.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::disk::Disk;
use super::files::{found, lock};
use super::index::LARGEST_MANIFEST;
use crate::oci::{Digest, Manifest, MediaType};

/// Enough to tell an archive from a document.
const FIRST_LOOK: u64 = 64;

/// What the document refers to; nothing, when it is no manifest. Its type is not asked for: what
/// names others the way manifests do may be one, and holding too much does no harm.
pub(super) fn children_of(digest: &Digest, bytes: Bytes) -> Arc<[Digest]> {
    let Some(media_type) = MediaType::parse("application/vnd.oci.image.manifest.v1+json") else {
        return Arc::default();
    };
    let manifest = Manifest::from_store(bytes, media_type, *digest);
    let children = manifest.children().unwrap_or_default();
    let mut seen = HashSet::new();
    let children = children.into_iter().map(|child| child.digest);
    children.filter(|child| seen.insert(*child)).collect()
}

// === impl Disk ===

impl Disk {
    /// Looks into blobs that nobody has looked into, for about as long as `budget`. Blocks.
    pub(super) fn learn(&self, budget: Duration) {
        let start = Instant::now();
        while start.elapsed() < budget {
            let Some(digest) = lock(&self.index).next_unread() else {
                return;
            };
            // What cannot be read now holds nothing as far as we know; who serves it will say so.
            let bytes = self.document(&digest).ok().flatten();
            let children = bytes.map(|bytes| children_of(&digest, bytes));
            lock(&self.index).learn(&digest, children.unwrap_or_default());
        }
    }

    /// The bytes of a blob that looks like a JSON object.
    fn document(&self, digest: &Digest) -> io::Result<Option<Bytes>> {
        let Some(mut file) = found(std::fs::File::open(self.layout.blob(digest)))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.by_ref().take(FIRST_LOOK).read_to_end(&mut bytes)?;
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Ok(None);
        }
        file.take(LARGEST_MANIFEST).read_to_end(&mut bytes)?;
        Ok(Some(bytes.into()))
    }
}
