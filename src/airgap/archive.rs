//! Reads a tar that anybody may have made: strictly, in one pass, and never onto the disk.
//!
//! Regular files with the names of an image layout come through; directories that lead to them are
//! ignored; everything else ends the reading with its reason. So nothing here depends on how links,
//! sparse files or long names are understood, and nothing that is read is ever used as a path.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, Read};

use tar::{EntryType, Header};

use super::bundle::{BUNDLE_FILE, CHECKSUMS_FILE, INDEX_FILE, LAYOUT_FILE, SIGNATURE_FILE};
use crate::oci::Digest;

const BLOCK: usize = 512;
/// More than the largest cache has blobs.
const MOST_ENTRIES: usize = 200_000;
/// The largest file beside the blobs, in bytes.
pub const LARGEST_FILE: u64 = 64 << 20;
/// The largest extended header, in bytes; real ones have a few lines.
const LARGEST_EXTENSION: u64 = 16 << 10;
/// Sizes above this do not fit into a header, and stand in an extended one.
const LARGEST_IN_HEADER: u64 = 0o777_7777_7777;
/// Empty blocks at the end: archives are filled up to whole records.
const MOST_FILLING: usize = 4 << 20;
/// Longest part of a name that an error shows, in bytes.
const SHOWN: usize = 120;

/// What other tools put beside the blobs: tolerated and ignored.
const IGNORED_FILES: [&str; 2] = ["manifest.json", "repositories"];
const DIRECTORIES: [&str; 4] = [".", "blobs", "blobs/sha256", "blobs/sha512"];
/// Keys of extended headers that change nothing about the content.
const HARMLESS: [&str; 7] = ["atime", "ctime", "mtime", "uid", "gid", "uname", "gname"];

/// A tar that is being read.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    largest_blob: u64,
    names: HashSet<Name>,
    entries: usize,
    /// Of the entry that is being read, content and padding still to come.
    left: u64,
    padding: u64,
    shown: String,
}

/// A file in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    /// In bytes.
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    Layout,
    Bundle,
    Checksums,
    Signature,
    Index,
    /// `manifest.json`, `repositories`
    Ignored(&'static str),
    Blob(Digest),
}

/// Why a tar is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read it: {0}")]
    Read(io::Error),
    #[error("it is no tar archive, or damaged: the header behind {after} makes no sense")]
    Header { after: String },
    #[error("it is cut short, in or behind {0}")]
    Truncated(String),
    #[error("{name} is {kind}: only regular files are taken")]
    Kind { name: String, kind: &'static str },
    #[error("{name} has an extended header with {key:?}, which no blob needs")]
    Extension { name: String, key: String },
    #[error(
        "{0} does not belong into an OCI image layout; `skopeo copy docker-archive:FILE oci-archive:OTHER:NAME` makes one of what `docker save` wrote"
    )]
    Name(String),
    #[error("{0} is in it twice")]
    Twice(String),
    #[error(
        "{name} has {size} bytes, and at most {limit} are allowed (limits.blob_size for blobs)"
    )]
    Size { name: String, size: u64, limit: u64 },
    #[error("it has more than {MOST_ENTRIES} entries")]
    Entries,
    #[error("something follows its end")]
    Trailing,
}

// === impl Archive ===

impl<R: Read> Archive<R> {
    /// Blobs may have `largest_blob` bytes.
    pub fn new(source: R, largest_blob: u64) -> Self {
        Archive {
            source,
            largest_blob,
            names: HashSet::new(),
            entries: 0,
            left: 0,
            padding: 0,
            shown: "its beginning".to_owned(),
        }
    }

    /// The next file; what is left of the one before is skipped. None at the end, which is a proper
    /// one.
    ///
    /// # Errors
    /// At the first thing that is not as it should be.
    pub fn advance(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = None;
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            if block == [0; BLOCK] {
                return match extended {
                    None => self.end().map(|()| None),
                    Some(_) => Err(ArchiveError::Truncated(self.shown.clone())),
                };
            }
            let header = Header::from_byte_slice(&block);
            let damaged = || ArchiveError::Header {
                after: self.shown.clone(),
            };
            if header.cksum().ok() != Some(checksum(&block)) {
                return Err(damaged());
            }
            let size = header.entry_size().map_err(|_| damaged())?;
            self.entries += 1;
            if self.entries > MOST_ENTRIES {
                return Err(ArchiveError::Entries);
            }
            let path = header.path_bytes();
            self.shown = shown(&path);
            let kind = header.entry_type();
            if kind == EntryType::XHeader && extended.is_none() {
                extended = Some(self.extension(size)?);
                continue;
            }
            let size = match extended.take().flatten() {
                // Where the header could have said it, two sizes are a trick.
                Some(real) if real > LARGEST_IN_HEADER => real,
                Some(_) => return Err(self.unwanted("size")),
                None => size,
            };
            if kind == EntryType::Directory {
                self.directory(&path, size)?;
                continue;
            }
            return self.file(kind, &path, size).map(Some);
        }
    }

    fn directory(&mut self, path: &[u8], size: u64) -> Result<(), ArchiveError> {
        let text = str::from_utf8(path).unwrap_or_default();
        let text = text.strip_suffix('/').unwrap_or(text);
        let text = text.strip_prefix("./").unwrap_or(text);
        if !DIRECTORIES.contains(&text) || size > 0 {
            return Err(ArchiveError::Name(self.shown.clone()));
        }
        Ok(())
    }

    fn file(&mut self, kind: EntryType, path: &[u8], size: u64) -> Result<Entry, ArchiveError> {
        let shown = || self.shown.clone();
        if kind != EntryType::Regular {
            let (name, kind) = (shown(), described(kind));
            return Err(ArchiveError::Kind { name, kind });
        }
        let name = Name::parse(path).ok_or_else(|| ArchiveError::Name(shown()))?;
        let limit = match name {
            Name::Blob(_) => self.largest_blob,
            _ => LARGEST_FILE,
        };
        if size > limit {
            let name = shown();
            return Err(ArchiveError::Size { name, size, limit });
        }
        if !self.names.insert(name) {
            return Err(ArchiveError::Twice(shown()));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(Entry { name, size })
    }

    /// Reads content of the current file; 0 at its end.
    ///
    /// # Errors
    /// When the archive ends before the file does.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        self.fill(&mut buffer[..length])?;
        self.left -= length as u64;
        Ok(length)
    }

    /// The rest of the current file.
    ///
    /// # Errors
    /// When the archive ends before the file does.
    pub fn read_all(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let (mut content, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match self.read(&mut chunk)? {
                0 => return Ok(content),
                length => content.extend_from_slice(&chunk[..length]),
            }
        }
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let mut chunk = [0; 16 * BLOCK];
        while self.read(&mut chunk)? > 0 {}
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or_default();
        self.fill(&mut chunk[..padding])
    }

    /// An extended header's word about the size of what follows; nothing else in it may matter.
    fn extension(&mut self, size: u64) -> Result<Option<u64>, ArchiveError> {
        if size > LARGEST_EXTENSION {
            return Err(self.unwanted("too much in it"));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let content = self.read_all()?;
        let mut found = None;
        let mut rest = content.as_slice();
        while !rest.is_empty() {
            let Some((key, value, after)) = record(rest) else {
                return Err(self.unwanted("a record that makes no sense"));
            };
            rest = after;
            match key {
                key if HARMLESS.contains(&key) => {}
                "size" if found.is_none() => match value.parse() {
                    Ok(size) => found = Some(size),
                    Err(_) => return Err(self.unwanted("size")),
                },
                key => return Err(self.unwanted(key)),
            }
        }
        Ok(found)
    }

    /// Behind the first empty block: nothing but more of them.
    fn end(&mut self) -> Result<(), ArchiveError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        let mut chunk = [0; 16 * BLOCK];
        let (mut filling, mut empty) = (0, block == [0; BLOCK]);
        while empty && filling <= MOST_FILLING {
            let length = read_some(&mut self.source, &mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            filling += length;
            empty = chunk[..length].iter().all(|byte| *byte == 0);
        }
        Err(ArchiveError::Trailing)
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), ArchiveError> {
        while !buffer.is_empty() {
            match read_some(&mut self.source, buffer)? {
                0 => return Err(ArchiveError::Truncated(self.shown.clone())),
                length => buffer = &mut buffer[length..],
            }
        }
        Ok(())
    }

    fn unwanted(&self, key: &str) -> ArchiveError {
        ArchiveError::Extension {
            name: self.shown.clone(),
            key: key.chars().take(SHOWN).collect(),
        }
    }
}

fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
    loop {
        match source.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(ArchiveError::Read),
        }
    }
}

/// The sum of a header's bytes, with its own place taken for spaces.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    let bytes = block.iter().enumerate();
    bytes
        .map(|(at, byte)| match at {
            148..156 => u32::from(b' '),
            _ => u32::from(*byte),
        })
        .sum()
}

/// `<length> <key>=<value>\n`: key, value and what follows.
fn record(bytes: &[u8]) -> Option<(&str, &str, &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let line = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let (key, value) = str::from_utf8(line).ok()?.split_once('=')?;
    Some((key, value, &bytes[length..]))
}

fn shown(path: &[u8]) -> String {
    let text: Cow<'_, str> = String::from_utf8_lossy(&path[..path.len().min(SHOWN)]);
    format!("{text:?}")
}

fn described(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Symlink => "a symbolic link",
        EntryType::Link => "a hard link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        EntryType::GNULongName | EntryType::GNULongLink => "a name that no blob has",
        EntryType::XHeader | EntryType::XGlobalHeader => "an extended header out of place",
        _ => "of an unknown kind",
    }
}

// === impl Name ===

impl Name {
    fn parse(path: &[u8]) -> Option<Self> {
        let path = str::from_utf8(path).ok()?;
        let path = path.strip_prefix("./").unwrap_or(path);
        let name = match path {
            LAYOUT_FILE => Name::Layout,
            BUNDLE_FILE => Name::Bundle,
            CHECKSUMS_FILE => Name::Checksums,
            SIGNATURE_FILE => Name::Signature,
            INDEX_FILE => Name::Index,
            _ => {
                if let Some(ignored) = IGNORED_FILES.iter().find(|name| **name == path) {
                    return Some(Name::Ignored(ignored));
                }
                let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
                Name::Blob(format!("{algorithm}:{hex}").parse().ok()?)
            }
        };
        Some(name)
    }
}
