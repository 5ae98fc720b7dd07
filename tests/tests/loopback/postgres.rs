use troth_tests::fleet::{AgentOptions, Databases, QUOTE_INTERVAL};
use troth_tests::postgres::{PASSWORD, PostgreSql};

use crate::{Stage, only_finding};

#[test]
fn a_fleet_on_postgresql_outlives_a_killed_verifier() {
    let server = PostgreSql::start().unwrap();
    for database in ["registrar", "verifier"] {
        server.create_database(database).unwrap();
    }
    let databases = Databases {
        registrar: Some(server.socket_url("registrar")),
        verifier: Some(server.url("verifier")),
    };
    let mut stage = Stage::with_databases(QUOTE_INTERVAL, &databases);
    let id = "on-postgresql";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    let count = |node: &serde_json::Value| node["attestation_count"].as_u64().unwrap();
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();

    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    let after = stage
        .fleet
        .wait_for(id, "was attested again", |node| {
            node["state"] == "trusted" && count(node) > count(&before) + 1
        })
        .unwrap();
    assert_eq!(after["ima_entries"], before["ima_entries"]);

    // A verdict that was shown is in the database, and so is the policy that it rests on.
    let program = "/usr/local/bin/miner";
    stage.machine.run_program(program, b"mine\n").unwrap();
    let failed = stage.fleet.wait_for_state(id, "failed").unwrap();
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    let node = stage
        .fleet
        .wait_for(id, "is known", |node| node["state"] != "pending")
        .unwrap();
    assert_eq!(node["state"], "failed", "{node:#}");
    assert_eq!(only_finding(&node), only_finding(&failed));

    // It is this server that they are in, and nothing else.
    let nodes = server.query("verifier", "SELECT agent_id FROM nodes");
    assert_eq!(nodes.unwrap().trim(), id);
    let agents = server.query("registrar", "SELECT agent_id FROM agents");
    assert_eq!(agents.unwrap().trim(), id);
    let state = stage.fleet.ca_dir().parent().unwrap().to_owned();
    let files = std::fs::read_dir(state).unwrap();
    for entry in files {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().contains("sqlite"), "{name:?}");
    }
    let log = stage.fleet.verifier().log();
    assert!(!log.contains(PASSWORD), "{log}");
}
