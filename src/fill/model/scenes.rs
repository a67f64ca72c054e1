//! Cases that are worth a name.

use super::*;

/// A blob of one visit, for cases that are worth a name.
pub(super) fn plain_case(size: usize, manners: Vec<Manner>) -> Case {
    let visit = Visit {
        source: 0,
        after: 0,
        range: 0..u64::MAX,
        leaves_at: u64::MAX,
    };
    Case {
        size,
        window: 64 * 1024,
        connections: 4,
        manners,
        cuts: 0,
        cut_after: usize::MAX,
        chunk: 10_000,
        latency: 10,
        visits: vec![visit],
        restart_after: None,
        no_room: false,
        near: None,
    }
}

#[test]
fn many_readers_cost_one_download() {
    let mut case = plain_case(1_000_000, vec![Manner::Honest]);
    case.visits = (0..50)
        .map(|at| Visit {
            after: at,
            ..case.visits[0].clone()
        })
        .collect();
    run(&case);
}

#[test]
fn a_restart_fetches_only_what_is_missing() {
    let mut case = plain_case(3_000_000, vec![Manner::Honest]);
    case.visits.push(Visit {
        after: 120,
        ..case.visits[0].clone()
    });
    case.restart_after = Some(100);
    run(&case);
}

/// What nobody has leaves no file behind, however often it is asked for.
#[test]
fn a_blob_that_is_nowhere_leaves_no_spool() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let case = plain_case(1000, vec![Manner::Gone]);
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(dir.path(), &case, None);
        let content = content(1000);
        let source = Arc::new(Fake::new("source".into(), Manner::Gone, &content, &case));
        let digest = Digest::sha256(&content);
        let got = visit(&process, digest, source, &case.visits[0], 1000).await;
        assert!(matches!(got, Got::Failed(FillError::Source(_))), "{got:?}");
        // The answer does not wait for the tidying.
        process.tracker.close();
        process.tracker.wait().await;
        let left: Vec<_> = std::fs::read_dir(dir.path().join("v1/spool"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        process.end().await;
    });
}

/// A kill between the last byte and the commit leaves a spool that lacks nothing; a client whose
/// source has yet to say yes must not wait for ever for a question that nobody asks.
#[test]
fn a_spool_that_lacks_nothing_still_proves_its_source() {
    for size in [0, 1, 100_000] {
        paused().block_on(async {
            let case = plain_case(size, vec![Manner::Honest]);
            let (dir, content) = (tempfile::tempdir().unwrap(), content(size));
            let digest = Digest::sha256(&content);
            let process = Process::start(dir.path(), &case, None);
            let (spool, _) = process.store.disk.spool(&digest).await.unwrap();
            spool.note_total(size as u64);
            spool.write(0, std::slice::from_ref(&content)).unwrap();
            spool.flush().unwrap();
            drop(spool);
            let source = Arc::new(Fake::new("source".into(), Manner::Honest, &content, &case));
            let fake = Arc::clone(&source);
            let got = visit(&process, digest, source, &case.visits[0], size as u64).await;
            assert!(
                matches!(&got, Got::All(bytes) if *bytes == content),
                "{got:?}"
            );
            assert!(
                fake.sent.load(Ordering::SeqCst) <= 1,
                "all but one byte was here"
            );
            process.end().await;
        });
    }
}

/// A plain stream starts at 0 and writes over what is held. A reader that was given wrong bytes
/// from there must not get the tail because the bytes in the spool are right by then.
#[test]
fn who_read_what_a_plain_stream_wrote_over_gets_no_tail() {
    let visit = |source, after, range, leaves_at| Visit {
        source,
        after,
        range,
        leaves_at,
    };
    run(&Case {
        window: 16_384,
        connections: 1,
        chunk: 8192,
        latency: 3,
        visits: vec![
            visit(0, 94, 50_416..99_083, 33_846),
            visit(1, 209, 48_785..u64::MAX, u64::MAX),
        ],
        restart_after: Some(111),
        ..plain_case(225_171, vec![Manner::Corrupt, Manner::NoRanges])
    });
}

#[test]
fn another_source_goes_on_where_one_is_gone() {
    let mut case = plain_case(1_000_000, vec![Manner::Gone, Manner::Honest]);
    case.visits.push(Visit {
        source: 1,
        ..case.visits[0].clone()
    });
    run(&case);
}

/// The slide's memory is bounded by its slowest reader, and that reader gets every byte.
#[test]
fn a_slide_waits_for_its_slowest_reader() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let size = 80 * 1024 * 1024;
        let case = Case {
            chunk: 1024 * 1024,
            no_room: true,
            window: 8 << 20,
            ..plain_case(size, Vec::new())
        };
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(dir.path(), &case, None);
        let content = content(size);
        let digest = Digest::sha256(&content);
        let fake = Arc::new(Fake::new("source".into(), Manner::Honest, &content, &case));
        let source = Arc::clone(&fake) as Arc<dyn Source>;
        let Join::Started(mut joined) = process
            .fills
            .join_or_start(&digest, &source, true, Some(0))
            .unwrap()
        else {
            panic!("nothing was running");
        };
        joined.opened().await.unwrap();
        // Everything that can happen without the reader happens before this paused clock moves on.
        sleep(Duration::from_hours(1)).await;
        let ahead = fake.sent.load(Ordering::SeqCst);
        let most = crate::fill::slide::WINDOW + 2 * 1024 * 1024;
        assert!(
            ahead < most,
            "{ahead} bytes ahead of a reader that has none"
        );

        let mut reader = joined.read(0..u64::MAX);
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await {
            read(&piece.unwrap(), &mut bytes);
        }
        assert!(bytes == content, "the reader got other bytes");
        assert_eq!(fake.sent.load(Ordering::SeqCst), size as u64);
        assert!(
            process.store.disk.stat(&digest).is_none(),
            "nothing of it is kept"
        );
        drop(reader);
        process.end().await;
    });
}

fn leg(manner: Option<Manner>) -> Leg {
    Leg {
        manner,
        outdated_after: None,
    }
}

/// Bytes sent by the upstream, by each near source, and what was condemned and committed, after
/// one client has had all of a blob of `size` bytes.
async fn one_client(case: &Case, proved: bool) -> (u64, Vec<u64>, Vec<u64>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let content = content(case.size);
    let digest = Digest::sha256(&content);
    let upstream = Arc::new(Fake::new("up".into(), case.manners[0], &content, case));
    let stops = stops(case, &content);
    let nearby: Vec<Arc<Fake>> = stops
        .iter()
        .filter_map(|stop| stop.source.clone())
        .collect();
    let near = Arc::new(FakeNear::new(stops, case));
    let process = Process::start(dir.path(), case, Some(&near));
    let source = Arc::clone(&upstream) as Arc<dyn Source>;
    let (Join::Started(mut joined) | Join::Joined(mut joined)) = process
        .fills
        .join_or_start(&digest, &source, proved, Some(0))
        .unwrap()
    else {
        panic!("it is the first")
    };
    if !proved {
        let proving = joined.proving();
        sleep(Duration::from_mins(1)).await;
        for fake in nearby.iter().chain([&upstream]) {
            let sent = fake.sent.load(Ordering::SeqCst);
            assert_eq!(sent, 0, "bytes are sent for who may not have them");
        }
        proving.proved(Some(case.size as u64));
    }
    joined.opened().await.unwrap();
    let mut reader = joined.read(0..u64::MAX);
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        read(&piece.unwrap(), &mut bytes);
    }
    assert!(bytes == content, "the reader got other bytes");
    drop(reader);
    process.tracker.close();
    process.tracker.wait().await;
    let counts = |count: fn(&Fake) -> u64| nearby.iter().map(|fake| count(fake)).collect();
    let sent = counts(|fake| fake.sent.load(Ordering::SeqCst));
    let condemned = counts(|fake| fake.condemned.load(Ordering::SeqCst));
    let committed = near.committed.load(Ordering::SeqCst);
    process.end().await;
    assert_eq!(
        near.held.load(Ordering::SeqCst),
        0,
        "a vigil outlives its fill"
    );
    (
        upstream.sent.load(Ordering::SeqCst),
        sent,
        condemned,
        committed,
    )
}

pub(super) fn paused() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap()
}

#[test]
fn what_is_near_costs_the_upstream_nothing() {
    let case = Case {
        near: Some(vec![leg(Some(Manner::Honest))]),
        ..plain_case(3_000_000, vec![Manner::Honest])
    };
    let got = paused().block_on(one_client(&case, true));
    assert_eq!(got, (0, vec![3_000_000], vec![0], 1));
}

#[test]
fn nothing_is_sent_before_a_source_is_proved() {
    let case = Case {
        near: Some(vec![leg(Some(Manner::Honest))]),
        ..plain_case(3_000_000, vec![Manner::Honest])
    };
    let got = paused().block_on(one_client(&case, false));
    assert_eq!(got, (0, vec![3_000_000], vec![0], 1));
}

/// The first holder goes silent in the middle, the second is gone, then it is our turn.
#[test]
fn survivors_go_on_from_what_they_have() {
    let first = Leg {
        manner: Some(Manner::Honest),
        outdated_after: Some(100),
    };
    let case = Case {
        near: Some(vec![first, leg(Some(Manner::Gone)), leg(None)]),
        ..plain_case(3_000_000, vec![Manner::Honest])
    };
    let (upstream, near, condemned, committed) = paused().block_on(one_client(&case, true));
    assert!(
        near[0] > 100_000 && upstream > 100_000,
        "{near:?} {upstream}"
    );
    let caught = (2 * case.connections * case.chunk) as u64;
    assert!(
        near[0] + upstream <= 3_000_000 + caught,
        "{near:?} {upstream}"
    );
    assert_eq!((near[1], condemned, committed), (0, vec![0, 0], 1));
}

/// A client that has had none of the wrong bytes never learns of them.
#[test]
fn wrong_bytes_from_near_are_fetched_elsewhere() {
    let case = Case {
        near: Some(vec![leg(Some(Manner::Corrupt)), leg(Some(Manner::Honest))]),
        // All of it is tail, so nothing goes out unverified.
        ..plain_case(60_000, vec![Manner::Honest])
    };
    let got = paused().block_on(one_client(&case, true));
    assert_eq!(got, (0, vec![60_000, 60_000], vec![1, 0], 1));
}
