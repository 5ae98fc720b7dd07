use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Programs};
use troth_tests::keylime::Keylime;

/// The proof that our formats are Keylime's: registration, EK certificate, identity quote,
/// integrity quotes with the IMA list, and a finding, all judged by Keylime 7.14.3.
#[test]
fn keylime_attests_our_agent() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let keylime = Keylime::start(
        &directory.path().join("keylime"),
        &machine.tpm().ek_issuer(),
    )
    .unwrap();
    let id = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";
    let mut agent = Agent::start(
        &Programs::beside_this().unwrap(),
        &directory.path().join("agent"),
        &machine,
        keylime.registrar_port(),
        &keylime.ca_dir(),
        &AgentOptions::with_id(id),
    )
    .unwrap();
    agent
        .process()
        .wait_for_log(0, |log| {
            log.to_lowercase().contains("activated").then_some(())
        })
        .unwrap();

    let policy = machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    let added = keylime
        .tenant(&["-c", "add", "-u", id, "--runtime-policy", policy])
        .unwrap();
    assert!(
        added.contains(&format!(
            "Agent {id} ({}) added to Verifier",
            agent.address()
        )),
        "{added}"
    );

    let trusted = keylime.wait_for_state(id, &["Get Quote"]).unwrap();
    assert!(trusted.contains("\"attestation_count\""), "{trusted}");
    let attested = keylime.wait_for_attestations(id, 2).unwrap();
    assert!(attested >= 2);

    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    keylime
        .wait_for_state(id, &["Invalid Quote", "Failed"])
        .unwrap();
    assert!(
        keylime
            .logs()
            .contains("File not found in allowlist: /usr/local/bin/miner")
    );
}
