//! The log: JSON lines on stderr, or plain text when somebody watches.
//!
//! Text from clients and upstreams ends up in fields, so fields are escaped and bounded here, once
//! and for all: no name can end a line, colour a terminal or fill a disk.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::RequestId;

/// Says which lines are written, as `info` or `warn,portcullis::fill=debug`.
const VARIABLE: &str = "PORTCULLIS_LOG";

/// The longest field, in bytes.
const LONGEST_FIELD: usize = 1024;

/// One JSON object a line: time, level, target, the request it is written for, then the message
/// and the event's own fields.
#[derive(Debug)]
struct JsonLines;

/// Writes each field as `,"name":value`.
struct Fields<'a, 'w> {
    writer: &'a mut Writer<'w>,
    result: fmt::Result,
}

/// Writes text as the inside of a JSON string, until its room is used up.
struct Escaped<'a, 'w> {
    writer: &'a mut Writer<'w>,
    /// In bytes, before escaping.
    room: usize,
}

/// Starts the log for the whole process; once.
///
/// # Errors
/// `PORTCULLIS_LOG` is not understood, or there is a log already.
pub fn init() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(std::env::var(VARIABLE).unwrap_or_default())
        .map_err(|e| format!("{VARIABLE}: {e}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        log.try_init()
    } else {
        log.event_format(JsonLines).try_init()
    }
}

// === impl JsonLines ===

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str("{\"time\":\"")?;
        SystemTime.format_time(&mut writer)?;
        let metadata = event.metadata();
        let (level, target) = (metadata.level(), metadata.target());
        write!(writer, "\",\"level\":\"{level}\",\"target\":\"{target}\"")?;
        if let Some(id) = RequestId::current() {
            write!(writer, ",\"request_id\":\"{id}\"")?;
        }
        let mut fields = Fields {
            writer: &mut writer,
            result: Ok(()),
        };
        event.record(&mut fields);
        fields.result?;
        writer.write_str("}\n")
    }
}

impl Fields<'_, '_> {
    fn put(&mut self, field: &Field, value: impl fmt::Display) {
        if self.result.is_ok() {
            self.result = write!(self.writer, ",\"{}\":{value}", field.name());
        }
    }

    fn put_text(&mut self, field: &Field, text: impl fmt::Display) {
        let mut put = || {
            write!(self.writer, ",\"{}\":\"", field.name())?;
            write!(
                Escaped {
                    writer: self.writer,
                    room: LONGEST_FIELD
                },
                "{text}"
            )?;
            self.writer.write_char('"')
        };
        if self.result.is_ok() {
            self.result = put();
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has neither infinity nor NaN.
        if value.is_finite() {
            self.put(field, value);
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put_text(field, format_args!("{value:?}"));
    }
}

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.room = self.room.saturating_sub(c.len_utf8());
            match c {
                _ if self.room == 0 => break,
                '"' | '\\' => write!(self.writer, "\\{c}")?,
                // Two more than JSON asks for: some readers of lines end them there.
                '\u{2028}' | '\u{2029}' => write!(self.writer, "\\u{:04x}", u32::from(c))?,
                c if c.is_control() => write!(self.writer, "\\u{:04x}", u32::from(c))?,
                c => self.writer.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(event: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = tracing_subscriber::fmt()
            .event_format(JsonLines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(log, event);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_json_object_with_its_fields() {
        let line = logged(|| {
            tracing::info!(
                status = 200u16,
                route = "blob",
                tls = true,
                ms = 0.25,
                "answered"
            );
        });
        let json: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["message"], "answered");
        assert_eq!(json["level"], "INFO");
        assert_eq!(json["status"], 200);
        assert_eq!(json["route"], "blob");
        assert_eq!(json["tls"], true);
        assert_eq!(json["ms"], 0.25);
        assert!(json["time"].as_str().unwrap().ends_with('Z'));
    }

    #[tokio::test]
    async fn a_line_names_the_request_that_it_is_written_for() {
        let work = async { logged(|| tracing::warn!("slow")) };
        let line = RequestId::EXAMPLE.scope(work).await;
        let json: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["request_id"], "0123456789abcdef");
    }

    #[test]
    fn hostile_text_stays_inside_its_field() {
        let agent = "\u{1b}]0;x\u{7}\n{\"level\":\"ERROR\"}\u{2028}";
        let line = logged(|| tracing::info!(agent, shown = %agent, "seen"));
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!line.trim_end().chars().any(char::is_control), "{line}");
        let json: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["level"], "INFO");
        assert_eq!(json["agent"], agent);
        assert_eq!(json["shown"], agent);
    }

    #[test]
    fn long_text_is_cut() {
        let line = logged(|| tracing::info!(text = "ä".repeat(10_000), "seen"));
        let json: Value = serde_json::from_str(&line).unwrap();
        let length = json["text"].as_str().unwrap().len();
        assert!(
            (LONGEST_FIELD - 4..=LONGEST_FIELD).contains(&length),
            "{length}"
        );
    }
}
