//! `portcullis import`: what was carried across an air gap becomes what this proxy has.
//!
//! The file is read and decompressed here and streams to the process that has the store, which
//! looks at every byte of it.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::PathBuf;

use anyhow::Context as _;
use axum::body::Body;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;
use url::form_urlencoded;

use super::Report;
use super::ask::{Asked, Progress, with_service};
use super::parts;
use crate::airgap::sign::TrustedKey;
use crate::config::Source;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Pieces that may wait for the other side.
const WAITING: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// A bundle, compressed or not; FILE.001 and so on are found by FILE. Or an OCI image layout of
    /// another tool, as a tar, whose images have full names
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Write down what is held here afterwards, for `export --since` on the other side
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Refuse what is not signed by this key, a public one in PEM
    #[arg(long, value_name = "PUB")]
    trust: Option<PathBuf>,
}

// === impl Import ===

impl Import {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let trust = self.trust.as_ref().map(|path| {
            let key = std::fs::read(path).map_err(anyhow::Error::from);
            let key = key.and_then(|pem| Ok(TrustedKey::parse(&pem)?));
            key.with_context(|| path.display().to_string())
        });
        let trust = trust.transpose()?;
        let archive = parts::open(&self.file)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        let mut answer = runtime.block_on(with_service(&config, source, async |service| {
            let asked = Asked::send("import", &self.query(trust.as_ref()), body(archive));
            service.ask(asked, &Progress::new("importing")).await
        }))?;
        // The reader may still wait for somebody to take what it read.
        runtime.shutdown_background();
        let receipt = answer
            .as_object_mut()
            .and_then(|answer| answer.remove("receipt"));
        if let (Some(path), Some(receipt)) = (&self.receipt, receipt) {
            parts::write_file(path, format!("{receipt:#}\n").as_bytes())?;
        }
        Ok(self.report(answer))
    }

    fn query(&self, trust: Option<&TrustedKey>) -> String {
        let mut query = form_urlencoded::Serializer::new(String::from("?"));
        query.append_pair(
            "receipt",
            if self.receipt.is_some() {
                "true"
            } else {
                "false"
            },
        );
        if let Some(key) = trust {
            query.append_pair("trust", &key.to_text());
        }
        query.finish()
    }

    fn report(&self, answer: Value) -> Report {
        let number = |name: &str| answer[name].as_u64().unwrap_or(0);
        let mut text = String::new();
        let images = answer["images"].as_array().map_or(&[][..], Vec::as_slice);
        for image in images {
            let part = |name: &str| image[name].as_str().unwrap_or_default().to_owned();
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}  {}", part("image"), part("digest"));
        }
        let (bytes, new) = (ByteSize(number("bytes")), ByteSize(number("new_bytes")));
        let _ = writeln!(
            text,
            "{} images imported and pinned: {} blobs, {bytes}, of which {new} were new",
            images.len(),
            number("blobs")
        );
        if let Some(path) = &self.receipt {
            let _ = writeln!(text, "what is held here now is in {}", path.display());
        }
        let mut report = Report::new(text, answer);
        if self.trust.is_none() {
            let note = "unverified: nobody's signature was asked for, --trust does";
            report.notes.push(note.to_owned());
        }
        report
    }
}

/// Reads on a thread of its own, as far ahead as the other side takes it.
fn body(mut archive: Box<dyn io::Read + Send>) -> Body {
    let (chunks, receiver) = mpsc::channel::<io::Result<Bytes>>(WAITING);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            let read = archive.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
            let is_last = !matches!(read, Ok(1..));
            let chunk = read.map(|_| Bytes::from(chunk));
            let end = matches!(&chunk, Ok(chunk) if chunk.is_empty());
            if end || chunks.blocking_send(chunk).is_err() || is_last {
                return;
            }
        }
    });
    Body::from_stream(stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    }))
}
