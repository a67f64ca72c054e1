//! Which files of links and tags there are, so that a look for one that is not there costs no trip
//! to the disk: a burst of pulls asks for many tags of which nothing is known.
//!
//! The set may hold too much, never too little: it answers yes to everything until all of
//! `v1/repos` was walked, and a file is in it before it is written.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::files::lock;

/// Files that are remembered, 16 bytes each. Where there are more, every look goes to the disk.
const MOST_FILES: usize = 1 << 20;

/// What is known of the files below `v1/repos`.
#[derive(Debug, Default)]
pub(super) struct Present {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Hashes of their paths. Two alike are a look too many.
    files: HashSet<u64>,
    /// All files are among them.
    complete: bool,
    /// Too many, or not to be found by walking.
    unknowable: bool,
}

// === impl Present ===

impl Present {
    /// False only if there is no such file.
    pub(super) fn may_have(&self, path: &Path) -> bool {
        let hash = self.hash(path);
        let known = lock(&self.known);
        !known.complete || known.files.contains(&hash)
    }

    /// A file that is about to be written.
    pub(super) fn add(&self, path: &Path) {
        let hash = self.hash(path);
        lock(&self.known).add(hash);
    }

    /// Finds all files below `root`, which need not be there. Blocks.
    ///
    /// # Errors
    /// When a directory cannot be read; then every look goes to the disk.
    pub(super) fn walk(&self, root: &Path) -> io::Result<()> {
        let mut directories = vec![root.to_path_buf()];
        while let Some(directory) = directories.pop() {
            self.walk_one(&directory, &mut directories)?;
        }
        let mut known = lock(&self.known);
        known.complete = !known.unknowable;
        Ok(())
    }

    fn walk_one(&self, directory: &Path, directories: &mut Vec<PathBuf>) -> io::Result<()> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_symlink() {
                // Somebody has put a part of it elsewhere.
                lock(&self.known).give_up();
            } else {
                self.add(&entry.path());
            }
        }
        Ok(())
    }

    fn hash(&self, path: &Path) -> u64 {
        self.hasher.hash_one(path.as_os_str())
    }
}

impl Known {
    fn add(&mut self, hash: u64) {
        if self.unknowable {
            return;
        }
        self.files.insert(hash);
        if self.files.len() > MOST_FILES {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        *self = Known {
            unknowable: true,
            ..Known::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_neither_found_nor_written_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("a/b/_tags/1.json"), dir.path().join("a/2"));
        std::fs::create_dir_all(old.parent().unwrap()).unwrap();
        std::fs::write(&old, "").unwrap();
        let present = Present::default();
        assert!(present.may_have(&new), "nobody has looked yet");
        present.walk(dir.path()).unwrap();
        assert!(present.may_have(&old));
        assert!(!present.may_have(&new));
        present.add(&new);
        assert!(present.may_have(&new));
    }

    #[test]
    fn a_store_without_repositories_has_none_of_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let present = Present::default();
        present.walk(&dir.path().join("repos")).unwrap();
        assert!(!present.may_have(&dir.path().join("repos/a")));
    }

    #[test]
    fn more_than_can_be_remembered_is_looked_for() {
        let mut known = Known {
            complete: true,
            ..Known::default()
        };
        (0..=MOST_FILES as u64).for_each(|hash| known.add(hash));
        assert!(!known.complete && known.unknowable && known.files.is_empty());
    }
}
