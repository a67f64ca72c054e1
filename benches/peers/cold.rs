//! What a cache adds to a pull that it has never seen: one image, many small manifests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::load::{Client, Progress, Request, Sink, ask_once};
use crate::peers::Target;
use crate::report::Figure;
use crate::upstream::Behaviour;
use crate::{Bench, LATENCY, RATE};

const IMAGE: &str = "cold image, 8 layers, 50 MB/s/connection";
const IMAGE_TIME: Figure = Figure::less(IMAGE, "pull, s");
const IMAGE_OVERHEAD: Figure = Figure::less(IMAGE, "pull, times direct");
const IMAGE_CPU: Figure = Figure::less(IMAGE, "CPU s/GB");
const IMAGE_REQUESTS: Figure = Figure::less(IMAGE, "requests at the upstream");
const TAGS: &str = "500 cold manifests by tag, 16 clients";
const TAGS_SPEED: Figure = Figure::more(TAGS, "manifests/s");
const TAGS_OVERHEAD: Figure = Figure::within(TAGS, "time, times direct", 1100);
const TAGS_REQUESTS: Figure = Figure::less(TAGS, "requests at the upstream per manifest");

const TARGETS: [Target; 3] = [Target::Portcullis, Target::Nginx, Target::DockerRegistry];

/// Layers at a time, as containerd has it.
const LAYER_CLIENTS: usize = 3;
const TAG_CLIENTS: usize = 16;
/// After this the rest of the tags is not asked for, and the speed is that of those that were.
const TAGS_LIMIT: Duration = Duration::from_secs(4);

/// The 8-layer image, pulled as containerd does: HEAD of the tag, the manifest, then the blobs.
pub(crate) fn image(bench: &mut Bench) -> Result<()> {
    bench.upstream.behave(Behaviour {
        latency: LATENCY,
        rate: Some(RATE),
        ranges: true,
    });
    let gigabytes = bench.content.gigabytes(&bench.content.image.blobs);
    for repetition in 0..bench.repetitions {
        bench.announce("cold image", repetition, Target::Direct);
        let direct = pull(bench, bench.upstream.address)?.as_secs_f64();
        bench.upstream.take_tally();
        bench
            .report
            .record(IMAGE_TIME, Target::Direct, repetition, direct);
        for target in bench.rotated(&TARGETS, repetition) {
            bench.announce("cold image", repetition, target);
            bench.attempt("cold image", target, |bench| {
                let peer = bench.start(target, None)?;
                let before = peer.group.cpu_seconds();
                let time = pull(bench, peer.address)?.as_secs_f64();
                let tally = bench.upstream.take_tally();
                let cpu = peer.group.cpu_seconds() - before;
                let mut record = |figure, value| {
                    bench.report.record(figure, target, repetition, value);
                };
                record(IMAGE_TIME, time);
                record(IMAGE_OVERHEAD, time / direct);
                record(IMAGE_CPU, cpu / gigabytes);
                record(IMAGE_REQUESTS, tally.requests());
                Ok(())
            });
        }
    }
    Ok(())
}

/// 500 small manifests by tag.
pub(crate) fn tags(bench: &mut Bench) -> Result<()> {
    bench.upstream.behave(Behaviour {
        latency: LATENCY,
        rate: None,
        ranges: true,
    });
    for repetition in 0..bench.repetitions {
        bench.announce("cold tags", repetition, Target::Direct);
        let (direct, _) = ask_for_tags(bench, bench.upstream.address)?;
        bench.upstream.take_tally();
        bench
            .report
            .record(TAGS_SPEED, Target::Direct, repetition, direct);
        for target in bench.rotated(&TARGETS, repetition) {
            bench.announce("cold tags", repetition, target);
            bench.attempt("cold tags", target, |bench| {
                let peer = bench.start(target, None)?;
                bench.upstream.take_tally();
                let (speed, asked) = ask_for_tags(bench, peer.address)?;
                let tally = bench.upstream.take_tally();
                let mut record = |figure, value| {
                    bench.report.record(figure, target, repetition, value);
                };
                record(TAGS_SPEED, speed);
                record(TAGS_OVERHEAD, direct / speed);
                record(TAGS_REQUESTS, tally.requests() / asked);
                Ok(())
            });
        }
    }
    Ok(())
}

fn pull(bench: &Bench, address: SocketAddr) -> Result<Duration> {
    let image = &bench.content.image;
    let begin = Instant::now();
    ask_once(address, &Request::head(&image.tag))?;
    ask_once(address, &Request::get(&image.manifest))?;
    let queue = Queue::new(&image.blobs);
    queue.drain(address, LAYER_CLIENTS, None)?;
    Ok(begin.elapsed())
}

/// Manifests per second, and how many were asked for.
#[expect(clippy::cast_precision_loss, reason = "there are 500")]
fn ask_for_tags(bench: &Bench, address: SocketAddr) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let queue = Queue::new(&bench.content.tiny_tags);
    queue.drain(address, TAG_CLIENTS, Some(begin + TAGS_LIMIT))?;
    let asked = queue.next.into_inner().min(queue.paths.len()) as f64;
    Ok((asked / begin.elapsed().as_secs_f64(), asked))
}

/// Paths that several clients ask for, each once.
struct Queue<'a> {
    paths: &'a [String],
    next: AtomicUsize,
}

// === impl Queue ===

impl<'a> Queue<'a> {
    fn new(paths: &'a [String]) -> Self {
        Queue {
            paths,
            next: AtomicUsize::new(0),
        }
    }

    /// Asks for what is left over `clients` connections, until `deadline`.
    fn drain(&self, address: SocketAddr, clients: usize, deadline: Option<Instant>) -> Result<()> {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(move || -> Result<()> {
                        let mut client = Client::connect(address)?;
                        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
                            let next = self.next.fetch_add(1, Ordering::Relaxed);
                            let Some(path) = self.paths.get(next) else {
                                break;
                            };
                            client.ask(&Request::get(path), Sink::Drop, &Progress::default())?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow!("a client panicked"))?)
        })
    }
}
