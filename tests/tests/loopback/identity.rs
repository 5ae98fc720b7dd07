use troth_tests::boot::Machine;
use troth_tests::device::DeviceCertificates;
use troth_tests::fleet::{Agent, AgentOptions, Programs};
use troth_tests::keylime::Keylime;

/// Options of an agent that registers with these certificates.
fn with_device(id: &str, device: &DeviceCertificates) -> AgentOptions {
    let option = |name: &str, value: &str| (format!("TROTH_AGENT_{name}"), value.to_owned());
    AgentOptions {
        environment: vec![
            option("ENABLE_IAK_IDEVID", "true"),
            option("IDEVID_CERT", device.idevid.to_str().unwrap()),
            option("IAK_CERT", device.iak.to_str().unwrap()),
        ],
        ..AgentOptions::with_id(id)
    }
}

/// Keylime's registrar checks certificates against its store, keys against the certificates, and
/// the IAK's certification of the AK.
#[test]
fn keylimes_registrar_accepts_our_device_identity() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let device = directory.path().join("device");
    let device = DeviceCertificates::issue(&machine.tpm().client(), &device).unwrap();
    let place = directory.path().join("keylime");
    let mut keylime = Keylime::start(&place, &machine.tpm().ek_issuer()).unwrap();
    let tenant = keylime.operator();
    tenant.trust_ek_issuer("device", &device.issuer).unwrap();
    let id = "1c36b2a5-5b5a-4f0d-9c75-5a3f0e2f0001";
    let mut agent = Agent::start(
        &Programs::beside_this().unwrap(),
        &directory.path().join("agent"),
        &machine,
        keylime.registrar_port(),
        &keylime.ca_dir(),
        &with_device(id, &device),
    )
    .unwrap();
    let activated = |log: &str| log.contains("activated").then_some(());
    agent.process().wait_for_log(0, activated).unwrap();
    let logs = keylime.logs();
    assert!(
        logs.contains(&format!("Agent {id} AIK verified with IAK")),
        "{logs}"
    );
}
