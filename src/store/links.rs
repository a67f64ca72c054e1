//! Which repository may read which digest, and which tag led to it.
//!
//! A *link* says that the upstream has said yes to a digest in a repository. Bytes lie on disk
//! once, whoever they were fetched for; only a link makes them readable in a repository. Losing
//! one costs an upstream HEAD, so links are written without waiting and without fsync.
//!
//! *Led* says which tag or manifest named a digest: policy that allows a repository for some tags
//! only needs it when a client comes with a digest.
//!
//! Both are files of lines that are only ever added to:
//!
//! ```text
//! _links   <digest> <media type, or -> <proved, unix seconds>
//!          <digest> gone <unix seconds>
//! _led     <child digest> <parent: tag or digest>
//! ```
//!
//! The last line about a digest counts. Lines that make no sense are skipped.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::StoreError;
use super::files::{Change, Faults, found, unix_now};
use super::layout::Layout;
use super::pins::Pins;
use super::present::Present;
use super::shelf::{Kept, Shelf};
use crate::oci::{Digest, MediaType, Reference, Repository};

/// Links and led entries in memory, over all repositories; each takes about 200 bytes.
const IN_MEMORY: u64 = 400_000;
/// A link that was proved again is written again when the file's time is that old, in seconds.
const REWRITE_AGE: i64 = 15 * 60;
/// How far a search for tags goes: more than any image has above a layer in one repository.
const MOST_PARENTS: usize = 10_000;
/// The same for a search of what is near: more than any manifest has.
const MOST_LEADERS: usize = 1000;
/// How far that goes: tag, index, an index in that, manifest.
const NEAR: usize = 3;
/// The word in place of a media type for a link that is gone: no media type is without a slash.
const GONE: &str = "gone";

/// The upstream has said yes to a digest in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// As the upstream gave it with a manifest; blobs have none.
    pub media_type: Option<MediaType>,
    /// When the upstream said so last, in unix seconds.
    pub proved: i64,
}

/// All links and what led where.
#[derive(Debug)]
pub struct Links {
    shelf: Shelf<Known>,
    pins: Arc<Pins>,
}

/// What is known of one repository.
#[derive(Debug, Default)]
struct Known {
    links: HashMap<Digest, Link>,
    led: HashMap<Digest, BTreeSet<Reference>>,
    /// Number of (child, parent) pairs.
    pairs: usize,
    unwritten_links: String,
    unwritten_led: String,
    /// Lines of the file of links, with those that are still to be written.
    lines: usize,
}

// === impl Links ===

impl Links {
    pub(super) fn new(
        layout: Layout,
        faults: Arc<Faults>,
        pins: Arc<Pins>,
        present: Arc<Present>,
    ) -> Self {
        Links {
            shelf: Shelf::new(layout, faults, present, IN_MEMORY),
            pins,
        }
    }

    /// The link of a digest in a repository, if there is one.
    pub async fn link(&self, repository: &Repository, digest: &Digest) -> Option<Link> {
        self.shelf
            .read(repository, |known| known.links.get(digest).cloned())
            .await
    }

    /// The upstream has said yes just now. A media type that was known stays when none is given.
    /// True: that is news, and not only a proof a little younger than the last.
    pub async fn add_link(
        &self,
        repository: &Repository,
        digest: &Digest,
        media_type: Option<&MediaType>,
    ) -> bool {
        let (now, mut news) = (unix_now(), false);
        self.pins.linked(repository, digest);
        let add = |known: &mut Known| {
            news = known.add_link(digest, media_type, now);
            news
        };
        self.shelf.change(repository, add).await;
        news
    }

    /// Another replica knows this link.
    pub(super) async fn adopt_link(&self, repository: &Repository, digest: &Digest, link: &Link) {
        let proved = link.proved.min(unix_now());
        self.pins.linked(repository, digest);
        let adopt = |known: &mut Known| {
            // One that came here meanwhile is as good.
            !known.links.contains_key(digest)
                && known.add_link(digest, link.media_type.as_ref(), proved)
        };
        self.shelf.change(repository, adopt).await;
    }

    /// The upstream has said no: the digest is no longer readable there.
    pub async fn remove_link(&self, repository: &Repository, digest: &Digest) {
        let now = unix_now();
        self.shelf
            .change(repository, |known| known.remove_link(digest, now))
            .await;
    }

    /// All digests that have a link in the repository, in no order.
    pub async fn digests(&self, repository: &Repository) -> Vec<Digest> {
        self.shelf
            .read(repository, |known| known.links.keys().copied().collect())
            .await
    }

    /// `parent` names `children`: a tag its manifest, a manifest or index what it refers to. Gives
    /// those of which that was not known.
    pub async fn add_led(
        &self,
        repository: &Repository,
        parent: &Reference,
        children: &[Digest],
    ) -> Vec<Digest> {
        let mut news = Vec::new();
        let add = |known: &mut Known| {
            let children = children.iter().copied();
            news.extend(children.filter(|child| known.add_led(parent, child)));
            !news.is_empty()
        };
        self.shelf.change(repository, add).await;
        news
    }

    /// Other replicas know what led to `child`.
    pub(super) async fn adopt_led<'a>(
        &self,
        repository: &Repository,
        child: &Digest,
        parents: impl IntoIterator<Item = &'a Reference>,
    ) {
        let adopt = |known: &mut Known| {
            let new = |parent| known.add_led(parent, child);
            parents.into_iter().map(new).filter(|new| *new).count() > 0
        };
        self.shelf.change(repository, adopt).await;
    }

    /// What leads to `child` directly.
    pub async fn parents(&self, repository: &Repository, child: &Digest) -> BTreeSet<Reference> {
        let look = |known: &Known| known.led.get(child).cloned().unwrap_or_default();
        self.shelf.read(repository, look).await
    }

    /// Every tag, manifest and index that leads to `digest`, directly or through others; tags first.
    pub async fn led_by(&self, repository: &Repository, digest: &Digest) -> Vec<Reference> {
        self.shelf
            .read(repository, |known| known.led_by(digest))
            .await
    }

    /// Whether a tag, manifest or index that `is_one` leads to `digest`, as far as is known here. Made
    /// for every request: it looks at the nearest first, and not at many.
    pub async fn leads(
        &self,
        repository: &Repository,
        digest: &Digest,
        mut is_one: impl FnMut(&Reference) -> bool,
    ) -> bool {
        let mut left = MOST_LEADERS;
        self.shelf
            .read(repository, |known| {
                known.leads(digest, NEAR, &mut left, &mut is_one)
            })
            .await
    }

    /// What `parent` leads to directly, as far as this store knows; in no order.
    pub async fn children(&self, repository: &Repository, parent: &Reference) -> Vec<Digest> {
        let look = |known: &Known| {
            let led = known.led.iter();
            let led = led.filter(|(_, parents)| parents.contains(parent));
            led.map(|(child, _)| *child).collect()
        };
        self.shelf.read(repository, look).await
    }

    pub(super) async fn flush(&self) {
        self.shelf.flush().await;
    }

    /// All links of a repository as its file has them. Blocks.
    pub(super) fn on_disk(
        layout: &Layout,
        repository: &Repository,
        faults: &Faults,
    ) -> HashMap<Digest, Link> {
        Known::load(layout, repository, faults).links
    }

    pub(super) async fn run(&self, token: CancellationToken) {
        self.shelf.run(token).await;
    }
}

// === impl Known ===

impl Known {
    fn add_link(&mut self, digest: &Digest, media_type: Option<&MediaType>, now: i64) -> bool {
        let before = self.links.get(digest);
        let link = Link {
            media_type: media_type
                .or(before.and_then(|link| link.media_type.as_ref()))
                .cloned(),
            proved: now,
        };
        // Compared with the time in memory, which is the file's: it is only kept when written.
        let worth_writing = before.is_none_or(|before| {
            before.media_type != link.media_type
                || !(0..REWRITE_AGE).contains(&now.saturating_sub(before.proved))
        });
        if worth_writing {
            self.lines += 1;
            write_link(&mut self.unwritten_links, digest, &link);
            self.links.insert(*digest, link);
        }
        worth_writing
    }

    fn remove_link(&mut self, digest: &Digest, now: i64) -> bool {
        let removed = self.links.remove(digest).is_some();
        if removed {
            self.lines += 1;
            // Writing to a String cannot fail.
            let _ = writeln!(self.unwritten_links, "{digest} {GONE} {now}");
        }
        removed
    }

    fn add_led(&mut self, parent: &Reference, child: &Digest) -> bool {
        let new = self.led.entry(*child).or_default().insert(parent.clone());
        if new {
            self.pairs += 1;
            // Writing to a String cannot fail.
            let _ = writeln!(self.unwritten_led, "{child} {parent}");
        }
        new
    }

    fn leads(
        &self,
        digest: &Digest,
        steps: usize,
        left: &mut usize,
        is_one: &mut impl FnMut(&Reference) -> bool,
    ) -> bool {
        let Some(parents) = self.led.get(digest) else {
            return false;
        };
        let few = (*left).min(parents.len());
        *left -= few;
        if parents.iter().take(few).any(&mut *is_one) {
            return true;
        }
        let mut digests = parents.iter().take(few).filter_map(Reference::digest);
        steps > 1 && digests.any(|parent| self.leads(parent, steps - 1, left, is_one))
    }

    fn led_by(&self, digest: &Digest) -> Vec<Reference> {
        let mut leaders = BTreeSet::new();
        // Also ends cycles, which no honest manifest can make but a line in a file can.
        let mut seen = HashSet::from([*digest]);
        let mut queue = VecDeque::from([*digest]);
        while let Some(child) = queue.pop_front() {
            for parent in self.led.get(&child).into_iter().flatten() {
                leaders.insert(parent.clone());
                if let Reference::Digest(parent) = parent
                    && seen.len() < MOST_PARENTS
                    && seen.insert(*parent)
                {
                    queue.push_back(*parent);
                }
            }
        }
        leaders.into_iter().collect()
    }

    fn read_link(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let digest = words.next()?.parse().ok()?;
        let media_type = match words.next()? {
            GONE => {
                self.links.remove(&digest);
                return Some(());
            }
            "-" => None,
            text => Some(MediaType::parse(text)?),
        };
        let proved = words.next()?.parse().ok()?;
        self.links.insert(digest, Link { media_type, proved });
        Some(())
    }

    fn read_led(&mut self, line: &str) -> Option<()> {
        let (child, parent) = line.split_once(' ')?;
        let new = self
            .led
            .entry(child.parse().ok()?)
            .or_default()
            .insert(parent.parse().ok()?);
        self.pairs += usize::from(new);
        Some(())
    }
}

fn write_link(lines: &mut String, digest: &Digest, link: &Link) {
    let media_type = link.media_type.as_ref().map_or("-", MediaType::as_str);
    // Writing to a String cannot fail.
    let _ = writeln!(lines, "{digest} {media_type} {}", link.proved);
}

/// Hands every whole line to `read` and says how many there were.
fn read_lines(path: &Path, mut read: impl FnMut(&str) -> Option<()>) -> io::Result<usize> {
    let Some(file) = found(File::open(path))? else {
        return Ok(0);
    };
    let mut file = BufReader::new(file);
    let (mut count, mut line) = (0, Vec::new());
    while file.read_until(b'\n', &mut line)? > 0 {
        // A last line without its end was torn by a crash: it may say something wrong.
        if let Some(text) = line
            .strip_suffix(b"\n")
            .and_then(|text| str::from_utf8(text).ok())
        {
            read(text);
        }
        count += 1;
        line.clear();
    }
    Ok(count)
}

impl Kept for Known {
    type Key = Repository;

    fn files(layout: &Layout, repository: &Repository) -> Vec<PathBuf> {
        vec![layout.links(repository), layout.led(repository)]
    }

    fn load(layout: &Layout, repository: &Repository, faults: &Faults) -> Self {
        let mut known = Known::default();
        let links = read_lines(&layout.links(repository), |line| known.read_link(line));
        let led = read_lines(&layout.led(repository), |line| known.read_led(line));
        for result in [&links, &led] {
            if let Err(error) = result {
                let what = format!("read what is known of {repository}");
                let source = io::Error::new(error.kind(), error.to_string());
                faults.note(&StoreError::Io { what, source });
            }
        }
        known.lines = links.unwrap_or_default();
        // A clock that was wrong must not make a proof last longer.
        let now = unix_now();
        for link in known.links.values_mut() {
            link.proved = link.proved.min(now);
        }
        known
    }

    fn take_changes(&mut self, layout: &Layout, repository: &Repository) -> Vec<Change> {
        let links = std::mem::take(&mut self.unwritten_links);
        let led = std::mem::take(&mut self.unwritten_led);
        let mut changes = Vec::new();
        // Most of the file is out of date.
        if self.lines > 2 * self.links.len() + 100 {
            self.lines = self.links.len();
            let mut all = String::new();
            for (digest, link) in &self.links {
                write_link(&mut all, digest, link);
            }
            changes.push(Change::Replace(layout.links(repository), all.into_bytes()));
        } else if !links.is_empty() {
            changes.push(Change::Append(layout.links(repository), links));
        }
        if !led.is_empty() {
            changes.push(Change::Append(layout.led(repository), led));
        }
        changes
    }

    fn weight(&self) -> usize {
        self.links.len() + self.pairs
    }
}

#[cfg(test)]
mod tests;
