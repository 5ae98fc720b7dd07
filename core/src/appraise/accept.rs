use serde::{Deserialize, Serialize};

use super::{Finding, Place};
use crate::tpm::{AttestationKey, HashAlgorithm};
use crate::wire::QuoteResponse;

/// `accept_tpm_*` of the enrolment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AcceptedAlgorithms {
    /// e.g. sha256.
    pub hash: Vec<String>,
    /// e.g. rsa2048; `rsa` and `ecc` are aliases of rsa2048 and ecc256.
    pub encryption: Vec<String>,
    /// e.g. rsassa.
    pub signing: Vec<String>,
}

impl AcceptedAlgorithms {
    /// What `ak` itself is and signs with, for evidence that comes without such lists.
    pub fn of(ak: &AttestationKey) -> Self {
        Self {
            hash: vec![ak.hash().name().to_owned()],
            encryption: vec![ak.algorithm().to_owned()],
            signing: vec![ak.scheme().name().to_owned()],
        }
    }

    /// The algorithms an answer names, against the lists and the AK. Returns the PCR bank.
    pub(super) fn check(
        &self,
        ak: &AttestationKey,
        evidence: &QuoteResponse,
    ) -> Result<HashAlgorithm, Box<Finding>> {
        let hash = HashAlgorithm::from_name(&evidence.hash_alg)
            .filter(|_| listed(&self.hash, &evidence.hash_alg))
            .ok_or_else(|| refused("hash", &evidence.hash_alg, &self.hash))?;
        // The names are only the agent's word; the AK's own algorithm and scheme are what signs.
        for name in [evidence.enc_alg.as_str(), ak.algorithm()] {
            if !listed(&self.encryption, name) {
                return Err(refused("enc", name, &self.encryption));
            }
        }
        for name in [evidence.sign_alg.as_str(), ak.scheme().name()] {
            if !listed(&self.signing, name) {
                return Err(refused("sign", name, &self.signing));
            }
        }
        Ok(hash)
    }
}

/// Is `name` listed, by itself or by its alias? Case matters.
fn listed(accepted: &[String], name: &str) -> bool {
    fn full(name: &str) -> &str {
        match name {
            "rsa" => "rsa2048",
            "ecc" => "ecc256",
            name => name,
        }
    }
    !name.is_empty() && accepted.iter().any(|accepted| full(accepted) == full(name))
}

fn refused(kind: &str, got: &str, accepted: &[String]) -> Box<Finding> {
    let (what, option) = match kind {
        "hash" => ("hash algorithm", "accept_tpm_hash_algs"),
        "enc" => ("AK algorithm", "accept_tpm_encryption_algs"),
        _ => ("signing scheme", "accept_tpm_signing_algs"),
    };
    let got: String = got.chars().take(64).collect();
    Box::new(Finding {
        id: format!("qoute_validation.invalid_{kind}_alg"),
        recoverable: false,
        place: Place::Quote,
        expected: accepted.to_vec(),
        explanation: format!("The node's {what} {got:?} is not one this node may use."),
        action: format!(
            "Configure the agent to use an accepted algorithm, or enrol the node again with it in \
             {option}."
        ),
        got: Some(got),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_two_and_case_matters() {
        for (accepted, name, expected) in [
            ("rsa2048", "rsa", true),
            ("rsa", "rsa2048", true),
            ("ecc", "ecc256", true),
            ("rsa", "rsa3072", false),
            ("ecc", "ecc384", false),
            ("sha256", "SHA256", false),
            ("sha256", "", false),
        ] {
            assert_eq!(
                listed(&[accepted.to_owned()], name),
                expected,
                "{name} by {accepted}"
            );
        }
    }
}
