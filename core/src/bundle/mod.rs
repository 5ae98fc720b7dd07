//! Evidence bundles: one attestation in one file, to be judged again without its node.
//!
//! A bundle is a line of JSON, the head, and behind it sections of bytes, each followed by a
//! newline: the answer exactly as it was received, then what came of it and the texts of policies,
//! if they are there. The head says the size of each. So a 9 MB list is not encoded once more, and
//! `head -1` and `jq` read the rest. Files are this, gzipped or not.
//!
//! A bundle is made by whoever has an answer: a verifier, which adds what it judged by and what
//! it found, or the node itself, which has neither. Nothing in it is believed because it is in
//! there: a verdict is made anew, by [`crate::appraise`], and what is left to the bundle's word
//! is for the caller to tell.

/// Bundles of one node, one after the other.
mod chain;
/// What was found.
mod outcome;
/// Head and sections: reading and writing.
mod parts;

pub use chain::{Chain, Link};
pub use outcome::{Outcome, Word};
pub use parts::{BundleError, policy_digest};

use serde::{Deserialize, Serialize};

use crate::appraise::{
    AcceptedAlgorithms, Appraisal, Challenge, ImaRules, NodeState, Policies, Tomtou,
    appraise_answer,
};
use crate::identity::{AgentId, check_ak};
use crate::ima::{Keyring, KeyringError};
use crate::policy::BootEngine;
use crate::tpm::{AttestationKey, PcrMask, Public};

/// One attestation.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle<'a> {
    /// What was asked of whom, and what judges it.
    pub head: Head,
    /// The body of the answer, as it was received.
    pub answer: &'a [u8],
    /// [`Outcome`] as canonical JSON; `None`: nobody judged it.
    pub outcome: Option<&'a [u8]>,
    /// The runtime policy's text, if it came along.
    pub runtime_policy: Option<&'a [u8]>,
    /// The boot policy's text, if it came along.
    pub boot_policy: Option<&'a [u8]>,
}

/// What was asked of whom, and what judges it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Program and version that made the bundle.
    pub maker: String,
    /// The node. The quote does not say it: an AK does.
    pub node: AgentId,
    /// When the answer was there, Unix milliseconds by the maker's clock.
    pub time_ms: u64,
    /// Which of the node's bundles this is, from 1, where they are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The nonce that was asked with.
    pub nonce: String,
    /// The PCRs that were asked for; 16 comes on top.
    pub mask: PcrMask,
    /// The first IMA entry that was asked for.
    pub ima_entry: u64,
    /// TPM2B_PUBLIC of the AK.
    #[serde(with = "base64_bytes")]
    pub ak: Vec<u8>,
    /// What was known of the node before.
    #[serde(default)]
    pub state: NodeState,
    /// What a verifier judged by; `None`: none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criteria: Option<Criteria>,
}

/// All that a verifier judges by: with it, and the texts of the policies, a verdict can be had
/// again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Criteria {
    /// Accepted algorithms.
    pub accept: AcceptedAlgorithms,
    /// The TPM policy's JSON text.
    pub tpm_policy: String,
    /// The runtime policy, if the node has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_policy: Option<PolicyReference>,
    /// The boot policy, if the node has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_policy: Option<PolicyReference>,
    /// What a boot policy's text means to this verifier.
    #[serde(default)]
    pub boot_engine: BootEngine,
    /// What violations of the IMA list are.
    #[serde(default)]
    pub tomtou: Tomtou,
    /// JSON of the keys that were sent with the node for its files' signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ima_keys: Option<String>,
}

impl Criteria {
    /// Keys that were sent with the node for its files' signatures.
    ///
    /// # Errors
    /// What is no keyring.
    pub fn keyring(&self) -> Result<Keyring, KeyringError> {
        Keyring::from_json(self.ima_keys.as_deref().unwrap_or_default())
    }
}

/// A policy that the verifier had under a name.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyReference {
    /// Its name.
    pub name: String,
    /// Hex SHA-256 of its text.
    pub sha256: String,
}

impl Bundle<'_> {
    /// The AK, by the bundle's word.
    ///
    /// # Errors
    /// A key that is none, or that no verdict may rest on.
    pub fn attestation_key(&self) -> Result<AttestationKey, BundleError> {
        let public = Public::from_tpm2b(&self.head.ak).map_err(BundleError::AkStructure)?;
        check_ak(&public).map_err(BundleError::AkUnsafe)?;
        AttestationKey::new(&public).map_err(BundleError::AkUnusable)
    }

    /// What was found, by the bundle's word.
    pub fn recorded(&self) -> Result<Option<Outcome>, BundleError> {
        let parsed = self.outcome.map(serde_json::from_slice).transpose();
        parsed.map_err(BundleError::Outcome)
    }

    /// The verdict over the answer: what a verifier comes to that judges by `policies`, asked with
    /// `nonce` and knows `ak`.
    ///
    /// It says nothing of today: evidence proves what was so when its quote was made.
    pub fn appraise(&self, ak: &AttestationKey, nonce: &str, policies: &Policies<'_>) -> Appraisal {
        // Whatever else a verdict depends on has to be in `Criteria`: it could not be had again.
        let Policies {
            tpm: _,
            runtime: _,
            boot: _,
            accept: _,
            ima: ImaRules { tomtou: _, keys: _ },
        } = policies;
        let challenge = Challenge {
            nonce,
            mask: self.head.mask,
            ima_entry: self.head.ima_entry,
        };
        appraise_answer(ak, &challenge, self.answer, policies, &self.head.state).0
    }
}

/// Bytes as base64 text.
mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        STANDARD
            .decode(text)
            .map_err(|_| D::Error::custom("not base64"))
    }
}
