//! (Evidence, Policies, NodeState) -> (Verdict, NodeState'). Stub: the implementer completes it.

use serde::{Deserialize, Serialize};

use crate::{
    ima::ImaPosition,
    policy::{BootPolicy, RuntimePolicy, TpmPolicy},
    tpm::{AttestationKey, ClockInfo, PcrMask},
    wire::QuoteResponse,
};

/// What the verifier asked this time.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    /// ASCII nonce.
    pub nonce: &'a str,
    /// The TPM policy's mask; PCR 16 is added by the agent and by the check.
    pub mask: PcrMask,
    /// First IMA entry asked for.
    pub ima_entry: u64,
}

/// Compiled policies of one node.
#[derive(Clone, Copy, Debug)]
pub struct Policies<'a> {
    /// Allowed PCR values.
    pub tpm: &'a TpmPolicy,
    /// Allowed files; `None`: the empty policy, under which any measured file fails.
    pub runtime: Option<&'a RuntimePolicy>,
    /// Boot log policy.
    pub boot: &'a BootPolicy,
    /// Accepted algorithms.
    pub accept: &'a AcceptedAlgorithms,
}

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

/// What the verifier remembers of one node between two quotes; a few hundred bytes, kept over restarts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NodeState {
    /// Where the IMA check resumes.
    pub ima: ImaPosition,
    /// Boot time of the last answer.
    pub boottime: u64,
    /// Clock of the last good quote.
    pub clock: Option<ClockInfo>,
    /// NK of the last answer that carried one.
    pub pubkey: Option<String>,
}

/// One appraised answer.
#[derive(Debug)]
pub struct Appraisal {
    /// The verdict.
    pub verdict: Verdict,
    /// State to keep for the next quote.
    pub state: NodeState,
}

/// The verdict over one answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Every check passed. Made by [`appraise`] alone.
    Trusted(Trusted),
    /// At least one finding.
    Failed(Vec<Finding>),
    /// The host rebooted since the last answer: ask again at once from IMA entry 0; neither pass nor fail.
    Rebooted,
}

/// Proof that [`appraise`] ran every check. Cannot be built elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Trusted {
    entries: u64,
    clock: ClockInfo,
}
impl Trusted {
    /// IMA entries covered since boot.
    pub fn ima_entries(&self) -> u64 { self.entries }
    /// TPM clock of the quote.
    pub fn clock(&self) -> ClockInfo { self.clock }
}

/// One reason why a node is not trusted: what, where, expected, got, and what to do.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// Stable id; Keylime's event id where it has one (`ima.validation.ima-ng.not_in_allowlist`).
    pub id: String,
    /// Keylime's notion: an irrecoverable finding stopped the check early.
    pub recoverable: bool,
    /// Where: a file, a PCR, a log entry.
    pub place: Place,
    /// What policy or log demanded; several allowed values are several elements.
    pub expected: Vec<String>,
    /// What was found.
    pub got: Option<String>,
    /// One sentence for the operator.
    pub explanation: String,
    /// What to do about it.
    pub action: String,
}

/// Where a finding is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Place {
    /// The quote as a whole.
    Quote,
    /// A PCR.
    Pcr(u8),
    /// An entry of the IMA list.
    ImaEntry {
        /// 0-based index since boot.
        entry: u64,
        /// File path or keyring or buffer name, if the line parsed.
        path: Option<String>,
    },
    /// An event of the boot log.
    BootEvent {
        /// 0-based index.
        event: usize,
        /// Its PCR.
        pcr: u8,
    },
}

/// The whole check of one integrity answer.
pub fn appraise(
    _ak: &AttestationKey,
    _challenge: &Challenge<'_>,
    _evidence: &QuoteResponse,
    _policies: &Policies<'_>,
    _state: &NodeState,
) -> Appraisal {
    todo!()
}

/// The identity quote's check (tenant): AK signature, nonce, PCR 16 bound to the key in the answer. Returns the PEM of the bound NK.
pub fn appraise_identity<'a>(
    _ak: &AttestationKey,
    _nonce: &str,
    _evidence: &'a QuoteResponse,
    _accept: &AcceptedAlgorithms,
) -> Result<&'a str, Vec<Finding>> {
    todo!()
}
