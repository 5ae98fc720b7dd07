use std::fs;

use troth_tests::boot::Machine;
use troth_tests::fleet::{Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::keylime::{KeylimeAgent, Servers, Tenant};

/// Keylime's agent registers at our registrar, is enrolled by trothctl, and is judged by our
/// verifier: trusted, and failed for the program that no policy lists.
#[test]
fn our_servers_attest_keylimes_agent() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let fleet = Fleet::start(
        &Programs::beside_this().unwrap(),
        &directory.path().join("fleet"),
        QUOTE_INTERVAL,
    )
    .unwrap();
    let id = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001";
    let agent = KeylimeAgent::start(
        &directory.path().join("agent"),
        &machine,
        id,
        fleet.registrar_port(),
        &fleet.ca_dir(),
    )
    .unwrap();
    let record = fleet.wait_registered(id).unwrap();
    assert_eq!(record["port"], agent.address().port());

    let policy = machine.write_runtime_policy().unwrap();
    fleet.add(id, &policy).unwrap();
    fleet.wait_for_state(id, "trusted").unwrap();

    // Enrolled anew by Keylime's tenant: our verifier hands over V, and the agent proves the key.
    let ca_dir = fleet.ca_dir();
    let servers = Servers {
        verifier_port: fleet.verifier_port(),
        registrar_tls_port: fleet.registrar_tls_port(),
        ca_dir: &ca_dir,
    };
    let place = directory.path().join("tenant");
    let tenant = Tenant::new(&place, servers, &machine.tpm().ek_issuer()).unwrap();
    let payload = directory.path().join("payload");
    fs::write(&payload, "secret\n").unwrap();
    let (policy, payload) = (policy.to_str().unwrap(), payload.to_str().unwrap());
    tenant.run(&["-c", "delete", "-u", id]).unwrap();
    let add = [
        "-c",
        "add",
        "-u",
        id,
        "--runtime-policy",
        policy,
        "-f",
        payload,
        "--verify",
    ];
    tenant.run(&add).unwrap();
    fleet.wait_for_state(id, "trusted").unwrap();

    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let node = fleet.wait_for_state(id, "failed").unwrap();
    assert_eq!(
        node["findings"][0]["place"]["ima_entry"]["path"],
        "/usr/local/bin/miner"
    );
}
