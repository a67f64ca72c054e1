//! The audit for people: what is wrong first, each image with its reason, its way out and its
//! places.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{Audit, Finding};
use crate::cluster::mention::Place;

const NOT_SERVED: &str = "its registry is neither known nor in [upstreams]";
/// Places of one image that are shown.
const MOST_PLACES: usize = 10;

pub(super) fn render(audit: &Audit) -> String {
    let mut text = String::new();
    for finding in audit.violations() {
        show(&mut text, "violation", finding);
    }
    for finding in audit.warnings() {
        show(&mut text, "warning", finding);
    }
    for finding in audit.unserved() {
        show(&mut text, "unserved", finding);
    }
    for finding in audit.refused() {
        show(&mut text, "refused", finding);
    }
    let _ = writeln!(
        text,
        "{}: {}, {}, {} unserved{}",
        scope(audit),
        count(audit.violations().count(), "violation"),
        count(audit.warnings().count(), "warning"),
        audit.unserved().count(),
        if audit.of_pulls {
            let (refused, freed) = (audit.refused().count(), audit.freed().count());
            format!(", {refused} refused as before, {freed} refused no more")
        } else {
            String::new()
        }
    );
    text
}

/// How much was looked at.
fn scope(audit: &Audit) -> String {
    let places = || audit.findings.iter().flat_map(|finding| &finding.places);
    if audit.of_pulls {
        let images: HashSet<_> = audit
            .findings
            .iter()
            .map(|it| &it.judgement.image)
            .collect();
        let clients: HashSet<_> = places()
            .filter_map(|place| Some(&place.pulled.as_ref()?.client))
            .collect();
        let (images, clients) = (count(images.len(), "image"), clients.len());
        return format!("{images} pulled by {}", count(clients, "client"));
    }
    let (images, places) = (audit.findings.len(), places().count());
    format!("{} in {}", count(images, "image"), count(places, "place"))
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn show(text: &mut String, outcome: &str, finding: &Finding) {
    let judgement = &finding.judgement;
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{outcome:<10} {}", judgement.image);
    let mut row = |name: &str, value: &str| {
        let value: String = value.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(text, "  {name:<8} {value}");
    };
    match (outcome, &judgement.reason) {
        ("unserved", _) => row("reason", NOT_SERVED),
        (_, Some(reason)) => {
            row("reason", reason);
            for (name, value) in [
                ("instead", &judgement.instead),
                ("contact", &judgement.contact),
            ] {
                if let Some(value) = value {
                    row(name, value);
                }
            }
        }
        // What the pull would hear, without the image that stands above.
        (_, None) => {
            let message = judgement.message.as_deref().unwrap_or_default();
            let why = message.split_once(": ");
            row("reason", why.map_or(message, |(_, why)| why));
        }
    }
    if let Some(rule) = &judgement.rule {
        row("rule", rule);
    }
    let (name, what) = match finding.places.first() {
        Some(place) if place.pulled.is_some() => ("by", "more client"),
        _ => ("at", "more place"),
    };
    for place in finding.places.iter().take(MOST_PLACES) {
        row(name, &at(place));
    }
    if let Some(more) = finding.places.len().checked_sub(MOST_PLACES + 1) {
        row(name, &format!("... and {}", count(more + 1, what)));
    }
    text.push('\n');
}

/// `deploy.yaml:14  Deployment shop/web  container app  spec.template.spec.containers[0].image`
fn at(place: &Place) -> String {
    if let Some(pulled) = &place.pulled {
        return pulled.to_string();
    }
    let file = match place.file.as_deref() {
        Some("-") => Some("stdin"),
        file => file,
    };
    let line = place
        .line
        .map(|line| format!(":{line}"))
        .unwrap_or_default();
    let parts = [
        file.map(|file| format!("{file}{line}")),
        place.object.as_deref().map(ToString::to_string),
        place
            .container
            .as_deref()
            .map(|name| format!("container {name}")),
        Some(place.path.clone()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("  ")
}
