use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use troth_tests::fleet::Programs;

/// `cargo xtask demo` as it was built, with its files below `directory`.
fn demo(directory: &Path) -> Command {
    let mut command = Programs::beside_this().unwrap().command("xtask").unwrap();
    command.arg("demo").env("TMPDIR", directory);
    command
}

/// Command lines of processes that name `directory`: all that the demo starts do.
fn left_running(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(name))
        .collect()
}

#[test]
fn it_ends_as_told_and_leaves_nothing_running() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path()).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    for step in ["TRUSTED", "FAILED", "/usr/local/bin/cryptominer", "as told"] {
        assert!(told.contains(step), "{step} is missing:\n{told}");
    }
    assert_eq!(left_running(directory.path()), [""; 0]);
}

#[test]
fn a_reader_that_leaves_does_not_leave_it_running() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = demo(directory.path());
    command
        .stdin(Stdio::null())
        .stderr(writer.try_clone().unwrap())
        .stdout(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    // Until every daemon runs.
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("TRUSTED")));
    drop(lines);
    child.wait().unwrap();
    assert_eq!(left_running(directory.path()), [""; 0]);
}
