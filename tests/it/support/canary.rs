//! No secret ever shows. Every secret of these tests has [`CANARY`] in it ([`secret!`]), and whatever
//! the program says is searched for it: its log, `/metrics` and the store when a
//! [`Proxy`](super::proxy::Proxy) is dropped, error answers when a
//! [`Client`](super::client::Client) has read them, and what commands print.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::stores::ACCOUNT_KEY;

/// Part of every secret.
pub const CANARY: &str = "canary-7f3a";

/// A secret: `secret!("password")`.
macro_rules! secret {
    ($name:literal) => {
        concat!("canary-7f3a-", $name)
    };
}
pub(crate) use secret;

/// `base64(user:password)` as Basic has it.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Fails if a secret shows in `text`, as it is or encoded.
#[track_caller]
pub fn assert_silent(place: &str, text: &[u8]) {
    if let Some(form) = shown(text) {
        let text = String::from_utf8_lossy(text);
        let lines: Vec<_> = text.lines().filter(|line| line.contains(&form)).collect();
        panic!("a secret shows in {place}: {}", lines.join("\n"));
    }
}

/// The form in which a secret shows.
pub fn shown(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    forms().into_iter().find(|form| text.contains(form))
}

/// The canary, what base64 makes of it at each of the three places where it may stand in a group of
/// bytes, the key that cannot have a canary, and signatures of URLs.
fn forms() -> Vec<String> {
    let mut forms = vec![CANARY.to_owned(), ACCOUNT_KEY.to_owned(), "sig=".to_owned()];
    for shift in 0..3 {
        let padded = [&"x".repeat(shift), CANARY].concat();
        // Six bits a character: those that are the canary's alone.
        let (first, end) = ((8 * shift).div_ceil(6), 8 * padded.len() / 6);
        for text in [STANDARD.encode(&padded), URL_SAFE.encode(&padded)] {
            forms.push(text[first..end].to_owned());
        }
    }
    forms
}
