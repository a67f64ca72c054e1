//! Takes a bundle in: first every blob, verified and held, then a look at the whole, then all of it
//! becomes visible together.
//!
//! Until [`crate::store::Store::import`] has written its record nothing can be pulled of what came,
//! because no repository has a link to it; doing it again finds the blobs that are here already. A
//! bundle that is to be trusted is judged before the first blob, from the files in front of it.
//!
//! Policy is not asked: an import is an operator's act. What is served of it is decided by policy,
//! pull by pull, like everything else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::archive::{Archive, Entry, Name};
use super::bundle::{BUNDLE_FILE, Bundle, INDEX_FILE, LAYOUT_FILE, Receipt};
use super::sign::TrustedKey;
use super::walk::walk;
use super::{AirgapError, foreign};
use crate::cache::closure::Progress;
use crate::oci::{Digest, Hasher};
use crate::store::imports::{BundledImage, IMPORTING, Import, LARGEST_MANIFEST, Part};
use crate::store::{Disk, Hold, Spool, Store, StoreError, Verifier, write_all_at};

/// Blobs up to this size go through memory, where they are hashed and kept in one go.
const SMALL: u64 = 1 << 20;
/// Bytes of a larger one that are read and hashed at once.
const CHUNK: usize = 1 << 20;

/// How a bundle is taken in.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Refuse what is not signed by this key.
    pub trust: Option<TrustedKey>,
    /// The largest blob, in bytes.
    pub largest_blob: u64,
    /// Say what is held here afterwards.
    pub receipt: bool,
}

/// What came in.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The sha256 of bundle.json, or of the index.json of another tool's layout.
    pub id: Digest,
    /// By the trusted key.
    pub verified: bool,
    pub images: Vec<ImportedImage>,
    /// In the archive.
    pub blobs: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Bytes that were not here before.
    pub new_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Receipt>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ImportedImage {
    pub image: String,
    pub digest: Digest,
}

/// Tells how far an import is.
pub type Report = Arc<dyn Fn(Progress) + Send + Sync>;

/// The bytes of an archive as they come.
#[derive(Debug)]
struct Chunks {
    source: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

/// An archive that is being read.
struct Intake {
    store: Arc<Store>,
    runtime: Handle,
    terms: Terms,
    report: Report,
    archive: Archive<Chunks>,
    files: HashMap<Name, Bytes>,
    bundle: Option<Bundle>,
    /// Blobs that bundle.json lists as being in the archive; of other layouts nobody knows.
    listed: Option<BTreeMap<Digest, u64>>,
    judged: bool,
    came: Came,
}

/// The blobs of an archive, all of them here and held.
#[derive(Default)]
struct Came {
    sizes: HashMap<Digest, u64>,
    bytes: u64,
    new_bytes: u64,
    holds: Vec<Hold>,
}

/// Takes in the archive that comes by `source`. It goes on from what an earlier try has left. Not
/// cancel-safe: run it on a task of its own; when the source fails, it ends.
///
/// # Errors
/// With the reason, and nothing of it visible, unless the disk failed at the very end; then the
/// next start finishes it.
pub async fn import(
    store: Arc<Store>,
    source: mpsc::Receiver<io::Result<Bytes>>,
    terms: Terms,
    report: Report,
) -> Result<Imported, AirgapError> {
    let current = Bytes::new();
    let archive = Archive::new(Chunks { source, current }, terms.largest_blob);
    let intake = Intake {
        store: Arc::clone(&store),
        runtime: Handle::current(),
        terms: terms.clone(),
        report,
        archive,
        files: HashMap::new(),
        bundle: None,
        listed: None,
        judged: false,
        came: Came::default(),
    };
    let read = tokio::task::spawn_blocking(move || intake.read());
    let read = read.await.map_err(|error| StoreError::Io {
        what: "read the archive".to_owned(),
        source: error.into(),
    })?;
    let Intake {
        files,
        bundle,
        came,
        ..
    } = read?;
    let (id, images) = if let Some(bundle) = bundle {
        let _holds = hold_omitted(&store, &bundle);
        look_for(&store, &bundle, &came).await?;
        for image in &bundle.images {
            agree(&store, image).await?;
        }
        (files.get(&Name::Bundle), bundle.images)
    } else {
        let index = files.get(&Name::Index);
        (index, foreign_images(&store, index, &came).await?)
    };
    let id = Digest::sha256(id.map_or(&[][..], |text| text));
    let named = images.iter().map(|image| ImportedImage {
        image: image.name().to_string(),
        digest: image.digest,
    });
    let named = named.collect();
    let at = jiff::Timestamp::now().as_second();
    store.import(Import { id, at, images }).await?;
    let (pins, _) = store.disk.pins().all();
    Ok(Imported {
        id,
        verified: terms.trust.is_some(),
        images: named,
        blobs: came.sizes.len(),
        bytes: came.bytes,
        new_bytes: came.new_bytes,
        receipt: terms
            .receipt
            .then(|| Receipt::of(pins.iter().map(AsRef::as_ref))),
    })
}

// === the look at the whole ===

/// What a delta relies on must not go while it is looked for.
fn hold_omitted(store: &Store, bundle: &Bundle) -> Vec<Hold> {
    let omitted = bundle.omitted.iter();
    omitted
        .map(|digest| store.disk.hold(digest, IMPORTING))
        .collect()
}

/// Everything that the images need is here.
async fn look_for(store: &Store, bundle: &Bundle, came: &Came) -> Result<(), AirgapError> {
    let mut missing = Vec::new();
    for part in others(bundle, came) {
        match store.disk.open_blob(&part.digest).await? {
            None => missing.push(part.digest),
            Some(blob) if blob.len() != part.size => {
                let (digest, size) = (part.digest, blob.len());
                return refused(format!("{digest} has {size} bytes, not {}", part.size));
            }
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (digests, base) = (missing, bundle.base);
    Err(AirgapError::Missing { digests, base })
}

/// What the images need and the archive did not have, each once.
fn others<'a>(bundle: &'a Bundle, came: &Came) -> Vec<&'a Part> {
    let mut seen = HashSet::new();
    let parts = bundle.images.iter().flat_map(|image| &image.closure);
    let others = parts.filter(|part| !came.sizes.contains_key(&part.digest));
    others.filter(|part| seen.insert(part.digest)).collect()
}

/// What bundle.json says of an image is what its manifests say.
async fn agree(store: &Store, image: &BundledImage) -> Result<(), AirgapError> {
    let name = image.name();
    let mut manifests = HashMap::new();
    for part in &image.closure {
        let Some(media_type) = &part.media_type else {
            continue;
        };
        let bytes = store.disk.read(&part.digest, LARGEST_MANIFEST).await?;
        let bytes = bytes.ok_or(AirgapError::Gone(part.digest))?;
        let manifest = foreign::parse(bytes, Some(media_type.as_str()), &part.digest)?;
        if part.subject.is_some() && manifest.subject() != part.subject {
            return refused(format!("{} is about something else", part.digest));
        }
        manifests.insert(part.digest, manifest);
    }
    let parts: HashSet<Digest> = image.closure.iter().map(|part| part.digest).collect();
    let mut roots = vec![image.digest];
    roots.extend(image.companions.iter().map(|companion| companion.digest));
    let found = walk(&roots, &manifests, |digest| parts.contains(digest));
    if let Some(missing) = found.missing.first() {
        return refused(format!("{name} needs {missing}, which its closure lacks"));
    }
    let reached: HashSet<Digest> = found.reached.into_iter().collect();
    if let Some(stray) = parts.difference(&reached).next() {
        return refused(format!("nothing in {name} leads to {stray}"));
    }
    Ok(())
}

async fn foreign_images(
    store: &Store,
    index: Option<&Bytes>,
    came: &Came,
) -> Result<Vec<BundledImage>, AirgapError> {
    let Some(index) = index else {
        return refused(
            "it has neither bundle.json nor index.json: it is no OCI image layout; \
             `skopeo copy docker-archive:FILE oci-archive:OTHER:NAME` makes one of what `docker save` wrote",
        );
    };
    foreign::images(store, index, &came.sizes).await
}

fn refused<T>(why: impl Into<String>) -> Result<T, AirgapError> {
    Err(AirgapError::Bundle(why.into()))
}

// === impl Intake ===

impl Intake {
    /// Blocks until the archive has ended.
    fn read(mut self) -> Result<Self, AirgapError> {
        while let Some(Entry { name, size }) = self.archive.advance()? {
            match name {
                Name::Ignored(_) => {}
                Name::Blob(digest) => {
                    self.judge()?;
                    self.blob(&digest, size)?;
                }
                Name::Bundle | Name::Checksums | Name::Signature if self.judged => {
                    return refused("bundle.json, checksums.txt and bundle.sig come before blobs");
                }
                _ => {
                    let bytes = self.archive.read_all()?;
                    self.files.insert(name, bytes.into());
                }
            }
        }
        self.judge()?;
        self.check_sums()?;
        Ok(self)
    }

    /// Before the first blob: whether it is to be trusted, makes sense and would fit.
    fn judge(&mut self) -> Result<(), AirgapError> {
        if std::mem::replace(&mut self.judged, true) {
            return Ok(());
        }
        let file = |name| self.files.get(&name);
        if let Some(key) = &self.terms.trust {
            let untrusted = |why: &str| Err(AirgapError::Untrusted(why.to_owned()));
            let files = file(Name::Bundle).zip(file(Name::Checksums));
            let Some(((bundle, checksums), signature)) = files.zip(file(Name::Signature)) else {
                return untrusted("it is not signed, and --trust wants a signature");
            };
            if !key.verifies(bundle, checksums, signature) {
                return untrusted("its signature is not by the key of --trust, or it was changed");
            }
        }
        if let Some(text) = file(Name::Bundle) {
            let bundle = Bundle::parse(text);
            let bundle =
                bundle.map_err(|error| AirgapError::Bundle(format!("its bundle.json: {error}")))?;
            self.store.check_import(&bundle.images)?;
            self.listed = Some(bundle.blobs());
            self.bundle = Some(bundle);
        }
        Ok(())
    }

    /// The files beside the blobs are those that checksums.txt speaks of.
    fn check_sums(&self) -> Result<(), AirgapError> {
        if self.bundle.is_none() {
            return Ok(());
        }
        let Some(sums) = self.files.get(&Name::Checksums) else {
            return refused("it has no checksums.txt");
        };
        let sums = String::from_utf8_lossy(sums);
        let sums: HashMap<&str, &str> = sums
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name, sum))
            .collect();
        let files = [
            (LAYOUT_FILE, Name::Layout),
            (BUNDLE_FILE, Name::Bundle),
            (INDEX_FILE, Name::Index),
        ];
        for (name, file) in files {
            let found = self
                .files
                .get(&file)
                .map(|bytes| Digest::sha256(bytes).hex());
            if found.is_none() || found.as_deref() != sums.get(name).copied() {
                return refused(format!("{name} is not the file of checksums.txt"));
            }
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest, size: u64) -> Result<(), AirgapError> {
        if let Some(listed) = &self.listed {
            match listed.get(digest) {
                None => return refused(format!("bundle.json does not list {digest}")),
                Some(listed) if *listed != size => {
                    return refused(format!("{digest} has {size} bytes, not {listed}"));
                }
                Some(_) => {}
            }
        } else if self.came.bytes.saturating_add(size) > self.store.disk.max_size() {
            return refused("it is larger than store.max_size");
        }
        let disk = Arc::clone(&self.store.disk);
        self.came.holds.push(disk.hold(digest, IMPORTING));
        let is_here = self.runtime.block_on(disk.open_blob(digest))?;
        let is_here = is_here.is_some_and(|blob| blob.len() == size);
        if size <= SMALL {
            let bytes = self.archive.read_all()?;
            let kept = self.runtime.block_on(disk.put(digest, bytes.into()));
            kept.map_err(|error| wrong_or(error, digest))?;
        } else if is_here {
            self.compare(digest)?;
        } else {
            self.keep(&disk, digest, size)?;
        }
        let came = &mut self.came;
        came.sizes.insert(*digest, size);
        came.bytes += size;
        came.new_bytes += if is_here { 0 } else { size };
        self.tell(0);
        Ok(())
    }

    /// A blob that is here already: the archive's must be the same all the same.
    fn compare(&mut self, digest: &Digest) -> Result<(), AirgapError> {
        let mut hasher = Hasher::new(digest.algorithm());
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.archive.read(&mut chunk)? {
                0 => break,
                length => hasher.update(&chunk[..length]),
            }
        }
        if hasher.finish() == *digest {
            Ok(())
        } else {
            wrong(digest)
        }
    }

    fn keep(&mut self, disk: &Arc<Disk>, digest: &Digest, size: u64) -> Result<(), AirgapError> {
        let spool = self.runtime.block_on(disk.spool_apart(digest))?;
        let mut verifier = Verifier::new(digest);
        let verified = self
            .fill(&spool, &mut verifier, disk, size)
            .map(|()| spool.verify(&verifier));
        let kept = match verified {
            Ok(Some(verified)) => {
                let kept = self.runtime.block_on(disk.commit(verified));
                kept.map_err(AirgapError::from)
            }
            Ok(None) => wrong(digest),
            Err(error) => Err(error),
        };
        if kept.is_err() {
            // What stays is swept by the next start.
            let _ = spool.remove();
        }
        kept
    }

    fn fill(
        &mut self,
        spool: &Spool,
        verifier: &mut Verifier,
        disk: &Arc<Disk>,
        size: u64,
    ) -> Result<(), AirgapError> {
        let failed = |source| StoreError::Io {
            what: "write what is imported".to_owned(),
            source,
        };
        let mut at = 0;
        while at < size {
            let mut chunk = vec![0; CHUNK];
            let length = self.archive.read(&mut chunk)?;
            chunk.truncate(length);
            let chunk = [Bytes::from(chunk)];
            let write = || write_all_at(spool.file(), at, &chunk);
            let written = match write() {
                Err(error)
                    if error.kind() == io::ErrorKind::StorageFull
                        && self.runtime.block_on(disk.make_room(size - at)) =>
                {
                    write()
                }
                written => written,
            };
            at = written.map_err(failed)?;
            verifier.advance(spool, at).map_err(failed)?;
            self.tell(at);
        }
        Ok(())
    }

    /// `more` bytes are here of a blob that is not whole yet.
    fn tell(&self, more: u64) {
        let came = &self.came;
        let (blobs, bytes) = (came.sizes.len() as u64, came.bytes + more);
        let all = self.listed.as_ref().map_or((blobs, bytes), |listed| {
            (listed.len() as u64, listed.values().sum())
        });
        (self.report)(Progress {
            blobs: (blobs, all.0),
            bytes: (bytes, all.1),
        });
    }
}

fn wrong<T>(digest: &Digest) -> Result<T, AirgapError> {
    refused(format!("the bytes of {digest} do not hash to it"))
}

fn wrong_or(error: StoreError, digest: &Digest) -> AirgapError {
    match error {
        StoreError::WrongBytes(_) => {
            AirgapError::Bundle(format!("the bytes of {digest} do not hash to it"))
        }
        error => error.into(),
    }
}

// === impl Chunks ===

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.source.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
