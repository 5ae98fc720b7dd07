use std::process::Command;
use std::time::Duration;

use hyper::Method;
use rustix::process::Signal;
use serde_json::Value;
use troth_tests::process::output_of;
use troth_tests::tpm::Fault;

use crate::host::Host;
use crate::{Stage, reason};

const ID: &str = "ailing";

/// While the TPM ails the node is out of reach, never failed, with `words` among the reason; when
/// it is well again the node is trusted by itself, with the AK that it had.
fn out_of_reach(words: &str, ail: impl FnOnce(&mut Host), heal: impl FnOnce(&mut Host)) {
    let stage = Stage::with_verifier("request_timeout = 3.0");
    let mut host = Host::trusted(&stage, ID);
    let ak = registered_ak(&stage);
    ail(&mut host);
    let node = stage.operator.wait_for(ID, "is out of reach", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "unreachable"
    });
    assert!(reason(&node).contains(words), "{node:#}");
    heal(&mut host);
    stage.operator.wait_for(ID, "is trusted again", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "trusted"
    });
    stage.operator.wait_for_attestations(ID, 2);
    assert_eq!(registered_ak(&stage), ak);
}

fn registered_ak(stage: &Stage) -> Value {
    stage.fleet.wait_registered(ID).unwrap()["ak"].clone()
}

/// A command of tpm2-tools, between those of the agent.
fn tpm2(host: &Host, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("tpm2");
    command
        .args(arguments)
        .args(["-T", &host.machine.tpm().tcti()]);
    output_of(&mut command).map(drop)
}

/// The TPM is unplugged, or its resource manager ends.
///
/// Check: `agent/src/http/mod.rs`: `StatusCode::INTERNAL_SERVER_ERROR`
#[test]
fn gone() {
    out_of_reach(
        "Unable to retrieve quote",
        |host| host.machine.tpm().misbehave(Fault::Gone),
        |host| host.machine.tpm().misbehave(Fault::None),
    );
}

/// The TPM takes commands and never answers.
///
/// Check: `daemon/src/client.rs`: `timeout_at(sent_by`
#[test]
fn hanging() {
    out_of_reach(
        "no answer within",
        |host| host.machine.tpm_mut().signal(Signal::STOP).unwrap(),
        |host| host.machine.tpm_mut().signal(Signal::CONT).unwrap(),
    );
}

/// Every command succeeds, with bytes that mean nothing.
///
/// Check: `agent/src/http/mod.rs`: `StatusCode::INTERNAL_SERVER_ERROR`
#[test]
fn answering_garbage() {
    out_of_reach(
        "Unable to retrieve quote",
        |host| host.machine.tpm().misbehave(Fault::Garbage),
        |host| host.machine.tpm().misbehave(Fault::None),
    );
}

/// Somebody guessed passwords: the TPM refuses every key that is protected against that.
///
/// Check: `agent/src/tpm/mod.rs`: `the TPM is locked out`
#[test]
fn locked_out() {
    let directory = tempfile::tempdir().unwrap();
    let primary = directory.path().join("primary.ctx");
    let primary = primary.to_str().unwrap();
    out_of_reach(
        "locked out",
        |host| {
            let parameters = "dictionarylockout --setup-parameters --max-tries=1 \
                              --recovery-time=1000 --lockout-recovery-time=1000";
            tpm2(host, &parameters.split(' ').collect::<Vec<_>>()).unwrap();
            tpm2(host, &["createprimary", "-p", "good", "-c", primary]).unwrap();
            tpm2(host, &["create", "-C", primary, "-P", "guessed"]).unwrap_err();
        },
        |host| tpm2(host, &["dictionarylockout", "--clear-lockout"]).unwrap(),
    );
}

/// Other programs without a resource manager have filled the TPM's memory: the agent goes on with
/// the AK that it has loaded, and does not replace it when it must start meanwhile.
///
/// Check: `agent/src/identity/ak.rs`: `Problem::Refused`
#[test]
fn handles_exhausted() {
    let stage = Stage::new();
    let mut host = Host::trusted(&stage, ID);
    let ak = registered_ak(&stage);
    let saved = stage.path().join("primary.ctx");
    let load = ["createprimary", "-c", saved.to_str().unwrap()];
    let loaded = (0..10).take_while(|_| tpm2(&host, &load).is_ok()).count();
    assert!((1..10).contains(&loaded), "{loaded} objects fitted in");
    stage.operator.wait_for_attestations(ID, 3);
    host.agent.process().kill().unwrap();
    let start = host.agent.start_again();
    stage
        .operator
        .wait_for(ID, "is not shown as trusted", |node| {
            assert_ne!(node["troth"]["state"], "failed", "{node:#}");
            node["troth"]["state"] != "trusted"
        });
    let log = host.agent.process().log();
    assert!(log.contains("TPM"), "{start:?} {log}");
    tpm2(&host, &["flushcontext", "--transient-object"]).unwrap();
    if start.is_err() {
        host.agent.start_again().unwrap();
    }
    stage.operator.wait_for_state(ID, "trusted");
    assert_eq!(registered_ak(&stage), ak);
}

/// Five seconds for a quote, as some chips need.
///
/// Check: `agent/src/tpm/actor.rs`: `const QUOTE_DEADLINE`
#[test]
fn slow() {
    let stage = Stage::new();
    let host = Host::trusted(&stage, ID);
    host.machine
        .tpm()
        .misbehave(Fault::Slow(Duration::from_secs(5)));
    let count = |node: &Value| node["attestation_count"].as_u64().unwrap();
    let goal = count(&stage.operator.status(ID)) + 2;
    stage.operator.wait_for(ID, "was attested slowly", |node| {
        // A verdict that has become old is stale; it is never a bad one.
        let state = node["troth"]["state"].as_str().unwrap();
        assert!(["trusted", "stale"].contains(&state), "{node:#}");
        count(node) >= goal
    });
}

/// The machine, and with it the TPM, restarts under an agent that goes on.
///
/// Check: `agent/src/tpm/actor.rs`: `error.needs_reopening()`
#[test]
fn restarted_under_the_agent() {
    let stage = Stage::new();
    let mut host = Host::booted(&stage, ID);
    let ak = registered_ak(&stage);
    let put = |action: &str| {
        let path = format!("/v2.6/agents/{ID}/{action}");
        let reply = stage
            .operator
            .verifier
            .send(Method::PUT, &path, None)
            .unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    // The boot is replayed entry by entry here; nobody is to look meanwhile.
    put("stop");
    host.machine.boot().unwrap();
    put("reactivate");
    stage.operator.wait_for(ID, "is trusted again", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "trusted"
    });
    assert_eq!(registered_ak(&stage), ak);
}

/// A TPM that lost what it held, PCRs included, while the host says that it runs on.
///
/// Check: `core/src/appraise/files.rs`: `nothing_measured(entries)`
#[test]
fn reset_without_a_boot() {
    let stage = Stage::new();
    let mut host = Host::trusted(&stage, ID);
    host.machine.tpm_mut().power_cycle().unwrap();
    let node = stage.operator.wait_for_state(ID, "failed");
    assert!(reason(&node).contains("measured nothing"), "{node:#}");
}

/// Another TPM under the agent: what it has signed for the old one is worth nothing here.
///
/// Check: `agent/src/tpm/mod.rs`: `WrongParent`
#[test]
fn replaced() {
    let stage = Stage::new();
    let mut host = Host::trusted(&stage, ID);
    let ak = registered_ak(&stage);
    let other = Host::start(&stage, "other");
    host.agent.process().terminate().unwrap();
    host.agent
        .reconfigure(&format!("tcti = {:?}", other.machine.tpm().tcti()))
        .unwrap();
    drop(other.agent);
    let refused = host.agent.start_again().unwrap_err().to_string();
    assert!(refused.contains("TPM"), "{refused}");
    stage
        .operator
        .wait_for(ID, "is not shown as trusted", |node| {
            node["troth"]["state"] != "trusted"
        });
    assert_eq!(
        registered_ak(&stage),
        ak,
        "the identity did not change hands"
    );
}
