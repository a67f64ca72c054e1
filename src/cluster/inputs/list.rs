//! Lists: an image a line, as `status --missing` and people write them. `#` begins a remark.

use crate::cluster::mention::{Mention, Place, Written};
use crate::oci::Image;

/// One word a line, and each of them may be an image. `null` is what JSON has for nothing.
pub(super) fn is_one(text: &str) -> bool {
    let mut words = words(text).map(|(_, word)| word).peekable();
    let may_be = |word: &str| word != "null" && word.parse::<Image>().is_ok();
    words.peek().is_some() && words.all(may_be)
}

pub(super) fn mentions(text: &str) -> Vec<Mention> {
    let mention = |(line, word): (u32, &str)| Mention {
        written: Written::Image(word.to_owned()),
        place: Place {
            line: Some(line),
            path: "line".to_owned(),
            ..Place::default()
        },
    };
    words(text).map(mention).collect()
}

/// What stands on each line, with its number.
fn words(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let lines = (1..).zip(text.lines());
    let words = lines.map(|(number, line)| {
        // A name has no `#`, so that it needs no blank in front.
        let word = line.split('#').next().unwrap_or_default();
        (number, word.trim())
    });
    words.filter(|(_, word)| !word.is_empty())
}
