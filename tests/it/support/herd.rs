//! Many clients at once. All but two drop their bytes in the kernel (`MSG_TRUNC`), so that what is
//! measured is the proxy and not the test; the first and the last compare every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use super::PATIENCE;
use super::client::{Client, Response};

/// What one client got.
#[derive(Clone, Debug)]
pub struct Share {
    pub status: u16,
    /// Body bytes.
    pub bytes: u64,
    pub first_byte: Duration,
    pub done: Duration,
}

/// `count` clients ask for `path` at the same moment and read to the end. Fails when a comparing
/// client finds other bytes than `expected`.
pub fn stampede(address: SocketAddr, path: &str, count: usize, expected: &[u8]) -> Vec<Share> {
    let barrier = Barrier::new(count);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count)
            .map(|n| {
                let (barrier, compares) = (&barrier, n == 0 || n == count - 1);
                scope.spawn(move || {
                    let stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    barrier.wait();
                    one(stream, path, compares.then_some(expected))
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    })
}

/// One client for each of these requests (a method and a path), all at the same moment: what each
/// got, and how long that took.
pub fn at_once(address: SocketAddr, requests: &[(&str, String)]) -> Vec<(Response, Duration)> {
    let barrier = Barrier::new(requests.len());
    thread::scope(|scope| {
        let clients: Vec<_> = requests
            .iter()
            .map(|(method, path)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let client = Client::new(address);
                    barrier.wait();
                    let started = Instant::now();
                    let response = client.send(method, path, &[]);
                    (response, started.elapsed())
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    })
}

fn one(mut stream: TcpStream, path: &str, expected: Option<&[u8]>) -> Share {
    let started = Instant::now();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\n",
        stream.peer_addr().unwrap()
    );
    stream
        .write_all(format!("{request}Connection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let mut share = Share {
        status,
        bytes: 0,
        first_byte: Duration::ZERO,
        done: Duration::ZERO,
    };
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let got = if let Some(expected) = expected {
            let got = stream.read(&mut buffer).unwrap_or(0);
            let at = usize::try_from(share.bytes).unwrap();
            assert!(
                expected.get(at..at + got) == Some(&buffer[..got]),
                "other bytes at {at}"
            );
            got
        } else {
            recv(&stream, &mut buffer[..], RecvFlags::TRUNC).map_or(0, |(_, got)| got)
        };
        if share.bytes == 0 {
            share.first_byte = started.elapsed();
        }
        if got == 0 {
            break;
        }
        share.bytes += got as u64;
    }
    share.done = started.elapsed();
    share
}
