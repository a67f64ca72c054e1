//! Across an air gap: bundles are written where there is a network and read where there is none.
//!
//! A *bundle* is one tar that is an OCI image layout and says what is in it ([`bundle`]). It may be
//! signed ([`sign`]), compressed and split; the last two are the command's business, this module
//! only knows the tar. The same images make the same bytes.
//!
//! *Export* has two steps, so that a private key never leaves the command: [`plan`] makes images
//! whole and says what they are made of; the command leaves out what the far side has, signs, and
//! writes the tar by [`export`], which hashes nothing again.
//!
//! *Import* reads the tar once, as it comes, and never unpacks it: [`archive`] lets through nothing
//! but regular files with names that an image layout has, each blob is hashed before it has a name
//! in the store, and [`import`] looks at the whole ([`walk`]) before anything becomes visible, all
//! of it together ([`crate::store::imports`]). Tars of other tools come in by [`foreign`].
//!
//! A *receipt* ([`bundle::Receipt`]) is what the far side holds; an export that has one leaves that
//! out. What such a delta lacks is looked for in the store that it is imported into, by digest, so
//! no history has to agree on both sides.

pub mod archive;
pub mod bundle;
pub mod export;
mod foreign;
pub mod import;
pub mod plan;
pub mod sign;
mod walk;

use crate::cache::CacheError;
use crate::cache::closure::ClosureError;
use crate::oci::Digest;
use crate::store::StoreError;
use crate::store::keep::PinError;

use archive::ArchiveError;

/// Missing digests that an error names.
const MOST_NAMED: usize = 20;

/// Why there is no bundle, or none was taken in.
#[derive(Debug, thiserror::Error)]
pub enum AirgapError {
    #[error("{what}: {error}")]
    Cache { what: String, error: CacheError },
    #[error(transparent)]
    Incomplete(#[from] ClosureError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("nothing is pinned here: name images, or `warm` or `cache pin` them first")]
    Nothing,
    /// Evicted since it was planned.
    #[error("{0} is no longer here: repeat the export")]
    Gone(Digest),
    #[error("refused: {0}")]
    Archive(#[from] ArchiveError),
    #[error("refused: {0}")]
    Bundle(String),
    #[error("not trusted: {0}; nothing was taken from it")]
    Untrusted(String),
    #[error("{}", missing(.digests, .base.as_ref()))]
    Missing {
        digests: Vec<Digest>,
        /// The receipt that it was made against.
        base: Option<Digest>,
    },
    #[error("another import is running: wait for it")]
    Busy,
}

fn missing(digests: &[Digest], base: Option<&Digest>) -> String {
    let named = digests.iter().take(MOST_NAMED).map(ToString::to_string);
    let mut named: Vec<String> = named.collect();
    if digests.len() > MOST_NAMED {
        named.push(format!("and {} more", digests.len() - MOST_NAMED));
    }
    let (count, named) = (digests.len(), named.join(", "));
    match base {
        Some(base) => format!(
            "the bundle is a delta on the receipt {base}, and {count} of the blobs that it leaves \
             out are not here: {named}; import what that receipt was for, or export without --since"
        ),
        None => format!(
            "{count} blobs are neither in the archive nor here: {named}; make the archive again"
        ),
    }
}
