//! `Range` as clients send it, `Content-Range` as upstreams answer it.
//!
//! Source: RFC 9110, sections 14.1 to 14.4.

use std::ops::Range;

/// A single byte range as asked for, positions inclusive as in the header. What is malformed,
/// has several ranges or another unit is no `RangeSpec`: a server ignores such a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `bytes=5-`
    From(u64),
    /// `bytes=5-9`
    FromTo(u64, u64),
    /// `bytes=-5`: the last bytes.
    Suffix(u64),
}

// === impl RangeSpec ===

impl RangeSpec {
    /// Reads the value of a `Range` header.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let (unit, range) = header.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match range.trim().split_once('-')? {
            ("", length) => Some(RangeSpec::Suffix(number(length)?)),
            (first, "") => Some(RangeSpec::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(RangeSpec::FromTo(first, last))
            }
        }
    }

    /// The half-open range inside `0..total`, never empty; `None` when nothing of it is there
    /// (416). Nothing of an empty whole ever is.
    #[must_use]
    pub fn resolve(self, total: u64) -> Option<Range<u64>> {
        let range = match self {
            RangeSpec::From(first) => first..total,
            RangeSpec::FromTo(first, last) => first..total.min(last.saturating_add(1)),
            RangeSpec::Suffix(length) => total.saturating_sub(length)..total,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Digits and nothing else. More digits than a `u64` holds are a position past every end, which
/// is what the largest `u64` is.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Reads the `Content-Range` of a 206: `bytes a-b/total` or `bytes a-b/*`, as a half-open range
/// and the whole size if it was told. `None` when it is malformed or contradicts itself.
#[must_use]
pub fn parse_content_range(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = header.trim().split_once(' ')?;
    let (range, total) = rest.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let range = number(first)?..number(last)?.checked_add(1)?;
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    let fits = !range.is_empty() && total.is_none_or(|total| range.end <= total);
    fits.then_some((range, total))
}

/// The `Content-Range` of a 206 with these bytes; `range` is half-open and not empty.
#[must_use]
pub fn content_range(range: &Range<u64>, total: u64) -> String {
    format!(
        "bytes {}-{}/{total}",
        range.start,
        range.end.saturating_sub(1)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_as_clients_send_them() {
        for (header, spec, in_ten) in [
            ("bytes=0-", RangeSpec::From(0), Some(0..10)),
            ("bytes=0-0", RangeSpec::FromTo(0, 0), Some(0..1)),
            ("bytes=5-99", RangeSpec::FromTo(5, 99), Some(5..10)),
            ("Bytes= 5-7 ", RangeSpec::FromTo(5, 7), Some(5..8)),
            ("bytes=9-", RangeSpec::From(9), Some(9..10)),
            ("bytes=10-", RangeSpec::From(10), None),
            ("bytes=-3", RangeSpec::Suffix(3), Some(7..10)),
            ("bytes=-99", RangeSpec::Suffix(99), Some(0..10)),
            ("bytes=-0", RangeSpec::Suffix(0), None),
            (
                "bytes=0-99999999999999999999",
                RangeSpec::FromTo(0, u64::MAX),
                Some(0..10),
            ),
            (
                "bytes=99999999999999999999-",
                RangeSpec::From(u64::MAX),
                None,
            ),
        ] {
            assert_eq!(RangeSpec::parse(header), Some(spec), "{header}");
            assert_eq!(spec.resolve(10), in_ten, "{header}");
            assert_eq!(spec.resolve(0), None, "{header}");
        }
    }

    #[test]
    fn other_ranges_are_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-",
            "bytes=5-4",
            "bytes=0-1,3-4",
            "bytes=+1-2",
            "bytes=1--2",
            "bytes=0x1-",
            "items=0-1",
            "bytes 0-1",
            "bytes=1 - 2",
            "bytes=\u{661}-",
        ] {
            assert_eq!(RangeSpec::parse(header), None, "{header:?}");
        }
    }

    #[test]
    fn content_ranges_that_lie_are_refused() {
        assert_eq!(parse_content_range("bytes 0-9/10"), Some((0..10, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5..10, None)));
        for header in [
            "",
            "bytes",
            "bytes */10",
            "bytes 0-10/10",
            "bytes 5-4/10",
            "bytes 0-9",
            "0-9/10",
            "bytes=0-9/10",
            "items 0-9/10",
            "bytes -9/10",
            "bytes 0-/10",
            "bytes 0-9/",
            "bytes 0-9/1x",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse_content_range(header), None, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn a_range_survives_the_header(first: u64, length: u64) {
            let last = first.saturating_add(length);
            for (header, spec) in [
                (format!("bytes={first}-"), RangeSpec::From(first)),
                (format!("bytes={first}-{last}"), RangeSpec::FromTo(first, last)),
                (format!("bytes=-{length}"), RangeSpec::Suffix(length)),
            ] {
                prop_assert_eq!(RangeSpec::parse(&header), Some(spec));
            }
        }

        #[test]
        fn a_resolved_range_lies_inside_and_survives_content_range(
            first: u64, last: u64, total in 0..u64::MAX,
        ) {
            for spec in [RangeSpec::From(first), RangeSpec::FromTo(first, last), RangeSpec::Suffix(last)] {
                let Some(range) = spec.resolve(total) else { continue };
                prop_assert!(range.start < range.end && range.end <= total);
                let header = content_range(&range, total);
                prop_assert_eq!(parse_content_range(&header), Some((range, Some(total))));
            }
        }

        #[test]
        fn no_header_panics(header: String) {
            let _ = (RangeSpec::parse(&header), parse_content_range(&header));
        }
    }
}
