use troth_tests::fleet::AgentOptions;

use crate::{Stage, only_finding};

#[test]
fn an_unlisted_program_is_named_with_its_digest() {
    let stage = Stage::new();
    let id = "unlisted";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    let digest = stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "ima.validation.ima-ng.not_in_allowlist");
    assert_eq!(
        finding["place"]["ima_entry"]["path"],
        "/usr/local/bin/miner"
    );
    assert!(
        finding["got"].as_str().unwrap().contains(&digest),
        "{finding:#}"
    );
    assert_eq!(finding["expected"], serde_json::json!([]));

    let shown = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(shown.status.code(), Some(3), "{shown:?}");
    assert!(
        shown.stdout.contains("/usr/local/bin/miner"),
        "{}",
        shown.stdout
    );
}

#[test]
fn a_changed_program_is_shown_with_what_the_policy_has() {
    let stage = Stage::new();
    let id = "changed";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    let path = "/usr/lib/systemd/systemd";
    let allowed = stage.machine.runtime_policy().unwrap()["digests"][path].clone();
    let digest = stage.machine.run_program(path, b"not systemd\n").unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "ima.validation.ima-ng.runtime_policy_hash");
    assert_eq!(finding["place"]["ima_entry"]["path"], path);
    assert!(
        finding["got"].as_str().unwrap().contains(&digest),
        "{finding:#}"
    );
    assert_eq!(finding["expected"], allowed);
}
