//! The scripted upstream's HTTP/1.1, by hand: a library would refuse to lie.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use portcullis::oci::Digest;

use super::upstream::{Document, Fault, Framing, Request, Script, Shared};

const CHUNK: usize = 64 * 1024;

/// What happens in the middle of a body, by offset in the blob.
struct Body<'a> {
    bytes: &'a [u8],
    range: Range<u64>,
    faults: &'a [Fault],
    chunked: bool,
    rate: Option<u64>,
}

/// Answers requests until the connection ends.
pub fn serve(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader)? {
        let script = shared.script(&request);
        thread::sleep(script.latency);
        let last = request.header("connection") == Some("close");
        if !answer(shared, &request, &script, stream)? || last {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        request
            .headers
            .push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = request
        .header("content-length")
        .and_then(|value| value.parse().ok());
    io::copy(&mut reader.take(length.unwrap_or(0)), &mut io::sink())?;
    Ok(Some(request))
}

/// Whether the connection can go on.
fn answer(
    shared: &Shared,
    request: &Request,
    script: &Script,
    stream: &TcpStream,
) -> io::Result<bool> {
    let mut status = 200;
    let mut headers: Vec<(&str, String)> = Vec::new();
    let instead = script.faults.iter().find_map(|fault| match fault {
        Fault::Answer(status, headers, body) => Some((*status, headers.clone(), body.as_slice())),
        Fault::AnswerHead(status, body) if request.method == "HEAD" => {
            let json = vec![("Content-Type", "application/json".to_owned())];
            Some((*status, json, body.as_slice()))
        }
        Fault::Redirect(origin) => {
            let location = format!("{origin}{}", request.path);
            Some((307, vec![("Location", location)], &b""[..]))
        }
        _ => None,
    });
    let (bytes, range) = if let Some(challenge) = &script.challenge {
        status = 401;
        headers.push(("WWW-Authenticate", challenge.clone()));
        (&b"{}"[..], 0..2)
    } else if let Some((other, more, body)) = instead {
        status = other;
        headers = more;
        (body, 0..body.len() as u64)
    } else if let Some(document) = &script.document {
        describe(request, script, document, &mut status, &mut headers)
    } else {
        status = 404;
        headers.push(("Content-Type", "application/json".to_owned()));
        (&b"{}"[..], 0..2)
    };
    let framing = script.faults.iter().find_map(|fault| match fault {
        Fault::Framing(framing) => Some(*framing),
        _ => None,
    });
    match framing {
        Some(Framing::Chunked) => headers.push(("Transfer-Encoding", "chunked".to_owned())),
        Some(Framing::CloseDelimited) => headers.push(("Connection", "close".to_owned())),
        Some(Framing::LengthOffBy(lie)) => {
            let length = (range.end - range.start).cast_signed() + lie;
            headers.push(("Content-Length", length.to_string()));
        }
        None => headers.push(("Content-Length", (range.end - range.start).to_string())),
    }
    for fault in &script.faults {
        if let Fault::Header(name, value) = fault {
            headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
            headers.push((name, value.clone()));
        }
    }
    let mut head = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in &headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    if request.method == "HEAD" {
        // It has no body to be held back.
        for fault in &script.faults {
            if let Fault::HoldAt(0, gate) = fault {
                gate.pass();
            }
        }
    }
    (&*stream).write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let chunked = framing == Some(Framing::Chunked);
    let body = Body {
        bytes,
        range,
        faults: &script.faults,
        chunked,
        rate: script.rate,
    };
    let whole = body.write(shared, &request.path, stream)?;
    Ok(whole && (framing.is_none() || chunked))
}

/// The headers of a document, and which part of it goes out.
fn describe<'a>(
    request: &Request,
    script: &Script,
    document: &'a Document,
    status: &mut u16,
    headers: &mut Vec<(&str, String)>,
) -> (&'a [u8], Range<u64>) {
    let total = document.bytes.len() as u64;
    let ranges = !script
        .faults
        .iter()
        .any(|fault| matches!(fault, Fault::NoRanges));
    headers.push(("Content-Type", document.content_type.clone()));
    if request.path.contains("/manifests/") {
        headers.push((
            "Docker-Content-Digest",
            Digest::sha256(&document.bytes).to_string(),
        ));
    }
    match request.range().filter(|_| ranges) {
        Some(range) if range.start >= total => {
            *status = 416;
            headers.push(("Content-Range", format!("bytes */{total}")));
            (&[], 0..0)
        }
        Some(range) => {
            *status = 206;
            let range = range.start..range.end.min(total);
            let value = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            headers.push(("Content-Range", value));
            (&document.bytes, range)
        }
        None => (&document.bytes, 0..total),
    }
}

// === impl Body ===

impl Body<'_> {
    /// Whether all of it went out.
    fn write(&self, shared: &Shared, path: &str, mut stream: &TcpStream) -> io::Result<bool> {
        let started = Instant::now();
        let mut at = self.range.start;
        while at < self.range.end {
            for fault in self.faults {
                match fault {
                    Fault::CutAt(byte) if *byte == at => return Ok(false),
                    Fault::ResetAt(byte) if *byte == at => {
                        return Err(io::ErrorKind::ConnectionReset.into());
                    }
                    Fault::StallAt(byte) if *byte == at => {
                        // Until the other side gives up.
                        io::copy(&mut stream, &mut io::sink())?;
                        return Ok(false);
                    }
                    Fault::HoldAt(byte, gate) if *byte <= at => gate.pass(),
                    _ => {}
                }
            }
            let end = self.next_stop(at);
            let mut chunk = self.bytes[usize(at)..usize(end)].to_vec();
            for fault in self.faults {
                if let Fault::FlipBit(byte) = fault
                    && (at..end).contains(byte)
                {
                    chunk[usize(byte - at)] ^= 0x10;
                }
            }
            if self.chunked {
                write!(stream, "{:x}\r\n", chunk.len())?;
            }
            stream.write_all(&chunk)?;
            if self.chunked {
                stream.write_all(b"\r\n")?;
            }
            shared.count(path, chunk.len());
            at = end;
            if let Some(rate) = self.rate {
                let due = Duration::from_micros((at - self.range.start) * 1_000_000 / rate);
                thread::sleep(due.saturating_sub(started.elapsed()));
            }
        }
        if self.chunked {
            stream.write_all(b"0\r\n\r\n")?;
        }
        Ok(true)
    }

    /// A chunk ends where the next fault begins.
    fn next_stop(&self, at: u64) -> u64 {
        let stops = self.faults.iter().filter_map(|fault| match fault {
            Fault::CutAt(byte)
            | Fault::ResetAt(byte)
            | Fault::StallAt(byte)
            | Fault::HoldAt(byte, _) => Some(*byte),
            _ => None,
        });
        let end = self.range.end.min(at + CHUNK as u64);
        stops.filter(|stop| *stop > at).fold(end, u64::min)
    }
}

fn usize(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}
