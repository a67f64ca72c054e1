//! What a cache serves from its own disk: manifests by the second, processor time by the gigabyte.
//!
//! All targets run with everything warm; one at a time is loaded, in an order that rotates.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::content::{Bytes, Content};
use crate::load::{
    Client, Progress, Request, Sink, Throughput, ask_once, ask_until_stopped, hammer,
};
use crate::peers::{Peer, Target};
use crate::report::Figure;
use crate::tls::Identity;
use crate::upstream::Behaviour;
use crate::{Bench, LATENCY};

const MANIFESTS: &str = "cached manifests, 16 clients";
const BLOBS: &str = "cached blob of 100 MB";
const BLOBS_TLS: &str = "cached blob of 100 MB, TLS (AES-128-GCM)";

const MANIFEST_CLIENTS: usize = 16;

/// How long one target is loaded in one repetition: about 40 ticks of the process clock for the
/// most frugal.
const TIME: Duration = Duration::from_secs(1);

/// One load and the two rows it fills.
struct Cell {
    request: Request,
    clients: usize,
    speed: Figure,
    cost: Figure,
    /// What the speed counts: requests, or gigabytes.
    done: fn(&Throughput) -> f64,
    /// The cost is that of so many of them.
    per: f64,
}

pub(crate) fn run(bench: &mut Bench) {
    let content = Arc::clone(&bench.content);
    let (tag, digest) = (&content.image.tag, &content.image.manifest);
    let mut cells = vec![
        manifests(
            Request::get(digest),
            "GET by digest, requests/s",
            "GET by digest, CPU s/10k",
        ),
        manifests(
            Request::get(tag),
            "GET by tag, requests/s",
            "GET by tag, CPU s/10k",
        ),
        manifests(
            Request::head(tag),
            "HEAD by tag, requests/s",
            "HEAD by tag, CPU s/10k",
        ),
    ];
    cells.extend(blobs(&content.hot_blob, BLOBS));
    load(bench, &cells, None);
}

pub(crate) fn run_tls(bench: &mut Bench) -> Result<()> {
    let identity = Identity::generate(bench.directory.path())?;
    let cells = blobs(&bench.content.hot_blob, BLOBS_TLS);
    load(bench, &cells, Some(&identity));
    Ok(())
}

fn manifests(request: Request, speed: &'static str, cost: &'static str) -> Cell {
    Cell {
        request,
        clients: MANIFEST_CLIENTS,
        speed: Figure::more(MANIFESTS, speed),
        cost: Figure::less(MANIFESTS, cost),
        done: |throughput| throughput.requests,
        per: 10_000.0,
    }
}

fn blobs(path: &str, section: &'static str) -> Vec<Cell> {
    [
        (1, "1 client, GB/s", "1 client, CPU s/GB"),
        (8, "8 clients, GB/s", "8 clients, CPU s/GB"),
        (32, "32 clients, GB/s", "32 clients, CPU s/GB"),
    ]
    .into_iter()
    .map(|(clients, speed, cost)| Cell {
        request: Request::get(path),
        clients,
        speed: Figure::more(section, speed),
        cost: Figure::less(section, cost),
        done: |throughput| throughput.gigabytes,
        per: 1.0,
    })
    .collect()
}

fn load(bench: &mut Bench, cells: &[Cell], tls: Option<&Identity>) {
    bench.upstream.behave(Behaviour {
        latency: LATENCY,
        rate: None,
        ranges: true,
    });
    let mut peers = Vec::new();
    for target in bench.chosen(&[Target::Portcullis, Target::Nginx, Target::DockerRegistry]) {
        let started = bench.start(target, tls).and_then(|peer| {
            warm(&peer, cells, tls, &bench.content)?;
            Ok(peer)
        });
        match started {
            Ok(peer) => peers.push(peer),
            Err(error) => bench.fail("warm", target, &error),
        }
    }
    // Fills go on in the background; wait for the last of them.
    bench.upstream.take_tally();
    for repetition in 0..bench.repetitions {
        for cell in cells {
            for index in 0..peers.len() {
                let peer = &peers[(index + repetition) % peers.len()];
                bench.announce(cell.cost.name, repetition, peer.target);
                match measure(peer, cell, tls) {
                    Ok(throughput) => {
                        let done = (cell.done)(&throughput);
                        let speed = done / throughput.seconds;
                        let cost = throughput.cpu_seconds * cell.per / done;
                        let mut record = |figure, value| {
                            bench.report.record(figure, peer.target, repetition, value);
                        };
                        record(cell.speed, speed);
                        record(cell.cost, cost);
                    }
                    Err(error) => bench.fail(cell.cost.name, peer.target, &error),
                }
            }
        }
    }
}

/// Asks for everything once, and makes sure that what will be measured are the right bytes.
fn warm(peer: &Peer, cells: &[Cell], tls: Option<&Identity>, content: &Content) -> Result<()> {
    for Cell { request, .. } in cells {
        let bytes = content.get(&request.path).map(|resource| &resource.bytes);
        match (tls, bytes) {
            (Some(tls), Some(Bytes::File(file))) => tls.compare(peer.address, request, file)?,
            (None, Some(Bytes::File(file))) => {
                let mut client = Client::connect(peer.address)?;
                client.ask(request, Sink::Compare(file), &Progress::default())?;
            }
            _ => drop(ask_once(peer.address, request)?),
        }
    }
    // The last bytes go out when a blob is complete; let it become one.
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn measure(peer: &Peer, cell: &Cell, tls: Option<&Identity>) -> std::io::Result<Throughput> {
    let client = |progress: &Progress, ready: &Barrier| match tls {
        None => ask_until_stopped(peer.address, &cell.request, progress, ready),
        Some(tls) => tls.fetch_until_stopped(peer.address, &cell.request, progress, ready),
    };
    hammer(cell.clients, TIME, || peer.group.cpu_seconds(), client)
}
