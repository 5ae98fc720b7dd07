use std::fs;

use serde_json::json;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::keylime::{Keylime, Servers, Tenant};

use crate::copy_files;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00004";

/// The registrar is ours, and everything that reads from it is Keylime's: the tenant enrols at
/// Keylime's verifier what our registrar vouches for.
#[test]
fn keylimes_verifier_attests_what_our_registrar_has() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let machine = Machine::booted(&path("machine")).unwrap();
    let issuer = machine.tpm().ek_issuer();
    let keylime = Keylime::start(&path("keylime"), &issuer).unwrap();
    let ca_dir = keylime.ca_dir();
    copy_files(&ca_dir, &path("fleet/state/cv_ca"));
    let programs = Programs::beside_this().unwrap();
    let fleet = Fleet::start(&programs, &path("fleet"), QUOTE_INTERVAL).unwrap();
    let servers = Servers {
        verifier_port: keylime.verifier_port(),
        registrar_tls_port: fleet.registrar_tls_port(),
        ca_dir: &ca_dir,
    };
    let tenant = Tenant::new(&path("tenant"), servers, &issuer).unwrap();
    let _agent = Agent::start(
        &programs,
        &path("agent"),
        &machine,
        fleet.registrar_port(),
        &ca_dir,
        &AgentOptions::with_id(ID),
    )
    .unwrap();

    let registered = tenant.json(&["-c", "reglist"]).unwrap();
    assert_eq!(registered, json!({"uuids": [ID]}));
    // The EK certificate that our registrar hands out leads to its manufacturer.
    let policy = path("policy.json");
    fs::write(&policy, machine.runtime_policy().unwrap().to_string()).unwrap();
    let policy = policy.to_str().unwrap();
    tenant
        .run(&["-c", "add", "-u", ID, "--runtime-policy", policy])
        .unwrap();
    keylime.wait_for_attestations(ID, 2).unwrap();
    machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let node = tenant.wait_for_state(ID, "Invalid Quote").unwrap();
    let event = "ima.validation.ima-ng.not_in_allowlist";
    assert_eq!(node["last_event_id"], event, "{node:#}");

    // A certificate of another manufacturer is found here as it is at Keylime's own registrar.
    let other = Machine::manufacture(&path("other")).unwrap();
    tenant
        .trust_ek_issuer("issuer", &other.tpm().ek_issuer())
        .unwrap();
    tenant.run(&["-c", "delete", "-u", ID]).unwrap();
    let refused = tenant.refused(&["-c", "add", "-u", ID]).unwrap();
    assert!(refused.contains("EK"), "{refused}");
    tenant.run(&["-c", "regdelete", "-u", ID]).unwrap();
    assert_eq!(
        tenant.json(&["-c", "reglist"]).unwrap(),
        json!({"uuids": []})
    );
}
