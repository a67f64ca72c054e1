//! Durations and sizes as the configuration writes them: `"5s"`, `"3d"`, `"8MiB"`.
//!
//! A bare number is refused for both: nobody remembers whether it means seconds, bytes or MiB.
//! Use them as `#[serde(deserialize_with = "crate::units::duration")]` and `crate::units::size`.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::fmt::friendly::SpanPrinter;
use jiff::{Span, SpanRelativeTo};
use serde::de::{Deserialize as _, Deserializer, Error};

/// Reads `"250ms"`, `"5s"`, `"1h 30m"`, `"3d"`; a day has 24 hours. Negative durations are refused.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    parse_duration(&text).map_err(D::Error::custom)
}

/// The same for an argument of a command.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, jiff::Error> {
    let span: Span = text.parse()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours());
    duration.and_then(Duration::try_from)
}

/// Writes a duration as the configuration would: `3d`, `1h 30m`.
#[must_use]
pub fn show(duration: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match duration.as_secs() {
        seconds if seconds > 0 && seconds % DAY == 0 && duration.subsec_nanos() == 0 => {
            format!("{}d", seconds / DAY)
        }
        _ => SpanPrinter::new().unsigned_duration_to_string(&duration),
    }
}

/// Reads `"4MiB"`, `"1.5GiB"`, `"200GB"` as a number of bytes.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    const EXPECTED: &str = "a size with a unit, such as \"4MiB\" or \"200GiB\"";
    let text = Cow::<str>::deserialize(deserializer)?;
    if text.ends_with(|last: char| last.is_ascii_digit()) {
        return Err(D::Error::custom(format_args!("expected {EXPECTED}")));
    }
    let size: ByteSize = text
        .parse()
        .map_err(|_| D::Error::custom(format_args!("expected {EXPECTED}")))?;
    Ok(size.as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Config {
        #[serde(deserialize_with = "duration")]
        time: Duration,
        #[serde(deserialize_with = "size")]
        size: u64,
    }

    fn parse(time: &str, size: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(&format!("time = {time}\nsize = {size}"))
    }

    #[test]
    fn units_are_read() {
        let config = parse(r#""1h 30m""#, r#""8MiB""#).unwrap();
        assert_eq!(config.time, Duration::from_mins(90));
        assert_eq!(config.size, 8 << 20);
        assert_eq!(parse(r#""250ms""#, r#""64GiB""#).unwrap().size, 64 << 30);
        assert_eq!(
            parse(r#""3d""#, r#""64GiB""#).unwrap().time,
            Duration::from_hours(72)
        );
    }

    #[test]
    fn durations_are_written_as_they_are_read() {
        for text in ["3d", "36h", "1h 30m", "5s", "250ms"] {
            let time = parse(&format!("{text:?}"), r#""1KiB""#).unwrap().time;
            assert_eq!(show(time), text);
        }
    }

    #[test]
    fn bare_numbers_and_nonsense_are_refused() {
        for time in ["5", r#""5""#, r#""-5s""#, r#""soon""#, r#""1mo""#] {
            assert!(parse(time, r#""1KiB""#).is_err(), "{time}");
        }
        for size in ["5", r#""5""#, r#""-5MiB""#, r#""big""#, r#""""#] {
            assert!(parse(r#""1s""#, size).is_err(), "{size}");
        }
    }
}
