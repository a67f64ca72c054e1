//! A download in progress: a data file that fetchers write and readers follow, a journal of what
//! the data file holds, and the hash that turns both into a [`Verified`] blob.
//!
//! The journal is written after the data it speaks of, every [`JOURNAL_BYTES`] or
//! [`JOURNAL_INTERVAL`], so that what it lists after `kill -9` is there. After a power loss it may
//! list bytes that never reached the disk; that is why nothing leaves a spool but by its hash.
//!
//! Everything here blocks; callers run it on the blocking pool.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::oci::{Digest, Hasher};

/// Data that may be written before the journal must follow.
const JOURNAL_BYTES: u64 = 1024 * 1024;
/// Time that may pass between two entries of a spool that grows slowly.
const JOURNAL_INTERVAL: Duration = Duration::from_millis(100);
/// A journal of the largest blob in the smallest steps stays far below this.
const JOURNAL_LIMIT: u64 = 64 * 1024 * 1024;
/// How much is read at once to be hashed: large enough to make system calls cheap, small enough
/// to stay in the processor's cache.
const HASH_CHUNK: usize = 256 * 1024;

/// The files of one unfinished download. Shared by its fetchers; all methods block.
#[derive(Debug)]
pub struct Spool {
    digest: Digest,
    file: Arc<File>,
    data: PathBuf,
    map: PathBuf,
    journal: Mutex<Journal>,
}

/// What an earlier process left in a spool.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Size of the whole blob, if the upstream had told it.
    pub total: Option<u64>,
    /// Half-open ranges of the data file that had been written.
    pub held: Vec<Range<u64>>,
}

/// A blob whose bytes, as they lie in its spool, hash to its digest. Only [`Spool::verify`] makes
/// one, and only [`super::Disk::commit`] takes one.
#[derive(Debug)]
pub struct Verified {
    digest: Digest,
    size: u64,
    file: Arc<File>,
    data: PathBuf,
    map: PathBuf,
}

/// The running hash of a blob's contiguous prefix.
#[derive(Debug)]
pub struct Verifier {
    hasher: Hasher,
    hashed: u64,
    /// Some bytes were not read from the spool but from elsewhere: right perhaps, but not kept.
    foreign: bool,
}

#[derive(Debug)]
struct Journal {
    file: Option<File>,
    pending: String,
    pending_bytes: u64,
    written: Instant,
}

// === impl Spool ===

impl Spool {
    /// Makes the spool of `digest` in `dir`, or reopens the one that is there with what its
    /// journal says it holds.
    pub fn open(dir: &Path, digest: &Digest) -> io::Result<(Self, Restored)> {
        let stem = format!("{}-{}", digest.algorithm(), digest.hex());
        let data = dir.join(format!("{stem}.data"));
        let map = dir.join(format!("{stem}.map"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&data)?;
        let restored = match read_journal(&map) {
            Ok(text) => Restored::parse(&text, file.metadata()?.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Restored::default(),
            Err(error) => return Err(error),
        };
        Ok((Spool::of(digest, file, data, map), restored))
    }

    /// A new file for bytes that no fill may touch: they come from an operator. Without a journal.
    pub(super) fn apart(data: PathBuf, digest: &Digest) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&data)?;
        let map = data.with_extension("map");
        Ok(Spool::of(digest, file, data, map))
    }

    fn of(digest: &Digest, file: File, data: PathBuf, map: PathBuf) -> Self {
        let journal = Journal {
            file: None,
            pending: String::new(),
            pending_bytes: 0,
            written: Instant::now(),
        };
        Spool {
            digest: *digest,
            file: Arc::new(file),
            data,
            map,
            journal: Mutex::new(journal),
        }
    }

    /// The data file. It stays readable through this handle after a rename or removal.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Writes `chunks` one after the other at `offset`; the journal follows when it is due.
    ///
    /// On an error nothing of this call counts as written.
    pub fn write(&self, offset: u64, chunks: &[Bytes]) -> io::Result<()> {
        let end = write_all_at(&self.file, offset, chunks)?;
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.note(&format_args!("held {offset} {end}"));
        journal.pending_bytes += end - offset;
        if journal.pending_bytes >= JOURNAL_BYTES || journal.written.elapsed() >= JOURNAL_INTERVAL {
            journal.flush(&self.map)?;
        }
        Ok(())
    }

    /// Notes the size of the whole blob, so that a restart knows it.
    pub fn note_total(&self, total: u64) {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.note(&format_args!("total {total}"));
    }

    /// Brings the journal up to date: before the process ends, or when a fill rests.
    pub fn flush(&self) -> io::Result<()> {
        self.journal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .flush(&self.map)
    }

    /// Forgets what the journal says. The data stays where it is and may be written again.
    pub fn forget(&self) -> io::Result<()> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.pending.clear();
        journal.pending_bytes = 0;
        journal.file = None;
        match std::fs::remove_file(&self.map) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes the spool's names away. Who holds the file can still read it.
    pub fn remove(&self) -> io::Result<()> {
        let forgotten = self.forget();
        std::fs::remove_file(&self.data)?;
        forgotten
    }

    /// Ends the hash: a [`Verified`] if it is the digest's and all of it was read from here.
    pub fn verify(&self, verifier: &Verifier) -> Option<Verified> {
        let right = !verifier.foreign && verifier.is(&self.digest);
        right.then(|| Verified {
            digest: self.digest,
            size: verifier.hashed,
            file: Arc::clone(&self.file),
            data: self.data.clone(),
            map: self.map.clone(),
        })
    }
}

/// Writes all of `chunks` from `offset` on and returns where they end.
pub fn write_all_at(file: &File, mut offset: u64, chunks: &[Bytes]) -> io::Result<u64> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut slices = slices.as_mut_slice();
    // Skips empty slices in front, so that a zero below means a full device.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match rustix::io::pwritev(file, slices, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(offset)
}

fn read_journal(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(JOURNAL_LIMIT)
        .read_to_end(&mut bytes)?;
    // A line that is not text is skipped like any other that is not ours.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

// === impl Restored ===

impl Restored {
    /// Reads what it understands: a torn last line, or a range past the end of the data, is not
    /// an error but bytes that have to be fetched again.
    fn parse(journal: &str, length: u64) -> Self {
        let mut restored = Restored::default();
        for line in journal
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            let mut words = line.split(' ');
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            match line.split(' ').next() {
                Some("total") => {
                    number();
                    restored.total = number();
                }
                Some("held") => {
                    number();
                    if let (Some(start), Some(end)) = (number(), number())
                        && start < end
                        && end <= length
                    {
                        restored.held.push(start..end);
                    }
                }
                _ => {}
            }
        }
        if let Some(total) = restored.total {
            restored.held.retain(|range| range.end <= total);
        }
        restored
    }
}

// === impl Journal ===

impl Journal {
    fn note(&mut self, line: &std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.pending, "{line}");
    }

    fn flush(&mut self, path: &Path) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => self
                .file
                .insert(OpenOptions::new().append(true).create(true).open(path)?),
        };
        file.write_all(self.pending.as_bytes())?;
        self.pending.clear();
        self.pending_bytes = 0;
        self.written = Instant::now();
        Ok(())
    }
}

// === impl Verifier ===

impl Verifier {
    #[must_use]
    pub fn new(digest: &Digest) -> Self {
        Verifier {
            hasher: Hasher::new(digest.algorithm()),
            hashed: 0,
            foreign: false,
        }
    }

    /// How many bytes from the start of the blob are hashed.
    #[must_use]
    pub fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Hashes the spool's bytes up to `end`.
    pub fn advance(&mut self, spool: &Spool, end: u64) -> io::Result<()> {
        self.read(&spool.file, end)
    }

    /// Hashes bytes up to `end` that lie in `file` at their own offsets, but not in the spool.
    pub fn advance_foreign(&mut self, file: &File, end: u64) -> io::Result<()> {
        self.foreign = true;
        self.read(file, end)
    }

    /// Whether what was hashed so far is the whole blob of this digest.
    #[must_use]
    pub fn is(&self, digest: &Digest) -> bool {
        self.hasher.clone().finish() == *digest
    }

    fn read(&mut self, file: &File, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; HASH_CHUNK.min(usize_of(end.saturating_sub(self.hashed)))];
        while self.hashed < end {
            let length = buffer.len().min(usize_of(end - self.hashed));
            let chunk = &mut buffer[..length];
            file.read_exact_at(chunk, self.hashed)?;
            self.hasher.update(chunk);
            self.hashed += length as u64;
        }
        Ok(())
    }
}

/// Saturates on 32-bit machines, where it only makes steps smaller.
fn usize_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

// === impl Verified ===

impl Verified {
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the bytes lie until they are committed.
    #[must_use]
    pub fn data_path(&self) -> &Path {
        &self.data
    }

    /// The journal, of no use once the blob is committed.
    #[must_use]
    pub fn map_path(&self) -> &Path {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(dir: &Path, content: &[u8]) -> (Spool, Restored) {
        Spool::open(dir, &Digest::sha256(content)).unwrap()
    }

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let content = b"hello, spool";
        let (first, restored) = spool(dir.path(), content);
        assert_eq!(restored, Restored::default());
        first.note_total(12);
        first
            .write(7, &[Bytes::from_static(b"spo"), Bytes::from_static(b"ol")])
            .unwrap();
        first.flush().unwrap();
        drop(first);

        let (second, restored) = spool(dir.path(), content);
        assert_eq!(restored.total, Some(12));
        assert_eq!(restored.held.as_slice(), std::slice::from_ref(&(7..12)));
        second.write(0, &[Bytes::from_static(b"hello, ")]).unwrap();
        let mut verifier = Verifier::new(&Digest::sha256(content));
        verifier.advance(&second, 12).unwrap();
        let verified = second.verify(&verifier).expect("the bytes are right");
        assert_eq!(verified.size(), 12);
    }

    #[test]
    fn wrong_or_foreign_bytes_are_never_verified() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = spool(dir.path(), b"right");
        spool.write(0, &[Bytes::from_static(b"wrong")]).unwrap();
        let mut verifier = Verifier::new(&Digest::sha256(b"right"));
        verifier.advance(&spool, 5).unwrap();
        assert!(spool.verify(&verifier).is_none());

        spool.write(0, &[Bytes::from_static(b"right")]).unwrap();
        let mut verifier = Verifier::new(&Digest::sha256(b"right"));
        verifier.advance_foreign(spool.file(), 5).unwrap();
        assert!(verifier.is(&Digest::sha256(b"right")));
        assert!(spool.verify(&verifier).is_none());
    }

    #[test]
    fn a_damaged_journal_only_costs_bytes() {
        let journal =
            "total 100\nheld 0 10\nheld 10 5\nheld 90 101\nnonsense\nheld 20 30\nheld 40 5";
        let restored = Restored::parse(journal, 1000);
        assert_eq!(
            restored,
            Restored {
                total: Some(100),
                held: vec![0..10, 20..30]
            }
        );
        assert_eq!(Restored::parse("held 0 10\n", 9).held, []);
    }
}
