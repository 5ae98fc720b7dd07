//! TPM 2.0 structures under their TCG names (TPM 2.0 Library, Part 2), and what is done with them.

/// TPMS_ATTEST: what the TPM signs.
mod attest;
/// Bounded big-endian reading of TPM structures.
mod buffer;
/// TPM2_Certify's answer, and its check.
mod certify;
/// MakeCredential in software, and the challenge blob (Part 1, annex B and C).
mod credential;
/// DER of keys and signatures.
mod der;
/// Hash algorithms and digests of any bank.
mod hash;
/// PCR masks, PCR values, and the PCR blob of the quote string.
mod pcr;
/// PCR values as `tpm2_pcrread` prints them.
mod pcrread;
/// TPMT_PUBLIC, object attributes, names, SubjectPublicKeyInfo.
mod public;
/// The quote string, and its check.
mod quote;
/// TPMT_SIGNATURE.
mod signature;

pub use attest::{Attest, Attested, ClockInfo};
pub use buffer::StructureError;
pub use certify::{CertifyError, check_certification};
pub use credential::{CredentialBlob, CredentialError, make_credential};
pub use hash::{Digest, HashAlgorithm, Hasher};
pub use pcr::{BIND_PCR, PcrBlobError, PcrMask, PcrMaskError, PcrValues};
pub use pcrread::{PcrReadError, parse_pcrread};
pub use public::{EccCurve, Name, ObjectAttributes, Public, PublicParms};
pub use quote::{AttestationKey, Expected, KeyError, Quote, QuoteError, VerifiedQuote};
pub use signature::{Signature, SignatureScheme};
pub(crate) use signature::{ecdsa_verification, rsa_verification};
