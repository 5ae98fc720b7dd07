use std::time::Duration;

use serde_json::Value;
use troth_daemon::client::{Answer, Client, ClientError};
use troth_daemon::tls::{Identity, ServerTrust, certificates_from_pem, client_config};
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Fleet};
use troth_tests::process::stable_port;
use troth_tests::proxy::{Lie, LyingAgent};

use crate::{Stage, only_finding};

#[test]
fn an_unlisted_program_is_named_with_its_digest() {
    let stage = Stage::new();
    let id = "unlisted";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    let digest = stage
        .machine
        .run_program("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "ima.validation.ima-ng.not_in_allowlist");
    assert_eq!(
        finding["place"]["ima_entry"]["path"],
        "/usr/local/bin/miner"
    );
    assert!(
        finding["got"].as_str().unwrap().contains(&digest),
        "{finding:#}"
    );
    assert_eq!(finding["expected"], serde_json::json!([]));

    let shown = stage.fleet.trothctl(&["agent", "status", id]).unwrap();
    assert_eq!(shown.status.code(), Some(3), "{shown:?}");
    assert!(
        shown.stdout.contains("/usr/local/bin/miner"),
        "{}",
        shown.stdout
    );
}

#[test]
fn a_changed_program_is_shown_with_what_the_policy_has() {
    let stage = Stage::new();
    let id = "changed";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();

    let path = "/usr/lib/systemd/systemd";
    let allowed = stage.machine.runtime_policy().unwrap()["digests"][path].clone();
    let digest = stage.machine.run_program(path, b"not systemd\n").unwrap();
    let node = stage.fleet.wait_for_state(id, "failed").unwrap();
    let finding = only_finding(&node);
    assert_eq!(finding["id"], "ima.validation.ima-ng.runtime_policy_hash");
    assert_eq!(finding["place"]["ima_entry"]["path"], path);
    assert!(
        finding["got"].as_str().unwrap().contains(&digest),
        "{finding:#}"
    );
    assert_eq!(finding["expected"], allowed);
}

/// An enrolled agent behind a man in the middle who has its TLS key.
struct Intercepted {
    man: LyingAgent,
    _agent: Agent,
    stage: Stage,
}

const INTERCEPTED: &str = "intercepted";

impl Intercepted {
    fn trusted() -> Self {
        let this = Self::enrolled(Lie::None);
        this.stage
            .fleet
            .wait_for_state(INTERCEPTED, "trusted")
            .unwrap();
        this
    }

    /// Honest until it is enrolled, because enrolment checks a quote of its own.
    fn enrolled(lie: Lie) -> Self {
        let stage = Stage::new();
        let contact = stable_port().unwrap();
        let options = AgentOptions {
            contact_port: Some(contact),
            ..AgentOptions::with_id(INTERCEPTED)
        };
        let agent = stage.agent(&options);
        let ca = stage.fleet.ca_dir();
        let man = LyingAgent::start(contact, &agent, &agent, &ca).unwrap();
        man.tell(lie);
        stage.enrol(INTERCEPTED);
        Self {
            man,
            _agent: agent,
            stage,
        }
    }

    fn failed(&self) -> Value {
        self.stage
            .fleet
            .wait_for_state(INTERCEPTED, "failed")
            .unwrap()
    }
}

/// The quote itself is not believed, for the reason given.
fn assert_unbelievable(node: &Value, reason: &str) {
    let finding = only_finding(node);
    assert_eq!(finding["place"], "quote", "{finding:#}");
    assert!(
        finding["explanation"].as_str().unwrap().contains(reason),
        "{finding:#}"
    );
    assert_eq!(finding["recoverable"], false);
}

/// The quote is believed, and the list does not lead to its PCR 10.
fn assert_unexplained(node: &Value) {
    let finding = only_finding(node);
    assert_eq!(finding["place"]["pcr"], 10, "{finding:#}");
    assert_ne!(finding["expected"][0], finding["got"]);
    assert!(!finding["action"].as_str().unwrap().is_empty());
}

#[test]
fn another_nonce_is_a_replay() {
    let node = Intercepted::trusted();
    node.man.tell(Lie::Nonce);
    assert_unbelievable(&node.failed(), "nonce");
}

#[test]
fn swapped_pcrs_are_not_what_was_quoted() {
    let node = Intercepted::trusted();
    node.man.tell(Lie::SwappedPcrs);
    assert_unbelievable(&node.failed(), "pcrDigest");
}

#[test]
fn a_truncated_list_does_not_explain_pcr_10() {
    let node = Intercepted::enrolled(Lie::TruncatedList);
    assert_unexplained(&node.failed());
}

#[test]
fn a_reordered_list_does_not_explain_pcr_10() {
    let node = Intercepted::enrolled(Lie::ReorderedList);
    assert_unexplained(&node.failed());
}

#[test]
fn a_hidden_program_does_not_explain_pcr_10() {
    let stage = Stage::new();
    let id = "hidden";
    let _agent = stage.agent(&AgentOptions::with_id(id));
    stage.enrol(id);
    stage.fleet.wait_for_state(id, "trusted").unwrap();
    // The kernel measured it; who has root kept it out of the list that the agent reads.
    stage
        .machine
        .run_program_unseen("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    assert_unexplained(&stage.fleet.wait_for_state(id, "failed").unwrap());
}

#[test]
fn another_tpms_quotes_are_not_signed_by_the_ak() {
    let stage = Stage::new();
    let contact = stable_port().unwrap();
    let options = AgentOptions {
        contact_port: Some(contact),
        ..AgentOptions::with_id("victim")
    };
    let victim = stage.agent(&options);
    let other_machine = Machine::booted(&stage.path().join("other-machine")).unwrap();
    let other = stage.unregistered_agent(&other_machine, &AgentOptions::with_id("other"));

    let ca = stage.fleet.ca_dir();
    {
        let _honest = LyingAgent::start(contact, &victim, &victim, &ca).unwrap();
        stage.enrol("victim");
        stage.fleet.wait_for_state("victim", "trusted").unwrap();
    }
    let _man = LyingAgent::start(contact, &victim, &other, &ca).unwrap();
    let node = stage.fleet.wait_for_state("victim", "failed").unwrap();
    assert_unbelievable(&node, "AK signature");
}

#[test]
fn a_foreign_ca_opens_no_door() {
    let stage = Stage::new();
    let agent = stage.agent(&AgentOptions::with_id("guarded"));
    let foreign = Fleet::start(
        &stage.programs,
        &stage.path().join("foreign"),
        troth_tests::fleet::QUOTE_INTERVAL,
    )
    .unwrap();

    // The operator's tool with a certificate of another CA: it does not even trust the server.
    for command in [["agent", "list"], ["registrar", "list"]] {
        let answer = stage
            .fleet
            .trothctl_as(&foreign.ca_dir(), &command)
            .unwrap();
        assert!(!answer.status.success(), "{answer:?}");
        assert!(
            answer.stderr.to_lowercase().contains("certificate"),
            "{}",
            answer.stderr
        );
    }

    // One that trusts our servers and shows a foreign certificate, or none.
    let ours = std::fs::read(stage.fleet.ca_dir().join("cacert.crt")).unwrap();
    let theirs = Identity::load(
        &foreign.ca_dir().join("client-cert.crt"),
        &foreign.ca_dir().join("client-private.pem"),
    )
    .unwrap();
    let agent_certificate = certificates_from_pem(&std::fs::read(agent.tls_files().0).unwrap())
        .unwrap()
        .remove(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let operator = Identity::load(
        &stage.fleet.ca_dir().join("client-cert.crt"),
        &stage.fleet.ca_dir().join("client-private.pem"),
    )
    .unwrap();
    for identity in [Some(&operator), Some(&theirs), None] {
        let roots = ServerTrust::Roots(certificates_from_pem(&ours).unwrap());
        let verifier = client(stage.fleet.verifier_port(), roots, identity);
        let pinned = ServerTrust::Pinned(agent_certificate.clone());
        let agent = client(agent.address().port(), pinned, identity);
        let (listed, quote) = runtime.block_on(async {
            let path = "/v2.6/quotes/identity?nonce=abcdefghij0123456789";
            (verifier.get("/v2.6/agents/").await, agent.get(path).await)
        });
        // A refused certificate ends the connection in or right after the handshake.
        let refused = |answer: &Result<Answer, ClientError>| {
            matches!(
                answer,
                Err(ClientError::Tls { .. } | ClientError::Http { .. })
            )
        };
        let status = |answer: &Result<Answer, ClientError>| answer.as_ref().unwrap().status;
        match identity {
            Some(known) if std::ptr::eq(known, &operator) => {
                assert_eq!((status(&listed), status(&quote)), (200, 200));
            }
            Some(_) => assert!(refused(&listed) && refused(&quote), "{listed:?} {quote:?}"),
            None => {
                assert_eq!(status(&listed), 403, "the verifier asks for a certificate");
                assert!(refused(&quote), "{quote:?}");
            }
        }
    }
}

fn client(port: u16, trust: ServerTrust, identity: Option<&Identity>) -> Client {
    let tls = client_config(trust, identity).unwrap();
    Client::new("127.0.0.1", port, Some(tls), Duration::from_secs(5))
}
