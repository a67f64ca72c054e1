//! The figures of a run: samples by figure and target, printed as medians and as ratios.
//!
//! A ratio is that of two samples of the same repetition, and its median is printed: on a shared
//! machine the figures themselves may be off by half, ratios of neighbours in time hardly are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::peers::Target;

/// A row: what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) better: Better,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
    /// Less, and Portcullis stays within this many thousandths.
    Goal(u32),
}

#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(Figure, Samples)>,
    failures: Vec<String>,
}

/// By target, then by repetition: a failed one leaves a gap, and its neighbours stay in pairs.
type Samples = BTreeMap<Target, BTreeMap<usize, f64>>;

// === impl Report ===

impl Report {
    pub(crate) fn record(&mut self, figure: Figure, target: Target, repetition: usize, value: f64) {
        let known = self.rows.iter().position(|(known, _)| *known == figure);
        let row = known.unwrap_or_else(|| {
            self.rows.push((figure, Samples::new()));
            self.rows.len() - 1
        });
        let samples = self.rows[row].1.entry(target).or_default();
        samples.insert(repetition, value);
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(crate) fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// The tables for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from(
            "\nMedians; x = Portcullis / peer, paired by repetition. \
             (+) more is better, (-) less is better.\n",
        );
        let sections: Vec<&str> = self.rows.iter().map(|(figure, _)| figure.section).collect();
        for (index, section) in sections.iter().enumerate() {
            if sections[..index].contains(section) {
                continue;
            }
            let rows = || self.rows.iter().filter(|(row, _)| row.section == *section);
            let targets: BTreeSet<Target> = rows()
                .flat_map(|(_, samples)| samples.keys().copied())
                .collect();
            let _ = write!(text, "\n{section:<44}");
            for target in &targets {
                let _ = write!(text, "{:>17}", target.name());
            }
            for peer in peers_of_ours(&targets) {
                let _ = write!(text, "{:>19}", format!("x {}", peer.name()));
            }
            text.push('\n');
            for (figure, samples) in rows() {
                line(&mut text, *figure, samples, &targets);
            }
        }
        for failure in &self.failures {
            let _ = write!(text, "\nFAILED {failure}");
        }
        text.push('\n');
        text
    }

    /// All samples, medians and ratios.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(figure, samples)| {
                let targets: BTreeSet<Target> = samples.keys().copied().collect();
                let by_target = |value: &dyn Fn(Target) -> Value| -> Value {
                    let pairs = targets.iter().map(|&target| (target.name().to_owned(), value(target)));
                    Value::Object(pairs.collect())
                };
                json!({
                    "section": figure.section,
                    "name": figure.name,
                    "better": if figure.better == Better::More { "more" } else { "less" },
                    "goal": figure.goal(),
                    "samples": by_target(&|target| json!(samples[&target].values().collect::<Vec<_>>())),
                    "median": by_target(&|target| json!(median_of(samples, target))),
                    "ratio": by_target(&|target| json!(ratio(samples, target))),
                })
            })
            .collect();
        json!({ "rows": rows, "failures": self.failures })
    }
}

fn line(text: &mut String, figure: Figure, samples: &Samples, targets: &BTreeSet<Target>) {
    let sign = if figure.better == Better::More {
        '+'
    } else {
        '-'
    };
    let _ = write!(text, "  {:<38} ({sign})", figure.name);
    for &target in targets {
        let _ = write!(text, "{:>17}", number(median_of(samples, target)));
    }
    for peer in peers_of_ours(targets) {
        let _ = write!(text, "{:>19}", number(ratio(samples, peer)));
    }
    if let (Some(goal), Some(ours)) = (figure.goal(), median_of(samples, Target::Portcullis)) {
        let verdict = if ours <= goal { "met" } else { "MISSED" };
        let _ = write!(text, "   goal {}: {verdict}", number(Some(goal)));
    }
    text.push('\n');
}

/// The targets that ours can be compared with.
fn peers_of_ours(targets: &BTreeSet<Target>) -> impl Iterator<Item = Target> + '_ {
    targets
        .iter()
        .copied()
        .filter(|&target| target != Target::Portcullis && targets.contains(&Target::Portcullis))
}

fn ratio(samples: &Samples, peer: Target) -> Option<f64> {
    let ours = samples.get(&Target::Portcullis)?;
    let theirs = samples.get(&peer)?;
    let pairs = ours.iter().filter_map(|(repetition, ours)| {
        let theirs = theirs.get(repetition)?;
        (*theirs > 0.0).then_some(ours / theirs)
    });
    median(pairs.collect())
}

fn median_of(samples: &Samples, target: Target) -> Option<f64> {
    median(samples.get(&target)?.values().copied().collect())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Three significant digits are more than the machine is good for.
fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) if value >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

// === impl Figure ===

impl Figure {
    pub(crate) const fn more(section: &'static str, name: &'static str) -> Self {
        Figure {
            section,
            name,
            better: Better::More,
        }
    }

    pub(crate) const fn less(section: &'static str, name: &'static str) -> Self {
        Figure {
            section,
            name,
            better: Better::Less,
        }
    }

    /// Less is better, and Portcullis is to stay within `thousandths`.
    pub(crate) const fn within(
        section: &'static str,
        name: &'static str,
        thousandths: u32,
    ) -> Self {
        Figure {
            section,
            name,
            better: Better::Goal(thousandths),
        }
    }

    fn goal(self) -> Option<f64> {
        match self.better {
            Better::Goal(thousandths) => Some(f64::from(thousandths) / 1000.0),
            Better::More | Better::Less => None,
        }
    }
}
