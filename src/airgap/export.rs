//! Writes a bundle: bytes that are the same for the same images.
//!
//! The process that has the store looks whether everything is here and holds it ([`Held`]); the
//! command that asked for the export reads the files itself ([`write()`]), so that no byte of them
//! passes through a socket. Blobs are copied as they lie there: they were hashed when they came, and
//! one that is in doubt after an unclean end is hashed before it is held.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write};

use tar::{EntryType, Header};

use super::AirgapError;
use super::bundle::{Bundle, blob_path};
use super::plan::EXPORTING;
use crate::oci::Digest;
use crate::store::{Hold, Store};

/// Bytes copied at once: large enough to make system calls cheap, small enough to stay in the
/// processor's cache between reading and writing.
const CHUNK: usize = 256 << 10;
const BLOCK: usize = 512;
/// Two empty blocks.
const END: &[u8] = &[0; 1024];

/// Blobs that are here, right, and stay while this lives.
#[derive(Debug)]
pub struct Held {
    _holds: Vec<Hold>,
}

/// What the tar looks like.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// The text of `bundle.sig`.
    pub signature: Option<String>,
    /// An image layout and nothing else: what container runtimes take.
    pub plain: bool,
}

// === impl Held ===

impl Held {
    /// Holds `blobs`, each of which has to be here with its size in bytes.
    ///
    /// # Errors
    /// [`AirgapError::Gone`] above all.
    pub async fn new(store: &Store, blobs: &BTreeMap<Digest, u64>) -> Result<Self, AirgapError> {
        let hold = |digest| store.disk.hold(digest, EXPORTING);
        let holds = blobs.keys().map(hold).collect();
        for (digest, size) in blobs {
            let blob = store.disk.open_blob(digest).await?;
            if blob.is_none_or(|blob| blob.len() != *size) {
                return Err(AirgapError::Gone(*digest));
            }
        }
        Ok(Held { _holds: holds })
    }
}

/// Writes the tar of `bundle`, whose blobs somebody holds. `open` gives a blob's file, `wrote`
/// hears how many bytes
/// of blobs came with each step, and may end it. Blocks.
///
/// # Errors
/// Also when a blob is of another size than the bundle says.
pub fn write(
    bundle: &Bundle,
    form: Form,
    open: impl Fn(&Digest) -> io::Result<File>,
    to: &mut impl Write,
    mut wrote: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    let head = bundle.head().map_err(io::Error::other)?;
    for (name, bytes) in head.files(form.signature, form.plain) {
        to.write_all(&header(name, bytes.len() as u64)?)?;
        to.write_all(&bytes)?;
        pad(to, bytes.len() as u64)?;
    }
    let mut chunk = vec![0; CHUNK];
    for (digest, size) in bundle.blobs() {
        let mut blob = open(&digest)?;
        if blob.metadata()?.len() != size {
            return Err(io::Error::other(AirgapError::Gone(digest)));
        }
        to.write_all(&header(&blob_path(&digest), size)?)?;
        let mut left = size;
        while left > 0 {
            let length = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            blob.read_exact(&mut chunk[..length])?;
            to.write_all(&chunk[..length])?;
            left -= length as u64;
            wrote(length as u64)?;
        }
        pad(to, size)?;
    }
    to.write_all(END)
}

/// No time, no owner: the same for the same content.
fn header(name: &str, size: u64) -> io::Result<[u8; BLOCK]> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// To whole blocks, behind `size` bytes of content.
fn pad(to: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    // Less than a block.
    to.write_all(&[0; BLOCK][..usize::try_from(padding).unwrap_or_default()])
}
