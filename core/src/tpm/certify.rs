use super::{
    Attest, AttestationKey, Attested, HashAlgorithm, Name, Signature, SignatureScheme,
    StructureError,
};

/// Checks that `key` certified the object of this `name` (TPM2_Certify, TPM 2.0 Part 3, 18.2):
/// `attest` is TPMS_ATTEST, `signature` TPMT_SIGNATURE, and extraData is one of `qualifying`.
///
/// The signature must be of the key's own scheme and hash; [`AttestationKey`] admits no SHA-1.
pub fn check_certification(
    key: &AttestationKey,
    attest: &[u8],
    signature: &[u8],
    name: &Name,
    qualifying: &[&[u8]],
) -> Result<(), CertifyError> {
    let parsed = Attest::parse(attest)?;
    let signature = Signature::parse(signature)?;
    let Attested::Certify {
        name: certified, ..
    } = &parsed.attested
    else {
        return Err(CertifyError::NotACertification);
    };
    if (signature.scheme, signature.hash) != (key.scheme(), key.hash()) {
        return Err(CertifyError::Algorithm {
            expected: (key.scheme(), key.hash()),
            got: (signature.scheme, signature.hash),
        });
    }
    if !key.signed(attest, &signature) {
        return Err(CertifyError::Signature);
    }
    if !qualifying.contains(&parsed.extra_data.as_slice()) {
        return Err(CertifyError::QualifyingData);
    }
    if certified != name {
        return Err(CertifyError::OtherObject(certified.clone()));
    }
    Ok(())
}

/// Why a certification is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CertifyError {
    /// A structure does not parse.
    #[error(transparent)]
    Structure(#[from] StructureError),
    /// The TPM attested something, but no object.
    #[error("TPMS_ATTEST is not a certification")]
    NotACertification,
    /// Signed otherwise than the key signs.
    #[error(
        "signature is {} with {}, the key signs {} with {}",
        .got.0, .got.1, .expected.0, .expected.1
    )]
    Algorithm {
        /// The key's.
        expected: (SignatureScheme, HashAlgorithm),
        /// The signature's.
        got: (SignatureScheme, HashAlgorithm),
    },
    /// Another key signed, or something else was signed.
    #[error("signature over TPMS_ATTEST is wrong")]
    Signature,
    /// Made for another purpose.
    #[error("extraData is not what was to be certified for")]
    QualifyingData,
    /// Another object was certified. Holds its name.
    #[error("the certified object is another one, of name {0}")]
    OtherObject(Name),
}
