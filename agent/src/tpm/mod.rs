//! The TPM behind a trait, and the one thread that talks to it.
//!
//! [`tpm::Tpm`] is the small set of commands that attestation needs. [`tpm::esys`] implements it over
//! tpm2-tss, [`tpm::sim`] in software for fast tests. Nothing outside this module sees tss-esapi.

/// The thread that owns the TPM; requests come by channel, each with a deadline.
pub mod actor;
/// The keys of the device identity: IDevID and IAK.
pub mod device;
/// The implementation over tpm2-tss (ESYS) through tss-esapi.
pub mod esys;
/// EK certificates and their chain in NV.
pub mod nv;
/// Devices that are not this user's yet.
pub(crate) mod permission;
/// The quote that binds a transport key in PCR 16.
pub mod quote;
/// A simulated TPM: software keys, PCR banks, faults on request.
pub mod sim;
/// Key kinds and the policies of the TCG EK templates.
pub mod templates;

pub use actor::{Actor, TpmHandle};
pub use device::{DeviceKey, DeviceRole};
pub use quote::{BoundQuote, QuoteRequest};
pub use templates::{AkTemplate, KeyKind};

use troth_core::tpm::{CredentialBlob, Digest, HashAlgorithm, PcrMask, PcrValues, StructureError};
use zeroize::Zeroizing;

/// What the administrator has set up in the TPM's endorsement hierarchy.
#[derive(Clone, Default)]
pub struct Endorsement {
    /// Persistent handle of the EK; without, the EK is made from its template.
    pub ek_handle: Option<u32>,
    /// authValue of the hierarchy, at most 64 bytes.
    pub auth: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Endorsement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endorsement")
            .field("ek_handle", &self.ek_handle)
            .finish_non_exhaustive()
    }
}

/// An object as TPM2_Create returns it: what TPM2_Load takes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyBlobs {
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
    /// Content of TPM2B_PRIVATE, wrapped by the parent: of no use without this very TPM.
    pub private: Vec<u8>,
}

/// What TPM2_Quote and TPM2_Certify return.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signed {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// The commands of a TPM 2.0 that the agent needs, in the order of a host's life.
///
/// An implementation keeps at most one EK and one AK loaded, and flushes both when dropped.
pub trait Tpm {
    /// TPM2_CreatePrimary of the EK by its TCG template; returns its TPMT_PUBLIC. A second call
    /// with the EK still loaded creates nothing.
    fn load_ek(&mut self, kind: KeyKind) -> Result<Vec<u8>, TpmError>;
    /// TPM2_FlushContext of the EK; nothing when none is loaded.
    fn flush_ek(&mut self);
    /// TPM2_Create of an AK under the loaded EK. Does not load it.
    fn create_ak(&mut self, template: &AkTemplate) -> Result<KeyBlobs, TpmError>;
    /// TPM2_Load of an AK under the loaded EK; replaces the AK that was loaded.
    fn load_ak(&mut self, blobs: &KeyBlobs) -> Result<(), TpmError>;
    /// TPM2_ActivateCredential with the loaded AK and EK; returns the challenge.
    fn activate(&mut self, blob: &CredentialBlob) -> Result<Zeroizing<Vec<u8>>, TpmError>;
    /// TPM2_CreatePrimary of a device identity key by its template, or TPM2_ReadPublic of the
    /// persistent one; returns its TPMT_PUBLIC. Leaves nothing loaded.
    fn device_key(&mut self, key: &DeviceKey) -> Result<Vec<u8>, TpmError>;
    /// TPM2_Certify of the loaded AK by the IAK. Leaves the IAK unloaded.
    fn certify_ak(&mut self, iak: &DeviceKey, qualifying_data: &[u8]) -> Result<Signed, TpmError>;
    /// TPM2_PCR_Reset.
    fn pcr_reset(&mut self, pcr: u8) -> Result<(), TpmError>;
    /// TPM2_PCR_Extend of one bank.
    fn pcr_extend(&mut self, pcr: u8, bank: HashAlgorithm, digest: &Digest)
    -> Result<(), TpmError>;
    /// TPM2_PCR_Read, repeated until every selected PCR was read.
    fn pcr_read(&mut self, bank: HashAlgorithm, mask: PcrMask) -> Result<PcrValues, TpmError>;
    /// TPM2_Quote with the loaded AK over one bank.
    fn quote(
        &mut self,
        nonce: &[u8],
        bank: HashAlgorithm,
        mask: PcrMask,
    ) -> Result<Signed, TpmError>;
    /// Defined NV indices from `first` to `last`, both included, ascending.
    fn nv_indices(&mut self, first: u32, last: u32) -> Result<Vec<u32>, TpmError>;
    /// The whole content of an NV index that its own empty authorisation may read.
    fn nv_read(&mut self, index: u32) -> Result<Vec<u8>, TpmError>;
    /// A command that costs next to nothing and proves that the TPM answers.
    fn ping(&mut self) -> Result<(), TpmError>;
    /// What kind of chip this is.
    fn describe(&mut self) -> Result<Description, TpmError>;
}

/// What a TPM says of itself, for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Description {
    /// Manufacturer and vendor string.
    pub vendor: String,
    /// TPM2_PT_FIRMWARE_VERSION_1, as two numbers.
    pub firmware: String,
    /// Names of the PCR banks that have PCRs.
    pub banks: Vec<String>,
}

impl std::fmt::Display for Description {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            vendor,
            firmware,
            banks,
        } = self;
        write!(
            f,
            "{vendor} firmware {firmware}, PCR banks {}",
            banks.join(", ")
        )
    }
}

/// Why a TPM request failed, and whether asking again may help.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The TCTI cannot be opened.
    #[error(
        "cannot reach the TPM through {tcti:?}: {reason}; check that the device exists and that \
         this user may open it (group tss), or set `tcti`"
    )]
    Open {
        /// The TCTI, as configured or chosen.
        tcti: String,
        /// What tpm2-tss says.
        reason: String,
    },
    /// The way to the TPM broke in the middle; the next request opens it anew.
    #[error("lost the TPM in {command}: {reason}; the connection will be opened again")]
    Lost {
        /// The command under way.
        command: &'static str,
        /// What tpm2-tss says.
        reason: String,
    },
    /// A loaded object is gone, e.g. after a TPM reset; the next request loads it anew.
    #[error("the TPM no longer knows a loaded key ({command}: {reason}); it will be loaded again")]
    HandleGone {
        /// The command under way.
        command: &'static str,
        /// What tpm2-tss says.
        reason: String,
    },
    /// The TPM refused a command.
    #[error("{command} failed: {reason}")]
    Command {
        /// TCG name of the command.
        command: &'static str,
        /// What the TPM says.
        reason: String,
    },
    /// Dictionary attack lockout.
    #[error(
        "the TPM is locked out after authorisation failures ({command}); it recovers by itself, \
         `tpm2_getcap properties-variable` shows TPM2_PT_LOCKOUT_INTERVAL"
    )]
    Lockout {
        /// The command under way.
        command: &'static str,
    },
    /// TPM2_Load refuses a key: it was made by another TPM, another EK, or the file is damaged.
    #[error("the TPM refuses the key: {reason}")]
    WrongParent {
        /// What the TPM says.
        reason: String,
    },
    /// PCRs moved between reading and quoting, every time.
    #[error("PCRs changed while they were quoted, {attempts} times in a row")]
    Busy {
        /// Tries made.
        attempts: u32,
    },
    /// The PCR bank is not allocated.
    #[error("the TPM has no {bank} PCR bank; set `tpm_hash_alg` to one that it has")]
    NoBank {
        /// Name of the bank.
        bank: &'static str,
    },
    /// The endorsement hierarchy has another authValue.
    #[error(
        "the TPM refuses the password of its endorsement hierarchy ({command}); set \
         `tpm_ownerpassword` to the one that `tpm2_changeauth -c e` has set"
    )]
    EndorsementAuth {
        /// The command under way.
        command: &'static str,
    },
    /// What is at a configured handle is no key to use.
    #[error(
        "{option} {handle:#010x}: {reason}; `tpm2_getcap handles-persistent` lists what is there, \
         `{option} = \"generate\"` needs none"
    )]
    PersistentKey {
        /// The option with the handle.
        option: &'static str,
        /// The handle.
        handle: u32,
        /// What is wrong.
        reason: String,
    },
    /// A persistent key has another authValue.
    #[error(
        "the TPM refuses the password of the key ({command}); set `{option}`. Do not guess: after \
         a few wrong ones the TPM locks itself"
    )]
    KeyAuth {
        /// The option with the password.
        option: &'static str,
        /// The command under way.
        command: &'static str,
    },
    /// Neither this TPM's templates nor tpm2-tss can do what was asked for.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A request needs a key that is not loaded.
    #[error("{0} is not loaded")]
    NotLoaded(&'static str),
    /// A structure of the TPM does not parse.
    #[error("the TPM's answer does not parse: {0}")]
    Structure(#[from] StructureError),
    /// The request waited longer than its deadline.
    #[error("{what}: the TPM did not answer within {seconds} s")]
    Deadline {
        /// The request.
        what: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// More requests are waiting than the TPM can answer in reasonable time.
    #[error("too many requests are waiting for the TPM")]
    Overloaded,
    /// The TPM thread has ended.
    #[error("the TPM thread has stopped")]
    Stopped,
}

impl TpmError {
    /// Will asking again fail in the same way, until somebody intervenes?
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Unsupported(_)
                | Self::EndorsementAuth { .. }
                | Self::KeyAuth { .. }
                | Self::PersistentKey { .. }
        )
    }

    /// Must the connection be opened and the keys loaded again before the next request?
    pub(crate) fn needs_reopening(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::HandleGone { .. })
    }
}
