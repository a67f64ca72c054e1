//! Every host that was dialled, or asked for through a proxy, for whom and why.
//!
//! Metrics have labels from closed sets; hosts come from configurations, redirects and token realms,
//! so they are counted here: at most 3,072 that were used and 1,024 that were refused. What was asked
//! for longest ago makes room, and a flood of refusals pushes out no host that was used.
//!
//! A request to a known host takes one short lock and allocates nothing; its bytes are counted in
//! the [`Row`] that it keeps, without any lock.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Rows of hosts that were used.
const MOST_USED: usize = 3072;
/// Rows of hosts that were refused: an upstream may name as many as it likes.
const MOST_REFUSED: usize = 1024;
/// The longest name that is kept, in bytes; those of DNS have at most 253.
const LONGEST: usize = 255;

/// What a host was wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A registry's own API.
    Endpoint,
    Token,
    Redirect,
    /// The shared object store.
    Store,
    /// Who says who we are, to the shared store or to a registry.
    Identity,
    /// Another replica.
    Peer,
}

/// Why a host was not dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No list of the configuration has it.
    NotListed,
    /// Its address is one that nothing public has.
    InternalAddress,
    /// Not by https.
    Plain,
    /// The URL carries a login.
    UserInfo,
}

/// One host and port, and what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial<'a> {
    /// A name or an address, as a URL spells it.
    pub host: &'a str,
    pub port: u16,
    /// The key of the configuration for which it is dialled: `quay.io`, `store.shared`.
    pub owner: &'a str,
    pub purpose: Purpose,
}

/// One per process.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: Mutex<Rows>,
    /// Something has changed that nobody has written down.
    unwritten: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Rows {
    /// By host: few have more than one.
    hosts: HashMap<Box<str>, Vec<Arc<Row>>>,
    used: usize,
    refused: usize,
    forgotten: u64,
}

/// What is known of one [`Dial`]. Whoever sends a request counts in it.
#[derive(Debug)]
pub struct Row {
    host: Box<str>,
    port: u16,
    owner: Box<str>,
    purpose: Purpose,
    refusal: Option<Refusal>,
    /// Unix seconds.
    first: AtomicI64,
    last: AtomicI64,
    requests: AtomicU64,
    received: AtomicU64,
    failures: AtomicU64,
    unwritten: Arc<AtomicBool>,
}

/// A row as it is shown and written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub host: String,
    pub port: u16,
    #[serde(rename = "for")]
    pub owner: String,
    pub purpose: Purpose,
    /// Why it was never dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    pub first: Timestamp,
    pub last: Timestamp,
    /// How often it was asked, or refused.
    pub requests: u64,
    /// Bytes of bodies.
    pub received: u64,
    /// Requests that got no answer, or not all of it.
    pub failures: u64,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// By host, port, and what for.
    pub hosts: Vec<Entry>,
    /// Rows that had to make room.
    #[serde(default)]
    pub forgotten: u64,
}

// === impl Ledger ===

impl Ledger {
    /// The row of a host that is about to be asked; [`Row::asked`] then counts.
    #[must_use]
    pub fn row(&self, dial: &Dial<'_>) -> Arc<Row> {
        self.find(dial, None)
    }

    /// Notes that a host was wanted and not dialled.
    pub fn refused(&self, dial: &Dial<'_>, why: Refusal) {
        self.find(dial, Some(why)).asked();
    }

    /// The request that was counted in `row` never went out: the host was refused after all.
    pub fn withdraw(&self, row: &Row, why: Refusal) {
        row.requests.fetch_sub(1, Ordering::Relaxed);
        self.refused(&row.dial(), why);
    }

    fn find(&self, dial: &Dial<'_>, refusal: Option<Refusal>) -> Arc<Row> {
        let host = clip(dial.host);
        let mut rows = self.lock();
        let same = |row: &&Arc<Row>| {
            row.port == dial.port
                && row.purpose == dial.purpose
                && row.refusal == refusal
                && *row.owner == *dial.owner
        };
        if let Some(row) = rows.hosts.get(host).and_then(|rows| rows.iter().find(same)) {
            return Arc::clone(row);
        }
        let now = now();
        let row = Arc::new(Row {
            host: host.into(),
            port: dial.port,
            owner: dial.owner.into(),
            purpose: dial.purpose,
            refusal,
            first: AtomicI64::new(now),
            last: AtomicI64::new(now),
            requests: AtomicU64::new(0),
            received: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unwritten: Arc::clone(&self.unwritten),
        });
        rows.add(Arc::clone(&row));
        row
    }

    /// What was asked for, and how often.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let rows = self.lock();
        let mut hosts: Vec<Entry> = rows
            .hosts
            .values()
            .flatten()
            .filter_map(|row| row.entry())
            .collect();
        let forgotten = rows.forgotten;
        drop(rows);
        hosts.sort_unstable_by(|a, b| a.key().cmp(&b.key()));
        Snapshot { hosts, forgotten }
    }

    /// Goes on from what an earlier process has written down. What is counted already is added.
    pub fn restore(&self, snapshot: Snapshot) {
        for entry in snapshot.hosts {
            let dial = Dial {
                host: &entry.host,
                port: entry.port,
                owner: &entry.owner,
                purpose: entry.purpose,
            };
            self.find(&dial, entry.refused).add(&entry);
        }
        self.lock().forgotten += snapshot.forgotten;
        self.unwritten.store(false, Ordering::Relaxed);
    }

    /// Whether anything has changed since this was last asked.
    #[must_use]
    pub fn take_changed(&self) -> bool {
        self.unwritten.swap(false, Ordering::Relaxed)
    }

    /// What was taken has not been written after all.
    pub fn mark_changed(&self) {
        self.unwritten.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// What comes from a redirect may be of any length.
fn clip(host: &str) -> &str {
    &host[..host.floor_char_boundary(LONGEST)]
}

// === impl Rows ===

impl Rows {
    fn add(&mut self, row: Arc<Row>) {
        let is_refused = row.refusal.is_some();
        let (count, most) = if is_refused {
            (&mut self.refused, MOST_REFUSED)
        } else {
            (&mut self.used, MOST_USED)
        };
        if *count < most {
            *count += 1;
        } else {
            self.forget_oldest(is_refused);
        }
        self.hosts.entry(row.host.clone()).or_default().push(row);
    }

    fn forget_oldest(&mut self, refused: bool) {
        let of_kind = |row: &&Arc<Row>| row.refusal.is_some() == refused;
        let oldest = self
            .hosts
            .values()
            .flatten()
            .filter(of_kind)
            .min_by_key(|row| row.last.load(Ordering::Relaxed))
            .map(Arc::clone);
        let Some(oldest) = oldest else { return };
        self.hosts.retain(|_, rows| {
            rows.retain(|row| !Arc::ptr_eq(row, &oldest));
            !rows.is_empty()
        });
        self.forgotten += 1;
    }
}

// === impl Row ===

impl Row {
    /// A request goes out now.
    pub fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.last.fetch_max(now(), Ordering::Relaxed);
        self.changed();
    }

    /// Bytes of a body have come.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.changed();
    }

    /// There was no answer, or it ended before its end.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.changed();
    }

    fn changed(&self) {
        // Mostly it is set already, and a line of the cache stays where it is.
        if !self.unwritten.load(Ordering::Relaxed) {
            self.unwritten.store(true, Ordering::Relaxed);
        }
    }

    fn dial(&self) -> Dial<'_> {
        Dial {
            host: &self.host,
            port: self.port,
            owner: &self.owner,
            purpose: self.purpose,
        }
    }

    fn add(&self, entry: &Entry) {
        self.first
            .fetch_min(entry.first.as_second(), Ordering::Relaxed);
        // A clock that was wrong must not make a row immortal.
        let last = entry.last.as_second().min(now());
        if self.requests.fetch_add(entry.requests, Ordering::Relaxed) == 0 {
            self.last.store(last, Ordering::Relaxed);
        }
        self.received.fetch_add(entry.received, Ordering::Relaxed);
        self.failures.fetch_add(entry.failures, Ordering::Relaxed);
    }

    /// None while nothing has been asked.
    fn entry(&self) -> Option<Entry> {
        let requests = self.requests.load(Ordering::Relaxed);
        let time = |seconds: &AtomicI64| {
            Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap_or_default()
        };
        (requests > 0).then(|| Entry {
            host: self.host.to_string(),
            port: self.port,
            owner: self.owner.to_string(),
            purpose: self.purpose,
            refused: self.refusal,
            first: time(&self.first),
            last: time(&self.last),
            requests,
            received: self.received.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        })
    }
}

// === impl Entry ===

impl Entry {
    fn key(&self) -> (&str, u16, Purpose, &str, Option<Refusal>) {
        (
            &self.host,
            self.port,
            self.purpose,
            &self.owner,
            self.refused,
        )
    }
}

// === impl Purpose ===

impl Purpose {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Endpoint => "endpoint",
            Purpose::Token => "token",
            Purpose::Redirect => "redirect",
            Purpose::Store => "store",
            Purpose::Identity => "identity",
            Purpose::Peer => "peer",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Refusal::NotListed => "not on a list",
            Refusal::InternalAddress => "internal address",
            Refusal::Plain => "not https",
            Refusal::UserInfo => "login in the URL",
        })
    }
}

#[cfg(test)]
mod tests;
