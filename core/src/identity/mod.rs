//! Who a node is: its id, and which keys and certificates may stand for it.

/// The answer to the registrar's challenge.
mod activation;
/// EK certificates in every form that TPMs and agents have them in.
mod certificate;
/// From an EK certificate to a trust anchor.
mod chain;
/// Bounded, lenient reading of BER.
mod der;
/// IAK and IDevID: the device's own identity.
mod device;
/// Agent ids.
mod id;
/// What makes an AK and an EK acceptable.
mod keys;
/// Deviations from the standards that are tolerated.
mod quirk;
/// From an EK certificate to the EK.
mod template;
/// The parts of a certificate (RFC 5280).
mod x509;

pub use activation::{activation_tag, activation_tag_matches};
pub use certificate::{certificate_matches_key, ek_certificate_chain, normalise_ek_certificate};
pub use chain::{
    CertifiedEk, CertifiedKey, ChainError, ChainProblem, Expiry, Trust, TrustAnchors, certify_ek,
    certify_policy_signer,
};
pub use device::{CertifiedAk, DeviceError, DeviceIdentity, certify_ak};
pub use id::AgentId;
pub use keys::{check_ak, check_distinct, check_ek};
pub use quirk::{Quirk, certificate_quirks};
pub use template::default_ek_of_certificate;

use crate::tpm::{KeyError, ObjectAttributes};

/// Why an identity is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// An agent id outside the alphabet or length. Holds its first 80 characters.
    #[error("agent id {0:?} is not 1 to 80 characters of [A-Za-z0-9._-], the first not a dot")]
    AgentId(String),
    /// Object attributes that make a key unfit.
    #[error(
        "{key} has the wrong object attributes: missing [{missing}], must not have [{forbidden}]"
    )]
    Attributes {
        /// `AK`, `EK`, `IAK` or `IDevID`.
        key: &'static str,
        /// What must be set and is not.
        missing: ObjectAttributes,
        /// What must be clear and is not.
        forbidden: ObjectAttributes,
    },
    /// With SHA-1 as nameAlg two different keys can have one name.
    #[error("{key} has SHA-1 as nameAlg; make one with SHA-256 or better")]
    WeakName {
        /// `AK`, `EK`, `IAK` or `IDevID`.
        key: &'static str,
    },
    /// The AK cannot sign quotes that can be checked.
    #[error(transparent)]
    AttestationKey(KeyError),
    /// An EK signs nothing.
    #[error("EK has a signing scheme, which no TCG template has")]
    EkScheme,
    /// An EK protects credentials with AES.
    #[error("EK is not a storage key: its symmetric algorithm is NULL")]
    EkSymmetric,
    /// RSA below 2048 bits.
    #[error("{key} is RSA with {bits} bits; 2048 are the least")]
    KeySize {
        /// `EK` or `IDevID`.
        key: &'static str,
        /// Modulus size in bits.
        bits: u16,
    },
    /// One key pair cannot be both.
    #[error("AK and EK are the same key")]
    SameKey,
    /// Not a certificate, or one that cannot be read.
    #[error("certificate at byte {offset}: {reason}")]
    Certificate {
        /// Offset in bytes.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
}

/// Certificates of every kind, made by tests.
#[cfg(test)]
mod draft;
#[cfg(test)]
mod tests;
