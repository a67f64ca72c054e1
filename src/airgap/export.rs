//! Writes a bundle: a stream of bytes that is the same for the same images.
//!
//! Blobs are copied as they lie in the store, which has hashed them when they came; one that is in
//! doubt after an unclean end is hashed by [`crate::store::Disk::open_blob`] first. All of them are
//! held until the stream ends.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use tar::{EntryType, Header};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::AirgapError;
use super::bundle::{Bundle, blob_path};
use super::plan::EXPORTING;
use crate::oci::Digest;
use crate::store::{Disk, Hold, Store};

/// Bytes read at once: large enough to make system calls cheap, small enough to stay in the
/// processor's cache until they are written.
const CHUNK: u64 = 256 << 10;
/// Chunks that may wait for a slow reader.
const WAITING: usize = 8;
const BLOCK: u64 = 512;
/// Two empty blocks.
const END: &[u8] = &[0; 1024];

/// A bundle that is being written.
#[derive(Debug)]
pub struct Export {
    disk: Arc<Disk>,
    files: Vec<(&'static str, Bytes)>,
    blobs: Vec<(Digest, u64)>,
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

// === impl Export ===

impl Export {
    /// Looks whether everything is here, and holds it from now on.
    ///
    /// # Errors
    /// [`AirgapError::Gone`] above all.
    pub async fn new(store: &Store, bundle: &Bundle, form: Form) -> Result<Self, AirgapError> {
        let head = bundle.head();
        let head = head.map_err(|error| AirgapError::Bundle(error.to_string()))?;
        let blobs: Vec<(Digest, u64)> = bundle.blobs().into_iter().collect();
        let hold = |(digest, _): &(Digest, u64)| store.disk.hold(digest, EXPORTING);
        let holds = blobs.iter().map(hold).collect();
        for (digest, size) in &blobs {
            let blob = store.disk.open_blob(digest).await?;
            if blob.is_none_or(|blob| blob.len() != *size) {
                return Err(AirgapError::Gone(*digest));
            }
        }
        Ok(Export {
            disk: Arc::clone(&store.disk),
            files: head.files(form.signature, form.plain),
            blobs,
            _holds: holds,
        })
    }

    /// Starts to write. The receiver gets an error where something went wrong half-way, and the
    /// work ends when it is dropped.
    #[must_use]
    pub fn start(self) -> mpsc::Receiver<io::Result<Bytes>> {
        let (chunks, receiver) = mpsc::channel(WAITING);
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = self.write(&runtime, &chunks)
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                tracing::warn!(%error, "an export ended early");
                let _ = chunks.blocking_send(Err(error));
            }
        });
        receiver
    }

    fn write(&self, runtime: &Handle, chunks: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
        let send = |chunk: Bytes| {
            let sent = chunks.blocking_send(Ok(chunk));
            // Nobody reads any more.
            sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
        };
        for (name, bytes) in &self.files {
            let mut entry = header(name, bytes.len() as u64)?;
            entry.extend_from_slice(bytes);
            pad(&mut entry, bytes.len() as u64);
            send(entry.into())?;
        }
        for (digest, size) in &self.blobs {
            let blob = runtime.block_on(self.disk.open_blob(digest));
            let blob = blob.map_err(io::Error::other)?;
            let blob = blob.filter(|blob| blob.len() == *size);
            let blob = blob.ok_or_else(|| io::Error::other(AirgapError::Gone(*digest)))?;
            send(header(&blob_path(digest), *size)?.into())?;
            let mut at = 0;
            while at < *size {
                let length = CHUNK.min(*size - at);
                let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
                blob.file().read_exact_at(&mut chunk, at)?;
                at += length;
                send(chunk.into())?;
            }
            let mut padding = Vec::new();
            pad(&mut padding, *size);
            if !padding.is_empty() {
                send(padding.into())?;
            }
        }
        send(Bytes::from_static(END))
    }
}

/// No time, no owner: the same for the same content.
fn header(name: &str, size: u64) -> io::Result<Vec<u8>> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Ok(header.as_bytes().to_vec())
}

/// To whole blocks, behind `size` bytes of content.
fn pad(bytes: &mut Vec<u8>, size: u64) {
    let padding = size.next_multiple_of(BLOCK) - size;
    bytes.resize(
        bytes.len() + usize::try_from(padding).unwrap_or_default(),
        0,
    );
}
