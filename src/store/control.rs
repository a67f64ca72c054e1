//! `control.sock`: where a running process hears its operators. Who may open the file may ask.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::Store;
use super::files::{Temporary, found};
use super::layout::Layout;
use crate::oci::Digest;

/// Where the process that has the store at `path` listens, if one does.
#[must_use]
pub fn socket(path: &Path) -> PathBuf {
    Layout::new(path).control()
}

/// Whether there is a store at `path`.
#[must_use]
pub fn is_store(path: &Path) -> bool {
    Layout::new(path).v1().is_dir()
}

/// Opens a blob that the process which has the store at `path` holds for this one. What is here under
/// that name was hashed, and nobody ever writes to it again.
///
/// # Errors
/// Also when this process may not read what that one has written.
pub fn open_held(path: &Path, digest: &Digest) -> io::Result<File> {
    File::open(Layout::new(path).blob(digest))
}

impl Store {
    /// Listens on `control.sock`. One that is there was left by a process that is gone, because
    /// this one has the lock. Blocks.
    ///
    /// # Errors
    /// Above all when the path is longer than a socket's may be, which is about 100 bytes.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let layout = &self.disk.layout;
        // Nobody may connect before the permissions are right: it gets its name last.
        let unnamed = layout.spool().join(format!("control{}", Temporary::SUFFIX));
        found(std::fs::remove_file(&unnamed))?;
        let listener = UnixListener::bind(&unnamed)?;
        std::fs::set_permissions(&unnamed, Permissions::from_mode(0o600))?;
        std::fs::rename(&unnamed, layout.control())?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }
}
