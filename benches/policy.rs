//! What one decision costs: `cargo bench --bench policy`. Nanoseconds for one `evaluate`, over
//! policies of 10 to 10,000 rules of the kinds that people write.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use portcullis::oci::Image;
use portcullis::policy::{Client, Config, Engine, Target};

/// In one measurement; the fastest of many counts, since others use the machine too.
const TIMES: u32 = 2_000;
const MEASUREMENTS: u32 = 200;

fn main() {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<44} {:>8} {:>8} {:>8} {:>8}",
        "ns per decision; rules:", 10, 100, 1000, 10_000
    )
    .unwrap();
    let engines = [10, 100, 1000, 10_000].map(engine);
    for (what, image) in [
        ("first rule decides", "k8s.gcr.io/pause:3.9"),
        ("a rule in the middle decides", "r5.corp.example/team/app:1"),
        ("a rule with an exact name", "quay.io/team-8/app:v1"),
        ("a rule with a wildcard", "x.zone7.example/app:1"),
        ("last rule decides", "docker.io/library/nginx:1.27"),
        ("no rule, the default refuses", "nowhere.example/app:1"),
        (
            "by digest",
            "quay.io/team-8/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
    ] {
        write!(out, "{what:<44}").unwrap();
        let target = Target::from(&image.parse::<Image>().unwrap());
        for engine in &engines {
            write!(out, " {:>8}", measure(engine, &target)).unwrap();
        }
        writeln!(out).unwrap();
    }
}

/// Half a dozen kinds of rules, mixed.
fn engine(rules: usize) -> Engine {
    let mut policy = String::from("default = \"deny\"\n");
    let mut rule = |number: usize, images: &str, effect: &str| {
        writeln!(policy, "[[rules]]\nid = \"r{number}\"\nimages = [{images}]\neffect = \"{effect}\"\nreason = \"that is how it is\"").unwrap();
    };
    rule(0, "\"k8s.gcr.io/**\"", "deny");
    for number in 1..rules - 1 {
        match number % 5 {
            0 => rule(number, &format!("\"r{number}.corp.example/**\""), "allow"),
            1 => rule(number, &format!("\"ghcr.io/team-{number}/**\""), "deny"),
            2 => rule(number, &format!("\"*.zone{number}.example/**\""), "allow"),
            3 => rule(
                number,
                &format!("\"quay.io/team-{number}/app\", \"quay.io/team-{number}/tool:v*\""),
                "allow",
            ),
            _ => rule(number, &format!("\"**/forbidden-{number}\""), "deny"),
        }
    }
    rule(rules, "\"docker.io/**\", \"quay.io/**\"", "allow");
    let config: Config = toml::from_str(&policy).unwrap();
    Engine::compile(&config).unwrap()
}

fn measure(engine: &Engine, target: &Target) -> u128 {
    let client = Client::at([10, 0, 0, 1]);
    let run = |_| {
        let started = Instant::now();
        for _ in 0..TIMES {
            black_box(engine.evaluate(black_box(target), black_box(&client)));
        }
        started.elapsed().as_nanos() / u128::from(TIMES)
    };
    (0..MEASUREMENTS).map(run).min().unwrap_or_default()
}
