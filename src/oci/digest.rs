//! A content digest: `sha256:<64 hex>` or `sha512:<128 hex>`.
//!
//! The set of algorithms is closed on purpose. A digest becomes a path on disk and a part of a
//! request to somebody else's server, so nothing but these two spellings may ever reach that
//! code: parsing is the check, and [`Digest`] is the proof that it was done.
//!
//! Source: OCI image-spec, descriptor.md, "Digests".

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use http::HeaderValue;
use sha2::Digest as _;

/// Hex digits of the longest digest.
const LONGEST_HEX: usize = 128;

/// The hash functions that the image specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

/// The name of some bytes by their hash. Small, `Copy`, and always a safe part of a path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// A running hash; [`Hasher::finish`] makes the [`Digest`].
#[derive(Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

/// Why a text is not a digest that we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    #[error("a digest is written as sha256:<64 hex digits> or sha512:<128 hex digits>")]
    Shape,
    #[error("only sha256 and sha512 digests are supported")]
    Algorithm,
    #[error("a {0} digest has {1} lower-case hex digits")]
    Hex(Algorithm, usize),
}

// === impl Algorithm ===

impl Algorithm {
    /// The name as it stands in front of the colon.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Digest ===

impl Digest {
    /// The sha256 digest of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Digest::of(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` with the given algorithm.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(hash) => hash,
            Digest::Sha512(hash) => hash,
        }
    }

    /// The lower-case hex part: 64 or 128 characters.
    #[must_use]
    pub fn hex(&self) -> String {
        self.hex_in(&mut [0; LONGEST_HEX]).to_owned()
    }

    /// As the values of `Docker-Content-Digest` and `ETag`: content under a digest never changes,
    /// so it is a strong validator. Both share one allocation.
    #[must_use]
    pub fn header_values(&self) -> (HeaderValue, HeaderValue) {
        let quoted = Bytes::from(format!("\"{self}\""));
        let plain = quoted.slice(1..quoted.len() - 1);
        // Digits, letters and quotes are always a value.
        let value =
            |bytes| HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""));
        (value(plain), value(quoted))
    }

    /// The hex part in memory that is there already: digests are in every path and every answer.
    fn hex_in<'a>(&self, room: &'a mut [u8; LONGEST_HEX]) -> &'a str {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let bytes = self.as_bytes();
        for (pair, byte) in room.chunks_exact_mut(2).zip(bytes) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        // Digits are always text.
        str::from_utf8(&room[..bytes.len() * 2]).unwrap_or_default()
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::Shape)?;
        match algorithm {
            "sha256" => parse_hex(hex)
                .map(Digest::Sha256)
                .ok_or(InvalidDigest::Hex(Algorithm::Sha256, 64)),
            "sha512" => parse_hex(hex)
                .map(Digest::Sha512)
                .ok_or(InvalidDigest::Hex(Algorithm::Sha512, 128)),
            _ => Err(InvalidDigest::Algorithm),
        }
    }
}

/// Exactly `2 * N` lower-case hex digits, or nothing.
fn parse_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    fn value(digit: u8) -> Option<u8> {
        match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return None;
    }
    let mut hash = [0; N];
    for (byte, pair) in hash.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(hash)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm().as_str())?;
        f.write_str(":")?;
        f.write_str(self.hex_in(&mut [0; LONGEST_HEX]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Hasher ===

impl Hasher {
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Hasher::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hasher::Sha256(_) => "Hasher(sha256)",
            Hasher::Sha512(_) => "Hasher(sha512)",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `printf '' | sha256sum` and `sha512sum`.
    const EMPTY_256: &str =
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                             47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn both_algorithms_round_trip() {
        for text in [EMPTY_256, EMPTY_512] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(Digest::of(digest.algorithm(), b""), digest);
        }
    }

    /// Security row T13: what must never reach a path or an upstream request.
    #[test]
    fn anything_else_is_refused() {
        let hex = "a".repeat(64);
        for text in [
            "",
            "sha256",
            "sha256:",
            ":",
            &hex,
            &format!("sha1:{}", "a".repeat(40)),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("SHA256:{hex}"),
            &format!("sha256:{}", "a".repeat(63)),
            &format!("sha256:{}", "a".repeat(65)),
            &format!("sha256:{}\u{e9}", "a".repeat(62)),
            &format!("sha512:{hex}"),
            "sha256:../../../../etc/passwd",
            &format!("sha256:{hex}/.."),
            &format!(" sha256:{hex}"),
            &format!("sha256+b64u:{hex}"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?} was accepted");
        }
    }
    proptest! {
        #[test]
        fn hashing_in_pieces_and_text_change_nothing(bytes: Vec<u8>, cut: usize, long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::of(algorithm, &bytes);
            let (head, tail) = bytes.split_at(cut % (bytes.len() + 1));
            let mut hasher = Hasher::new(algorithm);
            hasher.update(head);
            hasher.update(tail);
            prop_assert_eq!(hasher.finish(), digest);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }
    }
}
