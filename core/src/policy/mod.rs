//! What is allowed, in compiled forms: PCR values, files by digest, and the boot log.

/// What the boot log must show.
mod boot;
/// Runtime policies from flat allowlists, from older JSON and from IMA lists.
mod convert;
/// What may be set up with the device mapper.
mod device_mapper;
/// Names with their allowed digests, held in one arena and found by a keyed hash.
mod digests;
/// A runtime policy to be changed, compared and written.
mod document;
/// Signed runtime policies.
mod dsse;
/// Exclude patterns: Python regular expressions on two Rust engines.
mod excludes;
/// Which kind of policy a text is.
mod format;
/// Regular expressions of Python's syntax that must match a whole text.
mod pattern;
/// Python's regular expressions in Rust's syntax.
mod python;
/// Runtime policy (Keylime JSON, version 1), compiled.
mod runtime;
/// Reads runtime policy JSON, strictly, into either form.
mod schema;
/// TPM policy: allowed PCR values and the mask of the quote.
mod tpm;

pub use boot::{
    BootChange, BootContents, BootDiff, BootEngine, BootEntry, BootForm, BootPolicy, BootRules,
    Converted, CreateError, MergedBoot, OrderChange, Refstate,
};
pub(crate) use boot::{keys, refstate, rules};
pub use device_mapper::DmPolicy;
pub(crate) use device_mapper::{Allowed as DmAllowed, DmRule};
pub use digests::{AllowedDigests, DigestTable};
pub use document::{
    Change, ChangeKind, DigestNames, PolicyDiff, PolicyDocument, SetChange, VerificationKeys,
    measured_name,
};
pub use dsse::{
    Envelope, EnvelopeSignature, PolicySigner, PolicySignerError, SignerError, SigningKey,
    SigningKeyError,
};
pub use excludes::{Excludes, ExcludesBudget};
pub use format::PolicyFormat;
pub(crate) use python::{Scope, translate as python_pattern};
pub use runtime::RuntimePolicy;
pub use tpm::TpmPolicy;

use crate::tpm::PcrMaskError;

/// Longest runtime policy that is compiled, in bytes (Keylime's upload limit is 100 MiB).
pub const MAX_RUNTIME_POLICY: usize = 128 << 20;
/// Longest TPM or boot policy text, in bytes.
pub const MAX_SMALL_POLICY: usize = 1 << 20;

/// A policy that cannot be used: which part and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not JSON; the text says where.
    #[error("policy is not JSON: {0}")]
    NotJson(String),
    /// JSON that does not follow the schema; the text names the key and says where.
    #[error("policy does not follow its schema: {0}")]
    Schema(String),
    /// Longer than the limit.
    #[error("policy of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// An exclude pattern that does not compile.
    #[error("exclude pattern {pattern:?} is not a usable regular expression: {reason}")]
    Exclude {
        /// The pattern as written.
        pattern: String,
        /// What the regex engine says.
        reason: String,
    },
    /// A key of a TPM policy that is no PCR number.
    #[error("TPM policy key {0:?} is not a PCR number from 0 to 23")]
    PcrNumber(String),
    /// A PCR with a meaning of its own.
    #[error("TPM policy must not name PCR {pcr}: {reason}")]
    PcrReserved {
        /// The PCR.
        pcr: u8,
        /// What it is reserved for.
        reason: &'static str,
    },
    /// A PCR value that is not one.
    #[error("TPM policy for PCR {pcr}: {value:?} is not a hexadecimal digest")]
    PcrValue {
        /// The PCR.
        pcr: u8,
        /// The value as written.
        value: String,
    },
    /// A PCR that a policy was to be made of.
    #[error("there is no value of PCR {pcr}")]
    PcrMissing {
        /// The PCR.
        pcr: u8,
    },
    /// The mask of a TPM policy.
    #[error("TPM policy mask: {0}")]
    Mask(#[from] PcrMaskError),
    /// JSON, but no boot policy of any form.
    #[error(
        "{0:?} is no boot policy: use {{}} (the log must replay to the quoted PCRs), Keylime's \
         reference state or a policy of ours"
    )]
    BootPolicy(String),
    /// A digest of a length that runtime policies do not have.
    #[error("digest of {bytes} bytes for {name:?}: runtime policies have 20 to 64")]
    Digest {
        /// The file, keyring or buffer.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// Two policies that cannot be one.
    #[error(
        "the policies cannot be merged: `{member}` is {} in one and {} in the other",
        values[0],
        values[1]
    )]
    Merge {
        /// What they differ in.
        member: String,
        /// What either says, cut short.
        values: [String; 2],
    },
    /// Two boot policies that cannot be one; each contradiction.
    #[error("the boot policies cannot be merged: {}", .0.join("; "))]
    BootMerge(Vec<String>),
    /// `verification-keys` that are none.
    #[error("`verification-keys`: {0}")]
    VerificationKeys(String),
    /// A device-mapper policy that cannot be used; the text names the rule.
    #[error("`ima.dm_policy`: {0}")]
    DeviceMapper(String),
    /// A DSSE envelope that holds no runtime policy.
    #[error("signed policy (DSSE envelope): {0}")]
    Envelope(&'static str),
    /// A line of a flat allowlist.
    #[error("allowlist line {line}: {reason}")]
    Allowlist {
        /// Line number from 1.
        line: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// An IMA list that no policy can be made from.
    #[error("IMA list: {0}")]
    ImaList(#[from] crate::ima::EntryError),
}

impl PolicyError {
    /// Sorts serde_json's errors into syntax and schema.
    fn from_json(error: &serde_json::Error) -> Self {
        if error.is_data() {
            Self::Schema(error.to_string())
        } else {
            Self::NotJson(error.to_string())
        }
    }

    /// Refuses texts over `limit`.
    fn check_size(bytes: usize, limit: usize) -> Result<(), Self> {
        if bytes > limit {
            Err(Self::TooLarge { bytes, limit })
        } else {
            Ok(())
        }
    }
}
