//! The files of a bundle: written under another name until all of it is there, split and compressed
//! as asked; read back as one stream.

#![expect(
    clippy::disallowed_methods,
    reason = "files that the operator names, not those of the store"
)]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{Advice, fadvise};
use zstd::stream::{read, write};

/// What zstd's own program takes too; the same for ever, or the same input would make other bytes.
const LEVEL: i32 = 3;
/// The most that a decompressor may keep, as a power of two, in bytes: 128 MiB.
const LARGEST_WINDOW: u32 = 27;
/// With three digits.
const MOST_PARTS: usize = 999;
/// Bytes after which the disk begins to write, instead of at the end: see [`Parts::start_writing`].
const BEHIND: u64 = 8 << 20;
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How a bundle is written.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) to: PathBuf,
    pub(super) zstd: bool,
    /// Bytes of a part.
    pub(super) split: Option<u64>,
}

/// A bundle that is being written.
pub(super) enum Writer {
    Plain(Parts),
    Zstd(Box<write::Encoder<'static, Parts>>),
}

/// Files that follow each other.
pub(super) struct Parts {
    shape: Shape,
    current: Option<File>,
    /// Bytes that the current one may still take.
    room: u64,
    names: Vec<PathBuf>,
    /// Bytes of all parts, and of the current one those written and those on their way to the disk.
    written: u64,
    length: u64,
    started: u64,
}

/// A bundle that is being read: its parts one after the other.
struct Joined {
    parts: std::vec::IntoIter<File>,
    current: Option<File>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn create(shape: Shape) -> anyhow::Result<Self> {
        let (split, zstd) = (shape.split, shape.zstd);
        if split.is_some_and(|split| split < 1 << 20) {
            bail!("--split: parts have at least 1MiB");
        }
        let parts = Parts {
            shape,
            current: None,
            room: 0,
            names: Vec::new(),
            written: 0,
            length: 0,
            started: 0,
        };
        if !zstd {
            return Ok(Writer::Plain(parts));
        }
        let mut encoder = write::Encoder::new(parts, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Writer::Zstd(Box::new(encoder)))
    }

    /// Gives the files their names, once all of them would survive a power loss; and their size.
    pub(super) fn finish(self) -> anyhow::Result<(Vec<PathBuf>, u64)> {
        let mut parts = match self {
            Writer::Plain(parts) => parts,
            Writer::Zstd(encoder) => encoder.finish()?,
        };
        parts.close()?;
        parts.name()?;
        Ok((std::mem::take(&mut parts.names), parts.written))
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Writer::Plain(parts) => parts.write(bytes),
            Writer::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Writer::Plain(parts) => parts.flush(),
            Writer::Zstd(encoder) => encoder.flush(),
        }
    }
}

// === impl Parts ===

impl Parts {
    fn next(&mut self) -> io::Result<&mut File> {
        self.close()?;
        let number = self.names.len() + 1;
        if number > MOST_PARTS {
            return Err(io::Error::other("more than 999 parts: make them larger"));
        }
        let name = match self.shape.split {
            Some(_) => numbered(&self.shape.to, number),
            None => self.shape.to.clone(),
        };
        let file = File::create(partial(&name))?;
        self.names.push(name);
        self.room = self.shape.split.unwrap_or(u64::MAX);
        (self.length, self.started) = (0, 0);
        Ok(self.current.insert(file))
    }

    /// Nobody reads a bundle again on this side. Told so, the kernel starts to write it to the disk
    /// while the rest is still to come, and the fsync at the end has little left to do.
    fn start_writing(&mut self) {
        let behind = self.length - self.started;
        if let (Some(file), Some(length)) = (&self.current, NonZeroU64::new(behind))
            && behind >= BEHIND
        {
            // A hint: that it cannot be given is no failure.
            let _ = fadvise(file, self.started, Some(length), Advice::DontNeed);
            self.started = self.length;
        }
    }

    fn close(&mut self) -> io::Result<()> {
        match self.current.take() {
            Some(file) => file.sync_all(),
            None => Ok(()),
        }
    }

    /// The first part comes last: while it is not there, nobody takes the others for a bundle. What
    /// an earlier export has left under these names goes.
    fn name(&self) -> anyhow::Result<()> {
        let to = &self.shape.to;
        let split = self.shape.split.is_some();
        remove(&numbered(to, 1))?;
        if split {
            remove(to)?;
        }
        let first_stale = if split { self.names.len() + 1 } else { 2 };
        let stale = (first_stale..=MOST_PARTS).map(|number| numbered(to, number));
        for stale in stale.take_while(|stale| stale.exists()) {
            remove(&stale)?;
        }
        for name in self.names.iter().rev() {
            let named = std::fs::rename(partial(name), name);
            named.with_context(|| format!("cannot write {}", name.display()))?;
        }
        let directory = to.parent().filter(|parent| *parent != Path::new(""));
        let directory = directory.unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()?;
        Ok(())
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.current.is_none() || self.room == 0 {
            self.next()?;
        }
        let most = usize::try_from(self.room).unwrap_or(usize::MAX);
        let Some(file) = &mut self.current else {
            return Ok(0);
        };
        let length = file.write(&bytes[..bytes.len().min(most)])?;
        self.room -= length as u64;
        self.written += length as u64;
        self.length += length as u64;
        self.start_writing();
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was not finished goes.
impl Drop for Parts {
    fn drop(&mut self) {
        for name in &self.names {
            // Best effort: the next export to this name writes over it.
            let _ = std::fs::remove_file(partial(name));
        }
    }
}

/// A small file, there whole or not at all, that would survive a power loss.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let shape = Shape {
        to: path.to_owned(),
        zstd: false,
        split: None,
    };
    let mut writer = Writer::create(shape)?;
    let written = writer.write_all(bytes).map_err(anyhow::Error::from);
    let finished = written.and_then(|()| writer.finish());
    finished.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    with_suffix(path, &format!(".{number:03}"))
}

fn partial(path: &Path) -> PathBuf {
    with_suffix(path, ".partial")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

// === reading ===

/// The tar of a bundle: from one file or its parts, decompressed where that is needed.
pub(super) fn open(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let first = numbered(path, 1);
    if path.exists() && first.exists() {
        let (path, first) = (path.display(), first.display());
        bail!("both {path} and {first} are there: take one of them away");
    }
    let mut files = Vec::new();
    if first.exists() {
        let parts = (1..=MOST_PARTS).map(|number| numbered(path, number));
        for part in parts.take_while(|part| part.exists()) {
            files.push(open_file(&part)?);
        }
    } else {
        files.push(open_file(path)?);
    }
    let mut magic = Vec::new();
    let mut start = &files[0];
    start.take(ZSTD.len() as u64).read_to_end(&mut magic)?;
    start.rewind()?;
    let joined = Joined {
        parts: files.into_iter(),
        current: None,
    };
    if magic != ZSTD {
        return Ok(Box::new(joined));
    }
    let mut decoder = read::Decoder::new(joined)?;
    decoder.window_log_max(LARGEST_WINDOW)?;
    Ok(Box::new(decoder))
}

fn open_file(path: &Path) -> anyhow::Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

impl Read for Joined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let length = file.read(buffer)?;
                if length > 0 || buffer.is_empty() {
                    return Ok(length);
                }
            }
            match self.parts.next() {
                Some(file) => self.current = Some(file),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests;
