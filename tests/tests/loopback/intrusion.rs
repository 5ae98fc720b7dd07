use std::fs;

use serde_json::Value;
use troth_core::{
    eventlog::{EventLog, EventType},
    tpm::HashAlgorithm,
};
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

/// The host boots with an image that was not there before, under the boot policy `{}`.
#[test]
fn a_boot_that_fails_is_told_from_the_last_that_was_trusted() {
    let stage = Stage::new();
    let id = "rebooted";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    let policy = stage.policy();
    let policy = policy.to_str().unwrap();
    let add = [
        "agent",
        "add",
        id,
        "--runtime-policy-name",
        "site",
        "--boot-policy",
        "{}",
    ];
    // What fails the node at first is not of its boot, and put right without another.
    stage
        .machine
        .run_program("/usr/local/bin/tool", b"tool\n")
        .unwrap();
    let trothctl = |command: &[&str]| {
        stage.fleet.trothctl(command).unwrap().success().unwrap();
    };
    trothctl(&["policy", "import", "runtime", "site", policy]);
    trothctl(&add);
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "ima.validation.ima-ng.not_in_allowlist");
    stage.policy();
    trothctl(&["policy", "import", "runtime", "site", policy, "--replace"]);
    trothctl(&["agent", "reactivate", id]);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    // The log tells of the image; the PCR is as it was.
    let path = stage.machine.boot_log();
    let mut bytes = fs::read(&path).unwrap();
    let log = EventLog::parse(&bytes).unwrap();
    let image = log
        .unverified_events()
        .find(|event| event.pcr == 4 && event.kind == EventType::EV_EFI_BOOT_SERVICES_APPLICATION)
        .unwrap();
    let index = image.index;
    let digest = image.digests.get(HashAlgorithm::Sha256).unwrap();
    let at = bytes
        .windows(32)
        .position(|window| window == digest.as_bytes())
        .unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "measured_boot.invalid_pcr_4");
    let explanation = finding["explanation"].as_str().unwrap();
    let event = format!("By the log, event {index} (EV_EFI_BOOT_SERVICES_APPLICATION: ");
    assert!(explanation.contains(&event), "{explanation}");
    assert!(
        explanation.contains("is another than in the last boot that was trusted"),
        "{explanation}"
    );
}

/// A UKI host under the boot policy `{}`: systemd went on extending PCRs 11 and 15, and its log is
/// asked for, sent, and joined with the firmware's.
#[test]
fn systemds_log_that_is_not_what_was_measured_is_found() {
    let stage = Stage::new();
    let id = "measured";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    let policy = stage.policy();
    let policy = policy.to_str().unwrap();
    let add = [
        "agent",
        "add",
        id,
        "--runtime-policy",
        policy,
        "--boot-policy",
        "{}",
    ];
    stage.fleet.trothctl(&add).unwrap().success().unwrap();
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    stage.machine.reach_phase("shutdown").unwrap();
    let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
    let before = count(&stage.fleet.status(id).unwrap());
    let more = |node: &Value| count(node) > before + 1;
    let node = stage.fleet.wait_for(id, "more attestations", more).unwrap();
    assert_eq!(node["state"], "trusted", "{node:#}");

    // An intruder takes the phase `ready` out of the log.
    let path = stage.machine.userspace_log();
    let log = fs::read_to_string(&path).unwrap();
    let records = log
        .split_inclusive('\n')
        .filter(|record| !record.contains("\"ready\""));
    fs::write(&path, records.collect::<String>()).unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "measured_boot.invalid_pcr_11");
    let explanation = finding["explanation"].as_str().unwrap();
    assert!(
        explanation.contains("PCR 11 (kernel-boot)"),
        "{explanation}"
    );
}
