use super::{Finding, Place, Policies};
use crate::finding::{Findings, digest_list};
use crate::ima::IMA_PCR;
use crate::tpm::{BIND_PCR, Digest, PcrMask, VerifiedQuote};

/// No key in the answer, and none known.
pub(super) fn no_pubkey() -> Finding {
    Finding {
        id: "qoute_validation.no_pubkey".to_owned(),
        recoverable: false,
        place: Place::Quote,
        expected: Vec::new(),
        got: None,
        explanation: "The agent sent no public key, and none of it is known yet.".to_owned(),
        action: "Ask for a full quote; if the agent still sends no key, look at its journal."
            .to_owned(),
    }
}

/// PCR 16 must be one extend of H(key text) after reset: then the key that secrets are encrypted
/// to is held by the machine that quoted.
pub(super) fn check_binding(key: &str, quote: &VerifiedQuote) -> Option<Finding> {
    let bank = quote.pcrs().bank();
    let expected = Digest::zero(bank).extend(bank, bank.digest(&[key.as_bytes()]).as_bytes());
    let got = quote.pcrs().get(BIND_PCR);
    if got == Some(&expected) {
        return None;
    }
    Some(Finding {
        id: format!("pcr_validation.invalid_pcr_{BIND_PCR}"),
        recoverable: true,
        place: Place::Pcr(BIND_PCR),
        expected: vec![expected.to_string()],
        got: got.map(Digest::to_string),
        explanation: "PCR 16 does not bind the agent's public key: the key was swapped, or \
                      something else extended PCR 16."
            .to_owned(),
        action: "Restart the agent; if the finding stays, treat the connection to it as \
                 intercepted."
            .to_owned(),
    })
}

/// Quoted values against the TPM policy, and PCRs that the policies need but the quote lacks.
pub(super) fn check_values(
    policies: &Policies<'_>,
    quote: &VerifiedQuote,
    findings: &mut Findings,
) {
    let mut missing = PcrMask::default();
    if policies.runtime.is_some_and(|policy| policy.requires_ima()) {
        missing = missing.with(IMA_PCR);
    }
    for (pcr, allowed) in policies.tpm.allowed() {
        let Some(value) = quote.pcrs().get(pcr) else {
            missing = missing.with(pcr);
            continue;
        };
        if !allowed.contains(value) {
            findings.push(|| Finding {
                id: format!("pcr_validation.invalid_pcr_{pcr}"),
                recoverable: true,
                place: Place::Pcr(pcr),
                expected: digest_list(allowed),
                got: Some(value.to_string()),
                explanation: format!("PCR {pcr} has a value that the TPM policy does not allow."),
                action: format!(
                    "If what PCR {pcr} measures was changed on purpose (firmware, configuration, \
                     kernel), add the value to the TPM policy; else treat the node as compromised."
                ),
            });
        }
    }
    let missing = missing.difference(quote.pcrs().mask());
    if !missing.is_empty() {
        findings.push(|| Finding {
            id: "pcr_validation.missing_pcrs".to_owned(),
            recoverable: true,
            place: Place::Quote,
            expected: vec![format!("PCR {}", missing.list())],
            got: Some(format!("PCR {}", quote.pcrs().mask().list())),
            explanation: format!(
                "The policies judge PCR {}, but the quote does not cover it.",
                missing.list()
            ),
            action: "Enrol the node again with a mask that has these PCRs.".to_owned(),
        });
    }
}
