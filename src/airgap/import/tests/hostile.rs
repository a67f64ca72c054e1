//! Archives that are refused, each with the reason that it is refused for.

use super::*;

/// What somebody with bad intentions, or a bad disk, may hand over.
#[expect(clippy::too_many_lines, reason = "one table")]
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let sample = Sample::new(1);
    let blob = blob_path(&Digest::sha256(&sample.blobs[1]));
    let with = |entry: (Vec<u8>, u8, u64, Vec<u8>)| {
        let mut entries = sample.good();
        entries.push(entry);
        tar(&entries)
    };
    let without = |name: &str| {
        let mut entries = sample.good();
        entries.retain(|entry| entry.0 != name.as_bytes());
        tar(&entries)
    };
    let content = |name: &str, bytes: &[u8]| {
        let mut entries = sample.good();
        for entry in entries
            .iter_mut()
            .filter(|entry| entry.0 == name.as_bytes())
        {
            *entry = file(name, bytes);
        }
        tar(&entries)
    };
    let behind_extended = |records: &[(&str, &str)]| {
        let mut entries = sample.good();
        let at = entries.len() - 1;
        entries.insert(at, extended(records));
        tar(&entries)
    };
    // A bundle.json that says something else, with checksums to match.
    let lying = |change: &dyn Fn(&mut BundledImage)| {
        let mut image = sample.image.clone();
        change(&mut image);
        let bundle = Bundle::new(vec![image], None);
        tar(&sample.entries(&bundle, None))
    };
    let text = |from: &str, to: &str| {
        let bundle = sample.bundle().head().unwrap().bundle;
        let bundle = String::from_utf8(bundle.to_vec()).unwrap();
        assert!(bundle.contains(from), "{from}");
        content(BUNDLE_FILE, bundle.replacen(from, to, 1).as_bytes())
    };
    let good = tar(&sample.good());
    let end = good.len();
    let mut damaged = good.clone();
    damaged[5] ^= 1;
    let mut late = sample.good();
    let bundle = late.remove(1);
    late.push(bundle);
    let mut wrong = sample.blobs[1].clone();
    wrong[3] ^= 1;
    let mut wrong_large = sample.blobs[2].clone();
    wrong_large[1 << 20] ^= 1;
    let large = blob_path(&Digest::sha256(&sample.blobs[2]));
    let image_and_index =
        manifest(&json!({ "mediaType": OCI_MANIFEST, "layers": [], "manifests": [] }));
    let mut foreign_without = sample.foreign(Some(NAME));
    foreign_without.retain(|entry| entry.0 != blob.as_bytes());
    let mut docker = vec![file("manifest.json", b"[]"), file("repositories", b"{}")];
    let docker_named = tar(&docker);
    docker.insert(0, file("0123abcd/layer.tar", b"x"));
    let mut huge = body(&sample.good());
    huge.extend(header(b"blobs/sha256/", b'0', 0));
    let claims = |name: &str, size: u64| {
        let mut tar = body(&vec![]);
        tar.extend(header(name.as_bytes(), b'0', size));
        tar
    };
    let unseen = blob_path(&Digest::sha256(b"unseen"));
    vec![
        ("climbs out", with(file("../evil", b"x")), "does not belong"),
        (
            "absolute",
            with(file("/etc/cron.d/evil", b"x")),
            "does not belong",
        ),
        (
            "climbs out of blobs",
            with(file("blobs/../../evil", b"x")),
            "does not belong",
        ),
        (
            "climbs out of a digest",
            with(file("blobs/sha256/../../../evil", b"x")),
            "does not belong",
        ),
        (
            "backslashes",
            with(file("blobs\\sha256\\evil", b"x")),
            "does not belong",
        ),
        (
            "another algorithm",
            with(file(&format!("blobs/sha1/{}", "a".repeat(40)), b"x")),
            "does not belong",
        ),
        (
            "capital letters",
            with(file(&format!("blobs/sha256/{}", "A".repeat(64)), b"x")),
            "does not belong",
        ),
        (
            "a name that is no text",
            with((b"blobs/\xff\xfe".to_vec(), b'0', 0, vec![])),
            "does not belong",
        ),
        ("a file that ends in a slash", huge, "does not belong"),
        (
            "an unknown file",
            with(file("install.sh", b"x")),
            "does not belong",
        ),
        (
            "an unknown directory",
            with(directory("etc/")),
            "does not belong",
        ),
        (
            "a directory above",
            with(directory("../")),
            "does not belong",
        ),
        (
            "a directory with content",
            with(("blobs/".into(), b'5', 512, vec![0; 512])),
            "does not belong",
        ),
        (
            "a symbolic link",
            with(special(&unseen, b'2')),
            "a symbolic link",
        ),
        ("a hard link", with(special(&unseen, b'1')), "a hard link"),
        (
            "a character device",
            with(special(&unseen, b'3')),
            "a device",
        ),
        ("a block device", with(special(&unseen, b'4')), "a device"),
        ("a pipe", with(special(&unseen, b'6')), "a pipe"),
        (
            "a contiguous file",
            with(special(&unseen, b'7')),
            "unknown kind",
        ),
        (
            "a sparse file",
            with(special(&unseen, b'S')),
            "a sparse file",
        ),
        (
            "a kind that nobody knows",
            with(special(&unseen, b'Z')),
            "unknown kind",
        ),
        (
            "a long name",
            with(("././@LongLink".into(), b'L', 8, b"../evil\0".to_vec())),
            "a name that no blob has",
        ),
        (
            "a long link",
            with(("././@LongLink".into(), b'K', 8, b"../evil\0".to_vec())),
            "a name that no blob has",
        ),
        (
            "a global header",
            with(("g".into(), b'g', 0, vec![])),
            "out of place",
        ),
        (
            "another path behind",
            behind_extended(&[("path", "../evil")]),
            "\"path\"",
        ),
        (
            "another link behind",
            behind_extended(&[("linkpath", "/etc/passwd")]),
            "\"linkpath\"",
        ),
        (
            "sparse by header",
            behind_extended(&[("GNU.sparse.major", "1")]),
            "GNU.sparse",
        ),
        ("two sizes", behind_extended(&[("size", "1")]), "\"size\""),
        (
            "a size that is none",
            behind_extended(&[("size", "-1")]),
            "\"size\"",
        ),
        (
            "attributes",
            behind_extended(&[("SCHILY.xattr.security.capability", "x")]),
            "SCHILY",
        ),
        (
            "a header of nonsense",
            with(("x".into(), b'x', 4, b"9999".to_vec())),
            "makes no sense",
        ),
        (
            "a header too large",
            with(("x".into(), b'x', 20 << 10, vec![b'x'; 20 << 10])),
            "too much",
        ),
        (
            "an extended header at the end",
            with(extended(&[("mtime", "1.5")])),
            "cut short",
        ),
        (
            "a blob beyond the limit",
            claims(&unseen, LARGEST_BLOB + 1),
            "limits.blob_size",
        ),
        (
            "a blob of a size that is a joke",
            claims(&unseen, u64::MAX / 2),
            "limits.blob_size",
        ),
        (
            "a bundle.json of a gigabyte",
            claims(BUNDLE_FILE, 1 << 30),
            "at most",
        ),
        ("a blob twice", with(file(&blob, &sample.blobs[1])), "twice"),
        (
            "a blob twice, once with a dot",
            with(file(&format!("./{blob}"), &sample.blobs[1])),
            "twice",
        ),
        (
            "bundle.json twice",
            {
                let mut entries = sample.good();
                entries.insert(1, entries[1].clone());
                tar(&entries)
            },
            "twice",
        ),
        ("cut in a header", good[..1000].to_vec(), "cut short"),
        ("cut in a blob", good[..end - 5000].to_vec(), "cut short"),
        ("no end", good[..end - 1024].to_vec(), "cut short"),
        ("half an end", good[..end - 512].to_vec(), "cut short"),
        (
            "more behind the end",
            [good.as_slice(), b"evil"].concat(),
            "follows its end",
        ),
        (
            "another tar behind the end",
            [good.as_slice(), good.as_slice()].concat(),
            "follows its end",
        ),
        (
            "no end of the end",
            [good.as_slice(), &vec![0; 5 << 20]].concat(),
            "follows its end",
        ),
        ("a header of another sum", damaged, "makes no sense"),
        (
            "no tar at all",
            b"\x1f\x8b\x08\x00 this is gzip, or says so".repeat(100),
            "makes no sense",
        ),
        ("nothing", Vec::new(), "cut short"),
        (
            "an empty tar",
            vec![0; 1024],
            "neither bundle.json nor index.json",
        ),
        ("other bytes", content(&blob, &wrong), "do not hash"),
        (
            "other bytes in a large blob",
            content(&large, &wrong_large),
            "do not hash",
        ),
        (
            "a longer blob than listed",
            content(&blob, b"longer than what bundle.json says it is"),
            "bytes, not",
        ),
        (
            "a blob that is not listed",
            with(file(&unseen, b"unseen")),
            "does not list",
        ),
        ("bundle.json behind blobs", tar(&late), "come before blobs"),
        (
            "no checksums.txt",
            without(CHECKSUMS_FILE),
            "no checksums.txt",
        ),
        (
            "another index.json",
            content(INDEX_FILE, b"{}"),
            "not the file of checksums.txt",
        ),
        (
            "no index.json",
            without(INDEX_FILE),
            "not the file of checksums.txt",
        ),
        (
            "a listed blob is missing",
            without(&blob),
            "neither in the archive nor here",
        ),
        (
            "a layer too few",
            lying(&|image| {
                image.closure.remove(2);
            }),
            "which its closure lacks",
        ),
        (
            "a stranger in the closure",
            lying(&|image| {
                let digest = Digest::sha256(b"unseen");
                let (media_type, subject) = (None, None);
                image.closure.push(Part {
                    digest,
                    size: 6,
                    media_type,
                    subject,
                });
            }),
            "neither in the archive nor here",
        ),
        (
            "a signature of something else",
            lying(&|image| {
                image.closure[3].subject = Some(Digest::sha256(b"unseen"));
            }),
            "about something else",
        ),
        (
            "a manifest of a kind that it is not",
            lying(&|image| {
                let index = MediaType::parse("application/vnd.oci.image.index.v1+json");
                image.closure[0].media_type = index;
            }),
            "it came as",
        ),
        (
            "a name that has another digest",
            lying(&|image| {
                let name = format!("registry.example/demo/app@{}", Digest::sha256(b"x"));
                image.image = name.parse().unwrap();
            }),
            "is not sha256:",
        ),
        (
            "a tag of nothing",
            lying(&|image| {
                image.companions[0].digest = Digest::sha256(b"unseen");
            }),
            "lacks its manifest",
        ),
        (
            "a format of the future",
            text("\"format\": 1", "\"format\": 2"),
            "use a newer one",
        ),
        (
            "more keys",
            text("\"format\": 1", "\"format\": 1, \"run\": \"evil\""),
            "unknown field",
        ),
        (
            "no name",
            text(NAME, "registry.example/../evil"),
            "bundle.json",
        ),
        (
            "both a delta and complete",
            text(
                "\"base\": null",
                &format!("\"base\": \"{}\"", Digest::sha256(b"")),
            ),
            "complete",
        ),
        (
            "bundle.json of nothing",
            content(BUNDLE_FILE, b"[]"),
            "bundle.json",
        ),
        (
            "what docker save wrote",
            tar(&docker),
            "skopeo copy docker-archive",
        ),
        (
            "what docker save wrote, with known names",
            docker_named,
            "skopeo copy docker-archive",
        ),
        (
            "a layout without names",
            tar(&sample.foreign(None)),
            "names no image in full",
        ),
        (
            "a layout with half a name",
            tar(&sample.foreign(Some("latest"))),
            "names no image in full",
        ),
        (
            "a layout that lacks a blob",
            tar(&foreign_without),
            "neither in the archive nor here",
        ),
        (
            "a layout with an index of nonsense",
            {
                let mut entries = sample.foreign(Some(NAME));
                entries.retain(|entry| entry.0 != b"index.json");
                entries.push(file("index.json", b"{\"manifests\": 5}"));
                tar(&entries)
            },
            "makes no sense",
        ),
        (
            "an image that is an index too",
            {
                let top = json!({ "manifests": [{
                "mediaType": OCI_MANIFEST, "digest": Digest::sha256(&image_and_index), "size": 1,
                "annotations": { "io.containerd.image.name": NAME } }] });
                tar(&vec![
                    file(
                        &blob_path(&Digest::sha256(&image_and_index)),
                        &image_and_index,
                    ),
                    file("index.json", top.to_string().as_bytes()),
                ])
            },
            "an image and an index at once",
        ),
    ]
}

/// Security row T56.
#[tokio::test]
async fn what_is_not_as_it_should_be_is_refused_and_leaves_nothing() {
    let corpus = hostile();
    assert!(corpus.len() >= 30, "{}", corpus.len());
    let mut others = Vec::new();
    let tar_of_the_good = tar(&Sample::new(1).good());
    for (what, tar, reason) in corpus {
        let place = Place::new();
        match place.import(&tar).await {
            Ok(_) => panic!("{what} was taken"),
            Err(error) if error.to_string().contains(reason) => {}
            Err(error) => others.push(format!("{what}: {error}")),
        }
        place.assert_untouched(what).await;
        // And after all that the good one comes in.
        place.import(&tar_of_the_good).await.unwrap();
    }
    assert!(others.is_empty(), "for other reasons: {others:#?}");
}
