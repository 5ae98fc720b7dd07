use serde_json::Value;
use troth_tests::fleet::Fleet;
use troth_tests::proxy::{Lie, LyingAgent};

use crate::host::Host;
use crate::{INTERVAL, Stage, reason};

const ID: &str = "intercepted";

/// An enrolled agent behind a man in the middle who has its TLS key: only the TPM is against him.
struct Intercepted {
    man: LyingAgent,
    host: Host,
    stage: Stage,
}

impl Intercepted {
    fn trusted() -> Self {
        let this = Self::enrolled(Lie::None);
        this.stage.operator.wait_for_state(ID, "trusted");
        this
    }

    /// Enrolment checks a quote of its own, which no lie about a list changes.
    fn enrolled(lie: Lie) -> Self {
        let stage = Stage::new();
        let host = Host::start(&stage, ID);
        let ca = stage.fleet.ca_dir();
        let man = LyingAgent::start(host.contact, &host.agent, &host.agent, &ca).unwrap();
        man.tell(lie);
        host.enrol(&stage);
        Self { man, host, stage }
    }

    /// The one finding of the node, which is failed.
    fn finding(&self) -> Value {
        let mut node = self.stage.operator.wait_for_state(ID, "failed");
        let findings = node["troth"]["findings"].as_array_mut().unwrap();
        assert_eq!(findings.len(), 1, "{findings:#?}");
        findings[0].take()
    }

    /// The quote itself is not believed, for the reason given.
    fn assert_unbelievable(&self, reason: &str) {
        let finding = self.finding();
        assert_eq!(finding["place"], "quote", "{finding:#}");
        let explanation = finding["explanation"].as_str().unwrap();
        assert!(explanation.contains(reason), "{finding:#}");
        assert_eq!(finding["recoverable"], false);
    }

    /// The quote is believed, and the list does not lead to its PCR 10.
    fn assert_unexplained(&self) {
        let finding = self.finding();
        assert_eq!(finding["place"]["pcr"], 10, "{finding:#}");
        assert_ne!(finding["expected"][0], finding["got"]);
        assert!(!finding["action"].as_str().unwrap().is_empty());
    }
}

/// The TPM is asked with another nonce than the verifier's.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Nonce`
#[test]
fn another_nonce_on_the_way() {
    let node = Intercepted::trusted();
    node.man.tell(Lie::Nonce);
    node.assert_unbelievable("nonce");
}

/// Two PCR values change places in the answer.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::PcrDigest`
#[test]
fn pcrs_swapped_on_the_way() {
    let node = Intercepted::trusted();
    node.man.tell(Lie::SwappedPcrs);
    node.assert_unbelievable("pcrDigest");
}

/// The captured list without its last entry.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_truncated_on_the_way() {
    Intercepted::enrolled(Lie::TruncatedList).assert_unexplained();
}

/// The captured list with its first entries swapped.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_list_reordered_on_the_way() {
    Intercepted::enrolled(Lie::ReorderedList).assert_unexplained();
}

/// The kernel measured a program; who has root kept it out of the list that the agent reads.
///
/// Check: `core/src/ima/replay.rs`: `quoted != Some(&running.value)`
#[test]
fn a_program_hidden_from_the_agent() {
    let node = Intercepted::trusted();
    let machine = &node.host.machine;
    machine
        .run_program_unseen("/usr/local/bin/miner", b"mine\n")
        .unwrap();
    node.assert_unexplained();
}

/// Quotes of a second, good machine in place of the victim's.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Signature`
#[test]
fn quotes_of_another_machine() {
    let Intercepted { man, host, stage } = Intercepted::trusted();
    let other = Host::start(&stage, "other");
    drop(man);
    let ca = stage.fleet.ca_dir();
    let man = LyingAgent::start(host.contact, &host.agent, &other.agent, &ca).unwrap();
    Intercepted { man, host, stage }.assert_unbelievable("AK signature");
}

/// A man in the middle with the valid, registered certificate of another node.
///
/// Check: `daemon/src/tls.rs`: `let renewed = ||`
#[test]
fn the_certificate_of_another_node() {
    let Intercepted { man, host, stage } = Intercepted::trusted();
    let other = Host::start(&stage, "other");
    drop(man);
    let ca = stage.fleet.ca_dir();
    let man = LyingAgent::start(host.contact, &other.agent, &host.agent, &ca).unwrap();
    let node = stage.operator.wait_for(ID, "is out of reach", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "unreachable" && reason(node).contains("TLS")
    });
    assert!(man.asked().is_empty(), "nothing is asked of it: {node:#}");
    // It is nobody's fault that is on record: the node itself is as good as before.
    drop(man);
    let _honest = LyingAgent::start(host.contact, &host.agent, &host.agent, &ca).unwrap();
    stage.operator.wait_for_state(ID, "trusted");
}

/// Enrolment over a man in the middle who has another TPM answer.
///
/// Check: `ctl/src/agent/identity.rs`: `check_quote(`
#[test]
fn enrolment_of_another_machine() {
    let stage = Stage::new();
    let host = Host::start(&stage, ID);
    let other = Host::start(&stage, "other");
    let ca = stage.fleet.ca_dir();
    let _man = LyingAgent::start(host.contact, &host.agent, &other.agent, &ca).unwrap();
    refused_enrolment(&stage, "AK signature");
}

/// Enrolment over a man in the middle who puts in his own key, to read the secrets to come.
///
/// Check: `core/src/appraise/mod.rs`: `pcrs::check_binding(key, &quote)`
#[test]
fn enrolment_with_a_foreign_transport_key() {
    let stage = Stage::new();
    let host = Host::start(&stage, ID);
    let ca = stage.fleet.ca_dir();
    let man = LyingAgent::start(host.contact, &host.agent, &host.agent, &ca).unwrap();
    man.tell(Lie::TransportKey);
    refused_enrolment(&stage, "PCR 16");
}

fn refused_enrolment(stage: &Stage, words: &str) {
    let answer = stage.fleet.trothctl(&["agent", "add", ID]).unwrap();
    assert!(!answer.status.success(), "{answer:?}");
    assert!(answer.stderr.contains(words), "{}", answer.stderr);
    let missing = stage.fleet.trothctl(&["agent", "status", ID]).unwrap();
    assert_eq!(
        missing.status.code(),
        Some(5),
        "nothing was enrolled: {missing:?}"
    );
}

/// A verifier and a registrar of another CA where the operator expects his own.
///
/// Check: `daemon/src/tls/named.rs`: `other => other,`
#[test]
fn servers_of_another_ca() {
    let stage = Stage::new();
    let place = stage.path().join("foreign");
    let foreign = Fleet::start(&stage.programs, &place, INTERVAL).unwrap();
    for command in [["agent", "list"], ["registrar", "list"]] {
        let answer = stage
            .fleet
            .trothctl_as(&foreign.ca_dir(), &command)
            .unwrap();
        assert!(!answer.status.success(), "{answer:?}");
        let told = answer.stderr.to_lowercase();
        assert!(told.contains("certificate"), "{told}");
    }
}
