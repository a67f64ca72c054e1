//! `portcullis export`: images and all that belongs to them, in one file that crosses an air gap.
//!
//! The process that has the store says what the images are made of, and holds it; here what the far
//! side has is left out and the rest is signed and written, so that neither receipt nor key goes
//! anywhere, and blobs go from file to file.

use std::fmt::Write as _;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Report;
use super::ask::{Asked, Progress, Service, with_service};
use super::parts::{Shape, Writer};
use crate::airgap::bundle::{Bundle, Receipt};
use crate::airgap::export::{self, Form};
use crate::airgap::sign::SigningKey;
use crate::app::bundles::{HoldRequest, PlanRequest};
use crate::config::Source;
use crate::oci::Digest;
use crate::store::control::{is_store, open_held};

/// Smaller pieces are written together, in bytes.
const TOGETHER: usize = 128 << 10;

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Images; without any, everything that is pinned. One that is pinned is exported as it is
    /// pinned, without asking its registry
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Where to; parts are FILE.001, FILE.002 and so on
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Only these of an index, such as linux/amd64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Leave out what the far side has: a receipt that `import --receipt` wrote there
    #[arg(long, value_name = "RECEIPT")]
    since: Option<PathBuf>,
    /// Compress; layers mostly are already
    #[arg(long)]
    zstd: bool,
    /// Write parts of this size, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    split: Option<ByteSize>,
    /// Sign with a private key in PEM, ed25519 or ECDSA on P-256
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Only what `ctr -n k8s.io images import` needs, for nodes that start without any registry
    #[arg(long, requires = "images", conflicts_with_all = ["since", "split", "zstd", "sign"])]
    containerd: bool,
}

/// What was written.
struct Written {
    bundle: Bundle,
    id: Digest,
    files: Vec<PathBuf>,
    bytes: u64,
}

// === impl Export ===

impl Export {
    pub(super) fn run(&self, source: &Source) -> anyhow::Result<Report> {
        let config = source.parse()?;
        let key = self.sign.as_ref().map(|path| {
            let key = std::fs::read(path).map_err(anyhow::Error::from);
            let key = key.and_then(|pem| Ok(SigningKey::parse(&pem)?));
            key.with_context(|| path.display().to_string())
        });
        let receipt = self.since.as_ref().map(|path| {
            let text = std::fs::read(path).map_err(anyhow::Error::from);
            let receipt = text.and_then(|text| Ok(Receipt::parse(&text)?));
            receipt.with_context(|| path.display().to_string())
        });
        let (key, receipt) = (key.transpose()?, receipt.transpose()?);
        if self.images.is_empty() && !is_store(&config.store.path) {
            let path = config.store.path.display();
            bail!("there is no cache at {path}: --config names the server's configuration");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build();
        let runtime = runtime.context("cannot start the runtime")?;
        let written = runtime.block_on(with_service(&config, source, async |service| {
            let store = config.store.path.clone();
            self.export(service, store, key.as_ref(), receipt.as_ref())
                .await
        }))?;
        Ok(self.report(&written))
    }

    async fn export(
        &self,
        service: &Service,
        store: PathBuf,
        key: Option<&SigningKey>,
        receipt: Option<&Receipt>,
    ) -> anyhow::Result<Written> {
        let request = PlanRequest {
            images: self.images.clone(),
            platforms: self.platform.clone(),
        };
        let planned = Asked::post("plan", &request)?;
        let planned = service.ask(planned, &Progress::new("fetching")).await?;
        let bundle = Bundle::new(serde_json::from_value(planned)?, receipt);
        let head = bundle.head()?;
        let signature = key.map(|key| key.sign(&head.bundle, &head.checksums));
        let form = Form {
            signature: signature.transpose()?,
            plain: self.containerd,
        };
        let shape = Shape {
            to: self.to.clone(),
            zstd: self.zstd,
            split: self.split.map(|size| size.as_u64()),
        };
        let blobs = bundle.blobs();
        let _held = service
            .hold(Asked::post("hold", &HoldRequest { blobs })?)
            .await?;
        // Whoever gives this up stops the thread that writes.
        let stop = CancellationToken::new();
        let _stop_with_this = stop.clone().drop_guard();
        let writing =
            tokio::task::spawn_blocking(move || write(bundle, form, shape, &store, &stop));
        let (bundle, files, bytes) = writing
            .await?
            .with_context(|| format!("cannot write {}", self.to.display()))?;
        Ok(Written {
            id: Digest::sha256(&head.bundle),
            bundle,
            files,
            bytes,
        })
    }

    fn report(&self, written: &Written) -> Report {
        let Written {
            bundle,
            id,
            files,
            bytes,
        } = written;
        let (images, blobs) = (bundle.images.len(), bundle.blobs().len());
        let size = ByteSize(*bytes);
        let mut text = format!("{images} images with {blobs} blobs, {size}:\n");
        for file in files {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {}", file.display());
        }
        if let Some(base) = &bundle.base {
            let left_out = bundle.omitted.len();
            let _ = writeln!(
                text,
                "a delta: it leaves out {left_out} blobs of the receipt {base}, \
                 and is of use only where those are"
            );
        }
        let json = json!({
            "id": id,
            "complete": bundle.complete,
            "base": bundle.base,
            "images": bundle.images.iter().map(|image| {
                json!({ "image": image.name().to_string(), "digest": image.digest })
            }).collect::<Vec<Value>>(),
            "blobs": blobs,
            "omitted": bundle.omitted.len(),
            "bytes": bytes,
            "files": files,
            "signed": self.sign.is_some(),
        });
        Report::new(text, json)
    }
}

/// Writes `bundle` from the files of the store, until it is told to stop.
fn write(
    bundle: Bundle,
    form: Form,
    shape: Shape,
    store: &Path,
    stop: &CancellationToken,
) -> anyhow::Result<(Bundle, Vec<PathBuf>, u64)> {
    let progress = Progress::new("writing");
    progress.expect(bundle.blobs().values().sum());
    let mut writer = BufWriter::with_capacity(TOGETHER, Writer::create(shape)?);
    let open = |digest: &Digest| {
        let opened = open_held(store, digest);
        opened.map_err(|error| io::Error::new(error.kind(), format!("blob {digest}: {error}")))
    };
    let wrote = |bytes| {
        progress.advance(bytes);
        if stop.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        Ok(())
    };
    export::write(&bundle, form, open, &mut writer, wrote)?;
    let writer = writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    let (files, bytes) = writer.finish()?;
    progress.finish();
    Ok((bundle, files, bytes))
}
