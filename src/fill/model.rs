//! The fill against a reference model so simple that it is obviously right: a blob is an array of
//! bytes, a client that gets to the end of its range has exactly those, and no source sends a
//! byte twice.
//!
//! Clients join at any time, at any range, and leave in the middle; sources cut, ignore ranges,
//! send no length, throttle, vanish or lie; so do those that are near, and which one that is
//! changes in between; the process restarts. Time is paused, so every run of a case is the same.

mod fake;
mod passing;
mod scenes;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Config, FillError, Fills, Join, Near, Source, TAIL};
use crate::oci::Digest;
use crate::store::{self, Store};
use crate::telemetry::Metrics;

use fake::{Fake, FakeNear, Manner, Stop};

#[derive(Clone, Debug)]
struct Visit {
    source: usize,
    after: u64,
    range: Range<u64>,
    /// Leaves when it has so many bytes.
    leaves_at: u64,
}

#[derive(Clone, Debug)]
struct Case {
    size: usize,
    window: u64,
    connections: usize,
    manners: Vec<Manner>,
    cuts: u64,
    cut_after: usize,
    chunk: usize,
    latency: u64,
    visits: Vec<Visit>,
    /// The process is stopped in an orderly way then, and started again.
    restart_after: Option<u64>,
    /// The store is too small for the blob: every fill slides.
    no_room: bool,
    /// None: there is nobody near.
    near: Option<Vec<Leg>>,
}

/// What a fill is told that asks who is near.
#[derive(Clone, Debug)]
struct Leg {
    /// None: nobody, go to the upstream.
    manner: Option<Manner>,
    /// Until when that is true, in ms.
    outdated_after: Option<u64>,
}

#[derive(Debug)]
enum Got {
    All(Vec<u8>),
    Left,
    Failed(FillError),
}

// === running a case ===

/// A running process, as far as fills can tell.
struct Process {
    fills: Fills,
    store: Arc<Store>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Process {
    fn start(dir: &Path, case: &Case, near: Option<&Arc<FakeNear>>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let config = store::Config {
            path: dir.to_owned(),
            max_size: case.no_room.then_some(case.size as u64 / 2),
            ..store::Config::default()
        };
        let store = Store::open(&config, None, Arc::clone(&metrics)).unwrap();
        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        let config = Config {
            connections: case.connections,
            window: case.window,
        };
        let disk = Arc::clone(&store.disk);
        let near = near.map(|near| Arc::clone(near) as Arc<dyn Near>);
        let fills = Fills::new(config, disk, near, metrics, tracker.clone(), stop.clone());
        Process {
            fills,
            store,
            tracker,
            stop,
        }
    }

    /// What the store shows is right, whatever happened.
    async fn judge_store(&self, digest: &Digest) {
        if self.store.disk.stat(digest).is_none() {
            return;
        }
        let file = self
            .store
            .disk
            .open_blob(digest)
            .await
            .unwrap()
            .expect("it is there");
        let mut bytes = Vec::new();
        read(&file, &mut bytes);
        assert_eq!(
            Digest::sha256(&bytes),
            *digest,
            "the store shows wrong bytes"
        );
    }

    async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.store.close().await.unwrap();
    }
}

async fn visit(
    process: &Process,
    digest: Digest,
    source: Arc<dyn Source>,
    visit: &Visit,
    size: u64,
) -> Got {
    if process.store.disk.stat(&digest).is_some() {
        let file = process
            .store
            .disk
            .open_blob(&digest)
            .await
            .unwrap()
            .expect("it was there");
        let range = visit.range.start.min(size)..visit.range.end.min(size);
        let mut bytes = Vec::new();
        read(&file.slice(range), &mut bytes);
        return Got::All(bytes);
    }
    // Sources other than Gone have the blob, so this stands for the HEAD that proved it.
    let proved = true;
    let mut joined =
        match process
            .fills
            .join_or_start(&digest, &source, proved, Some(visit.range.start))
        {
            Ok(Join::Started(joined) | Join::Joined(joined)) => joined,
            Ok(Join::ProveFirst) => unreachable!("it is proved"),
            Err(error) => return Got::Failed(error),
        };
    if let Err(error) = joined.opened().await {
        return Got::Failed(error);
    }
    let mut reader = joined.read(visit.range.clone());
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(piece) => read(&piece, &mut bytes),
            Err(error) => return Got::Failed(error),
        }
        if bytes.len() as u64 >= visit.leaves_at {
            return Got::Left;
        }
    }
    Got::All(bytes)
}

fn read(piece: &store::FileRange, bytes: &mut Vec<u8>) {
    use std::os::unix::fs::FileExt as _;
    let start = bytes.len();
    bytes.resize(start + usize::try_from(piece.len()).unwrap(), 0);
    piece
        .file()
        .read_exact_at(&mut bytes[start..], piece.range().start)
        .unwrap();
}

/// Not a pattern: wrong offsets must show.
fn content(size: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(size).collect()
}

fn run(case: &Case) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(play(case));
}

async fn play(case: &Case) {
    let dir = tempfile::tempdir().unwrap();
    let content = content(case.size);
    let digest = Digest::sha256(&content);
    let size = case.size as u64;
    let fakes: Vec<Arc<Fake>> = (case.manners.iter().enumerate())
        .map(|(at, manner)| Arc::new(Fake::new(format!("source{at}"), *manner, &content, case)))
        .collect();

    let stops = stops(case, &content);
    let nearby: Vec<Arc<Fake>> = stops
        .iter()
        .filter_map(|stop| stop.source.clone())
        .collect();
    let near = case
        .near
        .is_some()
        .then(|| Arc::new(FakeNear::new(stops, case)));

    let mut process = Arc::new(Process::start(dir.path(), case, near.as_ref()));
    let mut clients = JoinSet::new();
    let mut restarted = false;
    let mut visits = case.visits.clone();
    visits.sort_by_key(|visit| visit.after);
    let mut clock = 0;
    let mut results = Vec::new();
    for planned in visits {
        if let Some(at) = case.restart_after
            && !restarted
            && planned.after >= at
        {
            restarted = true;
            sleep(Duration::from_millis(at - clock)).await;
            clock = at;
            process.stop.cancel();
            while let Some(result) = clients.join_next().await {
                results.push(result.unwrap());
            }
            Arc::into_inner(process)
                .expect("nobody holds it")
                .end()
                .await;
            if let Some(near) = &near {
                near.passed().await;
            }
            process = Arc::new(Process::start(dir.path(), case, near.as_ref()));
        }
        sleep(Duration::from_millis(planned.after - clock)).await;
        clock = planned.after;
        let source = Arc::clone(&fakes[planned.source]) as Arc<dyn Source>;
        let process = Arc::clone(&process);
        clients.spawn(async move {
            let got = visit(&process, digest, source, &planned, size).await;
            (planned, got)
        });
    }
    while let Some(result) = clients.join_next().await {
        results.push(result.unwrap());
    }

    let sent = fakes
        .iter()
        .map(|fake| fake.sent.load(Ordering::SeqCst))
        .sum();
    let turns = near
        .as_ref()
        .map_or(0, |near| near.turns.load(Ordering::SeqCst));
    let lied = |fake: &Arc<Fake>| fake.condemned.load(Ordering::SeqCst) > 0;
    let misled = nearby.iter().any(lied);
    judge(case, &content, &results, restarted, sent, turns, misled);
    process.judge_store(&digest).await;
    drop(clients);
    Arc::into_inner(process)
        .expect("nobody holds it")
        .end()
        .await;
    if let Some(near) = near {
        assert_eq!(
            near.held.load(Ordering::SeqCst),
            0,
            "a vigil outlives its fill"
        );
        // Whether they kept up or not.
        for got in near.passed().await {
            assert!(
                got.is_err() || got.is_ok_and(|bytes| bytes == content),
                "other bytes were passed on to the end"
            );
        }
    }
}

/// What a case's fills are told who ask who is near.
fn stops(case: &Case, content: &Bytes) -> Vec<Stop> {
    let legs = case.near.iter().flatten().enumerate();
    legs.map(|(at, leg)| {
        let fake = |manner| Arc::new(Fake::new(format!("near{at}"), manner, content, case));
        Stop {
            source: leg.manner.map(fake),
            outdated_after: leg.outdated_after.map(Duration::from_millis),
        }
    })
    .collect()
}

/// What the model says about what the clients got and the sources sent.
///
/// `turns`: how often a fill asked who is near; `misled`: a near source was found to lie.
fn judge(
    case: &Case,
    content: &[u8],
    results: &[(Visit, Got)],
    restarted: bool,
    sent: u64,
    turns: u64,
    misled: bool,
) {
    let size = case.size as u64;
    let all_honest = !case
        .manners
        .iter()
        .any(|manner| matches!(manner, Manner::Corrupt | Manner::Gone));
    let all_ranges = !case
        .manners
        .iter()
        .any(|manner| matches!(manner, Manner::NoRanges | Manner::NoLength));
    // Cuts alone never fail a fill whose sources can go on where they stopped: each new byte buys
    // two more tries.
    let reliable = all_honest && (all_ranges || case.cuts == 0);
    // Wrong bytes from near may have been given out before they were found to be wrong.
    let near_honest = !case
        .near
        .iter()
        .flatten()
        .any(|leg| leg.manner == Some(Manner::Corrupt));
    for (visit, got) in results {
        match got {
            Got::All(bytes) => {
                let range = visit.range.start.min(size)..visit.range.end.min(size);
                let range =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                let right = bytes.as_slice() == &content[range.clone()];
                // A range that stays clear of the tail may carry what was not verified yet.
                let reaches_tail = visit.range.end.min(size) > size.saturating_sub(TAIL);
                assert!(
                    right || !reaches_tail,
                    "{visit:?} got wrong bytes to the end"
                );
            }
            Got::Left => {}
            Got::Failed(error) => {
                let by_restart = restarted && matches!(error, FillError::Stopping);
                let by_liar = !near_honest && matches!(error, FillError::WrongBytes { .. });
                let excused = by_restart || by_liar || !reliable;
                assert!(excused, "{visit:?} failed: {error}");
            }
        }
    }
    if all_ranges && all_honest && near_honest && !case.no_room {
        // A stop may catch each fetcher with a chunk that is being written and one that has just
        // come; so may a turn.
        let stops = turns + u64::from(restarted);
        let caught = stops * (2 * case.connections * case.chunk) as u64;
        assert!(
            sent <= size + caught,
            "{sent} bytes were sent for a blob of {size}"
        );
    }
    if misled && all_honest && all_ranges && !case.no_room {
        // Once for what was mixed, once for what near made of it.
        assert!(sent <= 3 * size + 8 * case.window, "{sent} of {size}");
    }
}

// === cases ===

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        6 => Just(Manner::Honest),
        1 => Just(Manner::NoRanges),
        1 => Just(Manner::NoLength),
        1 => Just(Manner::Corrupt),
        1 => Just(Manner::Throttling),
        1 => Just(Manner::Gone),
    ]
}

fn legs() -> impl Strategy<Value = Option<Vec<Leg>>> {
    let leg = (
        prop::option::weighted(0.7, manner()),
        prop::option::weighted(0.4, 1_u64..300),
    );
    let leg = leg.prop_map(|(manner, outdated_after)| Leg {
        manner,
        outdated_after,
    });
    prop::option::of(prop::collection::vec(leg, 0..5))
}

fn case() -> impl Strategy<Value = Case> {
    let size = prop_oneof![
        Just(0_usize),
        1_usize..2000,
        60_000_usize..70_000,
        70_000_usize..400_000
    ];
    (
        (
            size,
            1_u64..5,
            1_usize..5,
            prop::collection::vec(manner(), 1..4),
        ),
        (0_u64..6, 1_usize..100_000, 500_usize..20_000, 0_u64..40),
        prop::collection::vec(
            (
                any::<prop::sample::Index>(),
                0_u64..400,
                0.0..1.0_f64,
                0.0..1.2_f64,
                0.05..3.0_f64,
            ),
            1..8,
        ),
        (
            prop::option::of(1_u64..300),
            prop::bool::weighted(0.2),
            legs(),
        ),
    )
        .prop_map(
            |(
                (size, window, connections, manners),
                (cuts, cut_after, chunk, latency),
                visits,
                (restart_after, no_room, near),
            )| {
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss
                )]
                let scaled = |share: f64| (size as f64 * share) as u64;
                let visits = visits
                    .into_iter()
                    .map(|(source, after, start, length, leaves)| {
                        let start = if start < 0.5 { 0 } else { scaled(start - 0.5) };
                        let end = if length > 0.6 {
                            u64::MAX
                        } else {
                            start + scaled(length)
                        };
                        Visit {
                            source: source.index(manners.len()),
                            after,
                            range: start..end,
                            leaves_at: if leaves > 1.0 {
                                u64::MAX
                            } else {
                                scaled(leaves) + 1
                            },
                        }
                    })
                    .collect();
                Case {
                    size,
                    window: window * 16 * 1024,
                    connections,
                    manners,
                    cuts,
                    cut_after,
                    chunk,
                    latency,
                    visits,
                    restart_after,
                    no_room,
                    near,
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn fills_behave_like_the_model(case in case()) {
        run(&case);
    }
}
