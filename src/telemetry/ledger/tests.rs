use super::*;

fn dial(host: &str) -> Dial<'_> {
    Dial {
        host,
        port: 443,
        owner: "quay.io",
        purpose: Purpose::Redirect,
    }
}

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.hosts.iter().map(|row| &*row.host).collect()
}

#[test]
fn a_host_has_a_row_for_each_thing_it_is_used_for() {
    let ledger = Ledger::default();
    let cdn = dial("cdn.quay.io");
    for _ in 0..3 {
        ledger.row(&cdn).asked();
    }
    ledger.row(&cdn).received(10);
    ledger.row(&cdn).failed();
    let port = Dial { port: 80, ..cdn };
    let owner = Dial {
        owner: "registry.redhat.io",
        ..cdn
    };
    let purpose = Dial {
        purpose: Purpose::Token,
        ..cdn
    };
    for other in [port, owner, purpose] {
        ledger.row(&other).asked();
    }
    ledger.refused(&cdn, Refusal::InternalAddress);
    let rows = ledger.snapshot().hosts;
    assert_eq!(rows.len(), 5, "{rows:?}");
    let row = rows.iter().find(|row| row.requests == 3).unwrap();
    assert_eq!((row.received, row.failures, row.refused), (10, 1, None));
    assert!(row.first <= row.last);
    let refused: Vec<_> = rows.iter().filter(|row| row.refused.is_some()).collect();
    assert_eq!(refused[0].refused, Some(Refusal::InternalAddress));
    assert_eq!(refused.len(), 1);
}

#[test]
fn what_never_went_out_is_no_row() {
    let ledger = Ledger::default();
    let row = ledger.row(&dial("a.example"));
    assert_eq!(ledger.snapshot(), Snapshot::default());
    row.asked();
    ledger.withdraw(&row, Refusal::InternalAddress);
    let hosts = ledger.snapshot().hosts;
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0].refused, Some(Refusal::InternalAddress));
}

/// Whatever an upstream redirects to, and however often, what was used stays.
#[test]
fn it_is_bounded_and_refusals_push_out_refusals_only() {
    let ledger = Ledger::default();
    ledger.row(&dial("used.example")).asked();
    for number in 0..2 * MOST_REFUSED {
        let host = format!("r{number:05}.example");
        ledger.refused(&dial(&host), Refusal::NotListed);
    }
    let snapshot = ledger.snapshot();
    assert_eq!(snapshot.hosts.len(), MOST_REFUSED + 1);
    assert_eq!(snapshot.forgotten, MOST_REFUSED as u64);
    assert!(names(&snapshot).contains(&"used.example"));

    for number in 0..MOST_USED + 10 {
        ledger.row(&dial(&format!("u{number:05}.example"))).asked();
    }
    let snapshot = ledger.snapshot();
    assert_eq!(snapshot.hosts.len(), MOST_USED + MOST_REFUSED);
    assert_eq!(snapshot.forgotten, MOST_REFUSED as u64 + 11);

    let long = "x".repeat(10_000);
    ledger.refused(&dial(&long), Refusal::NotListed);
    assert!(
        ledger
            .snapshot()
            .hosts
            .iter()
            .all(|row| row.host.len() <= LONGEST)
    );
}

#[test]
fn the_least_recent_goes_first() {
    let ledger = Ledger::default();
    for number in 0..MOST_USED {
        let row = ledger.row(&dial(&format!("u{number:05}.example")));
        row.asked();
        row.last
            .store(1000 - i64::from(number == 7), Ordering::Relaxed);
    }
    ledger.row(&dial("new.example")).asked();
    let snapshot = ledger.snapshot();
    assert!(!names(&snapshot).contains(&"u00007.example"));
    assert!(names(&snapshot).contains(&"u00006.example"));
    assert!(names(&snapshot).contains(&"new.example"));
}

#[test]
fn it_goes_on_from_what_was_written() {
    let before = Ledger::default();
    let row = before.row(&dial("cdn.quay.io"));
    row.asked();
    row.received(7);
    before.refused(&dial("cdn07.quay.io"), Refusal::NotListed);
    let text = serde_json::to_string(&before.snapshot()).unwrap();
    assert!(
        text.contains(r#""for":"quay.io","purpose":"redirect""#),
        "{text}"
    );

    let after = Ledger::default();
    after.restore(serde_json::from_str(&text).unwrap());
    assert_eq!(after.snapshot(), before.snapshot());
    assert!(!after.take_changed(), "nothing is new");
    after.row(&dial("cdn.quay.io")).asked();
    assert!(after.take_changed());
    assert!(!after.take_changed());
    let snapshot = after.snapshot();
    let row = snapshot.hosts.iter().find(|row| row.refused.is_none());
    assert_eq!((row.unwrap().requests, row.unwrap().received), (2, 7));
}
