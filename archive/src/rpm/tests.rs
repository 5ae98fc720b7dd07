use super::*;

const PLAIN: &[u8] = include_bytes!("../../../tests/fixtures/packages/troth-test-1-1.noarch.rpm");
const SIGNED: &[u8] =
    include_bytes!("../../../tests/fixtures/packages/troth-test-signed-1-1.noarch.rpm");

const SOURCE: &[u8] = include_bytes!("../../../tests/fixtures/packages/troth-test-1-1.src.rpm");

/// `rpm -qp --qf '[%{FILENAMES} %{FILEDIGESTS}\n]'`, regular files that are installed alone.
const FILES: [(&str, &str); 4] = [
    (
        "/usr/bin/troth-test",
        "bfdeaeb08cffb6a36438bcd12dda25417e3cdd36f1e7e482a2849d539225288b",
    ),
    (
        "/usr/lib/troth-test/lib.so",
        "b718f1354f7247312eca086d9a024afe5fa717ddea5adeddd6f12bcf945b2e8c",
    ),
    (
        "/usr/share/empty",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    (
        "/usr/share/troth test/a b",
        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1",
    ),
];

fn listed(package: &Package) -> Vec<(&str, String)> {
    let file = |file: &'_ PackagedFile| file.digest.to_string();
    let paths = package.files.iter().map(|file| &*file.path);
    let paths = paths.map(|path| std::str::from_utf8(path).unwrap());
    paths.zip(package.files.iter().map(file)).collect()
}

#[test]
fn files_and_digests_are_those_that_rpm_lists() {
    let package = Package::read(PLAIN).unwrap();
    assert_eq!(package.name, "troth-test");
    assert_eq!(package.algorithm, Some(HashAlgorithm::Sha256));
    let expected = FILES.map(|(path, digest)| (path, digest.to_owned()));
    assert_eq!(listed(&package), expected);
    assert!(package.files.iter().all(|file| file.signature.is_empty()));
}

#[test]
fn signatures_of_files_are_those_of_evmctl() {
    let package = Package::read(SIGNED).unwrap();
    assert_eq!(listed(&package), listed(&Package::read(PLAIN).unwrap()));
    for file in &package.files {
        // Type, version, SHA-256, key id, size of the signature.
        let header = hex::encode(&file.signature[..9]);
        assert_eq!(header, "0302048e01ee360100");
        assert_eq!(file.signature.len(), 9 + 256);
    }
}

#[test]
fn a_source_package_is_told_from_what_it_would_install() {
    let error = Package::read(SOURCE).unwrap_err();
    assert!(matches!(error, RpmError::Source), "{error}");
}

#[test]
fn a_package_that_was_changed_or_cut_short_is_refused() {
    let end = PLAIN.len() - payload(PLAIN).len();
    for end in 0..end {
        let error = Package::read(&PLAIN[..end]).unwrap_err().to_string();
        assert!(error.contains("ends within it"), "cut at {end}: {error}");
    }
    let start = 96 + header_size(&PLAIN[96..]).next_multiple_of(8);
    for at in (start..end).step_by(7) {
        let mut changed = PLAIN.to_vec();
        changed[at] ^= 4;
        assert!(Package::read(&*changed).is_err(), "changed at {at}");
    }
    let error = Package::read(&b"PK\x03\x04 and so on, for ninety-six bytes".repeat(3)[..]);
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("not an RPM package")
    );
}

#[test]
fn lengths_beyond_all_reason_are_refused_before_memory_is_taken() {
    let mut changed = PLAIN.to_vec();
    changed[96 + 8..96 + 16].fill(0xff);
    let error = Package::read(&*changed).unwrap_err().to_string();
    assert!(error.contains("too many"), "{error}");
}

#[test]
fn a_file_with_a_path_that_is_none_is_refused() {
    let whole = ("/usr/bin/", "tool");
    for (directory, name, reason) in [
        (whole.0, whole.1, None),
        ("/", "tool", None),
        ("/usr/..data/", "tool..", None),
        ("", "boot_aggregate", Some("not a whole one")),
        ("", "troth.spec", Some("not a whole one")),
        ("../../etc/", "passwd", Some("not a whole one")),
        ("/", "", Some("not a whole one")),
        ("/usr/../etc/", "passwd", Some("..")),
        ("/usr/bin/", "..", Some("..")),
        ("/usr/bin/", "\x1b[2Jtool", Some("control characters")),
    ] {
        let paths = Paths::Parts {
            directories: vec![directory.as_bytes()],
            indexes: vec![0],
            names: vec![name.as_bytes()],
        };
        match (paths.get(0), reason) {
            (Ok(path), None) => assert_eq!(path, [directory, name].concat().into_bytes()),
            (Err(error), Some(reason)) => {
                assert!(error.to_string().contains(reason), "{error}");
            }
            (read, _) => panic!("{directory}{name}: {read:?}"),
        }
    }
}

fn header_size(header: &[u8]) -> usize {
    let number = |at| number(header, at, 4).unwrap() as usize;
    16 + 16 * number(8) + number(12)
}

fn payload(package: &[u8]) -> &[u8] {
    let rest = &package[96..];
    let rest = &rest[header_size(rest).next_multiple_of(8)..];
    &rest[header_size(rest)..]
}
