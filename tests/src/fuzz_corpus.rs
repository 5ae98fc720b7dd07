//! Replays the fuzz corpus on stable Rust: every seed as it is, cut short, and with bits flipped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Seeds are small, so that the whole replay takes seconds in a debug build.
const MAX_SEED: usize = 16 * 1024;
/// Changed copies made of one seed, at most, of each kind.
const CHANGES: usize = 1500;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn targets() -> impl Iterator<Item = troth_core::fuzz::Target> {
    let targets = troth_core::fuzz::TARGETS.iter();
    let targets = targets.chain(troth_archive::fuzz::TARGETS);
    let targets = targets.chain(troth_daemon::fuzz::TARGETS);
    targets.chain(troth_ipc::fuzz::TARGETS).copied()
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let name = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| name(entry.unwrap().path())).collect()
}

#[test]
fn no_seed_and_no_change_of_one_panics() {
    for (name, target) in targets() {
        let mut seeds = 0;
        for entry in std::fs::read_dir(fuzz().join("corpus").join(name)).unwrap() {
            let path = entry.unwrap().path();
            let seed = std::fs::read(&path).unwrap();
            assert!(seed.len() <= MAX_SEED, "{} is too large", path.display());
            target(&seed);
            let step = seed.len().div_ceil(CHANGES).max(1);
            for at in (0..seed.len()).step_by(step) {
                target(&seed[..at]);
                let mut flipped = seed.clone();
                flipped[at] ^= 1 << (at % 8);
                target(&flipped);
                flipped[at] = 0xff;
                target(&flipped);
            }
            seeds += 1;
        }
        assert!(seeds > 0, "target {name} has no seeds");
        for hostile in [
            &b""[..],
            &[0; 4096],
            &[0xff; 4096],
            &[0x30; 4096],
            &[b'['; 65536],
        ] {
            target(hostile);
        }
    }
}

#[test]
fn every_target_has_its_libfuzzer_wrapper_and_corpus() {
    let targets: BTreeSet<String> = targets().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), targets);
    assert_eq!(names(&fuzz().join("corpus")), targets);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in targets {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
            "{target}"
        );
    }
}
