//! A large blob on its way to the shared store, part by part.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;

use super::{HEADER, Shared, SharedError};
use crate::oci::Digest;

/// One part: 8 MiB in a minute is a store that does not get on.
const PART_TIME: Duration = Duration::from_secs(60);
/// In bytes.
pub(super) const PART: usize = 8 * 1024 * 1024;

/// An upload. Nothing is visible before [`Parts::complete`], and what is dropped before that the
/// store forgets by itself, later.
#[derive(Debug)]
pub struct Parts<'a> {
    shared: &'a Shared,
    path: Path,
    upload: Box<dyn MultipartUpload>,
    /// What is not sent yet.
    part: Vec<u8>,
    running: JoinSet<Result<object_store::Result<()>, Elapsed>>,
    at_once: usize,
}

impl Shared {
    /// Begins to upload a blob. Takes [`PART`] of memory for each of `at_once` parts, and for one
    /// more.
    pub async fn begin(&self, digest: &Digest, at_once: usize) -> Result<Parts<'_>, SharedError> {
        let path = self.keys.blob(digest);
        let start = self.objects.put_multipart(&path);
        let upload = self.ask(|| format!("write {path}"), HEADER, start).await?;
        Ok(Parts {
            shared: self,
            path,
            upload,
            part: Vec::new(),
            running: JoinSet::new(),
            at_once,
        })
    }
}

impl Parts<'_> {
    /// Adds a range of a file to what is to be sent next. Waits for the disk alone.
    pub async fn read(&mut self, file: &Arc<File>, range: Range<u64>) -> Result<(), SharedError> {
        let mut part = std::mem::take(&mut self.part);
        // Once for a whole part, however small the ranges are.
        let length = usize::try_from(range.end - range.start).unwrap_or_default();
        part.reserve_exact(length.max(PART.saturating_sub(part.len())));
        self.part = read(file, range, part).await?;
        Ok(())
    }

    /// Sends the parts that are whole. Waits while as many are under way as there may be.
    pub async fn send(&mut self) -> Result<(), SharedError> {
        while self.part.len() >= PART {
            let rest = self.part.split_off(PART);
            self.send_part(rest).await?;
        }
        Ok(())
    }

    /// Makes the blob visible. That its bytes hash is for the caller to know.
    pub async fn complete(&mut self) -> Result<(), SharedError> {
        self.send().await?;
        if !self.part.is_empty() {
            self.send_part(Vec::new()).await?;
        }
        while !self.running.is_empty() {
            self.landed().await?;
        }
        let complete = self.upload.complete();
        let what = || format!("write {}", self.path);
        self.shared.ask(what, PART_TIME, complete).await.map(drop)
    }

    /// Takes away what is there. Best effort.
    pub async fn abort(mut self) {
        self.running.shutdown().await;
        let _ = tokio::time::timeout(HEADER, self.upload.abort()).await;
    }

    async fn send_part(&mut self, rest: Vec<u8>) -> Result<(), SharedError> {
        while self.running.len() >= self.at_once {
            self.landed().await?;
        }
        let bytes = Bytes::from(std::mem::replace(&mut self.part, rest));
        let part = self.upload.put_part(PutPayload::from_bytes(bytes));
        self.running.spawn(tokio::time::timeout(PART_TIME, part));
        Ok(())
    }

    /// Waits for one of the parts under way.
    async fn landed(&mut self) -> Result<(), SharedError> {
        let what = || format!("write {}", self.path);
        let result = match self.running.join_next().await {
            None | Some(Ok(Ok(Ok(())))) => Ok(()),
            Some(Ok(Ok(Err(source)))) => Err(SharedError::of(what(), source)),
            Some(Ok(Err(_)) | Err(_)) => Err(SharedError::TimedOut(what())),
        };
        self.shared.note(result.as_ref().err());
        result
    }
}

/// Reads a range behind what `bytes` has, off the async threads. It is to fit into memory.
pub(super) async fn read(
    file: &Arc<File>,
    range: Range<u64>,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, SharedError> {
    let file = Arc::clone(file);
    let read = move || {
        let before = bytes.len();
        let length = usize::try_from(range.end - range.start).unwrap_or_default();
        bytes.resize(before + length, 0);
        file.read_exact_at(&mut bytes[before..], range.start)?;
        Ok(bytes)
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(error.into()))
        .map_err(|source| SharedError::Local {
            what: "what is to be uploaded".into(),
            source: Arc::new(source),
        })
}
