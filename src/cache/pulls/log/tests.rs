use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::cache::pulls::record::{LATELY, ONE_PULL, Was};
use crate::policy::Subject;

const DAY: i64 = 24 * 60 * 60;

fn image(text: &str) -> (Repository, Reference) {
    let target: Target = text.parse().unwrap();
    (target.repository, target.reference.unwrap())
}

fn client(number: u32) -> Client {
    Client::at(Ipv4Addr::from(0x0a00_0000 + number))
}

fn verdict(was: Was) -> Verdict {
    Verdict::new(was, Some("some".into()))
}

/// A tag that was answered with a digest of its own name.
fn note(log: &mut Log, text: &str, client: &Client, was: Was, now: i64) {
    let (repository, reference) = image(text);
    let digest = reference.tag().map(|_| Digest::sha256(text.as_bytes()));
    let digest = digest.filter(|_| was == Was::Allowed);
    log.note(client, &repository, &reference, verdict(was), digest, now);
}

fn drain(log: &mut Log) -> String {
    let mut all = String::new();
    loop {
        let lines = log.take_changed();
        if lines.is_empty() {
            return all;
        }
        all.push_str(&lines);
    }
}

#[test]
fn what_a_client_asks_at_once_is_one_pull() {
    let mut log = Log::default();
    let at = |log: &mut Log, number, now| {
        note(log, "quay.io/a:1", &client(number), Was::Allowed, now);
    };
    at(&mut log, 1, 100);
    at(&mut log, 1, 100);
    at(&mut log, 1, 100 + ONE_PULL - 1);
    at(&mut log, 2, 101);
    at(&mut log, 1, 100 + ONE_PULL);
    // The clock was set back.
    at(&mut log, 2, 50);
    let recorded = log.list();
    let pull = &recorded.pulls[0];
    assert_eq!((recorded.pulls.len(), pull.count), (1, 4));
    assert_eq!(pull.digest, Some(Digest::sha256(b"quay.io/a:1")));
    assert_eq!((pull.first, pull.last, pull.others()), (100, 50, 0));
    let counts: Vec<_> = pull.clients.iter().map(|asker| asker.count).collect();
    assert_eq!(counts, [2, 2]);
    assert_eq!(pull.clients[0].client(), client(1));
    assert_eq!(&*pull.clients[0].verdict.rule.clone().unwrap(), "some");
}

#[test]
fn another_answer_is_another_pull() {
    let mut log = Log::default();
    note(&mut log, "quay.io/a:1", &client(1), Was::Refused, 100);
    note(&mut log, "quay.io/a:1", &client(1), Was::Allowed, 101);
    let pull = &log.list().pulls[0];
    assert_eq!((pull.count, pull.clients.len()), (2, 1));
    assert_eq!(pull.clients[0].verdict.was, Was::Allowed);
}

#[test]
fn a_digest_belongs_to_a_tag_for_a_while_and_to_its_client() {
    let mut log = Log::default();
    note(&mut log, "quay.io/a:1", &client(1), Was::Allowed, 100);
    note(&mut log, "quay.io/a:2", &client(1), Was::Refused, 100);
    let lately = |log: &Log, text: &str, number, now| {
        let (repository, reference) = image(text);
        log.asked_lately(&client(number), &repository, &reference, now)
    };
    assert!(lately(&log, "quay.io/a:1", 1, 100 + LATELY));
    assert!(!lately(&log, "quay.io/a:1", 1, 101 + LATELY));
    assert!(!lately(&log, "quay.io/a:1", 2, 100));
    assert!(!lately(&log, "quay.io/b:1", 1, 100));
    assert!(
        !lately(&log, "quay.io/a:2", 1, 100),
        "it was led to nothing"
    );
    // A whole cluster at once: nobody knows who the first were.
    for number in 2..40 {
        note(&mut log, "quay.io/a:1", &client(number), Was::Allowed, 100);
    }
    assert!(lately(&log, "quay.io/a:1", 1, 100));
    assert!(!lately(&log, "quay.io/a:1", 1, 101 + LATELY));
}

#[test]
fn the_latest_clients_stay_and_the_others_are_counted() {
    let mut log = Log::default();
    for number in 0..40 {
        note(
            &mut log,
            "quay.io/a:1",
            &client(number),
            Was::Allowed,
            100 + i64::from(number),
        );
    }
    let pull = &log.list().pulls[0];
    assert_eq!((pull.count, pull.clients.len()), (40, MOST_CLIENTS));
    assert_eq!(pull.others(), 40 - MOST_CLIENTS as u64);
    assert!(pull.clients.iter().all(|asker| asker.first >= 124));
}

#[test]
fn what_was_asked_for_longest_ago_goes() {
    let mut log = Log::default();
    for number in 0..MOST_TARGETS {
        let now = 100 + i64::try_from(number).unwrap();
        let text = format!("quay.io/a:{number}");
        note(&mut log, &text, &client(1), Was::Allowed, now);
    }
    note(&mut log, "quay.io/a:0", &client(1), Was::Allowed, DAY);
    assert_eq!(log.forgotten, 0);
    note(&mut log, "quay.io/b:1", &client(1), Was::Allowed, DAY);
    assert_eq!(log.targets, MOST_TARGETS - GO_AT_ONCE + 1);
    assert_eq!(log.forgotten, GO_AT_ONCE as u64);
    let recorded = log.list();
    assert_eq!(recorded.pulls.len(), log.targets);
    let has = |image: &str| {
        let mut pulls = recorded.pulls.iter();
        pulls.any(|pull| pull.image.to_string() == image)
    };
    assert!(has("quay.io/a:0") && has("quay.io/b:1") && has("quay.io/a:9999"));
    assert!(!has("quay.io/a:1") && !has(&format!("quay.io/a:{GO_AT_ONCE}")));
    assert!(has(&format!("quay.io/a:{}", GO_AT_ONCE + 1)));
}

/// Whoever asks for names that nobody serves pushes out such names only.
#[test]
fn made_up_names_push_out_made_up_names() {
    let mut log = Log::default();
    for number in 0..100 {
        let text = format!("quay.io/a:{number}");
        note(&mut log, &text, &client(1), Was::Allowed, 100);
    }
    for number in 0..2 * MOST_TARGETS {
        let text = format!("made.up/a:{number}");
        let now = 200 + i64::try_from(number).unwrap();
        note(&mut log, &text, &client(2), Was::NotServed, now);
    }
    assert!(log.targets <= MOST_TARGETS);
    let recorded = log.list();
    let served = recorded.pulls.iter();
    let served = served.filter(|pull| pull.clients[0].was_served());
    assert_eq!(served.count(), 100);
}

#[test]
fn a_file_is_what_was_written() {
    let mut log = Log::default();
    let subject: Arc<Subject> = Arc::new("CN=node\\,1,O=corp".parse().unwrap());
    let known = Client {
        subject: Some(subject),
        ..client(1)
    };
    note(&mut log, "quay.io/a:1", &known, Was::Allowed, 100);
    note(
        &mut log,
        "nginx",
        &Client::at(Ipv4Addr::LOCALHOST),
        Was::NotServed,
        100,
    );
    let (repository, reference) = image("k8s.gcr.io/pause:3.9");
    let rewritten = Verdict {
        rewritten_to: Some(Arc::new("registry.k8s.io/pause:3.9".parse().unwrap())),
        ..verdict(Was::Audited)
    };
    log.note(&client(1), &repository, &reference, rewritten, None, 100);
    let digest = format!("quay.io/a@{}", Digest::sha256(b"a"));
    note(&mut log, &digest, &client(1), Was::Refused, 100);
    let lines = drain(&mut log);
    assert_eq!(lines.lines().count(), 4);
    assert_eq!(Recorded::read(&lines), log.list());
    assert_eq!(drain(&mut log), "");

    // The last line about an image counts; a torn one does not.
    note(&mut log, "quay.io/a:1", &known, Was::Allowed, 200);
    let more = drain(&mut log);
    assert_eq!(more.lines().count(), 1);
    let torn = format!("{lines}{more}{}", &lines[..50]);
    assert_eq!(Recorded::read(&torn), log.list());
    assert_eq!(Recorded::read("\n[]\n{}\nnonsense"), Recorded::default());
}

#[test]
fn a_time_to_come_is_now() {
    let mut log = Log::default();
    note(&mut log, "quay.io/a:1", &client(1), Was::Allowed, 900);
    let lines = drain(&mut log);
    assert_eq!(Log::read(&lines, 500).list().pulls[0].last, 500);
}

#[test]
fn lines_that_are_out_of_date_do_not_pile_up() {
    let mut log = Log::default();
    let mut written = 0;
    while !log.starts_anew() {
        note(
            &mut log,
            "quay.io/a:1",
            &client(1),
            Was::Allowed,
            100 * written,
        );
        written += 1;
        assert_eq!(drain(&mut log).lines().count(), 1);
        assert!(written <= 2 + i64::try_from(SOME).unwrap() + 1, "for ever");
    }
    let all = drain(&mut log);
    assert_eq!(all.lines().count(), 1);
    assert_eq!(Recorded::read(&all), log.list());
    assert!(!log.starts_anew());
}

/// The disk takes nothing, and names keep coming.
#[test]
fn what_waits_for_the_disk_is_bounded() {
    let mut log = Log::default();
    for number in 0..4 * MOST_TARGETS {
        let text = format!("quay.io/a:{number}");
        let now = i64::try_from(number).unwrap();
        note(&mut log, &text, &client(1), Was::Allowed, now);
    }
    assert_eq!(log.changed.len(), MOST_CHANGED);
    assert!(log.starts_anew());
    assert_eq!(Recorded::read(&drain(&mut log)), log.list());
}

/// What a kill cannot make us forget.
#[test]
fn what_was_forgotten_is_written_down() {
    let mut log = Log::default();
    for number in 0..=MOST_TARGETS {
        let text = format!("quay.io/a:{number}");
        note(&mut log, &text, &client(1), Was::Allowed, 100);
    }
    let lines = drain(&mut log);
    let read = Recorded::read(&lines);
    assert_eq!(read.forgotten, GO_AT_ONCE as u64);
    assert_eq!(read, log.list());
}

/// What a full record takes: 15 MB of memory, and 16 MB on disk.
#[test]
fn a_full_record_is_of_a_bearable_size() {
    assert!(size_of::<Asker>() <= 96 && size_of::<Row>() <= 320);
    let mut log = Log::default();
    for number in 0..MOST_TARGETS / 100 {
        let text = format!("registry.example/team/application-{number}:v1.2.3");
        for number in 0..u32::try_from(MOST_CLIENTS).unwrap() {
            note(&mut log, &text, &client(number), Was::Allowed, 100);
        }
    }
    let lines = drain(&mut log);
    assert!(lines.len() * 100 < 20 << 20, "{}", lines.len());
}
