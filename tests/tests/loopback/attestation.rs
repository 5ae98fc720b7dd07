use troth_tests::bus::Abrmd;
use troth_tests::fleet::AgentOptions;

use crate::Stage;

/// Registers, enrols, and sees the node trusted with all that its list has.
fn becomes_trusted(stage: &Stage, options: &AgentOptions, algorithm: &str) {
    let _agent = stage.agent(options);
    stage.enrol(&options.id);
    let node = stage.fleet.wait_for_state(&options.id, "trusted").unwrap();
    assert_eq!(node["encryption_algorithm"], algorithm);
    assert_eq!(node["findings"].as_array().unwrap().len(), 0);
    assert!(node["ima_entries"].as_u64().unwrap() > 1600, "{node:#}");
}

#[test]
fn rsa_over_swtpm() {
    becomes_trusted(
        &Stage::new(),
        &AgentOptions::with_id("rsa-direct"),
        "rsa2048",
    );
}

#[test]
fn ecc_over_swtpm() {
    let options = AgentOptions {
        key: "ecc256".into(),
        ..AgentOptions::with_id("ecc-direct")
    };
    becomes_trusted(&Stage::new(), &options, "ecc256");
}

/// The agent's way to the TPM on most hosts without a kernel resource manager.
fn over_the_broker(id: &str, key: &str) {
    let stage = Stage::new();
    let broker = Abrmd::start(&stage.path().join("bus"), stage.machine.tpm()).unwrap();
    let options = AgentOptions {
        key: key.to_owned(),
        tcti: Some(broker.tcti()),
        environment: vec![broker.environment()],
        ..AgentOptions::with_id(id)
    };
    becomes_trusted(&stage, &options, key);
}

#[test]
fn rsa_over_tabrmd() {
    over_the_broker("rsa-broker", "rsa2048");
}

#[test]
fn ecc_over_tabrmd() {
    over_the_broker("ecc-broker", "ecc256");
}

#[test]
fn a_program_of_the_policy_may_run_later() {
    let stage = Stage::new();
    let mut policy = stage.machine.runtime_policy().unwrap();
    // SHA-256 of the content below.
    let digest = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865";
    policy["digests"]["/usr/bin/later"] = serde_json::json!([digest]);
    let file = stage.path().join("policy.json");
    std::fs::write(&file, policy.to_string()).unwrap();
    let _agent = stage.agent(&AgentOptions::with_id("later"));
    stage.fleet.add("later", &file).unwrap();
    let before = stage.fleet.wait_for_state("later", "trusted").unwrap();
    let entries = before["ima_entries"].as_u64().unwrap();

    assert_eq!(
        stage.machine.run_program("/usr/bin/later", b"1\n").unwrap(),
        digest
    );
    let after = stage
        .fleet
        .wait_for("later", "has one more entry", |node| {
            node["ima_entries"]
                .as_u64()
                .is_some_and(|now| now > entries)
        })
        .unwrap();
    assert_eq!(after["state"], "trusted");
    assert_eq!(after["ima_entries"].as_u64().unwrap(), entries + 1);
}

#[test]
fn the_operator_sees_lists_and_removes() {
    let stage = Stage::new();
    let id = "operated";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    let missing = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(missing.status.code(), Some(5), "{missing:?}");
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    let list = stage
        .fleet
        .trothctl(&["--json", "agent", "list"])
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(list.json().unwrap()["agents"][0]["id"], id);
    let status = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(status.status.code(), Some(0), "{status:?}");
    assert!(
        status.stdout.to_lowercase().contains("trusted"),
        "{status:?}"
    );
    let record = stage.fleet.wait_registered(id).unwrap();
    assert_eq!(record["ek_certificate_matches"], true);
    stage
        .fleet
        .trothctl(&["ca", "show"])
        .unwrap()
        .success()
        .unwrap();

    stage
        .fleet
        .trothctl(&["agent", "remove", "--wait", id])
        .unwrap()
        .success()
        .unwrap();
    let gone = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(gone.status.code(), Some(5), "{gone:?}");
}
