use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::Value;
use troth_tests::clock::Clock;
use troth_tests::fleet::{AgentOptions, Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::process::stable_port;
use troth_tests::proxy::LyingAgent;

use crate::Stage;

fn count(node: &Value, member: &str) -> u64 {
    node[member].as_u64().unwrap()
}

#[test]
fn a_restarted_agent_keeps_its_ak_and_stays_trusted() {
    let stage = Stage::new();
    let id = "restarted";
    let mut agent = stage.agent(&AgentOptions::with_id(id));
    let record = stage.fleet.wait_registered(id).unwrap();
    stage.enrol(id);
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();

    assert!(agent.process().terminate().unwrap().success());
    let left = stage.machine.tpm().client().loaded_objects().unwrap();
    assert!(left.is_empty(), "objects left in the TPM: {left:x?}");
    agent.start_again().unwrap();

    let after = stage
        .fleet
        .wait_for(id, "was attested again", |node| {
            node["state"] == "trusted"
                && count(node, "attestation_count") > count(&before, "attestation_count") + 1
        })
        .unwrap();
    assert_eq!(after["findings"], serde_json::json!([]));
    assert_eq!(stage.fleet.wait_registered(id).unwrap()["ak"], record["ak"]);
}

/// The registrar shows the new certificate; the verifier knows the key, whichever it was told.
#[test]
fn a_node_stays_trusted_while_its_agent_renews_the_certificate() {
    let mut stage = Stage::new();
    let id = "renewed";
    let state = stage.path().join(id).join("state");
    fs::create_dir_all(&state).unwrap();
    let key = KeyPair::generate().unwrap();
    fs::write(state.join("server-private.pem"), key.serialize_pem()).unwrap();
    // Due when a third of its life is left: the node is enrolled before that.
    let left = Duration::from_secs(45);
    fs::write(state.join("server-cert.crt"), ending(&key, id, left)).unwrap();
    let mut agent = stage.agent(&AgentOptions::with_id(id));
    let process = agent.process().id();
    let certificate = |stage: &Stage| {
        let record = stage.fleet.wait_registered(id).unwrap();
        record["mtls_certificate"]["sha256"].clone()
    };
    let old = certificate(&stage);
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();
    assert_eq!(certificate(&stage), old);

    let renewed = |log: &str| {
        let announced = "the registrar shows the new TLS certificate";
        log.contains(announced).then_some(())
    };
    agent.process().wait_for_log(0, renewed).unwrap();
    assert_ne!(certificate(&stage), old);
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();
    // A new verifier makes a new connection, with the certificate that it was enrolled with.
    stage.fleet.verifier().terminate().unwrap();
    stage.fleet.start_verifier().unwrap();
    let after = stage.fleet.wait_for(id, "was attested again", |node| {
        node["state"] == "trusted"
            && count(node, "attestation_count") > count(&before, "attestation_count")
    });
    assert_eq!(after.unwrap()["findings"], serde_json::json!([]));
    assert_eq!(agent.process().id(), process);
}

/// The clock is set while the agent serves, and set right again: its certificate would have ended,
/// then it would not be valid yet.
#[test]
fn a_clock_that_is_set_finds_a_certificate_that_is_good() {
    const DAY: i64 = 86_400;
    let clock = Clock::new().unwrap();
    let stage = Stage::new();
    let id = "timed";
    // The agent looks at the clock when it feeds the watchdog.
    let often = ("WATCHDOG_USEC".to_owned(), "1000000".to_owned());
    let mut agent = stage.agent(&AgentOptions {
        environment: [clock.environment(), vec![often]].concat(),
        ..AgentOptions::with_id(id)
    });
    stage.enrol(id);
    for days in [340, 0] {
        let before = stage.fleet.wait_for_state(id, "trusted").unwrap();
        let log = agent.process().log().len();
        clock.jump(days * DAY).unwrap();
        let renewed = |log: &str| {
            let announced = "the registrar shows the new TLS certificate";
            log.contains(announced).then_some(())
        };
        agent.process().wait_for_log(log, renewed).unwrap();
        let again = stage.fleet.wait_for(id, "was attested again", |node| {
            node["state"] == "trusted"
                && count(node, "attestation_count") > count(&before, "attestation_count") + 1
        });
        assert_eq!(again.unwrap()["findings"], serde_json::json!([]));
    }
}

/// A certificate as an agent makes it; it ends in `left`, half of its life.
fn ending(key: &KeyPair, id: &str, left: Duration) -> String {
    let names = ["localhost", "127.0.0.1", "::1"].map(Into::into);
    let mut params = CertificateParams::new(names).unwrap();
    // Without, it would be one of Keylime's agent, which is kept until it ends.
    params.is_ca = IsCa::ExplicitNoCa;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + left;
    params.not_before = params.not_after - left * 2;
    params.self_signed(key).unwrap().pem()
}

#[test]
fn a_killed_agent_is_unreachable_and_comes_back() {
    let stage = Stage::new();
    let id = "killed";
    let mut agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();
    agent.process().kill().unwrap();
    let node = stage
        .fleet
        .wait_for(id, "is not shown as trusted", |n| n["state"] != "trusted");
    assert_ne!(node.unwrap()["state"], "failed");
    agent.start_again().unwrap();
    stage.fleet.wait_for_state(id, "trusted").unwrap();
}

#[test]
fn a_killed_verifier_loses_nothing() {
    let mut stage = Stage::new();
    let id = "survivor";
    let contact = stable_port().unwrap();
    let agent = stage.agent(&AgentOptions {
        contact_port: Some(contact),
        ..AgentOptions::with_id(id)
    });
    // Honest: it is here to see what the verifier asks.
    let ear = LyingAgent::start(contact, &agent, &agent, &stage.fleet.ca_dir()).unwrap();
    stage.enrol(id);
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();

    // At once: what was shown is in the database.
    stage.fleet.verifier().kill().unwrap();
    ear.asked();
    stage.fleet.start_verifier().unwrap();
    let after = stage
        .fleet
        .wait_for(id, "was attested again", |node| {
            node["state"] == "trusted"
                && count(node, "attestation_count") > count(&before, "attestation_count") + 1
        })
        .unwrap();
    for kept in ["ima_entries", "address", "has_runtime_policy", "tpm_policy"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    let asked = ear.asked();
    let first = asked
        .iter()
        .find(|target| target.contains("/quotes/integrity"))
        .unwrap();
    let resumed = format!("ima_ml_entry={}", count(&before, "ima_entries"));
    assert!(
        first
            .split(['?', '&'])
            .any(|parameter| parameter == resumed),
        "{first}"
    );

    // The policy is still judged by: nothing that it does not list goes through.
    stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    stage.fleet.wait_for_state(id, "failed").unwrap();
    stage.fleet.verifier().kill().unwrap();
    stage.fleet.start_verifier().unwrap();
    let node = stage
        .fleet
        .wait_for(id, "is known", |node| node["state"] != "pending")
        .unwrap();
    assert_eq!(
        node["state"], "failed",
        "a verdict outlives the verifier: {node:#}"
    );
}

#[test]
fn a_reboot_is_no_failure() {
    let mut stage = Stage::new();
    let id = "rebooted";
    let mut agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    let before = stage.fleet.wait_for_state(id, "trusted").unwrap();
    agent.process().terminate().unwrap();
    stage.machine.boot().unwrap();
    agent.start_again().unwrap();
    let after = stage
        .fleet
        .wait_for(id, "was attested again", |node| {
            node["state"] == "failed"
                || node["state"] == "trusted"
                    && count(node, "attestation_count") > count(&before, "attestation_count") + 1
        })
        .unwrap();
    assert_eq!(after["state"], "trusted", "{after:#}");
}

/// SIGHUP, as `systemctl reload` sends it: levels of the log change, what else did is told, and what
/// cannot be read changes nothing.
#[test]
fn servers_reload_what_they_can_and_say_what_needs_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let programs = Programs::beside_this().unwrap();
    let mut fleet = Fleet::start(&programs, directory.path(), QUOTE_INTERVAL).unwrap();
    for (name, asked) in [("registrar", "registrar"), ("verifier", "policy")] {
        let file = directory.path().join(format!("{name}.toml"));
        let before = fs::read_to_string(&file).unwrap();
        let reload = |fleet: &mut Fleet, change: &str, told: &str| {
            fs::write(&file, format!("{before}{change}")).unwrap();
            let process = match name {
                "registrar" => fleet.registrar(),
                _ => fleet.verifier(),
            };
            let from = process.log().len();
            process.signal(Signal::HUP).unwrap();
            process
                .wait_for_log(from, |log| log.contains(told).then_some(()))
                .unwrap();
            let answer = fleet.trothctl(&["--json", asked, "list"]).unwrap();
            answer.success().unwrap();
            let process = match name {
                "registrar" => fleet.registrar(),
                _ => fleet.verifier(),
            };
            process.log()[from..].contains("DEBUG ")
        };
        assert!(reload(
            &mut fleet,
            "log = \"debug\"\n",
            "configuration reloaded"
        ));
        let unknown = "no_such_option = 1\n";
        assert!(reload(&mut fleet, unknown, "configuration not reloaded"));
        let half = "server_cert = \"server.crt\"\n";
        let told = "configuration not reloaded, all stays as it was: server_cert";
        assert!(reload(&mut fleet, half, told));
        let later = "database_pool_size = 5\n";
        let needed = "a restart is needed for database_pool_size";
        assert!(!reload(&mut fleet, later, needed));
    }
}
