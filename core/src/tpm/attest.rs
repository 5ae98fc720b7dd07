use serde::{Deserialize, Serialize};

use super::{Digest, HashAlgorithm, Name, PcrMask, StructureError};

/// TPMS_ATTEST.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attest {
    /// Name of the signing key, qualified by its hierarchy.
    pub qualified_signer: Vec<u8>,
    /// Qualifying data: the nonce.
    pub extra_data: Vec<u8>,
    /// TPM clock and counters.
    pub clock: ClockInfo,
    /// Vendor's firmware version.
    pub firmware_version: u64,
    /// What is attested.
    pub attested: Attested,
}

/// TPMU_ATTEST, the kinds Troth reads.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Attested {
    /// TPMS_QUOTE_INFO.
    Quote {
        /// Selected PCRs, one entry per bank in the order of the structure.
        selection: Vec<(HashAlgorithm, PcrMask)>,
        /// H over the selected values.
        pcr_digest: Digest,
    },
    /// TPMS_CERTIFY_INFO.
    Certify {
        /// Name of the certified object.
        name: Name,
        /// Its qualified name.
        qualified_name: Vec<u8>,
    },
}

/// TPMS_CLOCK_INFO.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been powered.
    pub clock: u64,
    /// TPM resets (reboots) since manufacture or clear.
    pub reset_count: u32,
    /// TPM restarts or resumes since the last reset.
    pub restart_count: u32,
    /// No value greater than `clock` was ever reported.
    pub safe: bool,
}

impl Attest {
    /// Parses TPMS_ATTEST; magic, type and the exact length are checked.
    pub fn parse(_bytes: &[u8]) -> Result<Self, StructureError> { todo!() }
}
