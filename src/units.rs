//! Durations and sizes as the configuration writes them: `"5s"`, `"1h 30m"`, `"8MiB"`.
//!
//! A bare number is refused for both: nobody remembers whether it means seconds, bytes or MiB.
//! Use them as `#[serde(deserialize_with = "crate::units::duration")]` and `crate::units::size`.

use std::borrow::Cow;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Deserialize as _, Deserializer, Error};

/// Reads `"250ms"`, `"5s"`, `"1h 30m"`. Negative durations are refused.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    jiff::fmt::serde::unsigned_duration::required::deserialize(deserializer)
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
    }

    #[test]
    fn bare_numbers_and_nonsense_are_refused() {
        for time in ["5", r#""5""#, r#""-5s""#, r#""soon""#] {
            assert!(parse(time, r#""1KiB""#).is_err(), "{time}");
        }
        for size in ["5", r#""5""#, r#""-5MiB""#, r#""big""#, r#""""#] {
            assert!(parse(r#""1s""#, size).is_err(), "{size}");
        }
    }
}
