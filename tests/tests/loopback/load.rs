use serde_json::Value;
use troth_tests::fleet::{Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::process::output_of;

use crate::only_finding;

/// `troth-load ARGUMENTS --json`, and its figures.
fn load(programs: &Programs, arguments: &[&str]) -> Value {
    let mut command = programs.command("troth-load").unwrap();
    let printed = output_of(command.args(arguments).arg("--json")).unwrap();
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn of_many_simulated_nodes_the_one_that_was_tampered_with_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::beside_this().unwrap();
    let mut fleet = Fleet::start(&programs, directory.path(), QUOTE_INTERVAL).unwrap();
    let verifier = format!("127.0.0.1:{}", fleet.verifier_port());
    let pid = fleet.verifier().id().to_string();
    let ca_dir = fleet.ca_dir();
    let ca_dir = ca_dir.to_str().unwrap();
    for (prefix, key) in [("rsa", "rsa2048"), ("ecc", "ecc256")] {
        let arguments = [
            "attest",
            "--verifier",
            &verifier,
            "--ca-dir",
            ca_dir,
            "--pid",
            &pid,
            "--prefix",
            prefix,
            "--key",
            key,
            "--nodes",
            "50",
            "--tampered",
            "1",
            "--policy",
            "300",
            "--entries",
            "2",
            "--duration",
            "3",
            "--keep",
        ];
        let figures = load(&programs, &arguments);
        let states = ["attested", "failed", "other"].map(|state| figures[state].as_u64());
        assert_eq!(states, [Some(49), Some(1), Some(0)], "{figures:#}");
        assert!(figures["answers"].as_u64().unwrap() > 0, "{figures:#}");
        assert!(figures["cpu_us_per_answer"].is_number(), "{figures:#}");

        // The generator has ended: the others do not answer any more, but what failed stays failed.
        let node = fleet.status(&format!("{prefix}-000000")).unwrap();
        let finding = only_finding(&node);
        assert_eq!(
            finding["place"]["ima_entry"]["path"], "/usr/local/bin/unlisted",
            "{finding:#}"
        );
    }
}

#[test]
fn agents_with_keys_in_software_are_registered_and_activated() {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::beside_this().unwrap();
    let fleet = Fleet::start(&programs, directory.path(), QUOTE_INTERVAL).unwrap();
    let registrar = format!("127.0.0.1:{}", fleet.registrar_port());
    // Two requests each: less than the burst that one address may send.
    let arguments = ["register", "--registrar", &registrar, "--agents", "60"];
    assert_eq!(load(&programs, &arguments)["agents"], 60);
    let list = fleet.trothctl(&["--json", "registrar", "list"]).unwrap();
    let agents = list.json().unwrap();
    assert_eq!(
        agents["agents"].as_array().map(Vec::len),
        Some(60),
        "{agents:#}"
    );
}
