use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every crate that `package` is built from, without what only its tests and build scripts use.
fn dependencies(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .args(["--format", "{lib}", "--package", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Every Rust source below `directory`.
pub(crate) fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Lines of shipped code in `file` that contain one of `words`: comments do not count, nor does
/// what comes after the first test module begins, nor a test module of its own file.
fn lines_with(file: &Path, words: &[&str]) -> Vec<String> {
    if file.ends_with("tests.rs") {
        return Vec::new();
    }
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .map(|line| line.split("//").next().unwrap_or_default())
        .enumerate()
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(number, line)| format!("{}:{}: {}", file.display(), number + 1, line.trim()))
        .collect()
}

#[test]
fn dependency_rules_hold() {
    let core = dependencies("troth-core");
    for forbidden in [
        "tokio",
        "zbus",
        "zlink",
        "tss_esapi",
        "sqlx",
        "hyper",
        "axum",
        "rustls",
        "reqwest",
    ] {
        assert!(
            !core.contains(forbidden),
            "troth-core must not know {forbidden}"
        );
    }
    for (package, forbidden) in [
        ("troth-core", &["troth_daemon"][..]),
        ("troth-archive", &["troth_daemon", "tokio"]),
        ("troth-daemon", &["troth_archive", "troth_core"]),
        ("troth-ipc", &["troth_core", "troth_daemon", "troth_agent"]),
        ("troth-agent", &["troth_verifier", "trothctl"]),
        ("troth-actiond", &["troth_agent", "troth_core", "tss_esapi"]),
        ("troth-verifier", &["troth_agent", "trothctl"]),
        ("troth-ctl", &["troth_agent", "troth_verifier"]),
    ] {
        let known = dependencies(package);
        for other in forbidden.iter().chain(&["troth_tests"]) {
            assert!(!known.contains(*other), "{package} must not know {other}");
        }
    }
    for package in ["troth-verifier", "troth-ctl", "troth-daemon", "xtask"] {
        assert!(
            !dependencies(package).contains("tss_esapi"),
            "{package} must not link libtss2"
        );
    }
    assert!(dependencies("troth-agent").contains("tss_esapi"));
}

#[test]
fn only_the_agents_tpm_module_names_libtss2() {
    let inside = root().join("agent/src/tpm");
    for package in [
        "agent", "archive", "core", "ctl", "daemon", "verifier", "xtask",
    ] {
        for file in sources(&root().join(package)) {
            if !file.starts_with(&inside) && file != inside.with_extension("rs") {
                assert_eq!(lines_with(&file, &["tss_esapi"]), Vec::<String>::new());
            }
        }
    }
}

/// No other room shows their types, so that a new version of theirs changes one room.
#[test]
fn only_the_room_for_local_callers_names_zbus_and_zlink() {
    for room in [
        "agent", "archive", "core", "ctl", "daemon", "verifier", "xtask",
    ] {
        for file in sources(&root().join(room)) {
            let found = lines_with(&file, &["zbus", "zlink"]);
            assert_eq!(found, Vec::<String>::new());
        }
    }
}

#[test]
fn the_core_does_no_input_or_output() {
    let io = [
        "std::fs",
        "std::net",
        "std::process",
        "std::io",
        "std::env",
        "std::thread",
    ];
    for file in sources(&root().join("core/src")) {
        assert_eq!(lines_with(&file, &io), Vec::<String>::new());
    }
}

/// A difference on purpose without a test would be an accident tomorrow.
#[test]
fn every_difference_from_keylime_is_held_by_tests() {
    let text = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let (_, differences) = text.split_once("## Where we differ on purpose").unwrap();
    let rooms = [
        "core", "archive", "daemon", "agent", "verifier", "ctl", "tests",
    ];
    let code: String = rooms
        .iter()
        .flat_map(|room| sources(&root().join(room)))
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let rows = differences.lines().filter(|line| {
        line.starts_with("| ") && !line.starts_with("| here |") && !line.contains("---")
    });
    let mut wrong = Vec::new();
    let mut count = 0;
    for row in rows {
        count += 1;
        let held_by = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        let tests: Vec<_> = held_by.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() {
            wrong.push(format!("no test: {row}"));
        }
        for test in tests {
            if !code.contains(&format!("fn {test}(")) {
                wrong.push(format!("no test is called {test}: {row}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 30, "{count} differences were found");
}
