use super::*;

fn shape(directory: &Path, zstd: bool, split: Option<u64>) -> Shape {
    let to = directory.join("bundle.tar");
    Shape { to, zstd, split }
}

fn write(shape: Shape, bytes: &[u8]) -> Vec<String> {
    let mut writer = Writer::create(shape).unwrap();
    writer.write_all(bytes).unwrap();
    let (names, _) = writer.finish().unwrap();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    names.iter().map(name).collect()
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn content(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn whatever_the_shape_the_same_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar");
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|n| n.wrapping_mul(n).to_le_bytes())
        .collect();
    for (zstd, split) in [
        (false, None),
        (true, None),
        (false, Some(1 << 20)),
        (true, Some(1 << 20)),
    ] {
        let names = write(shape(directory.path(), zstd, split), &bytes);
        assert_eq!(names.len() > 1, split.is_some(), "{names:?}");
        // Nothing of an earlier shape is left to be mixed up with it.
        assert_eq!(content(directory.path()), names);
        assert!(read(&path) == bytes);
    }
}

#[test]
fn fewer_parts_than_last_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar");
    write(
        shape(directory.path(), false, Some(1 << 20)),
        &vec![1; 5 << 20],
    );
    write(
        shape(directory.path(), false, Some(1 << 20)),
        &vec![2; 3 << 19],
    );
    assert_eq!(
        content(directory.path()),
        ["bundle.tar.001", "bundle.tar.002"]
    );
    assert!(read(&path) == vec![2; 3 << 19]);
}

#[test]
fn what_is_not_finished_has_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar");
    write(shape(directory.path(), false, None), b"old");
    let mut writer = Writer::create(shape(directory.path(), false, None)).unwrap();
    writer.write_all(b"new").unwrap();
    assert_eq!(read(&path), b"old");
    drop(writer);
    assert_eq!(content(directory.path()), ["bundle.tar"]);
    assert_eq!(read(&path), b"old");
}

#[test]
fn two_bundles_of_one_name_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bundle.tar");
    for name in ["bundle.tar", "bundle.tar.001"] {
        std::fs::write(directory.path().join(name), b"x").unwrap();
    }
    assert!(open(&path).is_err());
    assert!(open(&directory.path().join("none")).is_err());
}
