use serde_json::{Value, json};
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::keylime::Keylime;

use crate::copy_files;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000";
const OTHER: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00001";

/// docs/compatibility.md, "Move the verifier" and "Move the registrar", step by step: our servers
/// start on the CA that Keylime's verifier made, so that no agent and no operator needs a new
/// certificate.
#[test]
fn our_servers_take_the_place_of_keylimes_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::beside_this().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let keylime = Keylime::start(
        &directory.path().join("keylime"),
        &machine.tpm().ek_issuer(),
    )
    .unwrap();
    let mut agent = Agent::start(
        &programs,
        &directory.path().join("agent"),
        &machine,
        keylime.registrar_port(),
        &keylime.ca_dir(),
        &AgentOptions::with_id(ID),
    )
    .unwrap();
    let policy = machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    keylime
        .tenant(&["-c", "add", "-u", ID, "--runtime-policy", policy])
        .unwrap();
    keylime.wait_for_attestations(ID, 1).unwrap();

    // The verifier: a copy of the CA directory; registrar and agent stay as they are.
    let place = directory.path().join("fleet");
    copy_files(&keylime.ca_dir(), &place.join("state/cv_ca"));
    let fleet = Fleet::start(&programs, &place, QUOTE_INTERVAL).unwrap();
    let keylimes_registrar = format!("https://127.0.0.1:{}", keylime.registrar_tls_port());
    fleet
        .trothctl(&[
            "--registrar",
            &keylimes_registrar,
            "agent",
            "add",
            ID,
            "--runtime-policy",
            policy,
        ])
        .unwrap()
        .success()
        .unwrap();
    fleet.wait_for_state(ID, "trusted").unwrap();
    keylime.tenant(&["-c", "delete", "-u", ID]).unwrap();

    // The registrar: the agent is pointed to the new one and started again, with the keys it has.
    // Somebody has taken another host's id there, which comes out and is put right.
    let start = |place: &str, registrar_port| {
        let place = directory.path().join(place);
        let ca_dir = keylime.ca_dir();
        let options = AgentOptions::with_id(OTHER);
        Agent::start(
            &programs,
            &place,
            &machine,
            registrar_port,
            &ca_dir,
            &options,
        )
        .unwrap()
    };
    let mut other = start("other", keylime.registrar_port());
    other.process().terminate().unwrap();
    let mut squatter = start("squatter", fleet.registrar_port());
    squatter.process().terminate().unwrap();
    let compared = |wanted: [&str; 2], status| {
        let compare = ["--json", "registrar", "compare", &keylimes_registrar];
        let answer = fleet.trothctl(&compare).unwrap();
        assert_eq!(answer.status.code(), Some(status), "{answer:?}");
        let agents = answer.json().unwrap()["agents"].take();
        let [first, second] = wanted;
        let wanted = json!([{"id": ID, "keys": first}, {"id": OTHER, "keys": second}]);
        assert_eq!(agents, wanted);
    };
    compared(["only_there", "other"], 3);
    agent.move_to(fleet.registrar_port()).unwrap();
    fleet.wait_registered(ID).unwrap();
    compared(["same", "other"], 3);
    let remove = ["registrar", "remove", OTHER];
    fleet.trothctl(&remove).unwrap().success().unwrap();
    other.move_to(fleet.registrar_port()).unwrap();
    fleet.wait_registered(OTHER).unwrap();
    compared(["same", "same"], 0);
    let before = attestations(&fleet.status(ID).unwrap());
    fleet
        .wait_for(ID, "is attested again", |node| {
            node["state"] == "trusted" && attestations(node) > before
        })
        .unwrap();

    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let node = fleet.wait_for_state(ID, "failed").unwrap();
    assert_eq!(
        node["findings"][0]["place"]["ima_entry"]["path"],
        "/usr/local/bin/miner"
    );
}

fn attestations(node: &Value) -> u64 {
    node["attestation_count"].as_u64().unwrap()
}
