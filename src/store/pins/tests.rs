//! Pins and their files.

use super::super::tests::{Dir, repository};
use super::*;

fn digest(name: u8) -> Digest {
    Digest::sha256(&[name])
}

fn pin(image: &str, names: &[u8]) -> ImagePin {
    let closure = names.iter().map(|name| PinnedBlob {
        digest: digest(*name),
        size: 10,
    });
    ImagePin {
        image: image.to_owned(),
        platforms: vec!["linux/amd64".to_owned()],
        closure: closure.collect(),
        by: "test".to_owned(),
        at: 5,
    }
}

fn pattern(text: &str) -> PatternPin {
    PatternPin {
        pattern: text.to_owned(),
        by: "test".to_owned(),
        at: 5,
    }
}

#[test]
fn pins_are_read_again_and_replaced_and_removed() {
    let dir = Dir::new();
    let load = || Pins::load(&dir.layout(), &dir.faults()).unwrap();
    let pins = load();
    pins.add_image(pin("quay.io/a:1", &[1, 2])).unwrap();
    pins.add_image(pin("quay.io/b:1", &[2, 3])).unwrap();
    pins.add_image(pin("quay.io/a:1", &[2, 4])).unwrap();
    pins.add_pattern(pattern("quay.io/**")).unwrap();
    let pins = load();
    let (images, patterns) = pins.all();
    assert_eq!(*images[0], pin("quay.io/a:1", &[2, 4]));
    assert_eq!((images.len(), patterns), (2, vec![pattern("quay.io/**")]));
    let strength = |name| pins.strength(&digest(name));
    assert_eq!(
        [1, 2, 3, 4].map(strength),
        [
            None,
            Some(Strength::Image),
            Some(Strength::Image),
            Some(Strength::Image)
        ]
    );
    assert_eq!(pins.images_with(&digest(2)).len(), 2);

    assert!(pins.remove("quay.io/a:1").unwrap());
    assert!(!pins.remove("quay.io/a:1").unwrap());
    assert!(pins.remove("quay.io/**").unwrap());
    for pins in [pins, load()] {
        assert_eq!(pins.strength(&digest(4)), None);
        assert_eq!(
            pins.strength(&digest(2)),
            Some(Strength::Image),
            "the other image has it too"
        );
        assert!(!pins.has_patterns());
    }
}

#[test]
fn each_blob_counts_once_and_a_pin_that_is_replaced_not_at_all() {
    let dir = Dir::new();
    let pins = Pins::load(&dir.layout(), &dir.faults()).unwrap();
    pins.add_image(pin("quay.io/a:1", &[1, 2])).unwrap();
    pins.add_image(pin("quay.io/b:1", &[2, 3])).unwrap();
    assert_eq!(pins.size_with(&[pin("quay.io/c:1", &[3, 4])]), 40);
    assert_eq!(pins.size_with(&[pin("quay.io/a:1", &[5])]), 30);
}

#[test]
fn a_damaged_pin_is_left_where_it_is() {
    let dir = Dir::new();
    let path = dir.layout().pins().join("0.json");
    std::fs::write(&path, "{\"image\":").unwrap();
    let pins = Pins::load(&dir.layout(), &dir.faults()).unwrap();
    assert_eq!(pins.all(), (vec![], vec![]));
    assert!(path.exists());
}

#[test]
fn an_image_keeps_its_digests_for_its_own_repository() {
    let dir = Dir::new();
    let pins = Pins::load(&dir.layout(), &dir.faults()).unwrap();
    pins.add_image(pin("quay.io/team/a:1", &[1])).unwrap();
    pins.add_image(pin("quay.io/team/a-b:1", &[2])).unwrap();
    pins.add_image(pin(&format!("quay.io/team/b@{}", digest(3)), &[3, 1]))
        .unwrap();
    pins.add_pattern(pattern("quay.io/team/c")).unwrap();
    pins.linked(&repository("quay.io/team/c"), &digest(4));
    let keeps = |name: &str| {
        let repository = repository(&format!("quay.io/team/{name}"));
        [1, 2, 3, 4].map(|name| pins.keeps(&repository, &digest(name)))
    };
    assert_eq!(keeps("a"), [true, false, false, false]);
    assert_eq!(keeps("a-b"), [false, true, false, false]);
    assert_eq!(keeps("b"), [true, false, true, false]);
    assert_eq!(keeps("c"), [false; 4], "a pattern is no promise");
    assert_eq!(keeps("a-c"), [false; 4]);
}

#[test]
fn a_pattern_matches_links_and_tags_that_come_later() {
    let dir = Dir::new();
    let pins = Pins::load(&dir.layout(), &dir.faults()).unwrap();
    let (here, there) = (repository("quay.io/a"), repository("quay.io/b"));
    pins.linked(&here, &digest(1));
    pins.add_pattern(pattern("quay.io/a")).unwrap();
    pins.add_pattern(pattern("quay.io/b:1.*")).unwrap();
    pins.linked(&here, &digest(2));
    pins.linked(&there, &digest(3));
    pins.tagged(&there, &"1.2".parse().unwrap(), &digest(4));
    pins.tagged(&there, &"2.2".parse().unwrap(), &digest(5));
    let matched = |pins: &Pins| [1, 2, 3, 4, 5].map(|name| pins.strength(&digest(name)).is_some());
    assert_eq!(matched(&pins), [false, true, false, true, false]);
    assert_eq!(
        pins.pattern_with(&digest(4)).as_deref(),
        Some("quay.io/b:1.*")
    );

    // A scan finds what was there before, forgets what is there no more, and loses nothing that
    // comes while it runs.
    let mut scan = pins.begin_scan();
    assert!(scan.may_match(&here) && scan.may_match(&there));
    assert!(!scan.may_match(&repository("quay.io/c")));
    scan.see(&here, &Reference::Digest(digest(1)), digest(1));
    pins.tagged(&there, &"1.3".parse().unwrap(), &digest(5));
    pins.end_scan(scan);
    assert_eq!(matched(&pins), [true, false, false, false, true]);
}
