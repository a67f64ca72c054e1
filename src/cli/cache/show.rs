//! Answers of `/api/v1` as people read them.

use std::fmt::Write as _;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde_json::Value;

/// Digests of missing layers in one line.
const MOST_DIGESTS: usize = 3;

pub(super) fn images(answer: &Value) -> String {
    let header = ["IMAGE", "DIGEST", "SIZE", "HERE", "LAST USED", "PINNED"];
    let row = |image: &Value| {
        vec![
            text(&image["image"]),
            short(&image["digest"]),
            size(&image["size"]),
            completeness(image),
            time(&image["used"]),
            if image["pinned"] == true { "yes" } else { "" }.to_owned(),
        ]
    };
    table(&header, rows(&answer["images"]).map(row), &[2])
}

/// `all`, `2 of 9 manifests`, `missing 1: sha256:..`
fn completeness(image: &Value) -> String {
    let missing: Vec<&Value> = rows(&image["missing"]).collect();
    if !missing.is_empty() {
        let mut digests: Vec<String> = missing
            .iter()
            .take(MOST_DIGESTS)
            .map(|d| short(d))
            .collect();
        if missing.len() > MOST_DIGESTS {
            digests.push("...".to_owned());
        }
        return format!("missing {}: {}", missing.len(), digests.join(" "));
    }
    match (image["complete"].as_bool(), &image["manifests"]) {
        (Some(true), _) => "all".to_owned(),
        (_, Value::Array(of)) if of[0] != 0 => format!("{} of {} manifests", of[0], of[1]),
        _ => "nothing".to_owned(),
    }
}

/// What `warm` did.
pub(in crate::cli) fn warmed(answer: &Value) -> String {
    let header = ["IMAGE", "DIGEST", "BLOBS", "SIZE", ""];
    let row = |image: &Value| match image["error"].as_str() {
        Some(error) => {
            let nothing = String::new;
            vec![
                text(&image["image"]),
                nothing(),
                nothing(),
                nothing(),
                error.to_owned(),
            ]
        }
        None => vec![
            text(&image["image"]),
            short(&image["digest"]),
            image["blobs"].to_string(),
            size(&image["bytes"]),
            "warm".to_owned(),
        ],
    };
    table(&header, rows(&answer["images"]).map(row), &[2, 3])
}

pub(in crate::cli) fn status(answer: &Value) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "{name:<10}{value}");
    };
    line("version", text(&answer["version"]));
    let offline = answer["offline"] == true;
    line(
        "upstreams",
        if offline { "offline" } else { "asked" }.to_owned(),
    );
    let (bytes, limit) = (size(&answer["bytes"]), size(&answer["limit"]));
    line(
        "cache",
        format!("{bytes} of {limit} in {} blobs", answer["blobs"]),
    );
    line("pinned", format!("{} images", answer["pinned"]));
    line("pulled", format!("{} images on record", answer["pulled"]));
    line("missing", format!("{} images", answer["missing"]));
    let downloads: Vec<_> = rows(&answer["downloads"]).map(download).collect();
    if !downloads.is_empty() {
        let header = ["DOWNLOAD", "BYTES", "OF", "READERS", "FROM"];
        lines.push('\n');
        lines += &table(&header, downloads.into_iter(), &[1, 2, 3]);
    }
    lines
}

fn download(download: &Value) -> Vec<String> {
    let known = |value: &Value, shown: fn(&Value) -> String| match value {
        Value::Null => "?".to_owned(),
        value => shown(value),
    };
    vec![
        short(&download["digest"]),
        size(&download["bytes"]),
        known(&download["size"], size),
        download["readers"].to_string(),
        known(&download["source"], text),
    ]
}

pub(super) fn blobs(answer: &Value) -> String {
    let header = ["DIGEST", "SIZE", "LAST USED", "TRUSTED"];
    let row = |blob: &Value| {
        vec![
            text(&blob["digest"]),
            size(&blob["size"]),
            time(&blob["used"]),
            if blob["trusted"] == true {
                "yes"
            } else {
                "to be hashed"
            }
            .to_owned(),
        ]
    };
    table(&header, rows(&answer["blobs"]).map(row), &[1])
}

pub(super) fn verified(answer: &Value) -> String {
    let mut lines = format!(
        "{} blobs hashed, {}\n",
        answer["blobs"][0],
        size(&answer["bytes"][0])
    );
    for digest in rows(&answer["wrong"]) {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "wrong, set aside: {}", text(digest));
    }
    lines
}

pub(super) fn pinned(answer: &Value) -> String {
    let (image, blobs) = (text(&answer["image"]), &answer["blobs"]);
    let (bytes, limit) = (size(&answer["bytes"]), size(&answer["limit"]));
    match &answer["digest"] {
        Value::Null => format!(
            "{image} is pinned: {blobs} blobs of {bytes} match now; patterns keep what fits into {limit}\n"
        ),
        digest => format!(
            "{image} is pinned with {blobs} blobs of {bytes}\n{}\n",
            text(digest)
        ),
    }
}

pub(super) fn purged(answer: &Value) -> String {
    let images = rows(&answer["images"]).map(|image| format!("forgot {}\n", text(image)));
    let (blobs, bytes) = (&answer["blobs"], size(&answer["bytes"]));
    let shared = match answer["shared"].as_str() {
        Some(error) => format!(
            "the shared store still has some of its names: when it answers, pull it and purge it again: \
             {error}\n"
        ),
        None => String::new(),
    };
    images.collect::<String>() + &format!("{blobs} blobs of {bytes} taken away\n") + &shared
}

pub(super) fn why(answer: &Value) -> String {
    let verdict = match answer["verdict"].as_str().unwrap_or_default() {
        "kept" => "is here and stays",
        "waiting" => "is here until room is needed",
        "gone" => "is not here any more",
        _ => "is not here, and not among the latest that went",
    };
    let mut lines = format!("{} {verdict}\n", text(&answer["digest"]));
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(lines, "  {text}");
    };
    if !answer["size"].is_null() {
        line(format!(
            "{}, last used {}",
            size(&answer["size"]),
            time(&answer["used"])
        ));
    }
    for image in rows(&answer["pinned_by"]) {
        line(format!("pinned with {}", text(image)));
    }
    if let Some(pattern) = answer["pattern"].as_str() {
        line(format!("pinned by the pattern {pattern}"));
    }
    for holder in rows(&answer["held_by"]) {
        line(format!("needed by {}", text(holder)));
    }
    if answer["in_use"] == true {
        line("somebody reads it, or did in the last minute".to_owned());
    }
    for image in rows(&answer["images"]) {
        line(format!(
            "a part of {}, last used {}",
            text(&image["image"]),
            time(&image["used"])
        ));
    }
    if let Value::Array(place) = &answer["in_line"] {
        line(format!("number {} of {} to go", place[0], place[1]));
    }
    for gone in rows(&answer["gone"]) {
        let reason = &gone["reason"];
        let reason = match reason["kind"].as_str().unwrap_or_default() {
            "limit" => format!(
                "evicted: {} were kept and store.max_size is {}",
                size(&reason["used"]),
                size(&reason["limit"])
            ),
            "full" => "evicted: the file system was full".to_owned(),
            "wrong" => "set aside: it did not hash".to_owned(),
            "lost" => "given up: the disk could not make it durable".to_owned(),
            _ => "purged".to_owned(),
        };
        line(format!(
            "{} {reason}; {}, last used {}",
            time(&gone["at"]),
            size(&gone["size"]),
            time(&gone["used"])
        ));
    }
    lines
}

pub(super) fn history(answer: &Value) -> String {
    let header = ["DIGEST", "FIRST SEEN", "LAST SEEN", "SIZE", "FOR"];
    let row = |entry: &Value| {
        vec![
            text(&entry["digest"]),
            time(&entry["first_seen"]),
            time(&entry["last_seen"]),
            size(&entry["size"]),
            if entry["variant"] == "image" {
                "clients without indexes"
            } else {
                "everybody"
            }
            .to_owned(),
        ]
    };
    table(&header, rows(&answer["entries"]).map(row), &[3])
}

// === cells ===

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>, numbers: &[usize]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows);
    for number in numbers {
        if let Some(column) = table.column_mut(*number) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt() + "\n"
}

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Enough of a digest to tell it from others by eye.
fn short(digest: &Value) -> String {
    let digest = digest.as_str().unwrap_or_default();
    digest.chars().take("sha256:".len() + 12).collect()
}

fn size(bytes: &Value) -> String {
    ByteSize(bytes.as_u64().unwrap_or(0)).to_string()
}

/// In UTC, to the second.
fn time(seconds: &Value) -> String {
    match seconds.as_i64().map(Timestamp::from_second) {
        Some(Ok(time)) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_of_an_image_is_said() {
        let digest = |n: u8| json!(format!("sha256:{:064x}", n));
        for (image, said) in [
            (json!({ "complete": true, "missing": [] }), "all"),
            (
                json!({ "complete": false, "manifests": [2, 9], "missing": [] }),
                "2 of 9 manifests",
            ),
            (
                json!({ "complete": false, "missing": [digest(1)] }),
                "missing 1: sha256:000000000000",
            ),
            (json!({ "complete": false, "missing": [] }), "nothing"),
        ] {
            assert_eq!(completeness(&image), said);
        }
        let many: Vec<Value> = (0..5).map(digest).collect();
        assert!(completeness(&json!({ "missing": many })).ends_with(" ..."));
    }

    #[test]
    fn tables_have_a_row_for_each() {
        let answer = json!({ "blobs": [
            { "digest": "sha256:1", "size": 2048, "used": 0, "trusted": true },
            { "digest": "sha256:2", "size": 1, "used": 60, "trusted": false },
        ] });
        let table = blobs(&answer);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3, "{table}");
        assert!(
            lines[0].contains("DIGEST") && lines[1].contains("2.0 KiB"),
            "{table}"
        );
        assert!(lines[2].contains("1970-01-01 00:01:00Z"), "{table}");
        assert_eq!(blobs(&json!({ "blobs": [] })).lines().count(), 1);
    }
}
