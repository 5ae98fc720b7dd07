//! What is allowed. Stub: the implementer completes it (as a directory module).

use crate::tpm::PcrMask;

/// Allowed PCR values, with the mask the quote must cover.
#[derive(Clone, Debug)]
pub struct TpmPolicy {
    mask: PcrMask,
}
impl TpmPolicy {
    /// From the verifier's JSON text, which has `mask`.
    pub fn parse(_json: &str) -> Result<Self, PolicyError> { todo!() }
    /// From what an operator writes (no mask yet), normalised; refuses PCR 10, 16 and above 23.
    pub fn from_operator(_json: &str) -> Result<Self, PolicyError> { todo!() }
    /// The mask, without PCR 16.
    pub fn mask(&self) -> PcrMask { self.mask }
    /// Adds PCRs to the mask.
    #[must_use]
    pub fn with_mask(self, _mask: PcrMask) -> Self { todo!() }
    /// The JSON text the verifier's API carries.
    pub fn to_json(&self) -> String { todo!() }
}

/// A runtime policy compiled once per content digest and shared by all nodes (`Arc`).
#[derive(Debug)]
pub struct RuntimePolicy {}
impl RuntimePolicy {
    /// Compiles Keylime's runtime policy JSON (version 1).
    pub fn compile(_json: &[u8]) -> Result<Self, PolicyError> { todo!() }
    /// Runtime policy JSON from a flat allowlist and an exclude file; `timestamp` is Unix seconds.
    pub fn json_from_allowlist(_allowlist: &str, _excludes: &str, _timestamp: u64) -> Result<String, PolicyError> { todo!() }
    /// Runtime policy JSON that allows exactly the files of an IMA list; `timestamp` is Unix seconds.
    pub fn json_from_ima_list(_list: &str, _timestamp: u64) -> Result<String, PolicyError> { todo!() }
}

/// What the boot log must show.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum BootPolicy {
    /// No measured boot: the log is not looked at.
    None,
    /// `{}`: the log must replay to the quoted PCRs; its content is accepted.
    Replay,
}
impl BootPolicy {
    /// From the API's `mb_policy` text; null, "" -> None, `{}` -> Replay, anything else an error that says so.
    pub fn parse(_text: Option<&str>) -> Result<Self, PolicyError> { todo!() }
    /// PCRs the quote must cover for it (0xfbff, or none).
    pub fn mask(&self) -> PcrMask { todo!() }
}

/// A policy that cannot be used: which part and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not JSON.
    #[error("policy is not JSON: {0}")]
    NotJson(String),
}
