//! Many clients and one cold blob; and a proxy that is killed in the middle of it.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::content::Bytes;
use crate::load::{Answer, Client, Progress, Request, Sink};
use crate::peers::Target;
use crate::report::Figure;
use crate::upstream::Behaviour;
use crate::{Bench, LATENCY, RATE};

const CLIENTS: u32 = 50;
/// How many of them look at what they get.
const COMPARING: u32 = 2;

/// The rows of a herd.
struct Rows {
    ranges: bool,
    targets: &'static [Target],
    amplification: Figure,
    slowest: Figure,
    relative: Figure,
    spread: Figure,
    cpu: Figure,
    memory: Figure,
}

const HERD: &str = "herd: 50 clients, one cold 200 MB blob";
const WITH_RANGES: Rows = Rows {
    ranges: true,
    targets: &[
        Target::Portcullis,
        Target::NginxSlice,
        Target::Nginx,
        Target::DockerRegistry,
    ],
    amplification: Figure::within(HERD, "bytes at the upstream / blob", 1010),
    slowest: Figure::less(HERD, "slowest client, s"),
    relative: Figure::within(HERD, "slowest client / one direct", 600),
    spread: Figure::within(HERD, "first byte, last client - first, s", 20),
    cpu: Figure::less(HERD, "CPU s/GB served"),
    memory: Figure::less(HERD, "peak resident memory, MiB"),
};
const PLAIN_HERD: &str = "the same, upstream without ranges";
/// Slices cannot be had from such an upstream, and docker-registry never asks for ranges.
const WITHOUT_RANGES: Rows = Rows {
    ranges: false,
    targets: &[Target::Portcullis, Target::Nginx],
    amplification: Figure::within(PLAIN_HERD, "bytes at the upstream / blob", 1000),
    slowest: Figure::less(PLAIN_HERD, "slowest client, s"),
    relative: Figure::within(PLAIN_HERD, "slowest client / one direct", 1050),
    spread: Figure::within(PLAIN_HERD, "first byte, last client - first, s", 20),
    cpu: Figure::less(PLAIN_HERD, "CPU s/GB served"),
    memory: Figure::less(PLAIN_HERD, "peak resident memory, MiB"),
};

const KILL: &str = "kill -9 at 50 % of a cold 200 MB blob";
const KILL_AGAIN: Figure = Figure::within(KILL, "bytes fetched again / blob", 10);
const KILL_TIME: Figure = Figure::less(KILL, "next pull, s");

pub(crate) fn with_ranges(bench: &mut Bench) -> Result<()> {
    herd(bench, &WITH_RANGES)
}

pub(crate) fn without_ranges(bench: &mut Bench) -> Result<()> {
    herd(bench, &WITHOUT_RANGES)
}

fn herd(bench: &mut Bench, rows: &Rows) -> Result<()> {
    let path = bench.content.herd_blob.clone();
    let size = bench.content.gigabytes(std::slice::from_ref(&path)) * 1e9;
    bench.upstream.behave(Behaviour {
        latency: LATENCY,
        rate: Some(RATE),
        ranges: rows.ranges,
    });
    for repetition in 0..bench.repetitions {
        bench.announce("herd", repetition, Target::Direct);
        let direct = stampede(bench, bench.upstream.address, 1)?.slowest;
        bench.upstream.take_tally();
        bench
            .report
            .record(rows.slowest, Target::Direct, repetition, direct);
        for target in bench.rotated(rows.targets, repetition) {
            bench.announce("herd", repetition, target);
            bench.attempt("herd", target, |bench| {
                let peer = bench.start(target, None)?;
                bench.upstream.take_tally();
                let before = peer.group.cpu_seconds();
                let run = stampede(bench, peer.address, CLIENTS)?;
                let fetched = bench.upstream.take_tally().bytes(&path);
                let cpu = peer.group.cpu_seconds() - before;
                let mut record = |figure, value| {
                    bench.report.record(figure, target, repetition, value);
                };
                record(rows.amplification, fetched / size);
                record(rows.slowest, run.slowest);
                record(rows.relative, run.slowest / direct);
                record(rows.spread, run.spread);
                record(rows.cpu, cpu / (f64::from(CLIENTS) * size / 1e9));
                record(rows.memory, peer.group.peak_memory());
                Ok(())
            });
        }
    }
    Ok(())
}

/// Kills the proxy when its only client has half of the blob, and pulls again.
pub(crate) fn kill(bench: &mut Bench) {
    let path = bench.content.herd_blob.clone();
    let size = bench.content.gigabytes(std::slice::from_ref(&path)) * 1e9;
    bench.upstream.behave(Behaviour {
        latency: LATENCY,
        rate: Some(RATE),
        ranges: true,
    });
    let targets = [
        Target::Portcullis,
        Target::NginxSlice,
        Target::Nginx,
        Target::DockerRegistry,
    ];
    for repetition in 0..bench.repetitions {
        for target in bench.rotated(&targets, repetition) {
            bench.announce("kill -9", repetition, target);
            bench.attempt("kill -9", target, |bench| {
                let mut peer = bench.start(target, None)?;
                bench.upstream.take_tally();
                read_half(peer.address, &path, size)?;
                peer.kill_and_restart()?;
                let again = stampede(bench, peer.address, 1)?;
                let fetched = bench.upstream.take_tally().bytes(&path);
                let mut record = |figure, value| {
                    bench.report.record(figure, target, repetition, value);
                };
                record(KILL_AGAIN, fetched / size - 1.0);
                record(KILL_TIME, again.slowest);
                Ok(())
            });
        }
    }
}

/// What happened to a herd, in seconds.
struct Stampede {
    slowest: f64,
    /// From the first client's first byte to the last client's.
    spread: f64,
}

/// `clients` ask for the cold blob at the same moment.
fn stampede(bench: &Bench, address: SocketAddr, clients: u32) -> Result<Stampede> {
    let request = Request::get(&bench.content.herd_blob);
    let resource = bench.content.get(&request.path).context("no such blob")?;
    let Bytes::File(file) = &resource.bytes else {
        bail!("a blob is a file");
    };
    let ready = Barrier::new(clients as usize + 1);
    let (begin, answers) = thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|number| {
                let (request, ready) = (&request, &ready);
                let sink = match number {
                    0..COMPARING => Sink::Compare(file),
                    _ => Sink::Drop,
                };
                scope.spawn(move || -> Result<Answer> {
                    let client = Client::connect(address);
                    ready.wait();
                    Ok(client?.ask(request, sink, &Progress::default())?)
                })
            })
            .collect();
        ready.wait();
        let begin = Instant::now();
        let answers: Result<Vec<Answer>> = workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect();
        (begin, answers)
    });
    let answers = answers?;
    let first_bytes = || answers.iter().map(|answer| answer.first_byte);
    let (Some(first), Some(last)) = (first_bytes().min(), first_bytes().max()) else {
        bail!("a herd of none");
    };
    let end = answers
        .iter()
        .map(|answer| answer.end)
        .max()
        .unwrap_or(begin);
    Ok(Stampede {
        slowest: end.duration_since(begin).as_secs_f64(),
        spread: last.duration_since(first).as_secs_f64(),
    })
}

/// Returns when a client has read half of the blob, and lets go of it.
fn read_half(address: SocketAddr, path: &str, size: f64) -> Result<()> {
    let progress = Progress::default();
    let deadline = Instant::now() + Duration::from_secs(30);
    thread::scope(|scope| {
        let client = scope
            .spawn(|| Client::connect(address)?.ask(&Request::get(path), Sink::Drop, &progress));
        #[expect(clippy::cast_precision_loss, reason = "a blob is far below 2^52 bytes")]
        let half = || progress.bytes.load(Ordering::Relaxed) as f64 >= size / 2.0;
        while !half() && !client.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        let reached = half() && !client.is_finished();
        progress.stop.store(true, Ordering::Relaxed);
        if reached {
            Ok(())
        } else {
            Err(anyhow!("the blob was not seen half way"))
        }
    })
}
