use std::time::Duration;

use x509_cert::der::DateTime;

use crate::identity::IdentityError;
use crate::identity::x509::Certificate;

/// Why a certificate does not lead to a trust anchor.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{certificate}: {problem}")]
pub struct ChainError {
    /// Subject of the certificate that is wrong, for people.
    pub certificate: String,
    /// What is wrong with it.
    #[source]
    pub problem: ChainProblem,
}

/// What is wrong with a certificate, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainProblem {
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] IdentityError),
    /// It certifies another key than the one that came with it.
    #[error("is not the certificate of this key")]
    OtherKey,
    /// Nothing in it says that it is for an EK.
    #[error(
        "is not an EK certificate: extendedKeyUsage lacks tcg-kp-EKCertificate, or \
         subjectAltName names no TPM"
    )]
    NotEk,
    /// Nothing in it says that it is for an attestation key.
    #[error(
        "is not an IAK certificate: extendedKeyUsage lacks tcg-kp-AIKCertificate, or keyUsage \
         lacks digitalSignature"
    )]
    NotIak,
    /// It is not for a signing key.
    #[error(
        "is not an IDevID certificate: keyUsage lacks digitalSignature, or it is that of an EK"
    )]
    NotIdevid,
    /// It is not for signing policies.
    #[error(
        "is not for signing policies: keyUsage lacks digitalSignature, or extendedKeyUsage lacks \
         codeSigning"
    )]
    NotPolicySigner,
    /// notBefore is in the future. Holds notBefore, Unix seconds.
    #[error("is not valid before {}; is this host's clock right?", date(*.0))]
    NotYetValid(u64),
    /// notAfter is in the past. Holds notAfter, Unix seconds.
    #[error(
        "has expired on {}; if this TPM is to stay, take expired certificates \
         (accept_expired_tpm_certs)",
        date(*.0)
    )]
    Expired(u64),
    /// Nobody of its issuer's name is known. Holds the issuer.
    #[error(
        "its issuer ({0}) is neither in the store nor in the chain that came with it; get the \
         certificate from the TPM's manufacturer and put it into the store"
    )]
    UnknownIssuer(String),
    /// A CA of its issuer's name has another key. Holds that CA.
    #[error("was not signed by the key of {0}; the CA may have several, each with a certificate")]
    Signature(String),
    /// SHA-1 signatures can be forged.
    #[error("is signed with SHA-1; put its certificate into the store if it is that of a CA")]
    Sha1,
    /// Signed in a way that is not checked here. Holds the OID.
    #[error("is signed with an algorithm that is not supported ({0})")]
    Algorithm(String),
    /// It issued, and is not entitled to.
    #[error("is not the certificate of a CA (basicConstraints, keyUsage), but issued another")]
    NotCa,
    /// More CAs are below it than it admits. Holds pathLenConstraint.
    #[error("admits {0} CAs below itself, there are more")]
    PathLength(u32),
    /// It had expired when it issued. Holds notAfter, Unix seconds.
    #[error("had expired on {}, before it issued another", date(*.0))]
    IssuedAfterExpiry(u64),
    /// A critical extension that is not understood. Holds its OID.
    #[error("has a critical extension that is not understood ({0})")]
    CriticalExtension(String),
    /// Too many CAs of one name.
    #[error("too many CAs of one name to find out which has issued it")]
    TooManySignatures,
}

impl ChainProblem {
    pub(super) fn of(self, certificate: &Certificate<'_>) -> ChainError {
        ChainError {
            certificate: certificate.subject(),
            problem: self,
        }
    }
}

/// Unix seconds as RFC 3339 writes them.
fn date(seconds: u64) -> String {
    DateTime::from_unix_duration(Duration::from_secs(seconds))
        .map_or_else(|_| seconds.to_string(), |date| date.to_string())
}
