use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use troth_tests::boot::Machine;
use troth_tests::device::DeviceCertificates;
use troth_tests::fleet::{Agent, AgentOptions, Extra, Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::keylime::Keylime;

use crate::Stage;

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

/// NV index of the RSA 2048 EK certificate (TCG EK Credential Profile 2.5, 2.2.1.4).
const EK_CERTIFICATE: u32 = 0x01C0_0002;

/// The manufacturer's certificate in the wrappings that TPMs are delivered with.
fn wrappings(der: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let length = u16::try_from(der.len()).unwrap().to_be_bytes();
    vec![
        ("wrapped", [&[0x04, 0x82], &length[..], der].concat()),
        ("padded", [der, &[0xFF; 300]].concat()),
        (
            "old-header",
            [&[0x10, 0x01, 0x00], &length[..], der].concat(),
        ),
    ]
}

#[test]
fn an_ek_certificate_in_any_wrapping_registers_as_itself() {
    let stage = Stage::new();
    let tpm = stage.machine.tpm().client();
    let certificate = |id: &str| {
        let mut agent = stage.agent(&AgentOptions::with_id(id));
        let record = stage.fleet.wait_registered(id).unwrap();
        agent.process().terminate().unwrap();
        record["ek_certificate"]["sha256"].clone()
    };
    let plain = certificate("plain");
    assert!(plain.is_string());
    let der = tpm.read_nv(EK_CERTIFICATE).unwrap();
    for (id, content) in wrappings(&der) {
        tpm.write_nv(EK_CERTIFICATE, &content).unwrap();
        assert_eq!(certificate(id), plain, "{id}");
    }
    tpm.remove_nv(EK_CERTIFICATE).unwrap();
    assert_eq!(certificate("without"), Value::Null);
}

#[test]
fn keylimes_registrar_accepts_an_ek_certificate_that_was_wrapped() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let tpm = machine.tpm().client();
    let der = tpm.read_nv(EK_CERTIFICATE).unwrap();
    let place = directory.path().join("keylime");
    let keylime = Keylime::start(&place, &machine.tpm().ek_issuer()).unwrap();
    for (id, content) in wrappings(&der) {
        tpm.write_nv(EK_CERTIFICATE, &content).unwrap();
        let mut agent = Agent::start(
            &Programs::beside_this().unwrap(),
            &directory.path().join(id),
            &machine,
            keylime.registrar_port(),
            &keylime.ca_dir(),
            &AgentOptions::with_id(id),
        )
        .unwrap();
        let activated = |log: &str| log.contains("activated").then_some(());
        agent.process().wait_for_log(0, activated).unwrap();
        agent.process().terminate().unwrap();
        let registered = keylime.tenant(&["-c", "regstatus", "-u", id]).unwrap();
        assert!(registered.contains(&STANDARD.encode(&der)), "{registered}");
    }
}

#[test]
fn our_registrar_may_demand_a_device_identity() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::booted(&directory.path().join("machine")).unwrap();
    let device = directory.path().join("device");
    let device = DeviceCertificates::issue(&machine.tpm().client(), &device).unwrap();
    let store = directory.path().join("store");
    fs::create_dir_all(&store).unwrap();
    fs::copy(&device.issuer, store.join("device.pem")).unwrap();
    let programs = Programs::beside_this().unwrap();
    let extra = Extra {
        registrar: format!("tpm_identity = \"iak_idevid\"\ntpm_cert_store = {store:?}\n"),
        ..Extra::default()
    };
    let place = directory.path().join("fleet");
    let fleet = Fleet::start_with(&programs, &place, QUOTE_INTERVAL, &extra).unwrap();
    let agent = |options: &AgentOptions| {
        let place = directory.path().join(&options.id);
        let (port, ca) = (fleet.registrar_port(), fleet.ca_dir());
        Agent::start(&programs, &place, &machine, port, &ca, options)
    };
    let mut with = agent(&with_device("with", &device)).unwrap();
    fleet.wait_registered("with").unwrap();
    with.process().terminate().unwrap();

    let mut options = AgentOptions::with_id("without");
    let retries = "TROTH_AGENT_EXPONENTIAL_BACKOFF_MAX_RETRIES";
    options.environment = vec![(retries.into(), "0".into())];
    let refused = agent(&options).unwrap_err().to_string();
    assert!(refused.contains("status 400"), "{refused}");
    let known = fleet.trothctl(&["registrar", "show", "without"]).unwrap();
    assert!(!known.status.success(), "{}", known.stdout);
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

/// Ours checks the same, and the EK certificate too, to one store.
#[test]
fn our_registrar_takes_whom_its_store_vouches_for() {
    const ID: &str = "1c36b2a5-5b5a-4f0d-9c75-5a3f0e2f0002";
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let programs = Programs::beside_this().unwrap();
    let machine = Machine::booted(&directory.join("machine")).unwrap();
    let device = DeviceCertificates::issue(&machine.tpm().client(), &directory.join("device"));
    let device = device.unwrap();
    let store = directory.join("makers");
    fs::create_dir(&store).unwrap();
    fs::copy(machine.tpm().ek_issuer(), store.join("tpm.pem")).unwrap();
    fs::copy(&device.issuer, store.join("device.pem")).unwrap();
    let extra = Extra {
        registrar: format!(
            "tpm_cert_store = {store:?}\nrequire_ek_cert = true\ntpm_identity = \"ek_cert\""
        ),
        ..Extra::default()
    };
    let place = directory.join("fleet");
    let mut fleet = Fleet::start_with(&programs, &place, QUOTE_INTERVAL, &extra).unwrap();
    let _agent = Agent::start(
        &programs,
        &directory.join("agent"),
        &machine,
        fleet.registrar_port(),
        &fleet.ca_dir(),
        &with_device(ID, &device),
    )
    .unwrap();
    fleet.wait_registered(ID).unwrap();
    let vouched = |log: &str| log.contains("device_identity=true").then_some(());
    fleet.registrar().wait_for_log(0, vouched).unwrap();
}
