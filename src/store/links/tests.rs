use super::*;
use crate::oci::Tag;
use crate::store::tests::{Dir, repository};

fn digest(number: u8) -> Digest {
    Digest::sha256(&[number])
}

fn tag(text: &str) -> Reference {
    Reference::Tag(text.parse().unwrap())
}

/// The tags among what leads to a digest.
fn names(leaders: &[Reference]) -> Vec<&str> {
    leaders
        .iter()
        .filter_map(Reference::tag)
        .map(Tag::as_str)
        .collect()
}

#[tokio::test]
async fn links_survive_and_belong_to_one_repository() {
    let dir = Dir::new();
    let (here, there) = (
        repository("docker.io/library/a"),
        repository("ghcr.io/library/a"),
    );
    let media_type = MediaType::parse("application/vnd.oci.image.manifest.v1+json").unwrap();
    let links = dir.links();
    links.add_link(&here, &digest(1), None).await;
    links.add_link(&here, &digest(1), Some(&media_type)).await;
    links.add_link(&here, &digest(1), None).await;
    links.add_link(&here, &digest(2), None).await;
    links.add_link(&here, &digest(3), None).await;
    links.remove_link(&here, &digest(3)).await;
    let now = links.link(&here, &digest(1)).await.expect("known at once");
    links.flush().await;

    let links = dir.links();
    assert_eq!(links.link(&here, &digest(1)).await.as_ref(), Some(&now));
    assert_eq!(now.media_type.as_ref(), Some(&media_type));
    assert_eq!(
        links.link(&here, &digest(2)).await.unwrap().media_type,
        None
    );
    assert_eq!(links.link(&here, &digest(3)).await, None);
    assert_eq!(links.link(&there, &digest(1)).await, None);
    assert_eq!(links.digests(&here).await.len(), 2);
    // Two for what is new about the first, one for the second, two for the third.
    let text = std::fs::read_to_string(dir.layout().links(&here)).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[tokio::test]
async fn torn_and_unknown_lines_are_skipped() {
    let dir = Dir::new();
    let here = repository("docker.io/library/a");
    let path = dir.layout().links(&here);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (one, two) = (digest(1), digest(2));
    let future = i64::MAX;
    let text = format!("nonsense\n{one} - {future}\n\0\0\0\n{two} a/b/c\n{two} - 17");
    std::fs::write(&path, text).unwrap();

    let links = dir.links();
    assert!(
        links.link(&here, &one).await.unwrap().proved <= unix_now(),
        "a future proof"
    );
    assert_eq!(
        links.link(&here, &two).await,
        None,
        "torn: the time may be cut"
    );
    links.add_link(&here, &two, None).await;
    links.flush().await;
    assert_eq!(dir.links().digests(&here).await.len(), 2);
}

#[tokio::test]
async fn a_file_of_old_lines_is_written_anew() {
    let dir = Dir::new();
    let here = repository("docker.io/library/a");
    let path = dir.layout().links(&here);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, format!("{} - 17\n", digest(1)).repeat(1000)).unwrap();
    let links = dir.links();
    links.add_link(&here, &digest(2), None).await;
    links.flush().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    assert_eq!(dir.links().digests(&here).await.len(), 2);
}

/// A proof that is renewed is a line each time.
#[test]
fn renewed_proofs_do_not_make_a_file_grow_for_ever() {
    let (dir, here) = (Dir::new(), repository("registry.example/demo/app"));
    let (mut known, mut lines) = (Known::default(), 0);
    for round in 0..1000 {
        known.add_link(&digest(1), None, round * REWRITE_AGE);
        for change in known.take_changes(&dir.layout(), &here) {
            match change {
                Change::Append(_, text) => lines += text.lines().count(),
                Change::Replace(_, bytes) => lines = bytes.split(|byte| *byte == b'\n').count(),
                Change::Remove(path) => panic!("{path:?} goes"),
            }
        }
        assert!(lines < 200, "{lines} lines of one link");
    }
}

#[tokio::test]
async fn a_layer_is_led_by_every_tag_above_it() {
    let dir = Dir::new();
    let here = repository("docker.io/library/a");
    let [index, manifest, other, layer] = [1, 2, 3, 4].map(digest);
    let links = dir.links();
    links.add_led(&here, &tag("v2"), &[index]).await;
    links.add_led(&here, &tag("v1"), &[other]).await;
    links
        .add_led(&here, &Reference::Digest(index), &[manifest])
        .await;
    links
        .add_led(&here, &Reference::Digest(manifest), &[layer, layer])
        .await;
    links
        .add_led(&here, &Reference::Digest(other), &[layer])
        .await;
    // No honest manifest can do this.
    links
        .add_led(&here, &Reference::Digest(layer), &[index])
        .await;
    assert_eq!(names(&links.led_by(&here, &layer).await), ["v1", "v2"]);
    links.flush().await;

    let links = dir.links();
    assert_eq!(names(&links.led_by(&here, &layer).await), ["v1", "v2"]);
    assert_eq!(names(&links.led_by(&here, &other).await), ["v1"]);
    assert!(links.led_by(&here, &digest(9)).await.is_empty());
}

/// Memory may be too small for everything; what the writer has not written yet is still there.
#[tokio::test]
async fn nothing_is_forgotten_between_memory_and_file() {
    let dir = Dir::new();
    let links = Links {
        shelf: Shelf::new(dir.layout(), dir.faults(), Arc::default(), 0),
        pins: dir.pins(),
    };
    let here = repository("docker.io/library/a");
    links.add_link(&here, &digest(1), None).await;
    assert!(links.link(&here, &digest(1)).await.is_some());
    links.flush().await;
    assert!(links.link(&here, &digest(1)).await.is_some());
}

#[tokio::test]
async fn memory_answers_when_the_disk_fails() {
    let dir = Dir::new();
    // A file where the directory should be.
    std::fs::create_dir_all(dir.layout().v1()).unwrap();
    std::fs::write(dir.layout().v1().join("repos"), "").unwrap();
    let links = dir.links();
    let here = repository("docker.io/library/a");
    links.add_link(&here, &digest(1), None).await;
    links.flush().await;
    assert!(links.link(&here, &digest(1)).await.is_some());
    assert!(dir.metrics().store_errors.get() > 0);
}
